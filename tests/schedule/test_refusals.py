"""Every value that crosses from one kernel to another says why, and what would change it."""

from __future__ import annotations

import numpy as np
import pytest
from running import buffers, floats, plan_of, unexplained
from training_steps import benchmarks, training_graph

from tinyc.composites import activation, linear, reductions
from tinyc.ir import build as b
from tinyc.ir.loop import MicroKernel, statements
from tinyc.ir.node import Node
from tinyc.schedule.refusals import RULES


@pytest.mark.parametrize("name", ["mlp", "lenet64"])
def test_every_edge_of_a_training_step_is_explained(name, tmp_path, monkeypatch):
    with benchmarks(tmp_path):
        plan = plan_of(list(training_graph(name, monkeypatch)))
    assert len(plan.nests) > 5
    assert unexplained(plan) == []


def remark(outputs: list[Node], rule: str):
    found = [r for r in plan_of(outputs).remarks if r.rule == rule]
    assert found, sorted({r.rule for r in plan_of(outputs).remarks})
    return found[0]


def test_a_second_layer_would_stream_its_weights_again():
    (x, v, w), _ = buffers(floats(64, 96), floats(96, 128), floats(128, 32))
    (batch, u), _ = buffers(floats(8, 64, 128), floats(128, 128))
    hidden = activation.relu(linear.matmul(batch, u))
    stored = b.materialize(reductions.softmax(hidden, -1))
    outputs = [linear.matmul(activation.relu(linear.matmul(x, v)), w), linear.matmul(stored, u)]
    found = remark(outputs, "contraction-blocks")
    size, n = 4 * 128 * 128, found.terms["iterations"]
    assert found.terms["bytes_each"] == size
    assert found.terms["bytes_again"] == size * (n - 1)
    assert f"{size} bytes again on each of {n} iterations" in found.remedy


def test_sums_of_chunks_have_a_limit_in_bytes():
    (x,), _ = buffers(floats(4, 400, 400))
    y = b.exp(x)
    found = remark([y, b.sum_(b.materialize(y), 0)], "accumulator-size")
    assert found.terms["bytes"] == 4 * 400 * 400
    assert "at most 262144 bytes" in found.remedy


def test_a_total_that_much_work_reads_runs_in_two_kernels():
    (x,), _ = buffers(floats(1 << 16))
    found = [r for r in plan_of([b.div(x, b.sum_(x))]).remarks if r.about == "reduce0"]
    assert [r.rule for r in found] == ["complete-after-loop", "kernel-end"]
    assert found[1].terms["work"] > found[1].terms["limit"]
    assert all(r.terms["bytes_through_memory"] == 4 for r in found)


def test_what_waits_for_a_later_kernel_names_it():
    (x, i), _ = buffers(floats(64, 8), np.arange(64) % 5)
    y = b.materialize(b.exp(x))
    late = b.scatter_add(y, i, 0, 64)
    found = remark([b.mul(late, y)], "later-kernel")
    assert found.about == "materialize0" and "scatter_add1" in found.message


def test_rules_are_told_in_the_same_words_everywhere():
    assert all(name == name.lower() and words[0].islower() for name, words in RULES.items())


def test_a_layer_for_one_row_does_not_read_its_weights_down_the_columns():
    (x, v, w), _ = buffers(floats(1, 96), floats(128, 96), floats(256, 128))
    outputs = [linear.linear(activation.relu(linear.linear(x, v)), w)]
    found = remark(outputs, "across-rows")
    assert found.terms.items() >= {"bytes": 4 * 256 * 128, "limit": 1 << 14}.items()
    assert len(plan_of(outputs).nests) == 2
    (x, v, w), _ = buffers(floats(1, 96), floats(128, 96), floats(128, 256))
    downwards = [linear.matmul(activation.relu(linear.linear(x, v)), w)]
    last = plan_of(downwards).kernels[-1]
    assert any(isinstance(s, MicroKernel) for s in statements(last.body)), "tiles read such rows"
