"""From C source to a loaded library: finds the compiler, runs it, keeps what it made.

Never fast-math: `-ffinite-math-only` makes `isnan(nan)` false, and a library linked with it turns
denormals off in whoever loads it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinyc import config
from tinyc.diagnostics import CompileError, CompilerNotFound, Origin, format_origin, warn_once
from tinyc.runtime.cache import DiskCache, disk_cache, make_key
from tinyc.runtime.isa import NATIVE, cpu_features, isa_in_force

FLAGS = (
    "-O2",
    "-ftree-vectorize",
    "-fno-trapping-math",
    # Safe because generated code calls libm under names that compilers don't know: gcc folds
    # sin(atan(x)) so that NaN gives 1 once errno is out of the way.
    "-fno-math-errno",
    "-fwrapv",
    "-ffp-contract=fast",
    "-fopenmp-simd",
    "-fPIC",
    "-shared",
    "-w",
)
# What only one family knows or needs. For gcc this is the speed of -O3 at a lower cost; clang
# unrolls by itself until compiling takes four times as long, for nothing.
FAMILY_FLAGS = {
    "gcc": ("-fvect-cost-model=dynamic", "-funroll-loops", "-fno-schedule-insns2"),
    "clang": ("-fno-unroll-loops",),
    "zig": ("-fno-unroll-loops", "-fno-sanitize=undefined"),
}
MachineFlags = tuple[tuple[str, ...], ...]
NATIVE_FLAGS: MachineFlags = (("-march=native",), ("-mcpu=native",), ())
LIBRARY = "program.so"
SOURCE = "program.c"
_COMMENT = re.compile(r"[ \t]*//.*")
PROBE = "long tinyc_probe(void) { return 42; }\n"
PROBE_SECONDS = 30.0
COMPILE_SECONDS = 600.0

Origins = Mapping[str, Sequence[Origin]]


@dataclass(frozen=True)
class Compiler:
    """A compiler that was seen to work on this machine, and the flags it takes."""

    command: tuple[str, ...]
    family: str
    version: str
    native: tuple[str, ...]

    def flags(self) -> tuple[str, ...]:
        """The flags of every source."""
        return (*FLAGS, *FAMILY_FLAGS[self.family], *self.native)

    def command_line(self, source: str, output: str, libm: bool) -> list[str]:
        """The words that compile a file."""
        return self.link_line([source], output, libm)

    def link_line(self, sources: list[str], output: str, libm: bool) -> list[str]:
        """The words that make a library of sources and objects."""
        library = ["-lm"] if libm else []
        return [*self.command, *self.flags(), "-o", output, *sources, *library]

    def part_line(self, part: int, output: str) -> list[str]:
        """The words that compile one part of a program to an object."""
        return [*self.command, *self.flags(), "-c", f"-DTC_PART={part}", "-o", output, SOURCE]


@dataclass(frozen=True)
class Unit:
    """One source to compile; `origins` names, for each kernel in it, the user's lines.

    The macro TC_PART selects one of the `parts`, counted from 1, of a source that is compiled by
    several processes; without it the source is whole. With `line_numbers` each instruction knows
    its line, which changes no instruction. With `lines` that is the user's line, of which the
    source has directives, and functions keep frames, by which debuggers and profilers follow.
    `extra` are further flags.
    """

    source: str
    libm: bool = False
    origins: Origins = field(default_factory=dict)
    parts: int = 1
    line_numbers: bool = False
    lines: bool = False
    extra: tuple[str, ...] = ()

    def flags(self) -> tuple[str, ...]:
        """The flags of this unit alone."""
        if self.lines:
            return (*self.extra, "-g", "-fno-omit-frame-pointer")
        return (*self.extra, "-g1") if self.line_numbers else self.extra


class _Broken(Exception):
    """A candidate does not work; the text says why in a few words."""


# Finding a compiler -------------------------------------------------------------------------


def find_compiler() -> Compiler:
    """Return $CC, cc, gcc, clang or zig's C compiler, the first that works.

    Raises CompilerNotFound, which says what was tried and which command helps.
    """
    environment = (os.environ.get("CC", ""), os.environ.get("PATH", ""))
    found = _find_compiler(environment, machine_flags(), disk_cache())
    if isinstance(found, str):
        raise CompilerNotFound(found)
    return found


def machine_flags() -> MachineFlags:
    """Return the choices of flags that say what code is made for, the first that works."""
    return NATIVE_FLAGS if config.current().isa == NATIVE else (isa_in_force().flags,)


@functools.lru_cache(maxsize=16)
def _find_compiler(
    environment: tuple[str, str], machine: MachineFlags, cache: DiskCache
) -> Compiler | str:
    tried: list[str] = []
    for label, command in candidates(environment[0]):
        try:
            compiler = _known_or_probed(command, machine, cache)
        except _Broken as reason:
            tried.append(f"{label}: {reason}")
            continue
        if tried and environment[0]:
            using = shlex.join(compiler.command)
            warn_once("CC", f"the compiler in {tried[0]}; using {using}")
        return compiler
    return "\n".join(
        [
            "no working C compiler; tried",
            *(f"  {line}" for line in tried),
            f"install one: {shlex.quote(sys.executable)} -m pip install ziglang",
            "or compute with numpy: TINYC_DEVICE=numpy",
        ]
    )


def candidates(cc: str) -> list[tuple[str, tuple[str, ...] | None]]:
    """Return (label, command) of what may be a compiler; no command where a module is missing."""
    chosen = [(f"$CC={cc}", tuple(shlex.split(cc)))] if cc.strip() else []
    usual = [(name, (name,)) for name in ("cc", "gcc", "clang")]
    return [*chosen, *usual, ("ziglang", zig_command())]


def zig_command() -> tuple[str, ...] | None:
    """Return the C compiler of the installed ziglang package."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        return None
    binary = Path(spec.submodule_search_locations[0]) / "zig"
    return (str(binary), "cc")


def _known_or_probed(
    command: tuple[str, ...] | None, machine: MachineFlags, cache: DiskCache
) -> Compiler:
    """Return the compiler of a command; only an unknown binary is run to see what it can do."""
    if command is None:
        raise _Broken("not installed")
    path = shutil.which(command[0])
    if path is None:
        there = shutil.which(command[0], os.F_OK)
        raise _Broken("not executable" if there else "not found")
    info = os.stat(path)
    stamp = f"{os.path.realpath(path)} {info.st_mtime_ns} {info.st_size} {info.st_ino}"
    command = (path, *command[1:])
    key = make_key("compiler", shlex.join(command), stamp, cpu_features(), repr(machine), *FLAGS)
    entry = cache.get(key)
    if entry is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return _compiler_from(json.loads((entry / "compiler.json").read_bytes()))
    compiler = _probe(command, machine, cache)
    with contextlib.suppress(OSError):
        cache.put(key, {"compiler.json": json.dumps(vars(compiler)).encode()})
    return compiler


def _compiler_from(data: dict) -> Compiler:
    command, native = tuple(data["command"]), tuple(data["native"])
    return Compiler(command, str(data["family"]), str(data["version"]), native)


def _probe(command: tuple[str, ...], machine: MachineFlags, cache: DiskCache) -> Compiler:
    """Ask a compiler for its version, then let it compile and run a function."""
    status, output = _run([*command, "--version"], None, PROBE_SECONDS)
    version = " ".join(output.split())
    if status:
        raise _Broken(_first_words(output) or f"exit status {status}")
    family = _family(command, version)
    reason = ""
    with cache.workspace() as work:
        (work / SOURCE).write_text(PROBE)
        for native in machine:
            compiler = Compiler(command, family, version, native)
            reason = _probe_flags(compiler, work)
            if not reason:
                return compiler
    raise _Broken(reason)


def _probe_flags(compiler: Compiler, work: Path) -> str:
    """Return why a compiler does not work with its flags, or nothing."""
    library = work / f"probe{len(compiler.native)}{compiler.native[-1:]}.so"
    line = compiler.command_line(str(work / SOURCE), str(library), libm=False)
    status, output = _run(line, work, PROBE_SECONDS)
    if status:
        return _first_words(output) or f"exit status {status}"
    try:
        probe = ctypes.CDLL(str(library)).tinyc_probe
    except (OSError, AttributeError) as error:
        return f"made no usable library: {_first_words(str(error))}"
    return "" if probe() == 42 else "made a library that computes wrongly"


def _family(command: tuple[str, ...], version: str) -> str:
    if os.path.basename(command[0]).startswith("zig"):
        return "zig"
    return "clang" if "clang" in version.lower() else "gcc"


def _first_words(text: str) -> str:
    """Return the first line that says anything, cut to fit on one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[0][:120]


# Compiling ----------------------------------------------------------------------------------


def compile_library(source: str, *, libm: bool = False, origins: Origins | None = None) -> Path:
    """Return the path of a shared library made from C source, from the cache where it is there.

    `libm`: the source calls functions of libm. Raises CompileError, CompilerNotFound.
    """
    return compile_libraries([Unit(source, libm, origins or {})])[0]


def compile_libraries(units: Sequence[Unit]) -> list[Path]:
    """Compile several sources at once, each by its own processes; see `compile_library`."""
    compiler, cache = find_compiler(), disk_cache()
    keys = [library_key(unit, compiler) for unit in units]
    entries = [cache.get(key) for key in keys]
    missing = [i for i, entry in enumerate(entries) if entry is None]
    if missing:
        made = _compile([(keys[i], units[i]) for i in missing], compiler, cache)
        for i, entry in zip(missing, made):
            entries[i] = entry
    return [entry / LIBRARY for entry in entries if entry is not None]


def compile_meanwhile(unit: Unit) -> threading.Thread | None:
    """Begin to compile a source that is not in the cache; return the thread that waits for it.

    What goes wrong is not said: whoever loads the library compiles it again, and is told.
    """
    compiler, cache = find_compiler(), disk_cache()
    key = library_key(unit, compiler)
    if cache.get(key) is not None:
        return None

    def work() -> None:
        with contextlib.suppress(CompileError, OSError):
            _compile([(key, unit)], compiler, cache)

    thread = threading.Thread(target=work, name="tinyc compiler")
    thread.start()
    return thread


def load_library(unit: Unit) -> tuple[ctypes.CDLL, Path]:
    """Compile and load a source; an entry that vanishes between the two is made again."""
    for attempt in range(4):
        (path,) = compile_libraries([unit])
        try:
            return ctypes.CDLL(str(path)), path
        except OSError as error:
            problem = error
            if attempt and path.exists():
                break
    hint = "TINYC_CACHE_DIR may name a folder where programs may be run"
    raise CompileError(f"a compiled program can't be loaded: {problem}; {hint}")


def without_comments(source: str) -> str:
    """Return a generated source without its comments, which name the user's lines."""
    return _COMMENT.sub("", source)


def library_key(unit: Unit, compiler: Compiler) -> str:
    """Return the key of a unit: everything that its library depends on.

    Comments are left out: they name lines of the user, which move without any other change. Where
    the library knows those lines, they are part of it.
    """
    flags = (*compiler.flags(), *unit.flags(), *(["-lm"] if unit.libm else []))
    command = shlex.join(compiler.command)
    source = unit.source if unit.lines else without_comments(unit.source)
    return make_key("library", source, *flags, command, compiler.version, cpu_features())


def _compile(units: list[tuple[str, Unit]], compiler: Compiler, cache: DiskCache) -> list[Path]:
    try:
        return _compile_in(units, compiler, cache)
    except OSError as error:
        cache.fall_back(error)
        return _compile_in(units, compiler, cache)


def _compile_in(units: list[tuple[str, Unit]], compiler: Compiler, cache: DiskCache) -> list[Path]:
    """Compile units side by side and publish their libraries; OSError where the disk refuses."""
    entries = []
    with contextlib.ExitStack() as stack:
        works, jobs = [], []
        for key, unit in units:
            work = stack.enter_context(cache.workspace())
            (work / SOURCE).write_text(unit.source)
            works.append(work)
            home = (work, cache.root / key)
            jobs += [(line, work) for line in _first_lines(unit, compiler, home)]
        results = stack.enter_context(contextlib.closing(_side_by_side(jobs)))
        for (key, unit), work in zip(units, works):
            cache.stats.compiles += 1
            for line in _first_lines(unit, compiler, (work, cache.root / key)):
                _check(unit, line, work, next(results), cache, key)
            if unit.parts > 1:
                line = compiler.link_line(_objects(unit), LIBRARY, unit.libm)
                _check(unit, line, work, _run(line, work, COMPILE_SECONDS), cache, key)
            entries.append(cache.publish(key, work, [LIBRARY, SOURCE]))
    return entries


def _first_lines(unit: Unit, compiler: Compiler, home: tuple[Path, Path]) -> list[list[str]]:
    """Return the command lines that may run side by side: one for each part.

    `home` is where the source is and where it is going to be, which is what debuggers are told.
    """
    if unit.parts == 1:
        lines = [compiler.command_line(SOURCE, LIBRARY, unit.libm)]
    else:
        lines = [compiler.part_line(i, name) for i, name in enumerate(_objects(unit), 1)]
    moved = [f"-fdebug-prefix-map={home[0]}={home[1]}"] if unit.lines else []
    return [[*line, *unit.flags(), *moved] for line in lines]


def _objects(unit: Unit) -> list[str]:
    return [f"part{i}.o" for i in range(1, unit.parts + 1)]


def _side_by_side(
    jobs: list[tuple[list[str], Path]],
) -> Generator[tuple[int, str], None, None]:
    """Run command lines, one on each CPU; give exit status and output in their order."""
    running: deque[_Process] = deque()
    with contextlib.ExitStack() as stack:
        for line, work in jobs:
            if len(running) == (os.cpu_count() or 1):
                yield running.popleft().wait(COMPILE_SECONDS)
            running.append(stack.enter_context(_Process(line, work)))
        while running:
            yield running.popleft().wait(COMPILE_SECONDS)


def _check(
    unit: Unit, line: list[str], work: Path, result: tuple[int, str], cache: DiskCache, key: str
) -> None:
    """Raise CompileError for a command that failed, OSError if there was no room for its output."""
    status, output = result
    if status or not (work / line[line.index("-o") + 1]).is_file():
        if shutil.disk_usage(work).free < 1 << 20:
            raise OSError(f"no space is left in {cache.root}")
        raise CompileError(_explain(unit, line, status, output, cache, key))


def _explain(
    unit: Unit, line: list[str], status: int, output: str, cache: DiskCache, key: str
) -> str:
    """Say what the compiler refused, where in the user's program it comes from, how to repeat."""
    errors = [text for text in output.splitlines() if "error" in text] or output.splitlines()
    first = errors[0].strip()[:300] if errors else f"exit status {status}"
    kept = cache.root / "failed" / f"{key[:16]}.c"
    with contextlib.suppress(OSError):
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        kept.write_text(unit.source)
    kernel = None if unit.lines else _kernel_at(unit, first)  # it names the user's line itself
    named = {kernel: unit.origins[kernel]} if kernel else unit.origins
    places = [
        f"  {name}: " + ", ".join(format_origin(origin) for origin in list(lines)[:6])
        for name, lines in list(named.items())[:5]
    ]
    command = [str(kept) if word == SOURCE else word for word in line]
    command[command.index("-o") + 1] = os.devnull
    return "\n".join(
        [
            "the C compiler refused a generated program",
            f"  {first}",
            *(["made from", *places] if places else []),
            f"source:  {kept}",
            f"command: {shlex.join(command)}",
        ]
    )


def _kernel_at(unit: Unit, error: str) -> str | None:
    """Return the kernel whose text holds the line that an error message names."""
    parts = error.split(":")
    if len(parts) < 3 or not parts[1].isdigit():
        return None
    for text in reversed(unit.source.splitlines()[: int(parts[1])]):
        for name in unit.origins:
            if name in text:
                return name
    return None


class _Process:
    """A running compiler in a process group of its own, killed if its block is left early."""

    def __init__(self, line: list[str], work: Path | None) -> None:
        self._line = line
        environment = {**os.environ, "LC_ALL": "C"}
        if work is not None:
            environment["TMPDIR"] = str(work)
        with _interrupts_held():
            self._process = subprocess.Popen(
                line,
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def wait(self, seconds: float) -> tuple[int, str]:
        """Return exit status and output; a process that hangs is ended and says so."""
        try:
            output, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return -1, f"no answer within {seconds:g} seconds"
        return self._process.returncode, output.decode(errors="replace")


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Put Ctrl-C off, so that a process that was started is known before the block is left."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(line: list[str], work: Path | None, seconds: float) -> tuple[int, str]:
    try:
        with _Process(line, work) as process:
            return process.wait(seconds)
    except OSError as error:
        return -1, str(error.strerror)
