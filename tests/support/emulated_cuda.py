"""A CUDA device that computes on the CPU: what `cuda_calls.Calls` asks for, by cuda_emulator.h.

The text of a program is compiled by a C++ compiler in place of NVRTC; all else is the device as it
is. `NAME` is a name of it once `install` has run. Memory that nobody wrote holds NaN, and launches
are held against the limits of a GPU.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyc.diagnostics import CompileError, CompilerNotFound
from tinyc.runtime import cuda, cuda_compiler
from tinyc.runtime.cuda_calls import Arguments, Card, DriverError
from tinyc.runtime.launches import LaunchDevice

NAME = "cuda:9"
HEADER = Path(__file__).with_name("cuda_emulator.h")
# Without instructions of its own: tensor cores are compiled, not run.
CARD = Card("an emulated GPU", "", 4 << 30, 227 << 10, 3)
# Every program is compiled for these GPUs, too, where there is a compiler for CUDA.
ARCHITECTURES = ("sm_75", "sm_80", "sm_90")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-fno-strict-aliasing")
SANITIZE = ("-fsanitize=address", "-g", "-fno-omit-frame-pointer")
KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\((\d+)(?:, \d+)?\)\s+'
                    r"(\w+)\(([^)]*)\)")
DYNAMIC = re.compile(r"extern __shared__ (?:__align__\(\d+\) )?(.*?) ?(\w+)\[\];")


def problem() -> str:
    """Why nothing can be emulated, empty where it can."""
    return "" if compiler() else "emulated CUDA: there is no C++ compiler"


@functools.cache
def compiler() -> str:
    return shutil.which("g++") or shutil.which("clang++") or ""


@functools.cache
def version() -> str:
    done = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


@functools.cache
def included(flags: Sequence[str]) -> str:
    """A folder with the header and what the compiler has made of it beforehand."""
    folder = Path(tempfile.mkdtemp(prefix="tinyc-emulator-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copy(HEADER, folder)
    line = [compiler(), *flags, "-x", "c++-header", HEADER.name]
    if "clang" not in compiler():
        subprocess.run([*line, "-o", f"{HEADER.name}.gch"], cwd=folder, check=True)
    return str(folder)


def host_text(source: str) -> str:
    """CUDA C++ as C++ that includes the emulator, with a function to launch each kernel."""
    text = DYNAMIC.sub(r"\1 *\2 = (\1 *)emulator::dynamic;", source)
    pieces = [f'#include "{HEADER.name}"', "#line 1", text]
    for threads, name, parameters in KERNEL.findall(source):
        types = [re.sub(r"\w+$", "", p.strip()) for p in parameters.split(",")]
        values = ", ".join(f"({t})v[{i}]" for i, t in enumerate(types))
        pieces.append(
            f"static void call_{name}(const uint64_t *v) {{ {name}({values}); }}\n"
            f'extern "C" int run_{name}(const unsigned *grid, const unsigned *block, '
            "unsigned shared, const uint64_t *v) { "
            f'return emulator::launch("{name}", call_{name}, grid, block, shared, v); }}\n'
            f'extern "C" int most_{name}() {{ return {threads}; }}\n'
            f'extern "C" int arguments_{name}() {{ return {len(types)}; }}'
        )
    return "\n".join(pieces)


def compiled(source: str, flags: Sequence[str] = FLAGS) -> bytes:
    """A library that runs a program's kernels on this CPU."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "program.cu.cpp").write_text(host_text(source))
        line = [compiler(), *flags, f"-I{included(flags)}", "-o", "out.so", "program.cu.cpp"]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise CompileError(f"the emulator refuses a program:\n{done.stderr[:4000]}\n{source}")
        return Path(folder, "out.so").read_bytes()


@functools.cache
def nvidia_version() -> str:
    """The compiler for CUDA, empty where there is none."""
    try:
        return cuda_compiler.cuda_compiler().version
    except CompilerNotFound:
        return ""


class Emulated:
    """The calls of a library for CUDA, done by the CPU at once.

    `failing` has what calls raise, by name; `counts` how often each was made. Memory lies at
    multiples of `alignment`.
    """

    alignment = 256

    def __init__(self, card: Card = CARD) -> None:
        self.card = card
        self.memory: dict[int, np.ndarray] = {}
        self.failing: dict[str, DriverError] = {}
        self.counts: dict[str, int] = {}
        self.recording: list[tuple[Any, ...]] | None = None
        self.entered = 0

    def called(self, name: str) -> None:
        assert self.entered, f"{name} outside of active()"
        self.counts[name] = self.counts.get(name, 0) + 1
        if name in self.failing:
            raise self.failing[name]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self.entered += 1
        try:
            yield
        finally:
            self.entered -= 1

    def allocate(self, nbytes: int) -> int:
        self.called("allocate")
        if sum(a.nbytes for a in self.memory.values()) + nbytes > self.card.memory:
            raise DriverError("cuMemAlloc: out of memory", memory=True)
        array = np.full(nbytes, 0xFF, np.uint8)
        if array.ctypes.data % self.alignment:
            array = np.full(nbytes + self.alignment, 0xFF, np.uint8)
        address = -(-array.ctypes.data // self.alignment) * self.alignment
        self.memory[address] = array
        return address

    def free(self, address: int) -> None:
        self.called("free")
        del self.memory[address]

    def pinned(self, nbytes: int) -> np.ndarray:
        self.called("pinned")
        return np.empty(nbytes, np.uint8)

    def copy_in(self, address: int, values: np.ndarray) -> None:
        self.called("copy_in")
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def copy_out(self, values: np.ndarray, address: int) -> None:
        self.called("copy_out")
        ctypes.memmove(values.ctypes.data, address, values.nbytes)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        self.called("copy")
        ctypes.memmove(target, source, nbytes)

    def load(self, binary: bytes) -> ctypes.CDLL:
        self.called("load")
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(binary)
            file.flush()
            try:
                return ctypes.CDLL(file.name)
            except OSError as error:
                text = f"cuModuleLoadData: device kernel image is invalid: {error}"
                raise DriverError(text) from None

    def function(self, module: ctypes.CDLL, name: str, shared: int) -> tuple[ctypes.CDLL, str]:
        self.called("function")
        assert shared <= self.card.shared
        assert hasattr(module, f"run_{name}")
        return module, name

    def launch(self, function: Any, grid: int, threads: int, shared: int,
               arguments: Arguments) -> None:
        self.called("launch")
        module, name = function
        most = getattr(module, f"most_{name}")()
        if not (0 < threads <= most and 0 < grid < 1 << 31 and shared <= self.card.shared):
            raise DriverError(f"cuLaunchKernel: invalid argument: {name} of {grid} x {threads}")
        if self.recording is None:
            self.run(module, name, grid, threads, shared, list(arguments.values))
        else:
            self.recording.append((module, name, grid, threads, shared, list(arguments.values)))

    def run(self, module: Any, name: str, grid: int, threads: int, shared: int,
            values: list[int]) -> None:
        sizes = [(ctypes.c_uint * 3)(n, 1, 1) for n in (grid, threads)]
        array = (ctypes.c_uint64 * len(values))(*values)
        if getattr(module, f"run_{name}")(*sizes, ctypes.c_uint(shared), array):
            module.emulator_problem.restype = ctypes.c_char_p
            raise DriverError(f"cuLaunchKernel: {module.emulator_problem().decode()}")

    def mark(self) -> float:
        self.called("mark")
        return time.perf_counter()

    def wait(self, event: float) -> None:
        self.called("wait")

    def elapsed(self, first: float, second: float) -> float:
        self.called("elapsed")
        return (second - first) * 1e9

    def synchronize(self) -> None:
        self.called("synchronize")

    def begin(self) -> None:
        self.called("begin")
        self.recording = []

    def end(self) -> EmulatedGraph:
        self.called("end")
        assert self.recording is not None
        graph = EmulatedGraph(self, self.recording)
        self.recording = None
        return graph


class EmulatedGraph:
    """Launches that were recorded."""

    def __init__(self, calls: Emulated, launches: list[tuple[Any, ...]]) -> None:
        self.calls = calls
        self.launches = launches

    def change(self, number: int, arguments: Arguments) -> None:
        self.calls.called("change")
        self.launches[number] = (*self.launches[number][:-1], list(arguments.values))

    def launch(self) -> None:
        self.calls.called("launch graph")
        for launch in self.launches:
            self.calls.run(*launch)


class EmulatedDriver(cuda.CudaDriver):
    """The CUDA device's driver, with a C++ compiler for the CPU."""

    flags: tuple[str, ...] = FLAGS

    @property
    def key(self) -> Sequence[str]:
        return ("emulated cuda", version(), HEADER.read_text(), nvidia_version(), *self.flags)

    def compile(self, source: str) -> bytes:
        if nvidia_version():
            # Matrix instructions and asynchronous stores begin with the second of them.
            for arch in ARCHITECTURES["tc_mma_" in source or "tc_copy" in source:]:
                cuda_compiler.compiled(source, arch)
        return compiled(source, self.flags)


def open_device(name: str = NAME, calls: Emulated | None = None) -> LaunchDevice:
    """An emulated device."""
    return LaunchDevice(name, EmulatedDriver(name, calls or Emulated()))


def install() -> None:
    """Let `NAME` be an emulated device, whatever other devices there are."""
    real = cuda.open_device
    if not hasattr(real, "emulates"):
        def opened(name: str) -> LaunchDevice:
            return open_device(name) if name == NAME else real(name)

        opened.emulates = True  # type: ignore[attr-defined]
        cuda.open_device = opened


def emulated_library(folder: Path, needed: Sequence[str] = ()) -> None:
    """Make a libcuda.so.1 whose GPU is emulated; what else is `needed` is there, and fails."""
    if shutil.which("cc") is None or problem():
        pytest.skip("emulated CUDA: there is no compiler")
    stubs = folder / "stubs.c"
    stubs.write_text("\n".join(f"__attribute__((weak)) int {name}() {{ return 801; }}"
                               for name in needed))
    source = HEADER.with_name("emulated_libcuda.c")
    line = ["cc", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o",
            folder / "libcuda.so.1", source, stubs]
    subprocess.run(line, check=True)
