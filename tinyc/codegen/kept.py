"""What a thread reads, or makes, of a row in one pass and uses in another stays in its registers.

Loops over a row are dealt out in rounds that are written out, so a thread's numbers can lie in an
array of its own whose elements are registers. A row is then read once, with all loads on their way
at a time, and what is made of it takes no memory on the chip.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from tinyc.codegen import primitives as p
from tinyc.codegen.rebase import accesses
from tinyc.codegen.waits import Item, Section, touched
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc,
    Expr,
    For,
    Load,
    Stmt,
    Storage,
    Store,
    loads,
    rewrite,
    statements,
    transform,
)

# Numbers of one array that a thread keeps, if there may be as many threads as that takes, and at
# most; and of all arrays.
GOOD, MOST, MOST_OF_ALL = 16, 32, 64

Place = tuple[Storage, Affine]


def share_of(n: int, width: int, threads: int, fixed: bool) -> Share:
    """How n vectors are dealt out; the number of rounds is `fixed` if there is no limit."""
    rounds, part = -(-n // threads), Var("part", width)
    if fixed and 1 < rounds <= MOST // width:
        return Share(Var("round", rounds), Var("lane", threads), part, n, threads, fixed)
    return Share(None, Var("lane", n), part, n, threads, fixed)


@dataclass
class Share:
    """How vectors of a row are dealt out to threads: in rounds that are written out, each thread
    one of them, or, without `rounds`, in as many as it takes; `part` is the element of a vector."""

    rounds: Var | None
    lane: Var
    part: Var
    vectors: int
    threads: int
    fixed: bool

    @property
    def at(self) -> Affine:
        """The vector of a thread in a round."""
        first = 0 if self.rounds is None else Affine.of(self.rounds) * self.lane.extent
        return Affine.of(self.lane) + first

    @property
    def position(self) -> Affine:
        """Where a thread keeps an element."""
        first = 0 if self.rounds is None else Affine.of(self.rounds) * self.part.extent
        return Affine.of(self.part) + first

    @property
    def size(self) -> int:
        """Elements of a thread."""
        return self.part.extent * (1 if self.rounds is None else self.rounds.extent)

    def loop(self, body: tuple[Stmt, ...], limit: Affine | None = None) -> For:
        """A loop over the row."""
        if self.rounds is None:
            return For(self.lane, body, "thread", limit)
        if self.vectors % self.lane.extent:
            limit = self.vectors - Affine.of(self.rounds) * self.lane.extent
        return For(self.rounds, (For(self.lane, body, "thread", limit),), "unroll")

    def lanes(self) -> list[Var]:
        """The variables that tell whose an element is."""
        return [v for v in (self.rounds, self.lane, self.part) if v is not None]


@dataclass
class Dealt(Section):
    """A loop over a row that is dealt out, and what comes after it."""

    share: Share | None = None
    after: list[Stmt] = field(default_factory=list)

    def made(self, loop: Stmt) -> Dealt:
        """The same with another loop."""
        assert self.share is not None
        return replace(self, body=[loop, *self.after], touches=touched([loop], self.share.lanes()))


def dealt(share: Share, loop: For, after: list[Stmt]) -> Dealt:
    """A loop over a row."""
    return Dealt([loop, *after], touched([loop], share.lanes()), share, after)


def plain(stmt: Stmt) -> Iterator[Store]:
    """The stores of a loop over a row that every thread runs for each of its elements."""
    if isinstance(stmt, Store):
        yield stmt
    elif isinstance(stmt, For) and stmt.kind in ("thread", "unroll", "vector"):
        for s in stmt.body:
            yield from plain(s)


def keep(items: list[Item], uses: Counter[Storage], stored: Collection[Storage]) -> list[Item]:
    """Statements with numbers of rows in registers; `uses` is how often the kernel touches each
    storage in all, and `stored` what it stores to."""
    passes = [item for item in items if isinstance(item, Dealt) and keeps(item.share)]
    if len(passes) < 2:
        return items
    read = Counter(place for item in passes for place in dict.fromkeys(read_by(item)))
    table: dict[Place, tuple[Storage, Affine]] = {}
    fetched: dict[Place, Share] = {}
    left = MOST_OF_ALL
    for item in passes:
        share = item.share
        assert share is not None
        for place in places_of(item):
            s, index = place
            own = is_own(s, index, passes, uses)
            again = s not in stored and read[place] > 1 and follows(index, share)
            if place in table or share.size > left or not (own or again):
                continue
            left -= share.size
            table[place] = (Storage(f"{s.name}_k{p.fresh_number()}", share.size, s.dtype,
                                    "register"), share.position)
            if again:
                fetched[place] = share
    return with_registers(items, table, fetched)


def keeps(share: Share | None) -> bool:
    """True if a thread's elements can be registers."""
    return share is not None and share.fixed and share.size <= MOST and (
        share.rounds is not None or share.vectors <= share.threads)


def read_by(item: Dealt) -> Iterator[Place]:
    """What each thread reads for each of its elements."""
    for stmt in item.body:
        for s in plain(stmt):
            yield from ((x.storage, x.index) for x in loads(s.value) if not x.guard)


def places_of(item: Dealt) -> Iterator[Place]:
    """What each thread stores, or reads, for each of its elements."""
    for stmt in item.body:
        for s in plain(stmt):
            yield s.storage, s.index
    yield from read_by(item)


def follows(index: Affine, share: Share) -> bool:
    """True if each element of a thread is another one."""
    return set(share.lanes()) - {share.part} <= index.free_vars() and not index.data() and (
        share.part.extent == 1 or share.part in index.free_vars())


def is_own(s: Storage, index: Affine, passes: Sequence[Dealt], uses: Counter[Storage]) -> bool:
    """True for an array that the kernel touches only at each thread's elements, and stores first.
    """
    if s.role not in ("scratch", "shared"):
        return False
    found = [(item, i) for item in passes for t, i in places_of(item) if t is s]
    first = found[0][0]
    return (len(found) == uses[s] and first.share is not None and follows(index, first.share)
            and all(i == index and item.share is first.share for item, i in found)
            and all(t is not s for t, _ in read_by(first)))


def with_registers(items: Iterable[Item], table: dict[Place, tuple[Storage, Affine]],
                   fetched: dict[Place, Share]) -> list[Item]:
    """Statements that use registers for places, those of memory fetched before their first use."""
    out: list[Item] = [Section([Alloc(r) for r, _ in table.values()])] if table else []
    waiting = dict(fetched)
    for item in items:
        if isinstance(item, Dealt):
            for place in [x for x in dict.fromkeys(read_by(item)) if x in waiting]:
                share = waiting.pop(place)
                out.append(dealt(share, fetch(share, place, *table[place]), []))
            item = item.made(exchanged(item.body[0], table))
        out.append(item)
    return out


def fetch(share: Share, place: Place, register: Storage, position: Affine) -> For:
    """A loop that reads a row into registers."""
    move: Stmt = Store(register, position, Load(*place))
    if share.part.extent > 1:
        move = For(share.part, (move,), "vector")
    return share.loop((move,))


def exchanged(loop: Stmt, table: dict[Place, tuple[Storage, Affine]]) -> Stmt:
    """A loop over a row that uses registers for places."""
    def leaf(e: Expr) -> Expr:
        if isinstance(e, Load) and not e.guard and (e.storage, e.index) in table:
            return Load(*table[e.storage, e.index])
        return e

    def visit(stmt: Stmt) -> tuple[Stmt, ...]:
        if not isinstance(stmt, Store):
            return (stmt,)
        storage, index = table.get((stmt.storage, stmt.index), (stmt.storage, stmt.index))
        value = rewrite(stmt.value, leaf, lambda a: a)
        return (replace(stmt, storage=storage, index=index, value=value),)

    (made,) = transform((loop,), visit)
    return made


def uses_of(body: Iterable[Stmt]) -> Counter[Storage]:
    """How often statements touch each storage."""
    return Counter(s for stmt in statements(tuple(body)) for s, _ in accesses(stmt))
