"""What recipes for contractions share: register tiles, cells of a product, packed panels of the
column operand, and the epilogue that stores a tile."""
from __future__ import annotations

from dataclasses import dataclass, field, replace

from tinyc.ir.choices import RULES, Choices
from tinyc.ir.cost import elements
from tinyc.ir.dtype import bool_
from tinyc.ir.index import Affine, Var, unravel
from tinyc.ir.loop import (
    Contraction,
    Expr,
    For,
    Load,
    MicroPack,
    Stmt,
    Storage,
    Store,
    Within,
    converted,
    rewrite,
    substitute_index,
    substitute_load,
    substitute_stmt,
)
from tinyc.ir.program import Target

ONE_VECTOR_ROWS = 8
ONE_VECTOR_SHARE = 0.75
HALF_VECTOR_SHARE = 0.4
# So many vectors of sums keep the multiply-adds of a CPU busy, and beginning a tile costs this part
# of a row.
LEAST_SUMS = 10
TILE_ROWS = 0.1
# A column operand in place is read in strides: beyond these many bytes, and for more than a few
# tiles of rows, the copy that packs it is cheaper than what the strides cost in caches.
IN_PLACE_STRIDE = 2048
IN_PLACE_TILES = 4
# What packing a panel costs, in register tiles of the same depth.
PACK_TILES = 0.6
# For more tiles of rows than these, a panel that is packed already saves less than 4 % of the time.
KEPT_TILES = 16


BEGINNING = Affine.const_of(0)


@dataclass(frozen=True)
class Tile:
    """Shape of a register tile: rows x (vectors * lanes) accumulators."""

    rows: int
    lanes: int
    width: int


def choose_tile(rows: int, columns: int, itemsize: int, target: Target,
                chosen: tuple[int, int] | None = None) -> Tile:
    """The tile that wastes least of its lanes; two vectors hide more latency than one.

    `chosen`: (rows, vectors) of the tile to take instead.
    """
    lanes = max(1, target.lanes * 4 // itemsize)
    options = [(Tile(target.tile_rows, lanes, 2 * lanes), 1.0),
               (Tile(ONE_VECTOR_ROWS, lanes, lanes), ONE_VECTOR_SHARE)]
    if lanes >= 8:
        options.append((Tile(ONE_VECTOR_ROWS, lanes // 2, lanes // 2), HALF_VECTOR_SHARE))
    if chosen is not None:
        options = [(Tile(chosen[0], lanes, chosen[1] * lanes), 1.0)]
    best = min(options, key=lambda o: -(-columns // o[0].width) * o[0].width / o[1])[0]
    return replace(best, rows=tile_height(rows, best.rows, best.width // best.lanes))


def tile_height(rows: int, most: int, vectors: int) -> int:
    """The rows of a tile with which least is computed beyond the last row.

    Fewer than the registers allow are as fast while there are enough sums to hide the latency.
    """
    least = max(-(-2 * most // 3), -(-LEAST_SUMS // vectors))
    even = -(-rows // -(-rows // most))
    return min((even, *range(most, least - 1, -1)),
               key=lambda h: -(-rows // h) * (h + TILE_ROWS))


def kept_width(rows: int, columns: int, itemsize: int, target: Target) -> int:
    """The width of panels that a column operand which never changes had better lie in; 0: it stays
    as it is.

    Panels of width 1 run along the depth, which is best for one row. Many rows pay for packing.
    """
    if rows == 1:
        return 1
    width = choose_tile(rows, columns, itemsize, target).width
    return width if columns >= width and rows <= KEPT_TILES * target.tile_rows else 0


@dataclass
class Place:
    """The kernel of a contraction: what it writes, how it is to be made, how many contractions were
    scheduled so far, and what is packed inside each loop (None: before all loops), ahead of all
    else there."""

    kernel: str
    chunks: int
    written: set[Storage]
    choices: Choices = RULES
    packs: dict[Var | None, list[Stmt]] = field(default_factory=dict)
    made: int = 0

    def suffix(self) -> str:
        """What the names of the next contraction's variables end with."""
        self.made += 1
        return f"{self.kernel.split('_')[0]}_{self.made}"


@dataclass
class Cells:
    """A division of panels and blocks of rows into cells: the loop variable over cells, the first
    block of a cell, the loops over its panels and blocks, and which ones these are in the whole."""

    cell: Var
    top: Affine
    panels: For
    blocks: For
    panel: Affine
    block: Affine


def cell_loops(down: int, across: int, panels: int, blocks: int, suffix: str) -> Cells:
    """Loops over the cells of `down` ranges of blocks and `across` ranges of panels."""
    cell = Var(f"cell_{suffix}", down * across)
    p, b = Var(f"jt_{suffix}", -(-panels // across)), Var(f"ib_{suffix}", -(-blocks // down))
    left, top = Affine.of(cell) % across * p.extent, Affine.of(cell) // across * b.extent
    return Cells(cell, top,
                 For(p, (), "serial", None if panels == p.extent * across else panels - left),
                 For(b, (), "serial", None if blocks == b.extent * down else blocks - top),
                 left + Affine.of(p), top + Affine.of(b))


def cells(chunks: int, panels: int, blocks: int, pack: float = PACK_TILES,
          rows: float = 0.0, across: int | None = None) -> tuple[int, int]:
    """(ranges of blocks, ranges of panels) with the least work, packing and idle threads at the
    end included: as long as the last cell takes, another thread may have nothing to do.
    `pack` and `rows` are what it costs to make a panel and the rows of a tile ready, in tiles.
    With `across` there are so many ranges of panels, if there can be."""
    most = min(panels, chunks)
    options = []
    for wanted in range(1, most + 1) if across is None else [min(across, most)]:
        for down in range(1, min(blocks, chunks // wanted) + 1):
            wide, high = -(-panels // wanted), -(-blocks // down)
            work = wide * (high + pack) + high * rows
            options.append(((down * wanted + 1) * work, down, wanted))
    return min(options)[1:]


def runs_along_rows(c: Contraction) -> bool:
    """True if the stores of the epilogue move by one element with the last row variable."""
    stores = [s for s in c.body if isinstance(s, Store) and s.storage.role != "register"]
    return bool(c.rows) and bool(stores) and all(
        s.index.coeff(c.rows[-1]) == 1 for s in stores)


def unravel_over(flat: Var, variables: tuple[Var, ...]) -> tuple[Affine, ...]:
    """A flat index as one index for each variable."""
    return unravel(Affine.of(flat), tuple(v.extent for v in variables))


def depth_order(c: Contraction) -> tuple[Var, ...]:
    """Contracted variables, the one with which the row operand moves most first; that with a limit
    before all."""
    return tuple(sorted(c.depth, key=lambda v: (v not in c.limits, -abs(c.a.index.coeff(v)))))


def column_panel(place: Place, c: Contraction, shape: Tile, panel: Affine, depth: tuple[Var, ...],
                 around: tuple[Var, ...], suffix: str) -> tuple[Load, int, tuple[Stmt, ...]]:
    """(the panel's first element, stride of its rows, statements that pack it).

    What does not change in the innermost loops is packed whole, once, outside of them.
    """
    direct = in_place_panel(c, shape, panel, depth, place.choices.pack)
    if direct is not None:
        return (*direct, ())
    size = elements(depth) * shape.width
    needed = [v for v in around if v in c.b.index.free_vars()]
    outside = bool(around) and needed[-1:] != [around[-1]] and c.b.storage not in place.written
    count = -(-elements(c.cols) // shape.width) if outside else 1
    storage = Storage(f"pack_{suffix}", count * size, c.tile.dtype, "scratch")
    at = panel * size if outside else Affine.const_of(0)
    if outside:
        each = Var(f"jp_{suffix}", count)
        one = Affine.of(each)
        pack = packing(c, shape, one, depth, storage, one * size, suffix)
        place.packs.setdefault(needed[-1] if needed else None, []).append(For(each, pack))
        pack = ()
    else:
        pack = packing(c, shape, panel, depth, storage, at, suffix)
    return Load(storage, at), shape.width, pack


def in_place_tile(c: Contraction, shape: Tile) -> tuple[Store, int] | None:
    """(the store, how far rows are apart) if a contraction only stores its sums, and whole tiles
    of them lie in the result as they do in registers."""
    store = c.body[0]
    if len(c.body) > 1 or not isinstance(store, Store) or store.accumulate == "max":
        return None
    value, where = store.value, store.storage
    plain = isinstance(value, Load) and value.storage is c.tile and where.dtype is c.tile.dtype
    if not plain or where.role == "register" or any(True for _ in store.index.data()):
        return None
    if not (whole_parts(c.limit(c.rows), elements(c.rows), shape.rows)
            and whole_parts(c.limit(c.cols), elements(c.cols), shape.width)):
        return None
    apart = store.index.coeff(c.rows[-1]) if c.rows else 0
    linear = all(store.index.is_linear_in(v) for v in (*c.rows, *c.cols))
    if linear and steps_evenly(store.index, c.rows, apart) and steps_evenly(store.index, c.cols, 1):
        return store, apart
    return None


def columns_of(c: Contraction, first: int, count: int) -> Contraction:
    """The part of a contraction with these columns, if it has one variable of them."""
    (old,) = c.cols
    j = Var(f"{old.name}_{first}", count)
    names = {old: Affine.of(j) + first}
    return replace(c, cols=(j,), b=substitute_load(c.b, names),
                   body=tuple(substitute_stmt(s, names) for s in c.body))


def in_place_panel(c: Contraction, shape: Tile, panel: Affine,
                   depth: tuple[Var, ...], pack: bool | None = None) -> tuple[Load, int] | None:
    """The column operand itself if its rows are whole vectors, evenly and not too far spaced.

    `pack` overrules what is too far, or all of it.
    """
    if pack or len(c.cols) != 1 or not whole_vectors(c, shape):
        return None
    stride = c.b.index.coeff(depth[-1]) if depth else 0
    # Halves would be widened for each tile of rows, packed ones are it once.
    far = pack is None and (c.b.dtype.is_half or
                            abs(stride) * c.b.dtype.itemsize > IN_PLACE_STRIDE)
    if not steps_evenly(c.b.index, depth, stride) or (
            far and elements(c.rows) > IN_PLACE_TILES * shape.rows):
        return None
    zero = {v: Affine.const_of(0) for v in depth}
    zero[c.cols[0]] = panel * shape.width
    return replace(c.b, index=c.b.index.substitute(zero)), stride


def whole_vectors(c: Contraction, shape: Tile) -> bool:
    """True if the columns of each panel lie side by side, in memory of the operand."""
    (columns,) = c.cols
    panel, lane = Var("panel", -(-columns.extent // shape.width)), Var("lane", shape.width)
    column = Affine.of(panel) * shape.width + lane
    index = c.b.index.substitute({columns: column})
    if index.coeff(lane) != 1 or not index.is_linear_in(lane):
        return False
    if columns.extent % shape.width == 0:
        return True
    return not c.b.index.is_linear() and index.bounds()[1] < c.b.storage.size


def steps_evenly(index: Affine, depth: tuple[Var, ...], stride: int) -> bool:
    """True if an index moves by `stride` from each point of the depth to the next."""
    for v in reversed(depth):
        if index.coeff(v) != stride:
            return False
        stride *= v.extent
    return True


def packing(c: Contraction, shape: Tile, panel: Affine, depth: tuple[Var, ...], storage: Storage,
            at: Affine, suffix: str) -> tuple[Stmt, ...]:
    """storage[at + depth * width + lane] = b[column, depth], zero beyond the last column."""
    if elements(depth) >= shape.lanes and steps_evenly(c.b.index, depth, 1):
        return (transposing_pack(c, shape, panel, depth, storage, at, suffix),)
    n = elements(c.cols)
    lane = Var(f"jl_{suffix}", shape.width)
    column = panel * shape.width + Affine.of(lane)
    fresh = tuple(Var(f"{v.name}p", v.extent) for v in depth)
    names = {v: Affine.of(f) for v, f in zip(depth, fresh)}
    guard = () if n % shape.width == 0 else (Within(column, 0, n, 1, bool_),)
    names.update(zip(c.cols, unravel(column, tuple(v.extent for v in c.cols))))
    value = converted(replace(c.b, index=substitute_index(c.b.index, names), guard=guard),
                      storage.dtype)
    k = Affine.const_of(0)
    for f in fresh:
        k = k * f.extent + Affine.of(f)
    stmt: Stmt = Store(storage, at + k * shape.width + Affine.of(lane), value, None,
                       f"pack for {c.note}")
    across = abs(c.b.index.coeff(c.cols[-1])) if c.cols else 0
    steps = [*(abs(c.b.index.coeff(v)) for v in depth), across]
    # What lies far apart in the operand is copied last to last, whole lines at a time.
    order = sorted(zip(steps, (*fresh, lane)), key=lambda step: -step[0])
    for _, v in reversed(order):
        stmt = For(v, (stmt,))
    return (stmt,)


def transposing_pack(c: Contraction, shape: Tile, panel: Affine, depth: tuple[Var, ...],
                     storage: Storage, at: Affine, suffix: str) -> MicroPack:
    """The pack of a column operand that runs along the depth."""
    column = Var(f"jc_{suffix}", elements(c.cols))
    index = c.b.index.substitute(dict(zip(c.cols, unravel_over(column, c.cols))))
    return MicroPack(storage, at, shape.width, shape.lanes, column, panel * shape.width, depth,
                     replace(c.b, index=index))


def epilogue(c: Contraction, tile: Storage, shape: Tile, panel: Affine, block: Affine,
             group: int, start: Affine = BEGINNING, across: int = 0) -> list[Stmt]:
    """Loops over a block of tiles that run the contraction's body on each of its elements.

    The block begins at element `start` of the tile storage. It has its columns innermost, or
    where `across` is not 0 its rows: then columns are so many elements apart.
    """
    m, n = elements(c.rows), elements(c.cols)
    height = group * shape.rows
    i = Var(f"ti_{tile.name}", height)
    j = Var(f"tj_{tile.name}", min(shape.width, n))
    row = block * height + Affine.of(i)
    column = panel * shape.width + Affine.of(j)
    names = dict(zip(c.rows, unravel(row, tuple(v.extent for v in c.rows))))
    names.update(zip(c.cols, unravel(column, tuple(v.extent for v in c.cols))))
    at = start + (Affine.of(j) * across + Affine.of(i) if across
                  else Affine.of(i) * shape.width + Affine.of(j))
    body = tuple(in_tile(substitute_stmt(s, names), c.tile, tile, at) for s in c.body)
    row_limit = left(c.limit(c.rows), m, height, block)
    column_limit = left(c.limit(c.cols), n, j.extent, panel)
    if runs_along_rows(c):
        return [For(j, (For(i, body, "serial", row_limit),), "serial", column_limit)]
    return [For(i, (For(j, body, "serial", column_limit),), "serial", row_limit)]


def left(limit: Affine | None, count: int, size: int, part: Affine) -> Affine | None:
    """How much of `count`, or of a limit, is left for one of the parts of a size, if all parts
    that run need not be whole."""
    if whole_parts(limit, count, size):
        return None
    return (Affine.const_of(count) if limit is None else limit) - part * size


def whole_parts(limit: Affine | None, count: int, size: int) -> bool:
    """True if `count`, or a limit, is a multiple of a size."""
    whole = Affine.const_of(count) if limit is None else limit
    return whole.const % size == 0 and all(c % size == 0 for _, c in whole.terms)


def in_tile(stmt: Stmt, old: Storage, tile: Storage, at: Affine) -> Stmt:
    """The epilogue statement with the total read from its element of the tile."""
    if not isinstance(stmt, Store):
        return stmt

    def leaf(e: Expr) -> Expr:
        return Load(tile, at) if isinstance(e, Load) and e.storage is old else e

    return replace(stmt, value=rewrite(stmt.value, leaf, lambda x: x))
