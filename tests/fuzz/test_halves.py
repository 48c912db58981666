"""Random graphs of f16 and bf16: compiled, fused or not and in chunks, against the evaluator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from random_graphs import SMOOTH, STEPS, Graph, grow, outputs_of
from running import Compiled, native

from tinyc import checking
from tinyc.ir import build as b
from tinyc.ir import dtype as d
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node, node, toposort
from tinyc.ir.ops import Op

GRAPHS = 24


def halved(outputs: Sequence[Node], dtype: d.DType) -> list[Node]:
    """The same graph with a half wherever there is f32."""
    new: dict[Node, Node] = {}
    for n in toposort(outputs):
        attrs = tuple(dtype if a is d.f32 else a for a in n.attrs)
        if n.op is Op.CONST and n.dtype is d.f32:
            new[n] = b.const(n.value, dtype)
        elif n.op is Op.BITCAST:  # of as many bits
            new[n] = b.cast(new[n.src[0]], attrs[0])
        else:
            new[n] = node(n.op, tuple(new[s] for s in n.src), attrs)
    return [new[out] for out in outputs]


@pytest.mark.parametrize("seed", range(GRAPHS))
def test_random_graphs_of_halves_agree_with_the_evaluator(seed: int) -> None:
    r = np.random.default_rng(seed)
    g = Graph(lambda n: int(r.integers(0, n)))
    grow(g, 5 + seed % 12, SMOOTH if seed % 2 else STEPS)
    dtype = d.f16 if seed % 3 else d.bf16
    outputs = halved(outputs_of(g, 1 + seed % 3), dtype)
    memory = {uid: d.stored(a, dtype) if a.dtype == np.float32 else a
              for uid, a in g.memory.items()}
    want = evaluate(outputs, memory)
    for found in (native(outputs, memory), native(outputs, memory, fuse=False),
                  Compiled(outputs, split=True)(memory, threads=2)):
        for out, mine, theirs in zip(outputs, found, want):
            near = 4 * checking.tolerance(outputs, out.dtype)  # roundings add up
            problem = checking.difference(theirs, mine, near)
            assert not problem, f"{out.op.value}: {problem}"
