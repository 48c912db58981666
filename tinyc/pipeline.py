"""From a graph to a program: the pass list.

Read the tuples of passes from top to bottom: that is the compiler. The comments between the
entries say what holds from there on. Loaded only when a program is not in a cache.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tinyc import config, dumps
from tinyc.codegen import c, cpu
from tinyc.codegen.count import kernel_info
from tinyc.codegen.lower import lower_nest
from tinyc.diagnostics import debug_line, emit
from tinyc.ir.build import materialize
from tinyc.ir.cost import stage_work
from tinyc.ir.lift import lift
from tinyc.ir.node import Node, toposort
from tinyc.ir.ops import Op
from tinyc.ir.phases import phases
from tinyc.ir.plan import Nest, Plan
from tinyc.ir.plan_text import plan_text
from tinyc.ir.printer import to_text
from tinyc.ir.program import Program, Target
from tinyc.ir.reuse import reuse
from tinyc.ir.simplify import simplify
from tinyc.ir.verify import verify
from tinyc.schedule.arrays import contract_arrays
from tinyc.schedule.fuse import fuse
from tinyc.schedule.memory import plan_memory
from tinyc.schedule.recompute import recompute
from tinyc.schedule.stage import build_stages
from tinyc.schedule.storages import storage_infos


@dataclass(frozen=True)
class Pass:
    """One step: its name, and the function that does it.

    In GRAPH it returns new outputs for outputs; in PLAN it fills in what it gets.
    """

    name: str
    run: Callable[[Any, Target], Any]


def fuse_stages(plan: Plan, target: Target) -> None:
    """Place the stages in loop trees; every refusal is a remark."""
    plan.remarks += fuse(plan, target, config.current().fuse)


def recompute_stages(plan: Plan, target: Target) -> None:
    """Place the stages again, with cheap values computed where they are needed."""
    remarks = recompute(plan) if config.current().fuse else []
    if remarks:
        plan.nests, plan.mapping, plan.remarks = [], {}, remarks
        fuse_stages(plan, target)


def lower_stages(plan: Plan, target: Target) -> None:
    """Turn each nest into the loop IR of a kernel."""
    plan.kernels = [lower_nest(plan, nest, target) for nest in plan.nests]


def schedule_kernels(plan: Plan, target: Target) -> None:
    """Apply the target's recipe to each kernel."""
    plan.kernels = [cpu.schedule(kernel, target) for kernel in plan.kernels]


GRAPH = (
    # Nodes are typed and interned; the gradient is already inside.
    Pass("simplify", lambda outputs, target: simplify(outputs)),
    # Views are composed; constants are folded; no float algebra that could change NaN or inf.
    Pass("lift", lambda outputs, target: lift(outputs)),
    # Every sum of products is a contraction.
    Pass("reuse", lambda outputs, target: reuse(outputs)),
    # The backward pass asks values that are stored anyway.
)
PLAN = (
    Pass("stage", lambda plan, target: build_stages(plan, config.current().fuse)),
    # Views are gone: every stored value is loops over one expression of reads.
    Pass("fuse", fuse_stages),
    # Every stage has its place in a loop tree; one tree is one kernel.
    Pass("recompute", recompute_stages),
    # What crosses from one kernel to another is dear, or read by a contraction.
    Pass("arrays", contract_arrays),
    # What only one kernel uses has no dimension that its loops share, and no memory.
    Pass("lower", lower_stages),
    # Accesses are (storage, affine index); sums have accumulators.
    Pass("schedule", schedule_kernels),
    # Contractions are register tiles; innermost loops are independent or have lanes.
    Pass("memory", lambda plan, target: plan_memory(plan)),
    # Every storage has its place in the arena.
)


@dataclass
class Compilation:
    """What a compilation leaves behind for those who read it: times and texts by pass."""

    outputs: tuple[Node, ...]
    graph: tuple[Node, ...] = ()
    plan: Plan | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def run_passes(outputs: tuple[Node, ...], leaves: tuple[Node, ...],
               target: Target) -> Compilation:
    """Graph -> plan with scheduled kernels and memory."""
    done = Compilation(outputs)
    settings = config.current()
    shows = settings.debug.level >= 5 or bool(settings.dump)
    text = done.texts["graph"] = to_text(outputs) if shows else ""
    for p in GRAPH:
        outputs = timed(done, p, outputs, target)
        if settings.check:
            verify(outputs)
        if shows:
            text = show_change(done, p.name, text, to_text(outputs))
    outputs = tuple(fresh(old, new) for old, new in zip(done.outputs, outputs))
    plan = done.plan = Plan(outputs, leaves, [])
    done.graph = outputs
    for p in PLAN:
        timed(done, p, plan, target)
        if shows:
            text = show_change(done, p.name, text, plan_text(plan))
    for remark in plan.remarks:
        emit(remark)
    return done


def fresh(old: Node, new: Node) -> Node:
    """An output that rules have made a state keeps a result of its own."""
    return materialize(new) if new.op is Op.ASSIGN and old.op is not Op.ASSIGN else new


def timed(done: Compilation, p: Pass, value: Any, target: Target) -> Any:
    """Run a pass and note how long it took."""
    start = time.perf_counter()
    result = p.run(value, target)
    done.seconds[p.name] = time.perf_counter() - start
    return result


def show_change(done: Compilation, name: str, before: str, after: str) -> str:
    """Keep the text after a pass; DEBUG=5 prints what the pass changed, as a unified diff."""
    done.texts[name] = after
    if config.current().debug.shows(5, pass_name=name):
        import difflib

        names = (f"before {name}", f"after {name}")
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), *names, "", "", 1, "")
        diff = "\n".join(lines) or f"{name} (unchanged)"
        debug_line(5, f"{diff}\n{name} took {done.seconds[name] * 1e3:.1f} ms", pass_name=name)
    return after


def build_program(outputs: Sequence[Node], leaves: Sequence[Node],
                  target: Target) -> tuple[Program, Compilation]:
    """Graph -> program: source text, memory plan, launch list, remarks."""
    done = run_passes(tuple(outputs), tuple(leaves), target)
    plan = done.plan
    assert plan is not None
    source = c.program(plan.kernels, plan.slots)
    numbers = {n: i for i, n in enumerate(toposort(done.graph))}
    phase = phases(done.graph)
    infos = tuple(replace(kernel_info(k, nest), source=text, source_members=lines,
                          computes=computed(nest, numbers), **provenance(nest, numbers, phase))
                  for k, nest, text, lines in zip(plan.kernels, plan.nests, source.kernels,
                                                  source.members))
    program = Program(source.text, source.libm, len(leaves), plan.output_specs, plan.arena_size,
                      source.scratch_size, infos, tuple(plan.sites),
                      tuple(r.to_dict() for r in plan.remarks), source.parts,
                      storage_infos(plan, phase))
    if config.current().dump:
        dumps.write(config.current().dump, outputs[0].origin, done.texts, program)
    return program, done


def provenance(nest: Nest, numbers: dict[Node, int], phase: dict[Node, str]) -> dict[str, Any]:
    """Which nodes and lines are behind each member of a nest, and which phase it belongs to."""
    stages = nest.stages()
    nodes = [dict.fromkeys((s.node, *s.members)) for s in stages]
    heaviest = max(stages, key=stage_work)
    return {
        "member_nodes": tuple(tuple(numbers[n] for n in group if n in numbers) for group in nodes),
        "member_origins": tuple(s.node.origin for s in stages),
        "phase": phase.get(heaviest.node, heaviest.node.phase),
    }


def computed(nest: Nest, numbers: dict[Node, int]) -> tuple[int, ...]:
    """The numbers of the nodes whose work a nest does, those it stores first."""
    stored = [stage.node for stage in nest.stages()]
    inlined = [n for stage in nest.stages() for n in stage.members]
    found = [numbers[n] for n in (*stored, *inlined) if n in numbers]
    return tuple(dict.fromkeys(found))
