"""Whole models trained for some steps: the losses are PyTorch's, with jit and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, nn, optim
from tinyc.models import LeNet, SmallCNN


def norm_net(nn: Any) -> Any:
    """A net with batch norm, strides and average pooling, from either library."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.GELU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(12 * 49, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 10),
    )  # fmt: skip


def batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        (rng.standard_normal((8, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 8))
        for _ in range(count)
    ]


def twin(model: nn.Module) -> Any:
    """PyTorch's model of the same structure, with the same weights."""
    import torch

    def copy(module: nn.Module) -> Any:
        children = [copy(child) for child in module.children()]
        # The repr of a layer is the call that makes it.
        return torch.nn.Sequential(*children) if children else eval(f"torch.nn.{module!r}")

    theirs = copy(model)
    values = [torch.tensor(value.numpy()) for value in model.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values)))
    return theirs


def their_losses(theirs: Any, kind: str, options: dict) -> list[float]:
    import torch

    optimizer = getattr(torch.optim, kind)(theirs.parameters(), **options)
    losses = []
    for x, y in batches(10):
        loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def our_losses(model: nn.Module, kind: str, options: dict, jit: bool) -> list[float]:
    optimizer = getattr(optim, kind)(model.parameters(), **options)

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    step = tinyc.jit(step) if jit else step
    return [step(Tensor(x), Tensor(y)).item() for x, y in batches(10)]


MODELS = {"lenet": LeNet, "cnn": SmallCNN, "norms": lambda: norm_net(nn)}


@pytest.mark.oracle
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", MODELS)
def test_ten_losses_are_pytorch_s(name: str, jit: bool) -> None:
    pytest.importorskip("torch")
    kind, options = ("SGD", {"lr": 0.01, "momentum": 0.9}) if name != "cnn" else ("Adam", {})
    tinyc.manual_seed(0)
    model = MODELS[name]()
    expected = their_losses(twin(model), kind, options)
    np.testing.assert_allclose(our_losses(model, kind, options, jit), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_thousand_steps_leave_no_growth(kind: str) -> None:
    from tinyc import state
    from tinyc.runtime.buffer import ALLOCATOR

    model = nn.Linear(4, 2)
    optimizer = getattr(optim, kind)(model.parameters(), lr=0.01)
    x, y = Tensor(np.ones((3, 4), np.float32)), Tensor(np.array([0, 1, 0]))
    live, expressions = [], []
    for i in range(1000):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        if i in (100, 999):
            live.append(ALLOCATOR.live_bytes)
            expressions.append(len(state.live_expressions()))
    assert live[1] <= live[0]
    assert expressions[1] <= expressions[0]


def test_evaluation_uses_running_statistics_and_leaves_them() -> None:
    tinyc.manual_seed(0)
    model = norm_net(nn)
    (x, _), *_ = batches(1)
    model(Tensor(x)).numpy()
    before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    model.eval()
    one = model(Tensor(x[:1])).numpy()
    np.testing.assert_allclose(model(Tensor(x)).numpy()[:1], one, rtol=1e-4, atol=1e-5)
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])
