"""Chains of products tile by tile, and tiles made again for each loop over them.

A chain whose rows and columns are cut (`schedule.online`) runs, for each block of rows, in loops
over blocks of columns. What sums columns is complete after its loop; what reads that and tiles runs
in the next loop, for which the tiles are made again.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tinyc.ir.index import Affine, Data, Var
from tinyc.ir.loop import Apply, Expr, Read, Storage
from tinyc.ir.ops import Op
from tinyc.ir.plan import Buf, Plan, Stage, row_major
from tinyc.schedule.order import before_readers
from tinyc.schedule.remake import read_from, repeated
from tinyc.schedule.skip import own


@dataclass
class Redo:
    """A loop over blocks of columns that runs for some blocks of rows alone: `count` says how many
    blocks of columns, which are all or none; `sums` are what it is for."""

    count: Stage
    sums: set[Stage] = field(default_factory=set)


@dataclass
class Tiling:
    """A chain that is cut; `rows` and `columns` are each member's variables over blocks, `loops`
    those around all members.

    `parts` are sums of one block of columns; `ends`, which may have no columns at all, run between
    the loops over blocks of columns.
    """

    plan: Plan
    body: list[Stage]
    rows: dict[Stage, Var]
    columns: dict[Stage, Var]
    loops: list[Var]
    parts: set[Stage] = field(default_factory=set)
    ends: set[Stage] = field(default_factory=set)
    redo: Redo | None = None
    start: int = 0

    def number(self) -> int:
        """A number for a new member."""
        return 1 + max(s.number for s in (*self.plan.stages, *self.body))

    def is_tile(self, stage: Stage) -> bool:
        """True if a member is made tile by tile, and may be made so again."""
        return (stage not in self.parts and stage not in self.ends
                and self.rows[stage] in stage.axes and self.columns[stage] in stage.axes)

    def sums_columns(self, stage: Stage) -> bool:
        """True if a member is complete only after its loop over blocks of columns."""
        return stage not in self.ends and self.columns[stage] in stage.red

    def again(self, stage: Stage) -> Stage:
        """A copy of a member, as a member."""
        copy = repeated(self.plan, stage, self.number())
        names = dict(zip((*stage.axes, *stage.red), (*copy.axes, *copy.red)))
        self.rows[copy], self.columns[copy] = names[self.rows[stage]], names[self.columns[stage]]
        shared = self.plan.mapping[stage]
        self.plan.mapping[copy] = {u: shared.get(v, v) for v, u in names.items()}
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

    def block_value(self, part: Stage, like: Stage) -> Stage:
        """A member with a value for each row and block of columns, as a part has; it bears the name
        of another one."""
        stage = self.again(part)
        stage.node, stage.members = like.node, ()
        stage.kind, stage.red = "map", ()
        self.ends.add(stage)
        return stage

    def add_end(self, stage: Stage, row: Var) -> None:
        """Add a stage that runs between loops over blocks of columns."""
        self.body.append(stage)
        self.rows[stage] = row
        self.ends.add(stage)

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
        if t.redo is not None and k == level[t.redo.count] and s not in t.ends:
            run_if(t, version, t.redo.count)
    t.plan.storages = [x for x in t.plan.storages if x not in {s.buf.storage for s in dead}]
    t.body = [s for s in t.body if s not in dead]
    wait_for_loops(t, level)
    t.body = sorted_by_need(t.body)
    t.body.sort(key=lambda s: 2 * level[s] - (s in t.ends))
    users = users_of(t)
    first = {s for s in t.body if s.kind == "contract" and users.keys().isdisjoint(s.producers)}
    t.body = before_readers(t.body, users, first)


def levels_of(t: Tiling) -> dict[Stage, int]:
    """In which of the loops over blocks of columns each member runs; for ends, before which. A loop
    that may be left out has its own sums alone."""
    level = need_levels(t, t.body, {})
    if t.redo is not None:
        taken, own_sums = level[t.redo.count], t.redo.sums
        others = {s: taken for s in t.body
                  if not t.is_tile(s) and s not in t.ends and s not in own_sums}
        level = need_levels(t, t.body, others)
    return level


def need_levels(t: Tiling, body: list[Stage], taken: Mapping[Stage, int]) -> dict[Stage, int]:
    """The first loop in which each member has what it needs, but for one that is taken."""
    level: dict[Stage, int] = {}
    for s in body:
        first = max((level[p] + (t.sums_columns(p) or (s in t.ends and p not in t.ends))
                     for p in s.producers if p in level), default=0)
        level[s] = first + (taken.get(s) == first)
    return level


def run_if(t: Tiling, stage: Stage, count: Stage) -> None:
    """Let a member run for as many blocks of columns as another one says."""
    index = (*(own(t.plan, stage, u) for u in t.loops), Affine.of(t.rows[stage]))
    read = Read(count.buf, index)
    used = frozenset(v for i in index for v in i.free_vars())
    column = t.columns[stage]
    stage.limits = {column: Affine.of(Data(read, column.extent + 1, used))}
    stage.reads = [*stage.reads, read]
    stage.producers = [*stage.producers, count]


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
