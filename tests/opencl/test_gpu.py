"""GPU recipes in OpenCL C, run by a driver for CPUs: what is computed, and what the texts have."""

from __future__ import annotations

import numpy as np
import pytest
from random_graphs import Graph, assert_same, grow, outputs_of, tolerance
from running import Compiled
from training_steps import benchmarks, case_of

import tinyc
from tinyc import compiler
from tinyc.ir.evaluate import evaluate


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs_agree_with_the_evaluator(blocks, seed):
    r = np.random.default_rng(seed)
    g = Graph(lambda n: int(r.integers(0, n)))
    g.special = seed % 4 == 0
    grow(g, 6 + seed % 10)
    outputs = outputs_of(g, 1 + seed % 4)
    want = evaluate(outputs, g.memory)
    near = tolerance(g, outputs, want)
    got = Compiled(outputs, device=blocks)(g.memory)
    for i, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert_same(mine, theirs, near, f"output {i} of graph {seed}")


@pytest.mark.parametrize("name", ["mlp", "lenet64", "gpt_small"])
def test_training_takes_the_same_kernels_and_gives_the_same_losses(blocks, name, tmp_path):
    found = {}
    for device in ("cpu", blocks):
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
