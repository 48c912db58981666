"""What statements beside loops store and read again is kept in a register.

A mean or a deviation of a row that threads work on together then need not go through memory, for
which all of them would have to wait.
"""
from __future__ import annotations

from dataclasses import replace

from tinyc.codegen import primitives as p
from tinyc.ir.index import Affine
from tinyc.ir.loop import (
    Alloc,
    Expr,
    For,
    If,
    Load,
    Stmt,
    Storage,
    Store,
    loads_of,
    rewrite,
    statements,
    transform,
)

ZERO = Affine.const_of(0)


def forward_stores(stmt: Stmt) -> tuple[Stmt, ...]:
    """A loop whose body has loops beside stores that they read.

    x[i] = f; for j: y[j] = x[i]   ->   r = f; x[i] = r; for j: y[j] = r
    """
    return (replace(stmt, body=forwarded(stmt.body)),) if isinstance(stmt, For) else (stmt,)


def forwarded(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """Statements in which what is stored beside loops, and is not stored anew, is read once."""
    if not any(isinstance(s, For) for s in body):
        return body
    out: list[Stmt] = []
    rest = body
    while rest:
        first, rest = rest[0], rest[1:]
        if not isinstance(first, Store) or not is_read_again(first, rest):
            out.append(first)
            continue
        kept = Storage(f"{first.storage.name}_f{p.fresh_number()}", 1, first.storage.dtype,
                       "register")
        value = Load(kept, ZERO)
        out += [Alloc(kept), Store(kept, ZERO, first.value, None, first.note),
                replace(first, value=value)]
        rest = exchanged(rest, first, value)
    return tuple(out)


def is_read_again(store: Store, rest: tuple[Stmt, ...]) -> bool:
    """True if an element of memory is stored, and read later while nobody stores to its storage."""
    if store.storage.role in ("register", "tile") or store.accumulate or store.index.data():
        return False
    inside = list(statements(rest))
    return any(is_of(x, store) for s in inside for x in loads_of(s)) and not any(
        isinstance(s, Store) and s.storage is store.storage for s in inside)


def is_of(e: Expr, store: Store) -> bool:
    """True for a load of what a statement has stored."""
    return (isinstance(e, Load) and e.storage is store.storage and e.index == store.index
            and not e.guard)


def exchanged(body: tuple[Stmt, ...], store: Store, value: Load) -> tuple[Stmt, ...]:
    """Statements that read a register where they read what has been stored."""
    def fresh(root: Expr) -> Expr:
        return rewrite(root, lambda e: value if is_of(e, store) else e, lambda a: a)

    def visit(stmt: Stmt) -> tuple[Stmt, ...]:
        if isinstance(stmt, Store):
            return (replace(stmt, value=fresh(stmt.value), index=stmt.index.map_data(fresh)),)
        if isinstance(stmt, If):
            return (replace(stmt, cond=fresh(stmt.cond)),)
        if isinstance(stmt, For) and stmt.limit is not None:
            return (replace(stmt, limit=stmt.limit.map_data(fresh)),)
        return (stmt,)

    return transform(body, visit)
