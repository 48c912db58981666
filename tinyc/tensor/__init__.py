"""Tensor, and the functions that make and differentiate tensors."""

from __future__ import annotations

from tinyc.tensor.autocast import autocast, is_autocast_enabled
from tinyc.tensor.core import Size, Tensor, apply, as_dtype, build
from tinyc.tensor.create import (
    from_dlpack,
    from_numpy,
    maximum,
    minimum,
    where,
)
from tinyc.tensor.gradients import grad, value_and_grad, vjp
from tinyc.tensor.modes import enable_grad, is_grad_enabled, no_grad, set_grad_enabled

__all__ = [
    "Size",
    "Tensor",
    "apply",
    "as_dtype",
    "autocast",
    "build",
    "enable_grad",
    "from_dlpack",
    "from_numpy",
    "grad",
    "is_autocast_enabled",
    "is_grad_enabled",
    "maximum",
    "minimum",
    "no_grad",
    "set_grad_enabled",
    "value_and_grad",
    "vjp",
    "where",
]
