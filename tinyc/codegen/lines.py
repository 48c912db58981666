"""What moves through memory in whole cache lines: stores that go past the caches, and rows that
are asked for ahead of time.

An ordinary store reads a line before it changes it, which is a third of the traffic of a copy. A
streaming store does not, but what it stored has to come back from memory: it pays where that would
be so anyway. A kernel that passes over a row several times waits for each row anew, as no cache
foresees where it goes on after it; it names the lines of a row to come while it reads one.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tinyc.codegen import primitives as p
from tinyc.codegen.rebase import accesses
from tinyc.diagnostics import ScheduleError
from tinyc.ir.cost import elements
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
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
    loads,
    loads_of,
    statements,
)
from tinyc.ir.program import Target

LINE = 64
# How far ahead rows are asked for, and from how long rows on the processor sees by itself.
AHEAD = 16 << 10
LONGEST_ROW = 64 << 10

Far = frozenset[Storage]


def far_stores(kernels: Sequence[LoopKernel], target: Target) -> list[Far]:
    """For each kernel what it stores that is no longer in the last cache when it is read again.

    Between an element's store and the next read lies about all that the kernels touch from the one
    that stores to the one before the reader.
    """
    nothing: Far = frozenset()
    touched = [reach(kernel) for kernel in kernels]
    traffic = [sum(n * s.dtype.itemsize for s, n in t.items()) for t in touched]
    if target.lanes == 1 or sum(traffic) <= target.l3:
        return [nothing] * len(kernels)
    read = [{x.storage for s in statements(k.body + k.finish) for x in loads_of(s)}
            for k in kernels]
    out = []
    for i, kernel in enumerate(kernels):
        stores = [s for s in statements(kernel.body) if isinstance(s, Store)]
        large = {s.storage for s in stores if s.storage in touched[i]
                 and s.storage.nbytes > target.l2 and s.storage not in read[i]}
        large -= {s.storage for s in stores if s.accumulate}
        found = set()
        for storage in large:
            reader = next((j for j in range(i + 1, len(kernels)) if storage in read[j]),
                          len(kernels))
            if sum(traffic[i:reader]) > target.l3:
                found.add(storage)
        out.append(frozenset(found))
    return out


def reach(kernel: LoopKernel) -> dict[Storage, int]:
    """How many elements of each argument and of the arena a kernel touches."""
    out: dict[Storage, int] = {}
    for stmt in statements(kernel.body + kernel.finish):
        for storage, index in accesses(stmt):
            if storage.role in ("slot", "arena"):
                n = min(storage.size, elements(index.free_vars()))
                out[storage] = max(out.get(storage, 0), n)
    return out


def stream_stores(loop: Stmt, kernel: LoopKernel, far: Far, target: Target) -> tuple[Stmt, ...]:
    """An innermost loop that stores something far does so a vector at a time.

    for i < N: y[i] = f(i)   ->   for o < N/L: for l < L: y[L*o + l] = f(L*o + l), past the caches
    """
    if not isinstance(loop, For) or loop.limit is not None or p.has_loops(loop):
        return (loop,)
    found = [s for s in loop.body if isinstance(s, Store) and s.storage in far
             and s.index.coeff(loop.var) == 1]
    sizes = {s.storage.dtype.itemsize for s in found}
    if len(sizes) != 1 or loop.kind not in ("serial", "chunk"):
        return (loop,)
    vector = 4 * target.lanes // sizes.pop()
    if loop.var.extent < vector:
        return (loop,)
    try:
        p.vectorize(loop)
    except ScheduleError:
        return (loop,)
    marked = replace(loop, body=tuple(replace(s, streams=True) if s in found else s
                                      for s in loop.body))
    if loop.kind == "chunk":
        whole, *rest = p.split_chunks(marked, vector, kernel.chunk)
    else:
        whole, *rest = p.split_rest(marked, vector)
    return (whole, *(unmarked(s) for s in rest))


def unmarked(stmt: Stmt) -> Stmt:
    """A statement, and those below it, with ordinary stores."""
    if isinstance(stmt, (For, If)):
        return replace(stmt, body=tuple(map(unmarked, stmt.body)))
    return replace(stmt, streams=False) if isinstance(stmt, Store) else stmt


# -- rows to come --------------------------------------------------------------------------------


def ask_ahead(stmt: Stmt, target: Target) -> Stmt:
    """Loops over rows that are read in several passes: the first asks for rows to come."""
    if not isinstance(stmt, (For, If)):
        return stmt
    if isinstance(stmt, For) and passes(stmt):
        return Rows(stmt, target).with_prefetches()
    return replace(stmt, body=tuple(ask_ahead(s, target) for s in stmt.body))


def passes(loop: For) -> bool:
    """True if a loop's iterations are rows that several loops pass over, without products."""
    inner = [s for s in loop.body if isinstance(s, For)]
    return len(inner) > 1 and loop.limit is None and not any(
        isinstance(s, (MicroKernel, MicroPack)) for s in statements(loop.body))


class Rows:
    """A loop over rows, and what has been asked for in it."""

    def __init__(self, loop: For, target: Target) -> None:
        self.loop = loop
        self.target = target
        self.known: set[Storage] = set()

    def with_prefetches(self) -> For:
        """The loop with each operand asked for in the first pass over it."""
        body = [self.visit(s) if isinstance(s, For) else s for s in self.loop.body]
        return replace(self.loop, body=tuple(body))

    def visit(self, stmt: For) -> For:
        """A pass; where it goes by the line, the lines of later rows are asked for."""
        if not p.has_loops(stmt):
            blocks = self.in_lines(stmt)
            return stmt if blocks is None else self.visit(blocks)
        vectors = [s for s in stmt.body if isinstance(s, For) and not p.has_loops(s)]
        ahead = {(x.storage, x.index): Prefetch(x) for loop in vectors for x in self.ahead(loop)}
        if ahead:
            self.known |= {storage for storage, _ in ahead}
            return replace(stmt, body=(*ahead.values(), *stmt.body))
        return replace(stmt, body=tuple(self.visit(s) if isinstance(s, For) else s
                                        for s in stmt.body))

    def in_lines(self, loop: For) -> For | None:
        """A long vector loop as blocks of a line if it reads what is to be asked for."""
        wanted = self.operands(loop)
        line = LINE // max((x.dtype.itemsize for x in wanted), default=LINE)
        if loop.kind != "simd" or not wanted or loop.var.extent % line:
            return None
        blocks = p.split_rest(replace(loop, kind="serial"), line)[0]
        assert isinstance(blocks, For)
        return replace(blocks, body=tuple(replace(s, kind="simd") if isinstance(s, For) else s
                                          for s in blocks.body))

    def ahead(self, loop: For) -> Iterator[Load]:
        """The lines that later rows have where a vector loop reads, each by its first element."""
        for x in self.operands(loop):
            size = x.dtype.itemsize
            step = x.index.coeff(self.loop.var)
            index = x.index + step * max(1, AHEAD // (step * size))
            for first in range(0, loop.var.extent, LINE // size):
                yield replace(x, index=index.substitute({loop.var: Affine.const_of(first)}))

    def operands(self, loop: For) -> list[Load]:
        """Loads of a vector loop from rows of large memory that nobody has asked for yet."""
        found = {(x.storage, x.index): x for s in loop.body if isinstance(s, Store)
                 for x in loads(s.value)}
        return [x for x in found.values()
                if x.storage not in self.known and self.in_rows(x, loop.var)]

    def in_rows(self, x: Load, inner: Var) -> bool:
        """True if a load goes through a large array, by elements in a pass and by rows here."""
        row, index = self.loop.var, x.index
        if x.storage.role not in ("slot", "arena") or x.storage.nbytes <= self.target.l2:
            return False
        if x.guard or any(index.data()) or not index.is_linear_in(row):
            return False
        step = index.coeff(row) * x.dtype.itemsize
        return index.coeff(inner) == 1 and 0 < step <= LONGEST_ROW
