"""The tile of a product that the threads of a block make together, as loop IR.

Both operands of a stretch of the depth are brought into shared memory through their index
functions, so views, windows, padding and transposes disappear there; each thread keeps some of the
tile's sums in registers. While a stretch is multiplied, the next one is on its way: it is fetched
into registers before and put into a second shared tile after.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tinyc.codegen.panel import BEGINNING, in_tile
from tinyc.codegen.primitives import renamed
from tinyc.ir.cost import elements
from tinyc.ir.dtype import DType, bool_, f32
from tinyc.ir.index import Affine, Data, FloorDiv, Mod, Var, unravel
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Barrier,
    Const,
    Contraction,
    Expr,
    For,
    If,
    Load,
    MicroMma,
    Stmt,
    Storage,
    Store,
    Within,
    converted,
    substitute_index,
    substitute_stmt,
)
from tinyc.ir.ops import Op

# Numbers that a thread moves at once.
VECTOR = 4
# The threads of a warp stand in 4 rows of 8, each with groups of 4 x 4 sums.
WARP_ROWS, WARP_COLS, WARP = 4, 8, 32
# What rows of shared tiles are filled up with, so that threads that store columns meet fewer banks;
# for matrix instructions 16 bytes of halves, or as many numbers as make threads meet none.
PADDING, PADDING_FOR_MMA = 4, 8
# The share of the arithmetic's peak that high x wide sums of a thread, or of a warp, can reach.
REACH = {64: 1.0, 32: 0.7, 16: 0.5, 64 * 32: 1.0, 32 * 32: 0.7, 16 * 32: 0.5, 16 * 16: 0.35}


@dataclass(frozen=True)
class Shape:
    """A tile: rows x cols of the result, `depth` points of the depth at a time; a thread has
    high x wide of its sums, both multiples of 4. With a `kind` of matrix instructions, f16, bf16
    or tf32, it is a warp that has high x wide sums, multiples of 16."""

    rows: int
    cols: int
    depth: int
    high: int
    wide: int
    kind: str = ""

    @property
    def threads(self) -> int:
        return self.rows * self.cols // (self.high * self.wide) * (WARP if self.kind else 1)

    @property
    def sums(self) -> int:
        """Sums of a thread."""
        return self.high * self.wide // (WARP if self.kind else 1)

    @property
    def padding(self) -> int:
        return PADDING_FOR_MMA if self.kind else PADDING

    def element(self, c: Contraction) -> DType:
        """What tiles hold of the operands of a contraction."""
        return c.a.dtype if self.kind in ("f16", "bf16") else c.tile.dtype

    def shared_bytes(self, c: Contraction) -> int:
        """The most that both tiles may take, each of them twice."""
        sizes = self.rows + self.cols
        padded = self.padding * max(2 * self.depth, sizes)
        return 2 * (self.depth * sizes + padded) * self.element(c).itemsize


@dataclass(frozen=True)
class Side:
    """An operand of a tile: what it reads at its own variables and the depth's; how many of its
    rows (or columns) there are, and which one is the tile's first; how many the tile has. `deep`
    is how many points the depth has, None where no more are asked for."""

    load: Load
    own: tuple[Var, ...]
    depth: tuple[Var, ...]
    count: Affine
    deep: Affine | None
    first: Affine
    size: int
    name: str


# -- what an operand's tile is made of -----------------------------------------------------------


def direction(side: Side) -> tuple[bool, int]:
    """(whether threads next to each other read along the depth, how many numbers at once)."""
    for along, variables in ((True, side.depth), (False, side.own)):
        if variables and aligned(side.load, variables):
            return along, VECTOR
    deep, own = (step(side.load, v) for v in (side.depth, side.own))
    return bool(deep) and (deep < own or not own), 1


def step(load: Load, variables: tuple[Var, ...]) -> int:
    """How far the last of some variables moves a load; 0 if there is none."""
    return abs(load.index.coeff(variables[-1])) if variables else 0


def aligned(load: Load, variables: tuple[Var, ...]) -> bool:
    """True if the last of `variables` moves a load through whole vectors."""
    if not variables:
        return False
    v, index = variables[-1], load.index
    if load.guard or index.coeff(v) != 1 or not index.is_linear_in(v) or v.extent % VECTOR or (
            load.storage.role == "register"):
        return False
    others = [c for a, c in index.terms if a is not v]
    data = any(isinstance(a, (Data, FloorDiv, Mod)) for a, _ in index.terms)
    return not data and index.const % VECTOR == 0 and all(c % VECTOR == 0 for c in others)


def element(side: Side, own: Affine, deep: Affine, lanes: int = 1, along: bool = True) -> Load:
    """The operand at a row and a point of the depth, guarded where either may be too many; the
    first of `lanes` elements along the depth, or along the rows."""
    wide = (1, lanes) if along else (lanes, 1)
    names = dict(zip(side.own, digits(own, side.own, wide[0])))
    names.update(zip(side.depth, digits(deep, side.depth, wide[1])))
    guards = [replace(g, index=substitute_index(g.index, names)) for g in side.load.guard]
    for at, count, size in ((own, side.count, elements(side.own)),
                            (deep, side.deep, elements(side.depth))):
        guards += [] if count is None else inside(at, count, size)
    return Load(side.load.storage, substitute_index(side.load.index, names), tuple(guards))


def digits(at: Affine, variables: tuple[Var, ...], lanes: int) -> tuple[Affine, ...]:
    """An index for each variable at a flat position, a multiple of `lanes`, as the last one is."""
    sizes = tuple(v.extent for v in variables)
    if lanes == 1 or not sizes:
        return unravel(at, sizes)
    *outer, last = unravel(at // lanes, (*sizes[:-1], sizes[-1] // lanes))
    return (*outer, last * lanes)


def copied(to: Storage, at: Affine, load: Load, lanes: int) -> tuple[Stmt, ...]:
    """to[at ...] = as many numbers from where a load is, as one access; zeros beyond its guard."""
    i, z = Var("lane", lanes), Var("lane", lanes)
    plain = replace(load, index=load.index + Affine.of(i), guard=())
    move = For(i, (Store(to, at + Affine.of(i), plain),), "vector")
    if not load.guard:
        return (move,)
    zeros = For(z, (Store(to, at + Affine.of(z), nothing(to.dtype)),), "unroll")
    return zeros, If(both(load.guard), (move,))


def nothing(dtype: DType) -> Expr:
    """Zero, as a number of some dtype."""
    if dtype.is_half:
        return converted(Const(0.0, f32), dtype)
    return Const(dtype.np.type(0).item(), dtype)


def inside(at: Affine, count: Affine, size: int) -> list[Within]:
    """The guard that `at` is less than a count that is at most `size`, if it may be more."""
    low, high = at.bounds()
    if count.is_const:
        return [] if high < count.const and low >= 0 else [Within(at, 0, count.const, 1, bool_)]
    return [Within(count - at, 1, size + 1, 1, bool_)]


@dataclass
class Mover:
    """Statements that fetch a stretch of an operand into registers and put it into its tile."""

    side: Side
    shape: Shape
    dtype: DType
    along: bool
    lanes: int
    tile: Storage
    held: Storage
    rows_first: bool = False

    @property
    def steps(self) -> tuple[int, int]:
        """How far apart in the tile rows of the operand are, and points of the depth."""
        if self.rows_first:
            return self.shape.depth + self.shape.padding, 1
        return 1, self.side.size + self.shape.padding

    @property
    def half(self) -> int:
        """Elements of one of the two tiles."""
        across, down = self.steps
        return self.side.size * across if self.rows_first else self.shape.depth * down

    def at(self, buffer: Affine, own: Affine, deep: Affine) -> Affine:
        """Where the tile with number `buffer` has a row at a point of the depth."""
        across, down = self.steps
        return buffer * self.half + own * across + deep * down

    def parts(self) -> int:
        """How many vectors each thread moves."""
        return -(-self.side.size * self.shape.depth // (self.lanes * self.shape.threads))

    def place(self, thread: Var, u: Var) -> tuple[Affine, Affine, list[Within]]:
        """(row, point of the depth) of a thread's vector number `u`, and whether there is one."""
        whole = self.side.size * self.shape.depth // self.lanes
        e = Affine.of(u) * self.shape.threads + Affine.of(thread)
        beyond = self.parts() * self.shape.threads > whole
        guard = [Within(e, 0, whole, 1, bool_)] if beyond else []
        if self.along:
            width = self.shape.depth // self.lanes
            return e // width, e % width * self.lanes, guard
        width = self.side.size // self.lanes
        return e % width * self.lanes, e // width, guard

    def fetch(self, thread: Var, start: Affine) -> Stmt:
        """held = the thread's part of the stretch that begins at `start`."""
        u = Var(f"{self.side.name}f", self.parts())
        own, deep, guard = self.place(thread, u)
        load = element(self.side, self.side.first + own, start + deep, self.lanes,
                       self.along)
        load = replace(load, guard=(*guard, *load.guard))
        at = Affine.of(u) * self.lanes
        if self.lanes > 1 and load.dtype is self.dtype:
            return For(u, copied(self.held, at, load, self.lanes), "unroll")
        return For(u, (Store(self.held, at, converted(load, self.dtype)),), "unroll")

    def put(self, thread: Var, buffer: Affine) -> Stmt:
        """The tile with number `buffer` = what was fetched."""
        u = Var(f"{self.side.name}p", self.parts())
        own, deep, guard = self.place(thread, u)
        at = self.at(buffer, own, deep)
        if self.lanes > 1 and self.along == self.rows_first:
            held = Load(self.held, Affine.of(u) * self.lanes)
            body = copied(self.tile, at, held, self.lanes)
        else:
            i = Var(f"{self.side.name}l", self.lanes)
            held = Load(self.held, Affine.of(u) * self.lanes + Affine.of(i))
            step = self.steps[1 if self.along else 0]
            store = Store(self.tile, at + Affine.of(i) * step, held)
            body = (For(i, (store,), "unroll"),) if self.lanes > 1 else (store,)
        return For(u, (If(guard[0], body),) if guard else body, "unroll")


def mover(side: Side, shape: Shape, dtype: DType) -> Mover:
    """What moves an operand, with its shared tile and the registers on the way there."""
    along, lanes = direction(side)
    if side.load.dtype is not dtype:
        lanes = 1
    tile = Storage(f"{side.name}_shared", 0, dtype, "shared")
    made = Mover(side, shape, dtype, along, lanes, tile, tile, along and dtype.is_half)
    tile.size = 2 * made.half
    made.held = Storage(f"{side.name}_next", made.parts() * lanes, dtype, "register")
    return made


# -- the sums of a thread ------------------------------------------------------------------------


@dataclass
class Sums:
    """The sums of the threads of a block: `storage`, an array of each thread, and where in the tile
    a thread's groups of sums stand."""

    shape: Shape
    storage: Storage
    dtype: DType

    def corner(self, thread: Var) -> tuple[Affine, Affine]:
        """The first row and column of a thread."""
        t, across = Affine.of(thread), self.shape.cols // (WARP_COLS * self.shape.wide)
        lane, warp = t % WARP, t // WARP
        row = warp // across * (WARP_ROWS * self.shape.high) + lane // WARP_COLS * VECTOR
        column = warp % across * (WARP_COLS * self.shape.wide) + lane % WARP_COLS * VECTOR
        return row, column

    def clear(self, suffix: str) -> list[Stmt]:
        """All sums begin at zero."""
        i = Var(f"z_{suffix}", self.storage.size)
        clear = Store(self.storage, Affine.of(i), nothing(self.dtype))
        return [Alloc(self.storage), For(i, (clear,), "unroll")]

    def multiply(self, a: Mover, b: Mover, thread: Var, buffer: Affine, suffix: str) -> Stmt:
        """sums += a * b for all points of the depth of a pair of shared tiles."""
        shape = self.shape
        k = Var(f"k_{suffix}", shape.depth)
        row, column = self.corner(thread)
        body: list[Stmt] = []
        held = []
        for m, first, count, gap in ((a, row, shape.high, WARP_ROWS * VECTOR),
                                     (b, column, shape.wide, WARP_COLS * VECTOR)):
            g = Var(f"g{m.side.name}", count // VECTOR)
            r = Storage(f"{m.side.name}_now", count, self.dtype, "register")
            at = m.at(buffer, first + Affine.of(g) * gap, Affine.of(k))
            move = copied(r, Affine.of(g) * VECTOR, Load(m.tile, at), VECTOR)
            body += [Alloc(r), For(g, move, "unroll")]
            held.append(r)
        i, j = Var(f"i_{suffix}", shape.high), Var(f"j_{suffix}", shape.wide)
        product = Apply(Op.MUL, (Load(held[0], Affine.of(i)), Load(held[1], Affine.of(j))),
                        self.dtype)
        add = Store(self.storage, Affine.of(i) * shape.wide + Affine.of(j), product, "sum")
        body.append(For(i, (For(j, (add,), "unroll"),), "unroll"))
        return For(k, tuple(body), "unroll")

    def each(self, thread: Var, suffix: str,
             visit: Callable[[Affine, Affine, Affine], tuple[Stmt, ...]]) -> Stmt:
        """Unrolled loops over a thread's sums; `visit` is given row, column and place of one."""
        shape = self.shape
        row, column = self.corner(thread)
        i, j = Var(f"ei_{suffix}", shape.high), Var(f"ej_{suffix}", shape.wide)
        r = row + Affine.of(i) // VECTOR * (WARP_ROWS * VECTOR) + Affine.of(i) % VECTOR
        c = column + Affine.of(j) // VECTOR * (WARP_COLS * VECTOR) + Affine.of(j) % VECTOR
        body = visit(r, c, Affine.of(i) * shape.wide + Affine.of(j))
        return For(i, (For(j, body, "unroll"),), "unroll")


@dataclass
class WarpSums(Sums):
    """The sums of warps that multiply by matrix instructions (`MicroMma`)."""

    def corner(self, thread: Var) -> tuple[Affine, Affine]:
        """The first row and column of a thread's warp."""
        warp, across = Affine.of(thread) // WARP, self.shape.cols // self.shape.wide
        return warp // across * self.shape.high, warp % across * self.shape.wide

    def multiply(self, a: Mover, b: Mover, thread: Var, buffer: Affine, suffix: str) -> Stmt:
        """sums += a * b for all points of the depth of a pair of shared tiles."""
        shape = self.shape
        row, column = self.corner(thread)
        first, second = (Load(m.tile, m.at(buffer, at, BEGINNING)) for m, at in (
            (a, row), (b, column)))
        return MicroMma(self.storage, shape.high, shape.wide, shape.depth, first, a.steps, second,
                        b.steps, Affine.of(thread) % WARP, shape.kind)

    def each(self, thread: Var, suffix: str,
             visit: Callable[[Affine, Affine, Affine], tuple[Stmt, ...]]) -> Stmt:
        """Unrolled loops over a thread's sums; `visit` is given row, column and place of one."""
        row, column = self.corner(thread)
        lane, wide = Affine.of(thread) % WARP, self.shape.wide // 8
        i, j = Var(f"ei_{suffix}", self.shape.high // 16), Var(f"ej_{suffix}", wide)
        r = Var(f"er_{suffix}", 4)
        at = (Affine.of(i) * wide + Affine.of(j)) * 4 + Affine.of(r)
        body = visit(row + Affine.of(i) * 16 + lane // 4 + Affine.of(r) // 2 * 8,
                     column + Affine.of(j) * 8 + lane % 4 * 2 + Affine.of(r) % 2, at)
        for v in (r, j, i):
            body = (For(v, body, "unroll"),)
        return body[0]


# -- a tile --------------------------------------------------------------------------------------


@dataclass
class Part:
    """Which part of a contraction a block makes: its first row and column, the stretches of the
    depth from `start` on, `stretches` of them, the last one for the whole product at `deep`."""

    row: Affine
    column: Affine
    start: Affine
    stretches: int
    left: Affine


def counts(c: Contraction) -> tuple[Affine, Affine, Affine]:
    """How many rows, columns and points of the depth a contraction has."""
    found = []
    for variables in (c.rows, c.cols, c.depth):
        found.append(c.limit(variables) or Affine.const_of(elements(variables)))
    return found[0], found[1], found[2]


def tile_statements(c: Contraction, shape: Shape, part: Part, suffix: str,
                    finish: Callable[[Affine, Affine, Load], tuple[Stmt, ...]]) -> list[Stmt]:
    """A tile of a contraction by all threads of a block.

    `finish` is given a row and a column, counted over all of them, that are there, and the sum.
    """
    rows, cols, points = counts(c)
    whole = points.is_const and points.const % shape.depth == 0
    deep, dtype = None if whole else points, shape.element(c)
    a = mover(Side(c.a, c.rows, c.depth, rows, deep, part.row, shape.rows, f"a_{suffix}"), shape,
              dtype)
    b = mover(Side(c.b, c.cols, c.depth, cols, deep, part.column, shape.cols, f"b_{suffix}"),
              shape, dtype)
    make = WarpSums if shape.kind else Sums
    sums = make(shape, Storage(f"sums_{suffix}", shape.sums, c.tile.dtype, "register"),
                c.tile.dtype)
    body: list[Stmt] = [Alloc(a.held), Alloc(b.held), *sums.clear(suffix)]
    body += stretches(a, b, sums, part, suffix)
    thread = Var(f"t_{suffix}", shape.threads)

    def visit(row: Affine, column: Affine, at: Affine) -> tuple[Stmt, ...]:
        r, col = part.row + row, part.column + column
        done = finish(r, col, Load(sums.storage, at))
        guards = [*inside(r, rows, elements(c.rows)), *inside(col, cols, elements(c.cols))]
        return (If(both(guards), done),) if guards else done

    body.append(For(thread, (sums.each(thread, suffix, visit),), "thread"))
    return body


def both(guards: Sequence[Within]) -> Expr:
    """All of some conditions."""
    found: Expr = guards[0]
    for g in guards[1:]:
        found = Apply(Op.AND, (found, g), bool_)
    return found


def stretches(a: Mover, b: Mover, sums: Sums, part: Part, suffix: str) -> list[Stmt]:
    """The loop down the depth."""
    shape, n = sums.shape, part.stretches
    t0, t = (Var(f"t{i}_{suffix}", shape.threads) for i in range(2))
    zero = BEGINNING
    first = For(t0, (a.fetch(t0, part.start), b.fetch(t0, part.start), a.put(t0, zero),
                     b.put(t0, zero)), "thread")
    if n == 1:
        only = For(t, (sums.multiply(a, b, t, zero, suffix),), "thread")
        return [first, Barrier(), only, Barrier()]
    s = Var(f"s_{suffix}", n)
    now, then = Affine.of(s) % 2, (Affine.of(s) + 1) % 2
    following = part.start + (Affine.of(s) + 1) * shape.depth
    always = part.left.is_const and part.left.const >= n
    more = both([Within(Affine.of(s), 0, n - 1, 1, bool_), *([] if always else inside(
        Affine.of(s) + 1, part.left, part.left.bounds()[1]))])
    body = (If(more, (a.fetch(t, following), b.fetch(t, following))),
            sums.multiply(a, b, t, now, suffix),
            If(more, (a.put(t, then), b.put(t, then))))
    return [first, Barrier(), For(s, (For(t, body, "thread"), Barrier()), "serial",
                                  None if always else part.left)]


def epilogue(c: Contraction, row: Affine, column: Affine, total: Load) -> tuple[Stmt, ...]:
    """The body of a contraction at a row and a column."""
    names = dict(zip(c.rows, unravel(row, tuple(v.extent for v in c.rows))))
    names.update(zip(c.cols, unravel(column, tuple(v.extent for v in c.cols))))
    body = renamed(tuple(substitute_stmt(s, names) for s in c.body))
    return tuple(in_tile(s, c.tile, total.storage, total.index) for s in body)
