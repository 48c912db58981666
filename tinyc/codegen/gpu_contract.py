"""GPU recipes for kernels that are one contraction: tiles, images and batches over the grid.

A matrix of the result is cut into tiles, each the work of one block (`gpu_tile.py`). Where there
are too few of them to fill the device, as for gradients of weights, the depth is cut as well: each
block stores its part of the sums, and a second launch adds the parts in a fixed order. Where one
side has a few rows only, nothing is worth sharing: threads read what they multiply.
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tinyc.codegen.gpu_operand import can_copy, inside, nothing
from tinyc.codegen.gpu_shape import (
    BYTES,
    MATRICES,
    PIPELINED,
    PIPELINED_MATRICES,
    PLAIN,
    Shape,
    cycles,
)
from tinyc.codegen.gpu_thin import is_thin, thin
from tinyc.codegen.gpu_tile import Part, counts, epilogue, tile_statements
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

# Threads without which a multiprocessor waits; its blocks, as `Target.chunks` counts them.
BUSY, BLOCKS = 256, 2
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
                       threads=shape.threads, resident=shape.resident)
    apart = Parts(found[1], loops, cut.parts)
    body = tile_statements(c, shape, where, "0", lambda r, j, total: (
        apart.keep(part, tuple(outer), r, j, total),))
    last = Var("last", -(-apart.size // FINISH_THREADS))
    return replace(kernel, body=(For(block, tuple(body), "chunk"),), chunk=chunk,
                   threads=shape.threads, resident=shape.resident,
                   finish=apart.added(last, shape.threads), last=last)


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
    for shape in shapes_of(c, target):
        blocks = batch * -(-m // shape.rows) * -(-n // shape.cols)
        most = min(target.chunks // blocks, k // LEAST_DEPTH) if may_split else 1
        for p in dict.fromkeys((1, *(1 << i for i in range(1, max(1, most).bit_length())))):
            mine = -(-blocks * p * BLOCKS // target.chunks)
            busy = min(1.0, mine * shape.threads / BUSY)
            time = mine * -(-k // p) * cycles(shape, c, busy)
            if p > 1:
                moved = 2 * p * batch * m * n * c.tile.dtype.itemsize
                time += LAUNCH + moved * BLOCKS / (BYTES * target.chunks)
            options.append((time, p, Cut(shape, p)))
    return min(options, key=lambda o: o[:2])[2]


def has_arch(target: Target, least: int) -> bool:
    """True for CUDA with the instructions of a generation, such as 80."""
    found = re.fullmatch(r"sm_(\d+)a?", target.arch)
    return target.language == "cuda" and found is not None and int(found[1]) >= least


def matrix_kind(c: Contraction, target: Target) -> str:
    """As what matrix instructions of the target multiply the operands of a contraction, if at all.

    Halves always; f32 as tf32 only where the user has asked for that.
    """
    if not has_arch(target, LEAST_ARCH) or c.tile.dtype is not f32 or c.a.dtype is not c.b.dtype:
        return ""
    if c.a.dtype.is_half:
        return c.a.dtype.name
    return "tf32" if c.a.dtype is f32 and target.tf32 else ""


def shapes_of(c: Contraction, target: Target) -> list[Shape]:
    """The tiles that a kernel can make of a contraction: by asynchronous stores where there are
    some and they can bring both operands."""
    kind = matrix_kind(c, target)
    dtype = c.a.dtype if kind in ("f16", "bf16") else c.tile.dtype
    if has_arch(target, LEAST_ARCH) and can_copy(c, dtype):
        found = fitting(PIPELINED_MATRICES if kind else PIPELINED, kind, c, target)
        if found:
            return found
    return shapes_for(c, target, PLAIN, elements(c.depth))


def fitting(shapes: Sequence[Shape], kind: str, c: Contraction, target: Target) -> list[Shape]:
    """Those of some shapes that a block has threads and memory for, not deeper than needed."""
    least, k = 16 if kind else 8, elements(c.depth)
    found = []
    for s in shapes:
        depth = s.depth // 2 if kind == "tf32" else s.depth
        while depth > least and depth // 2 >= k:
            depth //= 2
        s = replace(s, kind=kind, depth=depth)
        if s.threads <= target.threads and s.shared_bytes(c) <= target.shared:
            found.append(s)
    return found


def shapes_for(c: Contraction, target: Target, plain: tuple[Shape, ...],
               k: int) -> list[Shape]:
    """The tiles through registers that a block of a target can make of a contraction; `plain` are
    those without matrix instructions."""
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
    size = math.gcd(down, GROUP)
    group, column, row = unravel(tile, (down // size, across, size))
    return group * size + row, column


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
