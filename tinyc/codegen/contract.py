"""The recipe for contractions: pack a panel of columns, run the register tile, store through the
epilogue. Views, padding and transposes of the column operand disappear in packing; the row operand
is read in place, one scalar broadcast at a time, so windows (convolution) cost nothing."""
from __future__ import annotations

from dataclasses import dataclass, replace

from tinyc.ir.cost import elements
from tinyc.ir.dtype import bool_
from tinyc.ir.index import Affine, Var, unravel
from tinyc.ir.loop import (
    Contraction,
    Expr,
    For,
    Load,
    MicroKernel,
    Stmt,
    Storage,
    Store,
    Within,
    rewrite,
    statements,
    substitute_index,
    substitute_stmt,
)
from tinyc.ir.plan import Stage
from tinyc.ir.program import Target

FLOPS_PER_CHUNK = 1 << 20
ONE_VECTOR_ROWS = 8
ONE_VECTOR_SHARE = 0.75
HALF_VECTOR_SHARE = 0.4
BLOCK_ELEMENTS = 4096


@dataclass(frozen=True)
class Tile:
    """Shape of a register tile: rows x (vectors * lanes) accumulators."""

    rows: int
    lanes: int
    width: int


def choose_tile(columns: int, itemsize: int, target: Target) -> Tile:
    """The tile that wastes least of its lanes; two vectors hide more latency than one."""
    lanes = target.lanes * 4 // itemsize
    options = [(Tile(target.tile_rows, lanes, 2 * lanes), 1.0),
               (Tile(ONE_VECTOR_ROWS, lanes, lanes), ONE_VECTOR_SHARE)]
    if lanes >= 8:
        options.append((Tile(ONE_VECTOR_ROWS, lanes // 2, lanes // 2), HALF_VECTOR_SHARE))
    return min(options, key=lambda o: -(-columns // o[0].width) * o[0].width / o[1])[0]


def grid_chunks(stage: Stage, target: Target) -> int:
    """How many chunks a contraction without outer loops is split into."""
    flops = 2 * stage.points()
    return max(1, min(target.chunks, flops // FLOPS_PER_CHUNK))


@dataclass
class Place:
    """The kernel of a contraction: what it writes, what is packed before all else, how many
    contractions were scheduled so far."""

    kernel: str
    chunks: int
    written: set[Storage]
    prologue: list[Stmt]
    made: int = 0


def schedule_contractions(body: tuple[Stmt, ...], name: str, chunks: int,
                          target: Target) -> tuple[Stmt, ...]:
    """Replace every Contraction of a kernel body by packs, register tiles and epilogues."""
    written = {s.storage for s in statements(body) if isinstance(s, Store)}
    place = Place(name, chunks, written, [])
    new = tuple(t for stmt in body for t in expand(place, stmt, frozenset(), target))
    return (*place.prologue, *new)


def expand(place: Place, stmt: Stmt, around: frozenset[Var], target: Target) -> list[Stmt]:
    """Schedule the contractions below a statement; `around` are the loops around it."""
    if isinstance(stmt, Contraction):
        return [tiles(place, stmt, around, target)]
    if isinstance(stmt, For):
        inner = around | {stmt.var}
        return [replace(stmt, body=tuple(
            t for s in stmt.body for t in expand(place, s, inner, target)))]
    return [stmt]


def tiles(place: Place, c: Contraction, around: frozenset[Var], target: Target) -> Stmt:
    """for column panels: [pack]; for row tiles: register tile; epilogue."""
    place.made += 1
    suffix = f"{place.kernel.split('_')[0]}_{place.made}"
    n, m = elements(c.cols), elements(c.rows)
    shape = choose_tile(n, c.tile.dtype.itemsize, target)
    panel = Var(f"jt_{suffix}", -(-n // shape.width))
    group = tiles_in_block(c, shape, m)
    block = Var(f"ib_{suffix}", -(-m // (shape.rows * group)))
    inside = Var(f"it_{suffix}", group)
    depth = depth_order(c)
    b, b_stride, pack = column_panel(place, c, shape, panel, depth, around, suffix)
    tile = Storage(f"tile_{suffix}", group * shape.rows * shape.width, c.tile.dtype, "tile")
    row = Var(f"row_{suffix}", m)
    a_index = c.a.index.substitute(dict(zip(c.rows, unravel_over(row, c.rows))))
    first = (Affine.of(block) * group + Affine.of(inside)) * shape.rows
    at = Affine.of(inside) * (shape.rows * shape.width)
    kernel: Stmt = MicroKernel(tile, at, shape.rows, shape.width, shape.lanes, row, first, depth,
                               replace(c.a, index=a_index), b, b_stride, c.note)
    if group > 1:
        limit = -(-m // shape.rows) - Affine.of(block) * group
        kernel = For(inside, (kernel,), "serial", limit)
    kinds = loop_kinds(place, around, panel, block)
    rows_loop = For(block, (kernel, *epilogue(c, tile, shape, panel, block, group)), kinds[1])
    return For(panel, (*pack, rows_loop), kinds[0])


def loop_kinds(place: Place, around: frozenset[Var], panel: Var, block: Var) -> tuple[str, str]:
    """Which of (panels, blocks of rows) the chunks divide, if they divide this contraction."""
    if around or place.chunks == 1:
        return "serial", "serial"
    if panel.extent >= min(place.chunks, block.extent):
        return "chunk", "serial"
    return "serial", "chunk"


def tiles_in_block(c: Contraction, shape: Tile, m: int) -> int:
    """Register tiles whose epilogue runs at once: many where it runs along the rows."""
    if not runs_along_rows(c):
        return 1
    return min(-(-m // shape.rows), max(1, BLOCK_ELEMENTS // (shape.rows * shape.width)))


def runs_along_rows(c: Contraction) -> bool:
    """True if the stores of the epilogue move by one element with the last row variable."""
    stores = [s for s in c.body if isinstance(s, Store) and s.storage.role != "register"]
    return bool(c.rows) and bool(stores) and all(
        s.index.coeff(c.rows[-1]) == 1 for s in stores)


def unravel_over(flat: Var, variables: tuple[Var, ...]) -> tuple[Affine, ...]:
    """A flat index as one index for each variable."""
    return unravel(Affine.of(flat), tuple(v.extent for v in variables))


def depth_order(c: Contraction) -> tuple[Var, ...]:
    """Contracted variables, the one with which the row operand moves most first."""
    return tuple(sorted(c.depth, key=lambda v: -abs(c.a.index.coeff(v))))


def column_panel(place: Place, c: Contraction, shape: Tile, panel: Var, depth: tuple[Var, ...],
                 around: frozenset[Var], suffix: str) -> tuple[Load, int, tuple[Stmt, ...]]:
    """(the panel's first element, stride of its rows, statements that pack it)."""
    direct = in_place_panel(c, shape, panel, depth)
    if direct is not None:
        return (*direct, ())
    size = elements(depth) * shape.width
    free = c.b.index.free_vars() & around
    outside = bool(around) and not free and c.b.storage not in place.written
    count = panel.extent if outside else 1
    storage = Storage(f"pack_{suffix}", count * size, c.tile.dtype, "scratch")
    at = Affine.of(panel) * size if outside else Affine.const_of(0)
    if outside:
        each = Var(f"jp_{suffix}", panel.extent)
        pack = packing(c, shape, each, depth, storage, Affine.of(each) * size, suffix)
        place.prologue.append(For(each, pack))
        pack = ()
    else:
        pack = packing(c, shape, panel, depth, storage, at, suffix)
    return Load(storage, at), shape.width, pack


def in_place_panel(c: Contraction, shape: Tile, panel: Var,
                   depth: tuple[Var, ...]) -> tuple[Load, int] | None:
    """The column operand itself if its rows are whole vectors, evenly spaced."""
    if len(c.cols) != 1 or c.cols[0].extent % shape.width or c.b.index.coeff(c.cols[0]) != 1:
        return None
    stride = c.b.index.coeff(depth[-1]) if depth else 0
    step = stride
    for v in reversed(depth):
        if c.b.index.coeff(v) != step:
            return None
        step *= v.extent
    zero = {v: Affine.const_of(0) for v in depth}
    zero[c.cols[0]] = Affine.of(panel) * shape.width
    return replace(c.b, index=c.b.index.substitute(zero)), stride


def packing(c: Contraction, shape: Tile, panel: Var, depth: tuple[Var, ...], storage: Storage,
            at: Affine, suffix: str) -> tuple[Stmt, ...]:
    """storage[at + depth * width + lane] = b[column, depth], zero beyond the last column."""
    n = elements(c.cols)
    lane = Var(f"jl_{suffix}", shape.width)
    column = Affine.of(panel) * shape.width + Affine.of(lane)
    fresh = tuple(Var(f"{v.name}p", v.extent) for v in depth)
    names = {v: Affine.of(f) for v, f in zip(depth, fresh)}
    guard = () if n % shape.width == 0 else (Within(column, 0, n, 1, bool_),)
    names.update(zip(c.cols, unravel(column, tuple(v.extent for v in c.cols))))
    value = replace(c.b, index=substitute_index(c.b.index, names), guard=guard)
    k = Affine.const_of(0)
    for f in fresh:
        k = k * f.extent + Affine.of(f)
    stmt: Stmt = Store(storage, at + k * shape.width + Affine.of(lane), value, None,
                       f"pack for {c.note}")
    columns_first = abs(c.b.index.coeff(c.cols[-1])) != 1
    order = (lane, *fresh) if columns_first else (*fresh, lane)
    for v in reversed(order):
        stmt = For(v, (stmt,))
    return (stmt,)


def epilogue(c: Contraction, tile: Storage, shape: Tile, panel: Var, block: Var,
             group: int) -> list[Stmt]:
    """Loops over a block of tiles that run the contraction's body on each of its elements."""
    m, n = elements(c.rows), elements(c.cols)
    height = group * shape.rows
    i = Var(f"ti_{tile.name}", height)
    j = Var(f"tj_{tile.name}", min(shape.width, n))
    row = Affine.of(block) * height + Affine.of(i)
    column = Affine.of(panel) * shape.width + Affine.of(j)
    names = dict(zip(c.rows, unravel(row, tuple(v.extent for v in c.rows))))
    names.update(zip(c.cols, unravel(column, tuple(v.extent for v in c.cols))))
    at = Affine.of(i) * shape.width + Affine.of(j)
    body = tuple(in_tile(substitute_stmt(s, names), c.tile, tile, at) for s in c.body)
    row_limit = None if m % height == 0 else m - Affine.of(block) * height
    column_limit = None if n % j.extent == 0 else n - Affine.of(panel) * shape.width
    if runs_along_rows(c):
        return [For(j, (For(i, body, "serial", row_limit),), "serial", column_limit)]
    return [For(i, (For(j, body, "serial", column_limit),), "serial", row_limit)]


def in_tile(stmt: Stmt, old: Storage, tile: Storage, at: Affine) -> Stmt:
    """The epilogue statement with the total read from its element of the tile."""
    if not isinstance(stmt, Store):
        return stmt

    def leaf(e: Expr) -> Expr:
        return Load(tile, at) if isinstance(e, Load) and e.storage is old else e

    return replace(stmt, value=rewrite(stmt.value, leaf, lambda x: x))
