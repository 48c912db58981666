"""MultiheadAttention beside PyTorch's with the same state dict: values, shares and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, nn

E, H, N, L, S = 12, 3, 2, 5, 7


def sample(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def bools(*shape: int) -> np.ndarray:
    """A mask that hides some and leaves at least one in each row."""
    mask = np.random.default_rng(len(shape)).random(shape) < 0.4
    mask[..., 0] = False
    return mask


CAUSAL = np.triu(np.ones((L, L), np.bool_), 1)

# name -> (the layer's options, call options, whether query, key and value are one tensor)
CASES: dict[str, tuple[dict, dict, bool]] = {
    "self": ({}, {}, True),
    "self, batch first": ({"batch_first": True}, {"need_weights": False}, True),
    "self, causal": ({}, {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False}, True),
    "self, causal with shares": ({}, {"attn_mask": CAUSAL, "is_causal": True}, True),
    "self, causal and padded": (
        {"batch_first": True},
        {"attn_mask": CAUSAL, "is_causal": True, "key_padding_mask": bools(N, L)}, True),
    "self, causal, padding added": (
        {}, {"attn_mask": np.where(CAUSAL, -np.inf, 0).astype(np.float32), "is_causal": True,
             "key_padding_mask": sample(N, L)}, True),
    "cross": ({"bias": False}, {"average_attn_weights": False}, False),
    "of other widths": ({"kdim": 4, "vdim": 9}, {}, False),
    "of another value": ({"vdim": 5, "bias": False}, {"need_weights": False}, False),
    "padded": ({}, {"key_padding_mask": bools(N, S)}, False),
    "padded, added": ({}, {"key_padding_mask": sample(N, S)}, False),
    "masked": ({"batch_first": True}, {"attn_mask": bools(L, S)}, False),
    "masked for each head": ({}, {"attn_mask": bools(N * H, L, S), "need_weights": False}, False),
    "masked, added": ({}, {"attn_mask": sample(N * H, L, S)}, False),
    "both masks": ({}, {"attn_mask": bools(L, S), "key_padding_mask": bools(N, S)}, False),
    "masks of both kinds": ({}, {"attn_mask": sample(L, S), "key_padding_mask": bools(N, S)},
                            False),
    "more keys": ({"add_bias_kv": True}, {"attn_mask": bools(L, S)}, False),
    "zero keys": ({"add_zero_attn": True, "batch_first": True}, {"key_padding_mask": bools(N, S)},
                  False),
    "both, causal": ({"add_zero_attn": True, "add_bias_kv": True},
                     {"attn_mask": CAUSAL, "is_causal": True}, True),
}  # fmt: skip


def inputs(options: dict, same: bool, batched: bool) -> list[np.ndarray]:
    widths = [E, options.get("kdim", E), options.get("vdim", E)]
    lengths = [L, L, L] if same else [L, S, S]
    found = []
    for number, (length, width) in enumerate(zip(lengths, widths)):
        shape = (N, length, width) if options.get("batch_first") else (length, N, width)
        shape = shape if batched else (length, width)
        found.append(sample(*shape, seed=number))
    return found[:1] if same else found


def run(layer: Any, wrap: Any, arrays: list[np.ndarray], options: dict) -> list[Any]:
    """Return the output, the shares, and the gradients of inputs and parameters as arrays."""
    given = [wrap(array, requires_grad=True) for array in arrays]
    options = {k: wrap(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    y, shares = layer(*(given * 3 if len(given) == 1 else given), **options)
    loss = (y * wrap(sample(*y.shape, seed=9))).sum()
    if shares is not None:
        loss = loss + (shares * wrap(sample(*shares.shape, seed=8))).sum()
    loss.backward()
    results = [y, shares, *[x.grad for x in given], *[p.grad for p in layer.parameters()]]
    return [None if r is None else r.detach().numpy() for r in results]


def twins(options: dict) -> tuple[nn.MultiheadAttention, Any, Any]:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(E, H, **options)
    ours = nn.MultiheadAttention(E, H, **options)
    for name, value in theirs.named_parameters():  # biases begin as zeros
        if value.ndim == 1:
            value.data = torch.tensor(sample(*value.shape, seed=len(name)))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, torch


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("name", CASES)
def test_attention_equals_pytorch_s(name: str) -> None:
    options, call, same = CASES[name]
    compare(options, call, inputs(options, same, True))


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["self", "self, causal and padded", "masked for each head"])
def test_attention_without_a_batch_equals_pytorch_s(name: str) -> None:
    options, call, same = CASES[name]
    call = {k: v[0] if k == "key_padding_mask" else v for k, v in call.items()}
    if name == "masked for each head":
        call["attn_mask"] = call["attn_mask"][:H]
    compare(options, call, inputs(options, same, False))


def compare(options: dict, call: dict, arrays: list[np.ndarray]) -> None:
    ours, theirs, torch = twins(options)
    found = run(ours, Tensor, arrays, call)
    expected = run(theirs, torch.tensor, arrays, call)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.oracle
def test_the_start_is_pytorch_s() -> None:
    torch = pytest.importorskip("torch")
    for options in ({}, {"kdim": 40, "add_bias_kv": True}):
        tinyc.manual_seed(0)
        ours = nn.MultiheadAttention(60, 4, **options).state_dict()
        theirs = torch.nn.MultiheadAttention(60, 4, **options).state_dict()
        for key, value in theirs.items():
            std = float(value.std())
            assert ours[key].shape == tuple(value.shape)
            assert ours[key].numpy().std() == pytest.approx(std, rel=0.35), key


def test_causal_needs_no_mask() -> None:
    tinyc.manual_seed(0)
    layer = nn.MultiheadAttention(E, H, batch_first=True)
    x = Tensor(sample(N, L, E))
    y, shares = layer(x, x, x, is_causal=True)
    assert not np.triu(shares.numpy(), 1).any()
    masked, _ = layer(x, x, x, attn_mask=Tensor(CAUSAL), need_weights=False)
    np.testing.assert_allclose(y.numpy(), masked.numpy(), rtol=1e-5, atol=1e-6)


def test_a_row_in_which_nothing_takes_part_gives_zeros() -> None:
    layer = nn.MultiheadAttention(E, H, bias=False)
    x, nothing = Tensor(sample(L, N, E)), Tensor(np.ones((N, L), np.bool_))
    for need_weights in (True, False):
        y, _ = layer(x, x, x, key_padding_mask=nothing, need_weights=need_weights)
        assert not y.numpy().any()


def test_dropout_is_that_of_the_shares_and_of_training_only() -> None:
    tinyc.manual_seed(0)
    layer = nn.MultiheadAttention(E, H, dropout=0.5)
    x = Tensor(sample(L, N, E))
    _, shares = layer(x, x, x, average_attn_weights=False)
    _, others = layer(x, x, x, average_attn_weights=False)
    zeros = (shares.numpy() == 0).mean()
    assert 0.3 < zeros < 0.7 and not np.array_equal(shares.numpy(), others.numpy())
    _, shares = layer.eval()(x, x, x)
    np.testing.assert_allclose(shares.numpy().sum(-1), 1, rtol=1e-5)


def test_misuse_is_explained() -> None:
    with pytest.raises(ValueError, match="embed_dim 10 is no multiple of 3 heads"):
        nn.MultiheadAttention(10, 3)
    layer = nn.MultiheadAttention(E, H)
    x, y = Tensor(sample(L, N, E)), Tensor(sample(S, N, E))
    with pytest.raises(ValueError, match=r"MultiheadAttention.*do not fit.*f32\[7,2,12\]"):
        layer(x, y, x)
    with pytest.raises(ValueError, match=r"attn_mask does not fit.*\(5, 7\) or \(6, 5, 7\)"):
        layer(x, y, y, attn_mask=Tensor(bools(S, L)))
    with pytest.raises(ValueError, match=r"key_padding_mask does not fit.*\(2, 7\)"):
        layer(x, y, y, key_padding_mask=Tensor(bools(N, L)))
    with pytest.raises(TypeError, match=r"attn_mask does not fit.*bool or f32"):
        layer(x, y, y, attn_mask=Tensor(np.zeros((L, S), np.int64)))
