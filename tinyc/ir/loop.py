"""Loop IR: scalar expressions, statements and kernels; schedules rewrite it, renderers print it.

Expressions reuse the elementwise operators of the Graph IR (`Op`), so there is one scalar language.
An array access is (storage, affine index): shapes and strides are gone at this level.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tinyc.diagnostics import Origin
from tinyc.ir.dtype import DType
from tinyc.ir.index import Affine, Var
from tinyc.ir.ops import Op

if TYPE_CHECKING:
    from tinyc.ir.plan import Buf


@dataclass(eq=False)
class Storage:
    """A piece of memory. `role`: slot (argument), arena, scratch (per worker, or block of threads),
    shared (on the chip, one for each block of threads), register or tile (a thread's own).

    What lives between kernels begins at `offset` bytes of the arena or, where there is one, of
    `within`: a result that is not written before this is read for the last time.
    """

    name: str
    size: int
    dtype: DType
    role: str
    offset: int = 0
    within: Storage | None = None

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return self.name


# -- expressions ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Const:
    """A literal."""

    value: bool | int | float
    dtype: DType


@dataclass(frozen=True)
class Within:
    """lo <= index < hi and index % step == 0, as a bool: the guard of a pad."""

    index: Affine
    lo: int
    hi: int
    step: int
    dtype: DType


@dataclass(frozen=True, eq=False)
class Read:
    """An element of a stage's buffer: a load before it is known where the buffer lives."""

    buf: Buf
    index: tuple[Affine, ...]
    guard: tuple[Within, ...] = ()

    @property
    def dtype(self) -> DType:
        return self.buf.dtype


@dataclass(frozen=True, eq=False)
class Load:
    """storage[index] where the guard holds, else zero; nothing is read outside the guard."""

    storage: Storage
    index: Affine
    guard: tuple[Within, ...] = ()

    @property
    def dtype(self) -> DType:
        return self.storage.dtype


@dataclass(frozen=True, eq=False)
class Index:
    """The value of an index expression, as a number."""

    index: Affine
    dtype: DType


@dataclass(frozen=True, eq=False)
class Apply:
    """op(args): an elementwise operator on scalars."""

    op: Op
    args: tuple[Expr, ...]
    dtype: DType

    @property
    def src(self) -> tuple[Expr, ...]:
        """The operands, as a node of a graph calls them."""
        return self.args


@dataclass(frozen=True, eq=False)
class Check:
    """`value` if 0 <= value < bound; else 0, with `site` written to the status word."""

    value: Expr
    bound: int
    site: int
    dtype: DType


Expr = Const | Read | Load | Index | Within | Apply | Check


def children(expr: Expr) -> tuple[Expr, ...]:
    """The operands of an expression, those inside data-dependent indices included."""
    if isinstance(expr, Apply):
        return expr.args
    if isinstance(expr, Load) and not expr.guard:
        return expr.index.data()
    if isinstance(expr, Const):
        return ()
    if isinstance(expr, Check):
        return (expr.value,)
    return tuple([e for index in indices(expr) for e in index.data()])


def indices(expr: Expr) -> tuple[Affine, ...]:
    """The index expressions of a node, its guards' included."""
    if isinstance(expr, Read):
        return (*expr.index, *(g.index for g in expr.guard))
    if isinstance(expr, Load):
        return (expr.index, *(g.index for g in expr.guard))
    if isinstance(expr, (Index, Within)):
        return (expr.index,)
    return ()


def walk(root: Expr) -> list[Expr]:
    """Every distinct node of an expression, operands first."""
    below: list[Expr] | None = root.__dict__.get("_below")
    if below is None:
        below = _below(root)
        # Expressions never change, and passes ask again and again.
        root.__dict__["_below"] = below
    return [*below, root]


def _below(root: Expr) -> list[Expr]:
    order: list[Expr] = []
    operands = children(root)
    if not operands:
        return order
    seen: set[int] = set()
    stack: list[Expr | None] = [*operands[::-1]]
    waiting: list[Expr] = []  # for their operands: each None on the stack ends those of one
    while stack:
        expr = stack.pop()
        if expr is None:
            order.append(waiting.pop())
        elif id(expr) not in seen:
            seen.add(id(expr))
            operands = children(expr)
            if operands:
                waiting.append(expr)
                stack.append(None)
                stack += operands[::-1]
            else:
                order.append(expr)
    return order


def rewrite(root: Expr, leaf: Callable[[Expr], Expr], index: Callable[[Affine], Affine]) -> Expr:
    """Rebuild an expression: `leaf` maps each rebuilt node, `index` each index; sharing is kept."""
    memo: dict[int, Expr] = {}
    for expr in walk(root):
        memo[id(expr)] = leaf(_rebuild(expr, memo, index))
    return memo[id(root)]


def _rebuild(expr: Expr, memo: Mapping[int, Expr], index: Callable[[Affine], Affine]) -> Expr:
    def fresh(a: Affine) -> Affine:
        return index(a.map_data(lambda e: memo[id(e)]) if a.data() else a)

    if isinstance(expr, Apply):
        args = tuple([memo[id(a)] for a in expr.args])
        return expr if args == expr.args else Apply(expr.op, args, expr.dtype)
    if isinstance(expr, Check):
        return replace(expr, value=memo[id(expr.value)])
    if isinstance(expr, (Index, Within)):
        return replace(expr, index=fresh(expr.index))
    if isinstance(expr, (Read, Load)):
        guard = tuple([replace(g, index=fresh(g.index)) for g in expr.guard])
        if isinstance(expr, Read):
            return Read(expr.buf, tuple(map(fresh, expr.index)), guard)
        return Load(expr.storage, fresh(expr.index), guard)
    return expr


def substitute(root: Expr, mapping: Mapping[Var, Affine]) -> Expr:
    """The expression with variables replaced."""
    return rewrite(root, lambda e: e, lambda a: a.substitute(mapping))


def substitute_index(index: Affine, mapping: Mapping[Var, Affine]) -> Affine:
    """An index with variables replaced, inside its data-dependent parts too."""
    return index.map_data(lambda e: substitute(e, mapping)).substitute(mapping)


def substitute_load(load: Load, mapping: Mapping[Var, Affine]) -> Load:
    """A load with variables replaced."""
    fresh = substitute(load, mapping)
    assert isinstance(fresh, Load)
    return fresh


def converted(value: Expr, dtype: DType) -> Expr:
    """A number as one of another dtype."""
    return value if value.dtype is dtype else Apply(Op.CAST, (value,), dtype)


def free_vars(root: Expr) -> frozenset[Var]:
    """The loop variables that an expression depends on."""
    found: set[Var] = set()
    for expr in walk(root):
        for index in indices(expr):
            found |= index.free_vars()
    return frozenset(found)


def loads(root: Expr) -> list[Load]:
    """The distinct loads of an expression."""
    return [e for e in walk(root) if isinstance(e, Load)]


# -- statements ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Store:
    """storage[index] = value, or combined with it: accumulate is None, "sum" or "max".

    `note` names the member of the kernel that stores. What `streams` goes past the caches. An
    `atomic` sum may meet others at its element, in any order. An `asynchronous` store of a load
    into shared memory is only asked for: it happens at any time up to the `Await` that ends it.
    """

    storage: Storage
    index: Affine
    value: Expr
    accumulate: str | None = None
    note: str = ""
    streams: bool = False
    atomic: bool = False
    asynchronous: bool = False


@dataclass(frozen=True, eq=False)
class Prefetch:
    """Asks for the cache line of an element, which may lie beyond the end of its storage."""

    load: Load


@dataclass(frozen=True, eq=False)
class Alloc:
    """Declares a register (or a small array of them) for the statements that follow."""

    storage: Storage


@dataclass(frozen=True, eq=False)
class For:
    """A loop over 0 <= var < extent, and var < limit if there is one.

    kind: serial; simd (iterations in any order); chunk (only the share of the running chunk);
    chunk_simd (both). Where a chunk is a block of threads: thread (dealt out to the threads: the
    first iteration to the first one, and so on; with as many iterations as threads the variable is
    the thread's number); unroll (as serial, to be written out); vector (independent, and what
    moves by one element with it is one access).
    """

    var: Var
    body: tuple[Stmt, ...]
    kind: str = "serial"
    limit: Affine | None = None


@dataclass(frozen=True, eq=False)
class If:
    """Guarded statements."""

    cond: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True, eq=False)
class Barrier:
    """Every thread of the block waits for all; what they stored before is seen by all after it."""


@dataclass(frozen=True, eq=False)
class Await:
    """A thread's asynchronous stores since its last `Await` become a group, and the thread waits
    until of all its groups no more than the last `pending` are on their way.

    Others see what has arrived after a `Barrier`.
    """

    pending: int


@dataclass(frozen=True, eq=False)
class Combine:
    """The registers of neighbouring threads become their sum or maximum, `how`, in a fixed tree.

    Of each `width` threads of the block, a power of two; of all of them where it is 0. It orders no
    access to memory.
    """

    storage: Storage
    how: str
    width: int = 0


@dataclass(frozen=True, eq=False)
class Contraction:
    """A contraction that no recipe has scheduled yet.

    For every point of rows x cols: tile[0] = sum over `depth` of a * b, then `body` runs. The first
    variable of rows, cols or depth may have a limit, as loops have.
    """

    rows: tuple[Var, ...]
    cols: tuple[Var, ...]
    depth: tuple[Var, ...]
    a: Load
    b: Load
    tile: Storage
    body: tuple[Stmt, ...]
    note: str = ""
    limits: Mapping[Var, Affine] = field(default_factory=dict)

    def limit(self, variables: tuple[Var, ...]) -> Affine | None:
        """How many points of some of the variables there are, if that is less than all."""
        found = self.limits.get(variables[0]) if variables else None
        return None if found is None else found * math.prod(v.extent for v in variables[1:])


@dataclass(frozen=True, eq=False)
class MicroKernel:
    """tile[at + i*apart + j] = sum over depth of a[row first + i, depth] * b[depth, j].

    `a` is read at `row` (a variable over all rows; beyond the last row, the last is read again);
    `b` is a panel whose rows, one for each point of `depth`, are `b_stride` elements apart.
    Where `more` is not 0, the sums are added to what the tile holds. A tile is a storage of the
    kernel's own, or its place in the result if nothing is left to do with the sums. The first
    variable of `depth` ends at `limit`, if there is one.
    """

    tile: Storage
    at: Affine
    height: int
    width: int
    lanes: int
    row: Var
    first: Affine
    depth: tuple[Var, ...]
    a: Load
    b: Load
    b_stride: int
    apart: int
    note: str = ""
    more: Affine = Affine.const_of(0)
    limit: Affine | None = None


@dataclass(frozen=True, eq=False)
class MicroPack:
    """storage[at + k*width + j] = b[first + j, k]: a transposing copy of `width` columns.

    `b` is read at `column` (a variable over all columns; beyond the last, the last is read again)
    and moves by one element with k, which counts the points of `depth`.
    """

    storage: Storage
    at: Affine
    width: int
    lanes: int
    column: Var
    first: Affine
    depth: tuple[Var, ...]
    b: Load


@dataclass(frozen=True, eq=False)
class MicroMma:
    """sums += a * b: height x width sums of a warp over `depth`, by all of its threads together.

    `a` is the first of the rows, whose next one and next point of the depth lie `a_steps` farther;
    so do `b` and `b_steps` for columns. Each thread has some of the sums, as matrix instructions
    want it (`places`). `kind` is what operands are multiplied as: f16, bf16, or tf32, to which
    numbers of f32 are rounded.
    """

    sums: Storage
    height: int
    width: int
    depth: int
    a: Load
    a_steps: tuple[int, int]
    b: Load
    b_steps: tuple[int, int]
    lane: Affine
    kind: str
    note: str = ""

    def places(self, lane: int) -> list[tuple[int, int]]:
        """(row, column) of each sum of a thread of the warp."""
        return [(16 * i + lane // 4 + 8 * (r // 2), 8 * j + lane % 4 * 2 + r % 2)
                for i in range(self.height // 16) for j in range(self.width // 8)
                for r in range(4)]


Stmt = (Store | Prefetch | Alloc | For | If | Barrier | Await | Combine | Contraction | MicroKernel
        | MicroPack | MicroMma)


def statements(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """Every statement of a tree, outer ones first."""
    stack = list(reversed(body))
    while stack:
        stmt = stack.pop()
        yield stmt
        if isinstance(stmt, (For, If, Contraction)):
            stack.extend(reversed(stmt.body))


def holds(body: tuple[Stmt, ...], kind: type | tuple[type, ...]) -> bool:
    """True if a statement of a tree is of a kind."""
    return any(isinstance(s, kind) for s in statements(body))


def stored_at(stmt: Stmt) -> tuple[Storage, Affine] | None:
    """The storage that a statement itself writes, and the (first) element that it writes."""
    if isinstance(stmt, Store):
        return stmt.storage, stmt.index
    if isinstance(stmt, MicroKernel):
        return stmt.tile, stmt.at
    if isinstance(stmt, MicroMma):
        return stmt.sums, Affine.const_of(0)
    return (stmt.storage, stmt.at) if isinstance(stmt, MicroPack) else None


def stored_in(body: tuple[Stmt, ...]) -> dict[Storage, None]:
    """The storages that statements, and those below them, write, first ones first."""
    return {place[0]: None for place in map(stored_at, statements(body)) if place is not None}


def adds(stmt: Stmt) -> bool:
    """True if a statement combines what it stores with what is there."""
    if isinstance(stmt, MicroKernel):
        return stmt.more != Affine.const_of(0)
    return isinstance(stmt, MicroMma) or (
        isinstance(stmt, Store) and stmt.accumulate is not None)


def loads_of(stmt: Stmt) -> list[Load]:
    """The loads that a statement itself makes, in its indices too; not those of statements below.
    """
    roots: tuple[Expr, ...] = ()
    if isinstance(stmt, Store):
        roots = (stmt.value, *stmt.index.data())
    elif isinstance(stmt, If):
        roots = (stmt.cond,)
    elif isinstance(stmt, (Contraction, MicroKernel)):
        roots = (stmt.a, stmt.b, *(e for i in limits_of(stmt) for e in i.data()))
    elif isinstance(stmt, For):
        roots = tuple(e for i in limits_of(stmt) for e in i.data())
    elif isinstance(stmt, MicroMma):
        roots = (stmt.a, stmt.b)
    elif isinstance(stmt, MicroPack):
        roots = (stmt.b,)
    elif isinstance(stmt, Prefetch):
        roots = (stmt.load,)
    return [load for root in roots for load in loads(root)]


def limits_of(stmt: For | Contraction | MicroKernel) -> tuple[Affine, ...]:
    """The indices at which loops of a statement end."""
    if isinstance(stmt, Contraction):
        return tuple(stmt.limits.values())
    return () if stmt.limit is None else (stmt.limit,)


def transform(body: tuple[Stmt, ...], fn: Callable[[Stmt], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
    """Rebuild a tree bottom-up; `fn` maps each rebuilt statement to the ones that replace it."""
    out: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, (For, If, Contraction)):
            inner = transform(stmt.body, fn)
            stmt = stmt if inner == stmt.body else replace(stmt, body=inner)
        out.extend(fn(stmt))
    return tuple(out)


def substitute_stmt(stmt: Stmt, mapping: Mapping[Var, Affine]) -> Stmt:
    """A statement (and all below it) with free variables replaced."""
    if isinstance(stmt, Store):
        return replace(stmt, index=substitute_index(stmt.index, mapping),
                       value=substitute(stmt.value, mapping))
    if isinstance(stmt, Prefetch):
        return Prefetch(substitute_load(stmt.load, mapping))
    if isinstance(stmt, For):
        limit = None if stmt.limit is None else substitute_index(stmt.limit, mapping)
        body = tuple(substitute_stmt(s, mapping) for s in stmt.body)
        return replace(stmt, limit=limit, body=body)
    if isinstance(stmt, If):
        return If(substitute(stmt.cond, mapping),
                  tuple(substitute_stmt(s, mapping) for s in stmt.body))
    if isinstance(stmt, MicroKernel):
        return replace(stmt, at=stmt.at.substitute(mapping),
                       first=stmt.first.substitute(mapping), a=substitute_load(stmt.a, mapping),
                       b=substitute_load(stmt.b, mapping), more=stmt.more.substitute(mapping),
                       limit=None if stmt.limit is None else substitute_index(stmt.limit, mapping))
    if isinstance(stmt, MicroPack):
        return replace(stmt, at=stmt.at.substitute(mapping),
                       first=stmt.first.substitute(mapping), b=substitute_load(stmt.b, mapping))
    if isinstance(stmt, MicroMma):
        return replace(stmt, a=substitute_load(stmt.a, mapping), b=substitute_load(stmt.b, mapping),
                       lane=stmt.lane.substitute(mapping))
    if isinstance(stmt, Contraction):
        return replace(stmt, a=substitute_load(stmt.a, mapping), b=substitute_load(stmt.b, mapping),
                       body=tuple(substitute_stmt(s, mapping) for s in stmt.body),
                       limits={v: substitute_index(i, mapping) for v, i in stmt.limits.items()})
    return stmt


def replace_storage(body: tuple[Stmt, ...], fresh: dict[Storage, Storage]) -> tuple[Stmt, ...]:
    """`body` with storages exchanged."""
    def leaf(e: Expr) -> Expr:
        if isinstance(e, Load) and e.storage in fresh:
            return replace(e, storage=fresh[e.storage])
        return e

    def moved(limit: Affine | None) -> Affine | None:
        return limit and limit.map_data(lambda e: rewrite(e, leaf, lambda a: a))

    def swap(stmt: Stmt) -> Stmt:
        if isinstance(stmt, (Alloc, Combine)):
            return replace(stmt, storage=fresh.get(stmt.storage, stmt.storage))
        if isinstance(stmt, Prefetch):
            return Prefetch(replace(stmt.load, storage=fresh.get(stmt.load.storage,
                                                                 stmt.load.storage)))
        if isinstance(stmt, Store):
            at = stmt.index.map_data(lambda e: rewrite(e, leaf, lambda a: a))
            return replace(stmt, storage=fresh.get(stmt.storage, stmt.storage), index=at,
                           value=rewrite(stmt.value, leaf, lambda a: a))
        if isinstance(stmt, For):
            return replace(stmt, body=tuple(map(swap, stmt.body)), limit=moved(stmt.limit))
        if isinstance(stmt, If):
            return If(rewrite(stmt.cond, leaf, lambda a: a), tuple(map(swap, stmt.body)))
        if isinstance(stmt, MicroKernel):
            a, b = (replace(x, storage=fresh.get(x.storage, x.storage)) for x in (stmt.a, stmt.b))
            return replace(stmt, tile=fresh.get(stmt.tile, stmt.tile), a=a, b=b,
                           limit=moved(stmt.limit))
        if isinstance(stmt, MicroMma):
            a, b = (replace(x, storage=fresh.get(x.storage, x.storage)) for x in (stmt.a, stmt.b))
            return replace(stmt, sums=fresh.get(stmt.sums, stmt.sums), a=a, b=b)
        if isinstance(stmt, MicroPack):
            b = replace(stmt.b, storage=fresh.get(stmt.b.storage, stmt.b.storage))
            return replace(stmt, b=b)
        return stmt

    return tuple(map(swap, body))


# -- a kernel ------------------------------------------------------------------------------------


@dataclass(eq=False)
class LoopKernel:
    """One kernel: `body` runs once per chunk (in any order, on any worker), `finish` once after.

    Loops of kind "chunk" cover the share of the chunk that runs; `chunk` is its number. `lines`
    are the user's lines that members come from. With more than one of `threads` each chunk is a
    block of them, all of which run `body`; the loops of `finish` are for `last.extent` blocks, and
    `last` is a block's number there. `resident` blocks should share a multiprocessor's registers,
    where that is not 0.
    """

    name: str
    body: tuple[Stmt, ...]
    finish: tuple[Stmt, ...]
    chunk: Var
    members: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()
    lines: Mapping[str, Origin] = field(default_factory=dict)
    threads: int = 1
    resident: int = 0
    last: Var = field(default_factory=lambda: Var("chunk", 1))

    @property
    def chunks(self) -> int:
        return self.chunk.extent
