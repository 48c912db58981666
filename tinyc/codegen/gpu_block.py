"""Kernels with contractions among other stages, on GPUs: what the threads of a block do together.

Blocks take iterations of the outermost loops. Inside, statements run one after another, each of
them divided among the threads: contractions in tiles, loops whose iterations stand alone thread by
thread or, where there are few long ones, by groups of neighbouring threads, sums by all threads of
a group.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tinyc.codegen.gpu_contract import shapes_for
from tinyc.codegen.gpu_operand import both
from tinyc.codegen.gpu_shape import REACH, Shape
from tinyc.codegen.gpu_thin import THREADS, is_thin, thin
from tinyc.codegen.gpu_tile import Part, counts, epilogue, tile_statements
from tinyc.codegen.primitives import fresh_number, identity, renamed
from tinyc.codegen.waits import Around, Item, Section, touched, with_barriers
from tinyc.ir.cost import elements
from tinyc.ir.dtype import bool_
from tinyc.ir.index import Affine, Var, unravel
from tinyc.ir.loop import (
    Alloc,
    Barrier,
    Combine,
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
    free_vars,
    holds,
    loads_of,
    replace_storage,
    rewrite,
    statements,
    stored_at,
    substitute_stmt,
    transform,
)
from tinyc.ir.program import Target
from tinyc.ir.verify_loops import SEEN_BY_OTHERS

# Tiles of a block that makes several of them, one after another.
SHAPES = (Shape(128, 128, 8, 8, 8), Shape(128, 64, 8, 8, 4), Shape(64, 128, 8, 4, 8),
          Shape(64, 64, 16, 4, 4), Shape(128, 32, 16, 4, 4), Shape(32, 128, 16, 4, 4),
          Shape(64, 32, 16, 4, 4), Shape(32, 64, 16, 4, 4), Shape(32, 32, 16, 4, 4),
          Shape(16, 32, 16, 4, 4))
# A loop of so many iterations inside another one is divided among a group of threads.
LONG = 16
# A group has up to so many threads, which on some devices exchange numbers without memory.
WARP = 32
ZERO = Affine.const_of(0)


@dataclass(frozen=True)
class Group:
    """Neighbouring threads that work on one item: how many, the number of one among them, and
    whether there is an item for them. All threads of a block are a group with one item."""

    size: int
    lane: Affine
    valid: tuple[Within, ...] = ()


def outward(body: tuple[Stmt, ...]) -> list[Store]:
    """The stores below statements to what is declared outside of them."""
    inside = {s.storage for s in statements(body) if isinstance(s, Alloc)}
    return [s for s in statements(body) if isinstance(s, Store) and s.storage not in inside]


def private(body: tuple[Stmt, ...], variables: Sequence[Var]) -> list[Storage]:
    """Scratch arrays that statements write anew on each iteration of loops around them."""
    found: dict[Storage, bool] = {}
    for s in outward(body):
        if s.storage.role == "scratch":
            fixed = not s.index.free_vars() & set(variables)
            found[s.storage] = found.get(s.storage, not s.accumulate) and fixed
    return [s for s, fixed in found.items() if fixed]


@dataclass
class Nest:
    """Loops with nothing between them, the limits of some, and what is inside."""

    variables: list[Var]
    limits: dict[Var, Affine]
    body: tuple[Stmt, ...]

    def split(self) -> tuple[list[Var], list[Var]]:
        """(variables whose iterations stand alone, those over which stores add up)."""
        mine = private(self.body, self.variables)
        stores = [s for s in outward(self.body) if s.storage not in mine]
        free = [v for v in self.variables if all(v in s.index.free_vars() for s in stores)]
        return free, [v for v in self.variables if v not in free]

    def limits_move(self) -> bool:
        """True if a limit depends on the loops themselves."""
        return any(n.free_vars() & set(self.variables) for n in self.limits.values())

    def bounded(self, variables: list[Var], body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """`body` where all variables but the first are within their limits."""
        guards = [Within(self.limits[v] - Affine.of(v), 1, v.extent + 1, 1, bool_)
                  for v in variables[1:] if v in self.limits]
        return (If(both(guards), body),) if guards else body


def nest_of(loop: For) -> Nest:
    """The loops from one on that have nothing between them."""
    found = Nest([], {}, (loop,))
    while len(found.body) == 1 and isinstance(found.body[0], For):
        inner = found.body[0]
        if inner.limit is not None:
            found.limits[inner.var] = inner.limit
        found.variables.append(inner.var)
        found.body = inner.body
    return found


class Together:
    """Divides statements among the threads of a block."""

    def __init__(self, threads: int, target: Target) -> None:
        self.threads, self.target = threads, target
        self.thread, self.first = Var("t", threads), Var("one", 1)
        self.flat: dict[tuple[int, int], Var] = {}
        self.tiles: list[Storage] = []
        self.whole = Group(threads, Affine.of(self.thread))

    # -- statements ------------------------------------------------------------------------------

    def block(self, body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        """Statements that all threads run together."""
        return with_barriers(self.items(body, self.whole))

    def items(self, body: Sequence[Stmt], group: Group) -> list[Item]:
        """Statements one after another, divided among the threads of a group."""
        return [item for stmt in body for item in self.statement(stmt, group)]

    def statement(self, stmt: Stmt, group: Group) -> list[Item]:
        """One statement, by all threads of a group."""
        if isinstance(stmt, Alloc):
            return [Section([stmt])]
        if isinstance(stmt, Contraction):
            return [Section(self.product(stmt), touched([stmt]))]
        if isinstance(stmt, If):
            return [Around(replace(stmt, body=()), self.items(stmt.body, group))]
        if isinstance(stmt, For):
            return self.loop(stmt, group)
        assert isinstance(stmt, Store)
        return [self.store(stmt, group)]

    def store(self, stmt: Store, group: Group) -> Section:
        """A store beside loops: to registers by all threads, else by the first of the group."""
        if stmt.storage.role not in SEEN_BY_OTHERS:
            every = stmt if group is self.whole else self.each((stmt,), group)
            return Section([every], touched([stmt]))
        if group is self.whole:
            return Section([For(self.first, (stmt,), "thread")], touched([stmt], [self.first]))
        return Section([self.one((stmt,), group)], touched([stmt]))

    def each(self, body: tuple[Stmt, ...], group: Group) -> Stmt:
        """Statements that every thread of a group with an item runs."""
        inner = (If(both(list(group.valid)), body),) if group.valid else body
        return For(self.thread, inner, "thread")

    def one(self, body: tuple[Stmt, ...], group: Group) -> Stmt:
        """Statements that one thread of a group runs."""
        first = Within(group.lane, 0, 1, 1, bool_)
        return For(self.thread, (If(both([first, *group.valid]), body),), "thread")

    def serial(self, loop: For, group: Group) -> list[Item]:
        """A loop that all threads go through together."""
        return [Around(replace(loop, body=()), self.items(loop.body, group))]

    # -- loops -----------------------------------------------------------------------------------

    def loop(self, stmt: For, group: Group) -> list[Item]:
        """A loop, divided among the threads of a group if that is legal."""
        if stmt.kind == "chunk" or holds((stmt,), Contraction):
            return self.serial(stmt, group)
        nest = nest_of(stmt)
        free, reduced = nest.split()
        adds = all(s.accumulate for s in outward(nest.body))
        if not reduced:
            return self.alone(nest, group)
        if adds and not free:
            return self.total(nest, group)
        if adds and not nest.limits_move():
            return self.alone(Nest(free, {v: n for v, n in nest.limits.items() if v in free},
                                   looped(reduced, nest.limits, nest.body)), group)
        if stmt.limit is not None and self.thread in stmt.limit.free_vars():
            return [Section([self.one((stmt,), group)], touched([stmt]))]
        return self.serial(stmt, group)

    def alone(self, nest: Nest, group: Group) -> list[Item]:
        """Iterations that stand alone: a thread for each, or a group of threads."""
        long = max((elements(nest_of(s).variables) for s in nest.body if isinstance(s, For)),
                   default=0)
        if group is self.whole and long >= LONG:
            return self.by_groups(nest, long)
        return [self.dealt(nest, nest.body, group)]

    def dealt(self, nest: Nest, body: tuple[Stmt, ...], group: Group) -> Section:
        """A loop over all iterations of a nest's loops, dealt out to the threads of a group."""
        variables = nest.variables
        n, limit = elements(variables), nest.limits.get(variables[0])
        count = None if limit is None else limit * elements(variables[1:])
        body = nest.bounded(variables, body)
        flat = self.flat.setdefault((group.size, n), Var(f"n{len(self.flat)}", (
            n if group is self.whole else -(-n // group.size))))
        q = Affine.of(flat)
        if group is not self.whole:
            q = q * group.size + group.lane
            if count is not None or n % group.size:
                count = Affine.const_of(n) if count is None else count
                count = (count + (group.size - 1) - group.lane) // group.size
        names = dict(zip(variables, unravel(q, tuple(v.extent for v in variables))))
        inner = renamed(tuple(substitute_stmt(s, names) for s in body))
        if group is self.whole:
            inner = self.apart(inner, nest.body, variables, q % self.threads, self.threads)
            whole = For(flat, inner, "thread", count)
            return Section([whole], touched([whole], [flat]))
        inner = self.apart(inner, nest.body, variables, group.lane, group.size)
        mine = self.each((For(flat, inner, "serial", count),), group)
        return Section([mine], touched([mine], [self.thread, flat]))

    def by_groups(self, nest: Nest, long: int) -> list[Item]:
        """A group of threads for each iteration of some loops, the groups in rounds."""
        n = elements(nest.variables)
        size = min(WARP, power_of_two(long))
        while size * 2 * n <= self.threads:
            size *= 2
        size = min(size, self.threads)
        groups = self.threads // size
        rounds = Var(f"round{fresh_number()}", -(-n // groups))
        mine = Affine.of(self.thread) // size
        item = Affine.of(rounds) * groups + mine
        names = dict(zip(nest.variables, unravel(item, tuple(v.extent for v in nest.variables))))
        valid = [Within(item, 0, n, 1, bool_)] if n % groups else []
        valid += [Within(replace_vars(limit, names) - names[v], 1, v.extent + 1, 1, bool_)
                  for v, limit in nest.limits.items()]
        group = Group(size, Affine.of(self.thread) % size, tuple(valid))
        body = renamed(tuple(substitute_stmt(s, names) for s in nest.body))
        body = self.apart(body, nest.body, nest.variables, mine, groups)
        return self.serial(For(rounds, body), group)

    def apart(self, body: tuple[Stmt, ...], old: tuple[Stmt, ...], variables: Sequence[Var],
              number: Affine, count: int) -> tuple[Stmt, ...]:
        """Scratch arrays that iterations write anew, one for each of those that run at once."""
        sizes = {s: Storage(s.name, s.size * count, s.dtype, s.role)
                 for s in private(old, variables)}
        return moved(body, sizes, number) if sizes else body

    def total(self, nest: Nest, group: Group) -> list[Item]:
        """Sums, or maxima, over all iterations of some loops: by each thread, then of a group."""
        start: list[Stmt] = []
        exchange: dict[Store, Storage] = {}
        for s in outward(nest.body):
            r = exchange[s] = Storage(f"{s.storage.name}_p{fresh_number()}", 1, s.storage.dtype,
                                      "register")
            start += [Alloc(r), Store(r, ZERO, identity(s.accumulate, r.dtype))]

        def part(stmt: Stmt) -> tuple[Stmt, ...]:
            if isinstance(stmt, Store) and stmt in exchange:
                return (replace(stmt, storage=exchange[stmt], index=ZERO),)
            return (stmt,)

        width = 0 if group is self.whole else group.size
        out: list[Item] = [Section(start), self.dealt(nest, transform(nest.body, part), group)]
        for s, r in exchange.items():
            out.append(Section([Combine(r, s.accumulate or "sum", width)]))
            out.append(self.store(replace(s, value=Load(r, ZERO)), group))
        return out

    # -- contractions ----------------------------------------------------------------------------

    def product(self, c: Contraction) -> list[Stmt]:
        """A contraction, tile by tile."""
        suffix = str(fresh_number())
        if is_thin(c):
            one = thin(c, self.threads, suffix)
            block = Var(f"block{suffix}", one.blocks)
            made = (For(block, (*one.statements(Affine.of(block)), Barrier())),)
            return list(replace_storage(made, self.shared_names(made)))
        shape = choose_shape(c, self.target)
        rows, cols, deep = counts(c)
        i, j = (Var(f"{word}{suffix}", -(-elements(side) // size)) for word, side, size in (
            ("down", c.rows, shape.rows), ("across", c.cols, shape.cols)))
        n = max(1, -(-elements(c.depth) // shape.depth))
        part = Part(Affine.of(i) * shape.rows, Affine.of(j) * shape.cols, ZERO, n,
                    (deep + shape.depth - 1) // shape.depth)
        body = tuple(tile_statements(c, shape, part, suffix, lambda r, k, total: epilogue(
            c, r, k, total)))
        ends = [None if count.is_const else (count + size - 1) // size
                for count, size in ((rows, shape.rows), (cols, shape.cols))]
        made = (For(i, (For(j, body, "serial", ends[1]),), "serial", ends[0]),)
        return list(replace_storage(made, self.shared_names(made)))

    def shared_names(self, body: tuple[Stmt, ...]) -> dict[Storage, Storage]:
        """The arrays on the chip that all contractions take in turns, for those of one."""
        names: dict[Storage, Storage] = {}
        for s in touched(body).written:
            if s.role == "shared":
                k = len(names)
                fits = [t for t in self.tiles if t.dtype is s.dtype and t not in names.values()]
                if not fits:
                    fits = [Storage(f"part{k}_shared", 0, s.dtype, "shared")]
                    self.tiles += fits
                names[s] = fits[0]
                fits[0].size = max(fits[0].size, s.size)
        return names


def looped(variables: list[Var], limits: dict[Var, Affine],
           body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """Loops around statements."""
    for v in reversed(variables):
        body = (For(v, body, "serial", limits.get(v)),)
    return body


def replace_vars(index: Affine, names: dict[Var, Affine]) -> Affine:
    """An index with variables replaced."""
    stmt = substitute_stmt(For(Var("none", 1), (), "serial", index), names)
    assert isinstance(stmt, For) and stmt.limit is not None
    return stmt.limit


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def moved(body: tuple[Stmt, ...], copies: dict[Storage, Storage],
          number: Affine) -> tuple[Stmt, ...]:
    """Statements that use copy `number` of some storages."""
    def index_of(s: Storage, index: Affine) -> Affine:
        return index + number * s.size

    def leaf(e: Expr) -> Expr:
        if isinstance(e, Load) and e.storage in copies:
            return replace(e, storage=copies[e.storage], index=index_of(e.storage, e.index))
        return e

    def fresh(stmt: Stmt) -> tuple[Stmt, ...]:
        if isinstance(stmt, If):
            return (replace(stmt, cond=rewrite(stmt.cond, leaf, lambda a: a)),)
        if not isinstance(stmt, Store):
            return (stmt,)
        value = rewrite(stmt.value, leaf, lambda a: a)
        if stmt.storage in copies:
            return (replace(stmt, storage=copies[stmt.storage], value=value,
                            index=index_of(stmt.storage, stmt.index)),)
        return (replace(stmt, value=value),)

    return transform(body, fresh)


def choose_shape(c: Contraction, target: Target) -> Shape:
    """The tile with which a block is done first."""
    return min(shapes_for(c, target, SHAPES, elements(c.depth)), key=lambda s: -(
        -elements(c.rows) // s.rows) * -(-elements(c.cols) // s.cols) * s.rows * s.cols / (
        s.threads * REACH[s.high * s.wide]))


# -- a kernel ------------------------------------------------------------------------------------


def schedule_nest(kernel: LoopKernel, target: Target) -> LoopKernel:
    """The kernel with its body divided among blocks, and inside them among threads."""
    products = [s for s in statements(kernel.body) if isinstance(s, Contraction)]
    tiles = replace(target, shared=target.shared // 2)
    threads = max(WARP, *(THREADS if is_thin(c) else choose_shape(c, tiles).threads
                          for c in products))
    threads = min(threads, target.threads)
    kernel = over_blocks(kernel)
    made = Together(threads, replace(tiles, threads=threads))
    done = on_the_chip(made.block(kernel.body), target.shared)
    return replace(kernel, body=done, threads=threads)


def over_blocks(kernel: LoopKernel) -> LoopKernel:
    """A kernel whose outermost loops, as far as iterations stand alone and nothing is between them,
    have one block for each iteration; as it is if something is kept for each chunk."""
    if len(kernel.body) != 1 or not isinstance(kernel.body[0], For) or uses(
            kernel.body, kernel.chunk):
        return kernel
    loops: list[Var] = []
    body: tuple[Stmt, ...] = kernel.body
    while len(body) == 1 and isinstance(body[0], For) and body[0].limit is None:
        inner = body[0]
        mine = private(inner.body, [inner.var])
        if any(inner.var not in s.index.free_vars() for s in outward(inner.body)
               if s.storage not in mine):
            break
        loops.append(inner.var)
        body = inner.body
    if not loops:
        return kernel
    chunk = Var("chunk", elements(loops))
    names = dict(zip(loops, unravel(Affine.of(chunk), tuple(v.extent for v in loops))))
    return replace(kernel, chunk=chunk, body=tuple(substitute_stmt(s, names) for s in body))


def uses(body: tuple[Stmt, ...], v: Var) -> bool:
    """True if statements depend on a variable."""
    for s in statements(body):
        place = stored_at(s)
        if place is not None and v in place[1].free_vars():
            return True
        if any(v in free_vars(load) for load in loads_of(s)):
            return True
    return False


def on_the_chip(body: tuple[Stmt, ...], most: int) -> tuple[Stmt, ...]:
    """Statements whose scratch arrays, the smallest first, are shared memory while there is any."""
    seen = touched(body)
    storages = list(dict.fromkeys((*seen.read, *seen.written)))
    left = most - sum(s.nbytes for s in storages if s.role == "shared")
    names: dict[Storage, Storage] = {}
    for s in sorted((s for s in storages if s.role == "scratch"), key=lambda s: s.nbytes):
        if s.nbytes <= left:
            left -= s.nbytes
            names[s] = Storage(s.name, s.size, s.dtype, "shared")
    return replace_storage(body, names) if names else body
