"""The threads of one block work through statements together, and wait for each other as they must.

Loops whose iterations are independent, or only add to registers, are dealt out; what the threads
have added up is then combined. All else every thread does alike, but for stores, which the first
one does.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tinyc.codegen import primitives as p
from tinyc.codegen.parallel import (
    Lanes,
    Sharing,
    count,
    in_one,
    limit_of_all,
    vector_width,
)
from tinyc.codegen.spread import Costs
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc,
    Barrier,
    Combine,
    For,
    If,
    Load,
    Stmt,
    Storage,
    Store,
    adds,
    loads_of,
    statements,
    stored_at,
)

ZERO = Affine.const_of(0)
SEEN_BY_OTHERS = ("slot", "arena", "scratch", "shared")


@dataclass(frozen=True)
class Touch:
    """An access to memory: by which thread, as far as its index and the dealt variables tell."""

    index: Affine | None = None
    lanes: frozenset[Var] = frozenset()


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


# (statements before a loop that was dealt out, the loop, statements after it, what it touches).
Dealt = tuple[list[Stmt], For, list[Stmt], Pending]


@dataclass
class Crew:
    """A block of threads on its way through the statements of a kernel."""

    threads: int
    costs: Costs
    lanes: Lanes = field(default_factory=Lanes)
    pending: Pending = field(default_factory=Pending)
    loops: list[Var] = field(default_factory=list)
    made: dict[For, Dealt] = field(default_factory=dict)

    def block(self, body: Iterable[Stmt]) -> tuple[Stmt, ...]:
        """Statements that all threads run together."""
        return tuple(t for s in body for t in self.statement(s))

    def statement(self, stmt: Stmt) -> list[Stmt]:
        """One statement, with what the threads do before and after it."""
        if isinstance(stmt, For):
            return self.loop(stmt)
        if isinstance(stmt, If):
            head = self.wait((replace(stmt, body=()),))
            return [*head, replace(stmt, body=self.block(stmt.body))]
        if isinstance(stmt, Store) and stmt.storage.role in SEEN_BY_OTHERS:
            one, _ = self.lanes.of(1, 1)
            made = For(one, (stmt,), "thread")
            return [*self.wait((made,), frozenset((one,))), made]
        return [*self.wait((stmt,)), stmt]

    def loop(self, stmt: For) -> list[Stmt]:
        """A loop that is dealt out, or that all run alike."""
        found = self.costs.chain(stmt)
        if found is not None and self.costs.deals(stmt, self.threads):
            if stmt not in self.made:
                self.made[stmt] = self.dealt(*found)
            before, made, after, touches = self.made[stmt]
            return [*before, *self.after(touches), made, *after]
        head = self.wait((replace(stmt, body=()),))
        outer, self.loops = self.loops, [*self.loops, stmt.var]
        start, self.pending = self.pending, Pending()
        body = self.block(stmt.body)
        again, self.pending = self.pending, start
        if start.read or start.written:
            if waits(self.block(stmt.body)) > waits(body):
                head, start = [*head, Barrier()], Pending()
        # What is pending at the end of an iteration is so at the start of the next one.
        self.pending = start.add(again)
        stored = {place[0] for place in map(stored_at, statements(stmt.body)) if place is not None}
        if stored & {*again.read, *again.written}:
            body = self.block(stmt.body)
        self.pending = start.add(self.pending)
        self.loops = outer
        return [*head, replace(stmt, body=body)]

    def dealt(self, loops: tuple[For, ...], shares: Sharing) -> Dealt:
        """Loops dealt out to the threads as one, and what they have added up combined."""
        width = vector_width(loops, 4 if count(loops) >= 2 * self.threads else 1)
        if loops[0].limit is not None and limit_of_all(loops, width) is None:
            width = 1
        lane, part = self.lanes.of(count(loops) // width, width)
        body = in_one(loops, width, Affine.of(lane), part)
        before: list[Stmt] = []
        after: list[Stmt] = []
        fresh = {}
        for register, how in shares.sums.items():
            own = fresh[register] = Storage(f"{register.name}_t{p.fresh_number()}", 1,
                                            register.dtype, "register")
            before += [Alloc(own), Store(own, ZERO, p.identity(how, own.dtype))]
            after += [Combine(own, how), Store(register, ZERO, Load(own, ZERO), how)]
        body = p.replace_storage(body, fresh)
        made = For(lane, body, "thread", limit_of_all(loops, width))
        return before, made, after, touched_by((made,), frozenset((lane, part)))

    # -- who waits for whom ----------------------------------------------------------------------

    def wait(self, body: tuple[Stmt, ...], lanes: frozenset[Var] = frozenset()) -> list[Stmt]:
        """A barrier if statements touch what others may still write or read; notes what they do."""
        return self.after(touched_by(body, lanes))

    def after(self, mine: Pending) -> list[Stmt]:
        """A barrier if accesses may meet those that are pending, to which they then belong."""
        clash = any(self.meets(s, touches, self.pending.written) for s, touches in
                    (*mine.read.items(), *mine.written.items())) or any(
            self.meets(s, touches, self.pending.read) for s, touches in mine.written.items())
        self.pending = mine if clash else self.pending.add(mine)
        return [Barrier()] if clash else []

    def meets(self, s: Storage, touches: frozenset[Touch], pending: Touched) -> bool:
        """True if an access may be of an element that another thread has touched."""
        both = touches | pending.get(s, frozenset())
        if s not in pending:
            return False
        return len(both) > 1 or not all(self.is_own(t) for t in both)

    def is_own(self, touch: Touch) -> bool:
        """True if each thread touches elements of its own, at all iterations of the loops around.
        """
        index = touch.index
        if index is None or index.data():
            return False
        if not all(index.is_linear_in(v) for v in self.loops):
            return False
        reach = sum(abs(k) * (a.hi - a.lo) for a, k in index.terms if a.free_vars() & touch.lanes)
        for step, extent in sorted((abs(index.coeff(v)), v.extent) for v in self.loops):
            if step and step <= reach:
                return False
            reach += step * (extent - 1)
        return True


def waits(body: tuple[Stmt, ...]) -> int:
    """How often threads wait in statements, as they stand in the text."""
    return sum(isinstance(s, Barrier) for s in statements(body))


def touched_by(body: tuple[Stmt, ...], lanes: frozenset[Var]) -> Pending:
    """What statements read and write that other threads can see."""
    found = Pending()
    inner = {s.var for s in statements(body) if isinstance(s, For)} - lanes
    for stmt in statements(body):
        place = stored_at(stmt)
        written = [] if place is None else [place]
        read = [(x.storage, x.index) for x in loads_of(stmt)]
        read += written if adds(stmt) else []
        for table, places in ((found.read, read), (found.written, written)):
            for s, index in places:
                if s.role in SEEN_BY_OTHERS:
                    plain = lanes and not index.free_vars() & inner
                    touch = Touch(index, lanes) if plain else Touch()
                    table[s] = table.get(s, frozenset()) | {touch}
    return found
