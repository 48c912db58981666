"""Every operation runs as C as it is specified, fused and unfused."""

from __future__ import annotations

import numpy as np
import pytest
from operations import FLOATS, GRAPHS, graphs
from running import buffers, interpreted, native

from tinyc import config
from tinyc.ir import build as b
from tinyc.ir.dtype import f32
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import node
from tinyc.ir.ops import Op

pytestmark = pytest.mark.skipif(config.current().device != "cpu", reason="needs a C compiler")

def test_every_operation_is_here():
    # sizes that a program is called with are built in by now
    assert set(Op) - set(GRAPHS) <= {Op.VAR}


@pytest.mark.parametrize("run", [native, interpreted], ids=["c", "interpreted"])
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
def test_operations_run(fuse, run):
    made, memory = graphs()
    found = run(tuple(made.values()), memory, fuse)
    for op, a, e in zip(made, found, evaluate(list(made.values()), memory), strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape, op
        np.testing.assert_allclose(a, e, rtol=1e-5, err_msg=op.name)


def test_a_write_runs_as_c():
    leaves, memory = buffers(*FLOATS)
    out = GRAPHS[Op.ASSIGN](*leaves)
    np.testing.assert_allclose(native((out,), memory)[0], np.exp(FLOATS[1]), rtol=1e-6)


def test_long_chains_run_as_c():
    (x,), memory = buffers(np.zeros(4, np.float32))
    out = x
    for _ in range(10_000):
        out = node(Op.ADD, (out, b.expand(b.const(1.0, f32), (4,))))
    np.testing.assert_array_equal(native((out,), memory)[0], np.full(4, 10_000, np.float32))
