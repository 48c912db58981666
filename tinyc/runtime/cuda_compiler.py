"""CUDA C++ -> machine code of a GPU: NVRTC where it is installed, else nvcc.

NVRTC is a library and takes a tenth of nvcc's time. It comes as a package
(`pip install nvidia-cuda-nvrtc`) or with the toolkit, and needs neither a driver nor headers.
Contraction of products and sums is on, as in C; laxer arithmetic never is.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinyc.diagnostics import CompileError, CompilerNotFound

NAME = "program.cu"
OPTIONS = ("-std=c++17", "-w")
SECONDS = 600.0
INSTALL = "pip install 'tinyc[cuda]' brings NVRTC; the CUDA toolkit has nvcc"
# "program.cu(12): error: ..." and "program.cu:12:5: error: ..."
_PLACE = re.compile(r"program\.cu[(:](\d+)\b.*?\berror\b")


@dataclass(frozen=True)
class Nvrtc:
    """The compiler as a library: its version, and the architectures that it knows, as numbers."""

    library: ctypes.CDLL
    version: str
    known: tuple[int, ...]

    def compile(self, source: str, arch: str) -> bytes:
        """Return machine code for an architecture such as sm_90; CompileError with the log."""
        lib, handle = self.library, ctypes.c_void_p()
        _nvrtc_done(lib, lib.nvrtcCreateProgram(ctypes.byref(handle), source.encode(),
                                                NAME.encode(), 0, None, None))
        try:
            words = [f"--gpu-architecture={arch}".encode(), *(o.encode() for o in OPTIONS)]
            options = (ctypes.c_char_p * len(words))(*words)
            if lib.nvrtcCompileProgram(handle, len(words), options):
                log = self._text(handle, "ProgramLog").rstrip(b"\0").decode(errors="replace")
                raise CompileError(refusal("NVRTC", log, source))
            return self._text(handle, "PTX" if arch.startswith("compute") else "CUBIN")
        finally:
            lib.nvrtcDestroyProgram(ctypes.byref(handle))

    def _text(self, handle: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        _nvrtc_done(self.library,
                    getattr(self.library, f"nvrtcGet{what}Size")(handle, ctypes.byref(size)))
        data = ctypes.create_string_buffer(size.value)
        _nvrtc_done(self.library, getattr(self.library, f"nvrtcGet{what}")(handle, data))
        return data.raw


@dataclass(frozen=True)
class Nvcc:
    """The compiler as a program: where it is, its version, the architectures that it knows."""

    path: str
    version: str
    known: tuple[int, ...]

    def compile(self, source: str, arch: str) -> bytes:
        """Return machine code for an architecture such as sm_90; CompileError with the log."""
        kind = "-ptx" if arch.startswith("compute") else "-cubin"
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "out")
            Path(folder, NAME).write_text(source)
            line = [self.path, kind, f"-arch={arch}", *OPTIONS, "-o", str(out), NAME]
            done = _run(line, folder)
            if done.returncode:
                raise CompileError(refusal("nvcc", done.stdout + done.stderr, source))
            return out.read_bytes()


CudaCompiler = Nvrtc | Nvcc


def cuda_compiler() -> CudaCompiler:
    """Return NVRTC, or nvcc; CompilerNotFound says what was looked for and what helps."""
    toolkit = os.environ.get("CUDA_HOME", "") or "/usr/local/cuda"
    found = _cuda_compiler(toolkit, os.environ.get("PATH", ""))
    if isinstance(found, str):
        raise CompilerNotFound(found)
    return found


@functools.cache
def _cuda_compiler(toolkit: str, path: str) -> CudaCompiler | str:
    for place in _libraries(toolkit):
        try:
            return _nvrtc(place)
        except (OSError, AttributeError, CompileError):
            continue  # of another machine, or a part of it is missing
    nvcc = shutil.which("nvcc", path=path) or shutil.which(str(Path(toolkit, "bin", "nvcc")))
    if nvcc is None:
        return f"no compiler for CUDA: neither NVRTC nor nvcc is here; {INSTALL}"
    version = _run([nvcc, "--version"], None).stdout.strip().splitlines()
    codes = re.findall(r"sm_(\d+)", _run([nvcc, "--list-gpu-code"], None).stdout)
    if not version or not codes:
        return f"no compiler for CUDA: {nvcc} does not answer; {INSTALL}"
    return Nvcc(nvcc, version[-1], tuple(sorted(map(int, set(codes)))))


def _libraries(toolkit: str) -> Iterator[Path]:
    """Where NVRTC may be: in packages of this Python, then in the toolkit."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        yield from sorted(Path(folder).glob("*/lib/libnvrtc.so.*"), reverse=True)
    for folder in ("lib64", "lib"):
        yield from sorted(Path(toolkit, folder).glob("libnvrtc.so.*"), reverse=True)


def _nvrtc(place: Path) -> Nvrtc:
    """Load the library. What it needs at its first compilation lies beside it, but is not found
    there by itself."""
    for needed in sorted(place.parent.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(needed), mode=ctypes.RTLD_GLOBAL)
    lib = ctypes.CDLL(str(place))
    major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _nvrtc_done(lib, lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    _nvrtc_done(lib, lib.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _nvrtc_done(lib, lib.nvrtcGetSupportedArchs(known))
    for function in ("nvrtcCompileProgram", "nvrtcGetCUBIN"):
        getattr(lib, function).restype = ctypes.c_int
    return Nvrtc(lib, f"NVRTC {major.value}.{minor.value} {place.name}", tuple(sorted(known)))


def _nvrtc_done(library: ctypes.CDLL, result: int) -> None:
    if result:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CompileError(f"NVRTC fails: {library.nvrtcGetErrorString(result).decode()}")


def _run(line: list[str], folder: str | None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=SECONDS,
                              stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(line, 1, "", str(error))


def refusal(compiler: str, log: str, source: str) -> str:
    """What a compiler said, and the line of the source that it is about."""
    place = _PLACE.search(log)
    lines = source.splitlines()
    about = ""
    if place and 0 < int(place[1]) <= len(lines):
        about = f"\nline {place[1]}: {lines[int(place[1]) - 1].strip()}"
    said = "\n".join(log.strip().splitlines()[:20])
    return f"{compiler} refuses a program:\n{said}{about}"


def architecture(compiler: CudaCompiler, arch: str) -> str:
    """Return what to compile for: the architecture of a GPU, or, where the compiler does not know
    it, the intermediate language for the newest one before it, which the driver compiles."""
    number = int(arch.removeprefix("sm_").rstrip("af"))
    older = [known for known in compiler.known if known <= number]
    if not older:
        oldest = f"sm_{compiler.known[0]}" if compiler.known else "none"
        raise CompileError(f"{compiler.version} has no code for {arch}: its oldest is {oldest}")
    return arch if older[-1] == number else f"compute_{older[-1]}"


def compiled(source: str, arch: str) -> bytes:
    """Return the machine code of a program for a GPU.

    CompileError shows what the compiler refuses; CompilerNotFound where there is none.
    """
    compiler = cuda_compiler()
    return compiler.compile(source, architecture(compiler, arch))


def key(arch: str) -> tuple[str, ...]:
    """Return what decides, beside its source, what a program is compiled to."""
    compiler = cuda_compiler()
    return ("cuda", compiler.version, *OPTIONS, architecture(compiler, arch))
