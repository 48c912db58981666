"""The recipe for contractions: pack a panel of columns, run the register tile, store through the
epilogue. Views, padding and transposes of the column operand disappear in packing; the row operand
is read in place, one scalar broadcast at a time, so windows (convolution) cost nothing."""
from __future__ import annotations

from dataclasses import dataclass, replace

from tinyc.codegen import deep
from tinyc.codegen.panel import (
    BEGINNING,
    Place,
    Tile,
    cell_loops,
    cells,
    choose_tile,
    column_panel,
    columns_of,
    depth_order,
    epilogue,
    in_place_tile,
    runs_along_rows,
    unravel_over,
)
from tinyc.ir.choices import RULES, Choices
from tinyc.ir.cost import elements
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Contraction,
    For,
    Load,
    MicroKernel,
    MicroPack,
    Stmt,
    Storage,
    Store,
    statements,
)
from tinyc.ir.plan import Stage
from tinyc.ir.program import Target

FLOPS_PER_CHUNK = 1 << 20
BLOCK_ELEMENTS = 4096
# Tiles for which a chunk packs a panel that others pack as well.
SHARED_TILES = 4


def grid_chunks(stage: Stage, target: Target) -> int:
    """How many chunks a contraction without outer loops is split into."""
    flops = 2 * stage.points()
    return max(1, min(target.chunks, flops // FLOPS_PER_CHUNK))


def schedule_contractions(body: tuple[Stmt, ...], name: str, chunks: int, target: Target,
                          choices: Choices = RULES) -> tuple[Stmt, ...]:
    """Replace every Contraction of a kernel body by packs, register tiles and epilogues."""
    written = {s.storage for s in statements(body) if isinstance(s, Store)}
    place = Place(name, chunks, written, choices)
    new = tuple(t for stmt in body for t in expand(place, stmt, (), target))
    return (*place.packs.get(None, ()), *new)


def expand(place: Place, stmt: Stmt, around: tuple[Var, ...], target: Target) -> list[Stmt]:
    """Schedule the contractions below a statement; `around` are the loops around it, outer first.
    """
    if isinstance(stmt, Contraction):
        return scheduled(place, stmt, around, target)
    if isinstance(stmt, For):
        inner = (*around, stmt.var)
        body = [t for s in stmt.body for t in expand(place, s, inner, target)]
        return [replace(stmt, body=(*place.packs.get(stmt.var, ()), *body))]
    return [stmt]


def scheduled(place: Place, c: Contraction, around: tuple[Var, ...],
              target: Target) -> list[Stmt]:
    """A contraction as loops over tiles."""
    depth = depth_order(c)
    cut = deep.cut_depth(c, around, depth, target, place.choices.depth)
    if cut is not None:
        shape = choose_tile(elements(c.rows), elements(c.cols), c.tile.dtype.itemsize, target,
                            place.choices.tile)
        return [deep.deep_tiles(place, c, cut, depth, shape, place.suffix())]
    return [tiles(place, part, around, depth, target) for part in parts(place, c, around, target)]


def parts(place: Place, c: Contraction, around: tuple[Var, ...],
          target: Target) -> list[Contraction]:
    """Whole panels of columns, then what is left of them: each with tiles of its own.

    What is left is one panel, which all chunks divide and each packs: that takes many rows.
    """
    n = elements(c.cols)
    rest = n % max(2, 2 * target.lanes * 4 // c.tile.dtype.itemsize)
    packers = 1 if around else place.chunks
    few = elements(c.rows) < SHARED_TILES * target.tile_rows * packers
    if len(c.cols) != 1 or not rest or rest == n or few:
        return [c]
    return [columns_of(c, 0, n - rest), columns_of(c, n - rest, rest)]


def tiles(place: Place, c: Contraction, around: tuple[Var, ...], depth: tuple[Var, ...],
          target: Target) -> Stmt:
    """for column panels: [pack]; for row tiles: register tile; epilogue."""
    suffix = place.suffix()
    n, m = elements(c.cols), elements(c.rows)
    shape = choose_tile(m, n, c.tile.dtype.itemsize, target, place.choices.tile)
    group = tiles_in_block(c, shape, m)
    grid = divide(place, around, -(-n // shape.width), -(-m // (shape.rows * group)), suffix)
    panel, block = grid.panel, grid.block
    inside = Var(f"it_{suffix}", group)
    b, b_stride, pack = column_panel(place, c, shape, grid.panel, depth, around, suffix)
    row = Var(f"row_{suffix}", m)
    a_index = c.a.index.substitute(dict(zip(c.rows, unravel_over(row, c.rows))))
    first = (block * group + Affine.of(inside)) * shape.rows
    tile = Storage(f"tile_{suffix}", group * shape.rows * shape.width, c.tile.dtype, "tile")
    kernel = MicroKernel(
        tile, Affine.of(inside) * (shape.rows * shape.width), shape.rows, shape.width, shape.lanes,
        row, first, depth, replace(c.a, index=a_index), b, b_stride, shape.width, c.note,
        limit=c.limits.get(depth[0]) if depth else None)
    grid.inner = ended(grid.inner[0], c.limit(c.cols), shape.width), ended(
        grid.inner[1], c.limit(c.rows), shape.rows * group)
    found = in_place_tile(c, shape)
    if found is not None:
        return grid.loops(pack, (stored_at_once(kernel, c, *found, panel * shape.width),))
    each: Stmt = kernel
    if group > 1:
        rows = c.limit(c.rows) or Affine.const_of(m)
        limit = (rows + shape.rows - 1) // shape.rows - block * group
        each = For(inside, (kernel,), "serial", limit)
    if not turns(c, shape, m):
        return grid.loops(pack, (each, *epilogue(c, tile, shape, panel, block, group)))
    turned, turn = transposed(tile, shape, group, suffix)
    ends = epilogue(c, turned, shape, panel, block, group, across=turn.width)
    return grid.loops(pack, (each, turn, *ends))


def stored_at_once(kernel: MicroKernel, c: Contraction, store: Store, apart: int,
                   column: Affine) -> MicroKernel:
    """The kernel with its tile in the result, where the store of the contraction puts it."""
    corner = store.index.substitute(dict.fromkeys((*c.rows, *c.cols), Affine.const_of(0)))
    return replace(kernel, tile=store.storage, at=corner + kernel.first * apart + column,
                   apart=apart, more=Affine.const_of(0 if store.accumulate is None else 1))


def ended(loop: For, limit: Affine | None, size: int) -> For:
    """A loop over parts of a size that ends with the part in which the limit is."""
    return loop if limit is None else replace(loop, limit=(limit + size - 1) // size)


@dataclass
class Grid:
    """Loops over panels of columns and blocks of rows, and how chunks divide them.

    Without `cell` they are two loops, `inner[1]` inside `inner[0]`, one of which may be of kind
    "chunk". With it the chunks divide the cells, each a range of panels and a range of blocks.
    """

    panel: Affine
    block: Affine
    inner: tuple[For, For]
    cell: Var | None = None

    def loops(self, pack: tuple[Stmt, ...], body: tuple[Stmt, ...]) -> Stmt:
        """The loops, with what is done for each panel and for each block of it."""
        panels, blocks = self.inner
        nest = replace(panels, body=(*pack, replace(blocks, body=body)))
        return nest if self.cell is None else For(self.cell, (nest,), "chunk")


def divide(place: Place, around: tuple[Var, ...], panels: int, blocks: int, suffix: str) -> Grid:
    """Choose which of panels and blocks of rows the chunks divide, if they divide a contraction."""
    down = across = 1
    if not around and place.chunks > 1:
        down, across = cells(place.chunks, panels, blocks, across=place.choices.across)
    whole = down == 1 or across == 1
    p = Var(f"jt_{suffix}", panels if whole else -(-panels // across))
    b = Var(f"ib_{suffix}", blocks if whole else -(-blocks // down))
    if whole:
        kinds = ("chunk" if across > 1 else "serial", "chunk" if down > 1 else "serial")
        return Grid(Affine.of(p), Affine.of(b), (For(p, (), kinds[0]), For(b, (), kinds[1])))
    grid = cell_loops(down, across, panels, blocks, suffix)
    return Grid(grid.panel, grid.block, (grid.panels, grid.blocks), grid.cell)


def turns(c: Contraction, shape: Tile, m: int) -> bool:
    """True if a block of tiles is transposed before its epilogue, which runs along the rows."""
    return runs_along_rows(c) and m >= shape.lanes


def transposed(tile: Storage, shape: Tile, group: int, suffix: str) -> tuple[Storage, MicroPack]:
    """(a block of tiles with its rows innermost, the statement that makes it)."""
    row, column = Var(f"tr_{suffix}", group * shape.rows), Var(f"tc_{suffix}", shape.width)
    height = -(-row.extent // shape.lanes) * shape.lanes
    turned = Storage(f"turned_{suffix}", height * shape.width, tile.dtype, "tile")
    source = Load(tile, Affine.of(row) * shape.width + Affine.of(column))
    return turned, MicroPack(turned, BEGINNING, height, shape.lanes, row, BEGINNING, (column,),
                             source)


def tiles_in_block(c: Contraction, shape: Tile, m: int) -> int:
    """Register tiles whose epilogue runs at once: many where it runs along the rows."""
    if not runs_along_rows(c):
        return 1
    return min(-(-m // shape.rows), max(1, BLOCK_ELEMENTS // (shape.rows * shape.width)))
