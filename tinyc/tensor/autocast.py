"""Autocast: products in a half, functions that need the range or the digits in f32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tinyc.composites import attention, convolution, linear, losses, normalization, reductions
from tinyc.diagnostics import DTypeError
from tinyc.ir import build as b
from tinyc.ir.dtype import DTYPES, DType, bf16, f32
from tinyc.ir.node import Node
from tinyc.tensor.modes import recording

F = TypeVar("F", bound=Callable[..., Any])

# What is done in the half, and what in f32; everything else in the dtype that comes.
IN_HALVES = frozenset({linear.matmul, linear.linear, linear.einsum_of, convolution.conv,
                       attention.attention})  # fmt: skip
IN_SINGLE = frozenset({
    reductions.softmax, reductions.log_softmax, reductions.logsumexp, normalization.layer_norm,
    normalization.rms_norm, losses.cross_entropy, losses.nll_loss, losses.mse_loss,
    losses.l1_loss, losses.binary_cross_entropy, losses.binary_cross_entropy_with_logits,
})  # fmt: skip


class autocast:
    """``with autocast(dtype=bf16):``, or ``@autocast()``: mixed precision, as in PyTorch.

    Inside, matmul, linear, einsum, convolution and attention take f32 operands as the half;
    softmax, layer and RMS norm and losses take halves as f32. Parameters stay what they are, and
    their gradients have their dtype. Names of kinds of devices are accepted, and make no
    difference. DTypeError for a dtype that is no half.
    """

    def __init__(self, *targets: Any, dtype: Any = None, enabled: bool = True) -> None:
        from tinyc.tensor.core import as_dtype

        for target in targets:
            if not isinstance(target, str) or target in DTYPES or "float" in target:
                dtype = target
        self._dtype = bf16 if dtype is None else as_dtype(dtype)
        if not self._dtype.is_half:
            raise DTypeError(f"autocast: {self._dtype} is no half; it takes f16 or bf16")
        self._enabled = enabled
        self._before: list[DType | None] = []

    def __enter__(self) -> None:
        self._before.append(recording.cast)
        recording.cast = self._dtype if self._enabled else None

    def __exit__(self, *exception: object) -> None:
        recording.cast = self._before.pop()

    def __call__(self, function: F) -> F:
        """Return the function, inside autocast whenever it is called."""

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with autocast(dtype=self._dtype, enabled=self._enabled):
                return function(*args, **kwargs)

        return inside  # type: ignore[return-value]


def is_autocast_enabled() -> bool:
    """Tell whether products are done in a half in this thread."""
    return recording.cast is not None


def casted(function: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
    """Return the arguments of a function of nodes as autocast has it."""
    half = recording.cast
    assert half is not None
    if function in IN_HALVES:
        return [b.cast(x, half) if is_small(x) else x for x in arguments]
    if function in IN_SINGLE:
        return [b.cast(x, f32) if is_small(x) else x for x in arguments]
    return list(arguments)


def is_small(x: Any) -> bool:
    """True for a node of floats of at most 32 bits."""
    return isinstance(x, Node) and x.dtype.is_float and x.dtype.itemsize <= 4
