"""Runs loop kernels whose chunks are blocks of threads: the oracle for the recipes of GPUs.

The threads of a block run one after the other, the last one first, up to where they wait for each
other. What they may not rely on is an error: an element that one thread writes and another one uses
before both have waited, an element that one block writes and another one uses, threads that wait
at different places, an element that anybody uses while an asynchronous store to it is on its way.
Such stores happen as late as they may.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tinyc.codegen.interpret import Bad, Worker
from tinyc.codegen.watch import Watcher
from tinyc.ir.index import Affine
from tinyc.ir.loop import (
    Await,
    Barrier,
    Combine,
    Expr,
    For,
    If,
    Load,
    LoopKernel,
    Stmt,
    Storage,
    Store,
    statements,
)

# Memory that the threads of a block have together, and what the blocks have together.
TOGETHER = ("scratch", "shared")
GLOBAL = ("slot", "arena")
Place = tuple[Storage | None, int]
SEVERAL = -1


class RaceError(AssertionError):
    """A kernel's result depends on which of its threads runs first."""


def run_blocks(kernel: LoopKernel, memory: dict[Storage, np.ndarray], arena: np.ndarray | None,
               watchers: Sequence[Watcher] = ()) -> Bad | None:
    """Run one kernel on arrays by storage; those of the arena are added to `memory`.

    Returns (site, value) of the first index out of range, if any: then `finish` is left out.
    """
    waiting = {id(s) for s in statements(kernel.body + kernel.finish)
               if isinstance(s, (For, If)) and any(
                   isinstance(t, (Barrier, Combine)) for t in statements(s.body))}
    found: Bad | None = None
    orders: dict[int, list[Expr]] = {}
    with np.errstate(all="ignore"):
        for finishes, body in ((False, kernel.body), (True, kernel.finish)):
            blocks = kernel.last.extent if finishes else kernel.chunks
            between = Log(kernel.name, "blocks")
            for chunk in reversed(range(blocks if found is None and body else 0)):
                block = Block(kernel, between)
                make = partial(Thread, block, waiting, kernel, memory, arena, chunk, orders,
                               watchers, finishes)
                found = found or block.run([make(t) for t in range(kernel.threads)], body)
    return found


@dataclass
class Log:
    """Who has read and who has written each element since all have waited."""

    kernel: str
    who: str
    readers: dict[Place, int] = field(default_factory=dict)
    writers: dict[Place, int] = field(default_factory=dict)
    adders: set[Place] = field(default_factory=set)

    def reads(self, place: Place, me: int, name: str) -> None:
        """Note a read."""
        if self.writers.get(place, me) != me or place in self.adders:
            self.fail(place, name)
        self.readers[place] = me if self.readers.get(place, me) == me else SEVERAL

    def writes(self, place: Place, me: int, name: str, atomic: bool) -> None:
        """Note a write; atomic ones meet only each other."""
        met = {self.readers.get(place, me), self.writers.get(place, me)} != {me}
        if met or (not atomic and place in self.adders):
            self.fail(place, name)
        if atomic:
            self.adders.add(place)
        else:
            self.writers[place] = me

    def fail(self, place: Place, name: str) -> None:
        raise RaceError(f"{self.kernel}: {self.who} meet at byte {place[1]} of {name}")


class Block:
    """The threads of one chunk, what they share, and where they are."""

    def __init__(self, kernel: LoopKernel, between: Log) -> None:
        self.kernel = kernel
        self.between = between
        self.inside = Log(kernel.name, "threads")
        self.own: dict[Storage, np.ndarray] = {}
        self.on_their_way: set[Place] = set()

    def run(self, threads: Sequence[Thread], body: tuple[Stmt, ...]) -> Bad | None:
        """Run all threads to the end; the first index out of range that one has found."""
        running = [t.steps(body) for t in threads]
        while True:
            places = [next(r, None) for r in reversed(running)]
            if any(p is not places[0] for p in places):
                raise RaceError(f"{self.kernel.name}: threads wait at different places")
            if places[0] is None:
                return next((t.found for t in threads if t.found), None)
            if isinstance(places[0], Combine):
                combine(places[0], threads)
            else:
                self.inside = Log(self.kernel.name, "threads")


def combine(stmt: Combine, threads: Sequence[Thread]) -> None:
    """Give each thread the sum, or the maximum, of its group, added up as a tree."""
    width = stmt.width or len(threads)
    for first in range(0, len(threads), width):
        arrays = [t.array(stmt.storage) for t in threads[first:first + width]]
        values = [a[0] for a in arrays]
        while len(values) > 1:
            half = (len(values) + 1) // 2
            upper = values[half:]
            values = [pair(stmt.how, a, b) for a, b in zip(values, upper)] + values[len(upper):half]
        for a in arrays:
            a[0] = values[0]


def pair(how: str, a: Any, b: Any) -> Any:
    """Two numbers made one."""
    return np.maximum(a, b) if how == "max" else a + b


@dataclass
class Asked:
    """An asynchronous store: where to, and from which element of what, or zero."""

    storage: Storage
    at: int
    found: tuple[np.ndarray, int] | None


class Thread(Worker):
    """One thread of a block, with registers of its own."""

    def __init__(self, block: Block, waiting: set[int], kernel: LoopKernel,
                 memory: dict[Storage, np.ndarray], arena: np.ndarray | None, chunk: int,
                 orders: dict[int, list[Expr]], watchers: Sequence[Watcher], finishes: bool,
                 number: int) -> None:
        super().__init__(kernel, memory, arena, chunk, orders, watchers, finishes)
        self.together = block
        self.waiting = waiting
        self.number = number
        self.at = 0
        self.asked: list[Asked] = []
        self.groups: list[list[Asked]] = []

    def array(self, s: Storage) -> np.ndarray:
        """The elements of a storage."""
        if s.role in TOGETHER:
            own = self.together.own
            if s not in own:
                own[s] = self.place(s)
            return own[s]
        return super().array(s)

    def position(self, s: Storage, index: Affine) -> int:
        self.at = super().position(s, index)
        return self.at

    def steps(self, body: tuple[Stmt, ...]) -> Iterator[Stmt]:
        """Run statements; give out each one at which threads wait for each other."""
        for stmt in body:
            if isinstance(stmt, (Barrier, Combine)):
                yield stmt
            elif id(stmt) not in self.waiting:
                self.statement(stmt)
            elif isinstance(stmt, If):
                if self.value(stmt.cond):
                    yield from self.steps(stmt.body)
            else:
                assert isinstance(stmt, For)
                for i in self.iterations(stmt):
                    self.variables[stmt.var] = i
                    yield from self.steps(stmt.body)
                self.variables.pop(stmt.var, None)

    def statement(self, stmt: Stmt) -> None:
        if isinstance(stmt, Await):
            self.groups.append(self.asked)
            self.asked = []
            while len(self.groups) > stmt.pending:
                for asked in self.groups.pop(0):
                    self.arrives(asked)
        else:
            super().statement(stmt)

    def iterations(self, loop: For) -> Sequence[int]:
        found = list(super().iterations(loop))
        return found[self.number::self.kernel.threads] if loop.kind == "thread" else found

    def load(self, e: Load) -> Any:
        if not all(self.holds(g) for g in e.guard):
            return np.zeros((), e.dtype.np)[()]
        value = super().load(e)
        self.note(e.storage)
        return value

    def ask(self, stmt: Store) -> None:
        """Note an asynchronous store; its indices are those of now."""
        source = stmt.value
        assert isinstance(source, Load)
        found: tuple[np.ndarray, int] | None = None
        if all(self.holds(g) for g in source.guard):
            found = self.array(source.storage), self.position(source.storage, source.index)
            self.note(source.storage)
        at = self.position(stmt.storage, stmt.index)
        self.note(stmt.storage, True)
        self.together.on_their_way.add((stmt.storage, at * stmt.storage.dtype.itemsize))
        self.asked.append(Asked(stmt.storage, at, found))

    def arrives(self, asked: Asked) -> None:
        """Let an asynchronous store happen."""
        s, self.at = asked.storage, asked.at
        self.together.on_their_way.discard((s, asked.at * s.dtype.itemsize))
        found = asked.found
        self.array(s)[asked.at] = 0 if found is None else found[0][found[1]]
        self.note(s, True)

    def store(self, stmt: Store) -> None:
        if stmt.asynchronous:
            self.ask(stmt)
            return
        super().store(stmt)
        if stmt.accumulate and not stmt.atomic:
            self.note(stmt.storage)
        self.note(stmt.storage, True, stmt.atomic)

    def note(self, s: Storage, written: bool = False, atomic: bool = False) -> None:
        """Note an access to the element that was just used, if others can see it."""
        if s.role not in (*TOGETHER, *GLOBAL):
            return
        placed = s.role == "arena" and self.arena is not None
        first = s.offset if placed else 0
        place = s.within if placed else s, first + self.at * s.dtype.itemsize
        if place in self.together.on_their_way:
            self.together.inside.fail(place, f"{s.name}, which is on its way")
        logs = [(self.together.inside, self.number)]
        if s.role in GLOBAL:
            logs.append((self.together.between, self.chunk))
        for log, me in logs:
            if written:
                log.writes(place, me, s.name, atomic)
            else:
                log.reads(place, me, s.name)
