"""Composites and their gradients, compiled, give what the evaluator gives: fused and unfused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tinyc import config
from tinyc.compiler import execute
from tinyc.composites import activation as act
from tinyc.composites import convolution as cnv
from tinyc.composites import elementwise as ew
from tinyc.composites import indexing as ix
from tinyc.composites import linear as lin
from tinyc.composites import losses
from tinyc.composites import normalization as nrm
from tinyc.composites import randomness as rnd
from tinyc.composites import reductions as red
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.dtype import from_numpy
from tinyc.ir.evaluate import evaluate
from tinyc.runtime.buffer import Buffer

NAN, INF = math.nan, math.inf


def rand(*shape, seed=0, low=-2.0, high=2.0):
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(np.float32)


def bind(arrays):
    """Return nodes for the arrays, and the memory behind them."""
    buffers = [Buffer.from_numpy(np.array(a, order="C"), "cpu", copy=True) for a in arrays]
    nodes = [b.buffer(m.uid, 0, m.shape, from_numpy(m.array.dtype), "cpu") for m in buffers]
    return nodes, buffers


def check(fn, arrays, slopes=True):
    """Compare the value and the gradients of all floating arrays, in both modes."""
    shape = fn(*bind(arrays)[0]).shape
    nodes, buffers = bind([*arrays, rand(*shape, seed=9)])
    *nodes, cotangent = nodes
    outputs = [fn(*nodes)]
    if slopes and outputs[0].dtype.is_float:
        floats = [n for n in nodes if n.dtype.is_float]
        outputs += [g for g in vjp(outputs, [cotangent], floats) if g is not None]
    expected = evaluate(outputs, {m.uid: m.array for m in buffers})
    for fuse in (True, False):
        with config.configure(fuse=fuse):
            got = execute(outputs, {m.uid: m for m in buffers})
        for mine, theirs in zip(got, expected):
            close(mine.array, theirs)


def close(got, expected):
    """Compare floats relative to the largest, since terms of a sum cancel; others exactly."""
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(got, expected)
        return
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
    np.testing.assert_allclose(got, expected, rtol=3e-5, atol=1e-5 * min(scale, 100))


LABELS = np.array([0, 3, 1, 1, 2] * 12)
IMAGE_LABELS = np.random.default_rng(0).integers(0, 4, (6, 5, 5))
PARAMS = rand(8, seed=1), rand(8, seed=2)
SPECIAL = np.array([NAN, INF, -INF, 0, -0.0, 1e3, -1e3, 1e-30, -3, 2.5, 1e4] * 8, np.float32)
ROWS = np.array(
    [[-INF] * 5, [0, -INF, 1, 2, 3], [INF, 0, 0, 0, 0], [NAN, 1, 2, 3, 4], [1, 2, NAN, 5, NAN],
     [5] * 5, [1e4, -1e4, 0, 0, 1e4], [INF, -INF, 1, 1, 1]], np.float32,
)  # fmt: skip

CASES = {
    "cross_entropy": (losses.cross_entropy, rand(60, 10), LABELS),
    "cross_entropy_options": (
        lambda x, t, w: losses.cross_entropy(x, t, b.detach(w), 1, "mean", 0.1),
        rand(60, 10), LABELS, rand(10, low=0.1),
    ),
    "cross_entropy_images": (losses.cross_entropy, rand(6, 4, 5, 5), IMAGE_LABELS),
    "cross_entropy_soft": (losses.cross_entropy, rand(60, 10), rand(60, 10, low=0)),
    "bce": (losses.binary_cross_entropy_with_logits, rand(60, 3), rand(60, 3, low=0, high=1)),
    "layer_norm": (lambda x, w, c: nrm.layer_norm(x, (64,), w, c),
                   rand(50, 64), rand(64), rand(64, seed=2)),
    "rms_norm": (lambda x, w: nrm.rms_norm(x, (64,), w), rand(50, 64), rand(64)),
    "batch_norm": (lambda x, w, c: nrm.batch_norm(x, None, None, w, c, training=True).y,
                   rand(16, 8, 12, 12), *PARAMS),
    "batch_norm_eval": (lambda x, m, v, w, c: nrm.batch_norm(x, m, v, w, c).y,
                        rand(16, 8, 12, 12), rand(8), rand(8, low=0.5), *PARAMS),
    "conv": (lambda x, w, c: act.relu(cnv.conv(x, w, c, 1, 1)),
             rand(8, 3, 16, 16), rand(8, 3, 3, 3), PARAMS[0]),
    "conv_strided": (lambda x, w, c: cnv.conv(x, w, c, 2, 1),
                     rand(8, 4, 15, 16), rand(8, 4, 3, 3), PARAMS[0]),
    "conv_grouped": (lambda x, w: cnv.conv(x, w, None, 1, 1, 1, 2),
                     rand(2, 4, 9, 9), rand(6, 2, 3, 3)),
    "conv_depthwise": (lambda x, w: cnv.conv(x, w, None, 2, 1, 1, 4),
                       rand(2, 4, 9, 9), rand(8, 1, 3, 3)),
    "conv_dilated": (lambda x, w: cnv.conv(x, w, None, (2, 1), (1, 0), (1, 2)),
                     rand(1, 3, 7, 6), rand(2, 3, 3, 2)),
    "conv_1x1": (cnv.conv, rand(2, 3, 5, 5), rand(4, 3, 1, 1)),
    "conv_1x1_images": (cnv.conv, rand(4, 8, 6, 7), rand(12, 8, 1, 1), rand(12)),
    "conv_1x1_strided": (lambda x, w: cnv.conv(x, w, None, 2), rand(3, 6, 11, 9), rand(9, 6, 1, 1)),
    "conv_1x1_grouped": (lambda x, w: cnv.conv(x, w, None, groups=2),
                         rand(3, 8, 5, 7), rand(10, 4, 1, 1)),
    "conv_large_weights": (lambda x, w, c: act.relu(cnv.conv(x, w, c, 1, 1)),
                           rand(3, 5, 3, 4), rand(16, 5, 3, 3), rand(16)),
    "conv_1x1_large_weights": (cnv.conv, rand(3, 12, 5, 4), rand(64, 12, 1, 1), rand(64)),
    "conv_5x5": (lambda x, w, c: cnv.conv(x, w, c, 2, 2), rand(2, 3, 9, 11), rand(6, 3, 5, 5),
                 rand(6)),
    "conv_depthwise_5x5": (lambda x, w: cnv.conv(x, w, None, 1, 2, 1, 6),
                           rand(2, 6, 7, 7), rand(6, 1, 5, 5)),
    "conv_to_one_channel": (lambda x, w: cnv.conv(x, w, None, 1, 2), rand(2, 6, 8, 9),
                            rand(1, 6, 5, 5)),
    "conv_groups_dilated_strided": (lambda x, w: cnv.conv(x, w, None, (2, 1), (2, 3), (1, 2), 3),
                                    rand(4, 12, 9, 10), rand(12, 4, 3, 3)),
    "conv1d": (lambda x, w: cnv.conv(x, w, None, 2, 1), rand(8, 3, 16), rand(8, 3, 3)),
    "max_pool": (lambda x: cnv.max_pool(x, 2), rand(8, 3, 16, 16)),
    "max_pool_padded": (lambda x: cnv.max_pool(x, 3, 2, 1), rand(8, 3, 17, 16)),
    "max_pool_dense": (lambda x: cnv.max_pool(x, 3, 1, 1), rand(4, 3, 9, 8)),
    "max_pool_value": (lambda x: cnv.max_pool(x, 3, 2, 1, gradient=False), rand(8, 3, 17, 16)),
    "avg_pool": (lambda x: cnv.avg_pool(x, 2), rand(8, 3, 16, 16)),
    "avg_pool_inside": (lambda x: cnv.avg_pool(x, 3, 2, 1, False, False), rand(8, 3, 16, 16)),
    "adaptive_avg_pool": (lambda x: cnv.adaptive_avg_pool(x, 1), rand(8, 3, 16, 16)),
    "linear": (lambda x, w, c: act.relu(lin.linear(x, w, c)),
               rand(50, 60), rand(40, 60), rand(40, seed=2)),
    "matmul": (lin.matmul, rand(5, 9, 33), rand(33, 17)),
    "matmul_batched": (lin.matmul, rand(5, 1, 9, 7), rand(6, 7, 4)),
    "einsum": (lambda *n: lin.einsum("a,ab,abc->abc", n), rand(2), rand(2, 3), rand(2, 3, 4)),
    "diagonal": (lambda x: lin.einsum("bii->b", [x]), rand(3, 7, 7)),
    "dropout": (lambda x: nrm.dropout(x, 0.3, rnd.bits((1, 2), b.const(5), x.shape)), rand(50, 60)),
    "index": (lambda x, i, j: ix.index_nodes(x, (slice(None), i, j)),
              rand(4, 5, 3), np.array([2, 0, -1]), np.array([[1], [-2]])),
    "index_apart": (lambda x, i: ix.index_nodes(x, (i, slice(None, None, -1), i)),
                    rand(4, 5, 3), np.array([2, 0, -1, 2])),
    "cat": (lambda x, y: ix.cat([x, y, x]), rand(2, 3), rand(4, 3)),
    "stack": (lambda x, y: ix.stack([x, y], 1), rand(2, 3), rand(2, 3, seed=1)),
    "roll": (lambda x: ix.roll(ix.flip(x, (0,)), 2, 1), rand(5, 5)),
    "tril": (lambda x: ix.tril(x, 1), rand(5, 5)),
    "take_along_dim": (lambda x, i: ix.take_along_dim(x, i, 1),
                       rand(5, 5), np.array([[1, -1]] * 5)),
    "embedding": (lambda w, i: ix.embedding(i, w, 1), rand(5, 4), np.array([0, 1, 1, 4])),
    "one_hot": (lambda i: ix.one_hot(i, 4), np.array([0, 3, 1])),
    "pad": (lambda x: ix.pad_last(x, (1, -1, 2, 0), 0.5), rand(4, 5)),
    "clip": (lambda x: ew.clip(x, -1, 1), SPECIAL),
    "minimum": (ew.minimum, SPECIAL, SPECIAL[::-1].copy()),
    "gelu_tanh": (lambda x: act.gelu(x, "tanh"), SPECIAL),
    "max_pool_nan": (lambda x: cnv.max_pool(x, 3, 2, 1), SPECIAL.reshape(1, 1, 8, 11)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_compiled_composites(name):
    fn, *arrays = CASES[name]
    check(fn, arrays)


@pytest.mark.parametrize(
    "fn",
    [act.relu, act.sigmoid, act.gelu, act.silu, act.softplus, act.logsigmoid, act.leaky_relu,
     ew.abs_, ew.sign, ew.log1p, ew.isnan, ew.isinf, ew.rsqrt],
)  # fmt: skip
def test_compiled_elementwise_of_special_numbers(fn):
    check(fn, [SPECIAL])


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize(
    "fn",
    [red.softmax, red.log_softmax, red.logsumexp, red.max_, red.min_, red.argmax, red.argmin,
     red.var, red.mean, red.any_, red.all_],
)  # fmt: skip
def test_compiled_reductions(fn, axis):
    if axis is None and fn in (red.softmax, red.log_softmax):
        axis = -1
    check(lambda x: fn(x, axis), [rand(60, 37)])
    check(lambda x: fn(x, axis), [ROWS], slopes=False)


@pytest.mark.parametrize(
    "draw",
    [lambda s: rnd.bits((1, 2), 7, s), lambda s: rnd.uniform((1, 2), 7, s),
     lambda s: rnd.normal((1, 2), 7, s), lambda s: rnd.randint((1, 2), 7, s, -5, 1000)],
)  # fmt: skip
def test_compiled_draws(draw):
    check(lambda x: draw((50, 61)), [rand(1)], slopes=False)


def test_a_small_network():
    def model(x, w, v, t):
        y = cnv.max_pool(act.relu(cnv.conv(x, w, None, 1, 1)), 2)
        return losses.cross_entropy(lin.linear(b.reshape(y, (y.shape[0], -1)), v), t)

    check(model, [rand(16, 1, 12, 12), rand(8, 1, 3, 3), rand(10, 288), np.arange(16) % 10])
