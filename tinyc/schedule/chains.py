"""Chains of products over one pair of axes, rows and columns: attention, forward and backward.

A value of a chain that has both axes is wide. The others are sums over columns, as those of a
softmax and its product with values, or over rows, as gradients of keys.
"""
from __future__ import annotations

from dataclasses import dataclass, field

from tinyc.ir.cost import elements
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import Check, Read, Storage, walk
from tinyc.ir.plan import Buf, Plan, Stage
from tinyc.schedule.stored import KEPT


@dataclass
class Chain:
    """Stages, in program order, with the variables of each along rows and, but for functions of
    sums over columns, along columns."""

    rows: dict[Stage, Var] = field(default_factory=dict)
    columns: dict[Stage, Var] = field(default_factory=dict)
    body: list[Stage] = field(default_factory=list)

    def wide(self, stage: Stage) -> bool:
        """True if a member's value has rows and columns."""
        return self.rows[stage] in stage.axes and self.columns.get(stage) in stage.axes


class Uses:
    """Who makes and who reads each value of a plan, and who waits for whom."""

    def __init__(self, plan: Plan) -> None:
        self.order = {stage: i for i, stage in enumerate(plan.stages)}
        self.makers: dict[Buf, list[Stage]] = {}
        self.readers: dict[Buf, list[Stage]] = {}
        self.regions: dict[Storage, set[Buf]] = {}
        for stage in plan.stages:
            self.makers.setdefault(stage.buf, []).append(stage)
            for buf in dict.fromkeys(r.buf for r in stage.reads):
                self.readers.setdefault(buf, []).append(stage)
            for buf in (stage.buf, *(r.buf for r in stage.reads)):
                self.regions.setdefault(buf.storage, set()).add(buf)

    def may_be_tiled(self, stage: Stage) -> bool:
        """True if a value is an array of its own that may be made in tiles, and more than once."""
        storage = stage.buf.storage
        return (storage.role == "arena" and self.regions[storage] == {stage.buf}
                and self.makers[stage.buf] == [stage] and stage.kind in ("map", "contract")
                and stage.node.op not in KEPT
                and not any(isinstance(e, Check) for e in walk(stage.expr)))


def find_chain(plan: Plan, uses: Uses, start: Stage) -> Chain | None:
    """The chain of a product of rows and columns; None if it does not keep to the two axes."""
    left, right, _, _ = start.sides()
    rows, columns = ([v for v in side if v.extent > 1] for side in (left, right))
    if len(rows) != 1 or len(columns) != 1:
        return None
    chain = Chain({start: rows[0]}, {start: columns[0]})
    waiting = [start]
    while waiting:
        found = joined(chain, uses, waiting.pop())
        if found is None:
            return None
        for s, (row, column) in found:
            if s not in chain.rows:
                chain.rows[s], chain.columns[s] = row, column
                waiting.append(s)
            elif chain.rows[s] is not row or chain.columns[s] is not column:
                return None
    add_between(plan, chain)
    chain.body = sorted(chain.rows, key=uses.order.__getitem__)
    return chain if is_whole(plan, chain) else None


def add_between(plan: Plan, chain: Chain) -> None:
    """Add what computes, for each row, from sums over columns what members read."""
    made = {s.buf: s for s in chain.rows if not chain.wide(s) and chain.rows[s] in s.axes}
    needed = {p for s in chain.rows for p in s.producers}
    found: dict[Stage, Var] = {}
    for s in plan.stages:
        if s in chain.rows or s.kind != "map" or s.buf.storage.role != "arena":
            continue
        rows = {r.index[m.axes.index(v)].as_var() for r in s.reads
                for m in [made.get(r.buf)] if m is not None
                for v in [found.get(m) or chain.rows[m]]}
        (row,) = rows if len(rows) == 1 else (None,)
        if row is not None and row in s.axes:
            found[s] = row
            made[s.buf] = s
    for s in reversed(tuple(found)):
        if s in needed:
            chain.rows[s] = found[s]
            needed.update(s.producers)


Place = tuple[Stage, tuple[Var, Var]]


def joined(chain: Chain, uses: Uses, stage: Stage) -> list[Place] | None:
    """The stages that belong to a chain because a member does, with their rows and columns; None
    if one of them runs otherwise."""
    if stage.kind == "scatter" or stage.hoist is not None or stage.blocks or stage.limits:
        return None
    found: list[Place] = []
    row, column = chain.rows[stage], chain.columns[stage]
    if chain.wide(stage):
        if not uses.may_be_tiled(stage):
            return None
        dims = stage.axes.index(row), stage.axes.index(column)
        for reader in uses.readers.get(stage.buf, ()):
            for read in (r for r in reader.reads if r.buf is stage.buf):
                mine, across = (read.index[d].as_var() for d in dims)
                if mine is None or across is None or read.guard:
                    return None
                found.append((reader, (mine, across)))
    for read in stage.reads:
        makers = uses.makers.get(read.buf, ())
        if {row, column} <= {v for i in read.index for v in i.free_vars()} and makers:
            at = {i.as_var(): axis for i, axis in zip(read.index, makers[0].axes)}
            if len(makers) > 1 or read.guard or row not in at or column not in at:
                return None
            found.append((makers[0], (at[row], at[column])))
    return found


def is_whole(plan: Plan, chain: Chain) -> bool:
    """True if members wait for nothing that waits for members, sums over rows are read by none of
    them, and no hint is about them."""
    members, behind = set(chain.body), set[Stage]()
    sums = {s for s in chain.body if chain.rows[s] in s.red}
    for s in plan.stages:
        waits = {*s.producers, *s.after}
        if s in members:
            if not waits.isdisjoint(behind) or not sums.isdisjoint(waits):
                return False
        elif not (waits.isdisjoint(members) and waits.isdisjoint(behind)):
            behind.add(s)
    return not any(s.node in hint.members for hint in plan.hints for s in chain.body)


def wide_bytes(stage: Stage) -> int:
    """Bytes of a product for one index of its batch axes."""
    left, right, _, _ = stage.sides()
    return elements(left) * elements(right) * stage.dtype.itemsize


def operand_bytes(stage: Stage) -> int:
    """Bytes of the operands of a product for one index of its batch axes."""
    left, right, _, depth = stage.sides()
    return (elements(left) + elements(right)) * elements(depth) * stage.dtype.itemsize


def runs_at(read: Read, axes: tuple[Var, ...]) -> bool:
    """True if a value is read at the variables of a stage, in their order."""
    return not read.guard and read.index == tuple(map(Affine.of, axes))
