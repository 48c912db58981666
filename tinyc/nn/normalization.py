"""Batch norm, with its running statistics as state, layer norm and RMS norm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinyc import functional as F
from tinyc.diagnostics import ShapeError
from tinyc.ir.ops import fail
from tinyc.nn.module import Module
from tinyc.nn.parameter import Parameter
from tinyc.tensor import Tensor


def _ones(shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape, np.float32)


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32)


class _BatchNorm(Module):
    """Normalise each channel (axis 1) over all other axes, then scale and shift it.

    Training uses the batch's mean and variance, and moves ``running_mean`` and ``running_var``
    towards them by ``momentum`` (None: their average over all batches); evaluation uses the
    running ones, or the batch's where ``track_running_stats`` is False.
    """

    _ranks: tuple[int, ...] = ()
    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        shape = (num_features,)
        self.weight = Parameter(_ones(shape)) if affine else None
        self.bias = Parameter(_zeros(shape)) if affine and bias else None
        tracked = track_running_stats
        self.register_buffer("running_mean", Tensor(_zeros(shape)) if tracked else None)
        self.register_buffer("running_var", Tensor(_ones(shape)) if tracked else None)
        self.register_buffer("num_batches_tracked", Tensor(np.array(0)) if tracked else None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, of the same shape."""
        self._check(input)
        factor: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            count = self.num_batches_tracked + 1
            self.num_batches_tracked.assign(count)
            if self.momentum is None:
                factor = 1.0 / count
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training or self.running_mean is None,
            momentum=factor,
            eps=self.eps,
        )

    def _check(self, input: Tensor) -> None:
        shape = tuple(input.shape)
        if len(shape) not in self._ranks or shape[1] != self.num_features:
            ranks = " or ".join(map(str, self._ranks))
            rule = f"the input has {ranks} axes, the second of size {self.num_features}"
            fail(ShapeError, type(self).__name__, "the input does not fit", (input.node,), rule)

    def extra_repr(self) -> str:
        """Return the arguments, as PyTorch has it."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch norm of [n, channels] or [n, channels, length], with running statistics.

    ``weight`` and ``bias`` scale and shift each channel. In training ``running_mean`` and
    ``running_var`` move towards the batch's by ``momentum``; evaluation normalises by them.
    """

    _ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch norm of [n, channels, height, width], with running statistics.

    ``weight`` and ``bias`` scale and shift each channel. In training ``running_mean`` and
    ``running_var`` move towards the batch's by ``momentum``; evaluation normalises by them.
    """

    _ranks = (4,)


class LayerNorm(Module):
    """Normalise over the last axes, of shape ``normalized_shape``, then scale and shift.

    Attributes ``weight`` and ``bias`` of that shape start as ones and zeros.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape = tuple(shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight = Parameter(_ones(self.normalized_shape)) if elementwise_affine else None
        shifted = elementwise_affine and bias
        self.bias = Parameter(_zeros(self.normalized_shape)) if shifted else None

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, of the same shape."""
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        """Return the arguments, as PyTorch has it."""
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        )


class RMSNorm(Module):
    """Divide by the root of the mean square over the last axes, then scale.

    The axes are ``normalized_shape``, the shape of ``weight`` too, which starts as ones. ``eps``
    is added to the mean square; None is the smallest that 1 + eps differs from 1.
    """

    weight: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape = tuple(shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight = Parameter(_ones(self.normalized_shape)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input, of the same shape."""
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """Return the arguments, as PyTorch has it."""
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}"
        )
