"""Making tensors from nothing, from sizes, from other tensors, and from chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyc import random, state
from tinyc.composites import elementwise, indexing, linear
from tinyc.diagnostics import DTypeError
from tinyc.ir import build as b
from tinyc.ir.dtype import DType, default_dtype, f32, i64
from tinyc.ir.node import Node
from tinyc.random import Generator
from tinyc.realization import compute
from tinyc.runtime.device import default_device, get_device
from tinyc.state import Handle
from tinyc.tensor.views import sizes_of

if TYPE_CHECKING:
    from tinyc.tensor.core import Tensor


class Creation(Handle):
    """Functions of the class Tensor; the package has them under the same names."""

    # Constants

    @staticmethod
    def zeros(
        *size: Any, dtype: Any = None, device: Any = None, requires_grad: Any = False
    ) -> Tensor:
        """Return zeros of a shape, f32 by default."""
        return _made(b.full(sizes_of(size), 0, _dtype(dtype, f32)), device, requires_grad)

    @staticmethod
    def ones(
        *size: Any, dtype: Any = None, device: Any = None, requires_grad: Any = False
    ) -> Tensor:
        """Return ones of a shape, f32 by default."""
        return _made(b.full(sizes_of(size), 1, _dtype(dtype, f32)), device, requires_grad)

    @staticmethod
    def full(
        size: Sequence[int],
        fill_value: Any,
        dtype: Any = None,
        device: Any = None,
        requires_grad: Any = False,
    ) -> Tensor:
        """Return one number everywhere, in the dtype of the number by default."""
        size = (size,) if isinstance(size, int) else tuple(size)
        value = fill_value
        if isinstance(value, (np.generic, Creation)):
            value = value.item()  # type: ignore[union-attr]
        wanted = _dtype(dtype, default_dtype(value))
        return _made(b.full(size, value, wanted), device, requires_grad)

    @staticmethod
    def empty(
        *size: Any, dtype: Any = None, device: Any = None, requires_grad: Any = False
    ) -> Tensor:
        """Return zeros: tinyc has no values that nobody wrote."""
        return _made(b.full(sizes_of(size), 0, _dtype(dtype, f32)), device, requires_grad)

    @staticmethod
    def zeros_like(other: Tensor, dtype: Any = None) -> Tensor:
        """Return zeros in the shape and dtype of a tensor."""
        return _like(other, 0, dtype)

    @staticmethod
    def ones_like(other: Tensor, dtype: Any = None) -> Tensor:
        """Return ones in the shape and dtype of a tensor."""
        return _like(other, 1, dtype)

    @staticmethod
    def full_like(other: Tensor, fill_value: Any, dtype: Any = None) -> Tensor:
        """Return one number in the shape and dtype of a tensor."""
        return _like(other, fill_value, dtype)

    @staticmethod
    def empty_like(other: Tensor, dtype: Any = None) -> Tensor:
        """Return zeros in the shape and dtype of a tensor."""
        return _like(other, 0, dtype)

    # Sequences

    @staticmethod
    def arange(
        start: Any,
        end: Any = None,
        step: Any = 1,
        *,
        dtype: Any = None,
        device: Any = None,
        requires_grad: Any = False,
    ) -> Tensor:
        """Return start, start + step, ... before end; with one argument, 0, 1, ... before it."""
        start, end = (0, start) if end is None else (start, end)
        if step == 0:
            raise ValueError("arange: the step is 0")
        whole = all(isinstance(n, (int, np.integer)) for n in (start, end, step))
        count = max(math.ceil((end - start) / step), 0)
        wanted = _dtype(dtype, i64 if whole else f32)
        return _made(indexing.arange(start, step, count, wanted), device, requires_grad)

    @staticmethod
    def linspace(
        start: Any,
        end: Any,
        steps: int,
        *,
        dtype: Any = None,
        device: Any = None,
        requires_grad: Any = False,
    ) -> Tensor:
        """Return numbers at equal distances from start to end, both included."""
        wanted = _dtype(dtype, f32)
        return _made(indexing.linspace(start, end, steps, wanted), device, requires_grad)

    @staticmethod
    def eye(
        n: int,
        m: int | None = None,
        *,
        dtype: Any = None,
        device: Any = None,
        requires_grad: Any = False,
    ) -> Tensor:
        """Return the n by m matrix with ones on the diagonal."""
        wanted = _dtype(dtype, f32)
        return _made(indexing.eye(n, n if m is None else m, wanted), device, requires_grad)

    # Chance

    @staticmethod
    def rand(
        *size: Any,
        generator: Generator | None = None,
        dtype: Any = None,
        device: Any = None,
        requires_grad: Any = False,
    ) -> Tensor:
        """Return uniform numbers in [0, 1)."""
        node = random.uniform(sizes_of(size), _float(dtype), generator)
        return _made(node, device, requires_grad)

    @staticmethod
    def randn(
        *size: Any,
        generator: Generator | None = None,
        dtype: Any = None,
        device: Any = None,
        requires_grad: Any = False,
    ) -> Tensor:
        """Return standard normal numbers."""
        node = random.normal(sizes_of(size), _float(dtype), generator)
        return _made(node, device, requires_grad)

    @staticmethod
    def randint(
        low: int,
        high: Any,
        size: Any = None,
        *,
        generator: Generator | None = None,
        dtype: Any = None,
        device: Any = None,
    ) -> Tensor:
        """Return integers low <= n < high; randint(high, size) begins at 0."""
        if size is None:
            low, high, size = 0, low, high
        size = (size,) if isinstance(size, int) else tuple(size)
        return _made(random.randint(low, high, size, _dtype(dtype, i64), generator), device, False)

    @staticmethod
    def randperm(n: int, *, generator: Generator | None = None) -> Tensor:
        """Return 0 to n-1 in random order, drawn on the host."""
        from tinyc.tensor.core import Tensor

        return Tensor((generator or random.default_generator).numpy_generator().permutation(n))

    @staticmethod
    def rand_like(other: Tensor, dtype: Any = None) -> Tensor:
        """Return uniform numbers in [0, 1) in the shape of a tensor."""
        return Creation.rand(other.shape, dtype=dtype or other.dtype)

    @staticmethod
    def randn_like(other: Tensor, dtype: Any = None) -> Tensor:
        """Return standard normal numbers in the shape of a tensor."""
        return Creation.randn(other.shape, dtype=dtype or other.dtype)

    @staticmethod
    def bernoulli(p: Any, *, generator: Generator | None = None) -> Tensor:
        """Return ones with the probabilities of a tensor, else zeros."""
        node = random.bernoulli(p.node, p.shape, generator)
        return _made(b.cast(node, p.dtype), None, False)

    # From tensors

    @staticmethod
    def cat(tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None) -> Tensor:
        """Return tensors one after another along an axis; dtypes promote."""
        along = dim if axis is None else axis
        return _joined(indexing.cat, tensors, along)

    @staticmethod
    def stack(tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None) -> Tensor:
        """Return tensors of one shape along a new axis; dtypes promote."""
        along = dim if axis is None else axis
        return _joined(indexing.stack, tensors, along)

    @staticmethod
    def einsum(equation: str, *operands: Any) -> Tensor:
        """Return the sum of products that an equation like "ij,jk->ik" says."""
        from tinyc.tensor.core import apply

        if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
            operands = tuple(operands[0])
        return apply(linear.einsum_of, *operands, equation=equation)


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """Return x where the condition (bool) holds, else y; the three broadcast, x and y promote."""
    from tinyc.tensor.core import apply

    return apply(b.where, condition, x, y)


def maximum(x: Any, y: Any) -> Tensor:
    """Return the larger of each two elements; NaN wins."""
    from tinyc.tensor.core import apply

    return apply(b.maximum, x, y)


def minimum(x: Any, y: Any) -> Tensor:
    """Return the smaller of each two elements; NaN wins."""
    from tinyc.tensor.core import apply

    return apply(elementwise.minimum, x, y)


def from_numpy(array: np.ndarray) -> Tensor:
    """Return a tensor on an array's memory where that is aligned to 64 bytes, else on a copy."""
    from tinyc.tensor.core import Tensor

    return Tensor._from_buffer(get_device(default_device()).upload(array, copy=False))


def from_dlpack(array: Any) -> Tensor:
    """Return a tensor on the memory of another library's array, where it can be shared."""
    return from_numpy(np.from_dlpack(array))


def _dtype(dtype: Any, default: DType) -> DType:
    from tinyc.tensor.core import as_dtype

    return default if dtype is None else as_dtype(dtype)


def _float(dtype: Any) -> DType:
    found = _dtype(dtype, f32)
    if not found.is_float:
        raise DTypeError(f"rand: {found} is no float type")
    return found


def _made(node: Node, device: Any, requires_grad: bool) -> Tensor:
    from tinyc.tensor.core import Tensor

    if device is None or device == state.device_of(node):
        made = Tensor._new(node)
    else:
        (value,) = compute([node])
        made = Tensor._from_buffer(get_device(device).upload(value.array))
    return made.requires_grad_() if requires_grad else made


def _like(other: Tensor, value: Any, dtype: Any) -> Tensor:
    return _made(b.full(other.shape, value, _dtype(dtype, other.dtype)), None, False)


def _joined(function: Any, tensors: Sequence[Tensor], along: int) -> Tensor:
    from tinyc.tensor.core import apply

    return apply(lambda *nodes: function(nodes, along), *tensors)
