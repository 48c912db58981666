"""What stands in a padded copy anyhow is read from there, and needs no array of its own."""

from __future__ import annotations

import numpy as np
from running import SPLITTING, Memory, buffers, floats, interpreted, plan_of

from tinyc.composites import activation, convolution
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node

SHAPE = (4, 8, 10, 10)


def block_both_ways(padding: int = 1) -> tuple[list[Node], Memory]:
    """Two convolutions, relu, a residual connection when a sum is complete, and the gradients."""
    (x, v, w, g), memory = buffers(
        floats(*SHAPE), floats(8, 8, 3, 3, seed=1), floats(8, 8, 3, 3, seed=2),
        floats(*SHAPE, seed=3))
    y = activation.relu(convolution.conv(x, v, padding=1))
    z = convolution.conv(y, w, padding=padding)
    z = b.mul(z, b.mul(b.sum_(b.mul(z, z)), 1e-6))
    if padding == 0:
        z = b.pad(z, (0, 0, 1, 1), (0, 0, 1, 1))
    out = activation.relu(b.add(z, y))
    return [out, *vjp([out], [g], [v, w])], memory


def redirected(outputs: list[Node]) -> list[str]:
    plan = plan_of(outputs, target=SPLITTING)
    return [r.message for r in plan.remarks if "padded copy" in r.message]


def check(outputs: list[Node], memory: Memory) -> None:
    for got, want in zip(interpreted(outputs, memory), evaluate(outputs, memory)):
        np.testing.assert_allclose(got, want, 1e-3, 1e-4)


def test_a_residual_connection_and_a_mask_read_the_padded_copy():
    outputs, memory = block_both_ways()
    (message,) = redirected(outputs)
    assert message.count("where") == 2  # the sum after the second convolution, relu's gradient
    plan = plan_of(outputs, target=SPLITTING)
    pad = next(s for s in plan.stages if message.endswith(f"padded copy {s.name}"))
    assert pad.buf.storage.role == "arena"
    assert pad.reads[0].buf.storage.role in ("scratch", "register")
    check(outputs, memory)


def test_a_contraction_keeps_rows_without_margins():
    outputs, memory = block_both_ways(padding=0)
    assert redirected(outputs) == []
    check(outputs, memory)
