"""Memory plan: one arena, offsets by lifetime (best fit), 64-byte aligned."""
from __future__ import annotations

from dataclasses import dataclass

from tinyc.ir.loop import (
    Contraction, If, LoopKernel, MicroKernel, Storage, Store, loads, statements,
)
from tinyc.ir.plan import Plan

ALIGN = 64


@dataclass
class Life:
    """From the first to the last kernel that touches a storage."""

    storage: Storage
    first: int
    last: int


def kernel_accesses(kernel: LoopKernel) -> tuple[dict[Storage, None], dict[Storage, None]]:
    """(read, written) storages of a kernel, in order of first use."""
    reads: dict[Storage, None] = {}
    writes: dict[Storage, None] = {}

    def use(expr) -> None:
        reads.update((load.storage, None) for load in loads(expr))

    for stmt in statements(kernel.body + kernel.finish):
        if isinstance(stmt, Store):
            use(stmt.value)
            for e in stmt.index.data():
                use(e)
            writes[stmt.storage] = None
            if stmt.accumulate:
                reads[stmt.storage] = None
        elif isinstance(stmt, If):
            use(stmt.cond)
        elif isinstance(stmt, (Contraction, MicroKernel)):
            use(stmt.a)
            use(stmt.b)
    return reads, writes


def plan_memory(plan: Plan) -> None:
    """Give every arena storage its offset; sets `Plan.arena_size` (bytes)."""
    lives: dict[Storage, Life] = {}
    for i, kernel in enumerate(plan.kernels):
        reads, writes = kernel_accesses(kernel)
        for storage in (*reads, *writes):
            if storage.role == "arena":
                lives.setdefault(storage, Life(storage, i, i)).last = i
    placed: list[Life] = []
    for life in sorted(lives.values(), key=lambda x: (-x.storage.nbytes, x.first)):
        life.storage.offset = best_fit(life, placed)
        placed.append(life)
    plan.arena_size = max((x.storage.offset + padded(x.storage.nbytes) for x in placed), default=0)


def padded(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def best_fit(life: Life, placed: list[Life]) -> int:
    """The smallest gap, among storages alive at the same time, that holds this one."""
    busy = sorted((p.storage.offset, p.storage.offset + padded(p.storage.nbytes))
                  for p in placed if p.first <= life.last and life.first <= p.last)
    need, cursor = padded(life.storage.nbytes), 0
    best: tuple[int, int] | None = None
    for lo, hi in busy:
        if lo - cursor >= need and (best is None or lo - cursor < best[0]):
            best = (lo - cursor, cursor)
        cursor = max(cursor, hi)
    return cursor if best is None else best[1]
