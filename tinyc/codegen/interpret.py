"""Runs loop kernels, one scalar at a time: the oracle for schedules, and the device `interpret`.

Any tree runs, scheduled or not. What a schedule may not rely on is made to fail: chunks and simd
iterations run backwards, memory that nobody wrote holds a pattern, and an access outside its
storage raises. Blocks of threads are `tinyc.codegen.threads`. Each store can be watched, see
`tinyc.codegen.watch`.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from types import MappingProxyType
from typing import Any

import numpy as np

from tinyc.codegen.watch import Stored, Watcher
from tinyc.ir.cost import elements
from tinyc.ir.dtype import numbers, stored
from tinyc.ir.evaluate import EVAL
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Check,
    Const,
    Contraction,
    Expr,
    For,
    If,
    Index,
    Load,
    LoopKernel,
    MicroKernel,
    MicroMma,
    MicroPack,
    Prefetch,
    Stmt,
    Storage,
    Store,
    Within,
    loads,
    walk,
)
from tinyc.ir.ops import Op

UNWRITTEN = 0x7B
# An index out of range: the number of its check, counted from 1, and its value.
Bad = tuple[int, int]


class OutsideStorage(AssertionError):
    """A kernel reads or writes beyond the end of a storage."""


def run_kernels(kernels: Sequence[LoopKernel], slots: Mapping[Storage, np.ndarray],
                arena_size: int | None = None) -> Bad | None:
    """Run kernels in order on flat arrays, one for each slot, which they write in place.

    With `arena_size` the arena is one piece of memory and storages lie at their offsets; without,
    each has memory of its own. Returns (site, value) of the last kernel's first index out of range.
    """
    arena = None if arena_size is None else new_arena(arena_size)
    shared = dict(slots)
    found: Bad | None = None
    for kernel in kernels:
        found = run_kernel(kernel, shared, arena) or found
    return found


def new_arena(size: int) -> np.ndarray:
    """Memory for what lives between kernels, as if nobody had written to it."""
    return np.full(size, UNWRITTEN, np.uint8)


def run_kernel(kernel: LoopKernel, shared: dict[Storage, np.ndarray], arena: np.ndarray | None,
               watchers: Sequence[Watcher] = ()) -> Bad | None:
    """Run one kernel on arrays by storage; those of the arena are added to `shared`.

    Returns (site, value) of the first index out of range, if any: then `finish` is left out.
    """
    found: Bad | None = None
    orders: dict[int, list[Expr]] = {}
    if kernel.threads > 1:
        from tinyc.codegen.threads import run_blocks  # which needs what is here

        return run_blocks(kernel, shared, arena, watchers)
    with np.errstate(all="ignore"):
        for chunk in reversed(range(kernel.chunks)):
            worker = Worker(kernel, shared, arena, chunk, orders, watchers)
            worker.block(kernel.body)
            found = found or worker.found
        for chunk in reversed(range(kernel.last.extent if found is None else 0)):
            worker = Worker(kernel, shared, arena, chunk, orders, watchers, finishes=True)
            worker.block(kernel.finish)
            found = found or worker.found
    return found


class Variables(dict[Any, int]):
    """Values of loop variables; a data index has the value just computed for its expression."""

    def __init__(self) -> None:
        super().__init__()
        self.computed: dict[int, Any] = {}

    def __missing__(self, atom: Any) -> int:
        return int(self.computed[id(atom.expr)])


class Worker:
    """One chunk of one kernel: its loop variables, and registers and scratch of its own."""

    def __init__(self, kernel: LoopKernel, shared: dict[Storage, np.ndarray],
                 arena: np.ndarray | None, chunk: int, orders: dict[int, list[Expr]],
                 watchers: Sequence[Watcher], finishes: bool = False) -> None:
        number = kernel.last if finishes else kernel.chunk
        self.kernel = kernel
        self.chunks = number.extent
        self.shared = shared
        self.arena = arena
        self.chunk = chunk
        self.found: Bad | None = None
        self.own: dict[Storage, np.ndarray] = {}
        self.variables = Variables()
        self.variables[number] = chunk
        self.orders = orders
        self.watchers = watchers

    # -- memory ----------------------------------------------------------------------------------

    def array(self, s: Storage) -> np.ndarray:
        """The elements of a storage."""
        table = self.shared if s.role in ("slot", "arena") else self.own
        found = table.get(s)
        if found is None:
            found = table[s] = self.place(s)
        return found

    def place(self, s: Storage) -> np.ndarray:
        if s.role == "arena" and self.arena is not None:
            home = self.arena if s.within is None else self.array(s.within).view(np.uint8)
            return home[s.offset:s.offset + s.nbytes].view(s.dtype.np)
        return np.full(s.nbytes, UNWRITTEN, np.uint8).view(s.dtype.np)

    def position(self, s: Storage, index: Affine) -> int:
        at = index.evaluate(self.variables)
        self.require(s, at, at + 1)
        return at

    def require(self, s: Storage, lo: int, hi: int) -> None:
        if lo < 0 or hi > s.size:
            raise OutsideStorage(
                f"{self.kernel.name}: elements {lo} to {hi - 1} of {s.name}, which has {s.size}")

    # -- statements ------------------------------------------------------------------------------

    def block(self, body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            self.statement(stmt)

    def statement(self, stmt: Stmt) -> None:
        if isinstance(stmt, Store):
            self.store(stmt)
        elif isinstance(stmt, For):
            for i in self.iterations(stmt):
                self.variables[stmt.var] = i
                self.block(stmt.body)
            self.variables.pop(stmt.var, None)
        elif isinstance(stmt, Alloc):
            self.own[stmt.storage] = self.place(stmt.storage)
        elif isinstance(stmt, If):
            if self.value(stmt.cond):
                self.block(stmt.body)
        elif isinstance(stmt, Contraction):
            self.contraction(stmt)
        elif isinstance(stmt, Prefetch):
            pass
        elif isinstance(stmt, MicroPack):
            self.micro_pack(stmt)
        elif isinstance(stmt, MicroKernel):
            self.micro_kernel(stmt)
        elif isinstance(stmt, MicroMma):
            self.micro_mma(stmt)

    def iterations(self, loop: For) -> Iterable[int]:
        n = loop.var.extent
        start, stop = 0, n
        if loop.kind.startswith("chunk"):
            start, stop = self.chunk * n // self.chunks, (self.chunk + 1) * n // self.chunks
        if loop.limit is not None:
            stop = min(stop, self.limit(loop.limit))
        backwards = loop.kind.endswith("simd") or loop.kind == "vector"
        return reversed(range(start, stop)) if backwards else range(start, stop)

    def limit(self, index: Affine) -> int:
        """Where a loop ends."""
        for expr in index.data():
            self.value(expr)
        return index.evaluate(self.variables)

    def store(self, stmt: Store) -> None:
        value = self.value(stmt.value)
        for expr in stmt.index.data():
            self.value(expr)
        array = self.array(stmt.storage)
        if value.dtype != array.dtype:
            raise AssertionError(f"{self.kernel.name}: {value.dtype} stored as {array.dtype}")
        at = self.position(stmt.storage, stmt.index)
        if self.watchers:
            self.show(stmt, (stmt.storage, at, stmt.accumulate), value, array[at])
        if stmt.accumulate == "sum":
            array[at] += value
        elif stmt.accumulate == "max":
            array[at] = np.maximum(array[at], value)
        else:
            array[at] = value

    def show(self, stmt: Store | MicroKernel, place: tuple[Storage, int, str | None], value: Any,
             old: Any) -> None:
        """Hand a store that is about to happen to those who watch it."""
        kernel = self.kernel
        storage, at, accumulate = place
        member = next((word for word in stmt.note.split() if word in kernel.members), "")
        for watcher in self.watchers:
            if watcher.wants(f"{kernel.name} {stmt.note}"):
                computed = self.variables.computed
                read = loads(stmt.value) if isinstance(stmt, Store) else []
                reads = {f"{e.storage.name}[{e.index.evaluate(self.variables)}]":
                         plain(computed[id(e)], e.storage)
                         for e in read if all(map(self.holds, e.guard))}
                loops = {v.name: i for v, i in self.variables.items() if v.extent > 1}
                watcher.function(Stored(kernel.name, member, kernel.lines.get(member), storage.name,
                                        at, plain(value, storage), plain(old, storage), accumulate,
                                        loops, reads))

    def contraction(self, stmt: Contraction) -> None:
        """tile[0] = sum of a * b, then the body, at each point of rows and columns."""
        dtype = stmt.tile.dtype.np
        limits = {v: self.limit(i) for v, i in stmt.limits.items()}
        for _ in self.points((*stmt.rows, *stmt.cols), limits):
            total = np.zeros((), dtype)
            for _ in self.points(stmt.depth, limits):
                total = total + self.widened(stmt.a) * self.widened(stmt.b)
            self.array(stmt.tile)[0] = total
            self.block(stmt.body)

    def points(self, variables: tuple[Var, ...],
               limits: Mapping[Var, int] = MappingProxyType({})) -> Iterable[tuple[int, ...]]:
        """Every value of some variables, the last one fastest; they have it meanwhile."""
        for point in product(*(range(limits.get(v, v.extent)) for v in variables)):
            self.variables.update(zip(variables, point))
            yield point

    def micro_kernel(self, stmt: MicroKernel) -> None:
        at = stmt.at.evaluate(self.variables)
        limits = {} if stmt.limit is None else {stmt.depth[0]: self.limit(stmt.limit)}
        columns = self.panel(stmt, limits).astype(np.float64)
        first = stmt.first.evaluate(self.variables)
        tile = self.array(stmt.tile)
        more = stmt.more.evaluate(self.variables)
        for i in range(stmt.height):
            self.require(stmt.tile, at, at + stmt.width)
            self.variables[stmt.row] = min(first + i, stmt.row.extent - 1)
            row = [self.widened(stmt.a) for _ in self.points(stmt.depth, limits)]
            old = tile[at:at + stmt.width]
            total = (np.array(row, np.float64) @ columns + (old if more else 0)).astype(tile.dtype)
            for j in range(stmt.width if self.watchers and stmt.tile.role != "tile" else 0):
                self.show(stmt, (stmt.tile, at + j, None), total[j], old[j])
            tile[at:at + stmt.width] = total
            at += stmt.apart

    def panel(self, stmt: MicroKernel, limits: Mapping[Var, int]) -> np.ndarray:
        """The rows of the column operand, one for each point of the depth."""
        rows = []
        start = stmt.b.index.evaluate(self.variables)
        for _ in self.points(stmt.depth, limits):
            self.require(stmt.b.storage, start, start + stmt.width)
            row = self.array(stmt.b.storage)[start:start + stmt.width]
            rows.append(numbers(row, stmt.b.dtype))
            start += stmt.b_stride
        return np.array(rows)

    def micro_pack(self, stmt: MicroPack) -> None:
        at = stmt.at.evaluate(self.variables)
        first = stmt.first.evaluate(self.variables)
        self.require(stmt.storage, at, at + elements(stmt.depth) * stmt.width)
        packed = self.array(stmt.storage)
        for j in range(stmt.width):
            self.variables[stmt.column] = min(first + j, stmt.column.extent - 1)
            value = self.value if stmt.b.dtype is stmt.storage.dtype else self.widened
            for k, _ in enumerate(self.points(stmt.depth)):
                packed[at + k * stmt.width + j] = value(stmt.b)

    def micro_mma(self, stmt: MicroMma) -> None:
        """The sums of one thread of a warp."""
        sums = self.array(stmt.sums)
        for n, (i, j) in enumerate(stmt.places(stmt.lane.evaluate(self.variables))):
            for k in range(stmt.depth):
                a, b = (self.operand(x, own * at + deep * k, stmt.kind) for x, (own, deep), at in (
                    (stmt.a, stmt.a_steps, i), (stmt.b, stmt.b_steps, j)))
                sums[n] += a * b

    def operand(self, x: Load, ahead: int, kind: str) -> Any:
        """A number that a matrix instruction multiplies."""
        value = numbers(self.load(replace(x, index=x.index + ahead)), x.dtype)
        if kind != "tf32":
            return value
        bits = np.asarray(value).view(np.uint32)  # to nearest, ties away from 0
        return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)[()]

    # -- expressions -----------------------------------------------------------------------------

    def value(self, root: Expr) -> Any:
        """The value of an expression, a numpy scalar of its dtype."""
        order = self.orders.get(id(root))
        if order is None:
            order = self.orders[id(root)] = list(walk(root))
        computed = self.variables.computed
        for e in order:
            computed[id(e)] = self.scalar(e, computed)
        return computed[id(root)]

    def widened(self, root: Expr) -> Any:
        """The value of an expression as a number; halves are widened."""
        return numbers(np.asarray(self.value(root)), root.dtype)[()]

    def scalar(self, e: Expr, computed: dict[int, Any]) -> Any:
        if isinstance(e, Load):
            return self.load(e)
        if isinstance(e, Apply):
            args = [computed[id(a)] for a in e.args]
            return args[0].view(e.dtype.np) if e.op is Op.BITCAST else apply(e, args)
        if isinstance(e, Const):
            return stored(np.array(e.value), e.dtype)[()]
        if isinstance(e, Index):
            return e.dtype.np.type(e.index.evaluate(self.variables))
        if isinstance(e, Within):
            return np.bool_(self.holds(e))
        if isinstance(e, Check):
            return self.checked(e, computed[id(e.value)])
        raise AssertionError(f"not an expression of a kernel: {e}")

    def load(self, e: Load) -> Any:
        if not all(self.holds(g) for g in e.guard):
            return np.zeros((), e.dtype.np)[()]
        return self.array(e.storage)[self.position(e.storage, e.index)]

    def holds(self, e: Within) -> bool:
        at = e.index.evaluate(self.variables)
        return e.lo <= at < e.hi and at % e.step == 0

    def checked(self, e: Check, value: Any) -> Any:
        if 0 <= value < e.bound:
            return value
        if self.found is None:
            self.found = e.site, int(value)
        return e.dtype.np.type(0)


def plain(value: Any, storage: Storage) -> Any:
    """An element of a storage as a number to look at."""
    return numbers(np.asarray(value), storage.dtype)[()] if storage.dtype.is_half else value


def apply(e: Apply, args: Sequence[Any]) -> Any:
    """An elementwise operator as the evaluator of graphs has it."""
    return EVAL[e.op](e, *args)[()]
