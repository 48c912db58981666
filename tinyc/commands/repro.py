"""`tinyc repro`: one kernel of a program as a C program of its own, with what it was given.

The kernel is found in a dump, or in the first program of a script that has it; the kernels before
it are run once, so that its inputs are what they are in the program.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tinyc import checking, compiler, config, dumps, pipeline
from tinyc.codegen import c
from tinyc.commands.standalone import Array, Standalone, write
from tinyc.compiler import NativeExecutable
from tinyc.diagnostics import TinycError, format_origin
from tinyc.ir.dtype import DTYPES, stored
from tinyc.ir.evaluate import evaluate
from tinyc.ir.loop import LoopKernel, Storage
from tinyc.ir.node import Node, canonical_key
from tinyc.ir.parser import parse_text
from tinyc.ir.plan import Plan, Stage
from tinyc.ir.program import KernelInfo, Program, Target
from tinyc.ir.program_text import places
from tinyc.runtime.buffer import Buffer
from tinyc.runtime.cpu import CpuDevice
from tinyc.runtime.device import get_device
from tinyc.runtime.toolchain import find_compiler
from tinyc.schedule.memory import keep_apart, kernel_accesses


@dataclass
class Case:
    """A graph, how it was compiled, what it is given, and a word on where that comes from."""

    outputs: tuple[Node, ...]
    target: Target
    arrays: list[np.ndarray]
    origin: str
    inputs: str


class _Found(BaseException):
    """Ends a script whose program has been found."""


def run(options: argparse.Namespace) -> int:
    """Write the files; 1, with a message, where that is not possible."""
    try:
        pattern = re.compile(options.kernel)
        if options.dump:
            case = from_dump(Path(options.dump), pattern)
        elif options.script:
            case = from_script(options.script, options.arguments, pattern)
        else:
            raise ValueError("name a script to run, or a dump with --from FOLDER")
        print(reproduce(case, pattern, options.output))
    except (TinycError, OSError, ValueError, re.error) as error:
        print(f"tinyc repro: {error}", file=sys.stderr)
        return 1
    return 0


def matching(pattern: re.Pattern[str], labels: Sequence[str]) -> list[int]:
    """Return the numbers of the kernels of that name, or else whose name and lines it finds."""
    exact = [i for i, label in enumerate(labels) if label.split(" ")[0] == pattern.pattern]
    return exact or [i for i, label in enumerate(labels) if pattern.search(label)]


def the_one(pattern: re.Pattern[str], labels: Sequence[str]) -> int:
    """Return the number of the kernel that is meant; ValueError names them if it is not one."""
    found = matching(pattern, labels)
    if len(found) == 1:
        return found[0]
    some = [labels[i] for i in found] or labels
    what = "several kernels match" if found else "no kernel matches"
    names = "".join(f"\n  {label}" for label in some) or " none"
    raise ValueError(f"{what} {pattern.pattern!r}; there are{names}")


# Where the program comes from --------------------------------------------------------------------


def from_script(script: str, arguments: Sequence[str], pattern: re.Pattern[str]) -> Case:
    """Run a script until it is about to run a program with a matching kernel."""
    found: list[tuple[NativeExecutable, list[np.ndarray]]] = []
    seen: dict[str, None] = {}

    def look(executable: compiler.Executable, buffers: Sequence[Buffer]) -> None:
        if isinstance(executable, NativeExecutable):
            labels = dumps.labels(executable.program.kernels)
            seen.update(dict.fromkeys(labels))
            if matching(pattern, labels):
                found.append((executable, [np.array(b.array) for b in buffers]))
                raise _Found

    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        with compiler.observing(look):
            runpy.run_path(script, run_name="__main__")
    except _Found:
        executable, arrays = found[0]
        place = format_origin(executable.outputs[0].origin)
        given = f"recorded when {script} ran it first"
        target = get_device("cpu").machine()
        return Case(executable.outputs, target, arrays, place, given)
    the_one(pattern, list(seen))
    raise AssertionError("a kernel that was seen was not found")


def from_dump(folder: Path, pattern: re.Pattern[str]) -> Case:
    """Return the program of a dump, or of the first below a folder, that has such a kernel."""
    homes = [path.parent for path in sorted(folder.glob(f"**/{dumps.META}"))]
    if not homes:
        raise ValueError(f"{folder}: no dump there; TINYC_DUMP={folder} makes one")
    metas = [json.loads((home / dumps.META).read_text(encoding="utf-8")) for home in homes]
    for home, meta in zip(homes, metas):
        if not matching(pattern, meta["kernels"]):
            continue
        path = home / dumps.GRAPH
        outputs = parse_text(path.read_text(encoding="utf-8"), str(path))
        config.configure(**meta["switches"])
        leaves = canonical_key(outputs)[1]
        kept, target = dumps.read_inputs(home, leaves), dumps.target_from(meta["target"])
        given = f"{home / dumps.INPUTS}"
        if kept is None:
            given = "made up: the dump has none (TINYC_DUMP_INPUTS=1 keeps them)"
            return Case(outputs, target, made_up(leaves), meta["program"], given)
        return Case(outputs, target, kept, meta["program"], given)
    the_one(pattern, [label for meta in metas for label in meta["kernels"]])
    raise AssertionError("a kernel that is there was not found")


def made_up(leaves: Sequence[Node]) -> list[np.ndarray]:
    """Return values for arguments: normal floats, and zeros, which are right for any index."""
    rng = np.random.default_rng(0)
    return [
        stored(rng.standard_normal(leaf.shape), leaf.dtype)
        if leaf.dtype.is_float
        else np.zeros(leaf.shape, leaf.dtype.np)
        for leaf in leaves
    ]


# Recording ---------------------------------------------------------------------------------------


class Memory:
    """The arguments and the arena of a program: what its kernels read and write."""

    def __init__(self, case: Case, plan: Plan, program: Program) -> None:
        fresh = [o for o in program.outputs if o is not None]
        arrays = [*case.arrays, *(np.zeros(o.shape, DTYPES[o.dtype].np) for o in fresh)]
        self.plan, self.program = plan, program
        self.buffers = [Buffer.from_numpy(a, "cpu", copy=True) for a in arrays]
        self.slots = dict(zip(plan.slots, self.buffers))
        device = get_device("cpu")
        assert isinstance(device, CpuDevice)
        self.device = device

    def run(self, kernels: Sequence[LoopKernel], infos: Sequence[KernelInfo]) -> None:
        """Run some kernels; the arena is as those before left it."""
        source = c.program(kernels, self.plan.slots)
        part = replace(
            self.program, source=source.text, libm=source.libm, parts=source.parts,
            scratch_size=source.scratch_size, kernels=tuple(infos),
        )  # fmt: skip
        self.device.load(part).run(self.buffers)

    def of(self, storage: Storage) -> np.ndarray:
        """Return the flat elements of a storage, in place."""
        if storage.role == "slot":
            return self.slots[storage].array.reshape(-1)
        address = (self.device.arena.value or 0) + storage.offset
        raw = (ctypes.c_uint8 * storage.nbytes).from_address(address)
        return np.ctypeslib.as_array(raw).view(storage.dtype.np)


def reproduce(case: Case, pattern: re.Pattern[str], output: str | None) -> str:
    """Record what a kernel is given and what it makes of it, write the files, and say so."""
    leaves = tuple(canonical_key(case.outputs)[1])
    program, done = pipeline.build_program(case.outputs, leaves, case.target, again=True)
    plan = done.plan
    assert plan is not None
    keep_apart(plan)
    program = replace(program, arena_size=plan.arena_size)
    number = the_one(pattern, dumps.labels(program.kernels))
    kernel, info = plan.kernels[number], program.kernels[number]
    memory = Memory(case, plan, program)
    memory.run(plan.kernels[:number], program.kernels[:number])
    reads, writes = (
        {s: None for s in table if s.role in ("slot", "arena")} for table in kernel_accesses(kernel)
    )
    for storage in writes.keys() - reads.keys():
        memory.of(storage)[...] = 0
    before = {s: memory.of(s).copy() for s in reads}
    memory.run([kernel], [info])
    after = {s: memory.of(s).copy() for s in writes}
    verdict = compared_with_numpy(case, leaves, plan, number, after)
    source = c.program([kernel], plan.slots)
    numbers = {s: i for i, s in enumerate(plan.slots)}
    alone = Standalone(
        info.name, heading(case, info, verdict), command(), source.text, info.chunks,
        source.scratch_size, plan.arena_size, len(plan.slots), info.flops, info.bytes_moved,
        [Array(s.name, s.dtype, s.size, numbers.get(s), s.offset, before.get(s), after.get(s),
               tolerance(case, s)) for s in dict.fromkeys([*reads, *writes])],
    )  # fmt: skip
    return write(alone, Path(output or f"{info.name}.c")) + f"\n{verdict}"


def heading(case: Case, info: KernelInfo, verdict: str) -> list[str]:
    """Return what the file says of itself."""
    return [f"{info.name} {places(info.origins, 99)}, of the program of {case.origin}",
            f"members: {', '.join(info.members)}",
            f"inputs: {case.inputs}", f"results: {verdict}"]  # fmt: skip


def command() -> str:
    """Return how tinyc would compile the file, without what only libraries need."""
    flags = [f for f in find_compiler().flags() if f not in ("-w", "-shared", "-fPIC")]
    return " ".join(["cc", *flags])


def tolerance(case: Case, storage: Storage) -> float:
    """Return by how much floats may differ, relative to the largest."""
    return checking.tolerance(case.outputs, storage.dtype)


def compared_with_numpy(case: Case, leaves: Sequence[Node], plan: Plan, number: int,
                        after: dict[Storage, np.ndarray]) -> str:
    """Compare what a kernel stored with the evaluator; where that differs, it is what is kept."""
    kept = [(stage, storage) for stage in plan.nests[number].stages()
            if (storage := plan.taken.get(stage.buf.storage, stage.buf.storage)) in after
            and stage.node.shape == stage.buf.shape]  # fmt: skip
    given = {leaf.attrs[0]: array for leaf, array in zip(leaves, case.arrays)}
    wanted = evaluate([stage.node for stage, _ in kept], given)
    wrong = []
    for (stage, storage), value in zip(kept, wanted):
        found = region(stage, after[storage])
        problem = checking.difference(value, found, tolerance(case, storage))
        if problem:
            wrong.append(f"{stage.name}: {problem}")
            found[...] = value
    if wrong:
        return "numpy's, which differ from what tinyc computed: " + "; ".join(wrong)
    return f"tinyc's own; numpy agrees on {len(kept)} of {len(after)} arrays"


def region(stage: Stage, flat: np.ndarray) -> np.ndarray:
    """Return the elements that a stage stores, in its shape, of its storage's elements."""
    strides = tuple(s * flat.itemsize for s in stage.buf.strides)
    return np.lib.stride_tricks.as_strided(flat[stage.buf.offset :], stage.buf.shape, strides)
