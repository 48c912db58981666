"""CUDA programs on the emulator, against the evaluator and against C: the same kernels and numbers.

Every program is compiled for real GPUs, too, where there is a compiler for CUDA.
"""

from __future__ import annotations

import numpy as np
import pytest
from operations import FLOATS, GRAPHS, graphs
from random_graphs import Graph, assert_same, grow, outputs_of, tolerance
from running import Compiled, buffers
from training_steps import benchmarks, case_of

import tinyc
from tinyc import compiler
from tinyc.ir import build as b
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node
from tinyc.ir.ops import Op

RANDOM_GRAPHS = 40


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
def test_every_operation_runs(cuda, fuse):
    made, memory = graphs()
    found = Compiled(tuple(made.values()), fuse, device=cuda)(memory)
    for op, a, e in zip(made, found, evaluate(list(made.values()), memory), strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape, op
        np.testing.assert_allclose(a, e, rtol=1e-5, err_msg=op.name)


def test_a_write_runs(cuda):
    leaves, memory = buffers(*FLOATS)
    out = GRAPHS[Op.ASSIGN](*leaves)
    np.testing.assert_allclose(Compiled((out,), device=cuda)(memory)[0], np.exp(FLOATS[1]), 1e-6)


def random_graph(seed: int) -> tuple[Graph, list[Node]]:
    r = np.random.default_rng(seed)
    g = Graph(lambda n: int(r.integers(0, n)))
    g.special = seed % 4 == 0
    grow(g, 6 + seed % 10)
    return g, outputs_of(g, 1 + seed % 4)


@pytest.mark.parametrize("seed", range(RANDOM_GRAPHS))
def test_random_graphs_agree_with_the_evaluator(cuda, seed):
    g, outputs = random_graph(seed)
    want = evaluate(outputs, g.memory)
    near = tolerance(g, outputs, want)
    got = Compiled(outputs, split=seed % 2 == 1, device=cuda)(g.memory)
    for i, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert_same(mine, theirs, near, f"output {i} of graph {seed}")


def test_products_of_all_layouts(cuda):
    rng = np.random.default_rng(0)
    for m, k, n in ((70, 50, 40), (3, 300, 65), (130, 17, 33)):
        for transposed in ((False, False), (True, False), (False, True)):
            a = rng.standard_normal((k, m) if transposed[0] else (m, k)).astype(np.float32)
            c = rng.standard_normal((n, k) if transposed[1] else (k, n)).astype(np.float32)
            (x, y), memory = buffers(a, c)
            x = b.permute(x, (1, 0)) if transposed[0] else x
            y = b.permute(y, (1, 0)) if transposed[1] else y
            (got,) = Compiled([b.contract(x, y, (0, 1), (1, 2), (0, 2))], device=cuda)(memory)
            want = (a.T if transposed[0] else a).astype(float) @ (c.T if transposed[1] else c)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "lenet64", "gpt_small"])
def test_training_takes_the_same_kernels_and_gives_the_same_losses(cuda, name, tmp_path):
    found = {}
    for device in ("cpu", cuda):
        with benchmarks(tmp_path), tinyc.device(device):
            with compiler.observe() as runs:
                case = case_of(name, "tinyc", "jit")
                with tinyc.device(device):
                    losses = [case.step(i) for i in range(10)]
            kernels = max(len(run.executable.program.kernels) for run in runs)
        found[device] = losses, kernels
    (here, kernels), (there, kernels_there) = found.values()
    assert kernels == kernels_there
    np.testing.assert_allclose(there, here, rtol=1e-4)
