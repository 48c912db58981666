"""Tensors of f16 and bf16: making, showing, converting, gradients, and PyTorch's numbers."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinyc
import tinyc.functional as F
from tinyc import Tensor
from tinyc.diagnostics import DTypeError

HALVES = pytest.mark.parametrize("dtype", [tinyc.f16, tinyc.bf16], ids=repr)


def test_names_are_pytorchs():
    assert tinyc.half is tinyc.float16 is tinyc.f16 and tinyc.bfloat16 is tinyc.bf16
    for name, dtype in (("half", "f16"), ("float16", "f16"), ("bfloat16", "bf16"), ("bf16",) * 2):
        assert repr(Tensor([1.0], dtype=name).dtype) == dtype
    x = Tensor([1.0, 2.0])
    assert x.half().dtype is tinyc.f16 and x.bfloat16().dtype is tinyc.bf16
    assert x.half().float().dtype is tinyc.f32 and x.to(tinyc.bf16).element_size() == 2
    assert x.bfloat16().bfloat16().node is x.bfloat16().node
    assert tinyc.finfo(tinyc.bf16).max > 3e38 and tinyc.finfo(tinyc.f16).max == 65504


@HALVES
def test_values_are_shown_as_numbers(dtype):
    x = Tensor([1.5, -2.0, 0.1], dtype=dtype)
    assert x.tolist()[:2] == [1.5, -2.0] and x[0].item() == 1.5 and float(x[1]) == -2.0
    assert "1.5" in repr(x) and f"dtype={dtype}" in repr(x) and "1.5" in x._repr_html_()
    assert f"{x[0]:.2f}" == "1.50" and bool(x[0] == 1.5) and int(x[1]) == -2
    assert x.allclose(x.float()) and x.equal(Tensor(x)) and not x.equal(x + 1)


@HALVES
def test_creation(dtype):
    assert tinyc.zeros(3, dtype=dtype).tolist() == [0, 0, 0]
    assert tinyc.full((2,), 0.1, dtype=dtype).tolist() == Tensor([0.1, 0.1], dtype=dtype).tolist()
    assert tinyc.arange(5, dtype=dtype).tolist() == [0, 1, 2, 3, 4]
    assert tinyc.ones_like(tinyc.zeros(2, dtype=dtype)).dtype is dtype
    assert tinyc.eye(2, dtype=dtype).tolist() == [[1, 0], [0, 1]]
    drawn = tinyc.rand(4096, dtype=dtype)
    assert drawn.dtype is dtype and drawn.min().item() >= 0 and drawn.max().item() < 1
    normal = tinyc.randn(4096, dtype=dtype)
    assert normal.dtype is dtype and abs(normal.float().std().item() - 1) < 0.1


def test_promotion_and_weak_numbers():
    half, brain = Tensor([1.0], dtype="f16"), Tensor([1.0], dtype="bf16")
    assert (half + brain).dtype is tinyc.f32 and (half + Tensor([1.0])).dtype is tinyc.f32
    assert (half * 2.5).dtype is tinyc.f16 and (3 - brain).dtype is tinyc.bf16
    assert (brain + Tensor([1])).dtype is tinyc.bf16 and (half > 0).dtype is tinyc.bool_
    assert half.sum().dtype is tinyc.f16 and half.mean().dtype is tinyc.f16


def test_numpy_has_f16_of_its_own():
    array = np.array([1.5, 65504, 6e-8], np.float16)
    assert Tensor(array).dtype is tinyc.f16
    np.testing.assert_array_equal(Tensor(array).numpy(), array)
    np.testing.assert_array_equal(np.from_dlpack(Tensor(array)), array)


def test_numpys_bf16_is_that_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([1.5, -3e38, 1e-40], ml_dtypes.bfloat16)
    x = Tensor(array)
    assert x.dtype is tinyc.bf16 and tinyc.from_numpy(array).dtype is tinyc.bf16
    assert x.numpy().dtype == np.asarray(x).dtype == array.dtype
    np.testing.assert_array_equal(x.numpy(), array)
    assert Tensor([0.0], dtype=ml_dtypes.bfloat16).dtype is tinyc.bf16


def test_without_that_package_everything_else_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    x = Tensor([1.5, 2.5], dtype="bf16") * 2
    assert x.tolist() == [3.0, 5.0] and "3." in repr(x)
    np.testing.assert_array_equal(np.asarray(x, np.float32), np.array([3, 5], np.float32))
    assert copy.deepcopy(x.realize()).tolist() == pickle.loads(pickle.dumps(x)).tolist() == [3, 5]
    with pytest.raises(DTypeError, match=r"numpy: .*pip install 'tinyc\[bf16\]'"):
        x.numpy()
    with pytest.raises(DTypeError, match="dlpack"):
        np.from_dlpack(x)


@HALVES
def test_writing_in_place(dtype):
    x = tinyc.zeros(4, dtype=dtype).realize()
    x[1:3] = Tensor([1.1, 2.2])
    x += 1
    x.load([5.0, *x.tolist()[1:]])
    wanted = Tensor([1.1, 2.2], dtype=dtype).tolist()
    assert x.tolist() == [5.0, *(Tensor(wanted, dtype=dtype) + 1).tolist(), 1.0]
    assert x.dtype is dtype


@HALVES
def test_gradients_pass_casts(dtype):
    x = Tensor([0.5, -1.5, 2.0], requires_grad=True)
    (x.to(dtype) * x.to(dtype)).float().sum().backward()
    assert x.grad.dtype is tinyc.f32
    np.testing.assert_allclose(x.grad.numpy(), 2 * x.numpy())
    y = Tensor([0.5, 2.0], dtype=dtype, requires_grad=True)
    (y.float().exp()).sum().backward()
    assert y.grad.dtype is dtype
    assert y.grad.tolist() == Tensor(np.exp([0.5, 2.0]), dtype=dtype).tolist()


@HALVES
def test_jitted_functions_keep_dtypes_apart(dtype):
    @tinyc.jit
    def f(x: Tensor) -> Tensor:
        return (x * 3).softmax(-1)

    x = tinyc.randn(5, 7)
    for _ in range(3):
        assert f(x.to(dtype)).dtype is dtype and f(x).dtype is tinyc.f32
        assert f(x.to(dtype)).allclose((x.to(dtype) * 3).softmax(-1), atol=1e-2)


FUNCTIONS: list[tuple[str, Callable[..., Any]]] = [
    ("chain", lambda m, x, w: (x * 0.7 + x).relu() - x / 3),
    ("powers", lambda m, x, w: x**2 + x**3),
    ("exp", lambda m, x, w: (x * 2).exp().tanh()),
    ("sum", lambda m, x, w: x.sum(1)),
    ("mean", lambda m, x, w: x.mean(0)),
    ("softmax", lambda m, x, w: m.softmax(x, 1)),
    ("log_softmax", lambda m, x, w: m.log_softmax(x, 1)),
    ("gelu", lambda m, x, w: m.gelu(x)),
    ("silu", lambda m, x, w: m.silu(x)),
    ("linear", lambda m, x, w: m.linear(x, w, w[:, 0])),
    ("matmul", lambda m, x, w: x @ w.T),
    ("layer_norm", lambda m, x, w: m.layer_norm(x, (24,), w[0], w[1])),
    ("conv", lambda m, x, w: m.conv2d(x.reshape(1, 2, 8, 24), w.reshape(4, 2, 3, 16))),
    ("attention", lambda m, x, w: m.scaled_dot_product_attention(
        x.reshape(2, 8, 24), x.reshape(2, 8, 24), x.reshape(2, 8, 24), is_causal=True)),
]


@pytest.mark.oracle
@HALVES
@pytest.mark.parametrize(("name", "function"), FUNCTIONS, ids=[f[0] for f in FUNCTIONS])
def test_forward_and_backward_agree_with_pytorch(dtype, name, function):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype("f") * 0.5 for shape in ((16, 24), (16, 24))]
    theirs = torch.float16 if dtype is tinyc.f16 else torch.bfloat16
    ours = [Tensor(a).to(dtype).detach().requires_grad_() for a in arrays]
    torchs = [torch.tensor(a).to(theirs).requires_grad_() for a in arrays]
    mine, wanted = function(F, *ours), function(torch.nn.functional, *torchs)
    assert mine.dtype is dtype
    cotangent = rng.standard_normal(tuple(wanted.shape)).astype("f")
    mine.backward(Tensor(cotangent).to(dtype))
    wanted.backward(torch.tensor(cotangent).to(theirs))
    grads = [(o.grad, t.grad) for o, t in zip(ours, torchs) if t.grad is not None]
    for a, b in [(mine, wanted), *grads]:
        assert a.dtype is dtype
        got, want = np.asarray(a, np.float32), b.detach().float().numpy()
        # PyTorch rounds between the parts of what is one function here.
        steps = 4 * tinyc.finfo(dtype).eps
        np.testing.assert_allclose(got, want, steps, steps * np.abs(want).max(), err_msg=name)


@pytest.mark.oracle
def test_tensors_of_pytorch_are_taken_over():
    torch = pytest.importorskip("torch")
    x = torch.tensor([1.5, 3e38, 0.1], dtype=torch.bfloat16)
    assert Tensor(x).dtype is tinyc.bf16 and Tensor(x).tolist() == x.tolist()
    assert Tensor(x.half()[:1]).dtype is tinyc.f16
