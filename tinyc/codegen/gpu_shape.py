"""The tiles that blocks of threads can make of a product, and what each of them costs.

A tile has rows x cols sums. Its operands come to shared memory in stretches of the depth; threads,
or warps with matrix instructions, multiply what is there. What takes longest decides: to multiply,
to read shared memory, or to bring operands from the second-level cache.
"""
from __future__ import annotations

from dataclasses import dataclass

from tinyc.ir.dtype import DType
from tinyc.ir.loop import Contraction

# Numbers that a thread moves at once.
VECTOR = 4
WARP = 32
# What rows of shared tiles are filled up with, so that threads that store columns meet fewer banks;
# for matrix instructions 16 bytes of halves, or as many numbers as make threads meet none.
PADDING, PADDING_FOR_MMA = 4, 8
# Of a multiprocessor. Compilers have to know how many of them threads with many sums may have.
REGISTERS, MANY_SUMS = 1 << 16, 64
# The share of the arithmetic's peak that high x wide sums of a thread, or of a warp, can reach in
# a block that makes several tiles one after another.
REACH = {64: 1.0, 32: 0.7, 16: 0.5, 64 * 32: 1.0, 32 * 32: 0.7, 16 * 32: 0.5, 16 * 16: 0.35}


@dataclass(frozen=True)
class Shape:
    """A tile: rows x cols of the result, `depth` points of the depth at a time; a thread has
    high x wide of its sums, both multiples of 4. With a `kind` of matrix instructions, f16, bf16
    or tf32, it is a warp that has high x wide sums, multiples of 16.

    Shared memory holds `stages` stretches. With two of them operands go through registers; more of
    them are filled by asynchronous stores.
    """

    rows: int
    cols: int
    depth: int
    high: int
    wide: int
    kind: str = ""
    stages: int = 2

    @property
    def threads(self) -> int:
        return self.rows * self.cols // (self.high * self.wide) * (WARP if self.kind else 1)

    @property
    def sums(self) -> int:
        """Sums of a thread."""
        return self.high * self.wide // (WARP if self.kind else 1)

    @property
    def resident(self) -> int:
        """How many blocks should share the registers of a multiprocessor, half of which are for
        sums; 0 where others decide that."""
        most = REGISTERS // 2 // (self.threads * self.sums)
        return min(2, most) if self.sums >= MANY_SUMS else 0

    @property
    def asynchronous(self) -> bool:
        """True if operands come by asynchronous stores."""
        return self.stages > 2

    def element(self, c: Contraction) -> DType:
        """What tiles hold of the operands of a contraction."""
        return c.a.dtype if self.kind in ("f16", "bf16") else c.tile.dtype

    def shared_bytes(self, c: Contraction) -> int:
        """The most that the stretches of both operands may take."""
        sizes = self.rows + self.cols
        padded = PADDING_FOR_MMA * max(2 * self.depth, sizes)
        return self.stages * (self.depth * sizes + padded) * self.element(c).itemsize


# Through registers, best first. Eight by eight sums take 16 numbers from shared memory for 64
# products; four by four take 8 for 16.
PLAIN = (Shape(128, 128, 8, 8, 8), Shape(128, 64, 16, 8, 4), Shape(64, 128, 16, 4, 8),
         Shape(64, 64, 16, 4, 4), Shape(64, 32, 16, 4, 4), Shape(32, 64, 16, 4, 4),
         Shape(32, 32, 16, 4, 4), Shape(16, 32, 16, 4, 4))
# The same for matrix instructions, whose warps have high x wide sums each.
MATRICES = (Shape(128, 128, 32, 64, 32), Shape(128, 64, 32, 32, 32), Shape(64, 128, 32, 32, 32),
            Shape(64, 64, 32, 32, 32), Shape(32, 64, 32, 16, 32), Shape(32, 32, 32, 16, 16))
# By asynchronous stores, which leave registers to sums and let more of them be on their way.
PIPELINED = (Shape(128, 128, 16, 8, 8, "", 3), Shape(128, 64, 16, 8, 4, "", 4),
             Shape(64, 128, 16, 4, 8, "", 4), Shape(64, 64, 16, 4, 4, "", 4),
             Shape(64, 32, 16, 4, 4, "", 4), Shape(32, 64, 16, 4, 4, "", 4),
             Shape(32, 32, 32, 4, 4, "", 4), Shape(16, 32, 32, 4, 4, "", 4))
# The depths are for halves; of f32, whose numbers take twice the memory, it is half of them.
PIPELINED_MATRICES = (
    Shape(128, 256, 64, 64, 64, "", 4), Shape(256, 128, 64, 64, 64, "", 4),
    Shape(128, 128, 64, 64, 64, "", 3), Shape(128, 64, 64, 64, 32, "", 3),
    Shape(64, 128, 64, 32, 64, "", 3), Shape(64, 64, 64, 32, 32, "", 4),
    Shape(32, 64, 64, 16, 32, "", 4), Shape(32, 32, 64, 16, 16, "", 4))
# What a multiprocessor does in a cycle: multiply-adds of each kind, and instructions of warps;
# bytes from shared memory and from the second-level cache.
PRODUCTS = {"tf32": 512, "f16": 1024, "bf16": 1024}
ISSUES, SHARED_BYTES, BYTES = 4, 128, 24
# Cycles for which shared memory gives a warp a vector for each thread, where pairs of threads ask
# for the same ones; instructions of a thread, beside loads and products, for a point of the depth.
VECTOR_CYCLES, OTHERS = 2, 2


def cycles(shape: Shape, c: Contraction, busy: float) -> float:
    """Cycles of a multiprocessor for a tile, for each point of the depth, where its threads keep
    `busy` as much of the arithmetic as they should."""
    size, sides = shape.element(c).itemsize, shape.rows + shape.cols
    warps, own = shape.threads / WARP, shape.high + shape.wide
    if shape.kind:
        multiply = shape.rows * shape.cols / PRODUCTS[shape.kind]
        given = warps * own * size / SHARED_BYTES
    else:
        loads = own / VECTOR
        multiply = warps * (shape.high * shape.wide + loads + OTHERS) / ISSUES
        given = warps * loads * VECTOR_CYCLES
    stored = sides * size / SHARED_BYTES
    return max(multiply / busy, given + stored, sides * c.a.dtype.itemsize / BYTES)
