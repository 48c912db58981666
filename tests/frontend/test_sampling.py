"""Drawing from logits: the k largest without a sort, and numbers with the right frequencies."""

from __future__ import annotations

import numpy as np
import pytest

from tinyc import Tensor
from tinyc.composites import sampling
from tinyc.diagnostics import ShapeError
from tinyc.tensor import apply

FLOATS = [np.float32, np.float64]


def rows(kind, seed=0):
    numbers = np.random.default_rng(seed)
    if kind == "normal":
        return numbers.standard_normal((5, 37))
    if kind == "ties":
        return numbers.integers(-3, 3, (5, 37)).astype(float)
    return np.array([[-np.inf, np.inf, -1e-42, 1e-42, 0.0, 3e38, -3e38, 2.0, -np.inf, 5.0]])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["normal", "ties", "extreme"])
@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_the_k_largest_are_those_at_least_the_kth(kind, k, dtype):
    x = rows(kind).astype(dtype)
    found = apply(sampling.largest, Tensor(x), k).numpy()
    np.testing.assert_array_equal(found, x >= np.sort(x)[:, -k, None])


@pytest.mark.oracle
def test_the_k_largest_are_pytorch_s_with_nan_first():
    torch = pytest.importorskip("torch")
    x = rows("normal").astype(np.float32)
    x[1, 4] = np.nan
    found = apply(sampling.largest, Tensor(x), 6).numpy()
    chosen = torch.topk(torch.tensor(x), 6).indices.numpy()
    for row, places in zip(found, chosen):
        assert set(np.flatnonzero(row)) == set(places)


@pytest.mark.parametrize("k", [0, 38])
def test_a_k_beyond_the_row_is_refused(k):
    with pytest.raises(ShapeError, match=rf"there are no {k} largest.*\[5,37\]"):
        apply(sampling.largest, Tensor(rows("normal")), k)


@pytest.mark.parametrize("top_k", [None, 3])
def test_frequencies_are_those_of_softmax(top_k):
    logits = np.array([1.0, -1.0, 0.5, 2.0, -np.inf, 0.0], np.float32)
    shares = np.exp(logits)
    if top_k:
        shares[np.argsort(shares)[:-top_k]] = 0
    shares /= shares.sum()
    n = 40_000
    draws = np.random.default_rng(1).random((n, 6), np.float32)
    many = np.broadcast_to(logits, (n, 6))
    found = apply(sampling.sample, Tensor(many), Tensor(draws), top_k).numpy()
    counts = np.bincount(found, minlength=6) / n
    assert (counts[shares == 0] == 0).all()
    # Four standard deviations of a share of n draws.
    np.testing.assert_allclose(counts, shares, atol=4 * np.sqrt(0.25 / n))


def test_draws_of_zero_and_nearly_one_choose_something():
    logits = np.zeros((2, 4), np.float32)
    draws = np.array([[0, 0, 0, 0], [1 - 2.0**-24] * 4], np.float32)
    draws[:, 2] = 0.5
    found = apply(sampling.sample, Tensor(logits), Tensor(draws)).numpy()
    assert found[0] == 2 and 0 <= found[1] < 4
