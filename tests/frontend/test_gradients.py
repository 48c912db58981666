"""Differentiation as users see it: backward, its modes, and the functional forms."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, config
from tinyc.diagnostics import TinycError
from tinyc.ir.node import interned_count


@pytest.fixture(params=["numpy", "interpret"], autouse=True)
def _device(request: pytest.FixtureRequest) -> Iterator[None]:
    with config.configure(device=request.param):
        yield


numpy_only = pytest.mark.parametrize("_device", ["numpy"], indirect=True)


def test_fan_out_accumulates() -> None:
    x = Tensor(3.0, requires_grad=True)
    (x * x).backward()
    assert x.grad.item() == 6
    x.grad = None
    (2 * x + 3 * x).backward()
    assert x.grad.item() == 5
    x.grad = None
    y = x.sin()
    (y * y + y).backward()
    s, c = np.sin(3), np.cos(3)
    assert x.grad.item() == pytest.approx(2 * s * c + c, rel=1e-5)


def test_forty_doublings() -> None:
    x = Tensor(np.float64(1), requires_grad=True)
    start, before = time.perf_counter(), interned_count()
    y = x
    for _ in range(40):
        y = y + y
    y.backward()
    assert interned_count() - before < 200
    assert x.grad.item() == 2.0**40
    assert time.perf_counter() - start < 2


@numpy_only
def test_ten_thousand_operations() -> None:
    x = Tensor(np.float64(1), requires_grad=True)
    y = x
    for _ in range(10_000):
        y = y + 1e-4
    y.backward()
    assert x.grad.item() == 1
    assert y.item() == pytest.approx(2)
    z = x
    for _ in range(3000):
        z = z.reshape(1).reshape(())
    assert z.item() == 1


def test_broadcast_gradients() -> None:
    a = np.arange(6.0).reshape(2, 3) + 1
    b = np.array([1.0, 2.0, 3.0])
    for op, da, db in [
        (lambda x, y: x * y, np.broadcast_to(b, (2, 3)), a.sum(0)),
        (lambda x, y: x / y, np.broadcast_to(1 / b, (2, 3)), (-a / b**2).sum(0)),
        (lambda x, y: x**y, b * a ** (b - 1), (a**b * np.log(a)).sum(0)),
        (lambda x, y: x - y, np.ones((2, 3)), -2 * np.ones(3)),
    ]:
        x, y = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
        op(x, y).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), da)
        np.testing.assert_allclose(y.grad.numpy(), db)


def test_gradients_accumulate_until_they_are_set_to_none() -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    for times in (1, 2, 3):
        (x * 2).sum().backward()
        assert x.grad.tolist() == [2 * times] * 2
    held = x.grad
    (x * 2).sum().backward()
    assert held is x.grad
    x.grad = None
    assert x.grad is None


def test_a_gradient_for_several_elements() -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    (x * x).backward(Tensor([1.0, 10.0]))
    assert x.grad.tolist() == [2, 40]
    with pytest.raises(ValueError, match="a gradient is needed"):
        (x * x).backward()
    with pytest.raises(ValueError, match="gradient's shape differs"):
        (x * x).backward(Tensor([1.0]))


def test_constants_of_equal_value_are_not_confused() -> None:
    x = tinyc.ones(3, requires_grad=True)
    y = tinyc.ones(3, requires_grad=True)
    z = tinyc.ones(3)
    (x * 2 + y * 3 + z * 5).sum().backward()
    assert x.grad.tolist() == [2] * 3
    assert y.grad.tolist() == [3] * 3
    w = Tensor([1.0, 2.0], requires_grad=True)
    a, b = (w * 2).detach().requires_grad_(), (w * 2).detach().requires_grad_()
    (a * 3 + b * 4).sum().backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([3, 3], [4, 4])
    assert w.grad is None


def test_no_grad_nests_decorates_and_is_entered_again() -> None:
    x = Tensor([1.0], requires_grad=True)
    guard = tinyc.no_grad()
    with guard:
        with guard:
            assert not (x * 2).requires_grad
        assert not (x * 2).requires_grad
        with tinyc.enable_grad():
            assert (x * 2).requires_grad
        assert not tinyc.is_grad_enabled()
    assert (x * 2).requires_grad

    @tinyc.no_grad()
    def first(t: Tensor) -> Tensor:
        return t * 2

    @tinyc.no_grad
    def second(t: Tensor) -> Tensor:
        return t * 2

    assert not first(x).requires_grad
    assert not second(x).requires_grad
    assert first.__name__ == "first"
    with pytest.raises(ZeroDivisionError), tinyc.no_grad():
        raise ZeroDivisionError
    assert tinyc.is_grad_enabled()
    with tinyc.set_grad_enabled(False):
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_what_no_grad_made_passes_no_gradient_on() -> None:
    x = Tensor([3.0], requires_grad=True)
    with tinyc.no_grad():
        y = x * 2
    (x * 2 + y).sum().backward()
    assert x.grad.tolist() == [2]
    x.grad = None
    (x * x.detach()).sum().backward()
    assert x.grad.tolist() == [3]
    x.grad = None
    (x * x.data + (x * 5).detach() * x).sum().backward()
    assert x.grad.tolist() == [18]


def test_views_and_writes_pass_gradients() -> None:
    w = Tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    w[1:3].sum().backward()
    assert w.grad.tolist() == [0, 1, 1, 0]
    w.grad = None
    (w.reshape(2, 2).T[0] * Tensor([10.0, 20.0])).sum().backward()
    assert w.grad.tolist() == [10, 0, 20, 0]
    w.grad = None
    y = tinyc.zeros(4)
    y[:2] = w[2:] * 3
    y += 1
    (y * y).sum().backward()
    assert w.grad.tolist() == [0, 0, 60, 78]
    w.grad = None
    data = Tensor([0.0, 0.0])
    data.copy_(w[:2] * 2)
    assert data.requires_grad
    data.sum().backward()
    assert w.grad.tolist() == [2, 2, 0, 0]


def test_leaves_are_not_written_in_place_while_recording() -> None:
    w = Tensor([1.0, 2.0], requires_grad=True)
    for write in (
        lambda: w.add_(1),
        lambda: w[:1].zero_(),
        lambda: w.__setitem__(0, 1.0),
        lambda: w.__imul__(2),
    ):
        with pytest.raises(TinycError, match="leaf that requires grad"):
            write()
    with tinyc.no_grad():
        w[0] = 5
    assert w.tolist() == [5, 2]


def test_leaf_attributes() -> None:
    w = Tensor([1.0], requires_grad=True)
    y = w * 2
    assert w.is_leaf
    assert not y.is_leaf
    assert y.detach().is_leaf
    with pytest.raises(TinycError, match="only leaves"):
        y.requires_grad_(False)
    w.requires_grad_(False)
    assert not (w * 2).requires_grad
    w.requires_grad = True
    assert (w * 2).requires_grad
    with pytest.raises(TypeError, match="not a float"):
        Tensor([1]).requires_grad_()
    assert not (w > 0).requires_grad
    with pytest.raises(TinycError, match="does not require grad"):
        Tensor([1.0]).sum().backward()


def test_retained_gradients_and_hooks() -> None:
    w = Tensor([2.0, 1.0], requires_grad=True)
    w.register_hook(lambda g: g * 10)
    w.register_hook(lambda g: None)
    h = w * 3
    h.retain_grad()
    (h * h).sum().backward()
    assert h.grad.tolist() == [12, 6]
    assert w.grad.tolist() == [360, 180]


def test_graphs_may_be_used_twice_when_asked_for() -> None:
    w = Tensor([2.0], requires_grad=True)
    loss = (w * w).sum()
    loss.backward(retain_graph=True)
    loss.realize()
    loss.backward()
    assert w.grad.tolist() == [8]
    loss = (w * w * w).sum()
    loss.backward()
    loss.realize()
    with pytest.raises(TinycError, match="retain_graph=True"):
        loss.backward()


def test_printing_before_backward() -> None:
    w = Tensor([2.0, 3.0], requires_grad=True)
    loss = (w * w).sum()
    assert loss.item() == 13
    loss.backward()
    assert w.grad.tolist() == [4, 6]


def test_create_graph_gives_second_derivatives() -> None:
    x = Tensor(3.0, requires_grad=True)
    (x**3).backward(create_graph=True)
    first = x.grad
    x.grad = None
    first.backward()
    assert first.item() == 27
    assert x.grad.item() == 18


def test_functional_forms() -> None:
    cube = tinyc.grad(lambda x: (x**3).sum())
    x = Tensor(2.0)
    assert cube(x).item() == 12
    assert tinyc.grad(cube)(x).item() == 12
    assert tinyc.grad(tinyc.grad(cube))(x).item() == 6
    value, (da, db) = tinyc.value_and_grad(lambda a, b: (a * b).sum(), argnums=(0, 1))(
        Tensor([1.0, 2.0]), Tensor([3.0, 4.0])
    )
    assert (value.item(), da.tolist(), db.tolist()) == (11, [3, 4], [1, 2])
    found, extra = tinyc.grad(lambda a: (a.sum(), a * 2), has_aux=True)(Tensor([1.0, 2.0]))
    assert found.tolist() == [1, 1]
    assert extra.tolist() == [2, 4]
    y, pull = tinyc.vjp(lambda a, b: a @ b, Tensor([[1.0, 2.0]]), Tensor([[3.0], [4.0]]))
    left, right = pull(Tensor([[10.0]]))
    assert (y.item(), left.tolist(), right.tolist()) == (11, [[30, 40]], [[10], [20]])


def test_functional_forms_look_at_values_and_close_over_parameters() -> None:
    w = Tensor([2.0], requires_grad=True)
    seen = []

    def penalty(x: Tensor) -> Tensor:
        seen.append((x * 2).item())
        return (x * x * w).sum()

    slope = tinyc.grad(penalty)(Tensor([3.0]))
    assert seen == [6]
    assert slope.tolist() == [12]
    assert slope.requires_grad
    slope.sum().backward()
    assert w.grad.tolist() == [6]
    assert not tinyc.grad(lambda x: (x * x).sum())(Tensor([1.0])).requires_grad


def test_backward_frees_what_it_used() -> None:
    w = Tensor(np.ones(8), requires_grad=True)
    counts = []
    for _ in range(6):
        loss = (w.exp() * w).sum()
        loss.backward()
        loss.item()
        w.grad = None
        del loss
        gc.collect()
        counts.append(interned_count())
    assert counts[-1] <= counts[1]


VIEWS = {
    "reshape": (lambda x: x.reshape(4, 3), lambda y: y.reshape(-1)),
    "transpose": (lambda x: x.T, lambda y: y.T),
    "slice": (lambda x: x[1:], lambda y: y[:, 1:]),
    "expand": (lambda x: x.unsqueeze(1), lambda y: y.expand(3, 2, 4)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_that_is_viewed_again_keeps_its_gradient(name):
    first, second = VIEWS[name]
    x = Tensor(np.arange(12.0).reshape(3, 4), requires_grad=True)
    y = first(x)
    y.retain_grad()
    second(y).square().sum().backward()
    assert y.grad.shape == y.shape
    if name == "slice":
        assert y.grad.tolist() == [[0, 10, 12, 14], [0, 18, 20, 22]]
