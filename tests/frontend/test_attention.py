"""Scaled dot-product attention: PyTorch's values, gradients and errors for every kind of mask."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tinyc
from tinyc import Tensor
from tinyc import functional as F
from tinyc.diagnostics import DTypeError, ShapeError

attention = F.scaled_dot_product_attention


def rand(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def three(heads=(2, 3), own=None, length=5, other=7, width=4, out=6):
    """Query, key and value; `own` are the leading axes of the last two."""
    own = heads if own is None else own
    return rand(*heads, length, width), rand(*own, other, width), rand(*own, other, out, seed=1)


def some(*shape):
    """A bool mask with about a third left out."""
    return np.random.default_rng(3).uniform(size=shape) < 0.7


def nobody_in_row(mask, row):
    mask[..., row, :] = False if mask.dtype == bool else -np.inf
    return mask


# name -> (query, key, value), mask, options
CASES = {
    "plain": (three(), None, {}),
    "matrices": (three(()), None, {}),
    "three axes": (three((4,)), None, {"is_causal": True}),
    "causal, square": (three(other=5), None, {"is_causal": True}),
    "causal, more columns": (three(), None, {"is_causal": True}),
    "causal, more rows": (three(length=9), None, {"is_causal": True}),
    "scale": (three(), None, {"scale": 0.3}),
    "scale of 0": (three(), None, {"scale": 0.0}),
    "leading axes broadcast": (three((2, 1), (1, 3)), None, {}),
    "bool mask": (three(), some(2, 3, 5, 7), {}),
    "bool mask of columns": (three(), some(2, 1, 1, 7), {}),
    "bool mask, nobody in a row": (three(), nobody_in_row(some(5, 7), 2), {}),
    "bool mask of nobody": (three(), np.zeros((5, 7), bool), {}),
    "floating mask": (three(), rand(3, 5, 7, seed=5), {}),
    "floating mask, nobody in a row": (three(), nobody_in_row(rand(5, 7, seed=5), 0), {}),
    "grouped heads": (three((2, 6), (2, 3)), None, {"enable_gqa": True}),
    "one head of keys": (three((2, 6), (2, 1)), some(2, 6, 5, 7), {"enable_gqa": True}),
    "no columns": (three(other=0), None, {}),
    "no columns, masked": (three(other=0), np.ones((5, 0), bool), {}),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_pytorch_s(name):
    torch = pytest.importorskip("torch")
    arrays, mask, options = CASES[name]
    ours = [Tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    got = attention(*ours, None if mask is None else Tensor(mask), **options)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *theirs, None if mask is None else torch.tensor(mask), **options
    )
    np.testing.assert_allclose(got.numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    weights = rand(*expected.shape, seed=7)
    (got * Tensor(weights)).sum().backward()
    (expected * torch.tensor(weights)).sum().backward()
    for mine, twin in zip(ours, theirs):
        np.testing.assert_allclose(mine.grad.numpy(), twin.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.oracle
def test_the_gradient_of_a_floating_mask_is_pytorch_s():
    torch = pytest.importorskip("torch")
    arrays, bias = three(), rand(3, 1, 7)
    mine, twin = Tensor(bias, requires_grad=True), torch.tensor(bias, requires_grad=True)
    attention(*map(Tensor, arrays), mine).square().sum().backward()
    their = torch.nn.functional.scaled_dot_product_attention(*map(torch.tensor, arrays), twin)
    their.square().sum().backward()
    np.testing.assert_allclose(mine.grad.numpy(), twin.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_a_row_in_which_nobody_takes_part_is_zeros_on_every_device():
    mask = Tensor(nobody_in_row(some(5, 7), 1))
    for device in ("numpy", "cpu"):
        with tinyc.configure(device=device):
            out = attention(*map(Tensor, three()), Tensor(mask.numpy())).numpy()
            assert (out[:, :, 1] == 0).all()
            assert np.isfinite(out).all() and (out[:, :, 0] != 0).all()


def test_large_scores_do_not_overflow():
    query, key, value = three(other=5)
    out = attention(Tensor(query * 1e3), Tensor(key * 1e3), Tensor(value), is_causal=True).numpy()
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[:, :, 0], value[:, :, 0], rtol=1e-6)


def test_nan_in_a_key_reaches_the_rows_that_see_it_and_no_others():
    query, key, value = three(other=5)
    key[0, 0, 3] = np.nan
    out = attention(*map(Tensor, (query, key, value)), is_causal=True).numpy()
    assert np.isfinite(out[0, 0, :3]).all() and np.isnan(out[0, 0, 3:]).all()
    assert np.isfinite(out[0, 1:]).all() and np.isfinite(out[1]).all()


def test_dropout_takes_away_a_share_and_scales_the_rest():
    tinyc.manual_seed(3)
    shape = (2, 4, 64, 64)
    alike = [Tensor(np.zeros((*shape[:3], 8), np.float32)) for _ in range(2)]
    everyone = Tensor(np.broadcast_to(np.eye(64, dtype=np.float32), shape))
    shares = attention(*alike, everyone, dropout_p=0.25).numpy()
    assert abs((shares == 0).mean() - 0.25) < 0.02
    np.testing.assert_allclose(np.unique(shares), [0, 1 / 64 / 0.75], rtol=1e-5)
    again = attention(*alike, everyone, dropout_p=0.25).numpy()
    assert not np.array_equal(shares, again)
    tinyc.manual_seed(3)
    np.testing.assert_array_equal(attention(*alike, everyone, dropout_p=0.25).numpy(), shares)
    assert (attention(*alike, everyone, dropout_p=1.0).numpy() == 0).all()


BOTH = r"f32\[2,3,5,4\].*f32\[2,3,7,"
# name -> error, query, key and value, mask, options, what the message has
REFUSED = {
    "widths": (ShapeError, (rand(2, 3, 5, 4), rand(2, 3, 7, 8), rand(2, 3, 7, 4)), None, {},
               BOTH + "8"),
    "lengths": (ShapeError, (rand(2, 3, 5, 4), rand(2, 3, 7, 4), rand(2, 3, 8, 4)), None, {},
                r"f32\[2,3,7,4\].*f32\[2,3,8,4\]"),
    "leading axes": (ShapeError, (rand(2, 5, 4), rand(3, 7, 4), rand(3, 7, 4)), None, {},
                     r"f32\[2,5,4\].*f32\[3,"),
    "a vector": (ShapeError, (rand(4), rand(7, 4), rand(7, 4)), None, {}, r"f32\[4\]"),
    "heads": (ShapeError, three((2, 6), (2, 4)), None, {"enable_gqa": True},
              r"f32\[2,6,5,4\].*f32\[2,4,7,4\]"),
    "no axis of heads": (ShapeError, three(()), None, {"enable_gqa": True}, r"\[\.\.\., H, L, E\]"),
    "mask's size": (ShapeError, three(), np.ones((5, 5), bool), {},
                    r"bool\[5,5\].*f32\[2,3,5,7\]"),
    "mask's rank": (ShapeError, three(), np.ones((1, 2, 3, 5, 7), bool), {},
                    r"bool\[1,2,3,5,7\].*f32\[2,3,5,7\]"),
    "mask's dtype": (DTypeError, three(), np.ones((5, 7), np.int64), {}, r"i64\[5,7\]"),
    "dtypes": (DTypeError, (*three()[:2], three()[2].astype(np.float64)), None, {},
               BOTH + r"4\].*f64\[2,3,7,6\]"),
    "integers": (DTypeError, [a.astype(np.int64) for a in three()], None, {}, r"i64\[2,3,5,4\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_errors_name_the_shapes_and_the_line(name):
    error, arrays, mask, options, words = REFUSED[name]
    with pytest.raises(error, match=r"test_attention\.py:\d+") as caught:
        attention(*map(Tensor, arrays), None if mask is None else Tensor(mask), **options)
    assert re.search(words, str(caught.value)), caught.value


def test_a_mask_beside_causal_and_a_strange_probability_are_refused():
    tensors = [*map(Tensor, three())]
    with pytest.raises(ValueError, match="attn_mask and is_causal"):
        attention(*tensors, Tensor(np.ones((5, 7), bool)), is_causal=True)
    with pytest.raises(ValueError, match=r"scaled_dot_product_attention.*1\.5"):
        attention(*tensors, dropout_p=1.5)
