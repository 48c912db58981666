"""Encoder and decoder layers and their stacks, beside PyTorch's with the same state dict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinyc
import tinyc.nn.functional as F
from tinyc import Tensor, compiler, nn, optim

D, N, L, S = 12, 2, 5, 7


def sample(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


LAYERS: dict[str, dict] = {
    "post-norm": {},
    "pre-norm": {"norm_first": True, "activation": "gelu", "batch_first": True},
    "without biases": {"bias": False, "layer_norm_eps": 1e-3},
}
PADDING = np.arange(L) >= np.array([[L], [L - 2]])
CAUSAL = np.triu(np.ones((L, L), np.bool_), 1)


def results(model: Any, wrap: Any, arrays: list[np.ndarray], options: dict) -> list[np.ndarray]:
    given = [wrap(array, requires_grad=True) for array in arrays]
    options = {k: wrap(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    y = model(*given, **options)
    (y * wrap(sample(*y.shape, seed=9))).sum().backward()
    found = [y, *[x.grad for x in given], *[p.grad for p in model.parameters()]]
    return [r.detach().numpy() for r in found]


def check(make: Any, arrays: list[np.ndarray], options: dict) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    ours, theirs = make(nn), make(torch.nn)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    found = results(ours, Tensor, arrays, options)
    expected = results(theirs, torch.tensor, arrays, options)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    state = {key: torch.tensor(value.numpy()) for key, value in ours.state_dict().items()}
    theirs.load_state_dict(state)


def of_shape(options: dict, length: int, seed: int = 0) -> np.ndarray:
    first = options.get("batch_first")
    return sample(*((N, length, D) if first else (length, N, D)), seed=seed)


@pytest.mark.oracle
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_an_encoder_layer_equals_pytorch_s(name: str, masked: bool) -> None:
    options = LAYERS[name]
    call: dict = {}
    if masked:
        call = {"src_mask": CAUSAL, "src_key_padding_mask": PADDING, "is_causal": True}
    check(lambda nn: nn.TransformerEncoderLayer(D, 3, 20, 0.0, **options),
          [of_shape(options, L)], call)  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_decoder_layer_equals_pytorch_s(name: str, masked: bool) -> None:
    options = LAYERS[name]
    call: dict = {}
    if masked:
        call = {"tgt_mask": CAUSAL, "tgt_is_causal": True, "memory_mask": sample(L, S, seed=4) > 1}
    check(lambda nn: nn.TransformerDecoderLayer(D, 3, 20, 0.0, **options),
          [of_shape(options, L), of_shape(options, S, 1)], call)  # fmt: skip


@pytest.mark.oracle
def test_stacks_equal_pytorch_s() -> None:
    def encoder(nn: Any) -> Any:
        layer = nn.TransformerEncoderLayer(D, 2, 16, 0.0, batch_first=True, norm_first=True)
        return nn.TransformerEncoder(layer, 2, nn.LayerNorm(D), enable_nested_tensor=False)

    def decoder(nn: Any) -> Any:
        return nn.TransformerDecoder(nn.TransformerDecoderLayer(D, 2, 16, 0.0), 2, nn.LayerNorm(D))

    check(encoder, [sample(N, L, D)], {"mask": CAUSAL})
    check(decoder, [sample(L, N, D), sample(S, N, D)], {"tgt_mask": CAUSAL})


def test_layers_of_a_stack_have_weights_of_their_own() -> None:
    layer = nn.TransformerEncoderLayer(D, 2, 16)
    stack = nn.TransformerEncoder(layer, 2)
    first, second = (part.linear1.weight for part in stack.layers)
    np.testing.assert_array_equal(first.numpy(), layer.linear1.weight.numpy())
    np.testing.assert_array_equal(first.numpy(), second.numpy())
    assert len(list(stack.parameters())) == 2 * len(list(layer.parameters()))
    assert first is not second and first.requires_grad


def test_any_function_is_an_activation() -> None:
    layer = nn.TransformerEncoderLayer(D, 2, 16, 0.0, activation=F.silu)
    other = nn.TransformerEncoderLayer(D, 2, 16, 0.0)
    other.load_state_dict(layer.state_dict())
    x = Tensor(sample(L, N, D))
    assert not np.allclose(layer(x).numpy(), other(x).numpy())
    with pytest.raises(ValueError, match="activation is relu, gelu or a function, not 'swish'"):
        nn.TransformerEncoderLayer(D, 2, activation="swish")


def test_a_jitted_encoder_learns_and_compiles_once() -> None:
    tinyc.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 24, 0.1, "gelu", batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Embedding(11, D), nn.TransformerEncoder(layer, 2), nn.Linear(D, 11))
    optimizer = optim.AdamW(model.parameters(), lr=3e-3)
    tokens = Tensor(np.random.default_rng(0).integers(0, 11, (4, L)))

    @tinyc.jit
    def step(tokens: Tensor) -> Tensor:
        loss = F.cross_entropy(model(tokens).reshape(-1, 11), tokens.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    losses = [step(tokens).item()]
    made = compiler.compilations
    losses += [step(tokens).item() for _ in range(60)]
    assert compiler.compilations == made and step.captures == 1
    assert losses[-1] < 0.2 * losses[0]
