"""Where a kernel's accesses to an argument begin becomes part of the pointer that it gets.

Parameters lie side by side in a few large buffers. Without their offsets in it, the code of equal
layers is equal text, which is compiled once.
"""
from __future__ import annotations

from dataclasses import replace

from tinyc.ir.index import Affine
from tinyc.ir.loop import (
    Expr,
    If,
    Load,
    LoopKernel,
    MicroKernel,
    MicroPack,
    Prefetch,
    Stmt,
    Storage,
    Store,
    loads_of,
    rewrite,
    statements,
    stored_at,
    transform,
)
from tinyc.ir.program import ARENA

Bases = dict[Storage, int]
# Bytes of the widest access of a thread.
VECTOR = 16


def place(s: Storage, slots: dict[Storage, int], bases: Bases) -> tuple[int, int]:
    """(the argument, or ARENA, that a storage is in, the first element of it)."""
    if s.role == "slot":
        return slots[s], bases.get(s, 0)
    return ARENA if s.within is None else slots[s.within], s.offset // s.dtype.itemsize


def rebase(kernel: LoopKernel) -> tuple[LoopKernel, Bases]:
    """(the kernel with indices relative to bases, the base of each argument that has one)."""
    bases: Bases = {}
    for stmt in statements(kernel.body + kernel.finish):
        for storage, index in accesses(stmt):
            if storage.role == "slot":
                bases[storage] = min(bases.get(storage, index.const), index.const)
    if kernel.threads > 1:  # whole vectors stay aligned
        bases = {s: base - base % (VECTOR // s.dtype.itemsize) for s, base in bases.items()}
    bases = {s: base for s, base in bases.items() if base > 0}
    if not bases:
        return kernel, {}

    def moved(stmt: Stmt) -> tuple[Stmt, ...]:
        return (relative(stmt, bases),)

    body, finish = transform(kernel.body, moved), transform(kernel.finish, moved)
    return replace(kernel, body=body, finish=finish), bases


def accesses(stmt: Stmt) -> list[tuple[Storage, Affine]]:
    """The storages that a statement itself reads and writes, and at which index."""
    place = stored_at(stmt)
    stored = [] if place is None else [place]
    return [*stored, *((load.storage, load.index) for load in loads_of(stmt))]


def relative(stmt: Stmt, bases: Bases) -> Stmt:
    """A statement with its own accesses relative to bases."""
    def leaf(e: Expr) -> Expr:
        if isinstance(e, Load) and e.storage in bases:
            return replace(e, index=e.index - bases[e.storage])
        return e

    def fresh(root: Expr) -> Expr:
        return rewrite(root, leaf, lambda a: a)

    def load(x: Load) -> Load:
        return replace(x, index=x.index - bases.get(x.storage, 0))

    if isinstance(stmt, Store):
        index = stmt.index.map_data(fresh) - bases.get(stmt.storage, 0)
        return replace(stmt, index=index, value=fresh(stmt.value))
    if isinstance(stmt, If):
        return replace(stmt, cond=fresh(stmt.cond))
    if isinstance(stmt, MicroKernel):
        return replace(stmt, at=stmt.at - bases.get(stmt.tile, 0), a=load(stmt.a), b=load(stmt.b))
    if isinstance(stmt, Prefetch):
        return Prefetch(load(stmt.load))
    return replace(stmt, b=load(stmt.b)) if isinstance(stmt, MicroPack) else stmt
