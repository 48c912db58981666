"""What becomes one kernel, who its members are, and why a stage was refused elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from running import Memory, buffers, floats, interpreted, plan_of, program_of, unexplained

from tinyc.composites import activation, convolution, linear, losses, normalization, reductions
from tinyc.ir import build as b
from tinyc.ir import dtype as d
from tinyc.ir.autograd import vjp
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node

Case = tuple[list[Node], Memory]


def chain() -> Case:
    (x, y), memory = buffers(floats(64, 50), floats(50))
    return [activation.relu(b.mul(b.add(b.exp(x), y), b.tanh(x)))], memory


def softmax() -> Case:
    (x,), memory = buffers(floats(64, 50))
    return [reductions.softmax(x)], memory


def mean_and_variance() -> Case:
    (x,), memory = buffers(floats(64, 50))
    return list(reductions.var_mean(x, -1)), memory


def layer_norm() -> Case:
    (x, w, c), memory = buffers(floats(64, 50), floats(50), floats(50))
    return [normalization.layer_norm(x, (50,), w, c)], memory


def layer_norm_both_ways() -> Case:
    (x, w, c, g), memory = buffers(floats(64, 50), floats(50), floats(50), floats(64, 50, seed=1))
    y = normalization.layer_norm(x, (50,), w, c)
    return [y, *vjp([y], [g], [x, w, c])], memory


def linear_bias_relu() -> Case:
    (x, w, c), memory = buffers(floats(37, 70), floats(45, 70, seed=1), floats(45))
    return [activation.relu(linear.linear(x, w, c))], memory


def conv_bias_relu() -> Case:
    (x, w, c), memory = buffers(floats(4, 3, 8, 9), floats(8, 3, 3, 3, seed=1), floats(8))
    return [activation.relu(convolution.conv(x, w, c, padding=1))], memory


def cross_entropy_both_ways() -> Case:
    (x, t), memory = buffers(floats(32, 10), np.arange(32) % 10)
    loss = losses.cross_entropy(x, t)
    return [loss, *vjp([loss], [b.const(1.0, d.f32)], [x])], memory


def adam() -> Case:
    arrays = [floats(5000, seed=i) for i in range(4)]
    (p, g, m, v, step), memory = buffers(*arrays[:3], arrays[3] ** 2, np.float32(3))
    m1 = b.add(b.mul(m, 0.9), b.mul(g, 0.1))
    v1 = b.add(b.mul(v, 0.99), b.mul(b.mul(g, g), 0.01))
    change = b.div(m1, b.add(b.sqrt(v1), 1e-8))
    new = b.sub(p, b.mul(change, b.div(0.1, step)))
    return [b.assign(p, new), b.assign(m, m1), b.assign(v, v1)], memory


def sum_and_max() -> Case:
    (x,), memory = buffers(floats(64, 50))
    return [b.sum_(x, 1), b.max_(x, 1)], memory


KERNELS: dict[Callable[[], Case], int] = {
    chain: 1, softmax: 1, mean_and_variance: 1, layer_norm: 1, layer_norm_both_ways: 2,
    linear_bias_relu: 1, conv_bias_relu: 1, cross_entropy_both_ways: 3, adam: 1, sum_and_max: 1,
}
cases = pytest.mark.parametrize("case", KERNELS, ids=lambda c: c.__name__)


@cases
def test_number_of_kernels(case: Callable[[], Case]) -> None:
    outputs, _ = case()
    assert len(plan_of(outputs).nests) <= KERNELS[case]


@cases
def test_one_operation_a_kernel_without_fusion(case: Callable[[], Case]) -> None:
    outputs, _ = case()
    plan = plan_of(outputs, fuse=False)
    assert all(len(nest.stages()) == 1 for nest in plan.nests)
    assert len(plan.nests) > KERNELS[case]


@cases
def test_fusion_moves_less_and_computes_hardly_more(case: Callable[[], Case]) -> None:
    outputs, _ = case()
    fused, unfused = program_of(outputs), program_of(outputs, fuse=False)
    assert fused.bytes_moved < 0.6 * unfused.bytes_moved
    assert fused.flops <= 1.15 * unfused.flops


@cases
def test_fused_kernels_compute_the_same(case: Callable[[], Case]) -> None:
    outputs, memory = case()
    for got, want in zip(interpreted(outputs, memory), evaluate(outputs, memory)):
        np.testing.assert_allclose(got, want, 1e-4, 1e-5)


@cases
@pytest.mark.parametrize("fuse", [True, False])
def test_every_value_that_crosses_kernels_says_why(case: Callable[[], Case], fuse: bool) -> None:
    assert unexplained(plan_of(case()[0], fuse)) == []


def members(outputs: list[Node]) -> list[list[str]]:
    return [[s.node.op.value for s in nest.stages()] for nest in plan_of(outputs).nests]


def missed(outputs: list[Node]) -> list[str]:
    return [r.message for r in plan_of(outputs).remarks if r.kind == "missed"]


def test_softmax_keeps_its_stages_in_one_loop_over_rows() -> None:
    outputs, _ = softmax()
    assert members(outputs) == [["reduce", "exp", "reduce", "div"]]
    plan = plan_of(outputs)
    roles = {s.name: s.buf.storage.role for s in plan.stages}
    assert roles["reduce0"] == "register" and roles["exp1"] == "scratch"
    assert plan.arena_size == 0
    assert "reduce0 is complete only after loop" in missed(outputs)[0]


def test_bias_and_activation_run_on_the_register_tile() -> None:
    for case in (linear_bias_relu, conv_bias_relu):
        nest = plan_of(case()[0], until="arrays").nests[-1]
        (leaf,) = [t for t in leaves(nest) if t.stage.kind == "contract"]
        assert [s.node.op.value for s in leaf.epilogue] == ["where"]
        assert leaf.stage.buf.storage.role == "register"


def test_a_product_and_its_transpose_do_not_meet_on_one_tile() -> None:
    (a, c), memory = buffers(floats(24, 8), floats(8, 24, seed=1))
    scores = linear.matmul(a, c)
    outputs = [b.add(scores, b.permute(scores, (1, 0)))]
    assert any(r.rule == "tile-index" for r in plan_of(outputs).remarks)
    for got, want in zip(interpreted(outputs, memory), evaluate(outputs, memory)):
        np.testing.assert_allclose(got, want, 1e-4, 1e-5)


def leaves(nest) -> list:
    found, stack = [], list(nest.body)
    while stack:
        tree = stack.pop()
        if hasattr(tree, "stage"):
            found.append(tree)
        else:
            stack.extend(tree.body)
    return found


def test_an_arena_of_parameters_is_updated_in_place() -> None:
    plan = plan_of(adam()[0])
    assert plan.arena_size == 0
    assert {s.buf.storage.role for s in plan.stages} == {"slot"}


def test_a_value_needed_at_other_iterations_is_complete_first() -> None:
    (x,), _ = buffers(floats(400, 400))
    y = b.materialize(b.exp(x))
    outputs = [b.add(y, b.permute(y, (1, 0)))]
    assert members(outputs) == [["materialize"], ["add"]]
    assert any("not at the iteration that makes it" in m for m in missed(outputs))


def test_a_scatter_needs_its_whole_target() -> None:
    (x, i), _ = buffers(floats(64, 8), np.arange(64) % 5)
    outputs = [b.scatter_add(b.materialize(b.exp(x)), i, 0, 5)]
    assert len(members(outputs)) == 2
    assert any("adds at an index that depends on data" in m for m in missed(outputs))


def test_what_reads_a_total_runs_at_the_end_or_in_another_kernel() -> None:
    (x,), _ = buffers(floats(8))
    assert members([b.div(x, b.sum_(x))]) == [["reduce", "div"]]
    (x,), _ = buffers(floats(1 << 16))
    outputs = [b.div(x, b.sum_(x))]
    assert members(outputs) == [["reduce"], ["div"]]
    assert any("complete only after loop" in m for m in missed(outputs))


def test_an_update_waits_for_readers_of_the_old_value() -> None:
    (p, g), memory = buffers(floats(40_000), floats(40_000, seed=1))
    turned = b.mul(b.slice_(p, (39_999,), (40_000,), (-1,)), 2.0)
    outputs = [turned, b.assign(p, b.add(p, g))]
    assert members(outputs) == [["mul"], ["add"]]
    assert any("still reads at other indices" in m for m in missed(outputs))
    for got, want in zip(interpreted(outputs, memory), evaluate(outputs, memory)):
        np.testing.assert_allclose(got, want, 1e-5)


def test_an_update_joins_readers_of_the_same_element() -> None:
    (p, g), memory = buffers(floats(30, 30), floats(30, 30, seed=1))
    mirrored = b.mul(b.permute(p, (1, 0)), 2.0)
    outputs = [mirrored, b.assign(p, b.add(p, g))]
    assert members(outputs) == [["mul", "add"]]
    for got, want in zip(interpreted(outputs, memory), evaluate(outputs, memory)):
        np.testing.assert_allclose(got, want, 1e-5)


def test_a_stage_is_short_as_text_whatever_lies_behind_it() -> None:
    """A KeyError of one is printed by repr, which doubled where two stages read one."""
    (x,), _ = buffers(floats(64, 50))
    y = x
    for _ in range(12):
        y = b.mul(b.materialize(b.exp(y)), b.materialize(b.tanh(y)))
    assert len(repr(plan_of([y]).stages[-1])) < 10_000


def test_buffers_may_swap_their_values() -> None:
    (p, q), memory = buffers(floats(30), floats(30, seed=1))
    outputs = [b.assign(p, q), b.assign(q, p)]
    first, second = interpreted(outputs, memory)
    np.testing.assert_array_equal(first, memory[2])
    np.testing.assert_array_equal(second, memory[1])
