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
from tinyc.ir.loop import Apply, Const, Expr, Index, Read, Storage, walk
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

    `checked` are reads of operands that have to be moderate, with the product that reads them and
    which of its operands they are.
    """

    rows: dict[Stage, Var]
    columns: dict[Stage, Var]
    last: int
    checked: dict[Read, tuple[Stage, int]] = field(default_factory=dict)


# -- what may be left out ------------------------------------------------------------------------


def asks_indices(root: Expr) -> bool:
    """True if an expression compares loop variables."""
    return any(isinstance(e, Apply) and e.op in (Op.LT, Op.EQ) and None not in map(index_of, e.args)
               for e in walk(root))


def find_edge(plan: Plan, body: list[Stage], rows: dict[Stage, Var],
              columns: dict[Stage, Var]) -> Edge | None:
    """The edge that leaves out most and changes no result; None if there is none."""
    found = {m for s in columns if s in rows for m in edges(s.expr, rows[s], columns[s])}
    for last in sorted(m for m in found if m >= 0):
        edge = Edge(rows, columns, last)
        if Judge(plan, body, edge).allows():
            return edge
    return None


class Judge:
    """Follows ranges through a body, to see whether what lies beyond an edge adds nothing."""

    def __init__(self, plan: Plan, body: list[Stage], edge: Edge):
        self.plan, self.body, self.edge = plan, body, edge
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
            return self.stays_inside(stage)
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


def limit_columns(plan: Plan, body: list[Stage], edge: Edge, around: set[Var], size: int,
                  blocks: dict[Stage, Var], columns: dict[Stage, Var]) -> None:
    """End the loops over blocks of columns at the edge; `blocks` and `columns` are members'
    variables over blocks of rows and of columns, of `size` each."""
    some = body[0]
    outer = {plan.mapping[some].get(v, v): v for v in some.axes + some.red}
    loops = [u for u in outer if u in around and u.extent > 1]
    place = min(plan.stages.index(s) for s in body)
    checks = list(check_stages(plan, edge, loops))
    count = next(iter(columns.values())).extent
    beyond = -(-edge.last // size)
    gap = gap_stage(plan, some, checks, loops, blocks[some], count, beyond)
    plan.stages[place:place] = [*checks, gap]
    for stage, column in columns.items():
        block = blocks[stage]
        index = (*(own(plan, stage, u) for u in loops), Affine.of(block))
        read = Read(gap.buf, index)
        used = frozenset(v for i in index for v in i.free_vars())
        missing = Affine.of(Data(read, count - beyond, used))
        stage.limits = {column: Affine.of(block) + 1 + beyond + missing}
        stage.reads = [*stage.reads, read]
        stage.producers = [*stage.producers, gap]


def own(plan: Plan, stage: Stage, loop: Var) -> Affine:
    """The variable of a stage that runs as a loop."""
    names = plan.mapping[stage]
    return Affine.of(next(v for v in (*stage.axes, *stage.red) if names.get(v, v) is loop))


def check_stages(plan: Plan, edge: Edge, loops: list[Var]) -> Iterator[Stage]:
    """For each operand that has to be moderate the sum of its squares, for each of the loops."""
    first = 1 + max(s.number for s in plan.stages)
    done: set[tuple] = set()
    for read, (stage, position) in edge.checked.items():
        names = plan.mapping[stage]
        axes = {u: Var(f"{u.name}c", u.extent) for u in loops}
        fresh: dict[Var, Var] = {}
        flat = read.buf.address(read.index)
        for v in sorted(flat.free_vars(), key=lambda v: (-abs(flat.coeff(v)), v.serial)):
            fresh[v] = axes.get(names.get(v, v)) or Var(f"{v.name}c", v.extent)
        red = tuple(v for v in fresh.values() if v not in axes.values())
        key = (read.buf, tuple(shape_of(i, fresh, axes) for i in read.index))
        if key in done:
            continue
        done.add(key)
        number = first + len(done) - 1
        where = {v: Affine.of(u) for v, u in fresh.items()}
        x = Read(read.buf, tuple(i.substitute(where) for i in read.index))
        square = Apply(Op.MUL, (x, x), read.dtype)
        makers = [s for s in stage.producers if s.buf.storage is read.buf.storage]
        operand = stage.node.src[position]
        source = node(Op.REDUCE, (operand,), ("sum", tuple(range(len(operand.shape)))),
                      like=stage.node)
        yield new_stage(plan, number, source, tuple(axes.values()), red, "sum", square, [x], makers)


def shape_of(index: Affine, fresh: dict[Var, Var], axes: dict[Var, Var]) -> tuple:
    """What two indices have in common that run over the same elements."""
    names = {v: k for k, v in enumerate(axes.values())}
    return index.const, tuple(sorted(
        (c, names.get(fresh[a], -a.extent)) if isinstance(a, Var) else (c, -id(a))
        for a, c in index.terms))


def gap_stage(plan: Plan, some: Stage, checks: list[Stage], loops: list[Var], block: Var,
              count: int, beyond: int) -> Stage:
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
    number = 1 + max(s.number for s in (*plan.stages, *checks))
    return new_stage(plan, number, name, axes, (), "map", expr, reads, checks)


def new_stage(plan: Plan, number: int, source: Node, axes: tuple[Var, ...], red: tuple[Var, ...],
              kind: str, expr: Expr, reads: list[Read], producers: list[Stage]) -> Stage:
    """A stage that stores a value of its own in the arena."""
    shape = tuple(v.extent for v in axes)
    storage = Storage(f"t{len(plan.storages)}", math.prod(shape), expr.dtype, "arena")
    plan.storages.append(storage)
    buf = Buf(storage, shape, row_major(shape))
    return Stage(number, source, buf, axes, red, kind, expr, reads, (), producers=producers)
