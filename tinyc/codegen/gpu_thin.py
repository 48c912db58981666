"""Contractions with a few rows, or a few columns, on GPUs: a vector times a matrix, depthwise
convolutions. Each number of the large operand is used a few times only, so it goes straight from
memory to the thread that multiplies it, and is asked for side by side with its neighbours."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tinyc.codegen.gpu_operand import (
    Side,
    aligned,
    both,
    copied,
    element,
    inside,
    nothing,
    step,
)
from tinyc.codegen.gpu_shape import VECTOR, WARP
from tinyc.codegen.gpu_tile import epilogue
from tinyc.ir.cost import elements
from tinyc.ir.dtype import bool_
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Barrier,
    Combine,
    Contraction,
    For,
    If,
    Load,
    Stmt,
    Storage,
    Store,
    Within,
    converted,
)
from tinyc.ir.ops import Op

# So many rows are few: a thread has a sum for each.
FEW = 8
# From so many points of the depth on, threads share the sum of a row.
SHARED_DEPTH = 64
# Threads that share a sum where the depth lies across memory.
PARTS = 8
THREADS = 256
ZERO = Affine.const_of(0)


def is_thin(c: Contraction) -> bool:
    """True if one side of a contraction has few rows."""
    return not c.limits and min(elements(c.rows), elements(c.cols)) <= FEW


@dataclass
class Thin:
    """How threads are set up: `lanes` of them share a sum, side by side or one row of threads for
    each; each moves `width` points of the depth at once."""

    c: Contraction
    turned: bool
    lanes: int
    beside: bool
    width: int
    threads: int
    suffix: str

    @property
    def outputs(self) -> int:
        """Rows of the large operand that a block multiplies."""
        return self.threads // self.lanes

    @property
    def many(self) -> tuple[Var, ...]:
        return self.c.cols if self.turned else self.c.rows

    @property
    def few(self) -> tuple[Var, ...]:
        return self.c.rows if self.turned else self.c.cols

    @property
    def blocks(self) -> int:
        return -(-elements(self.many) // self.outputs)

    def side(self, large: bool) -> Side:
        """An operand."""
        c = self.c
        second = large == self.turned
        own = self.many if large else self.few
        return Side(c.b if second else c.a, own, c.depth, Affine.const_of(elements(own)),
                    Affine.const_of(elements(c.depth)), ZERO, 1, "x" if large else "y")

    def place(self, thread: Var, block: Affine) -> tuple[Affine, Affine]:
        """(row of the large operand, which of the threads that share its sums)."""
        t = Affine.of(thread)
        if self.beside:
            return block * self.outputs + t // self.lanes, t % self.lanes
        return block * self.outputs + t % self.outputs, t // self.outputs

    def statements(self, block: Affine) -> tuple[Stmt, ...]:
        """What the threads of a block do."""
        sums = [Storage(f"sum{f}_{self.suffix}", 1, self.c.tile.dtype, "register")
                for f in range(elements(self.few))]
        start: list[Stmt] = [s for r in sums for s in (Alloc(r), Store(r, ZERO, nothing(r.dtype)))]
        return (*start, self.multiply(sums, block), *self.combine(sums), self.finish(sums, block))

    def multiply(self, sums: list[Storage], block: Affine) -> Stmt:
        """Each thread adds up its points of the depth."""
        t = Var(f"t_{self.suffix}", self.threads)
        steps = -(-elements(self.c.depth) // (self.lanes * self.width))
        s, v = Var(f"s_{self.suffix}", steps), Var(f"v_{self.suffix}", self.width)
        row, lane = self.place(t, block)
        k = (Affine.of(s) * self.lanes + lane) * self.width
        body: list[Stmt] = []
        x = self.held("x", element(self.side(True), row, k, self.width), body)
        for f, total in enumerate(sums):
            y = self.held(f"y{f}", element(self.side(False), Affine.const_of(f), k, self.width),
                          body)
            terms = tuple(Load(r, Affine.of(v)) for r in (x, y))
            add = Store(total, ZERO, Apply(Op.MUL, terms, total.dtype), "sum")
            body.append(For(v, (add,), "unroll"))
        return For(t, (For(s, tuple(body)),), "thread")

    def held(self, name: str, load: Load, body: list[Stmt]) -> Storage:
        """Registers that hold what a load reads."""
        r = Storage(f"{name}_{self.suffix}", self.width, self.c.tile.dtype, "register")
        body.append(Alloc(r))
        body += copied(r, ZERO, load, self.width) if self.width > 1 else (
            Store(r, ZERO, converted(load, r.dtype)),)
        return r

    def combine(self, sums: list[Storage]) -> Iterator[Stmt]:
        """Add up what the threads that share a sum have."""
        if self.lanes == 1:
            return
        if self.beside:
            yield from (Combine(r, "sum", self.lanes) for r in sums)
            return
        size = self.outputs * len(sums)
        shared = Storage(f"parts_{self.suffix}", self.lanes * size, sums[0].dtype, "shared")
        t, o = Var(f"tk_{self.suffix}", self.threads), Var(f"to_{self.suffix}", self.outputs)
        part = Affine.of(t) // self.outputs * size + Affine.of(t) % self.outputs
        yield For(t, tuple(Store(shared, part + f * self.outputs, Load(r, ZERO))
                           for f, r in enumerate(sums)), "thread")
        yield Barrier()
        added: list[Stmt] = []
        for f, r in enumerate(sums):
            p = Var(f"p{f}_{self.suffix}", self.lanes - 1)
            at = Affine.of(o) + f * self.outputs
            added += [Store(r, ZERO, Load(shared, at)),
                      For(p, (Store(r, ZERO, Load(shared, at + (Affine.of(p) + 1) * size),
                                    "sum"),), "unroll")]
        yield For(o, tuple(added), "thread")

    def finish(self, sums: list[Storage], block: Affine) -> Stmt:
        """One of the threads that share sums does what is to be done with them."""
        t = Var(f"te_{self.suffix}", self.threads)
        row, lane = self.place(t, block)
        guards = [Within(lane, 0, 1, 1, bool_)] if self.lanes > 1 else []
        guards += inside(row, Affine.const_of(elements(self.many)), elements(self.many))
        body: list[Stmt] = []
        for f, total in enumerate(sums):
            pair = (Affine.const_of(f), row) if self.turned else (row, Affine.const_of(f))
            body += epilogue(self.c, *pair, Load(total, ZERO))
        return For(t, (If(both(guards), tuple(body)),) if guards else tuple(body), "thread")


def thin(c: Contraction, most: int, suffix: str) -> Thin:
    """How the threads of blocks, up to `most` of them, are set up for a contraction."""
    threads = min(THREADS, most)
    turned = elements(c.rows) < elements(c.cols)
    large, small = (c.b, c.a) if turned else (c.a, c.b)
    deep = elements(c.depth) >= SHARED_DEPTH and threads >= WARP
    beside = deep and step(large, c.depth) == 1
    width = VECTOR if beside and all(
        x.dtype is c.tile.dtype and aligned(x, c.depth) for x in (large, small)) else 1
    lanes = WARP if beside else PARTS if deep else 1
    return Thin(c, turned, lanes, beside, width, threads, suffix)

