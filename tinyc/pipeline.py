"""From a graph to a program: the pass list.

Read the tuples of passes from top to bottom: that is the compiler. The comments between the
entries say what holds from there on. Loaded only when a program is not in a cache.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinyc import config, debugging, dumps
from tinyc.codegen import c, cpu, cuda, gpu, opencl
from tinyc.codegen.c import Source
from tinyc.codegen.count import kernel_info
from tinyc.codegen.lines import far_stores
from tinyc.codegen.lower import lower_nest
from tinyc.diagnostics import Remark, ScheduleError, TinycError, VerifyError, collected
from tinyc.ir.build import materialize
from tinyc.ir.choices import RULES
from tinyc.ir.cost import stage_work
from tinyc.ir.halves import widen
from tinyc.ir.lift import lift
from tinyc.ir.node import Node, toposort
from tinyc.ir.ops import Op
from tinyc.ir.phases import phases
from tinyc.ir.plan import Nest, Plan
from tinyc.ir.plan_text import plan_blocks
from tinyc.ir.printer import carry_names, number, to_text
from tinyc.ir.program import Launch, Program, Target
from tinyc.ir.reuse import reuse
from tinyc.ir.simplify import simplify
from tinyc.ir.steps import Step, watch
from tinyc.ir.verify import verify
from tinyc.runtime import recorder
from tinyc.runtime.toolchain import Unit
from tinyc.schedule.arrays import contract_arrays
from tinyc.schedule.block import block_rows
from tinyc.schedule.fuse import fuse
from tinyc.schedule.hints import require_hints, take_hints
from tinyc.schedule.memory import memory_text, plan_memory
from tinyc.schedule.online import tile_chains
from tinyc.schedule.order import order_by_memory
from tinyc.schedule.padded import read_padded
from tinyc.schedule.recompute import recompute
from tinyc.schedule.remake import remake
from tinyc.schedule.stage import build_stages
from tinyc.schedule.storages import storage_infos

Prepare = Callable[[Unit], None]


@dataclass(frozen=True)
class Pass:
    """One step: its name, and the function that does it.

    In GRAPH it returns new outputs for outputs; in PLAN it fills in what it gets.
    """

    name: str
    run: Callable[[Any, Target], Any]


def make_stages(plan: Plan, target: Target) -> None:
    """Decide what is stored, and in which order; hints leave the graph."""
    take_hints(plan)
    build_stages(plan, config.current().fuse)
    order_by_memory(plan)


def fuse_stages(plan: Plan, target: Target) -> None:
    """Place the stages in loop trees; every refusal is a remark."""
    plan.remarks += fuse(plan, target, config.current().fuse)


def recompute_stages(plan: Plan, target: Target) -> None:
    """Place the stages again, with values computed, or read elsewhere, where they are needed."""
    if config.current().fuse:
        place_anew(plan, target, read_padded(plan))
        place_anew(plan, target, recompute(plan))
        place_anew(plan, target, remake(plan))


def block_stages(plan: Plan, target: Target) -> None:
    """Place the stages again, with rows of chained contractions in blocks."""
    if config.current().fuse:
        place_anew(plan, target, tile_chains(plan, target))
        place_anew(plan, target, block_rows(plan, target))
        require_hints(plan)


def place_anew(plan: Plan, target: Target, changes: list[Remark]) -> None:
    """Fuse again after stages have changed; what was said of the places before is void."""
    if changes:
        plan.nests, plan.mapping = [], {}
        plan.remarks = [r for r in plan.remarks if r.pass_name != "fuse"] + changes
        fuse_stages(plan, target)


def lower_stages(plan: Plan, target: Target) -> None:
    """Turn each nest into the loop IR of a kernel."""
    if config.current().tune and target.language == "c":
        from tinyc import tuning

        tuning.tune(plan, target)
    plan.kernels = [lower_nest(plan, nest, target, plan.choices.get(nest, RULES))
                    for nest in plan.nests]


def schedule_kernels(plan: Plan, target: Target) -> None:
    """Apply the target's recipe to each kernel."""
    if target.threads > 1:
        plan.kernels = [gpu.schedule(kernel, target) for kernel in plan.kernels]
        return
    far = far_stores(plan.kernels, target)
    plan.kernels = [cpu.schedule(kernel, target, plan.choices.get(nest, RULES), past)
                    for kernel, nest, past in zip(plan.kernels, plan.nests, far)]


GRAPH = (
    # Nodes are typed and interned; the gradient is already inside.
    Pass("simplify", lambda outputs, target: simplify(outputs)),
    # Views are composed; constants are folded; no float algebra that could change NaN or inf.
    Pass("lift", lambda outputs, target: lift(outputs)),
    # Every sum of products is a contraction.
    Pass("reuse", lambda outputs, target: reuse(outputs)),
    # The backward pass asks values that are stored anyway.
    Pass("halves", lambda outputs, target: widen(outputs)),
    # f16 and bf16 are moved, widened and rounded, never computed with.
)
PLAN = (
    Pass("stage", make_stages),
    # Views are gone: every stored value is loops over one expression of reads.
    Pass("fuse", fuse_stages),
    # Every stage has its place in a loop tree; one tree is one kernel.
    Pass("recompute", recompute_stages),
    # What crosses from one kernel to another is dear, or read by a contraction.
    Pass("block", block_stages),
    # What lies between two contractions of one kernel fits the second-level cache.
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
    """A compilation on its way, and what it leaves behind for those who read it.

    `graph` is what the graph passes have made of `outputs` so far, `plan` what the others fill in.
    `names` are those of the graph's nodes in texts. With `keeps_texts` each step has its texts, and
    with `shows` DEBUG prints them. `dumped` is the folder of the dump, if there is one.
    """

    outputs: tuple[Node, ...]
    leaves: tuple[Node, ...]
    target: Target
    keeps_texts: bool = False
    shows: bool = False
    dumped: Path | None = None
    source_seconds: float = 0.0
    graph: tuple[Node, ...] = ()
    plan: Plan | None = None
    names: dict[Node, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.graph = self.outputs
        if self.keeps_texts:
            self.names = number(self.outputs)
            text = to_text(self.outputs, self.names)
            self.steps.append(Step("graph", "graph", blocks={"": text}))

    def groups(self) -> dict[str, float]:
        """Return the seconds that groups of passes took, and the making of source text."""
        graph = {p.name for p in GRAPH}
        found = {"graph": 0.0, "plan": 0.0}
        for step in self.steps:
            found["graph" if step.name in graph else "plan"] += step.seconds
        return {**found, "source": self.source_seconds}


def run_passes(outputs: tuple[Node, ...], leaves: tuple[Node, ...], target: Target,
               again: bool = False) -> Compilation:
    """Graph -> plan with scheduled kernels and memory; see `build_program`."""
    settings = config.current()
    shows = settings.debug.level >= 5 and not again
    done = Compilation(outputs, leaves, target, shows or again or bool(settings.dump), shows)
    if shows:
        debugging.show_start(outputs)
    for p in (*GRAPH, *PLAN):
        with recorder.span(p.name, "pass"):
            run_pass(done, p)
    assert done.plan is not None
    if not again:
        for remark in done.plan.remarks:
            collected(remark)
    return done


def run_pass(done: Compilation, p: Pass) -> Step:
    """Run one pass on a compilation, check what it made, and note what it did."""
    if p in PLAN and done.plan is None:
        done.graph = tuple(fresh(old, new) for old, new in zip(done.outputs, done.graph))
        done.plan = Plan(done.graph, done.leaves, [])
    before = done.graph
    start = time.perf_counter()
    with watch() if done.keeps_texts else nullcontext() as fired:
        apply(done, p)
    seconds = time.perf_counter() - start
    step = Step(p.name, seconds=seconds)
    if done.keeps_texts:
        form, blocks = texts_after(done, p, before)
        step = replace(step, form=form, blocks=blocks, fired=tuple(fired or ()))
        if done.shows:
            debugging.show_step(done.steps[-1], step)
    done.steps.append(step)
    return step


def apply(done: Compilation, p: Pass) -> None:
    """Let a pass do its work. Where it fails, which is a bug, its error names a crash file."""
    try:
        if done.plan is not None:
            p.run(done.plan, done.target)
            done.graph = done.plan.outputs
            return
        after = p.run(done.graph, done.target)
        if config.current().check:
            verify(after)
        done.graph = after
    except Exception as error:
        if isinstance(error, TinycError) and not isinstance(error, (VerifyError, ScheduleError)):
            raise  # what the user asked for can't be done
        passes = [q.name for q in PLAN[: PLAN.index(p) + 1]] if p in PLAN else [p.name]
        kept = dumps.write_crash(done.outputs[0].origin, p.name, passes, to_text(done.graph),
                                 done.target, error)
        what = f"pass {p.name} failed: {type(error).__name__}: {error}"
        raise VerifyError(f"{what}\n{kept}") from error


def texts_after(done: Compilation, p: Pass, before: tuple[Node, ...]) -> tuple[str, dict[str, str]]:
    """The program as text, in blocks, and which form of it they show."""
    if done.plan is None:
        done.names = carry_names(done.names, before, done.graph)
        return "graph", {"": to_text(done.graph, done.names)}
    form, blocks = plan_blocks(done.plan)
    if p.name == "memory":
        blocks["memory"] = memory_text(done.plan)
    return form, blocks


def fresh(old: Node, new: Node) -> Node:
    """An output that rules have made a state keeps a result of its own."""
    return materialize(new) if new.op is Op.ASSIGN and old.op is not Op.ASSIGN else new


def build_program(outputs: Sequence[Node], leaves: Sequence[Node], target: Target,
                  again: bool = False,
                  prepare: Prepare = lambda unit: None) -> tuple[Program, Compilation]:
    """Graph -> program: source text, memory plan, launch list, remarks.

    A program that is made once more, `again`, to be looked at, is neither printed nor dumped.
    `prepare` is called with what will be compiled as soon as that is known.
    """
    done = run_passes(tuple(outputs), tuple(leaves), target, again)
    plan = done.plan
    assert plan is not None
    start = time.perf_counter()
    source, launches = render(plan, target)
    if target.language == "c":
        prepare(Unit(source.text, source.libm, parts=source.parts, lines=config.current().lines))
    numbers = {n: i for i, n in enumerate(toposort(done.graph))}
    phase = phases(done.graph)
    infos = tuple(replace(kernel_info(k, nest, target), source=text, source_members=lines,
                          computes=computed(nest, numbers), **provenance(nest, numbers, phase))
                  for k, nest, text, lines in zip(plan.kernels, plan.nests, source.kernels,
                                                  source.members))
    program = Program(source.text, source.libm, len(leaves), plan.output_specs, plan.arena_size,
                      source.scratch_size, infos, tuple(plan.sites),
                      tuple(r.to_dict() for r in plan.remarks), source.parts,
                      storage_infos(plan, phase), launches)
    done.source_seconds = time.perf_counter() - start
    folder = config.current().dump
    if folder and not again:
        done.dumped = dumps.write(folder, outputs[0].origin, done.steps, program, target)
    return program, done


def render(plan: Plan, target: Target) -> tuple[Source, tuple[Launch, ...]]:
    """The source text of kernels and, where a device starts them one by one, how."""
    if target.language == "opencl":
        return opencl.program(plan.kernels, plan.slots)
    if target.language == "cuda":
        return cuda.program(plan.kernels, plan.slots)
    return c.program(plan.kernels, plan.slots, config.current().lines), ()


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
