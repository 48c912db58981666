"""`tinyc.boundary` and `tinyc.fuse` on tensors: values, gradients, capture, errors."""

from __future__ import annotations

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, compiler, config
from tinyc.diagnostics import FusionError

ROWS = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)


@pytest.fixture(params=["numpy", "cpu", "interpret"], autouse=True)
def _device(request: pytest.FixtureRequest):
    with config.configure(device=request.param):
        yield


compiled = pytest.mark.parametrize("_device", ["cpu", "interpret"], indirect=True)


def kernels(function, *args) -> int:
    with compiler.observe() as runs:
        function(*args)
    return sum(len(run.executable.program.kernels) for run in runs)


def cut(x: Tensor) -> Tensor:
    return (tinyc.boundary(x.exp() * 2).tanh() * 3).sum()


def whole(x: Tensor) -> Tensor:
    return ((x.exp() * 2).tanh() * 3).sum()


def test_a_boundary_changes_no_value_and_no_gradient() -> None:
    x, y = (Tensor(ROWS, requires_grad=True) for _ in range(2))
    a, b = cut(x), whole(y)
    a.backward()
    b.backward()
    assert a.item() == pytest.approx(b.item(), rel=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-4, atol=1e-6)


@compiled
def test_a_boundary_adds_kernels_forward_and_backward() -> None:
    def step(function):
        x = Tensor(ROWS, requires_grad=True)
        loss = function(x)
        loss.backward()
        return loss.item(), x.grad.numpy()

    assert kernels(step, whole) < kernels(step, cut) == 3


@compiled
def test_a_boundary_in_a_captured_function() -> None:
    f = tinyc.jit(cut)
    first = f(Tensor(ROWS)).item()
    assert f(Tensor(ROWS)).item() == first == pytest.approx(cut(Tensor(ROWS)).item(), rel=1e-5)
    assert "boundary(" in f.graph() and f.captures == 1
    assert f.program.kernels[0].name.startswith("k0_boundary")


def test_boundaries_of_views_and_of_a_method() -> None:
    x = Tensor(ROWS)
    np.testing.assert_array_equal(tinyc.boundary(x.T[3:7]).numpy(), ROWS.T[3:7])
    np.testing.assert_array_equal(x.boundary().numpy(), ROWS)


@tinyc.fuse
def share(x: Tensor) -> Tensor:
    """Its large result needs a total."""
    return x / x.sum()


LONG = np.linspace(1, 2, 1 << 16, dtype=np.float32)


def test_a_fused_function_computes_the_same() -> None:
    assert share.__name__ == "share" and "total" in share.__doc__
    x = np.linspace(1, 2, 100, dtype=np.float32)
    np.testing.assert_allclose(share(Tensor(x)).numpy(), x / x.sum(), rtol=1e-5)
    np.testing.assert_allclose(share(x).numpy(), x / x.sum(), rtol=1e-5)


def test_results_keep_their_form_and_gradients() -> None:
    @tinyc.fuse
    def pair(x: Tensor, scale: float, *, other: dict) -> dict:
        y = x * scale + other["y"]
        return {"y": y, "both": (y.sum(-1), 7), "pick": y.argmax(-1)}

    x = Tensor(ROWS, requires_grad=True)
    found = pair(x, 2.0, other={"y": Tensor(ROWS)})
    np.testing.assert_allclose(found["y"].numpy(), ROWS * 3, rtol=1e-6)
    np.testing.assert_array_equal(found["pick"].numpy(), (ROWS * 3).argmax(-1))
    total, seven = found["both"]
    assert seven == 7
    total.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.full_like(ROWS, 2))


def test_what_has_no_tensors_is_refused() -> None:
    with pytest.raises(TypeError, match="fuse: share was called without tensors"):
        share(3.0)


@pytest.mark.parametrize("_device", ["cpu"], indirect=True)
class TestCompiled:
    def test_a_hint_changes_the_outcome(self) -> None:
        plain = share.__wrapped__
        assert kernels(lambda x: plain(x).numpy(), Tensor(LONG)) == 2
        assert kernels(lambda x: share(x).numpy(), Tensor(LONG)) == 1
        np.testing.assert_allclose(share(Tensor(LONG)).numpy(), LONG / LONG.sum(), rtol=1e-4)

    def test_explain_says_that_it_was_met(self) -> None:
        explanation = tinyc.explain(share, Tensor(LONG))
        assert len(explanation.kernels) == 1

    def test_a_captured_step_with_a_fused_part(self) -> None:
        f = tinyc.jit(lambda x: share(x * 2).sum())
        assert f(Tensor(LONG)).item() == pytest.approx(1, rel=1e-4)
        assert f.captures == 1 and "together(" in f.graph()

    def test_what_can_not_be_one_kernel_says_why_each_time(self) -> None:
        @tinyc.fuse
        def chained(x: Tensor) -> Tensor:
            y = x.softmax(-1)
            return y @ y.T

        x = Tensor(np.ones((400, 400), np.float32))
        first = chained.__wrapped__.__code__.co_firstlineno
        for _ in range(2):
            with pytest.raises(FusionError) as caught:
                chained(x).numpy()
        text = str(caught.value)
        assert "fuse (at test_control.py:" in text
        assert f"contract4 (test_control.py:{first + 3})" in text
        assert "contraction-blocks" in text and "what would change it" in text
        with config.configure(fuse=False):
            assert chained(x).shape == (400, 400) and chained(x).numpy().shape == (400, 400)

    def test_a_failed_hint_leaves_nothing_behind(self) -> None:
        x = Tensor(np.ones((400, 400), np.float32))
        with pytest.raises(FusionError):
            tinyc.fuse(lambda x: tinyc.boundary(x.exp()).sum(-1))(x).numpy()
        assert (x + 1).sum().item() == 2 * 400 * 400
