"""OpenCL programs against the evaluator and against C: the same kernels, the same numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from random_graphs import Graph, assert_same, grow, outputs_of, tolerance
from running import Compiled, buffers, floats
from training_steps import benchmarks, case_of

import tinyc
from tinyc import compiler
from tinyc.ir import build as b
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node

GRAPHS = 30


def random_graph(seed: int) -> tuple[Graph, list[Node]]:
    r = np.random.default_rng(seed)
    g = Graph(lambda n: int(r.integers(0, n)))
    g.special = seed % 4 == 0
    grow(g, 6 + seed % 10)
    return g, outputs_of(g, 1 + seed % 4)


@pytest.mark.parametrize("seed", range(GRAPHS))
def test_random_graphs_agree_with_the_evaluator(opencl, seed):
    g, outputs = random_graph(seed)
    want = evaluate(outputs, g.memory)
    near = tolerance(g, outputs, want)
    for split in (False, True):
        got = Compiled(outputs, split=split, device=opencl)(g.memory)
        for i, (mine, theirs) in enumerate(zip(got, want, strict=True)):
            assert_same(mine, theirs, near, f"output {i} of graph {seed}")


def test_products_of_all_layouts(opencl):
    rng = np.random.default_rng(0)
    for shape in ((70, 50, 40), (3, 300, 1000), (130, 17, 33)):
        m, k, n = shape
        for transposed in ((False, False), (True, False), (False, True)):
            a = rng.standard_normal((k, m) if transposed[0] else (m, k)).astype(np.float32)
            c = rng.standard_normal((n, k) if transposed[1] else (k, n)).astype(np.float32)
            (x, y), memory = buffers(a, c)
            x = b.permute(x, (1, 0)) if transposed[0] else x
            y = b.permute(y, (1, 0)) if transposed[1] else y
            out = [b.contract(x, y, (0, 1), (1, 2), (0, 2))]
            (got,) = Compiled(out, device=opencl)(memory)
            want = (a.T if transposed[0] else a).astype(float) @ (c.T if transposed[1] else c)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_the_text_has_vectors_and_neither_barriers_nor_local_memory(opencl):
    (x, y), _ = buffers(floats(64, 64), floats(64, 64))
    program = Compiled([b.contract(x, y, (0, 1), (1, 2), (0, 2))], device=opencl).program
    assert re.search(r"\bfloat(4|8|16) c0_0", program.source)
    assert "barrier" not in program.source and "__local" not in program.source
    assert {launch.kernel for launch in program.launches} == set(range(len(program.kernels)))


@pytest.mark.parametrize("name", ["mlp", "lenet64", "gpt_small"])
def test_training_takes_the_same_kernels_and_gives_the_same_losses(opencl, name, tmp_path):
    found = {}
    for device in ("cpu", opencl):
        with benchmarks(tmp_path), tinyc.device(device):
            with compiler.observe() as runs:
                case = case_of(name, "tinyc", "opencl" if device == opencl else "jit")
                with tinyc.device(device):
                    losses = [case.step(i) for i in range(10)]
            kernels = max(len(run.executable.program.kernels) for run in runs)
        found[device] = losses, kernels
    (here, kernels), (there, kernels_there) = found.values()
    assert kernels == kernels_there
    np.testing.assert_allclose(there, here, rtol=1e-4)
