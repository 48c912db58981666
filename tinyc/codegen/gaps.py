"""Rows that are too short for vectors, computed as one with the gaps between them.

A depthwise convolution of 7 x 7 places reads rows of a padded copy, 9 numbers apart, and stores
rows of 7. Seven numbers are no vector, but all 61 from the first place to the last are four: the
two of each gap are computed for nobody, and rows are copied out of the result.
"""
from __future__ import annotations

from dataclasses import replace

from tinyc.codegen import primitives as p
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Check,
    Expr,
    For,
    Load,
    Stmt,
    Storage,
    Store,
    loads,
    substitute_stmt,
    walk,
)
from tinyc.ir.program import Target


def over_gaps(stmt: Stmt, target: Target) -> tuple[Stmt, ...]:
    """Two loops over rows and columns, of reads whose rows lie farther apart than those stored.

    for i < H: for j < W: y[W*i + j] = f(x[P*i + j])
      ->   for k < P*(H - 1) + W: t[k] = f(x[k]);   for i < H: for j < W: y[W*i + j] = t[P*i + j]
    """
    if not isinstance(stmt, For) or len(stmt.body) != 1 or not isinstance(stmt.body[0], For):
        return (stmt,)
    outer, inner = stmt, stmt.body[0]
    if {outer.kind, inner.kind} != {"serial"} or outer.limit or inner.limit or p.has_loops(inner):
        return (stmt,)
    store = inner.body[-1] if inner.body else None
    pitch = pitch_of(inner.body, outer.var, inner.var)
    if pitch is None or not is_worth_it(outer, inner, pitch, target):
        return (stmt,)
    assert isinstance(store, Store)
    whole = Var(f"{inner.var.name}g", pitch * (outer.var.extent - 1) + inner.var.extent)
    rows = Storage(f"rows{p.fresh_number()}", whole.extent, store.storage.dtype, "scratch")
    names = {outer.var: Affine.const_of(0), inner.var: Affine.of(whole)}
    made = tuple(substitute_stmt(s, names) for s in inner.body[:-1])
    last = substitute_stmt(store, names)
    assert isinstance(last, Store)
    computed = For(whole, (*made, replace(last, storage=rows, index=Affine.of(whole))))
    at = Affine.of(outer.var) * pitch + Affine.of(inner.var)
    copied = replace(inner, body=(replace(store, value=Load(rows, at)),))
    return computed, replace(outer, body=(copied,))


def pitch_of(body: tuple[Stmt, ...], row: Var, column: Var) -> int | None:
    """How many columns a row of what statements read lies behind the one before, if that is the
    same for all, and if they store one value, at the end, that no other iteration reads."""
    *before, store = body or (None,)
    local = {s.storage for s in before if isinstance(s, Alloc)}
    if not isinstance(store, Store) or store.accumulate or store.streams or not all(
            isinstance(s, (Alloc, Store)) and s.storage in local for s in before):
        return None
    values = [s.value for s in body if isinstance(s, Store)]
    moving = [x for value in values for x in loads(value) if {row, column} & x.index.free_vars()]
    if any(isinstance(e, Check) or not is_plain(e, row, column) for v in values for e in walk(v)):
        return None
    if any(x.storage is store.storage for x in moving) or not store.index.is_linear_in(column):
        return None
    pitches = set()
    for x in moving:
        step, far = x.index.coeff(column), x.index.coeff(row)
        if step <= 0 or far % step:
            return None
        pitches.add(far // step)
    (pitch,) = pitches if len(pitches) == 1 else (0,)
    return pitch if pitch > column.extent and store.index.coeff(row) > 0 else None


def is_plain(e: Expr, row: Var, column: Var) -> bool:
    """True for what may be computed between rows, too: loads that move by steps, arithmetic."""
    if isinstance(e, Load):
        steady = e.index.is_linear_in(row) and e.index.is_linear_in(column)
        return steady and not e.guard and not any(e.index.data())
    return not hasattr(e, "index")


def is_worth_it(outer: For, inner: For, pitch: int, target: Target) -> bool:
    """True if rows with gaps have fewer vectors than rows alone, copies included."""
    rows, columns = outer.var.extent, inner.var.extent
    whole = pitch * (rows - 1) + columns
    work = sum(isinstance(e, Apply) for s in inner.body if isinstance(s, Store)
               for e in walk(s.value))
    apart = rows * vectors(columns, target.lanes)
    return target.lanes > 1 and 4 * whole <= target.l1 // 2 and (
        work * vectors(whole, target.lanes) + 2 * apart < work * apart)


def vectors(n: int, lanes: int) -> int:
    """So many operations compilers make of a loop: what is left has halves of vectors down to 4
    numbers, and then single numbers."""
    count, rest = divmod(n, lanes)
    lanes //= 2
    while lanes >= 4:
        count, rest, lanes = count + rest // lanes, rest % lanes, lanes // 2
    return count + rest
