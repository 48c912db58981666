"""Schedule primitives: loop tree -> loop tree, each legal or refused with a ScheduleError.

Every primitive keeps what a kernel computes; `codegen.interpret` is the oracle that tests it.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

from tinyc.diagnostics import ScheduleError
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc, Apply, Const, Expr, For, If, Load, MicroKernel, Stmt, Storage, Store, Within, free_vars,
    indices, loads, rewrite, statements, substitute_stmt, walk,
)
from tinyc.ir.dtype import bool_


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
            yield from (stmt.first, stmt.a.index, stmt.b.index)


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


_copies = count()


def unroll(loop: For) -> tuple[Stmt, ...]:
    """Copies of the body, one for each iteration.

    for i < 2: s(i)   ->   s(0); s(1)
    """
    if loop.limit is not None or loop.kind == "chunk":
        raise ScheduleError(f"unroll: the range of {loop.var.name} is not known here")
    out: list[Stmt] = []
    for i in range(loop.var.extent):
        out.extend(renamed(tuple(
            substitute_stmt(s, {loop.var: Affine.const_of(i)}) for s in loop.body)))
    return tuple(out)


def renamed(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """A copy of `body` with registers of its own."""
    fresh = {s.storage: Storage(f"{s.storage.name}_{next(_copies)}", s.storage.size,
                                s.storage.dtype, s.storage.role)
             for s in statements(body) if isinstance(s, Alloc)}
    return replace_storage(body, fresh) if fresh else body


def replace_storage(body: tuple[Stmt, ...], fresh: dict[Storage, Storage]) -> tuple[Stmt, ...]:
    """`body` with storages exchanged."""
    def leaf(e: Expr) -> Expr:
        if isinstance(e, Load) and e.storage in fresh:
            return replace(e, storage=fresh[e.storage])
        return e

    def swap(stmt: Stmt) -> Stmt:
        if isinstance(stmt, Alloc):
            return Alloc(fresh.get(stmt.storage, stmt.storage))
        if isinstance(stmt, Store):
            return replace(stmt, storage=fresh.get(stmt.storage, stmt.storage),
                           value=rewrite(stmt.value, leaf, lambda a: a))
        if isinstance(stmt, For):
            return replace(stmt, body=tuple(map(swap, stmt.body)))
        if isinstance(stmt, If):
            return If(rewrite(stmt.cond, leaf, lambda a: a), tuple(map(swap, stmt.body)))
        return stmt

    return tuple(map(swap, body))


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
    found = [s for s in fixed_sums(loop)]
    if not found:
        return (loop,)
    before: list[Stmt] = []
    after: list[Stmt] = []
    exchange: dict[int, Store] = {}
    for s in found:
        r = Storage(f"{s.storage.name}_r{next(_copies)}", 1, s.storage.dtype, "register")
        zero = Affine.const_of(0)
        before += [Alloc(r), Store(r, zero, neutral(s))]
        after.append(Store(s.storage, s.index, Load(r, zero), s.accumulate))
        exchange[id(s)] = replace(s, storage=r, index=zero)
    return (*before, replace(loop, body=swap_stores(loop.body, exchange)), *after)


def neutral(s: Store) -> Const:
    """What an accumulator starts with."""
    dtype = s.storage.dtype
    if s.accumulate == "sum":
        return Const(dtype.np.type(0).item(), dtype)
    if dtype.kind == "f":
        return Const(float("-inf"), dtype)
    return Const(lowest(dtype), dtype)


def lowest(dtype) -> int | bool:
    """The smallest value of an integer or bool dtype."""
    if dtype.kind == "b":
        return False
    return -(1 << (8 * dtype.itemsize - 1)) if dtype.kind == "i" else 0


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
    def swap(stmt: Stmt) -> Stmt:
        if isinstance(stmt, For):
            return replace(stmt, body=tuple(map(swap, stmt.body)))
        return exchange.get(id(stmt), stmt)

    return tuple(map(swap, body))


def interleave(loop: For, lanes: int) -> tuple[Stmt, ...]:
    """Reductions into registers get one accumulator for each lane, combined in a fixed tree.

    for j < N: s += f(j)   ->   for j < N/L: simd l < L: v[l] += f(L*j + l);  s += tree(v); rest
    """
    sums = register_sums(loop)
    if any(isinstance(s, For) for s in loop.body) or loop.limit is not None:
        raise ScheduleError(f"interleave: {loop.var.name} is not an innermost loop of fixed range")
    whole, rest = divmod(loop.var.extent, lanes)
    if not sums or not whole:
        raise ScheduleError(f"interleave: nothing to gain in {loop.var.name}")
    fresh = {s: Storage(f"{s.name}_v{next(_copies)}", lanes, s.dtype, "register") for s in sums}
    j, lane = Var(f"{loop.var.name}o", whole), Var(f"{loop.var.name}l", lanes)
    out: list[Stmt] = []
    for s, v in fresh.items():
        init = Store(v, Affine.of(lane), neutral(sums[s]))
        out += [Alloc(v), For(lane, (init,), "simd")]
    at = Affine.of(j) * lanes + Affine.of(lane)
    body = lane_body(loop, at, fresh, lane)
    out.append(For(j, (For(lane, body, "simd"),)) if whole > 1 else For(
        lane, tuple(substitute_stmt(s, {j: Affine.const_of(0)}) for s in body), "simd"))
    for s, v in fresh.items():
        out += lane_tree(s, v, lanes, sums[s].accumulate)
    if rest:
        t = Var(f"{loop.var.name}t", rest)
        at = Affine.of(t) + whole * lanes
        tail = renamed(tuple(substitute_stmt(s, {loop.var: at}) for s in loop.body))
        out.append(For(t, tail))
    return tuple(out)


def lane_body(loop: For, at: Affine, fresh: dict[Storage, Storage], lane: Var) -> tuple[Stmt, ...]:
    """The body at index `at`, sums going to the lane's own accumulator."""
    out = []
    for stmt in renamed(tuple(substitute_stmt(s, {loop.var: at}) for s in loop.body)):
        if isinstance(stmt, Store) and stmt.storage in fresh:
            stmt = replace(stmt, storage=fresh[stmt.storage], index=Affine.of(lane))
        out.append(stmt)
    return tuple(out)


def lane_tree(scalar: Storage, lanes_of: Storage, lanes: int, kind: str | None) -> list[Stmt]:
    """scalar (+)= the lanes, halved until one is left."""
    out: list[Stmt] = []
    half = lanes // 2
    while half:
        l = Var(f"{lanes_of.name}h{half}", half)
        out.append(For(l, (Store(lanes_of, Affine.of(l), Load(lanes_of, Affine.of(l) + half),
                                 kind),), "simd"))
        half //= 2
    zero = Affine.const_of(0)
    out.append(Store(scalar, zero, Load(lanes_of, zero), kind))
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
    if any(isinstance(s, (For, If, MicroKernel)) for s in loop.body):
        raise ScheduleError(f"vectorize: {loop.var.name} is not an innermost loop")
    local = {s.storage for s in loop.body if isinstance(s, Alloc)}
    stored: dict[Storage, list[Affine]] = {}
    for s in loop.body:
        if isinstance(s, Store) and s.storage not in local:
            if not s.index.is_linear_in(loop.var) or not s.index.coeff(loop.var):
                raise ScheduleError(f"vectorize: {s.storage.name} is stored at one place by all")
            stored.setdefault(s.storage, []).append(s.index)
    for s in loop.body:
        if not isinstance(s, Store):
            continue
        for load in loads(s.value):
            if any(load.index != i for i in stored.get(load.storage, ())):
                raise ScheduleError(f"vectorize: {load.storage.name} is read at another iteration")
    return replace(loop, kind="chunk_simd" if loop.kind == "chunk" else "simd")


def hoist(loop: For) -> tuple[Stmt, ...]:
    """Compute what does not change in a loop before it.

    for i: y[i] = x[i] * exp(a)   ->   t = exp(a); for i: y[i] = x[i] * t
    """
    if loop.var.extent == 0:
        return (loop,)
    written = {s.storage for s in statements(loop.body) if isinstance(s, Store)}
    written |= {s.tile for s in statements(loop.body) if isinstance(s, MicroKernel)}
    moving = {loop.var} | {s.var for s in statements(loop.body) if isinstance(s, For)}
    before: list[Stmt] = []
    done: dict[int, Load] = {}
    shared: dict[tuple, Load] = {}

    def visit(stmt: Stmt) -> Stmt:
        if isinstance(stmt, Store):
            return replace(stmt, value=lifted(stmt.value))
        return stmt

    def lifted(root: Expr) -> Expr:
        fixed: dict[int, bool] = {}
        for e in walk(root):
            fixed[id(e)] = is_fixed(e, fixed, moving, written)
        return replace_fixed(root, fixed, before, done, shared)

    body = tuple(visit(s) for s in loop.body)
    return (*before, replace(loop, body=body)) if before else (loop,)


def is_fixed(e: Expr, fixed: dict[int, bool], moving: set[Var], written: set[Storage]) -> bool:
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
            r = Storage(f"h{next(_copies)}", 1, e.dtype, "register")
            before.extend([Alloc(r), Store(r, Affine.const_of(0), e)])
            found = shared[key] = Load(r, Affine.const_of(0))
        done[id(e)] = found
        return found

    def worth(e: Expr) -> bool:
        return isinstance(e, Apply) or isinstance(e, Load) and e.storage.role != "register"

    if fixed[id(root)]:
        return name(root) if worth(root) else root
    memo: dict[int, Expr] = {}
    for e in walk(root):
        if isinstance(e, Apply) and not fixed[id(e)]:
            args = tuple(name(a) if fixed[id(a)] and worth(a) else memo.get(id(a), a)
                         for a in e.args)
            memo[id(e)] = e if args == e.args else replace(e, args=args)
    return memo.get(id(root), root)
