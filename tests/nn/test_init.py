"""Initialisers: bounds, moments, orthogonality, and no compilation."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, nn
from tinyc.nn import init


def blank(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("fill", "std"),
    [
        (lambda t: init.uniform_(t, -1, 1), 1 / math.sqrt(3)),
        (lambda t: init.normal_(t, 0, 0.5), 0.5),
        (lambda t: init.xavier_uniform_(t), math.sqrt(2 / 500)),
        (lambda t: init.xavier_normal_(t, gain=2), 2 * math.sqrt(2 / 500)),
        (lambda t: init.kaiming_uniform_(t, nonlinearity="relu"), math.sqrt(2 / 200)),
        (lambda t: init.kaiming_normal_(t, mode="fan_out"), math.sqrt(2 / 300)),
        (lambda t: init.kaiming_uniform_(t, a=math.sqrt(5)), math.sqrt(1 / 3 / 200)),
    ],
)
def test_variance_is_what_the_formula_says(fill, std: float) -> None:
    tinyc.manual_seed(0)
    tensor = blank(300, 200)
    assert fill(tensor) is tensor
    values = tensor.numpy()
    assert abs(values.std() / std - 1) < 0.02
    assert abs(values.mean()) < 0.02 * std


def test_fans_of_a_convolution_count_its_window() -> None:
    assert init.fans(blank(8, 4, 3, 5)) == (60, 120)
    with pytest.raises(ValueError, match="at least two axes"):
        init.fans(blank(3))


@pytest.mark.parametrize("shape", [(20, 8), (8, 20), (6, 2, 2)])
def test_orthogonal_rows_or_columns(shape: tuple[int, ...]) -> None:
    matrix = init.orthogonal_(blank(*shape), gain=2.0).numpy().reshape(shape[0], -1)
    small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(small, 4 * np.eye(len(small)), atol=1e-5)


def test_truncated_normal_stays_inside() -> None:
    values = init.trunc_normal_(blank(5000), std=1.0, a=-1.0, b=1.5).numpy()
    assert values.min() >= -1 and values.max() <= 1.5 and values.std() > 0.5


def test_constants() -> None:
    assert init.ones_(blank(2)).tolist() == [1, 1]
    assert init.zeros_(Tensor([3.0])).tolist() == [0]
    assert init.constant_(blank(2), 2.5).tolist() == [2.5, 2.5]
    assert init.calculate_gain("tanh") == pytest.approx(5 / 3)
    with pytest.raises(ValueError, match="unknown nonlinearity 'swash'"):
        init.calculate_gain("swash")


def test_filling_keeps_the_handle_a_parameter() -> None:
    layer = nn.Linear(3, 2)
    weight = layer.weight
    init.constant_(layer.weight, 2.0)
    assert layer.weight is weight and weight.requires_grad
    assert layer(Tensor([[1.0, 1.0, 1.0]])).numpy() == pytest.approx(
        6 + layer.bias.numpy().reshape(1, 2)
    )
