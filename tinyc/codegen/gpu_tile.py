"""The tile of a product that the threads of a block make together, as loop IR.

Both operands of a stretch of the depth are brought into shared memory (`gpu_operand.py`); each
thread keeps some of the tile's sums in registers (`gpu_sums.py`). While a stretch is multiplied,
the next ones are on their way: one in registers, or several by asynchronous stores.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinyc.codegen.gpu_operand import Mover, Side, both, inside, mover
from tinyc.codegen.gpu_shape import Shape
from tinyc.codegen.gpu_sums import Sums, WarpSums
from tinyc.codegen.panel import BEGINNING, in_tile
from tinyc.codegen.primitives import renamed
from tinyc.ir.cost import elements
from tinyc.ir.dtype import bool_
from tinyc.ir.index import Affine, Var, unravel
from tinyc.ir.loop import (
    Alloc,
    Await,
    Barrier,
    Contraction,
    For,
    If,
    Load,
    Stmt,
    Storage,
    Store,
    Within,
    substitute_stmt,
)


@dataclass
class Part:
    """Which part of a contraction a block makes: its first row and column, the stretches of the
    depth from `start` on, `stretches` of them, the last one for the whole product at `deep`."""

    row: Affine
    column: Affine
    start: Affine
    stretches: int
    left: Affine


def counts(c: Contraction) -> tuple[Affine, Affine, Affine]:
    """How many rows, columns and points of the depth a contraction has."""
    found = []
    for variables in (c.rows, c.cols, c.depth):
        found.append(c.limit(variables) or Affine.const_of(elements(variables)))
    return found[0], found[1], found[2]


def tile_statements(c: Contraction, shape: Shape, part: Part, suffix: str,
                    finish: Callable[[Affine, Affine, Load], tuple[Stmt, ...]]) -> list[Stmt]:
    """A tile of a contraction by all threads of a block.

    `finish` is given a row and a column, counted over all of them, that are there, and the sum.
    """
    rows, cols, points = counts(c)
    whole = points.is_const and points.const % shape.depth == 0
    deep, dtype = None if whole else points, shape.element(c)
    slots = min(shape.stages, part.stretches)
    a = mover(Side(c.a, c.rows, c.depth, rows, deep, part.row, shape.rows, f"a_{suffix}"), shape,
              dtype, slots)
    b = mover(Side(c.b, c.cols, c.depth, cols, deep, part.column, shape.cols, f"b_{suffix}"),
              shape, dtype, slots)
    make = WarpSums if shape.kind else Sums
    sums = make(shape, Storage(f"sums_{suffix}", shape.sums, c.tile.dtype, "register"),
                c.tile.dtype)
    body: list[Stmt] = [Alloc(m.held) for m in (a, b) if m.held]
    body += [*sums.clear(suffix), *stretches(a, b, sums, part, suffix)]
    thread = Var(f"t_{suffix}", shape.threads)

    def visit(row: Affine, column: Affine, at: Affine, lane: Var) -> tuple[Stmt, ...]:
        i, first = Affine.of(lane), part.column + column
        even = cols.is_const and cols.const % lane.extent == 0
        r, col = part.row + row, first + i
        done = finish(r, col, Load(sums.storage, at + i))
        guards = [*inside(r, rows, elements(c.rows)),
                  *inside(first if even else col, cols, elements(c.cols))]
        if guards and not even:
            done = (If(both(guards), done),)
        side_by_side = all(isinstance(s, Store) and not s.accumulate and s.index.coeff(lane) == 1
                           for s in done)
        loop = For(lane, done, "vector" if side_by_side else "unroll")
        return (If(both(guards), (loop,)),) if guards and even else (loop,)

    body.append(For(thread, (sums.each(thread, suffix, visit),), "thread"))
    return body


def stretches(a: Mover, b: Mover, sums: Sums, part: Part, suffix: str) -> list[Stmt]:
    """The loop down the depth: all slots but one are on their way while that one is multiplied."""
    shape, n = sums.shape, part.stretches
    ahead, zero = min(shape.stages - 1, n), BEGINNING
    arrived: list[Stmt] = [Await(ahead - 1)] if shape.asynchronous else []
    always = part.left.is_const and part.left.const >= n

    def present(s: Affine) -> list[Within]:
        return [] if always else inside(s, part.left, part.left.bounds()[1])

    out: list[Stmt] = []
    for i in range(ahead):
        t, at = Var(f"t{i}_{suffix}", shape.threads), Affine.const_of(i)
        start = part.start + i * shape.depth
        asks = (a.begin(t, start, at), b.begin(t, start, at), *a.end(t, at), *b.end(t, at))
        guards = present(at)
        out += [For(t, (If(both(guards), asks),) if guards else asks, "thread"), *arrived]
    t = Var(f"t{ahead}_{suffix}", shape.threads)
    if n == 1:
        only = For(t, (sums.multiply(a, b, t, zero, suffix),), "thread")
        return [*out, Barrier(), only, Barrier()]
    s = Var(f"s_{suffix}", n)
    now, then, later = (Affine.of(s) % a.slots, (Affine.of(s) + ahead) % a.slots,
                        Affine.of(s) + ahead)
    start = part.start + later * shape.depth
    product = sums.multiply(a, b, t, now, suffix)
    body: tuple[Stmt, ...] = (product,)
    if ahead < n:
        more = both([Within(Affine.of(s), 0, n - ahead, 1, bool_), *present(later)])
        ends = (*a.end(t, then), *b.end(t, then))
        body = (If(more, (a.begin(t, start, then), b.begin(t, start, then))), product,
                *([If(more, ends)] if ends else []))
    loop = For(s, (For(t, body, "thread"), *arrived, Barrier()), "serial",
               None if always else part.left)
    return [*out, Barrier(), loop]


def epilogue(c: Contraction, row: Affine, column: Affine, total: Load) -> tuple[Stmt, ...]:
    """The body of a contraction at a row and a column."""
    names = dict(zip(c.rows, unravel(row, tuple(v.extent for v in c.rows))))
    names.update(zip(c.cols, unravel(column, tuple(v.extent for v in c.cols))))
    body = renamed(tuple(substitute_stmt(s, names) for s in c.body))
    return tuple(in_tile(s, c.tile, total.storage, total.index) for s in body)
