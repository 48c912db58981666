"""Memory plan: one arena, updates in place, offsets by lifetime (best fit), 64-byte aligned."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyc.ir.loop import (
    LoopKernel,
    Storage,
    Store,
    adds,
    loads_of,
    replace_storage,
    statements,
    stored_at,
)
from tinyc.ir.plan import Plan

ALIGN = 64


@dataclass
class Life:
    """From the first to the last kernel that touches a storage."""

    storage: Storage
    first: int
    last: int


# What a kernel reads and what it writes, in order of first use.
Accesses = tuple[dict[Storage, None], dict[Storage, None]]


def kernel_accesses(kernel: LoopKernel) -> Accesses:
    """(read, written) storages of a kernel, in order of first use."""
    reads: dict[Storage, None] = {}
    writes: dict[Storage, None] = {}
    for stmt in statements(kernel.body + kernel.finish):
        reads.update((load.storage, None) for load in loads_of(stmt))
        place = stored_at(stmt)
        if place is not None:
            writes[place[0]] = None
            if adds(stmt):
                reads[place[0]] = None
    return reads, writes


def lifetimes(plan: Plan, roles: tuple[str, ...] = ("arena",)) -> dict[Storage, Life]:
    """The kernels during which each storage of the arena, or of other roles, is needed."""
    return lives_of(list(map(kernel_accesses, plan.kernels)), roles)


def lives_of(accesses: Sequence[Accesses], roles: tuple[str, ...]) -> dict[Storage, Life]:
    """The same, of what each kernel touches."""
    lives: dict[Storage, Life] = {}
    for i, (reads, writes) in enumerate(accesses):
        for storage in (*reads, *writes):
            if storage.role in roles:
                lives.setdefault(storage, Life(storage, i, i)).last = i
    return lives


def reuse_in_place(plan: Plan) -> dict[Storage, Life]:
    """Let a value take over the storage of one that its kernel reads last, element for element.

    Returns the lifetimes in the arena that are left.
    """
    accesses = list(map(kernel_accesses, plan.kernels))
    lives = lives_of(accesses, ("arena",))
    # The storage whose place another has taken over, directly or in turn.
    taken: dict[Storage, Storage] = {}
    for i, (kernel, (reads, writes)) in enumerate(zip(plan.kernels, accesses)):
        ends = {s: lives[taken.get(s, s)].last for s in reads if taken.get(s, s) in lives}
        dying = [s for s, last in ends.items() if last == i and s not in writes]
        for new in writes:
            if new not in lives or lives[new].first != i or new in reads:
                continue
            old = next((s for s in dying if fits(s, new) and aligned(kernel, s, new)), None)
            if old is not None:
                dying.remove(old)
                taken[new] = taken.get(old, old)
                lives[taken[new]].last = lives.pop(new).last
    merge(plan, taken, accesses)
    return lives


def fits(old: Storage, new: Storage) -> bool:
    """True if one storage can take the place of another."""
    return old.size == new.size and old.dtype is new.dtype


def aligned(kernel: LoopKernel, old: Storage, new: Storage) -> bool:
    """True if `old` is read only by the statements that store the same element of `new`."""
    for stmt in statements(kernel.body + kernel.finish):
        used = [load for load in loads_of(stmt) if load.storage is old]
        if used and (not isinstance(stmt, Store) or stmt.storage is not new or stmt.accumulate
                     or any(load.index != stmt.index for load in used)):
            return False
    return True


def merge(plan: Plan, taken: dict[Storage, Storage], accesses: Sequence[Accesses]) -> None:
    """Replace storages by those whose place they take, everywhere."""
    plan.taken = taken
    if taken:
        for kernel, touched in zip(plan.kernels, accesses):
            if any(s in taken for part in touched for s in part):
                kernel.body = replace_storage(kernel.body, taken)
                kernel.finish = replace_storage(kernel.finish, taken)
        plan.storages = [s for s in plan.storages if s not in taken]


def plan_memory(plan: Plan) -> None:
    """Give every arena storage its offset; sets `Plan.arena_size` (bytes)."""
    lives = reuse_in_place(plan)
    placed: list[Life] = []
    for life in sorted(lives.values(), key=lambda x: (-x.storage.nbytes, x.first)):
        life.storage.offset = best_fit(life, placed)
        placed.append(life)
    plan.arena_size = max((x.storage.offset + padded(x.storage.nbytes) for x in placed), default=0)


def padded(nbytes: int) -> int:
    """Bytes rounded up to the alignment."""
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


def memory_text(plan: Plan) -> str:
    """The arguments of a program, and what lies where in its arena during which kernels."""
    lines = ["arguments"]
    for s in plan.slots:
        lines.append(f"  {s.name:<8} {s.dtype}[{s.size}]")
    lines.append(f"arena of {plan.arena_size} bytes")
    for life in sorted(lifetimes(plan).values(), key=lambda x: (x.storage.offset, x.first)):
        s = life.storage
        where = f"bytes {s.offset} to {s.offset + s.nbytes}"
        kernels = ", ".join(dict.fromkeys(plan.kernels[i].name for i in (life.first, life.last)))
        lines.append(f"  {s.name:<8} {s.dtype}[{s.size}] {where}, needed in {kernels}")
    return "\n".join(lines)
