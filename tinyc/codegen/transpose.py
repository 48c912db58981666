"""Maps that read along one axis and store along another: in tiles which registers transpose.

Read element by element, such an operand brings a whole cache line for each number that it gives,
and rows that lie a power of two apart throw each other out of the cache.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tinyc.codegen import primitives as p
from tinyc.codegen.lines import LINE
from tinyc.ir.dtype import bool_
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc,
    Expr,
    For,
    If,
    Load,
    MicroPack,
    Prefetch,
    Stmt,
    Storage,
    Store,
    Within,
    loads,
    rewrite,
    substitute_load,
    substitute_stmt,
)
from tinyc.ir.program import Target

# Elements along each side of a tile: four cache lines of f32 that are read, and written, whole.
SIDE = 64
# Narrower operands are as well read element by element.
NARROWEST = 4


@dataclass(frozen=True)
class Crossing:
    """A perfect nest of loops, the variable along which it stores, the one along which it reads
    the operands `across`, and the sides of its tiles. Those `far` are larger than a core's cache.
    """

    loops: tuple[For, ...]
    body: tuple[Stmt, ...]
    along: Var
    against: Var
    across: tuple[Load, ...]
    sides: Mapping[Var, int]
    lanes: int
    far: tuple[Load, ...]


def in_tiles(body: tuple[Stmt, ...], target: Target, chunk: Var) -> tuple[Stmt, ...]:
    """Statements with the nests that read across their rows in tiles.

    for i: for j: y[N*i + j] = x[M*j + i]
      ->  for tiles: t = x[..] transposed; for i: for j: y[..] = t[..]
    """
    out: list[Stmt] = []
    for stmt in body:
        found = match(stmt, target, chunk) if isinstance(stmt, For) else None
        if found is not None:
            out += Tiles(found, chunk).loops(found.loops, {}, {})
        elif isinstance(stmt, (For, If)):
            out.append(replace(stmt, body=in_tiles(stmt.body, target, chunk)))
        else:
            out.append(stmt)
    return tuple(out)


def match(stmt: For, target: Target, chunk: Var) -> Crossing | None:
    """The nest of a map whose stores and loads have their neighbours along different axes."""
    loops, body = perfect_nest(stmt)
    stores = [s for s in body if isinstance(s, Store) and s.storage.role != "register"]
    if len(loops) < 2 or not stores or stores[0].storage.role == "scratch":
        return None
    if not reorders(loops, body, stores):
        return None
    inner = [loop.var for loop in reversed(loops)]
    along = next((v for v in inner if stores[0].index.coeff(v) == 1), None)
    if along is None or along.extent < NARROWEST:
        return None
    reads = [x for s in body if isinstance(s, Store) for x in loads(s.value)]
    for v in (loop.var for loop in loops):
        across = {(x.storage, x.index): x for x in reads if reads_across(x, v, along)}
        if v is along or v.extent < NARROWEST or not across:
            continue
        found = tuple(across.values())
        lanes = lane_count(found, v, along, target)
        sides = {along: min(SIDE, along.extent), v: min(tile_side(found), v.extent)}
        loops = divided(loops, sides, chunk)
        outer = loops[0].var
        while outer in sides and sides[outer] >= 2 * lanes and (
                outer.extent // sides[outer] < chunk.extent):
            sides[outer] //= 2
        far = tuple(x for x in found if x.storage.nbytes > target.l2)
        return Crossing(loops, body, along, v, found, sides, lanes, far)
    return None


def perfect_nest(stmt: For) -> tuple[tuple[For, ...], tuple[Stmt, ...]]:
    """Loops that hold nothing but one another, and what the innermost holds."""
    loops = [stmt]
    while len(loops[-1].body) == 1 and isinstance(loops[-1].body[0], For):
        loops.append(loops[-1].body[0])
    return tuple(loops), loops[-1].body


def reorders(loops: Sequence[For], body: tuple[Stmt, ...], stores: Sequence[Store]) -> bool:
    """True if the iterations are independent: each stores to places of its own, once."""
    if not all(isinstance(s, (Store, Alloc)) for s in body):
        return False
    if any(loop.limit is not None or loop.kind not in ("serial", "chunk") for loop in loops):
        return False
    written = {s.storage: s.index for s in stores}
    if len(written) < len(stores):
        return False
    for s in stores:
        if s.accumulate or not all(s.index.is_linear_in(loop.var) and s.index.coeff(loop.var)
                                   for loop in loops):
            return False
    reads = [x for s in body if isinstance(s, Store) for x in loads(s.value)]
    return all(x.index == written.get(x.storage, x.index) for x in reads)


def reads_across(x: Load, against: Var, along: Var) -> bool:
    """True if an operand's neighbours are those of `against`, and those of `along` lie apart."""
    index = x.index
    return (x.storage.role in ("slot", "arena") and not x.guard and not any(index.data())
            and index.is_linear_in(against) and index.is_linear_in(along)
            and index.coeff(against) == 1 and abs(index.coeff(along)) >= NARROWEST)


def lane_count(across: Sequence[Load], against: Var, along: Var, target: Target) -> int:
    """The side of the squares that registers transpose: a power of two, no wider than a vector."""
    widest = max(x.dtype.itemsize for x in across)
    most = max(1, min(16, target.lanes * 4 // widest, against.extent, along.extent))
    return 1 << most.bit_length() - 1


def tile_side(across: Sequence[Load]) -> int:
    """The side of a tile with which those of all operands fit the first-level cache."""
    size, itemsize = SIDE, sum(x.dtype.itemsize for x in across)
    while size > 16 and size * SIDE * itemsize > 32 << 10:
        size //= 2
    return size


def divided(loops: tuple[For, ...], sides: Mapping[Var, int], chunk: Var) -> tuple[For, ...]:
    """The loops with the chunks among the tiles of another one if the outermost has too few."""
    blocks = [loop.var.extent // sides.get(loop.var, 1) for loop in loops]
    most = blocks.index(max(blocks))
    if loops[0].kind != "chunk" or blocks[0] >= chunk.extent or not most:
        return loops
    rest = (replace(loops[0], kind="serial"), *loops[1:most], *loops[most + 1:])
    return (replace(loops[most], kind="chunk"), *rest)


@dataclass
class Tiles:
    """Makes the loops over the tiles of a nest, and what runs for each."""

    nest: Crossing
    chunk: Var

    def __post_init__(self) -> None:
        t = self.nest
        wide = -(-t.sides[t.along] // t.lanes) * t.lanes
        self.copies = {
            (x.storage, x.index): Storage(f"turned{p.fresh_number()}", wide * t.sides[t.against],
                                          x.dtype, "scratch") for x in t.across}

    def loops(self, rest: tuple[For, ...], first: Mapping[Var, Affine],
              size: Mapping[Var, int]) -> tuple[Stmt, ...]:
        """The loops `rest` around a tile that begins at `first`; what is left over comes last."""
        if not rest:
            return self.tile(first, size)
        loop, inner = rest[0], rest[1:]
        v = loop.var
        if v not in self.nest.sides:
            return (replace(loop, body=self.loops(inner, first, size)),)
        step = self.nest.sides[v]
        whole, left = divmod(v.extent, step)
        o = Var(f"{v.name}o", whole)
        body = self.loops(inner, {**first, v: Affine.of(o) * step}, {**size, v: step})
        out: list[Stmt] = [For(o, body, loop.kind)]
        if left:
            tail = self.loops(inner, {**first, v: Affine.const_of(whole * step)},
                              {**size, v: left})
            alone = Within(Affine.of(self.chunk), 0, 1, 1, bool_)
            out += [If(alone, tail)] if loop.kind == "chunk" else tail
        return tuple(out)

    def tile(self, first: Mapping[Var, Affine], size: Mapping[Var, int]) -> tuple[Stmt, ...]:
        """The operands of a tile transposed, then its stores, in rows."""
        t = self.nest
        wide = -(-size[t.along] // t.lanes) * t.lanes
        out: list[Stmt] = []
        for x in t.across:
            depth = Var(f"{t.against.name}d", size[t.against])
            names = {t.against: first[t.against] + Affine.of(depth)}
            out.append(MicroPack(self.copies[x.storage, x.index], Affine.const_of(0), wide, t.lanes,
                                 t.along, first[t.along], (depth,), substitute_load(x, names)))
        i, j = Var(f"{t.against.name}i", size[t.against]), Var(f"{t.along.name}j", size[t.along])
        at = Affine.of(i) * wide + Affine.of(j)
        names = {t.against: first[t.against] + Affine.of(i), t.along: first[t.along] + Affine.of(j)}
        body = tuple(substitute_stmt(self.with_copies(s, at), names) for s in t.body)
        ahead = self.next_rows(i, first, size)
        return (*out, For(i, (*ahead, For(j, p.renamed(body)))))

    def next_rows(self, i: Var, first: Mapping[Var, Affine],
                  size: Mapping[Var, int]) -> Iterator[Prefetch]:
        """What asks, for each row that a tile stores, for one that the next tile reads."""
        t = self.nest
        if size[t.against] != size[t.along]:
            return
        for x in t.far:
            for start in range(0, size[t.against], LINE // x.dtype.itemsize):
                yield Prefetch(substitute_load(x, {
                    t.against: first[t.against] + start,
                    t.along: first[t.along] + size[t.along] + Affine.of(i)}))

    def with_copies(self, stmt: Stmt, at: Affine) -> Stmt:
        """A statement that reads the transposed operands at `at` in their tiles."""
        if not isinstance(stmt, Store):
            return stmt

        def leaf(e: Expr) -> Expr:
            copy = self.copies.get((e.storage, e.index)) if isinstance(e, Load) else None
            return e if copy is None else Load(copy, at)

        return replace(stmt, value=rewrite(stmt.value, leaf, lambda a: a))
