"""From a graph to something that runs: programs by their graphs, in memory and on disk; execution.

The passes that make a program are in `tinyc.pipeline`, which a process that finds its programs in
the cache never loads.
"""
from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyc import config
from tinyc.diagnostics import Origin, Remark, VerifyError, collected, warn_once
from tinyc.ir import dtype as dtypes
from tinyc.ir.node import Node, canonical_key, node, toposort, with_sources
from tinyc.ir.ops import Op
from tinyc.runtime import recorder
from tinyc.runtime.buffer import Buffer
from tinyc.runtime.device import copy_of, default_device, get_device

# What only a compilation, the evaluator or a check needs is imported there.
if TYPE_CHECKING:
    from pathlib import Path

    from tinyc.ir.program import Program
    from tinyc.pipeline import Compilation

# -- running -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One observed run: what ran, and copies of the buffers as they were before it."""

    executable: Executable
    buffers: tuple[Buffer, ...]


_observer: Callable[[Executable, Sequence[Buffer]], None] | None = None


@contextmanager
def observing(observer: Callable[[Executable, Sequence[Buffer]], None]) -> Iterator[None]:
    """Call a function before each run of the block, in all threads, with what the run is given."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


@contextmanager
def observe() -> Iterator[list[Run]]:
    """Collect every run of the block, in all threads, with copies of what it was given."""
    runs: list[Run] = []
    with observing(lambda executable, buffers: runs.append(Run(executable, copies(buffers)))):
        yield runs


def copies(buffers: Sequence[Buffer]) -> tuple[Buffer, ...]:
    """Copies of buffers, of the same categories and lines."""
    made = [copy_of(b) for b in buffers]
    for copy, buffer in zip(made, buffers):
        copy.categorize(buffer.category)
        copy.origin = buffer.origin
    return tuple(made)


def observed() -> bool:
    """Tell whether somebody observes runs."""
    return _observer is not None


def note_run(executable: Executable, buffers: Sequence[Buffer]) -> None:
    """Hand a run that is about to happen to the observer, if there is one."""
    if _observer is not None:
        _observer(executable, buffers)


class NumpyExecutable:
    """Runs a graph through the numpy evaluator; leaves are bound by position."""

    program: Program | None = None

    def __init__(self, outputs: tuple[Node, ...], leaves: tuple[Node, ...]):
        self.outputs = outputs
        self.leaves = leaves
        self.uids = tuple(leaf.attrs[0] for leaf in leaves)

    def run(self, buffers: Sequence[Buffer], times: Any = None) -> list[Buffer | None]:
        """Compute every output; an ASSIGN stores in place and gives None."""
        from tinyc.ir.evaluate import evaluate

        note_run(self, buffers)
        memory = {uid: b.array for uid, b in zip(self.uids, buffers)}
        values = evaluate(self.outputs, memory)
        by_uid = dict(zip(self.uids, buffers))
        results: list[Buffer | None] = []
        for out, value in zip(self.outputs, values):
            if out.op is Op.ASSIGN:
                by_uid[assigned_uid(out)].array[...] = value
                results.append(None)
            else:
                results.append(Buffer.from_numpy(np.asarray(value), "numpy", copy=True))
        return results


class NativeExecutable:
    """Runs a compiled program; buffers are the leaves in order, then fresh ones for outputs.

    `native` is what the device made of the program. `on_pointers`: it may be called on addresses.
    What the first run is given is kept in the folder `dumped`, if there is one.
    """

    dumped: Path | None = None

    def __init__(self, program: Program, native: Any, device: str,
                 outputs: tuple[Node, ...], leaves: tuple[Node, ...]):
        self.program = program
        self.outputs = outputs
        self.leaves = leaves
        self.native = native
        self.device = device
        self.alloc = get_device(device).alloc
        self.on_pointers = device == "cpu"
        self.fresh = tuple(None if o is None else (dtypes.DTYPES[o.dtype], o.shape)
                           for o in program.outputs)
        gradients = {s.name for s in program.storages if s.category == "gradient"}
        self.gradients = [i for i in range(len(self.fresh)) if f"out{i}" in gradients]

    def run(self, buffers: Sequence[Buffer], times: Any = None) -> list[Buffer | None]:
        """Compute every output; in-place updates store into the leaves and give None."""
        note_run(self, buffers)
        if self.dumped is not None:
            self.dump_inputs(buffers)
        outputs = [None if o is None else self.alloc(*o) for o in self.fresh]
        for i in self.gradients:
            outputs[i].categorize("gradient")  # type: ignore[union-attr]
        slots = [*buffers, *[b for b in outputs if b is not None]]
        settings = config.current()
        if settings.check:
            return self.checked(buffers, slots, outputs)
        if times is None and settings.debug.level >= 2:
            from tinyc.runtime import profile

            profile.run_shown(self.program, lambda times: self.native.run(slots, times))
        else:
            self.native.run(slots, times)
        return outputs

    def dump_inputs(self, buffers: Sequence[Buffer]) -> None:
        """Keep what the first run is given."""
        from tinyc import dumps

        assert self.dumped is not None
        dumps.write_inputs(self.dumped, [buffer.array for buffer in buffers])
        self.dumped = None

    def checked(self, buffers: Sequence[Buffer], slots: Sequence[Buffer],
                outputs: list[Buffer | None]) -> list[Buffer | None]:
        """Run, and compare what was computed with the evaluator: VerifyError where it differs."""
        from tinyc import checking

        memory = {leaf.attrs[0]: b.array for leaf, b in zip(self.leaves, buffers)}
        wanted = checking.expected(self.outputs, memory)
        self.native.run(slots)
        found = [memory[assigned_uid(node)] if buffer is None else buffer.array
                 for node, buffer in zip(self.outputs, outputs)]
        try:
            checking.compare(self.outputs, wanted, found)
        except VerifyError as error:
            raise VerifyError(f"{error}\n{self.crash(error)}") from None
        return outputs

    def crash(self, error: VerifyError) -> str:
        """Keep the graph of a program that computed something wrong, and say where."""
        from tinyc import dumps
        from tinyc.ir.printer import to_text

        graph, origin = to_text(self.outputs), self.outputs[0].origin
        target = get_device(self.device).machine()
        return dumps.write_crash(origin, "check", ["all"], graph, target, error)


Executable = NumpyExecutable | NativeExecutable


def assigned_uid(assign: Node) -> int:
    """The uid of the buffer that a chain of ASSIGN nodes stores to."""
    target = assign
    while target.op is Op.ASSIGN:
        target = target.src[0]
    return target.attrs[0]


_programs: dict[Any, Executable] = {}
# Versions from here on belong to no tensor's memory.
NOBODYS = -(1 << 20)
# What happened in this process: executables made; how often the passes ran for one, and how often
# its program was on disk.
compilations = 0
passes_run = 0
programs_loaded = 0


def compile_graph(outputs: Sequence[Node]) -> Executable:
    """The executable of a graph; graphs of equal structure share one."""
    key, leaves = canonical_key(outputs)
    return executable_for(key, outputs, leaves)


def executable_for(key: Any, outputs: Sequence[Node], leaves: Sequence[Node]) -> Executable:
    """The executable with this canonical key, made if it is not known yet."""
    settings = config.current()
    device = device_of(outputs)
    lines = places(outputs) if device == "interpret" or settings.lines else ()
    full = (key, device, settings.fuse, settings.bounds, settings.tune, settings.deterministic,
            settings.float32_matmul_precision, lines)
    found = _programs.get(full)
    if found is None:
        found = _programs[full] = make_executable(
            *anonymous(outputs, leaves, len(_programs) if lines else 0), device)
    return found


def places(outputs: Sequence[Node]) -> tuple[Origin, ...]:
    """The user's lines, of which programs know that show them while they run; others are shared."""
    return tuple([n.origin for n in toposort(outputs)])


def anonymous(
    outputs: Sequence[Node], leaves: Sequence[Node], serial: int = 0
) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The graph on buffers that are nobody's, so that a program keeps no memory alive.

    Graphs of different serials have nodes, so lines, of their own.
    """
    base = NOBODYS * (serial + 1)
    numbers: dict[int, tuple[int, int]] = {}
    new: dict[Node, Node] = {}
    for leaf in leaves:
        uid, version = leaf.attrs[:2]
        number, first = numbers.setdefault(uid, (len(numbers), version))
        new[leaf] = node(Op.BUFFER, (), (number, version - first + base, *leaf.attrs[2:]))
    for n in toposort(outputs):
        if n not in new:
            new[n] = with_sources(n, tuple([new[s] for s in n.src]))
    return tuple(new[n] for n in outputs), tuple(new[leaf] for leaf in leaves)


def device_of(outputs: Sequence[Node]) -> str:
    """Where a graph is computed."""
    for out in outputs:
        if out.device is not None:
            return out.device
    return default_device()


def make_executable(outputs: tuple[Node, ...], leaves: tuple[Node, ...],
                    device: str) -> Executable:
    """Compile a graph for a device, or load what an earlier process compiled."""
    global compilations
    compilations += 1
    if device == "numpy":
        return NumpyExecutable(outputs, leaves)
    with recorder.span("compile", "compile", nodes=len(toposort(outputs))):
        if device == "interpret":
            return make_interpreted(outputs, leaves)
        return make_native(outputs, leaves, device)


def make_native(outputs: tuple[Node, ...], leaves: tuple[Node, ...],
                device: str) -> NativeExecutable:
    """Make or load a program, then its library."""
    if config.current().break_at:
        warn_once("break_at", f"nothing stops on device {device}: TINYC_BREAK_AT stops in kernels "
                              "that Python runs, with TINYC_DEVICE=interpret")
    native = get_device(device)
    start, loaded = time.perf_counter(), programs_loaded
    with recorder.span("program", "compile"), collector_paused():
        program, done = find_program(outputs, leaves, device)
    middle = time.perf_counter()
    with recorder.span("C compiler", "compile", kernels=len(program.kernels)):
        ready = native.load(program)
    verb = "compiled" if programs_loaded == loaded else "loaded"
    took = done.groups() if done else {"finding it": middle - start}
    took["compiler"] = time.perf_counter() - middle
    report(verb, outputs, program, ready.library, took)
    executable = NativeExecutable(program, ready, device, outputs, leaves)
    executable.dumped = done.dumped if done and config.current().dump_inputs else None
    return executable


@contextmanager
def collector_paused() -> Iterator[None]:
    """Let no garbage be looked for: passes make many objects, and the last collections of a
    compilation look at all of them, for a tenth of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def make_interpreted(outputs: tuple[Node, ...], leaves: tuple[Node, ...]) -> NativeExecutable:
    """A graph's kernels as on the cpu device, for Python; a stored program has no loops to run."""
    from tinyc import pipeline
    from tinyc.interpreted import Interpreted

    global passes_run
    passes_run += 1
    program, done = pipeline.build_program(outputs, leaves, get_device("interpret").machine())
    assert done.plan is not None
    report("compiled", outputs, program, None, done.groups())
    return NativeExecutable(program, Interpreted(program, done.plan), "interpret", outputs, leaves)


def find_program(outputs: tuple[Node, ...], leaves: tuple[Node, ...],
                 device: str) -> tuple[Program, Compilation | None]:
    """The program of a graph: from the disk if it is there, else by the passes.

    With it goes what is known of the passes that ran, if they did.
    """
    from tinyc import program_cache

    global programs_loaded, passes_run
    target = get_device(device).machine()
    key = program_cache.program_key(outputs, target, device)
    program = program_cache.load(key, outputs, leaves) if key else None
    if program is not None:
        programs_loaded += 1
        for remark in program.remarks:
            collected(Remark.from_dict(remark))
        return program, None
    from tinyc import pipeline

    passes_run += 1
    native = get_device(device)
    native.prepare()
    program, done = pipeline.build_program(outputs, leaves, target, prepare=native.prepare)
    if key:
        program_cache.store(key, program, outputs)
    return program, done


def report(verb: str, outputs: tuple[Node, ...], program: Program, library: Path | None,
           seconds: Mapping[str, float]) -> None:
    """Print what DEBUG asks for of a program that was made or found."""
    if config.current().debug.level >= 1:
        from tinyc import debugging

        debugging.show_program(verb, outputs, program, library, seconds)


def execute(outputs: Sequence[Node], memory: Mapping[int, Buffer]) -> list[Buffer | None]:
    """Compute `outputs`; leaves are looked up in `memory` by the uid of their buffer."""
    key, leaves = canonical_key(outputs)
    exe = executable_for(key, outputs, leaves)
    return exe.run([memory[leaf.attrs[0]] for leaf in leaves])
