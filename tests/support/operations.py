"""Every operation in a graph of its own: a table that backends are held against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from running import Memory, buffers

from tinyc.ir import build as b
from tinyc.ir.dtype import f32, f64, i32
from tinyc.ir.node import Node, node, toposort
from tinyc.ir.ops import Op

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
