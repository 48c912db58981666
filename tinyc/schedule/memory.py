"""Memory plan: one arena, and results before they are written; updates in place, offsets by
lifetime (best fit), 64-byte aligned."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tinyc.ir.index import Affine
from tinyc.ir.loop import (
    LoopKernel,
    MicroKernel,
    Stmt,
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


@dataclass
class Span:
    """Bytes that are in use from the first to the last of some kernels."""

    begin: int
    end: int
    first: int
    last: int


@dataclass
class Space:
    """Memory for what lives between kernels, and what is in use of it: the arena, or a `result`,
    of which a part is free before the first kernel that stores to it."""

    result: Storage | None
    spans: list[Span] = field(default_factory=list)


# (bytes of the gap that a value is put into, where it begins).
Gap = tuple[int, int]


def plan_memory(plan: Plan) -> None:
    """Give every arena storage its place; sets `Plan.arena_size` (bytes).

    What fits into a result that is not written yet lies there: the gradients of a training step
    come one after the other, while the values that they are made from go.
    """
    lives = reuse_in_place(plan)
    arena = Space(None)
    results = result_spaces(plan)
    for life in sorted(lives.values(), key=lambda x: (-x.storage.nbytes, x.first)):
        need = padded(life.storage.nbytes)
        gaps = [(best_fit(life, need, space.spans), space) for space in results]
        bounded = [(gap, space) for gap, space in gaps if gap[0] < UNBOUNDED]
        (_, at), space = min(bounded, key=lambda x: x[0][0],
                             default=(best_fit(life, need, arena.spans), arena))
        life.storage.offset, life.storage.within = at, space.result
        space.spans.append(Span(at, at + need, life.first, life.last))
    plan.arena_size = max((span.end for span in arena.spans), default=0)


def padded(nbytes: int) -> int:
    """Bytes rounded up to the alignment."""
    return -(-nbytes // ALIGN) * ALIGN


# The size of the gap behind all that is in use.
UNBOUNDED = 1 << 62


def best_fit(life: Life, need: int, spans: Sequence[Span]) -> Gap:
    """The smallest gap of at least `need` bytes between what is in use at the same time."""
    busy = sorted((s.begin, s.end) for s in spans
                  if s.first <= life.last and life.first <= s.last)
    cursor = 0
    best: Gap | None = None
    for begin, end in busy:
        if begin - cursor >= need and (best is None or begin - cursor < best[0]):
            best = (begin - cursor, cursor)
        cursor = max(cursor, end)
    return (UNBOUNDED, cursor) if best is None else best


def result_spaces(plan: Plan) -> list[Space]:
    """The results that a program makes memory for, and from when on parts of them are in use."""
    spaces = {s: Space(s) for s in plan.slots[len(plan.leaves):]}
    for i, kernel in enumerate(plan.kernels):
        for stmt in statements(kernel.body + kernel.finish):
            place = stored_at(stmt)
            if place is not None and place[0] in spaces:
                begin, end = stored_bytes(stmt, *place)
                spaces[place[0]].spans.append(Span(begin, padded(end), i, len(plan.kernels)))
    for result, space in spaces.items():
        end = result.nbytes // ALIGN * ALIGN  # nothing lies beyond
        space.spans.append(Span(end, max(end, padded(result.nbytes)), 0, len(plan.kernels)))
    return list(spaces.values())


def stored_bytes(stmt: Stmt, storage: Storage, index: Affine) -> tuple[int, int]:
    """(first, behind the last) of the bytes between which a statement stores."""
    size = storage.dtype.itemsize
    if any(index.data()) or not isinstance(stmt, (Store, MicroKernel)):
        return 0, storage.nbytes
    lo, hi = index.bounds()
    if isinstance(stmt, MicroKernel):
        hi += (stmt.height - 1) * stmt.apart + stmt.width - 1
    return max(0, lo) * size // ALIGN * ALIGN, min(storage.size, hi + 1) * size


def keep_apart(plan: Plan) -> None:
    """Move what lies in results to the end of the arena, where each value has its own bytes."""
    for storage in lifetimes(plan):
        if storage.within is not None:
            storage.within, storage.offset = None, plan.arena_size
            plan.arena_size += padded(storage.nbytes)


def memory_text(plan: Plan) -> str:
    """The arguments of a program, and what lies where in its arena during which kernels."""
    lines = ["arguments"]
    for s in plan.slots:
        lines.append(f"  {s.name:<8} {s.dtype}[{s.size}]")
    lines.append(f"arena of {plan.arena_size} bytes")
    lives = [(life.storage.within.name if life.storage.within else "", life)
             for life in lifetimes(plan).values()]
    for home, life in sorted(lives, key=lambda x: (x[0], x[1].storage.offset, x[1].first)):
        s = life.storage
        where = f"bytes {s.offset} to {s.offset + s.nbytes}" + f" of {home}" * bool(home)
        kernels = ", ".join(dict.fromkeys(plan.kernels[i].name for i in (life.first, life.last)))
        lines.append(f"  {s.name:<8} {s.dtype}[{s.size}] {where}, needed in {kernels}")
    return "\n".join(lines)
