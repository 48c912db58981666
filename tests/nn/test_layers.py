"""Layers: what they compute, beside numpy and beside PyTorch with the same state dict."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, nn


def sample(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# name -> (layer of a namespace, input shape); PyTorch's own namespace makes the twin.
LAYERS = {
    "linear": (lambda nn: nn.Linear(5, 3), (4, 5)),
    "linear of three axes": (lambda nn: nn.Linear(5, 3, bias=False), (2, 4, 5)),
    "conv": (lambda nn: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 6, 5)),
    "conv strided": (lambda nn: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), groups=2), (2, 4, 7, 6)),
    "conv dilated": (lambda nn: nn.Conv2d(1, 2, 3, dilation=2, bias=False), (2, 1, 8, 8)),
    "conv same": (lambda nn: nn.Conv2d(1, 2, 3, padding="same"), (1, 1, 5, 5)),
    "max pool": (lambda nn: nn.MaxPool2d(2), (2, 3, 6, 7)),
    "max pool padded": (lambda nn: nn.MaxPool2d(3, stride=2, padding=1), (2, 3, 7, 7)),
    "avg pool": (lambda nn: nn.AvgPool2d(2), (2, 3, 6, 6)),
    "avg pool padded": (
        lambda nn: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), (2, 3, 7, 7)),
    "adaptive pool": (lambda nn: nn.AdaptiveAvgPool2d(1), (2, 3, 5, 4)),
    "batch norm 1d": (lambda nn: nn.BatchNorm1d(4), (6, 4)),
    "batch norm of lines": (lambda nn: nn.BatchNorm1d(4), (3, 4, 5)),
    "batch norm 2d": (lambda nn: nn.BatchNorm2d(3, momentum=0.3, eps=1e-3), (4, 3, 5, 5)),
    "batch norm cumulative": (lambda nn: nn.BatchNorm2d(3, momentum=None), (4, 3, 2, 2)),
    "batch norm stateless": (
        lambda nn: nn.BatchNorm2d(3, affine=False, track_running_stats=False), (4, 3, 2, 2)),
    "layer norm": (lambda nn: nn.LayerNorm(5), (2, 3, 5)),
    "layer norm of two axes": (lambda nn: nn.LayerNorm((3, 5), bias=False), (2, 3, 5)),
    "rms norm": (lambda nn: nn.RMSNorm(5), (2, 3, 5)),
    "rms norm of two axes": (lambda nn: nn.RMSNorm((3, 5), eps=0.1), (2, 3, 5)),
    "rms norm unscaled": (lambda nn: nn.RMSNorm(5, elementwise_affine=False), (2, 5)),
    "relu": (lambda nn: nn.ReLU(), (3, 4)),
    "leaky relu": (lambda nn: nn.LeakyReLU(0.2), (3, 4)),
    "gelu": (lambda nn: nn.GELU(), (3, 4)),
    "gelu tanh": (lambda nn: nn.GELU(approximate="tanh"), (3, 4)),
    "silu": (lambda nn: nn.SiLU(), (3, 4)),
    "tanh": (lambda nn: nn.Tanh(), (3, 4)),
    "sigmoid": (lambda nn: nn.Sigmoid(), (3, 4)),
    "softmax": (lambda nn: nn.Softmax(1), (3, 4)),
    "log softmax": (lambda nn: nn.LogSoftmax(-1), (3, 4)),
    "flatten": (lambda nn: nn.Flatten(), (2, 3, 4)),
    "unflatten": (lambda nn: nn.Unflatten(1, (2, 3)), (2, 6)),
    "identity": (lambda nn: nn.Identity(7, unused=True), (2, 3)),
    "dropout of nothing": (lambda nn: nn.Dropout(0.0), (2, 3)),
}  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("name", LAYERS)
def test_layer_equals_pytorch_s(name: str) -> None:
    torch = pytest.importorskip("torch")
    make, shape = LAYERS[name]
    ours, theirs = make(nn), make(torch.nn)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict(state)
    for batch in range(2):
        x = sample(*shape, seed=batch)
        a, b = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        out, expected = ours(a), theirs(b)
        np.testing.assert_allclose(out.numpy(), expected.detach().numpy(), rtol=2e-5, atol=2e-6)
        weights = sample(*expected.shape, seed=9)
        (out * Tensor(weights)).sum().backward()
        (expected * torch.tensor(weights)).sum().backward()
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=2e-4, atol=2e-5)
    for (key, param), (_, twin) in zip(ours.named_parameters(), theirs.named_parameters()):
        np.testing.assert_allclose(
            param.grad.numpy(), twin.grad.numpy(), rtol=2e-4, atol=2e-5, err_msg=key
        )
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(
            ours.state_dict()[key].numpy(), value.numpy(), rtol=1e-5, atol=1e-6, err_msg=key
        )
    x = sample(*shape, seed=5)
    np.testing.assert_allclose(
        ours.eval()(Tensor(x)).numpy(),
        theirs.eval()(torch.tensor(x)).detach().numpy(),
        rtol=2e-5,
        atol=2e-6,
    )


@pytest.mark.oracle
@pytest.mark.parametrize("name", LAYERS)
def test_repr_is_pytorch_s(name: str) -> None:
    torch = pytest.importorskip("torch")
    make, _ = LAYERS[name]
    assert repr(make(nn)) == repr(make(torch.nn))


@pytest.mark.oracle
@pytest.mark.parametrize("padding", [None, 1, -1])
def test_embedding_equals_pytorch_s(padding: int | None) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = nn.Embedding(6, 3, padding), torch.nn.Embedding(6, 3, padding)
    if padding is not None:
        assert not ours.weight.numpy()[padding].any()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    index = np.array([[0, 1, 5], [5, 5, 2]])
    out, expected = ours(Tensor(index)), theirs(torch.tensor(index))
    np.testing.assert_array_equal(out.numpy(), expected.detach().numpy())
    out.square().sum().backward()
    expected.square().sum().backward()
    np.testing.assert_allclose(ours.weight.grad.numpy(), theirs.weight.grad.numpy(), rtol=1e-6)
    assert repr(ours) == repr(theirs)


def test_embedding_refuses_numbers_out_of_range() -> None:
    with pytest.raises(IndexError, match="9"):
        nn.Embedding(4, 2)(Tensor([9])).numpy()
    with pytest.raises(ValueError, match="padding_idx 4 is no row of 4"):
        nn.Embedding(4, 2, padding_idx=4)
    with pytest.raises(ValueError, match=r"padding_idx is -5.*f32\[4,2\]"):
        nn.functional.embedding(Tensor([0]), nn.Embedding(4, 2).weight, padding_idx=-5)


def test_embedding_from_a_table_is_frozen_unless_asked() -> None:
    table = sample(5, 2)
    layer = nn.Embedding.from_pretrained(Tensor(table), padding_idx=2)
    np.testing.assert_array_equal(layer(Tensor([4, 2])).numpy(), table[[4, 2]])
    assert not layer.weight.requires_grad and repr(layer) == "Embedding(5, 2, padding_idx=2)"
    assert nn.Embedding.from_pretrained(Tensor(table), freeze=False).weight.requires_grad
    with pytest.raises(ValueError, match="a table has two axes, not 1"):
        nn.Embedding.from_pretrained(Tensor(table[0]))


def test_linear_is_its_matrix() -> None:
    layer = nn.Linear(2, 3)
    x = sample(4, 2)
    expected = x @ layer.weight.numpy().T + layer.bias.numpy()
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), expected, rtol=1e-6)


def test_weights_start_as_pytorch_s_do() -> None:
    tinyc.manual_seed(1)
    for layer, fan_in in ((nn.Linear(400, 300), 400), (nn.Conv2d(16, 64, 5), 400)):
        bound = 1 / math.sqrt(fan_in)
        values = layer.weight.numpy()
        assert abs(values).max() <= bound < 1.01 * abs(values).max()
        assert abs(values.std() - bound / math.sqrt(3)) < 0.02 * bound
        assert abs(layer.bias.numpy()).max() <= bound
    table = nn.Embedding(300, 300).weight.numpy()
    assert abs(table.std() - 1) < 0.02 and abs(table.mean()) < 0.02


def test_same_seed_same_weights() -> None:
    weights = []
    for seed in (3, 3, 4):
        tinyc.manual_seed(seed)
        weights.append(nn.Linear(4, 4).weight.numpy())
    assert np.array_equal(weights[0], weights[1]) and not np.array_equal(weights[0], weights[2])


def test_dropout_zeroes_the_share_p_and_is_the_identity_in_eval() -> None:
    tinyc.manual_seed(0)
    p, n = 0.3, 40_000
    net = nn.Sequential(nn.Sequential(nn.Dropout(p)))
    x = Tensor(np.ones(n, np.float32))
    y = net(x).numpy()
    share = (y == 0).mean()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / n)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - p), rtol=1e-6)
    assert not np.array_equal(net(x).numpy(), y)
    np.testing.assert_array_equal(net.eval()(x).numpy(), x.numpy())
    with pytest.raises(ValueError, match=r"p must be in 0..1, not 1.5"):
        nn.Dropout(1.5)


def test_jitted_dropout_draws_a_new_mask_in_each_run() -> None:
    layer = nn.Dropout(0.5)
    x = Tensor(np.ones(1000, np.float32))
    draw = tinyc.jit(lambda x: layer(x))
    tinyc.manual_seed(3)
    masks = [draw(x).numpy() for _ in range(3)]
    assert draw.captures == 1
    assert not np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[1], masks[2])
    tinyc.manual_seed(3)
    for mask in masks:
        np.testing.assert_array_equal(layer(x).numpy(), mask)
    layer.eval()
    np.testing.assert_array_equal(draw(x).numpy(), x.numpy())


def test_dropout_s_gradient_has_the_mask_of_its_output() -> None:
    x = Tensor(np.ones(1000, np.float32), requires_grad=True)
    y = nn.Dropout(0.5)(x)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())


def test_batch_norm_counts_its_batches_unread() -> None:
    norm = nn.BatchNorm1d(2)
    for _ in range(50):
        norm(Tensor(sample(4, 2))).numpy()
    assert norm.num_batches_tracked.item() == 50


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="3 channels in and 4 out do not divide into 2 groups"):
        nn.Conv2d(3, 4, 3, groups=2)
    with pytest.raises(ValueError, match=r"BatchNorm2d.*f32\[2,4,5,5\].*second of size 3"):
        nn.BatchNorm2d(3)(Tensor(sample(2, 4, 5, 5)))
    with pytest.raises(ValueError, match="reduction is 'mean', 'sum' or 'none', not 'avg'"):
        nn.MSELoss("avg")
    with pytest.raises(ValueError, match="approximate is 'none' or 'tanh', not 'erf'"):
        nn.GELU("erf")


LOSSES = {
    "cross entropy": (lambda nn, w: nn.CrossEntropyLoss(), "labels"),
    "cross entropy sum": (lambda nn, w: nn.CrossEntropyLoss(reduction="sum"), "labels"),
    "cross entropy weighted": (lambda nn, w: nn.CrossEntropyLoss(weight=w), "labels"),
    "cross entropy ignoring": (lambda nn, w: nn.CrossEntropyLoss(ignore_index=1), "labels"),
    "cross entropy smooth": (lambda nn, w: nn.CrossEntropyLoss(label_smoothing=0.1), "labels"),
    "cross entropy soft": (lambda nn, w: nn.CrossEntropyLoss(), "soft"),
    "mse": (lambda nn, w: nn.MSELoss(), "values"),
    "mse each": (lambda nn, w: nn.MSELoss(reduction="none"), "values"),
    "l1": (lambda nn, w: nn.L1Loss(), "values"),
    "bce": (lambda nn, w: nn.BCEWithLogitsLoss(), "soft"),
    "bce weighted": (lambda nn, w: nn.BCEWithLogitsLoss(pos_weight=w), "soft"),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_pytorch_s(name: str) -> None:
    torch = pytest.importorskip("torch")
    make, kind = LOSSES[name]
    x, w = sample(6, 3) * 3, np.array([0.5, 1.0, 2.0], np.float32)
    target = {
        "labels": np.array([0, 1, 2, 1, 0, 2]),
        "soft": np.exp(sample(6, 3)) / np.exp(sample(6, 3)).sum(1, keepdims=True),
        "values": sample(6, 3, seed=1),
    }[kind]
    a, b = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    loss = make(nn, Tensor(w))(a, Tensor(target))
    expected = make(torch.nn, torch.tensor(w))(b, torch.tensor(target))
    np.testing.assert_allclose(loss.numpy(), expected.detach().numpy(), rtol=1e-5)
    loss.sum().backward()
    expected.sum().backward()
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-4, atol=1e-6)
