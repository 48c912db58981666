"""The sums of a tile that the threads of a block have in registers, as loop IR: how they begin,
what is added from shared memory, and who visits them at the end."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinyc.codegen.gpu_operand import Mover, copied, nothing
from tinyc.codegen.gpu_shape import VECTOR, WARP, Shape
from tinyc.codegen.panel import BEGINNING
from tinyc.ir.dtype import DType
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import Alloc, Apply, For, Load, MicroMma, Stmt, Storage, Store
from tinyc.ir.ops import Op

# The threads of a warp stand in 4 rows of 8, each with groups of 4 x 4 sums.
WARP_ROWS, WARP_COLS = 4, 8
# Is given row, column and place of the first of some sums side by side, and which of them is meant.
Visit = Callable[[Affine, Affine, Affine, Var], tuple[Stmt, ...]]


@dataclass
class Sums:
    """The sums of the threads of a block: `storage`, an array of each thread, and where in the tile
    a thread's groups of sums stand.

    Threads of a warp whose numbers differ in the lowest bit read the same rows, and in the next bit
    the same columns: shared memory then gives each of the two vectors in half the time.
    """

    shape: Shape
    storage: Storage
    dtype: DType

    def corner(self, thread: Var) -> tuple[Affine, Affine]:
        """The first row and column of a thread."""
        t, across = Affine.of(thread), self.shape.cols // (WARP_COLS * self.shape.wide)
        lane, warp = t % WARP, t // WARP
        down = lane // 2 % 2 + lane // 16 * 2
        right = lane % 2 + lane // 4 % 4 * 2
        row = warp // across * (WARP_ROWS * self.shape.high) + down * VECTOR
        column = warp % across * (WARP_COLS * self.shape.wide) + right * VECTOR
        return row, column

    def clear(self, suffix: str) -> list[Stmt]:
        """All sums begin at zero."""
        i = Var(f"z_{suffix}", self.storage.size)
        clear = Store(self.storage, Affine.of(i), nothing(self.dtype))
        return [Alloc(self.storage), For(i, (clear,), "unroll")]

    def multiply(self, a: Mover, b: Mover, thread: Var, slot: Affine, suffix: str) -> Stmt:
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
            at = m.at(slot, first + Affine.of(g) * gap, Affine.of(k))
            move = copied(r, Affine.of(g) * VECTOR, Load(m.tile, at), VECTOR)
            body += [Alloc(r), For(g, move, "unroll")]
            held.append(r)
        i, j = Var(f"i_{suffix}", shape.high), Var(f"j_{suffix}", shape.wide)
        product = Apply(Op.MUL, (Load(held[0], Affine.of(i)), Load(held[1], Affine.of(j))),
                        self.dtype)
        add = Store(self.storage, Affine.of(i) * shape.wide + Affine.of(j), product, "sum")
        body.append(For(i, (For(j, (add,), "unroll"),), "unroll"))
        return For(k, tuple(body), "unroll")

    def each(self, thread: Var, suffix: str, visit: Visit) -> Stmt:
        """Unrolled loops over a thread's sums, four of them at a time."""
        shape = self.shape
        row, column = self.corner(thread)
        i, j = Var(f"ei_{suffix}", shape.high), Var(f"ej_{suffix}", shape.wide // VECTOR)
        r = row + Affine.of(i) // VECTOR * (WARP_ROWS * VECTOR) + Affine.of(i) % VECTOR
        c = column + Affine.of(j) * (WARP_COLS * VECTOR)
        at = Affine.of(i) * shape.wide + Affine.of(j) * VECTOR
        body = visit(r, c, at, Var(f"el_{suffix}", VECTOR))
        return For(i, (For(j, body, "unroll"),), "unroll")


@dataclass
class WarpSums(Sums):
    """The sums of warps that multiply by matrix instructions (`MicroMma`)."""

    def corner(self, thread: Var) -> tuple[Affine, Affine]:
        """The first row and column of a thread's warp."""
        warp, across = Affine.of(thread) // WARP, self.shape.cols // self.shape.wide
        return warp // across * self.shape.high, warp % across * self.shape.wide

    def multiply(self, a: Mover, b: Mover, thread: Var, slot: Affine, suffix: str) -> Stmt:
        """sums += a * b for all points of the depth of a pair of shared tiles."""
        shape = self.shape
        row, column = self.corner(thread)
        first, second = (Load(m.tile, m.at(slot, at, BEGINNING)) for m, at in (
            (a, row), (b, column)))
        return MicroMma(self.storage, shape.high, shape.wide, shape.depth, first, a.steps, second,
                        b.steps, Affine.of(thread) % WARP, shape.kind)

    def each(self, thread: Var, suffix: str, visit: Visit) -> Stmt:
        """Unrolled loops over a thread's sums, two of them at a time."""
        row, column = self.corner(thread)
        lane, wide = Affine.of(thread) % WARP, self.shape.wide // 8
        i, j = Var(f"ei_{suffix}", self.shape.high // 16), Var(f"ej_{suffix}", wide)
        r = Var(f"er_{suffix}", 2)
        at = (Affine.of(i) * wide + Affine.of(j)) * 4 + Affine.of(r) * 2
        body = visit(row + Affine.of(i) * 16 + lane // 4 + Affine.of(r) * 8,
                     column + Affine.of(j) * 8 + lane % 4 * 2, at, Var(f"el_{suffix}", 2))
        for v in (r, j, i):
            body = (For(v, body, "unroll"),)
        return body[0]
