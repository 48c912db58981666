"""GPU recipes for kernels that are one contraction: tiles, images and batches over the grid.

A matrix of the result is cut into tiles, each the work of one block (`gpu_tile.py`). Where there
are too few of them to fill the device, as for gradients of weights, the depth is cut as well: each
block stores its part of the sums, and a second launch adds the parts in a fixed order. Where one
side has a few rows only, nothing is worth sharing: threads read what they multiply.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tinyc.codegen.gpu_thin import is_thin, thin
from tinyc.codegen.gpu_tile import (
    REACH,
    Part,
    Shape,
    counts,
    epilogue,
    inside,
    nothing,
    tile_statements,
)
from tinyc.codegen.mma import LEAST_ARCH
from tinyc.codegen.panel import runs_along_rows
from tinyc.ir.cost import elements
from tinyc.ir.dtype import f32, f64
from tinyc.ir.index import Affine, Var, unravel
from tinyc.ir.loop import (
    Alloc,
    Contraction,
    For,
    If,
    Load,
    LoopKernel,
    Stmt,
    Storage,
    Store,
    converted,
    free_vars,
    statements,
    substitute_stmt,
)
from tinyc.ir.program import Target

# Tiles, best first. Eight by eight sums take 16 numbers from shared memory for 64 products; four by
# four take 8 for 16, which shared memory gives at half the speed of the arithmetic.
SHAPES = (Shape(128, 128, 8, 8, 8), Shape(128, 64, 16, 8, 4), Shape(64, 128, 16, 4, 8),
          Shape(64, 64, 16, 4, 4), Shape(64, 32, 16, 4, 4), Shape(32, 64, 16, 4, 4),
          Shape(32, 32, 16, 4, 4), Shape(16, 32, 16, 4, 4))
# Tiles for matrix instructions, whose warps have high x wide sums each.
MATRICES = (Shape(128, 128, 32, 64, 32), Shape(128, 64, 32, 32, 32), Shape(64, 128, 32, 32, 32),
            Shape(64, 64, 32, 32, 32), Shape(32, 64, 32, 16, 32), Shape(32, 32, 32, 16, 16))
# A multiprocessor, for each cycle: multiply-adds of each kind, bytes from the second-level cache;
# the threads without which it waits, and its blocks, as `Target.chunks` counts them.
PRODUCTS = {"": 128, "tf32": 512, "f16": 1024, "bf16": 1024}
BYTES, BUSY, BLOCKS = 24, 256, 2
# What a second launch costs.
LAUNCH = 4000
# A part of the depth has at least so many points.
LEAST_DEPTH = 64
# Rows of tiles that blocks with numbers near each other share, so that operands stay in the cache.
GROUP = 8
# Elements of a result that a block adds up from parts.
FINISH_THREADS = 256


@dataclass(frozen=True)
class Cut:
    """How a contraction is cut: the shape of its tiles, parts of the depth."""

    shape: Shape
    parts: int


def schedule_product(kernel: LoopKernel, target: Target) -> LoopKernel | None:
    """The kernel for blocks of threads if it is one contraction, under loops that blocks can divide
    at will; None otherwise. Its `finish` is as it was unless there was none."""
    found = lone_contraction(kernel)
    if found is None:
        return None
    loops, c = found
    if is_thin(c):
        return thin_kernel(kernel, loops, c, target)
    m, n, batch = elements(c.rows), elements(c.cols), elements(loops)
    whole = not kernel.finish and not c.limits
    cut = choose_cut(c, batch, target, whole)
    shape = cut.shape
    stretches, each = stretches_of(c, cut)
    cut = replace(cut, parts=-(-stretches // each))
    down, across = -(-m // shape.rows), -(-n // shape.cols)
    chunk = Var("chunk", cut.parts * batch * down * across)
    block = Var("block", chunk.extent)
    part, *outer, tile = unravel(Affine.of(block), (
        cut.parts, *(v.extent for v in loops), down * across))
    names = dict(zip(loops, outer))
    c = substituted(c, names)
    row, column = tile_place(tile, down, across)
    left = limited(c, shape) if c.limits else each * -1 * part + stretches
    where = Part(row * shape.rows, column * shape.cols, part * (each * shape.depth), each, left)
    if cut.parts == 1:
        body = tile_statements(c, shape, where, "0",
                               lambda r, j, total: epilogue(c, r, j, total))
        return replace(kernel, body=(For(block, tuple(body), "chunk"),), chunk=chunk,
                       threads=shape.threads)
    apart = Parts(found[1], loops, cut.parts)
    body = tile_statements(c, shape, where, "0", lambda r, j, total: (
        apart.keep(part, tuple(outer), r, j, total),))
    last = Var("last", -(-apart.size // FINISH_THREADS))
    return replace(kernel, body=(For(block, tuple(body), "chunk"),), chunk=chunk,
                   threads=shape.threads, finish=apart.added(last, shape.threads), last=last)


def lone_contraction(kernel: LoopKernel) -> tuple[tuple[Var, ...], Contraction] | None:
    """(the loops around it, the contraction) that a kernel is, if blocks may divide the loops."""
    loops: list[Var] = []
    body = kernel.body
    while len(body) == 1 and isinstance(body[0], For) and body[0].limit is None:
        loops.append(body[0].var)
        body = body[0].body
    if len(body) != 1 or not isinstance(body[0], Contraction):
        return None
    c = body[0]
    inner = {s.storage for s in c.body if isinstance(s, Alloc)}
    for s in statements(c.body):
        if isinstance(s, Store) and s.storage not in inner:
            far = s.storage.role in ("slot", "arena")
            if not far or s.accumulate or not set(loops) <= s.index.free_vars():
                return None
    return None if mentions(c, kernel.chunk) else (tuple(loops), c)


def mentions(c: Contraction, v: Var) -> bool:
    """True if a contraction's accesses depend on a variable."""
    exprs = [c.a, c.b, *(s.value for s in statements(c.body) if isinstance(s, Store))]
    places = [s.index for s in statements(c.body) if isinstance(s, Store)]
    return any(v in free_vars(e) for e in exprs) or any(v in i.free_vars() for i in places)


def substituted(c: Contraction, names: dict[Var, Affine]) -> Contraction:
    """A contraction with variables of loops around it replaced."""
    fresh = substitute_stmt(c, names)
    assert isinstance(fresh, Contraction)
    return fresh


# -- how it is cut -------------------------------------------------------------------------------


def choose_cut(c: Contraction, batch: int, target: Target, may_split: bool) -> Cut:
    """The cut with which the busiest multiprocessor is done first."""
    m, n, k = elements(c.rows), elements(c.cols), elements(c.depth)
    options = []
    for shape in shapes_for(c, target, SHAPES, k):
        blocks = batch * -(-m // shape.rows) * -(-n // shape.cols)
        most = min(target.chunks // blocks, k // LEAST_DEPTH) if may_split else 1
        for p in dict.fromkeys((1, *(1 << i for i in range(1, max(1, most).bit_length())))):
            time = cycles(shape, c, blocks * p, -(-k // p), target)
            if p > 1:
                moved = 2 * p * batch * m * n * c.tile.dtype.itemsize
                time += LAUNCH + moved * BLOCKS / (BYTES * target.chunks)
            options.append((time, p, Cut(shape, p)))
    return min(options, key=lambda o: o[:2])[2]


def cycles(shape: Shape, c: Contraction, blocks: int, depth: int, target: Target) -> float:
    """How long the busiest multiprocessor takes for its blocks: to multiply, or to read operands
    from the second-level cache."""
    mine = -(-blocks * BLOCKS // target.chunks)
    busy = min(1.0, mine * shape.threads / BUSY) * REACH[shape.high * shape.wide]
    products = shape.rows * shape.cols / (PRODUCTS[shape.kind] * busy)
    read = (shape.rows + shape.cols) * c.a.dtype.itemsize / BYTES
    return mine * depth * max(products, read)


def matrix_kind(c: Contraction, target: Target) -> str:
    """As what matrix instructions of the target multiply the operands of a contraction, if at all.

    Halves always; f32 as tf32 only where the user has asked for that.
    """
    found = re.fullmatch(r"sm_(\d+)a?", target.arch)
    if target.language != "cuda" or found is None or int(found[1]) < LEAST_ARCH:
        return ""
    if c.tile.dtype is not f32 or c.a.dtype is not c.b.dtype:
        return ""
    if c.a.dtype.is_half:
        return c.a.dtype.name
    return "tf32" if c.a.dtype is f32 and target.tf32 else ""


def shapes_for(c: Contraction, target: Target, plain: tuple[Shape, ...],
               k: int) -> list[Shape]:
    """The tiles that a block of a target can make of a contraction; `plain` are those without
    matrix instructions."""
    kind = matrix_kind(c, target)
    least = 16 if kind else 8
    shapes = [replace(s, kind=kind, depth=least if k <= least else s.depth)
              for s in (MATRICES if kind else plain)]
    fits = [s for s in shapes if s.threads <= target.threads and s.shared_bytes(c) <= target.shared]
    return fits or [replace(shapes[-1], depth=least)]


def stretches_of(c: Contraction, cut: Cut) -> tuple[int, int]:
    """(stretches of the depth, how many of them a part has)."""
    whole = max(1, -(-elements(c.depth) // cut.shape.depth))
    return whole, -(-whole // cut.parts)


def limited(c: Contraction, shape: Shape) -> Affine:
    """How many stretches a depth has that may have a limit."""
    deep = counts(c)[2]
    return (deep + shape.depth - 1) // shape.depth


def tile_place(tile: Affine, down: int, across: int) -> tuple[Affine, Affine]:
    """(row, column) of a tile: blocks one after another go down groups of rows of tiles."""
    if down % GROUP == 0 and across > 1:
        group, column, row = unravel(tile, (down // GROUP, across, GROUP))
        return group * GROUP + row, column
    return tile // across, tile % across


# -- parts of sums -------------------------------------------------------------------------------


class Parts:
    """Where the blocks that divide the depth of a contraction keep their sums."""

    def __init__(self, c: Contraction, loops: tuple[Var, ...], parts: int) -> None:
        self.c, self.loops, self.parts = c, loops, parts
        self.sides = (c.cols, c.rows) if runs_along_rows(c) else (c.rows, c.cols)
        self.shape = (*(v.extent for v in loops), *map(elements, self.sides))
        self.size = elements(loops) * elements(c.rows) * elements(c.cols)
        self.storage = Storage(f"{c.tile.name}_parts", parts * self.size, c.tile.dtype, "arena")

    def keep(self, part: Affine, outer: tuple[Affine, ...], row: Affine, column: Affine,
             total: Load) -> Stmt:
        """Store a sum of one part."""
        at = part
        pair = (column, row) if self.sides[0] is self.c.cols else (row, column)
        for i, n in zip((*outer, *pair), self.shape):
            at = at * n + i
        return Store(self.storage, at, total, None, self.c.note)

    def added(self, last: Var, threads: int) -> tuple[Stmt, ...]:
        """The sums of all parts, in their order, and what is done with them."""
        i, p = Var("element", FINISH_THREADS), Var("part", self.parts)
        flat = Affine.of(last) * FINISH_THREADS + Affine.of(i)
        c, zero = self.c, Affine.const_of(0)
        wide = f64 if c.tile.dtype is f32 else c.tile.dtype
        total, narrow = (Storage(f"{c.tile.name}_{word}", 1, dtype, "register")
                         for word, dtype in (("sum", wide), ("whole", c.tile.dtype)))
        *outer, first, second = unravel(flat, self.shape)
        row, column = (second, first) if self.sides[0] is c.cols else (first, second)
        value = Load(self.storage, Affine.of(p) * self.size + flat)
        done = epilogue(substituted(c, dict(zip(self.loops, outer))), row, column,
                        Load(narrow, zero))
        body: tuple[Stmt, ...] = (
            Alloc(total), Store(total, zero, nothing(wide), None, c.note),
            For(p, (Store(total, zero, converted(value, wide), "sum", c.note),)),
            Alloc(narrow),
            Store(narrow, zero, converted(Load(total, zero), c.tile.dtype), None, c.note), *done)
        guard = inside(flat, Affine.const_of(self.size), self.size)
        return (For(i, (If(guard[0], body),) if guard else body, "thread"),)


# -- thin ones -----------------------------------------------------------------------------------


def thin_kernel(kernel: LoopKernel, loops: tuple[Var, ...], c: Contraction,
                target: Target) -> LoopKernel:
    """The kernel of a contraction with few rows, or few columns."""
    made = thin(c, target.threads, "0")
    chunk = Var("chunk", elements(loops) * made.blocks)
    number = Var("block", chunk.extent)
    *outer, block = unravel(Affine.of(number), (*(v.extent for v in loops), made.blocks))
    made = replace(made, c=substituted(c, dict(zip(loops, outer))))
    body = For(number, made.statements(block), "chunk")
    return replace(kernel, body=(body,), chunk=chunk, threads=made.threads)
