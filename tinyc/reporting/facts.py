"""What is known of a program without running it: nodes, kernels, links, memory, passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tinyc import pipeline
from tinyc.compiler import NativeExecutable
from tinyc.diagnostics import UNKNOWN, Origin
from tinyc.ir.node import Node, toposort
from tinyc.ir.ops import describe_type
from tinyc.ir.phases import phases
from tinyc.ir.plan import Stage
from tinyc.ir.printer import to_text
from tinyc.ir.program import KernelInfo, Program
from tinyc.ir.steps import Fired, changes, difference
from tinyc.runtime.buffer import Buffer
from tinyc.runtime.device import get_device

Place = list[Any] | None
# What a buffer's own word on what it is for stands above what the graph says.
TOLD = ("parameter", "kept", "gradient", "optimizer")
CALLED = {
    "parameter": "parameters",
    "kept": "kept of frozen tensors:",
    "gradient": "gradients",
    "optimizer": "optimizer state",
}


@dataclass(frozen=True)
class Rebuilt:
    """A program made once more from its graph, with all that the passes had in hand."""

    program: Program
    compilation: pipeline.Compilation


def rebuild(executable: NativeExecutable) -> Rebuilt:
    """Run the passes on a program's graph again: they give the same program, and what led to it.

    A program that came from the disk has kept neither its plan nor what its passes did.
    """
    outputs, leaves = executable.outputs, executable.leaves
    target = get_device(executable.device).machine()
    return Rebuilt(*pipeline.build_program(outputs, leaves, target, again=True))


def place(origin: Origin | None) -> Place:
    """Return a line of the user as JSON has it; None where it is not known."""
    known = origin is not None and tuple(origin) != UNKNOWN and origin[1] > 0
    return [origin[0], origin[1]] if origin is not None and known else None


def places(origins: Sequence[Origin | None]) -> list[Place]:
    """Return the known lines among some, each once."""
    return [place(origin) for origin in dict.fromkeys(origins) if place(origin)]


# -- the graph -----------------------------------------------------------------------------------


def nodes(built: Rebuilt) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Return the nodes of the simplified graph, numbered as kernels know them, and its edges."""
    outputs = built.compilation.graph
    order = toposort(outputs)
    phase = phases(outputs)
    texts = to_text(outputs).splitlines()
    homes = node_kernels(order, built.program.kernels)
    found = [
        {
            "id": number,
            "op": n.op.name.lower(),
            "text": texts[number].partition("  #")[0].rstrip(),
            "shape": describe_type(n.shape, n.dtype),
            "line": place(n.origin),
            "phase": phase[n],
            "kernels": homes[number],
        }
        for number, n in enumerate(order)
    ]
    numbers = {n: i for i, n in enumerate(order)}
    edges = [[numbers[s], i] for i, n in enumerate(order) for s in dict.fromkeys(n.src)]
    return found, edges


def node_kernels(order: Sequence[Node], kernels: Sequence[KernelInfo]) -> list[list[int]]:
    """Return the kernels that compute each node; of one that none computes, those that read it."""
    homes: list[set[int]] = [set() for _ in order]
    for index, kernel in enumerate(kernels):
        for group in kernel.member_nodes:
            for number in group:
                homes[number].add(index)
    numbers = {n: i for i, n in enumerate(order)}
    computed = [bool(home) for home in homes]
    for i in range(len(order) - 1, -1, -1):
        for s in order[i].src:
            if not computed[numbers[s]]:
                homes[numbers[s]] |= homes[i]
    return [sorted(home) for home in homes]


# -- kernels and what is between them ------------------------------------------------------------


def kernels(program: Program) -> list[dict[str, Any]]:
    """Return the kernels in the order in which they run, without times."""
    return [
        {
            "index": index,
            "name": kernel.name,
            "phase": kernel.phase,
            "members": members(kernel),
            "lines": places(kernel.origins),
            "flops": kernel.flops,
            "bytes": kernel.bytes_moved,
            "scratch_bytes": kernel.scratch_bytes,
            "chunks": kernel.chunks,
            "reads": list(kernel.reads),
            "writes": list(kernel.writes),
            "loops": kernel.loops,
            "source": kernel.source,
            "source_lines": [
                [number, name or None] for number, name in enumerate(kernel.source_members, 1)
            ],
        }
        for index, kernel in enumerate(program.kernels)
    ]


def members(kernel: KernelInfo) -> list[dict[str, Any]]:
    """Return the members of a kernel in the order in which they run."""
    return [
        {
            "name": text.partition(" ")[0],
            "text": text.partition(" ")[2],
            "line": place(origin),
            "nodes": list(group),
        }
        for text, origin, group in zip(
            kernel.members, kernel.member_origins, kernel.member_nodes, strict=True
        )
    ]


def links(built: Rebuilt) -> list[dict[str, Any]]:
    """Return each value that one kernel makes and another reads, with why they are two."""
    plan = built.compilation.plan
    assert plan is not None
    home = {stage: index for index, nest in enumerate(plan.nests) for stage in nest.stages()}
    why = refusals(built.program.remarks)
    found = []
    for stage in plan.stages:
        for producer in dict.fromkeys(stage.producers):
            if home[producer] != home[stage]:
                found.append(link(producer, stage, home, why))
    return found


def link(
    producer: Stage, consumer: Stage, home: Mapping[Stage, int], why: Mapping[tuple, list]
) -> dict[str, Any]:
    """Return one value on its way from the kernel that makes it to one that reads it."""
    storage = producer.buf.storage
    here, there = home[producer], home[consumer]
    reasons = why.get((consumer.name, producer.name)) or why.get((consumer.name, here), [])
    return {
        "from": here,
        "to": there,
        "buffer": storage.name,
        "bytes": producer.node.size * producer.dtype.itemsize,
        "shape": describe_type(producer.node.shape, producer.node.dtype),
        "producer": producer.name,
        "consumer": consumer.name,
        "why": reasons,
    }


def refusals(remarks: Sequence[Mapping[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    """Return what was refused, by (consumer, producer) and (consumer, its kernel)."""
    found: dict[tuple, list[dict[str, Any]]] = {}
    for remark in remarks:
        if remark["kind"] != "missed" or remark["pass_name"] != "fuse":
            continue
        terms = dict(remark["terms"])
        reason = {
            "rule": remark.get("rule", ""),
            "message": remark["message"],
            "terms": terms,
            "remedy": remark.get("remedy", ""),
        }
        kernel = terms.get("kernel")
        for key in ((remark["subject"], remark.get("about")), (remark["subject"], kernel)):
            if key[1] is not None and key[1] != "":
                reasons = found.setdefault(key, [])
                if reason not in reasons:
                    reasons.append(reason)
    return found


# -- memory --------------------------------------------------------------------------------------


def storages(program: Program, buffers: Sequence[Buffer]) -> list[dict[str, Any]]:
    """Return the arguments and the pieces of the arena, with what each holds and how long."""
    given = {f"in{i}": buffer for i, buffer in enumerate(buffers)}
    found = []
    for storage in program.storages:
        buffer = given.get(storage.name)
        told = buffer.category if buffer is not None and buffer.category in TOLD else ""
        category = told or storage.category
        what = CALLED.get(category, category) if buffer is not None else storage.what
        made = buffer.origin if buffer is not None and buffer.origin else None
        found.append(
            {
                "name": storage.name,
                "bytes": storage.nbytes,
                "offset": storage.offset,
                "within": storage.within,
                "first": storage.first,
                "last": storage.last,
                "category": category,
                "line": place(made) or place(storage.origin),
                "what": f"{what} {storage.type}",
            }
        )
    return found


def peak(program: Program, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return when a run needs most memory, and all that it then consists of, largest first.

    Arguments are there all the time, and so is the scratch memory of a thread.
    """
    live = program.live_bytes()
    kernel = max(range(len(live)), key=live.__getitem__, default=-1)
    parts = [
        {key: storage[key] for key in ("what", "category", "bytes", "line", "name")}
        for storage in found
        if not storage["within"]
        and (storage["offset"] is None or storage["first"] <= kernel <= storage["last"])
    ]
    if program.scratch_size:
        scratch = {"what": "temporaries of one thread", "category": "scratch", "line": None}
        parts.append({**scratch, "bytes": program.scratch_size, "name": "scratch"})
    return {
        "bytes": sum(part["bytes"] for part in parts),
        "kernel": kernel,
        "arena": program.arena_size,
        "planned": program.footprint(1),
        "live": live,
        "contributors": sorted(parts, key=lambda part: -part["bytes"]),
    }


# -- passes --------------------------------------------------------------------------------------


def passes(built: Rebuilt) -> list[dict[str, Any]]:
    """Return what each pass took and did: texts, and what it applied and remarked.

    The text before the first pass is there; that before another is the one after the pass before.
    """
    remarks: dict[str, list[dict[str, Any]]] = {}
    for remark in built.program.remarks:
        shown = {key: remark[key] for key in ("kind", "subject", "message", "rule", "about")}
        remarks.setdefault(remark["pass_name"], []).append(shown)
    return [
        {
            "name": step.name,
            "ms": step.seconds * 1e3,
            "form": step.form,
            **({} if number else {"before": before.text}),
            "after": step.text,
            "diff": "\n".join(changes(before, step).values()),
            "firings": [firing(fired) for fired in step.fired],
            "remarks": remarks.get(step.name, []),
        }
        for number, (before, step) in enumerate(pairwise(built.compilation.steps))
    ]


def firing(fired: Fired) -> dict[str, Any]:
    """Return a rule with the nodes before and after, or a step of scheduling with its diff."""
    if fired.kernel is None:
        shown = {"rule": fired.name, "before": fired.before, "after": fired.after}
        return {**shown, "kernel": None, "line": place(fired.origin)}
    change = difference(fired.before, fired.after, "", "").partition("@@")[2]
    shown = {"rule": fired.name, "before": "", "after": "@@" + change}
    return {**shown, "kernel": fired.kernel, "line": None}
