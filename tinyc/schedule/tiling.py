"""Chains of products tile by tile: softmax in parts, and tiles made again for each loop over them.

A chain whose rows and columns are cut (`schedule.online`) runs, for each block of rows, in loops
over blocks of columns. What sums columns is complete after its loop; what reads that and tiles runs
in the next loop, for which the tiles are made again.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tinyc.ir.dtype import bool_
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import Apply, Const, Expr, Read, Storage, substitute, walk
from tinyc.ir.ops import Op
from tinyc.ir.plan import Buf, Plan, Stage, row_major
from tinyc.schedule.chains import runs_at
from tinyc.schedule.order import before_readers
from tinyc.schedule.remake import read_from, repeated


@dataclass
class Tiling:
    """A chain that is cut; `rows` and `columns` are each member's variables over blocks.

    `parts` are sums of one block of columns; `ends`, which may have no columns at all, run between
    the loops over blocks of columns.
    """

    plan: Plan
    body: list[Stage]
    rows: dict[Stage, Var]
    columns: dict[Stage, Var]
    parts: set[Stage] = field(default_factory=set)
    ends: set[Stage] = field(default_factory=set)
    start: int = 0

    def is_tile(self, stage: Stage) -> bool:
        """True if a member is made tile by tile, and may be made so again."""
        return (stage not in self.parts and stage not in self.ends
                and self.rows[stage] in stage.axes and self.columns[stage] in stage.axes)

    def sums_columns(self, stage: Stage) -> bool:
        """True if a member is complete only after its loop over blocks of columns."""
        return stage not in self.ends and self.columns[stage] in stage.red

    def again(self, stage: Stage) -> Stage:
        """A copy of a member, as a member."""
        number = 1 + max(s.number for s in (*self.plan.stages, *self.body))
        copy = repeated(self.plan, stage, number)
        names = dict(zip((*stage.axes, *stage.red), (*copy.axes, *copy.red)))
        self.rows[copy], self.columns[copy] = names[self.rows[stage]], names[self.columns[stage]]
        self.body.append(copy)
        for s in self.plan.stages:  # what overwrites an operand waits for the copy, too
            if stage in s.after:
                s.after = [*s.after, copy]
        return copy

    def part(self, stage: Stage) -> Stage:
        """A copy of a sum, or maximum, over columns with a value for each block of them."""
        part = self.again(stage)
        column, at = self.columns[part], self.place(part)
        part.axes = (*part.axes[:at], column, *part.axes[at:])
        part.red = tuple(v for v in part.red if v is not column)
        shape = tuple(v.extent for v in part.axes)
        old = part.buf.storage
        storage = Storage(old.name, math.prod(shape), old.dtype, "arena")
        self.plan.storages[self.plan.storages.index(old)] = storage
        part.buf = Buf(storage, shape, row_major(shape))
        self.parts.add(part)
        return part

    def place(self, stage: Stage) -> int:
        """Where blocks of columns stand among the axes of a part: behind blocks of rows."""
        return stage.axes.index(self.rows[stage]) + 1

    def compute(self, stage: Stage, expr: Expr, *sources: Stage) -> None:
        """Give a member another expression; `sources` make what it reads anew."""
        stage.expr = expr
        stage.rewrite(lambda e: e)
        needed = {r.buf for r in stage.reads}
        stage.producers = [p for p in dict.fromkeys((*stage.producers, *sources))
                           if p.buf in needed]

    def combine(self, stage: Stage, part: Stage, weight: Read | None = None,
                *source: Stage) -> None:
        """Make a sum, or maximum, over columns from those of their blocks."""
        at, column = self.place(stage), self.columns[stage]
        axes = (*stage.axes[:at], column, *stage.axes[at:])
        expr: Expr = Read(part.buf, tuple(map(Affine.of, axes)))
        if weight is not None:
            expr = Apply(Op.MUL, (weight, expr), stage.dtype)
        stage.kind = "max" if stage.kind == "max" else "sum"
        stage.red, stage.blocks = (column,), ()
        self.compute(stage, expr, part, *source)
        self.ends.add(stage)


# -- softmax -------------------------------------------------------------------------------------


@dataclass
class Softmax:
    """The members exp(scores - shift) and their sums, where `shift` is a function of `top`, the
    maximum of a row."""

    top: Stage
    exps: Stage
    totals: list[Stage]
    scores: Read
    shift: Expr
    at: tuple[Affine, ...]


def find_softmax(t: Tiling, top: Stage) -> Softmax | None:
    """The softmax that a maximum belongs to."""
    if top.kind != "max" or not adds_rows(t, top):
        return None
    for exps in t.body:
        match exps.expr:
            case Apply(Op.EXP, (Apply(Op.SUB, (Read() as scores, shift)),)) if (
                    scores.buf is top.reads[0].buf and runs_at(scores, exps.axes)):
                at = only_read(shift, top)
                totals = [s for s in t.body if s.kind == "sum" and adds_rows(t, s)
                          and s.reads[0].buf is exps.buf]
                if at is not None and totals:
                    return Softmax(top, exps, totals, scores, shift, at)
    return None


def adds_rows(t: Tiling, stage: Stage) -> bool:
    """True for the sum, or maximum, of whole rows of tiles."""
    own = [v for v in stage.red if v.extent > 1]
    return (isinstance(stage.expr, Read) and not stage.expr.guard and t.sums_columns(stage)
            and t.rows[stage] in stage.axes and len(own) == 2)


def only_read(expr: Expr, stage: Stage) -> tuple[Affine, ...] | None:
    """Where an expression reads a stage's value, if that is all that it depends on."""
    leaves = [e for e in walk(expr) if not isinstance(e, (Apply, Const))]
    reads = [e for e in leaves if isinstance(e, Read) and e.buf is stage.buf and not e.guard]
    same = len(reads) == len(leaves) > 0 and all(r.index == reads[0].index for r in reads)
    return reads[0].index if same else None


def split_softmax(t: Tiling, found: Softmax) -> None:
    """Add up exponentials with a maximum for each block of columns, weighted at a row's end."""
    exps, dtype = found.exps, found.exps.dtype
    block = t.part(found.top)
    at = t.place(block)
    top = Read(block.buf, (*found.at[:at], Affine.of(t.columns[exps]), *found.at[at:]))
    t.combine(found.top, block)
    masked = Apply(Op.EQ, (top, Const(-math.inf, dtype)), bool_)  # -inf - -inf would be NaN
    shift = Apply(Op.WHERE, (masked, Const(0.0, dtype), top), dtype)
    local = t.again(exps)
    t.compute(local, moved(exponential(found.scores, shift), exps.axes, local.axes), block)
    weight = t.again(block)
    weight.node, weight.members = exps.node, ()
    weight.kind, weight.red = "map", ()
    places = [v for i in top.index for v in [i.as_var()]]
    t.compute(weight, moved(exponential(top, found.shift), places, weight.axes), block, found.top)
    t.ends.add(weight)
    for total in found.totals:
        index = total.reads[0].index
        part = t.part(total)
        read_from(part, {exps.buf: local})
        names = dict(zip(exps.axes, index))
        scale = Read(weight.buf, tuple(i.substitute(names) for i in top.index))
        t.combine(total, part, scale, weight)


def exponential(x: Expr, shift: Expr) -> Expr:
    """exp(x - shift)."""
    return Apply(Op.EXP, (Apply(Op.SUB, (x, shift), x.dtype),), x.dtype)


def moved(expr: Expr, old: Iterable[Var | None], new: Iterable[Var]) -> Expr:
    """An expression in other variables."""
    return substitute(expr, {v: Affine.of(u) for v, u in zip(old, new) if v is not None})


# -- loops over blocks of columns ----------------------------------------------------------------


def repeat_tiles(t: Tiling) -> None:
    """Make tiles again in each loop that reads them, and put members in the order of the loops."""
    t.body = sorted_by_need(t.body)
    level = levels_of(t)
    wanted = loops_that_read(t, level)
    dead = {s for s, loops in wanted.items() if not loops}
    made: dict[tuple[Stage, int], Stage] = {}
    sources = {s: tuple(s.producers) for s in t.body}
    for s in tuple(t.body):
        for k in sorted(wanted[s]):
            made[s, k] = s if k == min(wanted[s]) else t.again(s)
            level[made[s, k]] = k
    for (s, k), version in made.items():
        read_from(version, {p.buf: made[p, k] for p in sources[s] if (p, k) in made})
    t.plan.storages = [x for x in t.plan.storages if x not in {s.buf.storage for s in dead}]
    t.body = [s for s in t.body if s not in dead]
    wait_for_loops(t, level)
    t.body = sorted_by_need(t.body)
    t.body.sort(key=lambda s: 2 * level[s] - (s in t.ends))
    users = users_of(t)
    first = {s for s in t.body if s.kind == "contract" and users.keys().isdisjoint(s.producers)}
    t.body = before_readers(t.body, users, first)


def levels_of(t: Tiling) -> dict[Stage, int]:
    """In which of the loops over blocks of columns each member runs; for ends, before which."""
    level: dict[Stage, int] = {}
    for s in t.body:
        level[s] = max((level[p] + (t.sums_columns(p) or (s in t.ends and p not in t.ends))
                        for p in s.producers if p in level), default=0)
    return level


def loops_that_read(t: Tiling, level: Mapping[Stage, int]) -> dict[Stage, set[int]]:
    """In which of the loops over blocks of columns each member is wanted: none for what nobody
    reads any more."""
    wanted: dict[Stage, set[int]] = {}
    users = users_of(t)
    for s in reversed(t.body):
        wanted[s] = {k for u in users[s] for k in wanted[u]} if t.is_tile(s) else {level[s]}
    return wanted


def wait_for_loops(t: Tiling, level: Mapping[Stage, int]) -> None:
    """Let what begins a later loop wait for the end of the loops before: it would join them."""
    for s in t.body:
        if s not in t.ends and level[s] and not any(p in level for p in s.producers):
            s.after = [*s.after, *(e for e in t.body if (e in t.ends and level[e] <= level[s])
                                   or (t.sums_columns(e) and level[e] < level[s]))]


def users_of(t: Tiling) -> dict[Stage, list[Stage]]:
    """The members that wait for each of them."""
    users: dict[Stage, list[Stage]] = {s: [] for s in t.body}
    for s in t.body:
        for p in {*s.producers, *s.after} & users.keys():
            users[p].append(s)
    return users


def sorted_by_need(stages: list[Stage]) -> list[Stage]:
    """The stages in an order in which each comes after what it waits for, earlier ones first."""
    left, order = dict.fromkeys(stages), []
    while left:
        ready = next(s for s in left if not any(p in left for p in (*s.producers, *s.after)))
        del left[ready]
        order.append(ready)
    return order
