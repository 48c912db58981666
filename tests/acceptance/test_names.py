"""What PyTorch's users type: each public name is there and does what numpy says it does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, data, nn, optim

X = np.array([[0.5, -1.5, 2.0], [3.0, 0.25, -0.75]], np.float32)
P = np.abs(X)
J = np.array([[5, 3, 8], [2, 7, 6]])
B = X > 0


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def spelled(array: np.ndarray) -> Tensor:
    return Tensor(array)


OPERATORS: list[tuple[str, Callable[[Any], Any], np.ndarray]] = [
    ("+", lambda x: 1 + x + x, X),
    ("-", lambda x: 1 - x - x * 3, X),
    ("*", lambda x: 2 * x * x, X),
    ("/", lambda x: 1 / x + x / 3, X),
    ("//", lambda x: x // 2, J),
    ("%", lambda x: x % 3, J),
    ("**", lambda x: x**2 + 2**x, X),
    ("unary -", lambda x: -x, X),
    ("abs()", lambda x: abs(x), X),
    ("<", lambda x: x < 0.5, X),
    ("<=", lambda x: x <= 0.5, X),
    (">", lambda x: x > 0.5, X),
    (">=", lambda x: x <= 0.5, X),
    ("==", lambda x: x == 2, X),
    ("!=", lambda x: x != 2, X),
    ("&", lambda x: x & 6, J),
    ("|", lambda x: x | 1, J),
    ("^", lambda x: x ^ 3, J),
    ("<<", lambda x: x << 1, J),
    (">>", lambda x: x >> 1, J),
    ("~", lambda x: ~x, B),
    ("@", lambda x: x @ x.T, X),
    ("x[i]", lambda x: x[1], X),
    ("x[i, j]", lambda x: x[0, -1], X),
    ("x[a:b:c]", lambda x: x[:, ::2], X),
    ("x[::-1]", lambda x: x[:, 1:], X),
    ("x[None, ...]", lambda x: x[None, ..., 0], X),
]


@pytest.mark.parametrize(
    ("call", "array"), [case[1:] for case in OPERATORS], ids=[case[0] for case in OPERATORS]
)
def test_operators_are_numpy_s(call, array):
    found, expected = call(spelled(array)), call(array)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


METHODS: dict[str, tuple[np.ndarray, tuple, Any]] = {
    "exp": (X, (), np.exp(X)),
    "log": (P, (), np.log(P)),
    "sqrt": (P, (), np.sqrt(P)),
    "rsqrt": (P, (), 1 / np.sqrt(P)),
    "sin": (X, (), np.sin(X)),
    "cos": (X, (), np.cos(X)),
    "tanh": (X, (), np.tanh(X)),
    "sigmoid": (X, (), sigmoid(X)),
    "relu": (X, (), np.maximum(X, 0)),
    "abs": (X, (), P),
    "pow": (P, (1.5,), P**1.5),
    "clip": (X, (-1, 1), np.clip(X, -1, 1)),
    "clamp": (X, (-1, 1), np.clip(X, -1, 1)),
    "maximum": (X, (Tensor(-X),), P),
    "minimum": (X, (Tensor(-X),), -P),
    "sum": (X, (1,), X.sum(1)),
    "mean": (X, (0,), X.mean(0)),
    "var": (X, (1,), X.var(1, ddof=1)),
    "std": (X, (1,), X.std(1, ddof=1)),
    "argmax": (X, (1,), X.argmax(1)),
    "argmin": (X, (1,), X.argmin(1)),
    "any": (B, (1,), B.any(1)),
    "all": (B, (0,), B.all(0)),
    "softmax": (X, (-1,), softmax(X)),
    "log_softmax": (X, (-1,), np.log(softmax(X))),
    "logsumexp": (X, (-1,), np.log(np.exp(X).sum(-1))),
    "matmul": (X, (Tensor(X.T),), X @ X.T),
    "reshape": (X, (3, 2), X.reshape(3, 2)),
    "view": (X, (-1,), X.reshape(-1)),
    "permute": (X, (1, 0), X.T),
    "transpose": (X, (0, 1), X.T),
    "flatten": (X, (), X.ravel()),
    "unsqueeze": (X, (1,), X[:, None]),
    "squeeze": (X[:, :1], (1,), X[:, 0]),
    "to": (X, ("f64",), X.astype(np.float64)),
    "clone": (X, (), X),
    "detach": (X, (), X),
    "expand": (X[:1], (4, 3), np.broadcast_to(X[:1], (4, 3))),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_numpy_s(name):
    array, args, expected = METHODS[name]
    found = getattr(Tensor(array), name)(*args).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    assert found.dtype == expected.dtype


def test_extremes_have_values_and_indices():
    for name, reduce in (("max", np.max), ("min", np.min)):
        assert getattr(Tensor(X), name)().item() == reduce(X)
        found = getattr(Tensor(X), name)(1)
        np.testing.assert_array_equal(found.values.numpy(), reduce(X, 1))
        np.testing.assert_array_equal(found.indices.numpy(), getattr(X, f"arg{name}")(1))


def test_joining_and_choosing():
    x = Tensor(X)
    np.testing.assert_array_equal(tinyc.cat([x, x], 1).numpy(), np.concatenate([X, X], 1))
    np.testing.assert_array_equal(tinyc.stack([x, x], 1).numpy(), np.stack([X, X], 1))
    first, second = x.split(2, 1)
    assert (first.shape, second.shape) == ((2, 2), (2, 1))
    np.testing.assert_array_equal(tinyc.where(x > 0, x, 0).numpy(), np.where(X > 0, X, 0))
    np.testing.assert_allclose(
        tinyc.einsum("ij,kj->ik", x, x).numpy(), np.einsum("ij,kj->ik", X, X), rtol=1e-5
    )
    np.testing.assert_array_equal(
        nn.functional.pad(x, (1, 2)).numpy(), np.pad(X, ((0, 0), (1, 2)))
    )
    np.testing.assert_array_equal(x[Tensor([1, 0, 1])].numpy(), X[[1, 0, 1]])
    x[0, 1:] = 9.0
    assert x.numpy()[0].tolist() == [0.5, 9.0, 9.0]


FACTORIES: list[tuple[str, Callable[[], Tensor], Any]] = [
    ("zeros", lambda: tinyc.zeros(2, 3), np.zeros((2, 3), np.float32)),
    ("ones", lambda: tinyc.ones((2, 3)), np.ones((2, 3), np.float32)),
    ("full", lambda: tinyc.full((2,), 7), np.full(2, 7)),
    ("arange", lambda: tinyc.arange(2, 9, 3), np.arange(2, 9, 3)),
    ("arange float", lambda: tinyc.arange(3.0), np.arange(3, dtype=np.float32)),
    ("eye", lambda: tinyc.eye(3), np.eye(3, dtype=np.float32)),
    ("zeros_like", lambda: tinyc.zeros_like(Tensor(J)), np.zeros_like(J)),
    ("ones_like", lambda: tinyc.ones_like(Tensor(X)), np.ones_like(X)),
    ("full_like", lambda: tinyc.full_like(Tensor(X), 2), np.full_like(X, 2)),
]


@pytest.mark.parametrize(
    ("make", "expected"), [case[1:] for case in FACTORIES], ids=[case[0] for case in FACTORIES]
)
def test_factories(make, expected):
    found = make().numpy()
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_random_factories():
    tinyc.manual_seed(3)
    first = (tinyc.rand(4), tinyc.randn(2, 3), tinyc.randint(2, 5, (100,)))
    tinyc.manual_seed(3)
    second = (tinyc.rand(4), tinyc.randn(2, 3), tinyc.randint(2, 5, (100,)))
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert set(first[2].tolist()) == {2, 3, 4}
    assert tinyc.rand_like(first[1]).shape == (2, 3)
    assert tinyc.randn_like(first[1]).dtype is tinyc.f32


def test_dtypes_have_both_names():
    names = {"f32": "float32", "f64": "float64", "i32": "int32", "i64": "int64"}
    for ours, theirs in {**names, "u8": "uint8", "u32": "uint32"}.items():
        assert getattr(tinyc, ours) is getattr(tinyc, theirs)
        assert Tensor([1], dtype=ours).dtype is getattr(tinyc, ours)
    assert Tensor([True]).dtype is tinyc.bool_


def test_a_tensor_is_a_python_value():
    one = Tensor(2.5)
    assert float(one) == 2.5 and int(one) == 2 and bool(one) and f"{one:.2f}" == "2.50"
    assert len(Tensor(X)) == 2
    assert [row.tolist() for row in Tensor(J)] == J.tolist()
    assert "0.5" in repr(Tensor(X))
    np.testing.assert_array_equal(np.asarray(Tensor(X)), X)
    np.testing.assert_array_equal(np.from_dlpack(Tensor(X)), X)


DEFAULTS: list[tuple[Any, dict[str, Any]]] = [
    (nn.Linear, {"bias": True}),
    (nn.Conv2d, {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": True}),
    (nn.MaxPool2d, {"stride": None, "padding": 0}),
    (nn.AvgPool2d, {"stride": None, "padding": 0, "count_include_pad": True}),
    (nn.BatchNorm2d, {"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True}),
    (nn.LayerNorm, {"eps": 1e-5, "elementwise_affine": True, "bias": True}),
    (nn.RMSNorm, {"eps": None, "elementwise_affine": True}),
    (nn.Embedding, {"padding_idx": None}),
    (nn.Dropout, {"p": 0.5}),
    (nn.GELU, {"approximate": "none"}),
    (nn.Flatten, {"start_dim": 1, "end_dim": -1}),
    (nn.CrossEntropyLoss, {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0}),
    (nn.MSELoss, {"reduction": "mean"}),
    (nn.ReLU, {}),
    (nn.Tanh, {}),
    (nn.Sigmoid, {}),
    (nn.Sequential, {}),
    (nn.Module, {}),
    (optim.SGD, {"lr": 1e-3, "momentum": 0, "weight_decay": 0, "nesterov": False}),
    (optim.Adam, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0}),
    (optim.AdamW, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}),
    (data.DataLoader, {"batch_size": 1, "shuffle": False, "drop_last": False}),
]


@pytest.mark.parametrize(
    ("made", "expected"), DEFAULTS, ids=[made.__name__ for made, _ in DEFAULTS]
)
def test_defaults_are_pytorch_s(made, expected):
    parameters = inspect.signature(made).parameters
    for name, value in expected.items():
        assert parameters[name].default == value, name


SIGNATURES = {
    "nn": ("LayerNorm", "RMSNorm", "Embedding", "GELU", "SiLU", "Dropout", "MultiheadAttention",
           "TransformerEncoderLayer", "TransformerEncoder", "TransformerDecoderLayer",
           "TransformerDecoder"),
    "nn.utils": ("clip_grad_norm_", "clip_grad_value_", "parameters_to_vector",
                 "vector_to_parameters"),
    "optim.lr_scheduler": ("LRScheduler", "LambdaLR", "StepLR", "LinearLR", "CosineAnnealingLR",
                           "SequentialLR", "OneCycleLR"),
}  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("home", "name"), [(home, name) for home, names in SIGNATURES.items() for name in names]
)
def test_signatures_are_pytorch_s(home, name):
    """All our arguments are theirs, in their order and with their defaults."""
    torch = pytest.importorskip("torch")

    def arguments(owner: Any) -> dict[str, inspect.Parameter]:
        for part in home.split("."):
            owner = getattr(owner, part)
        made = getattr(owner, name)
        found = dict(inspect.signature(made).parameters)
        if inspect.isclass(made) and issubclass(made, (nn.Module, torch.nn.Module)):
            call = inspect.signature(made.forward).parameters
            found.update({f"forward {key}": value for key, value in call.items()})
        return found

    mine, theirs = arguments(tinyc), arguments(torch)
    named = [key for key in theirs if key in mine]
    assert [key for key in mine if key in theirs] == named
    assert set(mine) <= set(theirs)
    for key in named:
        if callable(theirs[key].default) and theirs[key].default is not inspect.Parameter.empty:
            assert mine[key].default.__name__ == theirs[key].default.__name__
        else:
            assert mine[key].default == theirs[key].default, key


def test_state_dict_keys_are_pytorch_s():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    keys = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    keys += ["1.num_batches_tracked", "3.weight", "3.bias"]
    assert list(model.state_dict()) == keys


def test_every_public_name_can_be_reached():
    for name in tinyc.__all__:
        assert getattr(tinyc, name) is not None
    assert set(tinyc.__all__) <= set(dir(tinyc))
    with pytest.raises(AttributeError, match="no attribute 'sofmax'"):
        tinyc.sofmax  # noqa: B018
