"""Wrong answers that other lazy frameworks give: the right ones, on compiled programs."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

import tinyc
import tinyc.nn.functional as F
from tinyc import Tensor, compiler, jit, nn, optim
from tinyc.diagnostics import collect

NAN = math.nan


# The loss of the loop that everyone writes ------------------------------------------------------


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_the_printed_loss_is_that_before_the_update(kind):
    w = Tensor([2.0], requires_grad=True)
    optimizer = getattr(optim, kind)([w], lr=0.25)
    with compiler.observe() as runs:
        loss = (w * w).sum()
        loss.backward()
        optimizer.step()
        assert loss.item() == 4.0
    assert len(runs) == 1
    assert w.item() != 2.0


# Captured programs ------------------------------------------------------------------------------


def test_a_jitted_function_sees_lengths():
    double = jit(lambda x: x * 2)
    total = jit(lambda x: x.sum())
    for n in (4, 6, 2, 1000, 4):
        assert double(tinyc.ones(n)).tolist() == [2.0] * n
        assert total(tinyc.ones(n)).item() == n


def test_a_jitted_function_says_why_it_is_captured_again():
    for x, k, why in (
        (tinyc.ones(6), 2, "from (4,) to (6,)"),
        (Tensor([1, 2, 3, 4]), 2, "dtype"),
        (tinyc.ones(4), 3, "from 2 to 3"),
    ):
        double = jit(lambda x, k: x * k)
        double(tinyc.ones(4), 2)
        with collect() as remarks:
            double(x, k).numpy()
        assert any(why in remark.message for remark in remarks), [r.message for r in remarks]


def test_results_of_a_jitted_function_are_its_callers():
    double = jit(lambda x: x * 2)
    results = [double(Tensor([float(i)])) for i in range(5)]
    assert [r.item() for r in results] == [0, 2, 4, 6, 8]


def test_numbers_branches_and_closures_are_not_frozen():
    scaled = jit(lambda x, k: x * k if k != 3 else x - 1)
    assert [scaled(Tensor([1.0]), k).item() for k in range(5)] == [0, 1, 2, 0, 4]
    factor = 2

    @jit
    def by_factor(x):
        return x * factor

    assert by_factor(Tensor([3.0])).item() == 6
    factor = 5
    assert by_factor(Tensor([3.0])).item() == 15


def test_methods_lists_keywords_aliases_and_nesting():
    class Scale:
        def __init__(self, by):
            self.by = by

        @jit
        def __call__(self, x):
            return x * self.by

    assert [Scale(by)(Tensor([1.0])).item() for by in (2, 3)] == [2, 3]
    total = jit(lambda xs, bias: xs[0] + xs[1] + bias)
    x = Tensor([1.0])
    for _ in range(3):
        assert total([x, x], bias=x).item() == 3
        assert total(bias=x, xs=[x, Tensor([5.0])]).item() == 7
    outer = jit(lambda x: total([x, x], x) * 2)
    assert [outer(Tensor([v])).item() for v in (1.0, 2.0, 3.0)] == [6, 12, 18]


def test_an_input_may_be_the_output():
    step = jit(lambda x: x)
    x = Tensor([1.0])
    for _ in range(3):
        x = step(x) + 1
    assert x.item() == 4


# Values that are no numbers ---------------------------------------------------------------------


@pytest.mark.parametrize("values", [[1, NAN, 3], [NAN, 1, 3], [1, 3, NAN]])
def test_nan_is_seen_wherever_it_stands(values):
    x = Tensor(np.array(values, np.float32))
    where = [math.isnan(v) for v in values]
    assert [math.isnan(v) for v in F.relu(x).tolist()] == where
    for value in (x.max(), x.min(), x.sum(), x.amax(), x.softmax(-1).sum()):
        assert math.isnan(value.item())
    assert x.argmax().item() == x.argmin().item() == where.index(True)
    assert [math.isnan(v) for v in x.clip(0, 1).tolist()] == where
    assert [math.isnan(v) for v in tinyc.maximum(x, tinyc.zeros(3)).tolist()] == where


def test_no_algebra_that_floats_do_not_obey():
    x = Tensor(np.array([0.0, math.inf, NAN, 2.0], np.float32))
    with np.errstate(all="ignore"):
        n = x.numpy()
        for call in (lambda v: v / v, lambda v: v * 3 / v, lambda v: v * 0, lambda v: v - v):
            np.testing.assert_array_equal(call(x).numpy(), call(n))


def test_indices_out_of_range_are_errors():
    with pytest.raises(IndexError, match="7"):
        tinyc.arange(3)[Tensor([7])].numpy()
    with pytest.raises(IndexError, match="9"):
        nn.Embedding(4, 2)(Tensor([9])).numpy()
    with pytest.raises(IndexError, match="7"):
        F.cross_entropy(Tensor(np.ones((2, 3))), Tensor([0, 7])).item()


@pytest.mark.parametrize(
    "make", [lambda: tinyc.ones(5), lambda: tinyc.zeros(5, 2), lambda: tinyc.arange(5) * 2]
)
def test_an_index_into_equal_values_is_checked(make):
    table = make()
    assert table[Tensor([1, -1])].shape[0] == 2
    with pytest.raises(IndexError, match="index 7 is out of range"):
        table[Tensor([7])].numpy()


# Accuracy ---------------------------------------------------------------------------------------


def test_functions_are_accurate():
    def worst(name, x):
        exact = getattr(np, name)(x.astype(np.float64))
        found = getattr(Tensor(x), name)().numpy()
        return float(np.max(np.abs(found - exact) / np.abs(exact)))

    wide = np.linspace(-80, 80, 10001, dtype=np.float32)
    near = np.geomspace(1e-6, 1e-2, 1001, dtype=np.float32)
    far = np.linspace(-1e4, 1e4, 10001, dtype=np.float32)
    assert worst("exp", wide) < 4e-7
    assert worst("tanh", near) < 4e-7
    assert np.max(np.abs(Tensor(far).cos().numpy() - np.cos(far.astype(np.float64)))) < 3e-7
    erf = np.array([math.erf(v) for v in near])
    np.testing.assert_allclose(Tensor(near).erf().numpy(), erf, rtol=4e-7)


# Errors with words ------------------------------------------------------------------------------


def test_errors_have_words():
    with pytest.raises(ValueError, match=r"cat.*f32\[2,3\].*f32\[3,4\]"):
        tinyc.cat([tinyc.ones(2, 3), tinyc.ones(3, 4)])
    with pytest.raises(RuntimeError, match="call loss.backward"):
        optim.Adam(nn.Linear(2, 2).parameters()).step()


def test_an_unused_parameter_is_no_error():
    used, unused = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = optim.SGD([*used.parameters(), *unused.parameters()], lr=1.0)
    before = unused.weight.numpy().copy()
    used(tinyc.ones(1, 2)).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(unused.weight.numpy(), before)


def test_an_unreadable_switch_is_named(monkeypatch):
    from tinyc import config

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config.read_environment({"TINYC_THREADS": "many", "TINYC_FUZE": "1"})
    text = " ".join(str(w.message) for w in caught)
    assert "TINYC_THREADS" in text and "TINYC_FUSE" in text


# History ----------------------------------------------------------------------------------------


def test_adam_reads_its_moments_before_it_writes_them():
    w = Tensor(np.array([1.0, -2.0, 0.5], np.float64), requires_grad=True)
    optimizer = optim.Adam([w], lr=0.1)
    value, m, v = w.numpy().copy(), np.zeros(3), np.zeros(3)
    for t in range(1, 5):
        optimizer.zero_grad()
        (w**2).sum().backward()
        optimizer.step()
        g = 2 * value
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        value = value - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(w.numpy(), value, rtol=1e-6)


def test_equal_constants_have_gradients_of_their_own():
    a, b = (Tensor([3.0], requires_grad=True) for _ in range(2))
    (a * 2 + b * 5).sum().backward()
    assert (a.grad.item(), b.grad.item()) == (2, 5)
