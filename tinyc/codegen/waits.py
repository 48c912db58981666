"""Where the threads of a block wait for each other.

A recipe divides statements among threads in sections, inside of loops and conditions that all
threads go through alike, and says what each section touches. `with_barriers` makes statements of
them: threads wait where an element that one of them uses may be one that another has stored, or
stores one that another uses.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Barrier,
    For,
    If,
    Stmt,
    Storage,
    adds,
    loads_of,
    statements,
    stored_at,
)
from tinyc.ir.verify_loops import SEEN_BY_OTHERS


@dataclass(frozen=True)
class Touch:
    """An access to memory: by which thread, as far as its index and the dealt variables tell."""

    index: Affine | None = None
    lanes: frozenset[Var] = frozenset()

    def is_own(self, loops: Sequence[Var]) -> bool:
        """True if each thread touches elements of its own, at all iterations of loops around."""
        index = self.index
        if index is None or index.data() or not all(index.is_linear_in(v) for v in loops):
            return False
        reach = sum(abs(k) * (a.hi - a.lo) for a, k in index.terms if a.free_vars() & self.lanes)
        for step, extent in sorted((abs(index.coeff(v)), v.extent) for v in loops):
            if step and step <= reach:
                return False
            reach += step * (extent - 1)
        return True


Touched = dict[Storage, frozenset[Touch]]


@dataclass
class Pending:
    """What was read and what was written since the threads have last waited for each other."""

    read: Touched = field(default_factory=dict)
    written: Touched = field(default_factory=dict)

    def add(self, other: Pending) -> Pending:
        """Both together."""
        return Pending(*({s: mine.get(s, frozenset()) | theirs.get(s, frozenset())
                          for s in {**mine, **theirs}}
                         for mine, theirs in ((self.read, other.read),
                                              (self.written, other.written))))

    def meets(self, later: Pending, loops: Sequence[Var]) -> bool:
        """True if a later access may be of an element that another thread has touched, and one of
        the two is a store."""
        return any(foreign(mine[s] | theirs[s], loops) for mine, theirs in (
            (self.written, later.read), (self.written, later.written), (self.read, later.written))
            for s in mine.keys() & theirs.keys())


def foreign(touches: frozenset[Touch], loops: Sequence[Var]) -> bool:
    """True if not all accesses are each thread's to the same elements of its own."""
    return len(touches) > 1 or not all(t.is_own(loops) for t in touches)


def touched(body: Iterable[Stmt], lanes: Iterable[Var] = ()) -> Pending:
    """What statements read and write that other threads can see; `lanes` are the variables that
    are dealt out to the threads, if each has iterations of its own."""
    found, body, dealt = Pending(), tuple(body), frozenset(lanes)
    inner = {s.var for s in statements(body) if isinstance(s, For)} - dealt
    for stmt in statements(body):
        place = stored_at(stmt)
        written = [] if place is None else [place]
        read = [(x.storage, x.index) for x in loads_of(stmt)]
        read += written if adds(stmt) else []
        for table, places in ((found.read, read), (found.written, written)):
            for s, index in places:
                if s.role in SEEN_BY_OTHERS:
                    plain = dealt and not index.free_vars() & inner
                    touch = Touch(index, dealt) if plain else Touch()
                    table[s] = table.get(s, frozenset()) | {touch}
    return found


# -- statements on their way ---------------------------------------------------------------------


@dataclass
class Section:
    """Statements that need no barrier among them, and what they touch."""

    body: Sequence[Stmt]
    touches: Pending = field(default_factory=Pending)


@dataclass
class Around:
    """A loop, or a condition, that all threads go through alike, and what comes to be inside."""

    stmt: For | If
    inner: Sequence[Section | Around]


Item = Section | Around


def with_barriers(items: Iterable[Item]) -> tuple[Stmt, ...]:
    """Statements in which threads wait where they must."""
    return tuple(settled(items, Pending(), ())[0])


Settled = tuple[list[Stmt], Pending]


def settled(items: Iterable[Item], pending: Pending, loops: tuple[Var, ...]) -> Settled:
    """(statements with barriers, what is pending behind them) after what was pending before."""
    out: list[Stmt] = []
    for item in items:
        touches = item.touches if isinstance(item, Section) else touched([item.stmt])
        if pending.meets(touches, loops):
            out.append(Barrier())
            pending = Pending()
        pending = pending.add(touches)
        if isinstance(item, Section):
            out += item.body
        elif isinstance(item.stmt, If):
            body, after = settled(item.inner, pending, loops)
            out.append(replace(item.stmt, body=tuple(body)))
            pending = pending.add(after)
        else:
            made, pending = settled_loop(item.stmt, item.inner, pending, loops)
            out += made
    return out, pending


def settled_loop(head: For, inner: Sequence[Item], before: Pending,
                 loops: tuple[Var, ...]) -> Settled:
    """A loop; threads wait before it where that saves waiting in each iteration."""
    loops = (*loops, head.var)
    out: list[Stmt] = []
    body, after = repeated(inner, Pending(), loops, head.var.extent)
    if before.read or before.written:
        more, later = repeated(inner, before, loops, head.var.extent)
        if waits(more) > waits(body):
            out, before = [Barrier()], Pending()
        else:
            body, after = more, later
    if head.limit is not None:  # which may be 0
        after = after.add(before)
    return [*out, replace(head, body=tuple(body))], after


def repeated(inner: Sequence[Item], pending: Pending, loops: tuple[Var, ...],
             times: int) -> Settled:
    """The body of a loop, at whose beginning is pending what was so before or is at its end."""
    while True:
        body, after = settled(inner, pending, loops)
        both = pending.add(after)
        if times == 1 or both == pending:
            return body, after
        pending = both


def waits(body: Iterable[Stmt]) -> int:
    """How often threads wait in statements, as they stand in the text."""
    return sum(isinstance(s, Barrier) for s in statements(tuple(body)))
