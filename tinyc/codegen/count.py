"""What a kernel executes: arithmetic, bytes and members, counted on its loop IR."""
from __future__ import annotations

from tinyc.codegen.work import mean_depth, mean_range, work
from tinyc.ir.cost import elements
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Apply,
    Expr,
    For,
    If,
    Load,
    LoopKernel,
    MicroKernel,
    MicroMma,
    MicroPack,
    Stmt,
    Storage,
    Store,
    walk,
)
from tinyc.ir.ops import OPS, Op
from tinyc.ir.plan import Nest, Stage
from tinyc.ir.plan_text import kernel_text
from tinyc.ir.program import KernelInfo, Target

FREE = (Op.CAST, Op.BITCAST, Op.WHERE)


def kernel_info(kernel: LoopKernel, nest: Nest, target: Target) -> KernelInfo:
    """Members, arithmetic and memory traffic of one kernel, once all chunks have run."""
    counter = Counter(kernel.chunks)
    counter.block(kernel.body, 1, {})
    counter.block(kernel.finish, 1, {})
    stages = nest.stages()
    moved = {s: n * s.dtype.itemsize for s, n in counter.touched().items()}
    return KernelInfo(
        kernel.name, tuple(member_text(s) for s in stages), kernel.origins, counter.flops,
        sum(moved.values()),
        sum(s.nbytes for s in counter.scratch), kernel.chunks,
        tuple(s.name for s in counter.read), tuple(s.name for s in counter.written),
        kernel_text(kernel), read_bytes=tuple(moved[s] for s in counter.read),
        written_bytes=tuple(moved[s] for s in counter.written), work=work(kernel, target.lanes))


def member_text(stage: Stage) -> str:
    """A stage by name, shape and the line that made it."""
    shape = ",".join(str(v.extent) for v in stage.axes)
    inner = "".join(f" over {','.join(str(v.extent) for v in stage.red)}" if stage.red else "")
    return f"{stage.name} {stage.dtype}[{shape}]{inner}"


class Counter:
    """Walks the loops once, multiplying by their ranges."""

    def __init__(self, chunks: int):
        self.chunks = chunks
        self.flops = 0
        self.parts: dict[Storage, dict[tuple, tuple[int, int, int]]] = {}
        self.scratch: dict[Storage, None] = {}
        self.read: dict[Storage, None] = {}
        self.written: dict[Storage, None] = {}

    def block(self, body: tuple[Stmt, ...], times: int, ranges: dict[Var, float]) -> None:
        for stmt in body:
            self.statement(stmt, times, ranges)

    def statement(self, stmt: Stmt, times: int, ranges: dict[Var, float]) -> None:
        if isinstance(stmt, For):
            n = stmt.var.extent if stmt.limit is None else mean_range(stmt)
            self.block(stmt.body, max(1, round(times * n)), {**ranges, stmt.var: n})
        elif isinstance(stmt, If):
            self.block(stmt.body, times, ranges)
        elif isinstance(stmt, Store):
            for expr in (stmt.value, *stmt.index.data()):
                self.expression(expr, times)
            self.flops += times * (stmt.accumulate is not None)
            self.touch(stmt.storage, stmt.index, self.written)
        elif isinstance(stmt, MicroKernel):
            depth = elements(stmt.depth)
            self.flops += round(2 * times * stmt.height * stmt.width * mean_depth(stmt))
            self.touch(stmt.a.storage, stmt.a.index, self.read)
            self.touch(stmt.b.storage, stmt.b.index, self.read, depth * stmt.b_stride)
            self.touch(stmt.tile, stmt.at, self.written, stmt.height * stmt.apart)
        elif isinstance(stmt, MicroMma):
            self.flops += 2 * times * stmt.sums.size * stmt.depth
        elif isinstance(stmt, MicroPack):
            self.touch(stmt.b.storage, stmt.b.index, self.read)

    def expression(self, root: Expr, times: int) -> None:
        for e in walk(root):
            if isinstance(e, Apply) and e.op not in FREE:
                self.flops += times * OPS[e.op].flops_per_element
            elif isinstance(e, Load):
                self.touch(e.storage, e.index, self.read)

    def touch(self, storage: Storage, index: Affine, table: dict[Storage, None],
              span: int = 1) -> None:
        """Note which part of a storage an access sweeps: how many elements, from where to where."""
        if storage.role == "scratch":
            self.scratch[storage] = None
        if storage.role not in ("slot", "arena"):
            return
        table[storage] = None
        lo, hi = index.bounds()
        count = min(span * elements(index.free_vars()), hi + span - lo)
        shape = sorted((c, a.extent) if isinstance(a, Var) else (c, 0) for a, c in index.terms)
        part = (index.const, span, *shape)
        known = self.parts.setdefault(storage, {}).get(part, (0, lo, hi + span))
        self.parts[storage][part] = (max(count, known[0]), lo, hi + span)

    def touched(self) -> dict[Storage, int]:
        """How many elements of each storage move: each once, since what was just read stays in a
        cache, so no more than lie between the first and the last."""
        out = {}
        for storage, parts in self.parts.items():
            counts, starts, ends = zip(*parts.values())
            out[storage] = min(sum(counts), max(ends) - min(starts), storage.size)
        return out
