"""Loops over columns end where a comparison with the row makes what follows zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import Memory, buffers, floats, interpreted, native, plan_of, program_of

from tinyc.composites import attention, linear, reductions
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.dtype import i64, u32
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node
from tinyc.schedule import block

Case = tuple[list[Node], Memory]
FAR = 1e30


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of four rows, so that small cases have several."""
    monkeypatch.setattr(block, "MIN_ROWS", 4)
    monkeypatch.setattr(block, "EDGE_ROWS", 4)


def operands(t: int = 12, s: int = 0, batch: tuple[int, ...] = (2,)) -> list[np.ndarray]:
    lengths = (t, s or t, s or t, t)
    return [floats(*batch, n, 8, seed=i) for i, n in enumerate(lengths)]


def attend(arrays: list[np.ndarray], gradient: bool = True, **options) -> Case:
    (q, k, v, g), memory = buffers(*arrays)
    y = attention.attention(q, k, v, **{"causal": True, **options})
    return [y, *(vjp([y], [g], [q, k, v]) if gradient else [])], memory


def limits(outputs: list[Node]) -> int:
    """How many loops and products end early."""
    return sum(len(s.limits) for s in plan_of(outputs).stages)


def check(case: Case, run: Callable = interpreted) -> None:
    outputs, memory = case
    with np.errstate(all="ignore"):
        for got, want in zip(run(outputs, memory), evaluate(outputs, memory)):
            assert_alike(got, want)


def assert_alike(got: np.ndarray, want: np.ndarray) -> None:
    """Equal within rounding, and NaN and infinities at the same places."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.isinf(got) * np.sign(got), np.isinf(want) * np.sign(want))
    finite = np.isfinite(want)
    np.testing.assert_allclose(got[finite], want[finite], 1e-4, 1e-4)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("batch", [(2, 2), (3,), (1, 2)])
def test_causal_attention_ends_at_the_diagonal(gradient, batch):
    case = attend(operands(batch=batch), gradient)
    assert limits(case[0]) > 0
    check(case)
    check(case, native)


def test_half_of_the_arithmetic_is_left_out():
    zeros = [np.zeros((2, 2, 1024, 64), np.float32)] * 4
    for gradient in (False, True):
        causal, full = (
            program_of(attend(zeros, gradient, causal=c)[0]) for c in (True, False)
        )
        assert [len(p.kernels) for p in (causal, full)] == [1, 1]
        assert causal.arena_size == 0
        share = causal.kernels[0].flops / full.kernels[0].flops
        assert 0.48 < share < 0.54  # the rest of the diagonal's blocks, and the measuring
        assert causal.kernels[0].bytes_moved == full.kernels[0].bytes_moved


def test_arithmetic_is_counted_as_it_is_done():
    t, rows, d = 64, 4, 8
    (q, k, v), _ = buffers(*(np.zeros((2, t, d), np.float32) for _ in range(3)))
    linear_attention = linear.matmul(masked(linear.matmul(q, b.permute(k, (0, 2, 1))), 0.0), v)
    kernel, = program_of([linear_attention]).kernels
    seen = sum(range(rows, t + 1, rows)) * rows  # pairs of a row and a column that run
    products = 2 * 2 * d * seen * 2
    rest = kernel.flops - products
    assert 0 < rest < 0.6 * products  # lanes beyond the limit, masks, sums of squares


def masked(scores: Node, value: float, last: int = 0) -> Node:
    rows, columns = scores.shape[-2:]
    r = b.expand_axes(b.iota(rows, i64), scores.shape, (len(scores.shape) - 2,))
    c = b.expand_axes(b.iota(columns, i64), scores.shape, (len(scores.shape) - 1,))
    return b.where(b.lt(b.sub(c, r), last + 1), scores, value)


ODD = [np.nan, -np.inf, FAR]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("place", [(0, 0, 3), (1, 6, 0), (1, 11, 7)])
def test_odd_numbers_come_out_where_the_evaluator_has_them(odd, which, place):
    arrays = operands()
    arrays[which][place] = odd
    case = attend(arrays)
    assert limits(case[0]) > 0
    check(case)


def test_odd_numbers_in_compiled_code():
    for which in range(4):
        arrays = operands()
        arrays[which][1, 9, 2] = np.inf
        check(attend(arrays), native)


def test_finite_operands_whose_products_overflow():
    arrays = [a * np.float32(1e25) for a in operands()]
    check(attend(arrays))


@pytest.mark.parametrize("lengths", [(16, 32), (32, 16), (8, 12), (16, 18), (13, 13), (7, 16)])
def test_lengths_that_differ_or_do_not_divide(lengths):
    for gradient in (False, True):
        check(attend(operands(*lengths), gradient))


def test_more_keys_than_rows_are_left_out_too():
    assert limits(attend(operands(16, 32))[0]) > 0


def test_rows_that_see_all_keys_are_not_cut():
    assert limits(attend(operands(32, 16))[0]) == 0


def test_other_masks_are_computed_as_they_are():
    q, k, v, _ = operands()
    added = floats(12, 12, seed=7)
    chosen = floats(2, 12, 12, seed=8) > 0
    (a, c), extra = buffers(added, chosen)
    for mask in (a, c):
        (q_, k_, v_), memory = buffers_after(extra, q, k, v)
        y = attention.attention(q_, k_, v_, mask)
        assert limits([y]) == 0
        check(([y], {**memory, **extra}))


def buffers_after(extra: Memory, *arrays: np.ndarray) -> tuple[list[Node], Memory]:
    """Buffers with uids that are not those of `extra`."""
    padding = [np.zeros(1, np.float32)] * len(extra)
    nodes, memory = buffers(*padding, *arrays)
    return nodes[len(extra):], {uid: a for uid, a in memory.items() if uid > len(extra)}


def test_dropout_of_the_shares():
    arrays = operands()
    (q, k, v, g), memory = buffers(*arrays)

    def draw(shape: tuple[int, ...]) -> Node:
        return b.cast(b.mul(b.reshape(b.iota(int(np.prod(shape)), i64), shape), 2654435761), u32)

    y = attention.attention(q, k, v, causal=True, dropout_p=0.5, draw=draw)
    outputs = [y, *vjp([y], [g], [q, k, v])]
    assert limits(outputs) > 0
    check((outputs, memory))


def test_shares_that_are_returned_are_whole():
    (q, k, v), memory = buffers(*operands()[:3])
    share = attention.shares(q, k, causal=True)
    check(([share, linear.matmul(share, v)], memory))


WRITTEN = {
    "softmax": lambda s: reductions.softmax(masked(s, -np.inf)),
    "softmax, one more column": lambda s: reductions.softmax(masked(s, -np.inf, 1)),
    "softmax, three columns less": lambda s: reductions.softmax(masked(s, -np.inf, -3)),
    "linear": lambda s: masked(s, 0.0),
    "exp without a shift": lambda s: b.exp(masked(s, -np.inf)),
    "finite mask": lambda s: reductions.softmax(masked(s, -1e4)),
    "mask of ones": lambda s: masked(s, 1.0),
    "half of it": lambda s: b.mul(reductions.softmax(masked(s, -np.inf)), 0.5),
    "added after": lambda s: b.add(reductions.softmax(masked(s, -np.inf)), 1.0),
    "squares": lambda s: b.mul(masked(s, 0.0), masked(s, 0.0)),
    "tanh": lambda s: b.tanh(masked(s, 0.0)),
    "log": lambda s: b.log(masked(s, 0.0)),
    "divided": lambda s: b.div(masked(s, 0.0), b.add(b.sum_(b.mul(s, s), -1, True), 1.0)),
}
LEFT_OUT = {"softmax", "linear", "exp without a shift", "half of it",
            "squares", "tanh"}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_by_hand(name):
    for odd in (None, np.nan, np.inf):
        arrays = operands()
        if odd is not None:
            arrays[2][1, 10, 5] = odd
        (q, k, v, g), memory = buffers(*arrays)
        scores = linear.matmul(q, b.permute(k, (0, 2, 1)))
        y = linear.matmul(WRITTEN[name](scores), v)
        assert (limits([y]) > 0) == (name in LEFT_OUT)
        check(([y], memory))
        check(([y, *vjp([y], [g], [q, k, v])], memory))


@given(st.lists(st.sampled_from(sorted(WRITTEN)), min_size=1, max_size=3),
       st.booleans(), st.sampled_from([None, (0, np.nan), (1, np.inf), (2, np.nan), (3, -np.inf)]),
       st.sampled_from([(8, 8), (8, 12), (12, 8)]))  # fmt: skip
@settings(max_examples=20, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_any_chain_with_edges(steps, gradient, odd, lengths):
    arrays = operands(*lengths, batch=(2,))
    if odd is not None:
        arrays[odd[0]][1, 5, 3] = odd[1]
    (q, k, v, g), memory = buffers(*arrays)
    scores = linear.matmul(q, b.permute(k, (0, 2, 1)))
    for name in steps:
        scores = WRITTEN[name](scores)
    y = linear.matmul(scores, v)
    check(([y, *(vjp([y], [g], [q, k, v]) if gradient else [])], memory))


def in_two_kernels(arrays: list[np.ndarray], **options) -> Case:
    """Attention whose gradient waits for all of its result, so that the shares cross kernels."""
    (q, k, v, g), memory = buffers(*arrays)
    y = attention.attention(q, k, v, **{"causal": True, **options})
    g = b.mul(g, b.sum_(b.boundary(y)))
    return [y, *vjp([y], [g], [q, k, v])], memory


def test_shares_that_cross_kernels_are_left_out_in_both():
    outputs, memory = in_two_kernels(operands())
    plan = plan_of(outputs)
    homes = {nest.number for nest in plan.nests for s in nest.stages() if s.limits}
    assert len(homes) == 2
    check((outputs, memory))
    check((outputs, memory), native)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("which", range(4))
def test_odd_numbers_across_kernels(odd, which):
    arrays = operands()
    arrays[which][1, 5, 3] = odd
    check(in_two_kernels(arrays))
