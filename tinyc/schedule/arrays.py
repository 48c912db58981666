"""Array contraction: a value used only inside its nest loses the dimensions of shared loops.

Full depth leaves a scalar register, a row leaves scratch of one row, and nothing goes to memory.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from tinyc.ir.index import Var
from tinyc.ir.loop import Storage
from tinyc.ir.plan import Buf, Leaf, Loop, Nest, Plan, Stage, Tree, row_major
from tinyc.ir.program import Target

# What is larger than the second-level cache leaves memory if it shrinks to this part or less.
SMALL_PART = 32


@dataclass
class Where:
    """The place of a stage: nest, loops around it, leaf, and whether it is in the finish."""

    nest: Nest
    loops: tuple[Loop, ...]
    leaf: Leaf
    finish: bool


def places(plan: Plan) -> dict[Stage, Where]:
    """Where every stage stands."""
    found: dict[Stage, Where] = {}

    def visit(nest: Nest, tree: Tree, loops: tuple[Loop, ...], finish: bool) -> None:
        if isinstance(tree, Loop):
            for child in tree.body:
                visit(nest, child, (*loops, tree), finish)
            return
        for stage in (tree.stage, *tree.epilogue):
            found[stage] = Where(nest, loops, tree, finish)

    for nest in plan.nests:
        for tree in nest.body:
            visit(nest, tree, (), False)
        for tree in nest.finish:
            visit(nest, tree, (), True)
    return found


def contract_arrays(plan: Plan, target: Target) -> None:
    """Shrink every intermediate that no other nest reads; drops its storage from the arena."""
    where = places(plan)
    readers: dict[Storage, list[Stage]] = {}
    for stage in plan.stages:
        for storage in {r.buf.storage for r in stage.reads}:
            readers.setdefault(storage, []).append(stage)
    writers: dict[Storage, list[Stage]] = {}
    for stage in plan.stages:
        writers.setdefault(stage.buf.storage, []).append(stage)
    gone = set()
    for stage in plan.stages:
        storage = stage.buf.storage
        users = readers.get(storage, [])
        if storage.role == "arena" and len(writers[storage]) == 1 and users and shrink(
                plan, stage, users, where, target):
            gone.add(storage)
    plan.storages = [s for s in plan.storages if s not in gone]


def shrink(plan: Plan, stage: Stage, users: list[Stage], where: dict[Stage, Where],
           target: Target) -> bool:
    """Contract one value if all its readers stand in its nest; True if it left the arena."""
    here = where[stage]
    if here.finish or stage in here.nest.private or stage.kind == "scatter":
        return False
    if any(where[u].nest is not here.nest or where[u].finish for u in users):
        return False
    if any(r.buf is not stage.buf for u in users for r in u.reads
           if r.buf.storage is stage.buf.storage):
        return False
    if all(where[u].leaf is here.leaf for u in users):
        dropped = set(stage.axes)
    else:
        dropped = shared_axes(plan, stage, users, where)
    kept = [d for d, v in enumerate(stage.axes) if v not in dropped and v.extent > 1]
    size = math.prod(stage.axes[d].extent for d in kept)
    if (stage.axes and not dropped) or (
            size * stage.dtype.itemsize > target.l2 and size * SMALL_PART > math.prod(
                v.extent for v in stage.axes)):
        return False
    shrink_buf(stage.buf, kept, size)
    return True


def shared_axes(plan: Plan, stage: Stage, users: list[Stage],
                where: dict[Stage, Where]) -> set[Var]:
    """The axes that run as loops around the stage and all its readers."""
    common = {loop.var for loop in where[stage].loops}
    for u in users:
        common &= {loop.var for loop in where[u].loops}
    names = plan.mapping[stage]
    return {v for v in stage.axes if names.get(v, v) in common}


def shrink_buf(buf: Buf, kept: list[int], size: int) -> None:
    """Give a buffer a storage of its own that has only the dimensions `kept`."""
    role = "register" if size == 1 else "scratch"
    buf.storage = Storage(buf.storage.name, size, buf.storage.dtype, role)
    strides = [0] * len(buf.shape)
    for d, stride in zip(kept, row_major(tuple(buf.shape[d] for d in kept))):
        strides[d] = stride
    buf.strides = tuple(strides)
    buf.offset = 0
