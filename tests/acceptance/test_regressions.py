"""Mistakes that deep-learning libraries have made, each as a small program that must be right."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import tinyc
import tinyc.nn.functional as F
from tinyc import Tensor, data, nn, optim
from tinyc.ir.node import toposort


def leaf(values: object, dtype: str = "f64") -> Tensor:
    return Tensor(np.asarray(values), dtype=dtype, requires_grad=True)


def slopes(function, *arrays: np.ndarray) -> None:
    """Compare the gradients of a weighted sum of a function with central differences."""
    inputs = [leaf(a) for a in arrays]
    out = function(*inputs)
    weights = np.random.default_rng(1).standard_normal(out.shape)
    (out * Tensor(weights)).sum().backward()
    rng = np.random.default_rng(2)
    directions = [rng.standard_normal(a.shape) for a in arrays]

    def at(step: float) -> float:
        moved = [Tensor(a + step * d) for a, d in zip(arrays, directions)]
        return float((function(*moved) * Tensor(weights)).sum())

    assert all(x.grad is not None for x in inputs)
    slope = sum(float((x.grad.numpy() * d).sum()) for x, d in zip(inputs, directions))
    assert slope == pytest.approx((at(1e-6) - at(-1e-6)) / 2e-6, rel=1e-5, abs=1e-7)


def test_gradients_accumulate_where_values_are_used_twice():
    x = leaf([3.0])
    (x * x).backward()
    assert x.grad.item() == 6
    x = leaf([3.0])
    (2 * x + 3 * x).backward()
    assert x.grad.item() == 5
    x = leaf([0.7])
    y = x.sin()
    (y * y + y).backward()
    assert x.grad.item() == pytest.approx((2 * np.sin(0.7) + 1) * np.cos(0.7))


def test_forty_doublings():
    x = leaf([1.0])
    y = x
    for _ in range(40):
        y = y + y
    start = time.process_time()
    y.sum().backward()
    assert time.process_time() - start < 2
    assert len(toposort((x.grad.node,))) < 400
    assert x.grad.item() == 2.0**40


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_ten_thousand_operations(device):
    with tinyc.configure(device=device):
        x = leaf([1.0, 2.0])
        y = x
        for _ in range(10_000):
            y = y + 1
        y.sum().backward()
        assert y.tolist() == [10_001, 10_002]
        assert x.grad.tolist() == [1, 1]


def block(x: Tensor, w: Tensor) -> Tensor:
    h = F.layer_norm(x, (8,))
    scores = (h @ w[0] @ (h @ w[1]).transpose(-1, -2)).softmax(-1)
    x = x + scores @ (h @ w[2])
    return x + F.gelu(F.layer_norm(x, (8,)) @ w[3])


def test_the_gradient_of_a_deep_transformer_is_linear_in_its_depth():
    sizes = []
    for depth in (1, 2, 4, 8):
        x = tinyc.ones(2, 5, 8)
        weights = [leaf(np.full((4, 8, 8), 0.1), "f32") for _ in range(depth)]
        for w in weights:
            x = block(x, w)
        x.sum().backward()
        sizes.append(len(toposort([w.grad.node for w in weights])))
    steps = [(b - a) / n for a, b, n in zip(sizes, sizes[1:], (1, 2, 4))]
    assert 50 < max(steps) <= 1.1 * min(steps), sizes


X = np.random.default_rng(0).uniform(0.3, 1.5, (3, 4))
IMAGE = np.random.default_rng(3).standard_normal((2, 3, 6, 6))

DIFFERENTIABLE = {
    "mean": lambda x: x.mean(1),
    "max": lambda x: x.amax(1),
    "sum without the axis": lambda x: x.sum(0) * x.sum(0),
    "sqrt": lambda x: x.sqrt(),
    "tanh": lambda x: x.tanh(),
    "sigmoid": lambda x: x.sigmoid(),
    "log_softmax": lambda x: x.log_softmax(1),
    "pad": lambda x: F.pad(x, (1, 2)) ** 2,
    "cat": lambda x: tinyc.cat([x, x * 2, x], 0) ** 2,
    "var": lambda x: x.var(1),
    "min": lambda x: x.amin(0),
    "powers": lambda x: x**3 + 2**x + 1 / x - (1 - x),
    "columns": lambda x: x * x[:, :1] / x[0] ** x[:1, :1],
    "index": lambda x: x[Tensor([0, 2, 2])] * x[1],
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_slopes(name):
    slopes(DIFFERENTIABLE[name], X)


def test_gradients_of_norms_are_slopes():
    gain, bias = np.linspace(0.5, 1.5, 6), np.linspace(-1, 1, 6)
    slopes(lambda x, w, b: F.layer_norm(x, (6,), w, b), IMAGE, gain, bias)
    slopes(
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), IMAGE, gain[:3], bias[:3]
    )


def test_gradients_through_a_small_network_are_slopes():
    rng = np.random.default_rng(4)
    kernel, weight = rng.standard_normal((4, 3, 3, 3)), rng.standard_normal((2, 16))

    def network(x: Tensor, k: Tensor, w: Tensor) -> Tensor:
        pooled = F.max_pool2d(F.conv2d(x, k).tanh(), 2)
        return F.linear(F.avg_pool2d(F.pad(pooled, (1, 1, 1, 1)), 2).flatten(1), w)

    slopes(network, IMAGE, kernel, weight)


def test_large_values_stay_finite():
    far = np.array([[1e4, -1e4, 0.0]], np.float32)
    x = leaf(far, "f32")
    loss = F.cross_entropy(x, Tensor([1]))
    loss.backward()
    assert np.isfinite(loss.item()) and np.isfinite(x.grad.numpy()).all()
    assert x.softmax(-1).tolist() == [[1, 0, 0]]
    for name, ends in (("tanh", [-1, 1]), ("sigmoid", [0, 1])):
        x = leaf([-1e3, 1e3], "f32")
        y = getattr(x, name)()
        y.sum().backward()
        assert y.tolist() == ends and np.isfinite(x.grad.numpy()).all()


def test_dropout():
    x = tinyc.ones(100, 100)
    layer = nn.Sequential(nn.Sequential(nn.Dropout(0.3)))
    tinyc.manual_seed(0)
    share = (layer(x).numpy() == 0).mean()
    assert abs(share - 0.3) < 0.02
    layer.eval()
    assert not layer[0][0].training
    np.testing.assert_array_equal(layer(x).numpy(), x.numpy())


def test_a_loader_shuffles_by_seed():
    numbers = data.TensorDataset(Tensor(np.arange(50)))

    def order(seed: int) -> list[int]:
        loader = data.DataLoader(numbers, batch_size=5, shuffle=True, seed=seed)
        return [value for (batch,) in loader for value in batch.tolist()]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(50)) != order(1)


def test_saving_and_going_on(tmp_path: Path):
    x, y = Tensor(np.eye(4, dtype=np.float32)), Tensor([0, 1, 2, 0])

    def make() -> tuple[nn.Module, optim.Adam]:
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        return model, optim.Adam(model.parameters(), lr=0.05)

    def train(model: nn.Module, optimizer: optim.Adam, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    model, optimizer = make()
    train(model, optimizer, 3)
    path = tmp_path / "state.safetensors"
    tinyc.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    straight = train(model, optimizer, 3)
    model, optimizer = make()
    saved = tinyc.load(path)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert train(model, optimizer, 3) == straight


def test_accumulated_gradients_are_those_of_one_batch():
    model = nn.Linear(4, 3)
    x, y = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32), np.arange(8) % 3
    F.cross_entropy(model(Tensor(x)), Tensor(y)).backward()
    whole = model.weight.grad.numpy()
    model.zero_grad()
    for part in range(4):
        rows = slice(2 * part, 2 * part + 2)
        (F.cross_entropy(model(Tensor(x[rows])), Tensor(y[rows])) / 4).backward()
    np.testing.assert_allclose(model.weight.grad.numpy(), whole, rtol=1e-4, atol=1e-6)
