"""Cheap values are computed again in other kernels; dear ones, and what contractions read, stay."""

from __future__ import annotations

import numpy as np
from running import Memory, buffers, floats, interpreted, plan_of

from tinyc.composites import activation, linear, normalization
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node


def again(outputs: list[Node]) -> dict[str, str]:
    """What is computed again, by its name: in which stages."""
    return {r.subject: r.message for r in plan_of(outputs).remarks if r.pass_name == "recompute"}


def check(outputs: list[Node], memory: Memory) -> None:
    for got, want in zip(interpreted(outputs, memory), evaluate(outputs, memory)):
        np.testing.assert_allclose(got, want, 1e-4, 1e-5)


def total_apart(x: Node, y: Node) -> Node:
    """x scaled by a total of y, which is known only when another kernel has ended."""
    return b.mul(x, b.mul(b.sum_(b.exp(b.mul(y, y))), 1e-6))


def layer_both_ways() -> tuple[list[Node], Memory]:
    """Two linear layers with GELU between them, and their gradients."""
    (x, w, v, g), memory = buffers(
        floats(64, 32), floats(96, 32, seed=1), floats(32, 96, seed=2), floats(64, 32, seed=3))
    y = linear.linear(activation.gelu(linear.linear(x, w), "tanh"), v)
    return [y, *vjp([y], [g], [x, w, v])], memory


def test_gelu_keeps_its_argument_and_its_tanh():
    outputs, memory = layer_both_ways()
    assert len(again(outputs)) == 3  # x/2, x*x and 1 + tanh
    wide = [s.node.op.value for s in plan_of(outputs).stages
            if s.buf.storage.role == "arena" and s.buf.shape == (64, 96)]
    assert wide == ["contract", "tanh", "mul", "add"]  # the last two are what contractions read
    check(outputs, memory)


def test_layer_norm_keeps_statistics_and_not_what_they_centre():
    (x, g), memory = buffers(floats(64, 512), floats(64, 512, seed=1))
    kept = b.materialize(b.exp(x))
    y = normalization.layer_norm(kept, (512,))
    later = total_apart(g, y)
    outputs = [b.materialize(b.add(y, 1.0)), *vjp([y], [later], [x])]
    names = again(outputs)
    centred = [n for n in names if n.startswith("sub")]
    assert centred, names
    rows = [s for s in plan_of(outputs).stages
            if s.name in centred and s.buf.storage.role == "arena"]
    assert rows == []
    check(outputs, memory)


def test_a_dear_value_stays():
    (x,), memory = buffers(floats(300, 300))
    dear = b.exp(b.tanh(x))
    outputs = [b.sum_(dear), total_apart(dear, dear)]
    assert not any(name.startswith("exp") for name in again(outputs))
    check(outputs, memory)


def test_what_a_contraction_reads_stays():
    (x, w), memory = buffers(floats(64, 64), floats(64, 64, seed=1))
    hidden = linear.matmul(x, w)
    half = b.mul(hidden, 0.5)
    outputs = [hidden, linear.matmul(half, w), total_apart(half, half)]
    assert again(outputs) == {}
    check(outputs, memory)


def test_an_old_value_is_not_read_after_it_was_overwritten():
    (p, x), memory = buffers(floats(300, 300), floats(300, 300, seed=1))
    scaled = b.mul(p, 2.0)
    total = b.sum_(b.mul(scaled, x))
    outputs = [b.add(scaled, total), b.assign(p, b.add(p, x))]
    check(outputs, memory)


def test_parts_of_a_whole_stay_though_only_the_whole_is_read():
    outputs, memory = layer_both_ways()
    hidden = outputs[0]
    whole = b.cat([b.mul(hidden, 2.0), b.add(hidden, 1.0)], 0)
    outputs.append(linear.matmul(b.permute(whole, (1, 0)), whole))
    assert again(outputs)
    check(outputs, memory)
