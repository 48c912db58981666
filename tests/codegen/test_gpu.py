"""GPU recipes, run by the interpreter of blocks of threads, against the evaluator."""

from __future__ import annotations

import numpy as np
import pytest
from random_graphs import Graph, assert_same, grow, outputs_of, tolerance
from running import BLOCKS, interpreted

from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node

GRAPHS = 40


def random_graph(seed: int) -> tuple[Graph, list[Node]]:
    r = np.random.default_rng(seed)
    g = Graph(lambda n: int(r.integers(0, n)))
    g.special = seed % 4 == 0
    grow(g, 6 + seed % 10)
    return g, outputs_of(g, 1 + seed % 4)


@pytest.mark.parametrize("seed", range(GRAPHS))
def test_random_graphs_agree_with_the_evaluator(seed):
    g, outputs = random_graph(seed)
    want = evaluate(outputs, g.memory)
    near = tolerance(g, outputs, want)
    for fuse in (True, False):
        got = interpreted(outputs, g.memory, fuse, target=BLOCKS)
        for i, (mine, theirs) in enumerate(zip(got, want, strict=True)):
            assert_same(mine, theirs, near, f"output {i} of graph {seed}")
