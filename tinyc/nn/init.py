"""First values of parameters, drawn with numpy: no program is compiled to initialise a model.

The functions fill a tensor in place and return it. They draw from the generator that
``manual_seed`` sets.
"""

from __future__ import annotations

import math

import numpy as np

from tinyc import random
from tinyc.tensor import Tensor

_GAINS = {
    "linear": 1.0,
    "conv2d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "selu": 3 / 4,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the factor by which weights before a nonlinearity should be larger.

    ``param`` is the negative slope of ``leaky_relu``, 0.01 unless given.
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2 / (1 + slope**2))
    if nonlinearity not in _GAINS:
        raise ValueError(f"calculate_gain: unknown nonlinearity {nonlinearity!r}")
    return _GAINS[nonlinearity]


def fans(tensor: Tensor) -> tuple[int, int]:
    """Return (fan in, fan out) of a weight [out, in, *kernel]."""
    shape = tuple(tensor.shape)
    if len(shape) < 2:
        raise ValueError(f"fan in and fan out need at least two axes, not shape {shape}")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def _uniform(tensor: Tensor, low: float, high: float) -> Tensor:
    values = random.numpy_generator().random(tuple(tensor.shape), dtype=np.float32)
    return tensor.load(low + (high - low) * values)


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Fill with values uniform in a..b."""
    return _uniform(tensor, a, b)


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, zero_row: int | None = None
) -> Tensor:
    """Fill with normal values; ``zero_row`` is left zero."""
    values = random.numpy_generator().standard_normal(tuple(tensor.shape), dtype=np.float32)
    values = mean + std * values
    if zero_row is not None:
        values[zero_row] = 0
    return tensor.load(values)


def trunc_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Tensor:
    """Fill with normal values, drawn again while they are outside a..b."""
    generator = random.numpy_generator()
    values = generator.normal(mean, std, tuple(tensor.shape))
    while (outside := (values < a) | (values > b)).any():
        values[outside] = generator.normal(mean, std, int(outside.sum()))
    return tensor.load(values)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with one value."""
    return tensor.load(np.full(tuple(tensor.shape), val))


def ones_(tensor: Tensor) -> Tensor:
    """Fill with ones."""
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with zeros."""
    return constant_(tensor, 0.0)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill uniformly with variance gain^2 * 2 / (fan in + fan out)."""
    bound = gain * math.sqrt(6 / sum(fans(tensor)))
    return _uniform(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill with normal values of variance gain^2 * 2 / (fan in + fan out)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(fans(tensor))))


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"kaiming: mode is 'fan_in' or 'fan_out', not {mode!r}")
    fan = fans(tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Fill uniformly with variance gain^2 / fan; ``a`` is the slope of leaky_relu."""
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return _uniform(tensor, -bound, bound)


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Fill with normal values of variance gain^2 / fan; ``a`` is the slope of leaky_relu."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))


def orthogonal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Fill with a (semi-)orthogonal matrix, axes after the first joined."""
    rows = tensor.shape[0]
    columns = math.prod(tensor.shape[1:])
    normal = random.numpy_generator().standard_normal((rows, columns))
    q, r = np.linalg.qr(normal if rows >= columns else normal.T)
    # The signs of R's diagonal make the distribution uniform over orthogonal matrices.
    q = q * np.sign(np.diag(r))
    return tensor.load(gain * (q if rows >= columns else q.T).reshape(tuple(tensor.shape)))


def fan_in_uniform_(weight: Tensor, bias: Tensor | None) -> None:
    """Fill weight [out, in, ...] and bias uniformly in +-1/sqrt(fan in), PyTorch's default."""
    fan_in, _ = fans(weight)
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    _uniform(weight, -bound, bound)
    if bias is not None:
        _uniform(bias, -bound, bound)
