"""The functions on Tensors: PyTorch's names, arguments and defaults, with gradients."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import tinyc
from tinyc import Tensor
from tinyc import functional as F
from tinyc.diagnostics import DTypeError, ShapeError


def rand(*shape, seed=0, low=-2.0, high=2.0):
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(np.float32)


LABELS = np.array([0, 3, 1, 2, 1])

# name -> (positional arguments, options); arrays become tensors, and floats want a gradient.
CASES = {
    "relu": ([rand(3, 4)], {}),
    "leaky_relu": ([rand(3, 4)], {"negative_slope": 0.2}),
    "sigmoid": ([rand(3, 4)], {}),
    "logsigmoid": ([rand(3, 4)], {}),
    "tanh": ([rand(3, 4)], {}),
    "gelu": ([rand(3, 4)], {"approximate": "tanh"}),
    "silu": ([rand(3, 4)], {}),
    "softplus": ([rand(3, 4)], {}),
    "softsign": ([rand(3, 4)], {}),
    "softmax": ([rand(3, 4), 1], {}),
    "log_softmax": ([rand(3, 4)], {"dim": 0}),
    "linear": ([rand(2, 3), rand(4, 3), rand(4)], {}),
    "conv1d": ([rand(2, 3, 8), rand(4, 3, 3), rand(4)], {"padding": 1}),
    "conv2d": (
        [rand(2, 4, 6, 5), rand(6, 2, 3, 3), rand(6)],
        {"stride": (2, 1), "padding": 1, "groups": 2},
    ),
    "max_pool2d": ([rand(2, 3, 7, 6), 3, 2], {"padding": 1, "ceil_mode": True}),
    "avg_pool2d": ([rand(2, 3, 7, 6), 3], {"padding": 1, "count_include_pad": False}),
    "adaptive_avg_pool2d": ([rand(2, 3, 6, 6), (2, 3)], {}),
    "layer_norm": ([rand(2, 3, 4), (3, 4), rand(3, 4, seed=1), rand(3, 4, seed=2)], {}),
    "rms_norm": ([rand(2, 3, 4), (3, 4), rand(3, 4, seed=1)], {}),
    "embedding": ([LABELS, rand(4, 3)], {"padding_idx": 1}),
    "pad": ([rand(2, 3), (1, 2, 0, 1)], {"value": 0.5}),
    "cross_entropy": ([rand(5, 4), LABELS], {"label_smoothing": 0.1, "ignore_index": 2}),
    "nll_loss": ([rand(5, 4), LABELS], {"reduction": "sum"}),
    "mse_loss": ([rand(5, 4), rand(5, 4, seed=1)], {}),
    "l1_loss": ([rand(5, 4), rand(5, 4, seed=1)], {"reduction": "none"}),
    "binary_cross_entropy": (
        [rand(5, 4, low=0.1, high=0.9), rand(5, 4, low=0, high=1, seed=1)], {},
    ),
    "binary_cross_entropy_with_logits": ([rand(5, 4), rand(5, 4, low=0, high=1, seed=1)], {}),
}  # fmt: skip


def call(function, make, arguments, options):
    """Call with arrays made into tensors; return the result and those that want a gradient."""
    tensors = []
    given = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            argument = make(argument)
            tensors.append(argument)
        given.append(argument)
    return function(*given, **options), [t for t in tensors if t.requires_grad]


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_functions_are_pytorch_s(name):
    torch = pytest.importorskip("torch")

    def ours(array):
        return Tensor(array, requires_grad=array.dtype.kind == "f")

    def theirs(array):
        return torch.tensor(array, requires_grad=array.dtype.kind == "f")

    got, mine = call(getattr(F, name), ours, *CASES[name])
    expected, twins = call(getattr(torch.nn.functional, name), theirs, *CASES[name])
    np.testing.assert_allclose(got.numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    weights = rand(*expected.shape, seed=7)
    (got * Tensor(weights)).sum().backward()
    (expected * torch.tensor(weights)).sum().backward()
    for a, b in zip(mine, twins):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize("name", [*CASES, "batch_norm", "dropout", "one_hot"])
def test_arguments_are_pytorch_s(name):
    """Where PyTorch has an argument of the name its default is ours, and the order is theirs."""
    torch = pytest.importorskip("torch")
    mine = inspect.signature(getattr(F, name)).parameters
    try:
        theirs = inspect.signature(getattr(torch.nn.functional, name)).parameters
    except ValueError:
        return
    if "kwargs" in theirs:  # chosen at run time from two functions
        theirs = inspect.signature(torch.nn.functional._max_pool2d).parameters
    shared = [p for p in theirs if p in mine]
    assert [p for p in mine if p in theirs] == shared
    assert set(mine) <= set(theirs)
    for p in shared:
        # Some of PyTorch's defaults say "not given" where ours say what is then meant.
        if theirs[p].default not in (inspect.Parameter.empty, None):
            assert mine[p].default == theirs[p].default, p


def test_batch_norm_moves_the_running_statistics_in_place():
    x, mean, var = rand(4, 3, 2, 2), np.zeros(3, np.float32), np.ones(3, np.float32)
    running_mean, running_var = Tensor(mean), Tensor(var)
    y = F.batch_norm(Tensor(x), running_mean, running_var, training=True, momentum=0.5)
    np.testing.assert_allclose(y.numpy().mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(running_mean.numpy(), 0.5 * x.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(running_var.numpy(), 0.5 + 0.5 * x.var((0, 2, 3), ddof=1), rtol=1e-5)
    before = running_mean.numpy().copy()
    F.batch_norm(Tensor(x), running_mean, running_var).numpy()
    np.testing.assert_array_equal(running_mean.numpy(), before)


def test_dropout_zeroes_a_share_of_p_and_rests_outside_training():
    tinyc.manual_seed(3)
    x = Tensor(np.ones((200, 200), np.float32), requires_grad=True)
    for p in (0.2, 0.7):
        y = F.dropout(x, p)
        out = y.numpy()
        assert abs((out == 0).mean() - p) < 0.02
        assert np.unique(out).tolist() == pytest.approx([0, 1 / (1 - p)])
        x.grad = None
        y.sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), out)
    assert F.dropout(x, 0.5, training=False) is x
    assert not np.array_equal(F.dropout(x).numpy(), F.dropout(x).numpy())
    with pytest.raises(ValueError, match="dropout"):
        F.dropout(x, -0.1)


def test_the_same_seed_drops_the_same():
    x = Tensor(np.ones((50,), np.float32))
    draws = []
    for _ in range(2):
        tinyc.manual_seed(11)
        draws.append(F.dropout(x).numpy())
    np.testing.assert_array_equal(*draws)


def test_max_pool_without_gradient_builds_the_maximum_alone():
    x = Tensor(rand(1, 1, 4, 4))
    with_gradient = F.max_pool2d(Tensor(rand(1, 1, 4, 4), requires_grad=True), 2)
    assert F.max_pool2d(x, 2).node.op.value == "reduce"
    np.testing.assert_array_equal(F.max_pool2d(x, 2).numpy(), with_gradient.detach().numpy())


def test_one_hot_counts_the_classes():
    t = Tensor(np.array([1, 0, 3]))
    np.testing.assert_array_equal(F.one_hot(t).numpy(), np.eye(4, dtype=np.int64)[[1, 0, 3]])
    assert F.one_hot(t, 6).shape == (3, 6)


@pytest.mark.parametrize("fn", [F.softmax, F.log_softmax])
def test_gradients_of_second_order(fn):
    x, step = rand(3, 4).astype(np.float64), 1e-6

    def slope(x):
        return tinyc.grad(lambda x: fn(x, 1).square().sum())(x)

    second = tinyc.grad(lambda x: slope(x)[0, 1])(Tensor(x)).numpy()
    for place in np.ndindex(3, 4):
        low, high = x.copy(), x.copy()
        low[place] -= step
        high[place] += step
        found = (slope(Tensor(high)).numpy() - slope(Tensor(low)).numpy())[0, 1] / (2 * step)
        assert second[place] == pytest.approx(found, rel=1e-5, abs=1e-7)


def test_layers_work_on_every_device():
    x, w = rand(2, 3, 6, 6), rand(4, 3, 3, 3)
    found = []
    for device in ("numpy", "cpu"):
        with tinyc.configure(device=device):
            y = F.max_pool2d(F.relu(F.conv2d(Tensor(x), Tensor(w), padding=1)), 2)
            found.append(F.softmax(y.flatten(1), 1).numpy())
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("label", [-1, 4, 7])
def test_labels_out_of_range_are_errors(label):
    labels = np.array([0, label])
    with pytest.raises(IndexError):
        F.cross_entropy(Tensor(rand(2, 4)), Tensor(labels)).item()
    with pytest.raises(IndexError):
        F.embedding(Tensor(labels), Tensor(rand(4, 2))).numpy()


def test_errors_name_the_function_and_the_line():
    x, w = Tensor(rand(2, 3)), Tensor(rand(4, 5))
    with pytest.raises(ShapeError, match=r"linear.*test_functional.py:\d+"):
        F.linear(x, w)
    with pytest.raises(ShapeError, match="conv2d"):
        F.conv2d(x, w)
    with pytest.raises(ShapeError, match="mse_loss"):
        F.mse_loss(x, w)
    with pytest.raises(DTypeError, match="cross_entropy"):
        F.cross_entropy(x, Tensor(np.array([True, False])))
    with pytest.raises(ValueError, match="pad"):
        F.pad(x, (1, 1), mode="reflect")
