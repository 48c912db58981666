"""Operations on tensors that only look at elements elsewhere: shapes, axes, indexing.

A view shares its elements with the tensor it was made of: it sees what is written there later,
and writing to it writes there, as in PyTorch. Indexing by integer tensors makes a new tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyc.composites import indexing, linear
from tinyc.composites.axes import one_axis
from tinyc.diagnostics import AxisError, DTypeError, ShapeError
from tinyc.ir import build as b
from tinyc.ir.node import Node
from tinyc.ir.ops import fail
from tinyc.state import Handle
from tinyc.tensor.operations import axis_of

if TYPE_CHECKING:
    from tinyc.tensor.core import Tensor


def sizes_of(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Return sizes that were given one by one or as one sequence."""
    if len(sizes) == 1 and not isinstance(sizes[0], (int, np.integer)):
        return tuple(sizes[0])
    return sizes


class Views(Handle):
    """Methods that return views, and indexing."""

    if TYPE_CHECKING:

        @property
        def shape(self) -> tuple[int, ...]: ...
        def _apply(self, function: Callable[..., Any], *operands: Any, **options: Any) -> Any: ...
        def _view(self, function: Callable[..., Node], *arguments: Any) -> Tensor: ...
        def _put(self, node: Node, value: Any, name: str, region: Any = None) -> None: ...

    def reshape(self, *shape: Any) -> Tensor:
        """Return the elements in row-major order in another shape; one size may be -1."""
        return self._view(b.reshape, sizes_of(shape))

    def view(self, *shape: Any) -> Tensor:
        """Return the elements in row-major order in another shape; one size may be -1."""
        return self._view(b.reshape, sizes_of(shape))

    def reshape_as(self, other: Tensor) -> Tensor:
        """Return the elements in the shape of another tensor."""
        return self._view(b.reshape, other.shape)

    view_as = reshape_as

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Return the tensor with the axes from start_dim to end_dim joined."""
        return self._view(_flatten, start_dim, end_dim)

    def unflatten(self, dim: int, sizes: Sequence[int]) -> Tensor:
        """Return the tensor with one axis split into several."""
        return self._view(_unflatten, dim, tuple(sizes))

    def squeeze(self, dim: Any = None, *, axis: Any = None) -> Tensor:
        """Return the tensor without its axes of size 1, or without those named, where 1 long."""
        axes = axis_of(dim, axis, "squeeze")
        return self._view(_squeeze, tuple(axes) if isinstance(axes, (list, tuple)) else axes)

    def unsqueeze(self, dim: int) -> Tensor:
        """Return the tensor with a new axis of size 1."""
        return self._view(indexing.unsqueeze, dim)

    def expand(self, *sizes: Any) -> Tensor:
        """Return the tensor repeated along axes of size 1 and new ones; -1 keeps a size."""
        return self._view(_expand, sizes_of(sizes))

    def broadcast_to(self, shape: Sequence[int]) -> Tensor:
        """Return the tensor repeated to a shape."""
        return self._view(_expand, tuple(shape))

    def expand_as(self, other: Tensor) -> Tensor:
        """Return the tensor repeated to the shape of another."""
        return self._view(_expand, other.shape)

    def permute(self, *dims: Any) -> Tensor:
        """Return the tensor with its axes in another order."""
        return self._view(_permute, sizes_of(dims))

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        """Return the tensor with two axes exchanged."""
        return self._view(_transpose, dim0, dim1)

    swapaxes = transpose

    def t(self) -> Tensor:
        """Return the matrix with its axes exchanged."""
        if len(self.shape) > 2:
            fail(
                ShapeError,
                "t",
                "more than two axes",
                (self.node,),
                "it transposes a matrix",
                "use transpose or mT",
            )
        return self.T

    @property
    def T(self) -> Tensor:
        """The tensor with the order of its axes reversed."""
        return self._view(_reversed)

    @property
    def mT(self) -> Tensor:
        """The tensor with its last two axes exchanged."""
        if len(self.shape) < 2:
            fail(ShapeError, "mT", "fewer than two axes", (self.node,), "it transposes matrices")
        return self._view(_transpose, -2, -1)

    def movedim(self, source: int, destination: int) -> Tensor:
        """Return the tensor with one axis moved to another place."""
        return self._view(_move, source, destination)

    def flip(self, *dims: Any) -> Tensor:
        """Return the tensor with axes reversed."""
        return self._view(indexing.flip, sizes_of(dims))

    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        """Return `length` elements along an axis, from `start`."""
        return self._view(_narrow, dim, start, length)

    def select(self, dim: int, index: int) -> Tensor:
        """Return one entry of an axis."""
        dim = one_axis("select", self.node, dim)
        return self[(slice(None),) * dim + (index,)]

    def diagonal(self, dim1: int = 0, dim2: int = 1) -> Tensor:
        """Return the diagonal of two axes as a last axis."""
        n = min(self.shape[dim1], self.shape[dim2])
        square = self.narrow(dim1, 0, n).narrow(dim2, 0, n)
        return square._apply(linear.diagonal, square, dim1, dim2)

    def split(self, split_size: Any, dim: int = 0) -> tuple[Tensor, ...]:
        """Return pieces of one size along an axis, the last one shorter, or of given sizes."""
        pieces = indexing.split(self.node, split_size, dim)
        return self._pieces([piece.shape for piece in pieces], dim)

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
        """Return at most so many pieces of one size along an axis."""
        return self._pieces([p.shape for p in indexing.chunk(self.node, chunks, dim)], dim)

    def _pieces(self, shapes: Sequence[tuple[int, ...]], dim: int) -> tuple[Tensor, ...]:
        found, start = [], 0
        for shape in shapes:
            found.append(self.narrow(dim, start, shape[dim]))
            start += shape[dim]
        return tuple(found)

    def unbind(self, dim: int = 0) -> tuple[Tensor, ...]:
        """Return the entries of an axis."""
        dim = one_axis("unbind", self.node, dim)
        return tuple([self.select(dim, index) for index in range(self.shape[dim])])

    # New tensors

    def pad(self, pad: Sequence[int], value: float = 0.0) -> Tensor:
        """Return the tensor with `value` around it: (low, high) of the last axis, then before it.

        Negative numbers cut off. As `functional.pad` of PyTorch in its constant mode.
        """
        return self._apply(indexing.pad_last, self, pad, value)

    def repeat(self, *sizes: Any) -> Tensor:
        """Return the tensor laid side by side, so many times along each axis."""
        return self._apply(lambda x: _tile(x, sizes_of(sizes)), self)

    tile = repeat

    # Indexing

    def __getitem__(self, key: Any) -> Tensor:
        key, arrays = _key(key)
        if not arrays:
            return self._view(indexing.index_nodes, key)
        return self._apply(
            lambda x, *found: indexing.index_nodes(x, _filled(key, found)), self, *arrays
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        key, arrays = _key(key)
        if isinstance(value, Handle) and value._parent is self:
            # The last step of `x[key] += y`, which has written already.
            if value._step == (indexing.index_nodes, (key,)):
                return
        if arrays:
            self._put_mask(key, arrays, value)
            return
        region = indexing.setitem_region(self.node, key)
        self._put(self.node, value, "assignment", region)

    def _put_mask(self, key: Any, arrays: list[Any], value: Any) -> None:
        mask = arrays[0]
        fits = isinstance(key, _Place) and mask.dtype.kind == "b" and mask.shape == self.shape
        if fits and (isinstance(value, (bool, int, float)) or value.shape == ()):
            self._put(self.node, self._apply(b.where, mask, value, self), "assignment")
            return
        fail(
            DTypeError,
            "assignment",
            "an index array in the key",
            (self.node,),
            "slices and integers can be assigned to, and a number to a bool mask of all elements",
            "use where(mask, value, x)",
        )


class _Place:
    """Where in a key an array stands."""

    def __init__(self, number: int) -> None:
        self.number = number


def _key(key: Any) -> tuple[Any, list[Any]]:
    """Return a key with places for its arrays, and those."""
    if isinstance(key, (int, slice)):
        return key, []
    arrays: list[Any] = []
    parts = [_part(part, arrays) for part in (key if isinstance(key, tuple) else (key,))]
    return (tuple(parts) if isinstance(key, tuple) else parts[0]), arrays


def _part(part: Any, arrays: list[Any]) -> Any:
    if isinstance(part, (list, np.ndarray)):
        part = np.asarray(part)
        part = part.astype(np.int64) if part.size == 0 else part
    if isinstance(part, (np.ndarray, Handle)):
        arrays.append(part)
        return _Place(len(arrays) - 1)
    return part


def _filled(key: Any, arrays: Sequence[Node]) -> Any:
    if isinstance(key, tuple):
        return tuple([arrays[p.number] if isinstance(p, _Place) else p for p in key])
    return arrays[key.number] if isinstance(key, _Place) else key


# View functions of nodes, beyond those of `build` and `composites`.


def _flatten(x: Node, start: int, end: int) -> Node:
    start, end = one_axis("flatten", x, start), one_axis("flatten", x, end)
    if start > end:
        fail(
            AxisError,
            "flatten",
            f"start_dim {start} lies behind end_dim {end}",
            (x,),
            "it joins the axes from the first to the second",
        )
    if not x.shape:
        return b.reshape(x, (1,))
    joined = 1
    for n in x.shape[start : end + 1]:
        joined *= n
    return b.reshape(x, (*x.shape[:start], joined, *x.shape[end + 1 :]))


def _unflatten(x: Node, dim: int, sizes: tuple[int, ...]) -> Node:
    dim = one_axis("unflatten", x, dim)
    if -1 in sizes:
        known = 1
        for n in sizes:
            known *= n if n != -1 else 1
        sizes = tuple([x.shape[dim] // known if n == -1 else n for n in sizes])
    return b.reshape(x, (*x.shape[:dim], *sizes, *x.shape[dim + 1 :]))


def _squeeze(x: Node, axes: Any) -> Node:
    if axes is None:
        return b.reshape(x, [n for n in x.shape if n != 1])
    named = axes if isinstance(axes, tuple) else (axes,)
    gone = {one_axis("squeeze", x, axis) for axis in named}
    return b.reshape(x, [n for k, n in enumerate(x.shape) if k not in gone or n != 1])


def _expand(x: Node, sizes: tuple[int, ...]) -> Node:
    new = len(sizes) - len(x.shape)
    kept = [x.shape[k - new] if n == -1 and k >= new else n for k, n in enumerate(sizes)]
    return b.expand(x, kept)


def _permute(x: Node, perm: tuple[int, ...]) -> Node:
    axes = [one_axis("permute", x, axis) for axis in perm]
    if sorted(axes) != list(range(len(x.shape))):
        fail(AxisError, "permute", f"{perm} is no order of the axes", (x,), "each axis stands once")
    return b.permute(x, axes)


def _transpose(x: Node, first: int, second: int) -> Node:
    first, second = one_axis("transpose", x, first), one_axis("transpose", x, second)
    axes = list(range(len(x.shape)))
    if axes:
        axes[first], axes[second] = second, first
    return b.permute(x, axes)


def _reversed(x: Node) -> Node:
    return b.permute(x, tuple(range(len(x.shape)))[::-1])


def _move(x: Node, source: int, destination: int) -> Node:
    source, place = one_axis("movedim", x, source), one_axis("movedim", x, destination)
    axes = [k for k in range(len(x.shape)) if k != source]
    axes.insert(place, source)
    return b.permute(x, axes)


def _narrow(x: Node, dim: int, start: int, length: int) -> Node:
    dim = one_axis("narrow", x, dim)
    n = x.shape[dim]
    start = start + n if start < 0 else start
    if not 0 <= start <= start + length <= n:
        fail(
            ShapeError,
            "narrow",
            f"{length} elements from {start} on axis {dim}",
            (x,),
            f"it has {n}",
        )
    return indexing.narrow(x, dim, start, length)


def _tile(x: Node, times: tuple[int, ...]) -> Node:
    shape = (1,) * (len(times) - len(x.shape)) + x.shape
    times = (1,) * (len(shape) - len(times)) + tuple(times)
    pairs = [n for pair in zip(times, shape) for n in pair]
    own = tuple(range(1, 2 * len(shape), 2))
    x = b.expand_axes(b.reshape(x, shape), tuple(pairs), own)
    return b.reshape(x, [t * n for t, n in zip(times, shape)])
