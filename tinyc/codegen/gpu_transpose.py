"""Maps that read along one axis and store along another, on GPUs: in tiles of memory on the chip.

Neighbouring threads read neighbours, and after all have waited they store neighbours. Rows of a
tile are one element longer than a row of banks, so that its columns lie in banks of their own.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tinyc.codegen.spread import Division
from tinyc.codegen.transpose import Crossing, match
from tinyc.ir.dtype import bool_
from tinyc.ir.index import Affine, Var, unravel
from tinyc.ir.loop import (
    Barrier,
    Expr,
    For,
    If,
    Load,
    Stmt,
    Storage,
    Store,
    Within,
    rewrite,
    substitute_load,
    substitute_stmt,
)
from tinyc.ir.program import Target

SIDE = 32
# A narrower axis is read as well as it can be without a tile.
NARROWEST = 8


def in_tiles(loop: Stmt, threads: int, target: Target) -> Division | None:
    """A nest at the root divided into tiles, a block for each; None where that is not its kind."""
    found = match(loop, target, Var("chunk", 1)) if isinstance(loop, For) else None
    if found is None or min(found.along.extent, found.against.extent) < NARROWEST:
        return None
    copies = {(x.storage, x.index): Storage(f"turned{n}", SIDE * (SIDE + 1), x.dtype, "shared")
              for n, x in enumerate(found.across)}
    if sum(s.nbytes for s in copies.values()) > target.shared:
        return None
    counts = [-(-v.extent // SIDE) if v in (found.along, found.against) else v.extent
              for v in (loop.var for loop in found.loops)]
    blocks = 1
    for n in counts:
        blocks *= n

    def make(block: Affine) -> tuple[Stmt, ...]:
        names = dict(zip((loop.var for loop in found.loops), unravel(block, counts)))
        return (*(load_tile(found, x, copies[x.storage, x.index], names) for x in found.across),
                Barrier(), store_tile(found, copies, names))

    return Division(0.0, blocks, threads, make)


def load_tile(nest: Crossing, x: Load, copy: Storage, names: Mapping[Var, Affine]) -> Stmt:
    """copy[row of `along`, column of `against`] = x, by threads along `against`."""
    i = Var("i", SIDE * SIDE)
    row, column = Affine.of(i) // SIDE, Affine.of(i) % SIDE
    at, guard = corner(nest, names, row, column)
    value = replace(substitute_load(x, at), guard=guard)
    return For(i, (Store(copy, row * (SIDE + 1) + column, value),), "thread")


def store_tile(nest: Crossing, copies: Mapping[tuple[Storage, Affine], Storage],
               names: Mapping[Var, Affine]) -> Stmt:
    """What the nest does, by threads along `along`; what lies across is read from its copies."""
    j = Var("j", SIDE * SIDE)
    row, column = Affine.of(j) % SIDE, Affine.of(j) // SIDE
    at, guard = corner(nest, names, row, column)

    def leaf(e: Expr) -> Expr:
        copy = copies.get((e.storage, e.index)) if isinstance(e, Load) else None
        return e if copy is None else Load(copy, row * (SIDE + 1) + column)

    body: tuple[Stmt, ...] = tuple(
        substitute_stmt(replace(s, value=rewrite(s.value, leaf, lambda a: a))
                        if isinstance(s, Store) else s, at) for s in nest.body)
    for inside in guard:
        body = (If(inside, body),)
    return For(j, body, "thread")


def corner(nest: Crossing, names: Mapping[Var, Affine], row: Affine,
           column: Affine) -> tuple[dict[Var, Affine], tuple[Within, ...]]:
    """(the variables at a place of a tile, the conditions under which they are in range)."""
    at = {v: place for v, place in names.items() if v not in (nest.along, nest.against)}
    guard = []
    for v, inside in ((nest.along, row), (nest.against, column)):
        at[v] = names[v] * SIDE + inside
        if v.extent % SIDE:
            guard.append(Within(at[v], 0, v.extent, 1, bool_))
    return at, tuple(guard)
