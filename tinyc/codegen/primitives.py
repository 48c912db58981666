"""Schedule primitives: loop tree -> loop tree, each legal or refused with a ScheduleError.

Every primitive keeps what a kernel computes; `codegen.interpret` is the oracle that tests it.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import local

from tinyc.diagnostics import ScheduleError
from tinyc.ir.dtype import DType, bool_, f32, f64, limits
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Const,
    Expr,
    For,
    If,
    Load,
    MicroKernel,
    MicroPack,
    Stmt,
    Storage,
    Store,
    Within,
    converted,
    free_vars,
    indices,
    loads,
    replace_storage,
    rewrite,
    statements,
    stored_in,
    substitute_stmt,
    walk,
)
from tinyc.ir.ops import Op


def accesses(body: tuple[Stmt, ...]) -> Iterator[Affine]:
    """Every index expression below `body`."""
    for stmt in statements(body):
        if isinstance(stmt, Store):
            yield stmt.index
            for expr in [stmt.value, *stmt.index.data()]:
                for e in walk(expr):
                    yield from indices(e)
        elif isinstance(stmt, For) and stmt.limit is not None:
            yield stmt.limit
        elif isinstance(stmt, If):
            for e in walk(stmt.cond):
                yield from indices(e)
        elif isinstance(stmt, MicroKernel):
            yield from (stmt.at, stmt.first, stmt.a.index, stmt.b.index, stmt.more)
            if stmt.limit is not None:
                yield stmt.limit
        elif isinstance(stmt, MicroPack):
            yield from (stmt.at, stmt.first, stmt.b.index)


def collapse(outer: For) -> For:
    """Make one loop of two that are perfectly nested and run through memory as one.

    for a < A: for b < B: x[B*a + b]   ->   for ab < A*B: x[ab]
    """
    if len(outer.body) != 1 or not isinstance(outer.body[0], For):
        raise ScheduleError("collapse: the outer loop holds more than the inner one")
    inner = outer.body[0]
    if inner.limit is not None or outer.limit is not None or inner.kind != "serial":
        raise ScheduleError("collapse: a loop has a limit or a kind of its own")
    a, b = outer.var, inner.var
    for index in accesses(inner.body):
        if not (index.is_linear_in(a) and index.is_linear_in(b)):
            raise ScheduleError(f"collapse: {index} divides {a.name} or {b.name}")
        if index.coeff(a) != b.extent * index.coeff(b):
            raise ScheduleError(f"collapse: {index} does not step evenly over {a.name}, {b.name}")
    both = Var(f"{a.name}_{b.name}", a.extent * b.extent)
    mapping = {a: Affine.const_of(0), b: Affine.of(both)}
    return For(both, tuple(substitute_stmt(s, mapping) for s in inner.body), outer.kind)


def split(loop: For, factor: int) -> For:
    """Two loops for one: blocks of `factor` iterations.

    for i < N: s(i)   ->   for o < N/F: for d < F: s(F*o + d)
    """
    if loop.limit is not None or loop.kind != "serial" or loop.var.extent % factor:
        raise ScheduleError(f"split: {loop.var.name} does not divide into blocks of {factor}")
    o = Var(f"{loop.var.name}o", loop.var.extent // factor)
    d = Var(f"{loop.var.name}d", factor)
    at = Affine.of(o) * factor + Affine.of(d)
    inner = For(d, tuple(substitute_stmt(s, {loop.var: at}) for s in loop.body))
    return For(o, (inner,))


def split_rest(loop: For, factor: int) -> tuple[Stmt, ...]:
    """Two loops for one, and a third for what is left over.

    for i < N: s(i)   ->   for o < N/F: for d < F: s(F*o + d); for t < N%F: s(N/F*F + t)
    """
    if loop.limit is not None or loop.kind != "serial":
        raise ScheduleError(f"split_rest: the range of {loop.var.name} is not known here")
    v, (whole, rest) = loop.var, divmod(loop.var.extent, factor)
    o, d, t = Var(f"{v.name}o", whole), Var(f"{v.name}d", factor), Var(f"{v.name}t", rest)
    at = Affine.of(o) * factor + Affine.of(d)
    blocks = For(o, (For(d, tuple(substitute_stmt(s, {v: at}) for s in loop.body)),))
    if not rest:
        return (blocks,)
    at = Affine.of(t) + whole * factor
    return blocks, For(t, renamed(tuple(substitute_stmt(s, {v: at}) for s in loop.body)))


def digit(loop: For) -> int | None:
    """The smallest number by which indices below divide the loop's variable alone."""
    found: set[int] = set()
    for index in accesses(loop.body):
        for n, operand in index.divisions():
            if operand.as_var() is loop.var and loop.var.extent % n == 0 and n < loop.var.extent:
                found.add(n)
    return min(found, default=None)


class _Numbers(local):
    """Tells apart the names of a kernel's registers; each thread schedules kernels of its own."""

    following = 0


_numbers = _Numbers()


def number_names() -> None:
    """Count names from 0 again: the texts of a kernel do not depend on what came before it."""
    _numbers.following = 0


def fresh_number() -> int:
    """Return a number that no name of this kernel has yet."""
    _numbers.following += 1
    return _numbers.following - 1


def unroll(loop: For) -> tuple[Stmt, ...]:
    """Copies of the body, one for each iteration; of a sum alone, its terms in pairs.

    for i < 2: s(i)   ->   s(0); s(1)
    for i < 4: x += f(i)   ->   x += (f(0) + f(1)) + (f(2) + f(3))
    """
    if loop.limit is not None or loop.kind == "chunk":
        raise ScheduleError(f"unroll: the range of {loop.var.name} is not known here")
    out: list[Stmt] = []
    for i in range(loop.var.extent):
        out.extend(renamed(tuple(
            substitute_stmt(s, {loop.var: Affine.const_of(i)}) for s in loop.body)))
    first = loop.body[0] if loop.body else None
    sums = [s for s in out if isinstance(s, Store) and s.accumulate == "sum"]
    if len(loop.body) == 1 and first in register_sums(loop).values() and len(sums) == len(out) > 2:
        return (replace(sums[0], value=in_pairs([s.value for s in sums])),)
    return tuple(out)


def in_pairs(terms: list[Expr]) -> Expr:
    """The sum of some terms, as a tree: a chain of additions rounds more."""
    while len(terms) > 1:
        pairs = [Apply(Op.ADD, (x, y), x.dtype) for x, y in zip(terms[::2], terms[1::2])]
        terms = pairs + terms[2 * len(pairs):]
    return terms[0]


def renamed(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """A copy of `body` with registers of its own."""
    fresh = {s.storage: Storage(f"{s.storage.name}_{fresh_number()}", s.storage.size,
                                s.storage.dtype, s.storage.role)
             for s in statements(body) if isinstance(s, Alloc)}
    return replace_storage(body, fresh) if fresh else body


def split_chunks(loop: For, block: int, chunk: Var) -> tuple[Stmt, ...]:
    """Blocks of a loop are shared by the chunks; the first chunk also does the rest.

    chunk i < N: s(i)  ->  chunk o < N/B: for i < B: s(B*o + i);  if chunk == 0: for i < N%B: ...
    """
    if loop.kind != "chunk":
        raise ScheduleError(f"split_chunks: {loop.var.name} is not divided among chunks")
    whole, rest = divmod(loop.var.extent, block)
    o, i = Var(f"{loop.var.name}o", whole), Var(f"{loop.var.name}i", block)
    out: list[Stmt] = []
    if whole:
        at = Affine.of(o) * block + Affine.of(i)
        inner = For(i, tuple(substitute_stmt(s, {loop.var: at}) for s in loop.body))
        out.append(For(o, (inner,), "chunk"))
    if rest:
        t = Var(f"{loop.var.name}t", rest)
        at = Affine.of(t) + whole * block
        tail = For(t, renamed(tuple(substitute_stmt(s, {loop.var: at}) for s in loop.body)))
        out.append(If(Within(Affine.of(chunk), 0, 1, 1, bool_), (tail,)))
    return tuple(out)


def accumulate_in_register(loop: For) -> tuple[Stmt, ...]:
    """Sums into one address of memory are kept in a register while the loop runs.

    for i: x[k] += f(i)   ->   r = 0; for i: r += f(i); x[k] += r
    """
    found = list(fixed_sums(loop))
    if not found:
        return (loop,)
    before: list[Stmt] = []
    after: list[Stmt] = []
    exchange: dict[int, Store] = {}
    for s in found:
        r = Storage(f"{s.storage.name}_r{fresh_number()}", 1, s.storage.dtype, "register")
        zero = Affine.const_of(0)
        own = replace(s, storage=r, index=zero, atomic=False)
        start = replace(own, value=neutral(s), accumulate=None)
        before += [Alloc(r), start]
        after.append(replace(s, value=Load(r, zero)))
        exchange[id(s)] = own
    return (*before, replace(loop, body=swap_stores(loop.body, exchange)), *after)


def neutral(s: Store) -> Const:
    """What an accumulator starts with."""
    return identity(s.accumulate, s.storage.dtype)


def identity(kind: str | None, dtype: DType) -> Const:
    """The neutral element of a reduction: "max", or a sum of some kind."""
    return Const(limits(dtype)[0] if kind == "max" else dtype.np.type(0).item(), dtype)


def fixed_sums(loop: For) -> Iterator[Store]:
    """Accumulating stores to memory whose address no loop from `loop` inwards moves."""
    touched: dict[Storage, int] = {}
    for s in statements((loop,)):
        if isinstance(s, Store):
            touched[s.storage] = touched.get(s.storage, 0) + 1
            for load in loads(s.value):
                touched[load.storage] = touched.get(load.storage, 0) + 1

    def visit(stmt: Stmt, inner: frozenset[Var]) -> Iterator[Store]:
        if isinstance(stmt, For):
            for s in stmt.body:
                yield from visit(s, inner | {stmt.var})
        elif isinstance(stmt, Store) and stmt.accumulate and stmt.storage.role != "register":
            data = list(stmt.index.data())
            if not data and not (stmt.index.free_vars() & inner) and touched[stmt.storage] == 1:
                yield stmt

    yield from visit(loop, frozenset())


def swap_stores(body: tuple[Stmt, ...], exchange: dict[int, Store]) -> tuple[Stmt, ...]:
    """The body with some stores exchanged, by identity."""
    def swap(stmt: Stmt) -> Stmt:
        if isinstance(stmt, For):
            return replace(stmt, body=tuple(map(swap, stmt.body)))
        return exchange.get(id(stmt), stmt)

    return tuple(map(swap, body))


def around_all(loops: Sequence[For], body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """The loops, outer first, with another body inside."""
    for loop in reversed(loops):
        body = (replace(loop, body=body),)
    return body


def has_loops(loop: For) -> bool:
    """True if a loop is not an innermost one of plain statements."""
    return any(isinstance(s, (For, If, MicroKernel, MicroPack)) for s in loop.body)


WIDEST_LANES = 64
FEWEST_LANES = 4


def interleave(loop: For, lanes: int, vectors: int | None = None) -> tuple[Stmt, ...]:
    """Reductions into registers get an accumulator for each lane of the innermost loop, kept
    while `loop` runs and combined in a fixed order after it; with `vectors`, of so many vectors if
    the loop is long enough.

    for i: for j < N: s += f(i, j)
      ->  for i: for j < N/L: simd l < L: v[l] += f(i, L*j + l); rest;   then s += v[0] + v[1] ..
    """
    found = outer_sums(loop)
    plan = {inner: lane_count(inner, inner is loop, lanes, vectors) for inner in found}
    found = {inner: sums for inner, sums in found.items() if plan[inner]}
    if not found:
        return (loop,)
    before: list[Stmt] = []
    after: list[Stmt] = []
    exchange: dict[For, tuple[Stmt, ...]] = {}
    for inner, sums in found.items():
        fresh = {}
        for s, store in sums.items():
            v = Storage(f"{s.name}_v{fresh_number()}", plan[inner], s.dtype, "register")
            lane = Var(f"{v.name}l", v.size)
            before += [Alloc(v), For(lane, (Store(v, Affine.of(lane), neutral(store)),), "simd")]
            after += lane_tree(s, v, store.accumulate, iterations(loop, inner) > FEW_TERMS)
            fresh[s] = v
        exchange[inner] = in_lanes(inner, plan[inner], fresh, lanes, inner is loop)
    body = exchange[loop] if loop in exchange else (exchange_loops(loop, exchange),)
    return (*before, *body, *after)


def lane_count(inner: For, alone: bool, lanes: int, vectors: int | None = None) -> int:
    """How many accumulators a loop gets; 0 if one is as good."""
    n = inner.var.extent
    if vectors is not None and n >= 2 * vectors * lanes:
        return vectors * lanes
    if n >= 32 * lanes:
        return 4 * lanes
    if alone and n >= 12 * lanes:
        return 2 * lanes
    if alone:
        while lanes > FEWEST_LANES and n < 2 * lanes:
            lanes //= 2
        return lanes if n >= 2 * lanes else 0
    if n >= 8 * lanes:
        return lanes
    return n if 4 <= n <= WIDEST_LANES else lanes if n > lanes else 0


def outer_sums(loop: For) -> dict[For, dict[Storage, Store]]:
    """Innermost loops at or below `loop`, with the registers from outside that they reduce into."""
    inside = {s.storage for s in statements((loop,)) if isinstance(s, Alloc)}
    found: dict[For, dict[Storage, Store]] = {}
    for s in statements((loop,)):
        if isinstance(s, For) and s.kind == "serial" and s.limit is None and not has_loops(s):
            sums = {r: store for r, store in register_sums(s).items() if r not in inside}
            if sums and not any(load.storage in sums for store in s.body
                                if isinstance(store, Store) for load in loads(store.value)):
                found[s] = sums
    return found


def exchange_loops(loop: For, exchange: dict[For, tuple[Stmt, ...]]) -> For:
    """The loop with some of the loops below it replaced."""
    body: list[Stmt] = []
    for s in loop.body:
        if isinstance(s, For):
            body.extend(exchange[s] if s in exchange else (exchange_loops(s, exchange),))
        elif isinstance(s, If):
            inner = exchange_loops(For(loop.var, s.body), exchange)
            body.append(If(s.cond, inner.body))
        else:
            body.append(s)
    return replace(loop, body=tuple(body))


# A body of more operations is not repeated for each vector of sums.
LARGEST_BODY = 8


# So many terms beyond the lanes are added by themselves, in sums of up to so many bytes of numbers:
# of a longer one that would round more, and waiting matters less.
SHORT_REST, SHORT_SUM = 15, 2 << 10


def in_lanes(loop: For, lanes: int, fresh: dict[Storage, Storage], vector: int,
             alone: bool) -> tuple[Stmt, ...]:
    """An innermost loop whose sums go to lanes; the rest of the range goes to the first lanes.

    A short rest of a short sum that no loop around goes on with, `alone`, is added by itself: a CPU
    waits when it reads as one vector what was just stored in two pieces. Each vector of lanes has a
    loop of its own, since compilers keep that in a register. Where halves are read it is two
    vectors: compilers have vectors of one size in a loop.
    """
    vector *= 2 if reads_halves(loop) else 1
    whole, rest = divmod(loop.var.extent, lanes)
    j, name = Var(f"{loop.var.name}o", whole), f"{loop.var.name}l"
    work = sum(isinstance(e, Apply) for s in loop.body if isinstance(s, Store)
               for e in walk(s.value))
    step = vector if lanes % vector == 0 and work <= LARGEST_BODY and vector > 1 else lanes
    inner: list[Stmt] = []
    for first in range(0, lanes, step):
        lane = Var(name, step)
        at = Affine.of(j) * lanes + Affine.of(lane) + first
        inner.append(For(lane, lane_body(loop, at, fresh, Affine.of(lane) + first), "simd"))
    out: list[Stmt] = [For(j, tuple(inner))] if whole > 1 else inner
    if rest:
        t = Var(f"{loop.var.name}t", rest)
        at = Affine.of(t) + whole * lanes
        nbytes = loop.var.extent * max(s.dtype.itemsize for s in fresh)
        short = rest <= SHORT_REST and nbytes <= SHORT_SUM
        if alone and short and len(loop.body) == 1:
            out += unroll(For(t, lane_body(loop, at, {}, Affine.of(t))))
        else:
            out.append(For(t, lane_body(loop, at, fresh, Affine.of(t)), "simd"))
    return tuple(out)


def reads_halves(loop: For) -> bool:
    """True if a statement of a loop reads f16 or bf16 from memory."""
    return any(x.dtype.is_half for s in loop.body if isinstance(s, Store) for x in loads(s.value))


def lane_body(loop: For, at: Affine, fresh: dict[Storage, Storage],
              lane: Affine) -> tuple[Stmt, ...]:
    """The body at index `at`, sums going to the lane's own accumulator."""
    out = []
    for stmt in renamed(tuple(substitute_stmt(s, {loop.var: at}) for s in loop.body)):
        if isinstance(stmt, Store) and stmt.storage in fresh:
            stmt = replace(stmt, storage=fresh[stmt.storage], index=lane)
        out.append(stmt)
    return tuple(out)


def iterations(loop: Stmt, inner: For) -> int:
    """How often the body of `inner` runs while `loop`, which holds it, does."""
    if loop is inner:
        return inner.var.extent
    below = loop.body if isinstance(loop, (For, If)) else ()
    found = max((iterations(s, inner) for s in below), default=0)
    return found * (loop.var.extent if isinstance(loop, For) else 1)


# Sums of more numbers end in f64 once there are so few lanes.
FEW_TERMS = 512
FEW_LANES = 16


def lane_tree(scalar: Storage, v: Storage, kind: str | None, long: bool) -> list[Stmt]:
    """scalar (+)= the lanes: halved while they are even, then one after the other.

    The last ones of a long sum of f32 are added as f64: each addition would round much of it.
    """
    out: list[Stmt] = []
    n = v.size
    while n % 2 == 0:
        if long and n <= FEW_LANES and kind == "sum" and v.dtype is f32:
            lane, narrow = Var(f"{v.name}w", n), v
            v = Storage(f"{v.name}_w{fresh_number()}", n, f64, "register")
            value = converted(Load(narrow, Affine.of(lane)), f64)
            out += [Alloc(v), For(lane, (Store(v, Affine.of(lane), value),), "simd")]
        n //= 2
        lane = Var(f"{v.name}h{n}", n)
        upper = Load(v, Affine.of(lane) + n)
        out.append(For(lane, (Store(v, Affine.of(lane), upper, kind),), "simd"))
    zero = Affine.const_of(0)
    lane = Var(f"{v.name}h", n)
    last = converted(Load(v, Affine.of(lane)), scalar.dtype)
    out.append(For(lane, (Store(scalar, zero, last, kind),)))
    return out


def register_sums(loop: For) -> dict[Storage, Store]:
    """Registers from outside that the body of an innermost loop reduces into."""
    inside = {s.storage for s in loop.body if isinstance(s, Alloc)}
    return {s.storage: s for s in loop.body
            if isinstance(s, Store) and s.accumulate and s.storage.role == "register"
            and s.storage not in inside and s.storage.size == 1}


def vectorize(loop: For) -> For:
    """Mark an innermost loop whose iterations do not depend on each other.

    for i: y[i] = f(x[i])   ->   simd i: y[i] = f(x[i])
    """
    if has_loops(loop):
        raise ScheduleError(f"vectorize: {loop.var.name} is not an innermost loop")
    local = {s.storage for s in loop.body if isinstance(s, Alloc)}
    stored: dict[Storage, list[Affine]] = {}
    for s in loop.body:
        if isinstance(s, Store) and s.storage not in local:
            if not s.index.is_linear_in(loop.var) or not s.index.coeff(loop.var):
                raise ScheduleError(f"vectorize: {s.storage.name} is stored at one place by all")
            stored.setdefault(s.storage, []).append(s.index)
    for storage, places in stored.items():
        if any(meet(a, b, loop.var) for a in places for b in places):
            raise ScheduleError(f"vectorize: {storage.name} is stored twice at one place")
    for s in loop.body:
        if not isinstance(s, Store):
            continue
        for load in loads(s.value):
            if any(load.index != i for i in stored.get(load.storage, ())):
                raise ScheduleError(f"vectorize: {load.storage.name} is read at another iteration")
    return replace(loop, kind="chunk_simd" if loop.kind == "chunk" else "simd")


def meet(a: Affine, b: Affine, v: Var) -> bool:
    """True if one index may be at some iteration of `v` what the other is at another one."""
    step, gap = a.coeff(v), a - b
    if not gap.is_const or not step:
        return True
    return gap.const != 0 and gap.const % step == 0 and abs(gap.const // step) < v.extent


def hoist(loop: For) -> tuple[Stmt, ...]:
    """Compute what does not change in a loop before it.

    for i: y[i] = x[i] * exp(a)   ->   t = exp(a); for i: y[i] = x[i] * t
    """
    if loop.var.extent == 0:
        return (loop,)
    inside = list(statements(loop.body))
    written = set(stored_in(loop.body))
    moving = {loop.var} | {s.var for s in inside if isinstance(s, For)}
    before: list[Stmt] = []
    done: dict[int, Load] = {}
    shared: dict[tuple, Load] = {}

    def fixed_parts(root: Expr) -> dict[int, bool]:
        fixed: dict[int, bool] = {}
        for e in walk(root):
            fixed[id(e)] = is_fixed(e, fixed, moving, written)
        return fixed

    if loop.limit is None:
        loop = fixed_indices(loop, moving, written, before)
    kept: list[Stmt] = []
    for stmt in whole_registers(loop, fixed_parts, before):
        if isinstance(stmt, Store):
            fixed = fixed_parts(stmt.value)
            stmt = replace(stmt, value=replace_fixed(stmt.value, fixed, before, done, shared))
        kept.append(stmt)
    return (*before, replace(loop, body=tuple(kept))) if before else (loop,)


def fixed_indices(loop: For, moving: set[Var], written: set[Storage], before: list[Stmt]) -> For:
    """Read and check before the loop the indices from data that stay the same in it."""
    def fresh(e: Expr) -> Expr:
        if free_vars(e) & moving or any(
                x.storage in written or x.storage.role == "register" for x in loads(e)):
            return e
        r = Storage(f"h{fresh_number()}", 1, e.dtype, "register")
        before.extend([Alloc(r), Store(r, Affine.const_of(0), e)])
        return Load(r, Affine.const_of(0))

    def visit(stmt: Stmt) -> Stmt:
        if not isinstance(stmt, Store) or not has_data(stmt):
            return stmt
        value = rewrite(stmt.value, lambda e: e, lambda a: a.map_data(fresh))
        return replace(stmt, index=stmt.index.map_data(fresh), value=value)

    body = tuple(map(visit, loop.body))
    return replace(loop, body=body) if before else loop


def has_data(stmt: Store) -> bool:
    """True if an index of a statement comes from data."""
    return bool(stmt.index.data()) or any(
        i.data() for e in walk(stmt.value) for i in indices(e))


def whole_registers(loop: For, fixed_parts: Callable[[Expr], dict[int, bool]],
                    before: list[Stmt]) -> list[Stmt]:
    """Move registers that are set once, to what does not change, out as they are."""
    stores: dict[Storage, list[Store]] = {}
    for s in statements(loop.body):
        if isinstance(s, Store):
            stores.setdefault(s.storage, []).append(s)
    local = {s.storage for s in loop.body if isinstance(s, Alloc) and s.storage.size == 1}
    out = {r for r in local if len(stores.get(r, ())) == 1 and stores[r][0].accumulate is None
           and any(s is stores[r][0] for s in loop.body)
           and fixed_parts(stores[r][0].value)[id(stores[r][0].value)]}
    kept: list[Stmt] = []
    for s in loop.body:
        moved = isinstance(s, (Alloc, Store)) and s.storage in out
        (before if moved else kept).append(s)
    return kept


def is_fixed(e: Expr, fixed: dict[int, bool], moving: set[Var], written: set[Storage]) -> bool:
    """True if an expression, whose operands were judged, has one value while the loop runs."""
    if isinstance(e, Load) and e.storage in written:
        return False
    if any(i.free_vars() & moving for i in indices(e)):
        return False
    if isinstance(e, Apply):
        return all(fixed[id(a)] for a in e.args)
    return not any(True for i in indices(e) for _ in i.data()) and (
        not hasattr(e, "value") or isinstance(e, Const))


def replace_fixed(root: Expr, fixed: dict[int, bool], before: list[Stmt], done: dict[int, Load],
                  shared: dict[tuple, Load]) -> Expr:
    """Exchange the largest fixed subexpressions for registers that are set in `before`."""
    def name(e: Expr) -> Load:
        found = done.get(id(e))
        if found is None:
            key = (e.storage, e.index, e.guard) if isinstance(e, Load) else (id(e),)
            found = shared.get(key)
        if found is None:
            r = Storage(f"h{fresh_number()}", 1, e.dtype, "register")
            before.extend([Alloc(r), Store(r, Affine.const_of(0), e)])
            found = shared[key] = Load(r, Affine.const_of(0))
        done[id(e)] = found
        return found

    def worth(e: Expr) -> bool:
        if isinstance(e, Load):
            return e.storage.role != "register"
        return isinstance(e, Apply) and any(
            isinstance(x, Load) or free_vars(x) for x in walk(e))

    if fixed[id(root)]:
        return name(root) if worth(root) else root
    memo: dict[int, Expr] = {}
    for e in walk(root):
        if isinstance(e, Apply) and not fixed[id(e)]:
            args = tuple(name(a) if fixed[id(a)] and worth(a) else memo.get(id(a), a)
                         for a in e.args)
            memo[id(e)] = e if args == e.args else replace(e, args=args)
    return memo.get(id(root), root)
