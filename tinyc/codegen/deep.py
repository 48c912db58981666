"""The recipe for contractions whose row operand lies across the depth and is larger than a cache.

The gradient of a weight is one: both operands have a row for each token. A register tile that goes
down the whole depth there touches a page and a cache line for each step, and every panel of columns
does it again. So cells of the result go down the depth in blocks: a block of rows is copied once,
then used by all panels of the cell, whose sums wait in the second cache for the next block.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from tinyc.codegen.panel import (
    BEGINNING,
    Cells,
    Place,
    Tile,
    cell_loops,
    cells,
    column_panel,
    epilogue,
    in_place_panel,
    runs_along_rows,
    steps_evenly,
)
from tinyc.ir.cost import elements
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import Contraction, For, Load, MicroKernel, Stmt, Storage, Store, converted
from tinyc.ir.program import Target

# How many points of the depth a block has: the best divisor of the depth in this range.
BLOCK, SHORTEST, LONGEST = 256, 128, 512
# What it costs to copy a panel or the rows of a tile from memory, or to read a panel from where it
# is, in tiles of the same depth.
PANEL_TILES, ROWS_TILES, IN_PLACE_TILES = 3.0, 0.7, 0.3


@dataclass(frozen=True)
class Deep:
    """How a contraction is cut: blocks of the depth, the strides of its operands along it."""

    block: int
    blocks: int
    a_stride: int
    b_stride: int


def cut_depth(c: Contraction, around: tuple[Var, ...], depth: tuple[Var, ...],
              target: Target, block: int | None = None) -> Deep | None:
    """The cut of a contraction for which it pays, None for others.

    `block` overrules that: about how many points a block has, 0 for no cut.
    """
    size = elements(depth)
    if around or not depth or runs_along_rows(c) or not steps_evenly(c.a.index, c.rows, 1):
        return None
    small = size <= 2 * BLOCK or elements(c.rows) * size * c.a.dtype.itemsize <= 2 * target.l2
    if block == 0 or (block is None and small):
        return None
    a_stride, b_stride = (x.index.coeff(depth[-1]) for x in (c.a, c.b))
    even = steps_evenly(c.a.index, depth, a_stride) and steps_evenly(c.b.index, depth, b_stride)
    lengths = [n for n in range(SHORTEST, min(LONGEST, size - 1) + 1) if size % n == 0]
    if not even or not lengths:
        return None
    wanted = block or BLOCK
    length = min(lengths, key=lambda n: max(n / wanted, wanted / n))
    return Deep(length, size // length, a_stride, b_stride)


def deep_tiles(place: Place, c: Contraction, cut: Deep, depth: tuple[Var, ...], shape: Tile,
               suffix: str) -> Stmt:
    """for cells: (for blocks of the depth: copy rows; for panels: [pack], tiles), epilogue."""
    panels, rows = -(-elements(c.cols) // shape.width), -(-elements(c.rows) // shape.rows)
    packed = in_place_panel(c, shape, BEGINNING, depth, place.choices.pack) is None
    down, across = cells(place.chunks, panels, rows, PANEL_TILES if packed else IN_PLACE_TILES,
                         ROWS_TILES, place.choices.across)
    grid = cell_loops(down, across, panels, rows, suffix)
    kb, k = Var(f"kb_{suffix}", cut.blocks), Var(f"k_{suffix}", cut.block)
    at_depth = Affine.of(kb) * cut.block + Affine.of(k)
    part = replace(c, depth=(k,), a=along(c.a, depth, at_depth * cut.a_stride),
                   b=along(c.b, depth, at_depth * cut.b_stride))
    height = grid.blocks.var.extent * shape.rows
    copied = Storage(f"rows_{suffix}", cut.block * height, c.tile.dtype, "scratch")
    b, b_stride, pack = column_panel(place, part, shape, grid.panel, (k,), (), suffix)
    tile_size = shape.rows * shape.width
    one = (Affine.of(grid.panels.var) * grid.blocks.var.extent + Affine.of(grid.blocks.var))
    tile = Storage(f"tile_{suffix}", grid.panels.var.extent * grid.blocks.var.extent * tile_size,
                   c.tile.dtype, "scratch")
    row = Var(f"row_{suffix}", height)
    kernel = MicroKernel(
        tile, one * tile_size, shape.rows, shape.width, shape.lanes, row,
        Affine.of(grid.blocks.var) * shape.rows, (k,),
        Load(copied, Affine.of(k) * height + Affine.of(row)), b, b_stride, shape.width, c.note,
        Affine.of(kb))
    sums = For(kb, (copy_rows(part, k, copied, height, grid, shape, suffix),
                    replace(grid.panels, body=(*pack, replace(grid.blocks, body=(kernel,))))))
    ends = epilogue(c, tile, shape, grid.panel, grid.block, 1, one * tile_size)
    finish = replace(grid.panels, body=(replace(grid.blocks, body=tuple(ends)),))
    return For(grid.cell, (sums, finish), "chunk" if place.chunks > 1 else "serial")


def along(x: Load, depth: tuple[Var, ...], step: Affine) -> Load:
    """An operand read at another depth: its first element there and a step from it."""
    return replace(x, index=x.index.substitute(dict.fromkeys(depth, Affine.const_of(0))) + step)


def copy_rows(c: Contraction, k: Var, copied: Storage, height: int, grid: Cells, shape: Tile,
              suffix: str) -> Stmt:
    """copied[k, row] = a[row, k] for the rows of a cell and a block of the depth."""
    m = elements(c.rows)
    r = Var(f"r_{suffix}", height)
    first = grid.top * shape.rows
    base = c.a.index.substitute(dict.fromkeys(c.rows, Affine.const_of(0)))
    value = converted(Load(c.a.storage, base + first + Affine.of(r), c.a.guard), copied.dtype)
    store = Store(copied, Affine.of(k) * height + Affine.of(r), value, None, f"rows for {c.note}")
    _, last = first.bounds()
    limit = None if last + height <= m else m - first
    return For(k, (For(r, (store,), "serial", limit),))
