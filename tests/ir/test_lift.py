"""Contractions are found where they are, and only there, and keep the values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyc.ir import build as b
from tinyc.ir import lift as rules
from tinyc.ir.autograd import vjp
from tinyc.ir.dtype import f64, i64
from tinyc.ir.evaluate import evaluate
from tinyc.ir.lift import lift
from tinyc.ir.node import Node, toposort
from tinyc.ir.ops import Op
from tinyc.ir.rewrite import Firing
from tinyc.ir.verify import verify


def buffer(uid, shape, dtype=f64):
    return b.buffer(uid, 0, shape, dtype, "cpu")


A, B = buffer(0, (4, 5)), buffer(1, (5, 6))
R, C = buffer(2, (3, 4, 5)), buffer(3, (3, 5, 6))


def check(*outputs: Node) -> tuple[tuple[Node, ...], list[str]]:
    """The lifted outputs, verified and of equal value, and the names of the rules that fired."""
    firings: list[Firing] = []
    after = lift(outputs, firings)
    verify(after)
    rng = np.random.default_rng(0)
    memory = {}
    for n in toposort(outputs):
        if n.op is Op.BUFFER:
            values = rng.normal(size=n.shape) if n.dtype.is_float else rng.integers(0, 9, n.shape)
            memory[n.attrs[0]] = values.astype(n.dtype.np)
    for before_value, after_value in zip(evaluate(outputs, memory), evaluate(after, memory)):
        np.testing.assert_allclose(after_value, before_value, rtol=1e-12, atol=1e-12)
    return after, [firing.rule for firing in firings]


def ops(outputs) -> list[Op]:
    return [n.op for n in toposort(outputs)]


def spread(x, shape, axes):
    return b.expand_axes(x, shape, axes)


def product(a, c):
    """sum over k of a[i,k] * c[k,j], written with broadcasting."""
    shape = (a.shape[0], a.shape[1], c.shape[1])
    return b.sum_(b.mul(spread(a, shape, (0, 1)), spread(c, shape, (1, 2))), 1)


MATMUL = b.contract(A, B, (0, 1), (1, 2), (0, 2))


def test_a_broadcast_product_that_is_summed_is_a_contraction():
    after, names = check(product(A, B))
    assert after == (MATMUL,)
    assert names == ["sum_of_product"]


def test_reshapes_and_permutes_of_the_operands_are_seen_through():
    left = b.expand(b.reshape(A, (4, 5, 1)), (4, 5, 6))
    right = b.expand(b.reshape(b.permute(buffer(9, (6, 5)), (1, 0)), (1, 5, 6)), (4, 5, 6))
    after, _ = check(b.sum_(b.mul(left, right), 1))
    assert ops(after) == [Op.BUFFER, Op.BUFFER, Op.CONTRACT]


def test_kept_axes_of_size_one_come_back():
    left = b.expand(b.reshape(A, (1, 4, 5, 1)), (1, 4, 5, 6))
    right = b.expand(b.reshape(B, (1, 1, 5, 6)), (1, 4, 5, 6))
    after, _ = check(b.sum_(b.mul(left, right), 2))
    assert after[0].shape == (1, 4, 6)
    assert Op.CONTRACT in ops(after)


def test_batch_axes_are_kept():
    shape = (3, 4, 5, 6)
    left, right = spread(R, shape, (0, 1, 2)), spread(C, shape, (0, 2, 3))
    after, _ = check(b.sum_(b.mul(left, right), 2))
    assert after == (b.contract(R, C, (0, 1, 2), (0, 2, 3), (0, 1, 3)),)


NEAR = {
    "a dot product of rows": b.sum_(b.mul(A, buffer(9, (4, 5))), 1),
    "a matrix with a vector": b.sum_(b.mul(A, b.expand(buffer(9, (5,)), (4, 5))), 1),
    "an axis of one operand is summed": b.sum_(
        b.mul(spread(A, (4, 5, 6), (0, 1)), spread(B, (4, 5, 6), (1, 2))), (0, 1)
    ),
    "a maximum": b.max_(b.mul(spread(A, (4, 5, 6), (0, 1)), spread(B, (4, 5, 6), (1, 2))), 1),
    "integers": product(buffer(9, (4, 5), i64), buffer(10, (5, 6), i64)),
    "a sum of sums": b.sum_(b.add(spread(A, (4, 5, 6), (0, 1)), spread(B, (4, 5, 6), (1, 2))), 1),
}


@pytest.mark.parametrize("name", NEAR)
def test_what_is_no_contraction_stays(name):
    after, _ = check(NEAR[name])
    assert Op.CONTRACT not in ops(after)


def test_permutes_vanish_into_labels():
    after, names = check(b.permute(MATMUL, (1, 0)))
    assert names == ["permute_of_contract"]
    assert after == (b.contract(A, B, (0, 1), (1, 2), (2, 0)),)
    after, names = check(b.contract(b.permute(A, (1, 0)), B, (0, 1), (0, 2), (1, 2)))
    assert names == ["contract_of_permute"]
    assert after == (MATMUL,)


def test_a_contraction_of_two_users_is_not_computed_twice():
    outputs = (MATMUL, b.permute(MATMUL, (1, 0)))
    assert check(*outputs)[0] == outputs
    outputs = (MATMUL, b.slice_(MATMUL, (0, 0), (2, 2)))
    assert check(*outputs)[0] == outputs


def test_repeated_batch_axes_are_dropped():
    wide = b.expand(B, (3, 5, 6))
    after, names = check(b.contract(R, wide, (0, 1, 2), (0, 2, 3), (0, 1, 3)))
    assert names == ["contract_of_expand"]
    assert after == (b.contract(R, B, (0, 1, 2), (2, 3), (0, 1, 3)),)
    kept = b.contract(R, b.expand(buffer(9, (3, 1, 6)), (3, 5, 6)), (0, 1, 2), (0, 2, 3), (0, 1, 3))
    assert check(kept)[0] == (kept,)


def test_both_operands_repeated_over_a_batch_axis():
    wide_a, wide_b = b.expand(A, (3, 4, 5)), b.expand(B, (3, 5, 6))
    check(b.contract(wide_a, wide_b, (0, 1, 2), (0, 2, 3), (0, 1, 3)))


def test_sums_over_batch_axes_are_contracted():
    batched = b.contract(R, C, (0, 1, 2), (0, 2, 3), (0, 1, 3))
    after, names = check(b.sum_(batched, 0))
    assert names == ["sum_of_contract"]
    assert after == (b.contract(R, C, (0, 1, 2), (0, 2, 3), (1, 3)),)
    left = b.sum_(batched, 1)
    assert check(left)[0] == (left,)
    largest = b.max_(batched, 0)
    assert check(largest)[0] == (largest,)


def test_slices_go_to_the_operands():
    after, names = check(b.slice_(MATMUL, (3, 1), (2, 5), (-2, 1)))
    assert "slice_of_contract" in names
    assert after[0].op is Op.CONTRACT


# Convolutions: labels n=0 c=1 i=2 j=3 k=4 l=5 o=6.


def conv(x, w, stride=(1, 1), dilation=(1, 1), padding=(0, 0)):
    x = b.pad(x, (0, 0, *padding), (0, 0, *padding))
    view = b.window(x, 2, w.shape[2], stride[0], dilation[0])
    view = b.window(view, 3, w.shape[3], stride[1], dilation[1])
    return b.contract(view, w, (0, 1, 2, 3, 4, 5), (6, 1, 4, 5), (0, 6, 2, 3))


def input_gradient(shape, kernel, **options):
    x, w = buffer(0, (2, 3, *shape)), buffer(1, (4, 3, *kernel))
    y = conv(x, w, **options)
    (grad,) = vjp([y], [buffer(2, y.shape)], [x])
    return grad


def test_the_input_gradient_of_a_convolution_is_one_contraction():
    grad = input_gradient((6, 5), (3, 3), padding=(1, 1))
    after, names = check(grad)
    assert names.count("fold_of_contract") == 2
    kinds = ops(after)
    assert kinds.count(Op.CONTRACT) == 1
    assert not {Op.FOLD, Op.PERMUTE, Op.RESHAPE} & set(kinds)
    (contract,) = [n for n in toposort(after) if n.op is Op.CONTRACT]
    assert contract.shape == (2, 3, 6, 5)  # the padding of x is not computed


# (stride, kernel): contractions of gradients whose remainders have unequal numbers of taps.
REMAINDERS = {((2, 2), (3, 3)): 4, ((3, 2), (3, 3)): 6, ((1, 2), (3, 3)): 2,
              ((1, 2), (1, 3)): 2, ((2, 2), (1, 3)): 2, ((3, 2), (1, 3)): 2}


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2), (3, 2), (4, 4)])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 2), (1, 1), (1, 3), (5, 4)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
def test_input_gradients_of_strided_convolutions(stride, kernel, padding):
    after, _ = check(input_gradient((9, 8), kernel, stride=stride, padding=padding))
    kinds = ops(after)
    assert kinds.count(Op.CONTRACT) == REMAINDERS.get((stride, kernel), 1)
    assert Op.FOLD not in kinds


def test_the_taps_of_each_remainder_of_a_strided_gradient_are_multiplied_once():
    """2 + 1 taps along each axis, as there are, and no zeros beside the one."""
    after, names = check(input_gradient((8, 8), (3, 3), stride=(2, 2), padding=(1, 1)))
    assert names.count("folds_of_contract") == 1
    taps = []
    for n in toposort(after):
        if n.op is Op.CONTRACT:
            la, _, lo = n.attrs
            summed = [size for label, size in zip(la, n.src[0].shape) if label not in lo]
            taps.append(math.prod(summed) // 4)
    assert sorted(taps) == [1, 2, 2, 4]


def test_a_strided_gradient_multiplies_no_inserted_zeros():
    after, _ = check(input_gradient((8, 8), (2, 2), stride=(2, 2)))
    assert Op.PAD not in ops(after)


def test_dilated_gradients():
    after, _ = check(input_gradient((9, 8), (3, 2), dilation=(2, 3)))
    assert Op.FOLD not in ops(after)
    after, names = check(input_gradient((9, 8), (3, 2), dilation=(2, 3), stride=(2, 1)))
    assert Op.FOLD in ops(after)
    assert "fold_of_contract" in names


def test_grouped_and_depthwise_gradients():
    x, w = buffer(0, (2, 3, 4, 9)), buffer(1, (3, 5, 4, 3))  # n g c i, g o c k
    view = b.window(x, 3, 3, 2)
    y = b.contract(view, w, (0, 1, 2, 3, 4), (1, 5, 2, 4), (0, 1, 5, 3))
    (grad,) = vjp([y], [buffer(2, y.shape)], [x])
    after, _ = check(grad)
    assert Op.FOLD not in ops(after)


def test_the_weight_gradient_is_a_contraction_as_it_is():
    x, w = buffer(0, (2, 3, 6, 5)), buffer(1, (4, 3, 3, 3))
    y = conv(x, w)
    (grad,) = vjp([y], [buffer(2, y.shape)], [w])
    assert grad.op is Op.CONTRACT
    check(grad)


FOLD_NEAR = {
    "no contraction": b.fold(buffer(0, (4, 3)), 0, 6),
    "place and tap in one operand": b.fold(
        b.contract(buffer(0, (4, 3, 5)), buffer(1, (5, 2)), (0, 1, 2), (2, 3), (0, 3, 1)), 0, 6
    ),
    "the place is a batch axis": b.fold(
        b.contract(buffer(0, (4, 5)), buffer(1, (4, 5, 3)), (0, 1), (0, 1, 2), (0, 2)), 0, 6
    ),
}


@pytest.mark.parametrize("name", FOLD_NEAR)
def test_folds_that_stay(name):
    after, names = check(FOLD_NEAR[name])
    assert "fold_of_contract" not in names
    assert Op.FOLD in ops(after)


def test_every_rule_says_what_it_does():
    assert all("->" in entry.doc for entry in rules.RULES)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_folds_of_contractions_keep_their_values(draw):
    integers = lambda low, high: draw.draw(st.integers(low, high))  # noqa: E731
    places, taps, stride, dilation = integers(1, 5), integers(1, 4), integers(1, 4), integers(1, 3)
    rest = integers(0, stride - 1)
    extent = (places - 1) * stride + (taps - 1) * dilation + 1 + rest
    operands = [buffer(0, (places, 3)), buffer(1, (3, taps, 2))]
    labels = [(0, 1), (1, 2, 3)]
    if draw.draw(st.booleans()):
        operands.reverse()
        labels.reverse()
    inner = b.contract(*operands, *labels, (3, 0, 2))
    after, _ = check(b.fold(inner, 1, extent, stride, dilation))
    assert (Op.FOLD in ops(after)) == (stride > 1 and dilation > 1 and taps > 1)


def attention(x, weights):
    """Causal attention of one head over x [B, T, D], written out."""
    q, k, v = (b.contract(x, w, (0, 1, 2), (3, 2), (0, 1, 3)) for w in weights)
    scores = b.contract(q, k, (0, 1, 2), (0, 3, 2), (0, 1, 3))
    rows = b.reshape(b.iota(x.shape[1]), (x.shape[1], 1))
    scores = b.where(b.lt(rows, b.iota(x.shape[1])), -1e30, b.div(scores, 4.0))
    exps = b.exp(b.sub(scores, b.max_(scores, 2, keepdims=True)))
    share = b.div(exps, b.sum_(exps, 2, keepdims=True))
    return b.contract(share, v, (0, 1, 2), (0, 2, 3), (0, 1, 3))


def test_a_training_graph_keeps_its_values():
    x, kernel = buffer(0, (2, 3, 6, 6)), buffer(1, (4, 3, 3, 3))
    weights = [buffer(2 + k, (5, 16)) for k in range(3)]
    hidden = conv(x, kernel, stride=(2, 1), padding=(1, 0))
    hidden = b.where(b.le(hidden, 0.0), 0.0, hidden)
    tokens = b.reshape(b.permute(hidden, (0, 2, 3, 1)), (2, 3, 16))
    loss = b.sum_(b.tanh(attention(tokens, weights)))
    grads = vjp([loss], [b.const(1.0, f64)], [x, kernel, *weights])
    after, _ = check(loss, *grads)
    assert Op.FOLD not in ops(after)
    # Rows of the image at even and at odd places have gradients by contractions of their own.
    assert ops(after).count(Op.CONTRACT) == ops([loss, *grads]).count(Op.CONTRACT) + 1
