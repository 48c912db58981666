"""Blocks of rows of chained products on the grid, where batches are too few to keep a GPU busy.

Attention has a loop over blocks of rows for each head. Where heads are fewer than blocks that run
at once, each of them is divided into parts, which take the blocks of rows in turns, so that all
have as much to do where later rows have more columns. What comes before the loop, each part does
for itself. Sums over rows, as gradients of keys are, have a place for each part; the end of the
kernel adds these up, in order.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from tinyc.codegen.parallel import is_split, own_registers
from tinyc.codegen.primitives import around_all, renamed
from tinyc.codegen.rebase import accesses
from tinyc.ir.cost import elements
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Apply,
    Const,
    Contraction,
    Expr,
    For,
    Load,
    LoopKernel,
    Stmt,
    Storage,
    Store,
    holds,
    loads_of,
    statements,
    stored_in,
    substitute_stmt,
    transform,
)
from tinyc.ir.ops import Op
from tinyc.ir.program import Target

# Sums over rows have so many parts at most, or as many as take so many bytes.
MOST_SUMS, SUMS_BYTES = 8, 512 << 20


@dataclass
class Rows:
    """The loops around, which are independent; what comes before the loop over blocks of rows; that
    loop; and for each sum over rows the statement before that clears it."""

    outer: list[For]
    before: tuple[Stmt, ...]
    loop: For
    sums: dict[Storage, Stmt]

    def parts(self, target: Target) -> int:
        """How many parts fill the machine: half of its blocks where sums have a place for each."""
        n, wanted = self.loop.var.extent, target.chunks
        most = n
        if self.sums:
            fits = SUMS_BYTES // sum(s.nbytes for s in self.sums)
            wanted, most = wanted // 2, min(n, max(MOST_SUMS, fits))
        around = elements([loop.var for loop in self.outer])
        found = [p for p in range(1, most + 1) if n % p == 0]
        return next((p for p in found if around * p >= wanted), found[-1])


def in_parts(kernel: LoopKernel, target: Target) -> LoopKernel:
    """The kernel with its blocks of rows in parts on the grid; as it is where there are none, or
    where batches are enough."""
    rows = find_rows(kernel)
    parts = 1 if rows is None else rows.parts(target)
    if rows is None or parts == 1:
        return kernel
    part, inner = Var("part", parts), Var(rows.loop.var.name, rows.loop.var.extent // parts)
    block = Affine.of(inner) * parts + (parts - 1) - Affine.of(part)  # most columns first
    loop = For(inner, tuple(substitute_stmt(s, {rows.loop.var: block}) for s in rows.loop.body))
    places = {s: Storage(f"{s.name}_parts", parts * s.size, s.dtype, "arena") for s in rows.sums}
    body = transform((*rows.before, loop), lambda s: moved_to(s, places, part))
    finish = tuple(added(rows.outer, clear, places[s], parts) for s, clear in rows.sums.items())
    around = (For(part, around_all(rows.outer, body)),)
    return replace(kernel, body=around, finish=(*kernel.finish, *finish))


def find_rows(kernel: LoopKernel) -> Rows | None:
    """The loop over blocks of rows, if any order of its iterations is legal but for sums."""
    outer: list[For] = []
    body = kernel.body
    while len(body) == 1 and isinstance(body[0], For) and body[0].limit is None:
        outer.append(body[0])
        body = body[0].body
    if len(body) < 2:
        return None
    *before, loop = body
    if not isinstance(loop, For) or loop.limit is not None or kernel.chunk in used_by(kernel.body):
        return None
    if not holds((loop,), Contraction) or holds(tuple(before), Contraction):
        return None
    sums = sums_over(loop, tuple(before))
    return None if sums is None else Rows(outer, tuple(before), loop, sums)


def used_by(body: tuple[Stmt, ...]) -> set[Var]:
    """The variables that indices depend on."""
    return {v for s in statements(body) for _, i in accesses(s) for v in i.free_vars()}


def sums_over(loop: For, before: tuple[Stmt, ...]) -> dict[Storage, Stmt] | None:
    """What a loop adds to memory in several iterations, with the statement that clears it; None if
    the iterations, or what comes before, may not be done in several places."""
    sums: dict[Storage, Stmt] = {}
    own = own_registers((*before, loop))
    inner = {v for s in statements(loop.body) for v in variables_of(s)}
    touched: dict[Storage, list[Affine]] = {}
    for s in statements(loop.body):
        for storage, index in accesses(s):
            touched.setdefault(storage, []).append(index)
    for storage in stored_in(loop.body):
        if storage in own_registers(loop.body) or (is_made_anew(storage, loop.body, before) and all(
                loop.var not in i.free_vars() for i in touched[storage])):
            continue
        if storage in own or storage.role == "scratch":
            return None
        if not is_split(loop.var, touched[storage], inner):
            clear = next((s for s in before if clears(s, storage)), None)
            if clear is None or not only_added(loop.body, storage):
                return None
            sums[storage] = clear
        elif storage in {x.storage for s in statements(before) for x in loads_of(s)}:
            return None
    others = [s for s in before if s not in sums.values()]
    kept = {s for s in stored_in(tuple(others)) if s.role not in ("register", "scratch")}
    return None if kept or uses_any(tuple(others), set(sums)) else sums


def is_made_anew(storage: Storage, body: tuple[Stmt, ...], before: tuple[Stmt, ...]) -> bool:
    """True for a scratch array that an iteration stores before it adds to it, if it does."""
    first = next(s for s in statements(body) if isinstance(s, Store) and s.storage is storage)
    return (storage.role == "scratch" and first.accumulate is None
            and not uses_any(before, {storage}))


def variables_of(stmt: Stmt) -> tuple[Var, ...]:
    """The variables over which a statement itself loops."""
    if isinstance(stmt, Contraction):
        return (*stmt.rows, *stmt.cols, *stmt.depth)
    return (stmt.var,) if isinstance(stmt, For) else ()


def uses_any(body: tuple[Stmt, ...], storages: set[Storage]) -> bool:
    """True if statements touch one of some storages."""
    return any(storage in storages for s in statements(body) for storage, _ in accesses(s))


def only_added(body: tuple[Stmt, ...], storage: Storage) -> bool:
    """True if statements do nothing with a storage but add to it."""
    return all(isinstance(s, Store) and s.accumulate == "sum"
               and not any(x.storage is storage for x in loads_of(s))
               for s in statements(body) if uses_any((replace(s, body=()) if isinstance(
                   s, (For, Contraction)) else s,), {storage}))


def clears(stmt: Stmt, storage: Storage) -> bool:
    """True for loops that store zeros to elements of a storage, and nothing else."""
    while isinstance(stmt, For) and len(stmt.body) == 1 and stmt.limit is None:
        stmt = stmt.body[0]
    return (isinstance(stmt, Store) and stmt.storage is storage and not stmt.accumulate
            and isinstance(stmt.value, Const) and stmt.value.value == 0)


def moved_to(stmt: Stmt, places: dict[Storage, Storage], part: Var) -> tuple[Stmt, ...]:
    """A statement that stores to the place of its part."""
    if not isinstance(stmt, Store) or stmt.storage not in places:
        return (stmt,)
    index = stmt.index + Affine.of(part) * stmt.storage.size
    return (replace(stmt, storage=places[stmt.storage], index=index),)


def added(outer: list[For], clear: Stmt, places: Storage, parts: int) -> Stmt:
    """Loops over all that was cleared, which add the parts up."""
    def total(stmt: Stmt) -> tuple[Stmt, ...]:
        if not isinstance(stmt, Store):
            return (stmt,)
        size = places.size // parts
        value: Expr = Load(places, stmt.index)
        for k in range(1, parts):
            more = Load(places, stmt.index + k * size)
            value = Apply(Op.ADD, (value, more), places.dtype)
        return (replace(stmt, value=value),)

    (made,) = renamed(around_all([replace(loop, kind="serial") for loop in outer],
                                 transform((clear,), total)))
    return made
