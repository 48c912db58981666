"""Every operation in a graph of its own: a table that backends are held against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from running import Memory, buffers

from tinyc.diagnostics import DTypeError
from tinyc.ir import build as b
from tinyc.ir import dtype as d
from tinyc.ir.dtype import f32, f64, i32
from tinyc.ir.node import Node, node, toposort
from tinyc.ir.ops import OPS, Op

RNG = np.random.default_rng(0)
FLOATS = [RNG.uniform(0.5, 2, (3, 4)).astype(np.float32) for _ in range(2)]
INTS = [RNG.integers(1, 6, (3, 4)).astype(np.int32) for _ in range(2)]
MASKS = [RNG.random((3, 4)) > 0.5 for _ in range(2)]
PICKS = np.array([2, 0, 2, 1])

# op -> a graph of (x, y: f32[3,4]; i, j: i32[3,4]; p, q: bool[3,4]; k: i64[4]) that has it
GRAPHS: dict[Op, Callable[..., Node]] = {
    Op.CONST: lambda x, *_: b.add(x, b.const(2.5, f32)),
    Op.IOTA: lambda x, *_: b.add(b.iota(4, f32), x),
    Op.NEG: lambda x, *_: b.neg(x),
    Op.EXP: lambda x, *_: b.exp(x),
    Op.LOG: lambda x, *_: b.log(x),
    Op.SQRT: lambda x, *_: b.sqrt(x),
    Op.SIN: lambda x, *_: b.sin(x),
    Op.COS: lambda x, *_: b.cos(x),
    Op.TANH: lambda x, *_: b.tanh(x),
    Op.ERF: lambda x, *_: b.erf(x),
    Op.FLOOR: lambda x, *_: b.floor(x),
    Op.ADD: lambda x, y, *_: b.add(x, y),
    Op.SUB: lambda x, y, *_: b.sub(x, y),
    Op.MUL: lambda x, y, *_: b.mul(x, y),
    Op.DIV: lambda x, y, *_: b.div(x, y),
    Op.MAX: lambda x, y, *_: b.maximum(x, y),
    Op.IDIV: lambda x, y, i, j, *_: b.idiv(b.neg(i), j),
    Op.MOD: lambda x, y, i, j, *_: b.mod(b.neg(i), j),
    Op.POW: lambda x, y, *_: b.pow(x, y),
    Op.LT: lambda x, y, *_: b.lt(x, y),
    Op.EQ: lambda x, y, i, j, *_: b.eq(i, j),
    Op.AND: lambda x, y, i, j, p, q, k: b.and_(p, q),
    Op.OR: lambda x, y, i, j, *_: b.or_(i, j),
    Op.XOR: lambda x, y, i, j, *_: b.xor(i, j),
    Op.SHL: lambda x, y, i, j, *_: b.shl(i, j),
    Op.SHR: lambda x, y, i, j, *_: b.shr(i, j),
    Op.WHERE: lambda x, y, i, j, p, *_: b.where(p, x, y),
    Op.CAST: lambda x, *_: b.cast(x, f64),
    Op.BITCAST: lambda x, *_: b.bitcast(x, i32),
    Op.RESHAPE: lambda x, *_: b.reshape(b.exp(x), (2, 6)),
    Op.PERMUTE: lambda x, *_: b.permute(b.exp(x), (1, 0)),
    Op.EXPAND: lambda x, *_: b.expand(b.exp(x), (2, 3, 4)),
    Op.SLICE: lambda x, *_: b.slice_(b.exp(x), (2, 1), (3, 2), (-1, 2)),
    Op.PAD: lambda x, *_: b.pad(b.exp(x), (1, 0), (0, 2), (0, 1)),
    Op.WINDOW: lambda x, *_: b.window(b.exp(x), 1, 2, 1, 2),
    Op.CAT: lambda x, y, *_: b.cat([b.exp(x), y], 0),
    Op.REDUCE: lambda x, *_: b.sum_(x, (1,)),
    Op.CONTRACT: lambda x, y, *_: b.contract(x, y, (0, 1), (2, 1), (0, 2)),
    Op.FOLD: lambda x, *_: b.fold(b.exp(x), 0, 6, 1, 1),
    Op.SCATTER_ADD: lambda x, y, i, j, p, q, k: b.scatter_add(x, k, 1, 5),
    Op.GATHER: lambda x, y, i, j, p, q, k: b.gather(x, k, 0),
    Op.ASSIGN: lambda x, y, *_: b.assign(x, b.exp(y), (0, 0), (3, 4), (1, 1)),
    Op.COPY: lambda x, *_: node(Op.COPY, (b.exp(x),), ("cpu",)),
    Op.MATERIALIZE: lambda x, *_: b.exp(b.materialize(b.exp(x))),
    Op.BOUNDARY: lambda x, *_: b.exp(b.boundary(b.exp(x))),
    Op.TOGETHER: lambda x, y, *_: b.sub(*b.together([b.exp(x), b.mul(x, y)], [x, y])),
    Op.DETACH: lambda x, *_: b.exp(b.detach(x)),
    Op.BUFFER: lambda x, *_: b.neg(x),
}


def graphs() -> tuple[dict[Op, Node], Memory]:
    """A graph for each operation but ASSIGN, which overwrites what it reads, and their memory."""
    leaves, memory = buffers(*FLOATS, *INTS, *MASKS, PICKS)
    made = {op: make(*leaves) for op, make in GRAPHS.items() if op is not Op.ASSIGN}
    for op, out in made.items():
        assert any(n.op is op for n in toposort((out,))), op
    return made, memory


# op -> a graph that has it, of (x, y, t: T[3,4]; m: bool[3,4]; k: i64[4]), for any type T that the
# operation takes; other elementwise operations are applied to x and y as they are.
TYPED: dict[Op, Callable[..., Node]] = {
    Op.CONST: lambda x, y, t, m, k: b.where(m, x, b.const(1, x.dtype)),
    Op.IOTA: lambda x, y, t, m, k: b.maximum(b.iota(4, x.dtype), x),
    Op.WHERE: lambda x, y, t, m, k: b.where(m, x, y),
    Op.RESHAPE: lambda x, y, *_: b.reshape(b.maximum(x, y), (2, 6)),
    Op.PERMUTE: lambda x, y, *_: b.permute(b.maximum(x, y), (1, 0)),
    Op.EXPAND: lambda x, y, *_: b.expand(b.maximum(x, y), (2, 3, 4)),
    Op.SLICE: lambda x, y, *_: b.slice_(b.maximum(x, y), (2, 1), (3, 2), (-1, 2)),
    Op.PAD: lambda x, y, *_: b.pad(b.maximum(x, y), (1, 0), (0, 2), (0, 1)),
    Op.WINDOW: lambda x, y, *_: b.window(b.maximum(x, y), 1, 2, 1, 2),
    Op.CAT: lambda x, y, *_: b.cat([b.maximum(x, y), y], 0),
    Op.REDUCE: lambda x, *_: node(Op.REDUCE, (x,), ("sum", (1,))),
    Op.CONTRACT: lambda x, y, *_: node(Op.CONTRACT, (x, y), ((0, 1), (2, 1), (0, 2))),
    Op.FOLD: lambda x, y, *_: node(Op.FOLD, (x,), (0, 6, 1, 1)),
    Op.SCATTER_ADD: lambda x, y, t, m, k: node(Op.SCATTER_ADD, (x, k), (1, 5)),
    Op.GATHER: lambda x, y, t, m, k: b.gather(x, k, 0),
    Op.ASSIGN: lambda x, y, t, *_: b.assign(t, b.maximum(x, y), (0, 0), (3, 4), (1, 1)),
    Op.COPY: lambda x, y, *_: node(Op.COPY, (b.maximum(x, y),), ("cpu",)),
    Op.MATERIALIZE: lambda x, y, *_: b.eq(b.materialize(b.maximum(x, y)), y),
    Op.BOUNDARY: lambda x, y, *_: b.eq(b.boundary(b.maximum(x, y)), y),
    Op.TOGETHER: lambda x, y, *_: b.eq(b.together([b.maximum(x, y)], [x, y])[0], y),
    Op.DETACH: lambda x, y, *_: b.maximum(b.detach(x), y),
    Op.BUFFER: lambda x, y, *_: b.maximum(x, y),
}


def typed_graphs(dtype: d.DType) -> tuple[dict[str, Node], Memory]:
    """A graph for each operation that takes a type, and for casts to all others; their memory."""
    rng = np.random.default_rng(1)
    numbers = [rng.integers(1, 6, (3, 4)) / (2 if dtype.is_float else 1) for _ in range(3)]
    if dtype.kind == "b":
        numbers = [n > 3 for n in numbers]
    leaves, memory = buffers(*(d.stored(n, dtype) for n in numbers), MASKS[0], PICKS)
    made = {f"cast to {t}": b.cast(leaves[0], t) for t in d.DTYPES.values() if t is not dtype}
    made |= {f"bits of {t}": b.bitcast(leaves[0], t) for t in d.DTYPES.values()
             if t is not dtype and t.itemsize == dtype.itemsize and "b" not in (t.kind, dtype.kind)}
    made["MAX of rows"] = node(Op.REDUCE, (leaves[0],), ("max", (1,)))
    for op, spec in OPS.items():
        try:
            if op in TYPED:
                made[op.name] = TYPED[op](*leaves)
            elif spec.family == "elementwise" and op not in (Op.CAST, Op.BITCAST):
                made[op.name] = node(op, tuple(leaves[:spec.arity]), ())
        except DTypeError:
            continue
    return made, memory
