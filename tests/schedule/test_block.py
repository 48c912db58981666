"""Rows of chained contractions run in blocks: rows complete, sums going on from block to block."""

from __future__ import annotations

import numpy as np
import pytest
from chains import Case, check, some_steps, steps_between
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import Memory, buffers, floats, plan_of, unexplained

from tinyc.composites import attention, linear, reductions
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.node import Node
from tinyc.schedule import block


@pytest.fixture
def tiny_cache(monkeypatch):
    """Blocks of four rows or more, as if nothing fitted the cache."""
    monkeypatch.setattr(block, "SHARE", 1 << 30)
    monkeypatch.setattr(block, "MIN_ROWS", 4)


def forward(t: int = 24, batch: tuple[int, ...] = (2, 3)) -> Case:
    (q, k, v), memory = buffers(*(floats(*batch, t, 8, seed=i) for i in range(3)))
    return [attention.attention(q, k, v, causal=True)], memory


def both_ways(t: int = 24, batch: tuple[int, ...] = (2, 3)) -> Case:
    (q, k, v, g), memory = buffers(*(floats(*batch, t, 8, seed=i) for i in range(4)))
    y = attention.attention(q, k, v, causal=True)
    return [y, *vjp([y], [g], [q, k, v])], memory


def blocks(outputs: list[Node]) -> list[int]:
    return [r.terms["rows"] for r in plan_of(outputs).remarks if r.pass_name == "block"]


@pytest.mark.parametrize("make", [forward, both_ways])
@pytest.mark.parametrize("batch", [(2, 3), (1, 2), (5,)])
def test_attention_runs_in_blocks_of_complete_rows(make, batch, tiny_cache):
    outputs, memory = make(batch=batch)
    assert blocks(outputs) == [4]
    plan = plan_of(outputs)
    assert len(plan.nests) == 1 and plan.arena_size == 0
    assert max(s.buf.storage.size for s in plan.stages if s.buf.storage.role == "scratch") == 4 * 24
    assert unexplained(plan) == []
    check((outputs, memory))


def test_a_head_that_fits_the_cache_is_one_block():
    scores, _, d, _ = product(3, 64)
    assert blocks([linear.matmul(scores, d)]) == []


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("t", [2048, 8192])
def test_a_long_sequence_needs_no_memory_for_its_scores(t, causal):
    (q, k, v, g), _ = buffers(*[np.zeros((2, 2, t, 64), np.float32)] * 4)
    y = attention.attention(q, k, v, causal=causal)
    for outputs in ([y], [y, *vjp([y], [g], [q, k, v])]):
        assert blocks(outputs) == [32]
        plan = plan_of(outputs)
        assert len(plan.nests) == 1 and plan.arena_size == 0


def test_rows_without_a_divisor_stay_whole(tiny_cache):
    outputs, memory = forward(23)
    assert blocks(outputs) == []
    check((outputs, memory))


def product(batch: int = 3, t: int = 24) -> tuple[Node, Node, Node, Memory]:
    (a, c, d), memory = buffers(
        floats(batch, t, 8), floats(batch, 8, t, seed=1), floats(batch, t, 8, seed=2))
    return b.exp(linear.matmul(a, c)), c, d, memory


def test_rows_that_are_read_as_columns_are_not_cut(tiny_cache):
    scores, _, d, memory = product()
    mixed = b.add(scores, b.permute(scores, (0, 2, 1)))
    outputs = [linear.matmul(mixed, d)]
    assert blocks(outputs) == []
    check((outputs, memory))


def test_a_total_of_all_rows_that_is_read_keeps_them_whole(tiny_cache):
    scores, _, d, memory = product()
    total = b.sum_(scores, (1, 2), True)
    outputs = [linear.matmul(b.div(scores, total), d)]
    assert blocks(outputs) == []
    check((outputs, memory))


def test_a_norm_over_columns_cuts_the_other_axis(tiny_cache):
    scores, _, d, memory = product()
    share = reductions.softmax(b.mul(scores, 0.01), 1)
    outputs = [linear.matmul(b.permute(share, (0, 2, 1)), d)]
    check((outputs, memory))


def test_what_reads_a_blocked_value_elsewhere_reads_the_same_elements(tiny_cache):
    (a, c, d, where), memory = buffers(
        floats(3, 24, 8), floats(3, 8, 24, seed=1), floats(3, 24, 8, seed=2), np.arange(3) % 2)
    share = reductions.softmax(linear.matmul(a, c))
    late = b.scatter_add(b.materialize(share), where, 0, 2)
    outputs = [linear.matmul(share, d), share, b.permute(share, (2, 0, 1)),
               b.add(b.reshape(share, (3, 12, 48)), b.sum_(late))]
    assert blocks(outputs) == [4]
    assert len(plan_of(outputs).nests) > 1
    check((outputs, memory))


@pytest.mark.parametrize("gradient", [False, True])
@given(some_steps, st.sampled_from([(), (3,), (2, 2)]))
@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_any_chain_between_two_products(tiny_cache, gradient, steps, batch):
    check(steps_between(steps, batch, gradient))
