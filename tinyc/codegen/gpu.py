"""GPU recipes: how a kernel is divided among blocks of threads, one block for each chunk.

A loop whose iterations are independent goes to the grid: each iteration to a thread, or each to a
block whose threads work through it together (`crew.py`), whichever costs less (`spread.py`). Sums
over the whole grid have a part in each block, which the end of the kernel adds up.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tinyc.codegen import primitives as p
from tinyc.codegen.cpu import collapse_all, everywhere, from_the_root, keep_sums
from tinyc.codegen.crew import Crew
from tinyc.codegen.forward import forward_stores, forwarded
from tinyc.codegen.gpu_block import schedule_nest
from tinyc.codegen.gpu_contract import schedule_product
from tinyc.codegen.gpu_parts import in_parts
from tinyc.codegen.gpu_shape import WARP
from tinyc.codegen.gpu_transpose import in_tiles
from tinyc.codegen.kept import GOOD
from tinyc.codegen.parallel import chain_of, count, in_one, sharing, vector_width
from tinyc.codegen.products import expand_contractions
from tinyc.codegen.rebase import accesses
from tinyc.codegen.spread import Costs, Division, alone, has_loops
from tinyc.ir.dtype import bool_
from tinyc.ir.index import Affine, Var, unravel
from tinyc.ir.loop import (
    Alloc,
    Contraction,
    Expr,
    For,
    If,
    Load,
    LoopKernel,
    Stmt,
    Storage,
    Store,
    Within,
    holds,
    limits_of,
    replace_storage,
    rewrite,
    statements,
    substitute_stmt,
    transform,
)
from tinyc.ir.program import Target
from tinyc.ir.verify_loops import shared_storages, verify_threads

Body = tuple[Stmt, ...]
# Threads that a large GPU runs at once, and its multiprocessors.
RESIDENT, PROCESSORS = 1 << 18, 132
# Long shares of a loop are multiples of this.
SHARE = 64
# Bytes on the chip that are left for what combines registers.
FOR_SUMS = 8


def schedule(kernel: LoopKernel, target: Target) -> LoopKernel:
    """The kernel for blocks of threads."""
    p.number_names()
    if kernel.threads > 1:  # it was made for blocks, but for its end
        if kernel.finish:
            kernel = finished(kernel, prepared(kernel.finish), Costs(), target)
    elif target.threads >= WARP and holds(kernel.body, Contraction):
        parts = in_parts(kernel, target)
        kernel = schedule_product(kernel, target) or schedule_nest(parts, target)
        if kernel.finish is parts.finish and parts.finish:
            kernel = finished(kernel, prepared(parts.finish), Costs(), target)
    else:
        kernel = loops_on_grid(kernel, target)
    verify_threads(kernel, target.shared)
    return kernel


def loops_on_grid(kernel: LoopKernel, target: Target) -> LoopKernel:
    """A kernel of loops for blocks of threads."""
    if kernel.chunks == 1 and kernel.finish:  # one block does all that little work
        kernel = replace(kernel, body=(*kernel.body, *kernel.finish), finish=())
    body = prepared(expand_contractions(kernel.body, kernel.chunks))
    body = on_chip(body, target)
    costs = Costs()
    if uses(body, kernel.chunk) or not independent(body):
        kernel = in_chunks(kernel, body, costs, target)
    else:
        best = in_tiles(body[0], sizes(target)[-1], target) or min(
            divisions(body[0], costs, target, sizes(target)), key=lambda d: d.cost)
        kernel = replace(kernel, body=on_grid([best]), threads=best.threads,
                         chunk=Var("chunk", max(1, best.blocks)))
    if kernel.finish:
        kernel = finished(kernel, prepared(kernel.finish), costs, target)
    return kernel


def prepared(body: Body) -> Body:
    """Loops that run through memory as one made one; sums, and numbers beside loops, in registers.
    """
    for step in (everywhere(collapse_all), from_the_root(keep_sums), everywhere(forward_stores)):
        body = step(body)
    return forwarded(body)


def sizes(target: Target) -> list[int]:
    """How many threads a block may have."""
    found = [n for n in (32, 64, 128, 256, 512) if target.warp <= n <= target.threads]
    return found or [target.threads]


def on_chip(body: Body, target: Target) -> Body:
    """Arrays of a chunk's own in memory on the chip, the smallest first, as far as that reaches."""
    left = target.shared - FOR_SUMS * target.threads
    found = {s: None for stmt in statements(body) for s, _ in accesses(stmt)
             if s.role == "scratch"}
    fresh: dict[Storage, Storage] = {}
    for s in sorted(found, key=lambda s: s.nbytes):
        if s.nbytes + 16 <= left:
            left -= s.nbytes + 16
            fresh[s] = Storage(s.name, s.size, s.dtype, "shared")
    return replace_storage(body, fresh) if fresh else body


def uses(body: Body, v: Var) -> bool:
    """True if an index depends on a variable."""
    return any(v in index.free_vars() for stmt in statements(body)
               for index in (*(i for _, i in accesses(stmt)),
                             *(limits_of(stmt) if isinstance(stmt, For) else ())))


def independent(body: Body) -> bool:
    """True for one loop at the root, whose iterations any blocks may run."""
    return len(body) == 1 and isinstance(body[0], For)


# -- a loop on the grid --------------------------------------------------------------------------


def divisions(loop: Stmt, costs: Costs, target: Target,
              threads: Sequence[int]) -> Iterator[Division]:
    """The ways to divide a loop, whose iterations are independent, among blocks."""
    assert isinstance(loop, For)
    found = chain_of(loop)
    if found is not None and loop.limit is None:
        yield each_thread(found[0], threads)
    loops = [loop]
    while True:
        if has_loops(loops[-1].body) or found is None:
            yield from (each_block(tuple(loops), n, costs)
                        for n in enough(loops[-1].body, threads, costs))
        inner = loops[-1].body[0] if len(loops[-1].body) == 1 else None
        if not isinstance(inner, For) or inner.limit is not None or sharing(inner) is None:
            break
        loops.append(inner)


def enough(body: Body, threads: Sequence[int], costs: Costs) -> Sequence[int]:
    """How many threads a block may have whose registers hold what passes over a row share."""
    passes = [count(found[0]) for s in body if isinstance(s, For)
              for found in [costs.chain(s)] if found is not None]
    good = [n for n in threads if len(passes) < 2 or max(passes) <= n * GOOD]
    return good or threads[-1:]


def each_thread(loops: tuple[For, ...], threads: Sequence[int]) -> Division:
    """Each iteration, or a vector of them, to a thread; fewer threads where blocks are few."""
    width = vector_width(loops, 4)
    n = count(loops) // width
    many = next((t for t in reversed(threads) if n >= t * PROCESSORS), threads[0])
    blocks = -(-n // many)

    def make(block: Affine) -> Body:
        t = Var("t", many)
        limit = None if n % many == 0 else n - block * many
        body = in_one(loops, width, block * many + Affine.of(t), Var("part", width))
        return (For(t, body, "thread", limit),)

    cost = max(1.0, n / RESIDENT) * width * alone(loops[-1].body, loops[-1].var)
    return Division(cost, blocks, many, make)


def each_block(loops: tuple[For, ...], threads: int, costs: Costs) -> Division:
    """Each iteration to a block, whose threads work through it together."""
    rows, body = count(loops), loops[-1].body

    def make(block: Affine) -> Body:
        digits = unravel(block, [max(1, loop.var.extent) for loop in loops])
        names = dict(zip([loop.var for loop in loops], digits))
        inside = tuple(substitute_stmt(s, names) for s in body)
        made = Crew(threads, costs).block(inside)
        limit = loops[0].limit
        if limit is None:
            return made
        first = Var("row", 1)
        return (For(first, made, "serial", limit - digits[0]),)

    cost = max(1.0, rows * threads / RESIDENT) * costs.together(body, threads)
    return Division(cost, rows, threads, make)


def on_grid(parts: Sequence[Division]) -> Body:
    """The blocks of several divisions, one after the other."""
    total = max(1, sum(part.blocks for part in parts))
    block = Var("block", total)
    body: list[Stmt] = []
    first = 0
    for part in parts:
        made = part.make(Affine.of(block) - first)
        if part.blocks < total:
            inside = Within(Affine.of(block), first, first + part.blocks, 1, bool_)
            made = (If(inside, made),)
        body += made
        first += part.blocks
    return (For(block, tuple(body), "chunk"),)


# -- chunks with sums of their own ---------------------------------------------------------------


def in_chunks(kernel: LoopKernel, body: Body, costs: Costs, target: Target) -> LoopKernel:
    """A kernel whose chunks keep what they have summed: a block for each of them."""
    body = tuple(t for s in body for t in in_shares(s, kernel.chunks))
    for step in (everywhere(columns_outside), from_the_root(keep_sums)):
        body = step(body)
    body = sums_on_chip(body, kernel, target)
    best = min(sizes(target), key=lambda n: costs.together(body, n) * max(
        1.0, kernel.chunks * n / RESIDENT))
    return replace(kernel, body=Crew(best, costs).block(body), threads=best)


def in_shares(stmt: Stmt, chunks: int) -> Body:
    """A loop that chunks divide as one over chunks and one over the share of each."""
    if not isinstance(stmt, For) or stmt.kind != "chunk":
        return (stmt,)
    loops: tuple[For, ...] = (stmt,)
    while count(loops) < chunks and len(loops[-1].body) == 1:
        inner = loops[-1].body[0]
        if not isinstance(inner, For) or inner.limit is not None:
            break
        loops = (*loops, inner)
    n = count(loops)
    share = -(-n // chunks)
    share = -(-share // SHARE) * SHARE if share > 4 * SHARE else share
    block, inside = Var("block", chunks), Var("share", share)
    limit = None if share * chunks == n else n - Affine.of(block) * share
    at = Affine.of(block) * share + Affine.of(inside)
    body = in_one(loops, 1, at, Var("part", 1))
    return (For(block, (For(inside, body, "serial", limit),), "chunk"),)


def columns_outside(stmt: Stmt) -> Body:
    """Sums of columns go down each column, where that keeps them in registers.

    for r: for j: y[j] += x[r, j]   ->   for j: for r: y[j] += x[r, j]
    """
    if not isinstance(stmt, For) or stmt.kind != "serial" or len(stmt.body) != 1:
        return (stmt,)
    first = stmt.body[0]
    found = chain_of(first) if isinstance(first, For) and first.limit is None else None
    if found is None or found[1].sums or not sums_over(stmt.var, found[0][-1].body):
        return (stmt,)
    loops = found[0]
    (turned,) = p.around_all(loops, (replace(stmt, body=loops[-1].body),))
    assert isinstance(turned, For)
    shares = chain_of(turned)
    return (turned,) if shares is not None and not shares[1].sums else (stmt,)


def sums_over(v: Var, body: Body) -> bool:
    """True if statements without loops add to memory at places that `v` leaves alone."""
    return all(isinstance(s, (Store, Alloc)) for s in body) and any(
        isinstance(s, Store) and s.accumulate and s.storage.role not in ("register", "tile")
        and v not in s.index.free_vars() for s in body)


def sums_on_chip(body: Body, kernel: LoopKernel, target: Target) -> Body:
    """What a chunk sums up in memory of its own is on the chip until it is complete."""
    found: dict[Storage, list[Affine]] = {}
    for stmt in statements(body):
        for storage, index in accesses(stmt):
            if storage.role == "arena":
                found.setdefault(storage, []).append(index)
    adds = {s for stmt in body for s in added_again(stmt, ())}
    left = target.shared - FOR_SUMS * target.threads - sum(s.nbytes for s in shared_storages(body))
    for storage, places in found.items():
        size = storage.size // kernel.chunks
        mine = all(i.coeff(kernel.chunk) == size for i in places) and size > 1
        left -= size * storage.dtype.itemsize + 16
        if storage in adds and mine and left >= 0:
            body = kept_on_chip(body, storage, Affine.of(kernel.chunk) * size, size)
    return body


def added_again(stmt: Stmt, loops: tuple[Var, ...]) -> Iterator[Storage]:
    """Memory to whose elements statements add in several iterations of the loops around."""
    if isinstance(stmt, (For, If)):
        inner = (*loops, stmt.var) if isinstance(stmt, For) and stmt.kind == "serial" else loops
        for s in stmt.body:
            yield from added_again(s, inner)
    elif isinstance(stmt, Store) and stmt.accumulate and not set(loops) <= stmt.index.free_vars():
        yield stmt.storage


def kept_on_chip(body: Body, storage: Storage, first: Affine, size: int) -> Body:
    """Statements with a part of a storage in memory on the chip, and a copy of it at their end."""
    chip = Storage(f"{storage.name}_c", size, storage.dtype, "shared")

    def leaf(e: Expr) -> Expr:
        if isinstance(e, Load) and e.storage is storage:
            return Load(chip, e.index - first, e.guard)
        return e

    def moved(stmt: Stmt) -> Body:
        if not isinstance(stmt, Store):
            return (stmt,)
        stmt = replace(stmt, value=rewrite(stmt.value, leaf, lambda a: a))
        if stmt.storage is storage:
            stmt = replace(stmt, storage=chip, index=stmt.index - first)
        return (stmt,)

    v = Var("kept", size)
    copy = Store(storage, first + Affine.of(v), Load(chip, Affine.of(v)))
    return (*transform(body, moved), For(v, (copy,)))


# -- the end of a kernel -------------------------------------------------------------------------


def finished(kernel: LoopKernel, finish: Body, costs: Costs, target: Target) -> LoopKernel:
    """The kernel with its end divided among blocks, as far as its statements are independent."""
    threads = [kernel.threads]
    parts: list[Division] = []
    for group in groups(finish):
        if independent(group):
            parts.append(min(divisions(group[0], costs, target, threads), key=lambda d: d.cost))
        else:
            parts.append(together(group, kernel.threads, costs))
    total = max(1, sum(part.blocks for part in parts))
    return replace(kernel, finish=on_grid(parts), last=Var("chunk", total))


def together(body: Body, threads: int, costs: Costs) -> Division:
    """Statements that one block works through."""
    return Division(0.0, 1, threads, lambda block: Crew(threads, costs).block(body))


def groups(body: Body) -> list[Body]:
    """Statements in groups of which none uses what another one makes, in order."""
    found: list[tuple[list[Stmt], set[Storage], set[Storage]]] = []
    for stmt in body:
        touched = {s for t in statements((stmt,)) for s, _ in accesses(t)}
        touched |= {t.storage for t in statements((stmt,)) if hasattr(t, "storage")}
        mine = [g for g in found if g[1] & touched]
        rest = [g for g in found if not g[1] & touched]
        merged = ([t for g in mine for t in g[0]] + [stmt],
                  set().union(touched, *(g[1] for g in mine)), touched)
        found = [*rest, merged]
    return [tuple(sorted(g[0], key=body.index)) for g in found]
