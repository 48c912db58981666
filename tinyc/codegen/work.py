"""How much a kernel computes, in one unit: a multiply-add of a vector where nothing waits.

That is half a cycle on a CPU with two pipes. What other operations cost in it was measured on one
such CPU with generated code; it depends on a CPU far less than times do.
"""
from __future__ import annotations

from tinyc.ir.cost import elements
from tinyc.ir.index import Affine, FloorDiv, Mod, Var
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Check,
    For,
    If,
    Load,
    LoopKernel,
    MicroKernel,
    MicroPack,
    Prefetch,
    Stmt,
    Store,
    Within,
    walk,
)
from tinyc.ir.ops import Op
from tinyc.ir.program import Work

# Operations that take longer than an addition. A function of a single number takes as long as of a
# vector of them.
UNITS = {
    Op.DIV: 10, Op.SQRT: 9, Op.EXP: 16, Op.LOG: 26, Op.TANH: 22, Op.ERF: 32, Op.SIN: 120,
    Op.COS: 120, Op.POW: 130, Op.IDIV: 40, Op.MOD: 40,
}
FREE = (Op.BITCAST,)
# An element that is read or written alone, in a line of the cache that holds more of the same row,
# and one in a line of its own.
ALONE, FAR, LINE = 2.0, 5.0, 64
# A guard of a load; a loop that begins and has a rest; an iteration of one that is no vector loop.
GUARD, START, STEP = 2.0, 6.0, 1.0
# A register tile: independent sums that hide the latency of a multiply-add; what a call costs
# beside them, for each row and as a whole.
HIDDEN, ROW, CALL = 8, 6.0, 40.0
# Transposing a square of vectors, for each of its vectors.
TRANSPOSED = 8.0


def work(kernel: LoopKernel, lanes: int) -> Work:
    """Count what a kernel computes once all chunks have run, on vectors of `lanes` f32 numbers."""
    body = Pricer(kernel.chunks, lanes)
    body.block(kernel.body, kernel.chunks, None)
    finish = Pricer(1, lanes)
    finish.block(kernel.finish, 1, None)
    last = finish.tile + finish.vector + finish.scalar
    return Work(*(round(n, 1) for n in (body.tile, body.vector, body.scalar, last)))


class Pricer:
    """Walks loops and adds up; `times` is how often a statement runs in all chunks together."""

    def __init__(self, chunks: int, lanes: int):
        self.chunks = chunks
        self.lanes = lanes
        self.tile = self.vector = self.scalar = 0.0

    def block(self, body: tuple[Stmt, ...], times: float, inner: Var | None) -> None:
        """Statements inside the loop over `inner`."""
        for stmt in body:
            if isinstance(stmt, For):
                self.loop(stmt, times)
            elif isinstance(stmt, If):
                alone = isinstance(stmt.cond, Within)  # what one chunk does
                self.block(stmt.body, times / self.chunks if alone else times, inner)
            elif isinstance(stmt, Store):
                self.scalar += times * self.alone(stmt, inner)
            elif isinstance(stmt, MicroKernel):
                self.tile += times * self.register_tile(stmt)
            elif isinstance(stmt, MicroPack):
                vectors = -(-stmt.width * elements(stmt.depth) // self.lanes)
                self.vector += times * (CALL + TRANSPOSED * vectors)

    def loop(self, stmt: For, times: float) -> None:
        if stmt.kind.startswith("chunk"):
            times /= self.chunks
        n = stmt.var.extent if stmt.limit is None else mean_range(stmt)
        simple = all(isinstance(s, (Store, Alloc, Prefetch)) for s in stmt.body)
        if stmt.kind.endswith("simd") and simple:
            stores = [s for s in stmt.body if isinstance(s, Store)]
            if all(is_vector(s, stmt.var) for s in stores):
                self.vector += times * self.vectors(stores, stmt.var, n)
                return
        self.scalar += times * n * STEP
        self.block(stmt.body, times * n, stmt.var)

    def vectors(self, stores: list[Store], v: Var, n: float) -> float:
        """A vector loop: whole vectors, then what is left."""
        width = max((max(s.storage.dtype.itemsize, 4) for s in stores), default=4)
        lanes = max(1, self.lanes * 4 // width)
        each = sum(self.together(s, v, lanes) for s in stores)
        rest = n % lanes
        return each * (n // lanes + min(1.0, rest / 4)) + (START if rest or n > 8 * lanes else 0.0)

    def together(self, s: Store, v: Var, lanes: int) -> float:
        """A store of one vector: the longer of arithmetic and of loads and stores."""
        computed = arithmetic(s)
        moved = 0.0 if s.storage.role == "register" else access(s.index.coeff(v), s, lanes, 2.0)
        for e in walk(s.value):
            if isinstance(e, Load) and e.storage.role != "register":
                moved += access(e.index.coeff(v), e, lanes, 1.0)
                computed += GUARD * len(e.guard)
        return max(computed, moved)

    def alone(self, s: Store, inner: Var | None) -> float:
        """A store of one number."""
        total = arithmetic(s) + (1.0 if s.storage.role == "register" else 2.0)
        for e in (e for root in (s.value, *s.index.data()) for e in walk(root)):
            if isinstance(e, Load) and e.storage.role != "register":
                total += FAR if inner is not None and is_far(e.index.coeff(inner), e) else 1.0
                total += GUARD * len(e.guard)
        return total

    def register_tile(self, stmt: MicroKernel) -> float:
        """What a call of a register tile takes: sums, or loads, or the latency of a sum."""
        vectors = stmt.width // stmt.lanes
        sums = stmt.height * vectors
        each = max(sums, stmt.height + vectors, HIDDEN) * stmt.lanes / self.lanes
        half = 2.0 if stmt.lanes < self.lanes else 1.0  # a shorter vector takes as long
        return mean_depth(stmt) * each * half + CALL + ROW * stmt.height + 2 * sums


def arithmetic(s: Store) -> float:
    """The operations of one evaluation."""
    total = 1.0 if s.accumulate else 0.0
    for e in (e for root in (s.value, *s.index.data()) for e in walk(root)):
        if isinstance(e, Apply) and e.op not in FREE:
            total += UNITS.get(e.op, 1) * (2 if e.dtype.itemsize > 4 else 1)
        elif isinstance(e, Check):
            total += 2.0
    return total


def access(stride: int, e: Load | Store, lanes: int, plain: float) -> float:
    """Reading or writing a vector whose elements are `stride` apart."""
    if stride == 0:
        return 0.0
    if abs(stride) == 1:
        return plain * max(e.storage.dtype.itemsize, 4) / 4
    return lanes * (FAR if is_far(stride, e) else ALONE)


def is_far(stride: int, e: Load | Store) -> bool:
    """True if each element is in a line of its own."""
    return abs(stride) * e.storage.dtype.itemsize >= LINE


def is_vector(s: Store, v: Var) -> bool:
    """True if a store at all values of `v` becomes vectors: no index depends on `v` in other ways
    than by steps, and no guard lets only every other one through."""
    reads = [e for e in walk(s.value) if isinstance(e, Load)]
    guards = [g for e in reads for g in e.guard]
    places = [s.index, *(e.index for e in reads), *(g.index for g in guards)]
    return all(index.is_linear_in(v) for index in places) and not any(
        g.step > 1 and g.index.coeff(v) for g in guards)


def mean_range(loop: For) -> float:
    """The mean range of a loop with a limit; the last round of tiles is shorter."""
    assert loop.limit is not None
    if any(True for _ in loop.limit.data()):
        return min(loop.var.extent, max(0.0, middle(loop.limit)))
    _, hi = loop.limit.bounds()
    rounds = -(-hi // loop.var.extent)
    return hi / rounds if rounds else 0.0


def mean_depth(kernel: MicroKernel) -> float:
    """The mean number of points of a register tile's depth."""
    whole = elements(kernel.depth)
    return whole if kernel.limit is None else (
        whole * middle(kernel.limit) / kernel.depth[0].extent)


def middle(index: Affine) -> float:
    """An index at the middle of its variables; what it reads from memory is taken to be 0, as it is
    but for numbers out of the ordinary (`schedule.skip`)."""
    total = float(index.const)
    for a, c in index.terms:
        if isinstance(a, Var):
            total += c * a.hi / 2
        elif isinstance(a, FloorDiv):
            total += c * (middle(a.operand) - (a.n - 1) / 2) / a.n
        elif isinstance(a, Mod):
            total += c * a.hi / 2
    return total
