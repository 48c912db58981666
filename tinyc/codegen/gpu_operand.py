"""How an operand of a product comes to the shared memory of a block, as loop IR.

It is read through its index function, so views, windows, padding and transposes disappear here:
several numbers at a time where they lie side by side, along the depth or along the rows. It goes
through registers, which holds anything, or by asynchronous stores, which only copy.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tinyc.codegen.gpu_shape import PADDING, PADDING_FOR_MMA, VECTOR, Shape
from tinyc.ir.cost import elements
from tinyc.ir.dtype import DType, bool_, f32
from tinyc.ir.index import Affine, Data, FloorDiv, Mod, Var, unravel
from tinyc.ir.loop import (
    Apply,
    Const,
    Contraction,
    Expr,
    For,
    If,
    Load,
    Stmt,
    Storage,
    Store,
    Within,
    converted,
    substitute_index,
)
from tinyc.ir.ops import Op

# Bytes that one asynchronous store may copy, most first.
COPIES = (16, 8, 4)
# Threads side by side that read along the depth and store across a tile read so many numbers of a
# row: then no two of a warp store to one bank.
RUN = 8


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


def direction(side: Side, widths: Sequence[int] = (VECTOR,)) -> tuple[bool, int]:
    """(whether threads next to each other read along the depth, how many numbers at once): the
    first of `widths` that suits, else one."""
    for lanes in widths:
        for along, variables in ((True, side.depth), (False, side.own)):
            if lanes > 1 and aligned(side.load, variables, lanes):
                return along, lanes
    deep, own = (step(side.load, v) for v in (side.depth, side.own))
    return bool(deep) and (deep < own or not own), 1


def step(load: Load, variables: tuple[Var, ...]) -> int:
    """How far the last of some variables moves a load; 0 if there is none."""
    return abs(load.index.coeff(variables[-1])) if variables else 0


def aligned(load: Load, variables: tuple[Var, ...], lanes: int = VECTOR) -> bool:
    """True if the last of `variables` moves a load through whole vectors of `lanes` numbers."""
    if not variables:
        return False
    v, index = variables[-1], load.index
    if load.guard or index.coeff(v) != 1 or not index.is_linear_in(v) or v.extent % lanes or (
            load.storage.role == "register"):
        return False
    others = [c for a, c in index.terms if a is not v]
    data = any(isinstance(a, (Data, FloorDiv, Mod)) for a, _ in index.terms)
    return not data and index.const % lanes == 0 and all(c % lanes == 0 for c in others)


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


def both(guards: Sequence[Within]) -> Expr:
    """All of some conditions."""
    found: Expr = guards[0]
    for g in guards[1:]:
        found = Apply(Op.AND, (found, g), bool_)
    return found


def can_copy(c: Contraction, dtype: DType) -> bool:
    """True if asynchronous stores can bring both operands of a contraction, as numbers of a dtype:
    if they are plain numbers of an argument or the arena, and enough of them lie side by side."""
    least = COPIES[-1] // dtype.itemsize
    for load, own in ((c.a, c.rows), (c.b, c.cols)):
        computed = load.index.data() or any(g.index.data() for g in load.guard)
        if load.dtype is not dtype or load.storage.role not in ("slot", "arena") or computed:
            return False
        if least > 1 and not (aligned(load, own, least) or aligned(load, c.depth, least)):
            return False
    return True


# -- how it moves --------------------------------------------------------------------------------


@dataclass
class Mover:
    """Statements that bring stretches of an operand to its tile, which holds `slots` of them: by
    asynchronous stores, or by registers, `held`."""

    side: Side
    shape: Shape
    dtype: DType
    along: bool
    lanes: int
    slots: int
    tile: Storage
    held: Storage | None = None

    @property
    def rows_first(self) -> bool:
        """True if the tile has rows of the operand, as matrix instructions can take them; else it
        has a row for each point of the depth."""
        return self.along and self.shape.kind != ""

    @property
    def steps(self) -> tuple[int, int]:
        """How far apart in the tile rows of the operand are, and points of the depth."""
        if not self.rows_first:
            return 1, self.side.size + (PADDING_FOR_MMA if self.shape.kind else PADDING)
        return self.shape.depth + (PADDING_FOR_MMA if self.dtype.is_half else PADDING), 1

    @property
    def stretch(self) -> int:
        """Elements of the tile for a stretch."""
        across, down = self.steps
        return self.side.size * across if self.rows_first else self.shape.depth * down

    def at(self, slot: Affine, own: Affine, deep: Affine) -> Affine:
        """Where the stretch in a slot has a row at a point of the depth."""
        across, down = self.steps
        return slot * self.stretch + own * across + deep * down

    def parts(self) -> int:
        """How many vectors each thread moves."""
        return -(-self.side.size * self.shape.depth // (self.lanes * self.shape.threads))

    def place(self, thread: Var, u: Var) -> tuple[Affine, Affine, list[Within]]:
        """(row, point of the depth) of a thread's vector number `u`, and whether there is one."""
        whole = self.side.size * self.shape.depth // self.lanes
        e = Affine.of(u) * self.shape.threads + Affine.of(thread)
        beyond = self.parts() * self.shape.threads > whole
        guard = [Within(e, 0, whole, 1, bool_)] if beyond else []
        width = self.shape.depth // self.lanes
        if not self.along:
            width = self.side.size // self.lanes
            return e % width * self.lanes, e // width, guard
        rounds, rest = divmod(self.side.size * RUN, self.shape.threads)
        if self.rows_first or self.lanes > 1 or width % RUN or rest:
            return e // width, e % width * self.lanes, guard
        e = Affine.of(u) % rounds * self.shape.threads + Affine.of(thread)
        return e // RUN, Affine.of(u) // rounds * RUN + e % RUN, []

    def begin(self, thread: Var, start: Affine, slot: Affine) -> Stmt:
        """Ask for a thread's part of the stretch that begins at `start`."""
        return self.fetch(thread, start) if self.held else self.ask(thread, start, slot)

    def end(self, thread: Var, slot: Affine) -> list[Stmt]:
        """Put into a slot what has been asked for, unless it goes there by itself."""
        return [self.put(thread, slot)] if self.held else []

    def ask(self, thread: Var, start: Affine, slot: Affine) -> Stmt:
        """The tile = the stretch that begins at `start`, asynchronously."""
        u, lane = Var(f"{self.side.name}f", self.parts()), Var("lane", self.lanes)
        own, deep, guard = self.place(thread, u)
        load = element(self.side, self.side.first + own, start + deep, self.lanes, self.along)
        i = Affine.of(lane)
        body: tuple[Stmt, ...] = (Store(self.tile, self.at(slot, own, deep) + i, replace(
            load, index=load.index + i), asynchronous=True),)
        body = (For(lane, body, "vector"),)
        return For(u, (If(guard[0], body),) if guard else body, "unroll")

    def fetch(self, thread: Var, start: Affine) -> Stmt:
        """Registers = the stretch that begins at `start`."""
        assert self.held is not None
        u = Var(f"{self.side.name}f", self.parts())
        own, deep, guard = self.place(thread, u)
        load = element(self.side, self.side.first + own, start + deep, self.lanes, self.along)
        load = replace(load, guard=(*guard, *load.guard))
        at = Affine.of(u) * self.lanes
        if self.lanes > 1 and load.dtype is self.dtype:
            return For(u, copied(self.held, at, load, self.lanes), "unroll")
        return For(u, (Store(self.held, at, converted(load, self.dtype)),), "unroll")

    def put(self, thread: Var, slot: Affine) -> Stmt:
        """The tile = what was fetched."""
        assert self.held is not None
        u = Var(f"{self.side.name}p", self.parts())
        own, deep, guard = self.place(thread, u)
        at = self.at(slot, own, deep)
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


def mover(side: Side, shape: Shape, dtype: DType, slots: int) -> Mover:
    """What moves an operand, with its shared tile and, unless stores are asynchronous, registers
    on the way there."""
    widths = [n // dtype.itemsize for n in COPIES] if shape.asynchronous else [VECTOR]
    along, lanes = direction(side, widths)
    if side.load.dtype is not dtype or (shape.asynchronous and along and not shape.kind):
        lanes = 1  # to be converted, or turned
    made = Mover(side, shape, dtype, along, lanes, slots,
                 Storage(f"{side.name}_shared", 0, dtype, "shared"))
    made.tile.size = slots * made.stretch
    if not shape.asynchronous:
        made.held = Storage(f"{side.name}_next", made.parts() * lanes, dtype, "register")
    return made
