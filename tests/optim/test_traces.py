"""Optimizers: five steps beside PyTorch's, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tinyc import Tensor, optim

KINDS = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "sgd damped": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "sgd nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "sgd maximize": ("SGD", {"lr": 0.1, "maximize": True, "weight_decay": 0.1}),
    "adam": ("Adam", {"lr": 0.01}),
    "adam decayed": ("Adam", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "adam maximize": ("Adam", {"lr": 0.01, "maximize": True, "eps": 1e-3}),
    "adamw": ("AdamW", {"lr": 0.01}),
    "adamw decayed": ("AdamW", {"lr": 0.01, "weight_decay": 0.3}),
}
SHAPES = [(3, 5), (5,), (1,), (2, 3, 4), (17,)]


def start(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def trace(arrays: list[np.ndarray], make, wrap, gradient, steps: int) -> list[list[np.ndarray]]:
    """Return the parameters after each step; ``gradient(param, i)`` may leave some out."""
    params = [wrap(array) for array in arrays]
    optimizer = make(params)
    history = []
    for step in range(steps):
        optimizer.zero_grad()
        losses = [(p * p * p).sum() for i, p in enumerate(params) if gradient(i, step)]
        sum(losses[1:], losses[0]).backward()
        optimizer.step()
        history.append([p.detach().numpy().copy() for p in params])
    return history


def both(name: str, gradient, steps: int = 5, dtype=np.float32) -> None:
    torch = pytest.importorskip("torch")
    kind, options = KINDS[name]
    arrays = [array.astype(dtype) for array in start()]
    ours = trace(
        arrays, lambda p: getattr(optim, kind)(p, **options),
        lambda a: Tensor(a.copy(), requires_grad=True), gradient, steps,
    )  # fmt: skip
    theirs = trace(
        arrays, lambda p: getattr(torch.optim, kind)(p, **options),
        lambda a: torch.tensor(a, requires_grad=True), gradient, steps,
    )  # fmt: skip
    rtol = 1e-5 if dtype is np.float32 else 1e-12
    for step, (mine, expected) in enumerate(zip(ours, theirs)):
        for a, b in zip(mine, expected):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol / 10, err_msg=f"step {step}")


@pytest.mark.oracle
@pytest.mark.parametrize("name", KINDS)
def test_five_steps_equal_pytorch_s(name: str) -> None:
    both(name, lambda i, step: True)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["sgd momentum", "adamw"])
def test_double_precision_is_kept(name: str) -> None:
    both(name, lambda i, step: True, dtype=np.float64)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["sgd damped", "adam"])
def test_parameters_that_miss_steps_keep_their_own_count(name: str) -> None:
    both(name, lambda i, step: not (i == 1 and step < 2) and not (i == 3 and step % 2))


def test_adam_s_first_steps_in_closed_form() -> None:
    for lr, eps in ((0.1, 1e-8), (0.01, 0.5)):
        w = Tensor(np.array([2.0], np.float64), requires_grad=True)
        optimizer = optim.Adam([w], lr=lr, eps=eps)
        value, mean, square = 2.0, 0.0, 0.0
        for t in range(1, 4):
            optimizer.zero_grad()
            (w * w).sum().backward()
            optimizer.step()
            g = 2 * value
            mean = 0.9 * mean + 0.1 * g
            square = 0.999 * square + 0.001 * g * g
            unbiased = mean / (1 - 0.9**t), square / (1 - 0.999**t)
            value -= lr * unbiased[0] / (math.sqrt(unbiased[1]) + eps)
            assert w.item() == pytest.approx(value, rel=1e-12)


def test_sgd_is_a_geometric_series_on_a_parabola() -> None:
    w = Tensor(np.array([1.0], np.float64), requires_grad=True)
    optimizer = optim.SGD([w], lr=0.25)
    for _ in range(4):
        optimizer.zero_grad()
        (w * w).sum().backward()
        optimizer.step()
    assert w.item() == pytest.approx(0.5**4, rel=1e-12)
