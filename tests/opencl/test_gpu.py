"""GPU recipes in OpenCL C, run by a driver for CPUs: what is computed, and what the texts have."""

from __future__ import annotations

import numpy as np
import pytest
from random_graphs import Graph, assert_same, grow, outputs_of, tolerance
from running import Compiled

from tinyc.ir.evaluate import evaluate


@pytest.mark.parametrize("seed", range(20))
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
