"""Gradients of weights run when what they multiply is there; the order keeps to what waits."""

from __future__ import annotations

import numpy as np
from running import Memory, buffers, floats, interpreted, plan_of

from tinyc.composites import attention, linear
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node

LAYERS = 4


def deep_both_ways() -> tuple[list[Node], Memory]:
    """A chain of layers, and the gradients of all weights."""
    arrays = [floats(64, 96, seed=7), *(floats(96, 96, seed=k) for k in range(LAYERS))]
    (x, *weights), memory = buffers(*arrays, floats(64, 96, seed=9))
    g = weights.pop()
    y = x
    for w in weights:
        y = b.tanh(linear.linear(y, w))
    return vjp([y], [g], weights), memory


def test_the_last_layer_is_done_with_before_the_gradient_of_the_first_begins():
    outputs, memory = deep_both_ways()
    stages = plan_of(outputs).stages
    where = {s.buf.storage.name: i for i, s in enumerate(stages) if s.kind == "contract"}
    gradients = [where[f"out{k}"] for k in range(LAYERS)]
    assert gradients == sorted(gradients, reverse=True)
    after = [i for i, s in enumerate(stages) if s.kind == "contract" and i > gradients[-1]]
    # Of each layer below, the gradient of what it read and that of its weight; the first layer
    # has the second alone.
    assert len(after) == 2 * (LAYERS - 1) - 1
    for got, want in zip(interpreted(outputs, memory), evaluate(outputs, memory)):
        np.testing.assert_allclose(got, want, 1e-4, 1e-5)


def test_activations_go_one_by_one():
    outputs, _ = deep_both_ways()
    activation = 64 * 96 * 4
    # Of each layer what it read, and the gradient that is on its way.
    assert plan_of(outputs).arena_size <= (LAYERS + 1) * activation


def test_every_stage_comes_after_what_it_waits_for():
    (p, x), memory = buffers(floats(80, 80), floats(80, 80, seed=1))
    doubled = b.mul(linear.linear(x, p), 2.0)
    outputs = [linear.linear(doubled, x), b.assign(p, linear.linear(doubled, p)), b.sum_(p)]
    placed: set = set()
    for stage in plan_of(outputs).stages:
        assert placed.issuperset({*stage.producers, *stage.after})
        placed.add(stage)
    for got, want in zip(interpreted(outputs, memory), evaluate(outputs, memory)):
        np.testing.assert_allclose(got, want, 1e-4, 1e-4)


def test_a_product_of_arguments_waits_for_its_first_reader():
    arrays = [floats(2, 2, 64, 16, seed=k) for k in range(4)]
    (q, k, v, g), memory = buffers(*arrays)
    y = attention.attention(q, k, v)
    outputs = vjp([y], [g], [q, k, v])  # `y` itself is not asked for
    plan = plan_of(outputs)
    assert len(plan.nests) == 1 and plan.arena_size == 0
    for got, want in zip(interpreted(outputs, memory), evaluate(outputs, memory)):
        np.testing.assert_allclose(got, want, 1e-4, 1e-5)
