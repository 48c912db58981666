"""Clipping of gradients and parameters as vectors, beside PyTorch's and inside jit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, compiler, nn, optim
from tinyc.nn.utils import (
    clip_grad_norm_,
    clip_grad_value_,
    parameters_to_vector,
    vector_to_parameters,
)

SHAPES = [(3, 5), (5,), (1,), (2, 3, 4)]


def arrays(seed: int, dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


def with_gradients(wrap: Any, dtype: Any = np.float32) -> list[Any]:
    """Parameters of one library with gradients, except for the second."""
    params = [wrap(array) for array in arrays(0, dtype)]
    for param, grad in zip(params, arrays(1, dtype)):
        param.grad = wrap(grad)
    params[1].grad = None
    return params


def pairs() -> tuple[list[Any], list[Any], Any]:
    torch = pytest.importorskip("torch")
    return with_gradients(Tensor), with_gradients(torch.tensor), torch.nn.utils


def assert_gradients_equal(ours: list[Any], theirs: list[Any]) -> None:
    assert ours[1].grad is None
    for mine, other in zip(ours, theirs):
        if other.grad is not None:
            assert mine.grad.shape == tuple(other.grad.shape)
            np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize("arena", [False, True])
@pytest.mark.parametrize("most", [0.5, 100.0])
@pytest.mark.parametrize("kind", [1, 2.0, 3.5, math.inf])
def test_norms_are_pytorch_s(kind: float, most: float, arena: bool) -> None:
    ours, theirs, utils = pairs()
    if arena:
        optim.SGD(ours[::-1])
    norm = clip_grad_norm_(ours, most, norm_type=kind)
    expected = utils.clip_grad_norm_(theirs, most, norm_type=kind)
    assert norm.shape == () and norm.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_gradients_equal(ours, theirs)


@pytest.mark.oracle
def test_values_are_pytorch_s() -> None:
    ours, theirs, utils = pairs()
    clip_grad_value_(ours, 0.7)
    utils.clip_grad_value_(theirs, 0.7)
    assert_gradients_equal(ours, theirs)
    clip_grad_value_(ours[0], 0.1)
    assert abs(ours[0].grad.numpy()).max() == np.float32(0.1)


def test_gradients_of_several_dtypes_have_one_norm() -> None:
    params = [Tensor(np.ones(3, np.float32)), Tensor(np.ones(2, np.float64))]
    for param, value in zip(params, (2.0, 3.0)):
        param.grad = param * value
    norm = clip_grad_norm_([*params, params[0]], 1.0)
    assert norm.item() == pytest.approx(math.sqrt(12 + 18))
    assert [param.grad.dtype for param in params] == [tinyc.f32, tinyc.f64]
    total = sum(float((param.grad**2).sum()) for param in params)
    assert total == pytest.approx(1.0, rel=1e-5)


def test_a_norm_that_is_not_finite() -> None:
    (param,) = params = [Tensor([1.0, 2.0])]
    param.grad = Tensor([math.inf, 1.0])
    with pytest.raises(RuntimeError, match="the norm of the gradients is inf"):
        clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert param.grad.tolist() == [math.inf, 1.0]
    assert clip_grad_norm_(params, 1.0).item() == math.inf
    np.testing.assert_array_equal(param.grad.numpy(), [math.nan, 0.0])
    with pytest.raises(ValueError, match="norm_type is above 0, not -1"):
        clip_grad_norm_(params, 1.0, -1)


def test_without_gradients_there_is_nothing_to_clip() -> None:
    assert clip_grad_norm_([Tensor([1.0])], 1.0).item() == 0.0
    clip_grad_value_([], 1.0)


def their_losses(steps: int) -> tuple[list[float], dict[str, np.ndarray]]:
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    start = {key: value.numpy().copy() for key, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(net(torch.tensor(X)), torch.tensor(Y)) * 10
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        losses.append((loss.item(), norm.item()))
    return losses, start


X = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
Y = np.arange(8) % 3


@pytest.mark.oracle
@pytest.mark.parametrize("jit", [False, True])
def test_clipped_training_is_pytorch_s_and_compiles_once(jit: bool) -> None:
    pytest.importorskip("torch")
    expected, start = their_losses(6)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    net.load_state_dict(start)
    optimizer = optim.AdamW(net.parameters(), lr=0.05)

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss = nn.functional.cross_entropy(net(x), y) * 10
        optimizer.zero_grad()
        loss.backward()
        norm = clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        return loss, norm

    step = tinyc.jit(step) if jit else step
    found = []
    for number in range(6):
        loss, norm = step(Tensor(X), Tensor(Y))
        found.append((loss.item(), norm.item()))
        if number == 1:
            made = compiler.compilations
    assert compiler.compilations == made
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_vectors_hold_the_parameters_in_order() -> None:
    net = nn.Linear(2, 3)
    optim.SGD(net.parameters())
    expected = np.concatenate([param.numpy().ravel() for param in net.parameters()])
    vector = parameters_to_vector(net.parameters())
    np.testing.assert_array_equal(vector.numpy(), expected)
    vector.square().sum().backward()
    np.testing.assert_allclose(net.weight.grad.numpy(), 2 * net.weight.numpy(), rtol=1e-6)
    vector_to_parameters(Tensor(np.arange(9.0, dtype=np.float32)), net.parameters())
    assert net.weight.tolist() == [[0, 1], [2, 3], [4, 5]] and net.bias.tolist() == [6, 7, 8]
    with pytest.raises(ValueError, match=r"a vector of shape \(8,\); the parameters have 9"):
        vector_to_parameters(Tensor(np.zeros(8, np.float32)), net.parameters())
