"""From C source to a loaded library: finds the compiler, runs it, keeps what it made.

Never fast-math: `-ffinite-math-only` makes `isnan(nan)` false, and a library linked with it turns
denormals off in whoever loads it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinyc import config
from tinyc.diagnostics import CompileError, CompilerNotFound, Origin, format_origin, warn_once
from tinyc.runtime.cache import DiskCache, disk_cache, make_key
from tinyc.runtime.isa import NATIVE, cpu_features, isa_in_force
from tinyc.runtime.processes import Process, first_to_end, run

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
    status, output = run([*command, "--version"], None, PROBE_SECONDS)
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
    status, output = run(line, work, PROBE_SECONDS)
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
    keyed = {library_key(unit, compiler): unit for unit in units}
    entries = {key: cache.get(key) for key in keyed}
    missing = {key: unit for key, unit in keyed.items() if entries[key] is None}
    if missing:
        entries.update(_compile(missing, compiler, cache))
    found = [entries[library_key(unit, compiler)] for unit in units]
    return [entry / LIBRARY for entry in found if entry is not None]


def compile_meanwhile(units: Sequence[Unit]) -> None:
    """Begin to compile sources that are not in the cache, for `compile_libraries` to finish."""
    compiler, cache = find_compiler(), disk_cache()
    for unit in units:
        key = library_key(unit, compiler)
        if not _is_begun(key, cache) and cache.get(key) is None:
            if key in _begun:
                _begun.pop(key).stack.close()
            with contextlib.suppress(OSError):  # who needs it tries again, and is told
                _begun[key] = _Batch({key: unit}, compiler, cache)


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


def _compile(units: Mapping[str, Unit], compiler: Compiler, cache: DiskCache) -> dict[str, Path]:
    """Compile units by key; those that were begun are only waited for."""
    begun = [b for key in units if _is_begun(key, cache) and (b := _begun.pop(key, None))]
    known = {key for batch in begun for key in batch.units}
    alone = {key: unit for key, unit in units.items() if key not in known}
    try:
        batch = _Batch(alone, compiler, cache)
        entries = batch.finish(alone)
        for batch in begun:
            entries |= batch.finish(units)
    except OSError as error:
        cache.fall_back(error)
        entries = _Batch(units, compiler, cache).finish(units)
    return entries


class _Batch:
    """Units that are compiled side by side: as many processes as there are CPUs are at work from
    the start, the others when somebody waits for the libraries."""

    def __init__(self, units: Mapping[str, Unit], compiler: Compiler, cache: DiskCache) -> None:
        self.units, self.compiler, self.cache = units, compiler, cache
        self.works: dict[str, Path] = {}
        self.jobs: list[tuple[str, list[str]]] = []
        self.running: dict[int, Process] = {}
        self.results: dict[int, tuple[int, str]] = {}
        with contextlib.ExitStack() as stack:
            for key, unit in units.items():
                work = self.works[key] = stack.enter_context(cache.workspace())
                (work / SOURCE).write_text(unit.source)
                lines = _first_lines(unit, compiler, (work, cache.root / key))
                self.jobs += [(key, line) for line in lines]
            self.waiting = deque(range(len(self.jobs)))
            self.stack = stack
            self._start()
            self.stack = stack.pop_all()

    def _start(self) -> None:
        """Start processes while there are CPUs for them."""
        while self.waiting and len(self.running) < (os.cpu_count() or 1):
            number = self.waiting.popleft()
            key, line = self.jobs[number]
            self.running[number] = self.stack.enter_context(Process(line, self.works[key]))

    def _result(self, number: int) -> tuple[int, str]:
        """Return exit status and output of a job."""
        while number not in self.results:
            self._start()
            ended = first_to_end(self.running, COMPILE_SECONDS)
            self.results[ended] = self.running.pop(ended).wait(COMPILE_SECONDS)
        self._start()
        return self.results[number]

    def finish(self, units: Mapping[str, Unit]) -> dict[str, Path]:
        """Publish the libraries; OSError where the disk refuses. `units`, by key, know what may
        be said of errors."""
        entries = {}
        with self.stack:
            for key, own in self.units.items():
                unit, work = units.get(key, own), self.works[key]
                self.cache.stats.compiles += 1
                for number, (owner, line) in enumerate(self.jobs):
                    if owner == key:
                        _check(unit, line, work, self._result(number), self.cache, key)
                if unit.parts > 1:
                    line = self.compiler.link_line(_objects(unit), LIBRARY, unit.libm)
                    result = run(line, work, COMPILE_SECONDS)
                    _check(unit, line, work, result, self.cache, key)
                entries[key] = self.cache.publish(key, work, [LIBRARY, SOURCE])
        return entries


# What `compile_meanwhile` has begun and nobody has waited for yet.
_begun: dict[str, _Batch] = {}


def _is_begun(key: str, cache: DiskCache) -> bool:
    """Tell whether what belongs to a key is being compiled into a cache."""
    batch = _begun.get(key)
    return batch is not None and batch.cache is cache


def _abandon() -> None:
    """End what nobody waits for any more."""
    while _begun:
        _begun.popitem()[1].stack.close()


atexit.register(_abandon)
os.register_at_fork(after_in_child=_begun.clear)  # what is being compiled is the parent's


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
