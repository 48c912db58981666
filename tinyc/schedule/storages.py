"""The memory of a program as reports show it: what each piece holds, from when to when."""
from __future__ import annotations

from collections.abc import Mapping

from tinyc.ir.loop import Storage
from tinyc.ir.node import BACKWARD, OPTIMIZER, Node
from tinyc.ir.ops import describe_type
from tinyc.ir.phases import leaf_categories
from tinyc.ir.plan import Plan, Stage
from tinyc.ir.program import StorageInfo
from tinyc.schedule.memory import Life, lifetimes

CATEGORY = {BACKWARD: "gradient", OPTIMIZER: "optimizer"}


def storage_infos(plan: Plan, phase: Mapping[Node, str]) -> tuple[StorageInfo, ...]:
    """Every argument of a program and every piece of its arena, in the order of first use."""
    lives = lifetimes(plan, roles=("slot", "arena"))
    stages: dict[Storage, list[Stage]] = {}
    for stage in plan.stages:
        home = plan.taken.get(stage.buf.storage, stage.buf.storage)
        stages.setdefault(home, []).append(stage)
    arguments = argument_infos(plan, lives, phase)
    arena = [arena_info(life, stages.get(storage, []), phase)
             for storage, life in lives.items() if storage.role == "arena"]
    return (*arguments, *arena)


def argument_infos(plan: Plan, lives: Mapping[Storage, Life],
                   phase: Mapping[Node, str]) -> list[StorageInfo]:
    """The slots: memory that is passed in, then fresh outputs."""
    categories = leaf_categories(plan.outputs)
    fresh = [out for out, spec in zip(plan.outputs, plan.output_specs) if spec is not None]
    found = []
    for slot, node in zip(plan.slots, [*plan.leaves, *fresh]):
        life = lives.get(slot, Life(slot, -1, -1))
        is_leaf = slot.name.startswith("in")
        given = "gradient" if phase.get(node) == BACKWARD else "output"
        found.append(StorageInfo(
            slot.name, slot.nbytes, describe_type(node.shape, node.dtype), None, life.first,
            life.last, categories.get(node, "input") if is_leaf else given,
            "argument" if is_leaf else node.op.name.lower(), node.origin))
    return found


def arena_info(life: Life, stages: list[Stage], phase: Mapping[Node, str]) -> StorageInfo:
    """A stretch of the arena: the values that lie there in turn, or the sums of chunks."""
    storage = life.storage
    within = storage.within.name if storage.within else ""
    if not stages:
        kind = f"{storage.dtype}[{storage.size}]"
        return StorageInfo(storage.name, storage.nbytes, kind, storage.offset, life.first,
                           life.last, "partial", "sums of the chunks", None, within)
    node = stages[0].node
    return StorageInfo(
        storage.name, storage.nbytes, describe_type(node.shape, node.dtype), storage.offset,
        life.first, life.last, CATEGORY.get(phase.get(node, ""), "activation"),
        ", ".join(dict.fromkeys(stage.name for stage in stages)), node.origin, within)
