"""Checks a kernel whose chunks are blocks of threads: who may store, and where threads may wait."""
from __future__ import annotations

from tinyc.diagnostics import VerifyError
from tinyc.ir.index import Var
from tinyc.ir.loop import (
    Await,
    Barrier,
    Combine,
    Contraction,
    For,
    If,
    Load,
    LoopKernel,
    MicroKernel,
    MicroPack,
    Prefetch,
    Stmt,
    Storage,
    Store,
    free_vars,
    limits_of,
    loads_of,
    statements,
)

SEEN_BY_OTHERS = ("slot", "arena", "scratch", "shared")


def shared_storages(body: tuple[Stmt, ...]) -> dict[Storage, None]:
    """The arrays on the chip that statements use, in order of first use."""
    found: dict[Storage, None] = {}
    for stmt in statements(body):
        touched = [load.storage for load in loads_of(stmt)]
        if isinstance(stmt, Store):
            touched.append(stmt.storage)
        found.update((s, None) for s in touched if s.role == "shared")
    return found


def verify_threads(kernel: LoopKernel, shared: int) -> None:
    """Raise VerifyError where a kernel of blocks of threads breaks a rule.

    - What others can see is stored below a loop that deals out iterations to threads.
    - Threads wait where all of them come: not below such a loop, unless each thread has one
      iteration of it, and not where a condition or a limit differs among threads.
    - What is stored asynchronously is a number of an argument or the arena as it is, and goes to
      an array on the chip.
    - Its arrays on the chip fit the `shared` bytes that there are.
    """
    for body in (kernel.body, kernel.finish):
        Rules(kernel).block(body, set(), False)
        used = sum(s.nbytes for s in shared_storages(body))
        if used > shared:
            raise VerifyError(f"{kernel.name}: {used} bytes of shared memory, of {shared}")


class Rules:
    """The walk over one body: what differs among threads, and whether iterations are dealt out."""

    def __init__(self, kernel: LoopKernel) -> None:
        self.kernel = kernel
        self.own: set[Storage] = set()

    def fail(self, what: str) -> None:
        raise VerifyError(f"{self.kernel.name}: {what}")

    def block(self, body: tuple[Stmt, ...], variables: set[Var], dealt: bool) -> None:
        """Check statements; `variables` are those that differ among threads."""
        for stmt in body:
            if isinstance(stmt, (Contraction, MicroKernel, MicroPack, Prefetch)):
                self.fail(f"{type(stmt).__name__} in a block of threads")
            elif isinstance(stmt, Combine):
                self.own.discard(stmt.storage)
            elif isinstance(stmt, Store):
                self.store(stmt, variables, dealt)
            elif isinstance(stmt, For):
                self.loop(stmt, variables, dealt)
            elif isinstance(stmt, If):
                if self.differs(stmt, variables) or free_vars(stmt.cond) & variables:
                    self.all_come(stmt.body)
                self.block(stmt.body, variables, dealt)

    def store(self, stmt: Store, variables: set[Var], dealt: bool) -> None:
        if stmt.asynchronous:
            plain = isinstance(stmt.value, Load) and stmt.value.storage.role in ("slot", "arena")
            if not plain or stmt.storage.role != "shared" or stmt.accumulate:
                self.fail(f"{stmt.storage} can't be stored asynchronously")
        if stmt.storage.role in SEEN_BY_OTHERS:
            if not dealt:
                self.fail(f"{stmt.storage} is stored by every thread")
        elif dealt or self.differs(stmt, variables):
            self.own.add(stmt.storage)
        elif not stmt.accumulate:
            self.own.discard(stmt.storage)

    def loop(self, stmt: For, variables: set[Var], dealt: bool) -> None:
        if stmt.kind == "thread":
            if dealt:
                self.fail(f"loop {stmt.var} deals out iterations that are dealt out")
            if stmt.var.extent != self.kernel.threads or stmt.limit is not None:
                self.all_come(stmt.body)
            self.block(stmt.body, variables | {stmt.var}, True)
            return
        varies = self.differs(stmt, variables) or any(
            i.free_vars() & variables for i in limits_of(stmt))
        if varies:
            self.all_come(stmt.body)
        self.block(stmt.body, variables | {stmt.var} if varies else variables, dealt)

    def all_come(self, body: tuple[Stmt, ...]) -> None:
        if any(isinstance(s, (Await, Barrier, Combine)) for s in statements(body)):
            self.fail("threads wait where not all of them come")

    def differs(self, stmt: Stmt, variables: set[Var]) -> bool:
        """True if what a statement reads differs among threads, as far as registers tell."""
        return any(load.storage in self.own or load.index.free_vars() & variables
                   for load in loads_of(stmt))


