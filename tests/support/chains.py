"""Two products with steps between them, as attention is one, held against the evaluator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import strategies as st
from running import Memory, buffers, floats, interpreted

from tinyc.composites import linear, reductions
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node

Case = tuple[list[Node], Memory]


def turned(s: Node) -> Node:
    """The last two axes exchanged."""
    return b.permute(s, (*range(len(s.shape) - 2), -1, -2))


STEPS: dict[str, Callable[[Node], Node]] = {
    "tanh": b.tanh,
    "half": lambda s: b.mul(s, 0.5),
    "centred": lambda s: b.sub(s, b.max_(s, -1, True)),
    "softmax": reductions.softmax,
    "of columns": lambda s: reductions.softmax(s, -2),
    "share": lambda s: b.div(b.exp(b.tanh(s)), b.sum_(b.exp(b.tanh(s)), -1, True)),
    "turned": turned,
    "with its mirror": lambda s: b.add(s, turned(s)),
    "kept": b.materialize,
    "less its total": lambda s: b.sub(s, b.mul(b.sum_(s, (-1, -2), True), 0.01)),
}
some_steps = st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4)


def steps_between(steps: Sequence[str], batch: tuple[int, ...], gradient: bool) -> Case:
    """A product of [*batch, 8, 4] arrays, steps, a product with a third one; and its gradients."""
    (q, k, v, g), memory = buffers(*(floats(*batch, 8, 4, seed=i) for i in range(4)))
    scores = linear.matmul(q, turned(k))
    for name in steps:
        scores = STEPS[name](scores)
    outputs = [linear.matmul(scores, v)]
    return [*outputs, *(vjp(outputs, [g], [q, k, v]) if gradient else [])], memory


def check(case: Case, run: Callable[..., list[np.ndarray]] = interpreted) -> None:
    """Fail unless a case gives what the evaluator does, NaN and infinities at the same places."""
    outputs, memory = case
    with np.errstate(all="ignore"):
        for got, want in zip(run(outputs, memory), evaluate(outputs, memory)):
            for odd in (np.isnan, np.isposinf, np.isneginf):
                np.testing.assert_array_equal(odd(got), odd(want))
            finite = np.isfinite(want)
            np.testing.assert_allclose(got[finite], want[finite], 1e-4, 1e-4)
