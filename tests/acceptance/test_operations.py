"""Every operation runs on every kind of device as it is specified, fused and unfused."""

from __future__ import annotations

import numpy as np
import pytest
from operations import FLOATS, GRAPHS, graphs, typed_graphs
from running import Compiled, Memory, buffers, interpreted, native

from tinyc.ir import build as b
from tinyc.ir import dtype as d
from tinyc.ir.dtype import f32
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node, node
from tinyc.ir.ops import Op


def test_every_operation_is_here():
    # sizes that a program is called with are built in by now
    assert set(Op) - set(GRAPHS) <= {Op.VAR}


REAL = {Op.EXP, Op.LOG, Op.SQRT, Op.SIN, Op.COS, Op.TANH, Op.ERF, Op.FLOOR, Op.DIV, Op.POW}
BITS = {Op.AND, Op.OR, Op.XOR, Op.SHL, Op.SHR}
COUNTS = {Op.IOTA, Op.NEG, Op.ADD, Op.SUB, Op.MUL, Op.IDIV, Op.MOD, Op.SHL, Op.SHR, Op.CONTRACT,
          Op.REDUCE, Op.FOLD, Op.SCATTER_ADD}
# Operations that a kind of type has not.
NONE_OF = {"f": BITS, "i": REAL, "u": REAL, "b": REAL | COUNTS}


@pytest.mark.parametrize("dtype", d.DTYPES.values(), ids=repr)
def test_every_operation_runs_on_every_type_that_has_it(backend, dtype):
    made, memory = typed_graphs(dtype)
    written_otherwise = {Op.VAR, Op.CAST, Op.BITCAST}
    assert {op for op in Op if op.name not in made} == NONE_OF[dtype.kind] | written_otherwise
    assert sum(name.startswith("cast to") for name in made) == len(d.DTYPES) - 1
    graphs = tuple(made.values())
    found = Compiled(graphs, device=backend)(memory)
    for name, a, e in zip(made, found, evaluate(graphs, memory), strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape, name
        kind = made[name].dtype
        near = 2 * d.finfo(kind).eps if kind.is_float else 0
        np.testing.assert_allclose(d.numbers(a, kind), d.numbers(e, kind), near, near, err_msg=name)


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
def test_operations_run(backend, fuse):
    made, memory = graphs()
    agree(made, memory, Compiled(tuple(made.values()), fuse, device=backend)(memory))


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
def test_operations_are_interpreted(fuse):
    made, memory = graphs()
    agree(made, memory, interpreted(tuple(made.values()), memory, fuse))


def agree(made: dict[Op, Node], memory: Memory, found: list[np.ndarray]) -> None:
    """Check what was computed for the graph of each operation."""
    for op, a, e in zip(made, found, evaluate(list(made.values()), memory), strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape, op
        np.testing.assert_allclose(a, e, rtol=1e-5, err_msg=op.name)


def test_a_write_runs(backend):
    leaves, memory = buffers(*FLOATS)
    out = GRAPHS[Op.ASSIGN](*leaves)
    found = Compiled((out,), device=backend)(memory)
    np.testing.assert_allclose(found[0], np.exp(FLOATS[1]), rtol=1e-6)


@pytest.mark.cpu("a text as long as this chain")
def test_long_chains_run_as_c():
    (x,), memory = buffers(np.zeros(4, np.float32))
    out = x
    for _ in range(10_000):
        out = node(Op.ADD, (out, b.expand(b.const(1.0, f32), (4,))))
    np.testing.assert_array_equal(native((out,), memory)[0], np.full(4, 10_000, np.float32))
