"""Running graphs on plain arrays: compiled, or interpreted at any point of the pass list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tinyc import compiler, config, pipeline
from tinyc.codegen.interpret import run_kernels
from tinyc.ir import build as b
from tinyc.ir import dtype as d
from tinyc.ir.node import Node, canonical_key
from tinyc.ir.ops import Op
from tinyc.ir.plan import Plan
from tinyc.ir.program import CPU, GPU, Program, Target
from tinyc.runtime.device import get_device
from tinyc.schedule.refusals import RULES

Memory = dict[int, np.ndarray]
# Splits even small loops into chunks.
SPLITTING = replace(CPU, serial_work=200)
# Small blocks of threads, so that small graphs have many of them.
BLOCKS = replace(SPLITTING, language="opencl", threads=8, warp=4, shared=4096, chunks=5)
# Other kinds of devices, for programs that are made and not run: OpenCL on a CPU, blocks of few
# threads, the emulated GPU, and a large one with matrix instructions.
ELSEWHERE = {
    "opencl": replace(CPU, l3=1 << 62, language="opencl"),
    "blocks": replace(GPU, threads=64, shared=16 << 10, chunks=24),
    "cuda": replace(GPU, language="cuda", shared=227 << 10, chunks=6),
    "sm_90": replace(GPU, language="cuda", shared=227 << 10, arch="sm_90", tf32=True),
}


def buffers(*arrays: np.ndarray) -> tuple[list[Node], Memory]:
    """A BUFFER node on the CPU for each array, and the arrays by uid."""
    memory = {uid: np.asarray(a) for uid, a in enumerate(arrays, 1)}
    nodes = [b.buffer(uid, 0, a.shape, d.from_numpy(a.dtype), "cpu") for uid, a in memory.items()]
    return nodes, memory


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def root_uid(out: Node) -> int:
    while out.op is Op.ASSIGN:
        out = out.src[0]
    return out.attrs[0]


class Compiled:
    """A graph compiled for a device of this machine, past all caches of programs.

    By default that is the device that the tests run on, or the CPU where it compiles nothing. With
    `split` even small loops are divided into chunks; `caches` are other sizes than a CPU's.
    """

    def __init__(
        self,
        outputs: Sequence[Node],
        fuse: bool = True,
        split: bool = False,
        device: str | None = None,
        **caches: int,
    ) -> None:
        self.outputs = tuple(outputs)
        self.leaves = canonical_key(outputs)[1]
        if device is None:
            chosen = config.current().device
            device = "cpu" if chosen in ("numpy", "interpret") else chosen
        self.device = get_device(device)
        target = replace(get_device(device).machine(), **caches)
        target = replace(target, serial_work=SPLITTING.serial_work) if split else target
        with config.configure(fuse=fuse):
            self.program, _ = pipeline.build_program(self.outputs, self.leaves, target)
        loaded = self.device.load(self.program)
        self.executable = compiler.NativeExecutable(
            self.program, loaded, device, self.outputs, self.leaves)

    def __call__(self, memory: Mapping[int, np.ndarray], threads: int = 1) -> list[np.ndarray]:
        """What it computes; for a state, the buffer as it is afterwards."""
        uids = [leaf.attrs[0] for leaf in self.leaves]
        held = {uid: self.device.upload(memory[uid]) for uid in uids}
        with config.configure(threads=threads):
            results = self.executable.run([held[uid] for uid in uids])
        return [np.array(held[root_uid(out)].array if r is None else r.array)
                for out, r in zip(self.outputs, results)]


def native(
    outputs: Sequence[Node], memory: Mapping[int, np.ndarray], fuse: bool = True
) -> list[np.ndarray]:
    """What the compiled graph computes."""
    return Compiled(outputs, fuse)(memory)


def program_of(outputs: Sequence[Node], fuse: bool = True) -> Program:
    """The program of a graph, without compiling its source."""
    with config.configure(fuse=fuse):
        _, leaves = canonical_key(outputs)
        return pipeline.build_program(tuple(outputs), leaves, CPU)[0]


def kernels_elsewhere(outputs: Sequence[Node], leaves: Sequence[Node]) -> dict[str, int]:
    """How many kernels a graph takes on each other kind of device."""
    return {name: len(pipeline.build_program(outputs, leaves, target)[0].kernels)
            for name, target in ELSEWHERE.items()}


def plan_of(outputs: Sequence[Node], fuse: bool = True, until: str = "", target=CPU) -> Plan:
    """The plan after the pass `until`, by default after all of them."""
    with config.configure(fuse=fuse):
        new = tuple(outputs)
        for p in pipeline.GRAPH:
            new = p.run(new, target)
        new = tuple(map(pipeline.fresh, outputs, new))
        plan = Plan(new, canonical_key(outputs)[1], [])
        for p in pipeline.PLAN:
            p.run(plan, target)
            if p.name == until:
                break
    return plan


def unexplained(plan: Plan) -> list[str]:
    """The edges between kernels on which no remark with a rule and a remedy stands."""
    home = {stage: nest.number for nest in plan.nests for stage in nest.stages()}
    told = {(r.subject, r.about, r.terms["kernel"]) for r in plan.remarks
            if r.kind == "missed" and r.rule in RULES and r.remedy and r.message}
    return [f"{p.name} -> {s.name}" for s in plan.stages for p in s.producers
            if home[p] != home[s] and (s.name, p.name, home[p]) not in told]


def interpreted(
    outputs: Sequence[Node], memory: Mapping[int, np.ndarray], fuse: bool = True, until: str = "",
    target: Target = SPLITTING,
) -> list[np.ndarray]:
    """What the kernels of a plan compute, interpreted."""
    plan = plan_of(outputs, fuse, until, target)
    held = {uid: np.array(a, order="C") for uid, a in memory.items()}
    leaves = canonical_key(outputs)[1]
    slots = {s: held[leaf.attrs[0]].reshape(-1) for s, leaf in zip(plan.slots, leaves)}
    results, fresh = [], iter(plan.slots[len(leaves):])
    for out, spec in zip(outputs, plan.output_specs):
        array = held[root_uid(out)] if spec is None else np.empty(out.shape, out.dtype.np)
        if spec is not None:
            slots[next(fresh)] = array.reshape(-1)
        results.append(array)
    run_kernels(plan.kernels, slots, None if until else plan.arena_size)
    return results
