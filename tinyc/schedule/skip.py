"""Leave out what a comparison of row and column makes zero: the far side of a causal mask.

Where `where(column <= row, x, -inf)` or the like stands between products, values beyond that edge
are known, and so are the terms of sums that they would give: zeros. Rows that are cut into blocks
(`schedule.block`) have their columns cut as well, and the loops over blocks of columns end at the
last one that a block of rows sees. Nothing here knows attention or a softmax.

A term is zero only if what it is multiplied with is neither infinite nor NaN. So the operands are
measured when the kernel runs: where one is not moderate, the loops have their whole range, and NaN
comes out where it always does.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from tinyc.ir.cost import elements
from tinyc.ir.dtype import bool_, i64
from tinyc.ir.index import Affine, Data, Var
from tinyc.ir.loop import Apply, Const, Expr, Index, Read, Storage, converted, walk
from tinyc.ir.node import Node, node
from tinyc.ir.ops import Op
from tinyc.ir.plan import Buf, Plan, Stage, row_major
from tinyc.schedule.ranges import ANYTHING, Range, Side, edges, index_of, range_of, summed

# Operands whose squares sum up to less than this are moderate: none is beyond 2 ** 40, so that
# products of some of them, summed over any length, stay finite.
MODERATE = 2.0 ** 80


@dataclass
class Edge:
    """What is left out: columns with `column - row > last`, of members that have such a variable.

    `loops` are those around all members. `checked` are reads of operands that have to be moderate,
    with the product that reads them and which of its operands they are. Members in `kept` are read
    by other kernels, too, and get their constant beyond the edge; `relies` are values that kernels
    before have kept so.
    """

    rows: dict[Stage, Var]
    columns: dict[Stage, Var]
    last: int
    loops: list[Var]
    checked: dict[Read, tuple[Stage, int]] = field(default_factory=dict)
    kept: dict[Stage, Kept] = field(default_factory=dict)
    relies: dict[Buf, Kept] = field(default_factory=dict)


@dataclass
class Kept:
    """What is known of a value in memory, if the operands in `checks` are moderate: on either side
    of its edge. `outer` are the dimensions along the loops of the kernel that makes it."""

    maker: Stage
    axes: tuple[Var, ...]
    outer: list[int]
    row: int
    column: int
    last: int
    within: Range
    beyond: Range
    checks: list[Stage] = field(default_factory=list)


# -- what may be left out ------------------------------------------------------------------------


def asks_indices(root: Expr) -> bool:
    """True if an expression compares loop variables."""
    return any(isinstance(e, Apply) and e.op in (Op.LT, Op.EQ) and None not in map(index_of, e.args)
               for e in walk(root))


def find_edge(plan: Plan, body: list[Stage], rows: dict[Stage, Var], columns: dict[Stage, Var],
              loops: list[Var], kept: dict[Buf, Kept]) -> Edge | None:
    """The edge that leaves out most and changes no result; None if there is none."""
    found = {m for s in columns if s in rows for m in edges(s.expr, rows[s], columns[s])}
    for last in sorted(m for m in found if m >= 0):
        edge = Edge(rows, columns, last, loops)
        if Judge(plan, body, edge, kept).allows():
            return edge
    return None


def outer_loops(plan: Plan, stage: Stage, around: set[Var]) -> list[Var]:
    """The loops around a body, in the order of a member's axes."""
    names = plan.mapping[stage]
    own = [names.get(v, v) for v in (*stage.axes, *stage.red)]
    return [u for u in own if u in around and u.extent > 1]


class Judge:
    """Follows ranges through a body, to see whether what lies beyond an edge adds nothing."""

    def __init__(self, plan: Plan, body: list[Stage], edge: Edge, kept: dict[Buf, Kept]):
        self.plan, self.body, self.edge, self.kept = plan, body, edge, kept
        self.made = {s.buf: s for s in body}
        self.place = {s: i for i, s in enumerate(plan.stages)}
        self.known: dict[Buf, tuple[Range, Range]] = {}

    def allows(self) -> bool:
        """True if every member is right when its columns end at the edge."""
        return all(map(self.member, self.body))

    def member(self, stage: Stage) -> bool:
        """Note what a member's value can be; False if it needs what lies beyond the edge."""
        column = self.edge.columns.get(stage)
        term, beyond = (self.term(stage, within) for within in (True, False))
        if column is None:
            self.known[stage.buf] = (self.total(stage, term),) * 2
            return True
        if self.edge.rows[stage] in stage.axes and column in stage.axes:
            self.known[stage.buf] = self.total(stage, term), self.total(stage, beyond)
            return self.stays_inside(stage) or self.can_keep(stage)
        self.known[stage.buf] = (self.total(stage, term),) * 2
        if stage.kind == "max":
            return beyond == Range(-math.inf, -math.inf)
        return stage.kind in ("sum", "contract") and beyond.is_zero

    def stays_inside(self, stage: Stage) -> bool:
        """True if only members read a value, and it needs no memory between kernels."""
        readers = [s for s in self.plan.stages if any(
            r.buf.storage is stage.buf.storage for r in s.reads)]
        return stage.buf.storage.role == "arena" and all(
            s in self.edge.columns and s.kind != "scatter" for s in readers)

    def can_keep(self, stage: Stage) -> bool:
        """True if a value that others read is one number beyond the edge, which can be stored."""
        within, beyond = self.known[stage.buf]
        writers = [s for s in self.plan.stages if s.buf.storage is stage.buf.storage]
        if beyond.lo != beyond.hi or beyond.nan or stage.kind != "map" or len(writers) > 1 or (
                stage.buf.storage.role != "arena"):
            return False
        names = [self.plan.mapping[stage].get(v, v) for v in stage.axes]
        if not all(u in names for u in self.edge.loops):
            return False
        self.edge.kept[stage] = Kept(
            stage, stage.axes, [names.index(u) for u in self.edge.loops],
            stage.axes.index(self.edge.rows[stage]), stage.axes.index(self.edge.columns[stage]),
            self.edge.last, within, beyond)
        return True

    def from_before(self, stage: Stage, read: Read, within: bool) -> Range:
        """What a read gives of a value that another kernel has kept, at the same edge."""
        value, names = self.kept[read.buf], self.plan.mapping[stage]
        at = [i.as_var() for i in read.index]
        own = [None if v is None else names.get(v, v) for v in (at[d] for d in value.outer)]
        pair = self.edge.rows[stage], self.edge.columns.get(stage)
        if own != self.edge.loops or (at[value.row], at[value.column]) != pair or (
                value.last != self.edge.last or read.guard):
            return ANYTHING
        self.edge.relies[read.buf] = value
        return value.within if within else value.beyond

    def term(self, stage: Stage, within: bool) -> Range:
        """What a member's expression can be on one side of the edge."""
        row, column, last = self.edge.rows[stage], self.edge.columns.get(stage), self.edge.last
        if column is None:
            side = Side(row, row, 0, 0, within)
        elif within:
            side = Side(row, column, 1 - row.extent, last, True)
        else:
            side = Side(row, column, last + 1, column.extent - 1, False)

        def known(read: Read) -> Range:
            return self.read(stage, read, within)

        return range_of(stage.expr, side, known, self.is_below_top)

    def read(self, stage: Stage, read: Read, within: bool) -> Range:
        """What a read gives; operands of products from outside are taken to be moderate."""
        if read.buf in self.made:
            return self.known[read.buf][0 if within else 1] if read.buf in self.known else ANYTHING
        if read.buf in self.kept:
            return self.from_before(stage, read, within)
        if stage.kind != "contract" or not self.can_check(stage, read):
            return ANYTHING
        self.edge.checked[read] = stage, stage.operands().index(read)
        most = math.sqrt(MODERATE)
        return Range(-most, most)

    def can_check(self, stage: Stage, read: Read) -> bool:
        """True if an operand is there before the body begins, and small beside the products."""
        first = min(self.place[s] for s in self.body)
        used = {v for i in read.index for v in i.free_vars()}
        pair = {self.edge.rows[stage], self.edge.columns.get(stage)}
        return not read.guard and not pair <= used and all(
            self.place[s] < first for s in stage.producers if s.buf.storage is read.buf.storage)

    def total(self, stage: Stage, term: Range) -> Range:
        """What a member's value is, if its terms are in a range."""
        if stage.kind in ("sum", "contract"):
            return summed(term, elements(stage.red), stage.dtype)
        return term

    def is_below_top(self, x: Expr, top: Expr) -> bool:
        """True if `x` reads an element of a row, and `top` the row's maximum."""
        if not isinstance(x, Read) or not isinstance(top, Read):
            return False
        maker = self.made.get(top.buf)
        if maker is None or maker.kind != "max" or not isinstance(maker.expr, Read):
            return False
        names = dict(zip(maker.axes, top.index))
        return maker.expr.buf is x.buf and not maker.expr.guard and all(
            i.as_var() in maker.red or i.substitute(names) == j
            for i, j in zip(maker.expr.index, x.index))


# -- ending loops at the edge --------------------------------------------------------------------


def limit_columns(plan: Plan, body: list[Stage], edge: Edge, size: int, blocks: dict[Stage, Var],
                  columns: dict[Stage, Var], done: dict[tuple, Stage]) -> None:
    """End the loops over blocks of columns at the edge; `blocks` and `columns` are members'
    variables over blocks of rows and of columns, of `size` each; `done` are checks there are."""
    some = body[0]
    place = min(plan.stages.index(s) for s in body)
    checks = dict.fromkeys(check_stages(plan, edge, done))
    new = [c for c in checks if c not in plan.stages]
    for value in edge.relies.values():
        checks.update(dict.fromkeys(value.checks))
    count = next(iter(columns.values())).extent
    beyond = -(-edge.last // size)
    gap = gap_stage(plan, some, list(checks), new, edge.loops, blocks[some], count, beyond)
    plan.stages[place:place] = [*new, gap]
    for stage, column in columns.items():
        end_at(plan, stage, column, gap, edge.loops, blocks[stage], 1 + beyond, count)
    for stage, value in edge.kept.items():
        value.checks = list(checks)
        fill_beyond(plan, stage, value, gap, columns[stage], blocks[stage], 1 + beyond)


def end_at(plan: Plan, stage: Stage, column: Var, gap: Stage, loops: list[Var], block: Var,
           more: int, count: int) -> None:
    """End a stage's loop over blocks of columns `more` blocks behind that of its rows."""
    index = (*(own(plan, stage, u) for u in loops), Affine.of(block))
    read = Read(gap.buf, index)
    used = frozenset(v for i in index for v in i.free_vars())
    missing = Affine.of(Data(read, count + 1 - more, used))
    stage.limits = {column: Affine.of(block) + more + missing}
    stage.reads = [*stage.reads, read]
    stage.producers = [*stage.producers, gap]


def fill_beyond(plan: Plan, stage: Stage, value: Kept, gap: Stage, column: Var, block: Var,
                more: int) -> None:
    """Store what a value is beyond the edge, in the blocks that its own loops leave out; from the
    last one on, since loops begin at 0."""
    fresh = {v: Var(f"{v.name}z", v.extent) for v in stage.axes}
    d, count = stage.axes.index(column), column.extent
    step = stage.buf.strides[d]
    turned = Buf(stage.buf.storage, stage.buf.shape,
                 (*stage.buf.strides[:d], -step, *stage.buf.strides[d + 1:]),
                 stage.buf.offset + (count - 1) * step)
    (limit,) = stage.limits.values()
    (read,) = limit.data()
    names = {v: Affine.of(u) for v, u in fresh.items()}
    mine = Read(gap.buf, tuple(i.substitute(names) for i in read.index))
    used = frozenset(v for i in mine.index for v in i.free_vars())
    missing = Affine.of(Data(mine, count + 1 - more, used))
    number = 1 + max(s.number for s in plan.stages)
    fill = Stage(number, stage.node, turned, tuple(fresh.values()), (), "map",
                 Const(value.beyond.lo, stage.dtype), [mine], (), producers=[gap],
                 limits={fresh[column]: count - more - Affine.of(fresh[block]) - missing})
    plan.stages.insert(plan.stages.index(stage) + 1, fill)
    for s in plan.stages:
        if stage in s.producers and s is not fill and gap not in s.producers:
            s.producers = [*s.producers, fill]


def own(plan: Plan, stage: Stage, loop: Var) -> Affine:
    """The variable of a stage that runs as a loop."""
    names = plan.mapping[stage]
    return Affine.of(next(v for v in (*stage.axes, *stage.red) if names.get(v, v) is loop))


def check_stages(plan: Plan, edge: Edge, done: dict[tuple, Stage]) -> Iterator[Stage]:
    """For each operand that has to be moderate the sum of its squares, for each of the loops."""
    number = 1 + max(s.number for s in plan.stages)
    for read, (stage, position) in edge.checked.items():
        names = plan.mapping[stage]
        axes = {u: Var(f"{u.name}c", u.extent) for u in edge.loops}
        fresh: dict[Var, Var] = {}
        flat = read.buf.address(read.index)
        for v in sorted(flat.free_vars(), key=lambda v: (-abs(flat.coeff(v)), v.serial)):
            fresh[v] = axes.get(names.get(v, v)) or Var(f"{v.name}c", v.extent)
        red = tuple(v for v in fresh.values() if v not in axes.values())
        key = (read.buf, tuple(shape_of(i, fresh, axes) for i in read.index),
               tuple(u.extent for u in edge.loops))
        if key in done:
            yield done[key]
            continue
        where = {v: Affine.of(u) for v, u in fresh.items()}
        x = Read(read.buf, tuple(i.substitute(where) for i in read.index))
        single = converted(x, read.dtype.wide)
        square = Apply(Op.MUL, (single, single), single.dtype)
        makers = [s for s in stage.producers if s.buf.storage is read.buf.storage]
        operand = stage.node.src[position]
        source = node(Op.REDUCE, (operand,), ("sum", tuple(range(len(operand.shape)))),
                      like=stage.node)
        done[key] = new_stage(plan, number, source, tuple(axes.values()), red, "sum", square, [x],
                              makers)
        number += 1
        yield done[key]


def shape_of(index: Affine, fresh: dict[Var, Var], axes: dict[Var, Var]) -> tuple:
    """What two indices have in common that run over the same elements."""
    names = {v: k for k, v in enumerate(axes.values())}
    return index.const, tuple(sorted(
        (c, names.get(fresh[a], -a.extent)) if isinstance(a, Var) else (c, -id(a))
        for a, c in index.terms))


def gap_stage(plan: Plan, some: Stage, checks: list[Stage], new: list[Stage], loops: list[Var],
              block: Var, count: int, beyond: int) -> Stage:
    """How many blocks of columns beyond the edge have to run all the same: none, if all operands
    are moderate."""
    axes = tuple(Var(f"{u.name}g", u.extent) for u in (*loops, block))
    reads = [Read(c.buf, tuple(map(Affine.of, axes[:-1]))) for c in checks]
    good: Expr = Const(True, bool_)
    for k, read in enumerate(reads):
        small = Apply(Op.LT, (read, Const(MODERATE, read.dtype)), bool_)
        good = Apply(Op.AND, (good, small), bool_) if k else small
    rest = Index(count - 1 - beyond - Affine.of(axes[-1]), i64)
    expr = Apply(Op.WHERE, (good, Const(0, i64), rest), i64)
    name = node(Op.LT, (checks[0].node, checks[0].node), like=some.node) if checks else some.node
    number = 1 + max(s.number for s in (*plan.stages, *new))
    return new_stage(plan, number, name, axes, (), "map", expr, reads, checks)


def new_stage(plan: Plan, number: int, source: Node, axes: tuple[Var, ...], red: tuple[Var, ...],
              kind: str, expr: Expr, reads: list[Read], producers: list[Stage]) -> Stage:
    """A stage that stores a value of its own in the arena."""
    shape = tuple(v.extent for v in axes)
    storage = Storage(f"t{len(plan.storages)}", math.prod(shape), expr.dtype, "arena")
    plan.storages.append(storage)
    buf = Buf(storage, shape, row_major(shape))
    return Stage(number, source, buf, axes, red, kind, expr, reads, (), producers=producers)
