"""Sums by index on GPUs, without atomics: each block owns rows of the result, and looks for them.

A block is one warp. It reads the indices of a warp's worth of updates at a time; where one of them
is of its rows, it adds that update's row, in the order of the updates, so the bits are the same on
every run. Indices are read by each block, updates once.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinyc.ir.cost import elements
from tinyc.ir.dtype import bool_, i32, i64
from tinyc.ir.index import Affine, Data, Var, unravel
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Barrier,
    Combine,
    Const,
    Expr,
    For,
    If,
    Index,
    Load,
    Stmt,
    Storage,
    Store,
    converted,
)
from tinyc.ir.ops import Op
from tinyc.ir.plan import Stage
from tinyc.ir.program import Target

ZERO = Affine.const_of(0)
# Columns of a block, and about how many blocks there should be.
COLUMNS, BLOCKS = 128, 2112
Concrete = Callable[[Expr, dict[Var, Affine]], Expr]


@dataclass(frozen=True)
class Rows:
    """A scatter by rows: which dimension of the result data choose, the variables that choose, and
    those that run along the rest."""

    stage: Stage
    dim: int
    which: tuple[Var, ...]
    along: tuple[Var, ...]


def rows_of(stage: Stage) -> Rows | None:
    """How a scatter is one by rows: one dimension is a number from data, the others are variables
    that the number does not depend on. None if it is of another kind."""
    chosen = [d for d, i in enumerate(stage.target) if i.data()]
    if len(chosen) != 1:
        return None
    (dim,) = chosen
    terms = stage.target[dim].terms
    if len(terms) != 1 or terms[0][1] != 1 or not isinstance(terms[0][0], Data):
        return None
    rest = [i.as_var() for d, i in enumerate(stage.target)
            if d != dim and stage.buf.shape[d] != 1]
    along = tuple(v for v in rest if v is not None)
    which = tuple(v for v in stage.red if v not in along)
    if len(along) < len(rest) or len(set(along)) < len(along) or (
            stage.target[dim].free_vars() & set(along)) or stage.target[dim].const:
        return None
    if not elements((*which, *along)) or 0 in stage.buf.shape:
        return None
    return Rows(stage, dim, which, along)


class RowScatter:
    """Makes the statements of a scatter by rows."""

    def __init__(self, rows: Rows, target: Target, concrete: Concrete, note: str) -> None:
        self.rows, self.concrete, self.note = rows, concrete, note
        self.warp = target.warp
        self.updates, columns = elements(rows.which), elements(rows.along)
        height = rows.stage.buf.shape[rows.dim]
        parts = max(1, -(-columns // COLUMNS))
        self.size = max(1, -(-height * parts // BLOCKS))
        self.blocks = max(1, -(-height // self.size) * parts)
        self.block = Var("block", self.blocks)
        self.first = Affine.of(self.block) // parts * self.size
        self.column = Affine.of(self.block) % parts * COLUMNS
        self.width = min(columns, COLUMNS)
        self.columns, self.height = columns, height

    def body(self) -> tuple[Stmt, ...]:
        """All of it."""
        row, dtype = Var("row", self.size), self.rows.stage.dtype
        zero = Const(dtype.np.type(0).item(), dtype)
        clear = self.along(lambda at: self.store(self.first + Affine.of(row), at, zero, None))
        limit = None if self.height % self.size == 0 else self.height - self.first
        start = For(row, (clear,), "serial", limit)
        return (For(self.block, (start, self.tiles()), "chunk"),)

    def finish(self) -> tuple[Stmt, ...]:
        """Nothing is left."""
        return ()

    def along(self, make: Callable[[Affine], Stmt]) -> For:
        """A statement for each column of the block, by threads."""
        c = Var("column", self.width)
        limit = None if self.columns % self.width == 0 else self.columns - self.column
        return For(c, (make(self.column + Affine.of(c)),), "thread", limit)

    def names(self, update: Affine, at: Affine | None = None) -> dict[Var, Affine]:
        """The loop variables of an update, and of a column of it."""
        which = self.rows.which
        found = dict(zip(which, unravel(update, [v.extent for v in which])))
        if at is not None:
            found.update(self.digits(at))
        return found

    def digits(self, at: Affine) -> dict[Var, Affine]:
        """The variables along the rows at a column."""
        return dict(zip(self.rows.along, unravel(at, [v.extent for v in self.rows.along])))

    def store(self, row: Affine, at: Affine, value: Expr, how: str | None) -> Store:
        """A store to the result."""
        digits, stage = self.digits(at), self.rows.stage
        index = tuple(row if d == self.rows.dim else i.substitute(digits)
                      for d, i in enumerate(stage.target))
        return Store(stage.buf.storage, stage.buf.address(index), value, how, self.note)

    def tiles(self) -> For:
        """For a warp of updates at a time: read which rows they are of; add those of the block."""
        tile = Var("tile", -(-self.updates // self.warp))
        lane, u = Var("lane", self.warp), Var("u", self.warp)
        left = self.updates - Affine.of(tile) * self.warp
        limit = None if self.updates % self.warp == 0 else left
        found = Storage("found", self.warp, i64, "shared")
        near = Storage("near", 1, i32, "register")
        update = Affine.of(tile) * self.warp
        number = self.concrete(Index(self.rows.stage.target[self.rows.dim], i64),
                               self.names(update + Affine.of(lane)))
        look = For(lane, (Store(found, Affine.of(lane), number),
                          Store(near, ZERO, converted(self.is_mine(Load(found, Affine.of(lane))),
                                                      i32))), "thread", limit)
        row = Affine.of(Data(Load(found, Affine.of(u)), self.height, frozenset((u,))))
        add = self.along(lambda at: self.store(row, at, self.concrete(
            self.rows.stage.expr, self.names(update + Affine.of(u), at)), "sum"))
        each = For(u, (If(self.is_mine(Load(found, Affine.of(u))), (add,)),), "serial", limit)
        any_ = Apply(Op.LT, (Const(0, i32), Load(near, ZERO)), bool_)
        return For(tile, (Alloc(near), Store(near, ZERO, Const(0, i32)), look,
                          Combine(near, "max"), Barrier(), If(any_, (each,)), Barrier()))

    def is_mine(self, row: Expr) -> Expr:
        """True if a row is of the block."""
        first, end = Index(self.first, i64), Index(self.first + self.size, i64)
        below = Apply(Op.LT, (row, first), bool_)
        return Apply(Op.AND, (Apply(Op.EQ, (below, Const(False, bool_)), bool_),
                              Apply(Op.LT, (row, end), bool_)), bool_)
