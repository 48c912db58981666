"""Every operation runs on every kind of device as it is specified, fused and unfused."""

from __future__ import annotations

import numpy as np
import pytest
from operations import FLOATS, GRAPHS, graphs
from running import Compiled, Memory, buffers, interpreted, native

from tinyc.ir import build as b
from tinyc.ir.dtype import f32
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node, node
from tinyc.ir.ops import Op


def test_every_operation_is_here():
    # sizes that a program is called with are built in by now
    assert set(Op) - set(GRAPHS) <= {Op.VAR}


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
