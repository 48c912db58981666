"""Tensor's operations against numpy: arithmetic, reductions, views, indexing, in-place writes."""

from __future__ import annotations

import math
import operator
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, config

RNG = np.random.default_rng(0)


@pytest.fixture(params=["numpy", "interpret"], autouse=True)
def _device(request: pytest.FixtureRequest) -> Iterator[None]:
    with config.configure(device=request.param):
        yield


numpy_only = pytest.mark.parametrize("_device", ["numpy"], indirect=True)


def array(*shape: int, positive: bool = False) -> np.ndarray:
    values = RNG.standard_normal(shape).astype(np.float32)
    return np.abs(values) + 0.5 if positive else values


def same(found: Tensor, wanted, rtol: float = 1e-6) -> None:
    wanted = np.asarray(wanted)
    assert tuple(found.shape) == wanted.shape
    np.testing.assert_allclose(found.numpy(), wanted, rtol=rtol, atol=1e-6)


# Making tensors


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, tinyc.f32),
        (2, tinyc.i64),
        (True, tinyc.bool_),
        ([1.0, 2], tinyc.f32),
        ([[1, 2], [3, 4]], tinyc.i64),
        ([True, False], tinyc.bool_),
        (np.float64(2), tinyc.f64),
        (np.arange(3, dtype=np.uint8), tinyc.u8),
        ([np.float64(1), np.float64(2)], tinyc.f64),
        ([], tinyc.f32),
    ],
)
def test_the_dtype_of_data_is_pytorch_s(data, dtype) -> None:
    assert Tensor(data).dtype is dtype


def test_data_are_copied() -> None:
    data = np.zeros(3, np.float32)
    t = Tensor(data)
    data[0] = 1
    assert t.tolist() == [0, 0, 0]


def test_factories() -> None:
    same(tinyc.zeros(2, 3), np.zeros((2, 3)))
    same(tinyc.ones((2,)), np.ones(2))
    assert tinyc.full((2,), 7).dtype is tinyc.i64
    same(tinyc.full((2,), 0.5), [0.5, 0.5])
    same(tinyc.arange(5), np.arange(5))
    same(tinyc.arange(1, 2, 0.25), np.arange(1, 2, 0.25))
    same(tinyc.arange(5, 0, -2), [5, 3, 1])
    same(tinyc.linspace(0, 1, 5), np.linspace(0, 1, 5))
    same(tinyc.eye(3), np.eye(3))
    x = Tensor(array(2, 2))
    assert tinyc.zeros_like(x).shape == x.shape
    assert tinyc.full_like(x, 3, dtype="i32").dtype is tinyc.i32
    assert tinyc.arange(3, dtype=tinyc.float64).dtype is tinyc.f64


# Arithmetic

BINARY = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    operator.pow,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
    operator.eq,
    operator.ne,
]
SHAPES = [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((), (2, 3)), ((2, 1, 3), (4, 1))]


@pytest.mark.parametrize("op", BINARY, ids=lambda op: op.__name__)
@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_binary_operators_broadcast(op, left, right) -> None:
    a, b = array(*left, positive=True), array(*right, positive=True)
    same(op(Tensor(a), Tensor(b)), op(a, b), rtol=1e-5)


@pytest.mark.parametrize("op", BINARY, ids=lambda op: op.__name__)
@pytest.mark.parametrize("number", [2, 2.5])
def test_numbers_and_arrays_on_either_side(op, number) -> None:
    a = array(3, positive=True)
    same(op(Tensor(a), number), op(a, np.float32(number)), rtol=1e-5)
    same(op(number, Tensor(a)), op(np.float32(number), a), rtol=1e-5)
    other = array(3, positive=True)
    same(op(other, Tensor(a)), op(other, a), rtol=1e-5)
    same(op(Tensor(a), other), op(a, other), rtol=1e-5)


def test_reflected_operators_of_scalars() -> None:
    x = Tensor([2.0, 4.0])
    assert (1 + x).tolist() == [3, 5]
    assert (1 - x).tolist() == [-1, -3]
    assert (1 / x).tolist() == [0.5, 0.25]
    assert (-x).tolist() == [-2, -4]
    assert (x**2).tolist() == [4, 16]
    assert (2**x).tolist() == [4, 16]
    assert abs(-x).tolist() == [2, 4]
    assert (np.float64(3) * x).dtype is tinyc.f32


def test_integers_and_bits() -> None:
    a, b = np.array([6, -7, 3]), np.array([4, 2, -2])
    x, y = Tensor(a), Tensor(b)
    for op in (operator.floordiv, operator.mod, operator.and_, operator.or_, operator.xor):
        same(op(x, y), op(a, b))
    same(~x, ~a)
    same(x << 1, a << 1)
    same(x >> 1, a >> 1)
    assert (x / y).dtype is tinyc.f32
    assert (x + 1.5).dtype is tinyc.f32
    flags = Tensor([True, False])
    assert (flags & ~flags).tolist() == [False, False]
    assert flags.logical_not().tolist() == [False, True]
    assert Tensor([0, 2]).logical_and(Tensor([1, 1])).tolist() == [False, True]


UNARY = {
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "relu": lambda a: np.maximum(a, 0),
    "gelu": lambda a: a * 0.5 * (1 + np.vectorize(math.erf)(a / math.sqrt(2))),
    "abs": np.abs,
    "square": np.square,
    "log1p": np.log1p,
    "floor": np.floor,
    "ceil": np.ceil,
    "sign": np.sign,
    "reciprocal": lambda a: 1 / a,
    "isnan": np.isnan,
    "isfinite": np.isfinite,
}


@pytest.mark.parametrize("name", UNARY)
def test_functions(name) -> None:
    a = array(3, 4, positive=True)
    same(getattr(Tensor(a), name)(), UNARY[name](a), rtol=1e-5)
    if hasattr(tinyc, name):
        same(getattr(tinyc, name)(Tensor(a)), UNARY[name](a), rtol=1e-5)


def test_choices() -> None:
    a, b = array(3, 4), array(3, 4)
    x, y = Tensor(a), Tensor(b)
    same(tinyc.where(x > 0, x, y), np.where(a > 0, a, b))
    same(tinyc.where(x > 0, 1.0, y), np.where(a > 0, 1, b))
    same(tinyc.maximum(x, y), np.maximum(a, b))
    same(x.minimum(y), np.minimum(a, b))
    same(x.clip(-0.5, 0.5), a.clip(-0.5, 0.5))
    same(x.clamp(min=0), a.clip(0))
    same(x.masked_fill(x < 0, 9.0), np.where(a < 0, 9, a))


# NaN and infinities


def test_nan_propagates() -> None:
    for values in ([1.0, math.nan, 3.0], [math.nan, 1.0, 3.0]):
        x = Tensor(values)
        assert math.isnan(x.max().item())
        assert math.isnan(x.min().item())
        assert np.isnan(x.relu().numpy()).tolist() == [math.isnan(v) for v in values]
        assert x.argmax().item() == [math.isnan(v) for v in values].index(True)
        assert math.isnan(tinyc.maximum(x, 0.0).max().item())
        assert math.isnan(x.clip(0, 1).sum().item())


def test_no_algebra_that_floats_do_not_obey() -> None:
    x = Tensor([0.0, math.inf, math.nan, 2.0])
    a = x.numpy()
    with np.errstate(all="ignore"):
        for found, wanted in [
            (x / x, a / a),
            (x * 0, a * 0),
            (x - x, a - a),
            (x * 0.0 + 1, a * 0 + 1),
            ((x * x) / x, a * a / a),
            (0 / x, 0 / a),
        ]:
            np.testing.assert_array_equal(found.numpy(), wanted)


# Reductions


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
@pytest.mark.parametrize("axes", [None, 0, -1, (0, 2), [-1, 0]])
@pytest.mark.parametrize("keep", [False, True])
def test_reductions(name, axes, keep) -> None:
    a = array(2, 3, 4)
    function = {"amax": "max", "amin": "min"}.get(name, name)
    numpy_axes = tuple(axes) if isinstance(axes, (tuple, list)) else axes
    wanted = getattr(a, function)(axis=numpy_axes, keepdims=keep)
    same(getattr(Tensor(a), name)(axes, keepdim=keep), wanted, rtol=1e-5)
    same(getattr(Tensor(a), name)(axis=axes, keepdims=keep), wanted, rtol=1e-5)


def test_spread_and_extremes() -> None:
    a = array(3, 5)
    x = Tensor(a)
    same(x.var(), a.var(ddof=1), rtol=1e-5)
    same(x.var(1, correction=0), a.var(1), rtol=1e-5)
    same(x.var(unbiased=False), a.var(), rtol=1e-5)
    same(x.std(0, keepdim=True), a.std(0, ddof=1, keepdims=True), rtol=1e-5)
    same(x.max(), a.max())
    values, indices = x.max(1)
    same(values, a.max(1))
    same(indices, a.argmax(1))
    assert x.min(dim=0, keepdim=True).indices.shape == (1, 5)
    same(x.max(Tensor(-a)), np.maximum(a, -a))
    same(x.argmin(0), a.argmin(0))
    assert x.argmax().item() == a.argmax()
    assert (x > 9).any().item() is False
    assert (x < 9).all().item() is True
    same(x.logsumexp(1), np.log(np.exp(a).sum(1)), rtol=1e-5)
    e = np.exp(a)
    same(x.softmax(1), e / e.sum(1, keepdims=True), rtol=1e-5)
    same(x.log_softmax(dim=0), np.log(e / e.sum(0)), rtol=1e-5)
    assert Tensor([True, True]).sum().item() == 2
    assert Tensor([1, 2]).mean().dtype is tinyc.f32


def test_products() -> None:
    a, b = array(3, 4), array(4, 5)
    same(Tensor(a) @ Tensor(b), a @ b, rtol=1e-5)
    same(a @ Tensor(b), a @ b, rtol=1e-5)
    same(Tensor(a[0]) @ Tensor(b), a[0] @ b, rtol=1e-5)
    c = array(2, 1, 3, 4)
    d = array(6, 4, 2)
    same(Tensor(c).matmul(Tensor(d)), c @ d, rtol=1e-5)
    same(tinyc.einsum("ij,jk->ki", Tensor(a), Tensor(b)), (a @ b).T, rtol=1e-5)
    same(Tensor(a[0]).outer(Tensor(b[0])), np.outer(a[0], b[0]), rtol=1e-5)


# Views


def test_shapes() -> None:
    a = array(2, 3, 4)
    x = Tensor(a)
    same(x.reshape(6, 4), a.reshape(6, 4))
    same(x.view(-1, 2), a.reshape(-1, 2))
    same(x.reshape((4, 6)), a.reshape(4, 6))
    same(x.permute(2, 0, 1), a.transpose(2, 0, 1))
    same(x.transpose(0, -1), a.swapaxes(0, -1))
    same(x.T, a.T)
    same(x.mT, a.swapaxes(1, 2))
    same(x.flatten(1), a.reshape(2, 12))
    same(x.flatten(), a.ravel())
    same(x.unflatten(2, (2, -1)), a.reshape(2, 3, 2, 2))
    same(x.unsqueeze(1), a[:, None])
    same(x.unsqueeze(-1).squeeze(), a)
    same(x[:1].squeeze(0), a[0])
    same(x[:1].squeeze(1), a[:1])
    same(x[0, 0].expand(3, 4), np.broadcast_to(a[0, 0], (3, 4)))
    same(x[:, :1].expand(-1, 5, -1), np.broadcast_to(a[:, :1], (2, 5, 4)))
    same(x.flip(0, 2), a[::-1, :, ::-1])
    same(x.roll(1, 1), np.roll(a, 1, 1))
    same(x.repeat(2, 1, 1, 3), np.tile(a, (2, 1, 1, 3)))
    same(x.movedim(0, 2), np.moveaxis(a, 0, 2))
    same(x.narrow(1, 1, 2), a[:, 1:3])
    same(x.diagonal(1, 2), a.diagonal(axis1=1, axis2=2))
    same(x[0].tril(), np.tril(a[0]))
    assert x.size() == (2, 3, 4)
    assert x.size(-1) == 4
    assert x.numel() == x.shape.numel() == 24
    assert (x.ndim, x.dim(), x.nbytes) == (3, 3, 96)


def test_cat_stack_split_pad() -> None:
    a, b = array(2, 3), array(2, 3)
    x, y = Tensor(a), Tensor(b)
    same(tinyc.cat([x, y], dim=1), np.concatenate([a, b], 1))
    same(tinyc.stack((x, y), axis=-1), np.stack([a, b], -1))
    same(tinyc.cat([x, Tensor([[1, 2, 3]])]), np.concatenate([a, [[1, 2, 3]]]))
    pieces = Tensor(np.arange(10)).split(4)
    assert [p.tolist() for p in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [p.shape[1] for p in x.split([1, 2], dim=1)] == [1, 2]
    assert len(Tensor(np.arange(10)).chunk(3)) == 3
    same(x.pad((1, 0, 0, 2), value=7), np.pad(a, ((0, 2), (1, 0)), constant_values=7))
    same(x.pad((-1, 1)), np.pad(a[:, 1:], ((0, 0), (0, 1))))


KEYS = [
    0,
    -1,
    slice(1, None),
    slice(None, None, -1),
    slice(2, 0, -1),
    (0, 1),
    (slice(None), -1),
    (Ellipsis, 0),
    (None, 0, Ellipsis),
    (slice(None), None, slice(0, 2)),
    (0, slice(None, None, 2), slice(3, 1, -1)),
    [0, 2, 0],
    (slice(None), [1, 0, 1]),
    ([0, 1], [2, 1]),
    np.array([[0, 1], [2, 2]]),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexing(key) -> None:
    a = array(3, 4, 5)
    same(Tensor(a)[key], a[key])


def test_indexing_by_tensors() -> None:
    a = array(5, 3)
    index = Tensor([4, 0, -1])
    same(Tensor(a)[index], a[[4, 0, -1]])
    same(Tensor(a)[index, Tensor([0, 1, 2])], a[[4, 0, -1], [0, 1, 2]])
    same(Tensor(a).gather(1, Tensor([[0], [1], [2], [0], [1]])), a[range(5), [0, 1, 2, 0, 1], None])
    same(Tensor(a).index_select(0, Tensor([1, 1])), a[[1, 1]])


# In place


@pytest.mark.parametrize("key", KEYS[:11], ids=str)
def test_assignment_to_slices(key) -> None:
    a = array(3, 4, 5)
    x, lazy = Tensor(a), Tensor(a) * 1
    value = array(*a[key].shape)
    wanted = a.copy()
    wanted[key] = value
    for t in (x, lazy):
        t[key] = Tensor(value)
        same(t, wanted)
        t[key] = 7
    wanted[key] = 7
    same(x, wanted)
    same(lazy, wanted)


def test_assignment_by_mask_and_in_place_operators() -> None:
    a = array(3, 4)
    x = Tensor(a)
    x[x < 0] = 0
    same(x, a.clip(0))
    x[1] += 10
    wanted = a.clip(0)
    wanted[1] += 10
    same(x, wanted)
    alias = x
    x *= 2
    x -= 1
    x /= 4
    assert alias is x
    same(x, (wanted * 2 - 1) / 4)
    same(x.add_(1).mul_(2).sub_(3).div_(2), ((wanted * 2 - 1) / 4 + 1 - 1.5))
    same(x.zero_(), np.zeros((3, 4)))
    same(x.fill_(3), np.full((3, 4), 3))
    same(x.copy_(Tensor([1.0, 2, 3, 4])), np.broadcast_to([1, 2, 3, 4], (3, 4)))
    same(x.clamp_(2, 3), np.broadcast_to([2, 2, 3, 3], (3, 4)))


def test_views_share_elements_both_ways() -> None:
    a = array(4, 6)
    for x in (Tensor(a), Tensor(a) * 1):
        rows, flat, turned, corner = x[1:3], x.view(-1), x.T, x[1:3][0, ::2]
        x[1] = 5
        assert rows[0].tolist() == [5] * 6
        assert flat[6].item() == 5
        rows += 1
        assert x[2, 0].item() == pytest.approx(a[2, 0] + 1)
        flat[0] = -9
        assert (x[0, 0].item(), turned[0, 0].item()) == (-9, -9)
        turned[5] = 8
        assert x[:, 5].tolist() == [8] * 4
        corner.zero_()
        assert x[1].tolist() == [0, 6, 0, 6, 0, 8]
        kept = x.clone()
        x.zero_()
        assert kept[1, 1].item() == 6
        assert flat.sum().item() == 0


def test_detach_shares_and_contiguous_copies() -> None:
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    d, c = x.detach(), x.T.contiguous()
    x.zero_()
    assert d.tolist() == [[0, 0], [0, 0]]
    assert c.tolist() == [[1, 3], [2, 4]]


# Protocols


def test_python_numbers() -> None:
    x = Tensor([3.7])
    assert float(x) == pytest.approx(3.7)
    assert int(x) == 3
    assert bool(x) is True
    assert f"{x[0]:.1f}" == "3.7"
    assert f"{Tensor(2)}" == "2"
    assert [10, 20, 30][Tensor(1)] == 20
    assert list(range(5))[Tensor(1) : Tensor(3)] == [1, 2]
    assert len(Tensor([1, 2, 3])) == 3
    assert [t.item() for t in Tensor([1, 2])] == [1, 2]
    _a, b = Tensor([[1, 2], [3, 4]])
    assert b.tolist() == [3, 4]
    assert 3 in Tensor([1, 3])
    assert 5 not in Tensor([1, 3])
    assert Tensor(1.5).item() == 1.5
    assert {x: 1}[x] == 1


@numpy_only
def test_repr_shows_values() -> None:
    text = repr(Tensor([1.0, 2.5]) * 2)
    assert text == "Tensor([2., 5.], shape=(2,), dtype=f32, device=numpy)"
    assert "requires_grad=True" in repr(Tensor([1.0], requires_grad=True))
    assert "..." in repr(tinyc.zeros(5000))


def test_conversion() -> None:
    x = Tensor([1.7, -1.7, 0])
    assert x.to(tinyc.i32).tolist() == [1, -1, 0]
    assert x.long().dtype is tinyc.i64
    assert x.double().dtype is tinyc.f64
    assert x.bool().tolist() == [True, True, False]
    assert x.to("f64").dtype is tinyc.f64
    assert x.to(Tensor([1])).dtype is tinyc.i64
    assert x.to(np.float64).dtype is tinyc.f64
    assert x.to(float).dtype is tinyc.f32
    assert x.to(tinyc.f32) is x
    assert x.to("cpu").device == "cpu"
    assert x.type_as(Tensor([True])).dtype is tinyc.bool_


def test_copies_and_pickles() -> None:
    import copy
    import pickle

    x = Tensor([1.0, 2.0], requires_grad=True)
    for other in (copy.copy(x), copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert other.requires_grad
        with tinyc.no_grad():
            other += 1
        assert x.tolist() == [1, 2]
        assert other.tolist() == [2, 3]


@numpy_only
def test_without_a_compiler_everything_is_computed_by_numpy(tmp_path):
    program = (
        "import tinyc\n"
        "layer = tinyc.nn.Linear(3, 2)\n"
        "step = tinyc.jit(lambda x: layer(x).relu() + tinyc.rand(2))\n"
        "result = step(tinyc.randn(4, 3) + tinyc.Tensor([1.0, 2.0, 3.0]))\n"
        "print(result.device, result.numpy().shape)\n"
    )
    unset = {"CC", "TINYC_DEVICE"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"PATH": str(tmp_path), "TINYC_CACHE_DIR": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    (tmp_path / "ziglang.py").touch()  # hides an installed one
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "numpy (4, 2)\n", done.stderr
    assert "no working C compiler" in done.stderr
