"""Reading and writing by index, and what is made of slices: cat, split, flip, roll, tril, one_hot.

Keys follow numpy: integers, slices with any step, None, Ellipsis and integer arrays (nodes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from operator import index as integer
from typing import Any

from tinyc.composites.axes import along, one_axis
from tinyc.diagnostics import AxisError, BoundsError, DTypeError, ShapeError
from tinyc.ir import build as b
from tinyc.ir.dtype import Scalar, bool_, i32, i64
from tinyc.ir.node import Node
from tinyc.ir.ops import Shape, fail


@dataclass(frozen=True)
class Region:
    """A part of an array cut out by integers and slices.

    `starts`, `sizes`, `steps` are those of a slice on every axis; `shape` is what the user sees:
    without the axes that an integer took, and with those that None made.
    """

    starts: Shape
    sizes: Shape
    steps: Shape
    shape: Shape


@dataclass(frozen=True)
class _Key:
    """A key spread over the axes: a slice for each, the arrays by axis, and the visible axes.

    `visible` has the source axis of each axis of the result, None for a new one; an axis with an
    array stands in it as well.
    """

    starts: Shape
    sizes: Shape
    steps: Shape
    arrays: dict[int, Node]
    visible: tuple[int | None, ...]


def _parse(x: Node, key: Any, name: str) -> _Key:
    """Spread a key over the axes of x. Errors name the key's part that does not fit."""
    parts = key if isinstance(key, tuple) else (key,)
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    used = sum(part is not None and part is not Ellipsis for part in parts)
    if used > len(x.shape) or len(dots) > 1:
        what = "more than one '...'" if len(dots) > 1 else f"{used} indices for {len(x.shape)} axes"
        fail(AxisError, name, what, (x,), "at most one index for each axis, and one '...'")
    at = dots[0] if dots else len(parts)
    missing = [slice(None)] * (len(x.shape) - used)
    parts = (*parts[:at], *missing, *parts[at + 1 :])
    slices: list[tuple[int, int, int]] = []
    arrays: dict[int, Node] = {}
    visible: list[int | None] = []
    for part in parts:
        if part is None:
            visible.append(None)
            continue
        axis = len(slices)
        slices.append(_part(x, axis, part, name))
        if isinstance(part, Node):
            arrays[axis] = part
        if isinstance(part, (slice, Node)):
            visible.append(axis)
    starts, sizes, steps = (tuple([s[i] for s in slices]) for i in range(3))
    return _Key(starts, sizes, steps, arrays, tuple(visible))


def _part(x: Node, axis: int, part: Any, name: str) -> tuple[int, int, int]:
    """Return (start, size, step) that one part of a key takes of an axis."""
    n = x.shape[axis]
    if isinstance(part, slice):
        start, stop, step = part.indices(n)
        size = len(range(start, stop, step))
        return (start, size, step) if size else (0, 0, 1)
    if isinstance(part, Node):
        if not part.dtype.is_int:
            hint = "use where(mask, ...)" if part.dtype is bool_ else "cast it to i64"
            fail(
                DTypeError,
                name,
                f"an index of type {part.dtype}",
                (x, part),
                "index arrays hold integers",
                hint,
            )
        return 0, n, 1
    try:
        if isinstance(part, bool):
            raise TypeError
        position = integer(part)
    except TypeError:
        fail(
            DTypeError,
            name,
            f"{part!r} is no index",
            (x,),
            "an index is an integer, a slice, None, '...' or an integer tensor",
        )
    if not -n <= position < n:
        fail(
            BoundsError,
            name,
            f"index {position} is out of bounds on axis {axis}",
            (x,),
            f"it has {n} elements",
        )
    return position % n, 1, 1


def setitem_region(x: Node, key: Any) -> Region:
    """Return the part of x that a key of integers and slices means. DTypeError for arrays in it."""
    found = _parse(x, key, "assignment")
    if found.arrays:
        fail(
            DTypeError,
            "assignment",
            "an index array in the key",
            (x, *found.arrays.values()),
            "slices and integers can be assigned to",
            "use where(mask, value, x)",
        )
    return Region(found.starts, found.sizes, found.steps, _visible_shape(found))


def _visible_shape(key: _Key) -> Shape:
    return tuple([1 if axis is None else key.sizes[axis] for axis in key.visible])


def region_value(region: Region, value: Node) -> Node:
    """Return a value, broadcast to what the user sees of a region, in the shape of its slice."""
    if len(value.shape) > len(region.shape):
        lead = value.shape[: len(value.shape) - len(region.shape)]
        if all(n == 1 for n in lead):
            value = b.reshape(value, value.shape[len(lead) :])
    return b.reshape(b.expand(value, region.shape), region.sizes)


def index_nodes(x: Node, key: Any) -> Node:
    """Return x[key] by numpy's rules.

    Integer arrays broadcast together; their axes stand where they stood if they are neighbours,
    else in front. Negative indices count from the end. A constant index out of range raises
    BoundsError (an IndexError) here, one in an array does when the graph runs.
    """
    found = _parse(x, key, "index")
    x = b.slice_(x, found.starts, found.sizes, found.steps)
    if not found.arrays:
        return b.reshape(x, _visible_shape(found))
    kept = [axis for axis in found.visible if axis is not None]
    x = b.reshape(x, [x.shape[axis] for axis in kept])
    arrays = {kept.index(axis): array for axis, array in found.arrays.items()}
    first = next(i for i, axis in enumerate(found.visible) if axis in found.arrays)
    # Without the arrays' axes: what the user sees before them and after them.
    before = list(found.visible[:first]) if _neighbours(key) else []
    after = [axis for axis in found.visible[len(before) :] if axis not in found.arrays]
    lead = len(before) - before.count(None)
    picked = _gather_axes(x, arrays, lead)
    index_shape = picked.shape[lead : len(picked.shape) - len(after) + after.count(None)]
    return b.reshape(picked, (*_with_new(found, before), *index_shape, *_with_new(found, after)))


def _with_new(key: _Key, axes: Sequence[int | None]) -> list[int]:
    return [1 if axis is None else key.sizes[axis] for axis in axes]


def _neighbours(key: Any) -> bool:
    """Do all the arrays and integers of a key stand side by side?"""
    parts = key if isinstance(key, tuple) else (key,)
    chosen = [
        i
        for i, part in enumerate(parts)
        if not (part is None or part is Ellipsis or isinstance(part, slice))
    ]
    return chosen[-1] - chosen[0] == len(chosen) - 1


def _gather_axes(x: Node, arrays: dict[int, Node], lead: int) -> Node:
    """Return the first `lead` axes, the broadcast axes of the index arrays, the other axes."""
    axes = sorted(arrays)
    sizes = [x.shape[axis] for axis in axes]
    indices = [wrapped(arrays[axis], n) for axis, n in zip(axes, sizes)]
    others = [axis for axis in range(len(x.shape)) if axis not in arrays]
    x = b.permute(x, (*others[:lead], *axes, *others[lead:]))
    x = b.reshape(x, (*x.shape[:lead], prod(sizes), *x.shape[lead + len(axes) :]))
    index = indices[0] if len(indices) == 1 else _flat_index(indices, sizes)
    return b.gather(x, index, lead)


def _flat_index(indices: Sequence[Node], sizes: Sequence[int]) -> Node:
    """Return the row-major index over merged axes; each index is checked against its own axis."""
    flat: Node | None = None
    for index, n in zip(indices, sizes):
        checked = b.gather(b.iota(n, i64), index)
        flat = checked if flat is None else b.add(b.mul(flat, n), checked)
    assert flat is not None
    return flat


def wrapped(index: Node, n: int) -> Node:
    """Return the index with n added where it is negative."""
    if index.dtype.kind == "u":
        return index
    if index.dtype.itemsize < 8:
        index = b.cast(index, i64)
    return b.where(b.lt(index, 0), b.add(index, n), index)


def take_along_dim(x: Node, index: Node, axis: int) -> Node:
    """Return the elements of x at `index` along the axis: both have the same axes but for it."""
    axis = one_axis("take_along_dim", x, axis)
    if len(index.shape) != len(x.shape):
        fail(
            ShapeError,
            "take_along_dim",
            "the number of axes differs",
            (x, index),
            "the index has the axes of the input",
        )
    shape = tuple([max(n, m) for n, m in zip(x.shape, index.shape)])
    shape = (*shape[:axis], index.shape[axis], *shape[axis + 1 :])
    index = b.expand(index, shape)
    x = b.expand(x, (*shape[:axis], x.shape[axis], *shape[axis + 1 :]))
    indices = [
        wrapped(index, x.shape[axis]) if k == axis else along(index, b.iota(n, i64), k)
        for k, n in enumerate(shape)
    ]
    flat: Node | None = None
    for k, place in enumerate(indices):
        if k == axis:
            place = b.gather(b.iota(x.shape[axis], i64), place)
        flat = place if flat is None else b.add(b.mul(flat, x.shape[k]), place)
    assert flat is not None
    return b.gather(b.reshape(x, (x.size,)), flat)


# Made of slices.


def cat(nodes: Sequence[Node], axis: int = 0) -> Node:
    """Return the nodes one after another along an axis; they promote. ShapeError if they differ."""
    if not nodes:
        raise ShapeError("cat: there is nothing to join; give at least one tensor")
    # PyTorch lets an empty 1-D tensor join anything.
    kept = [n for n in nodes if n.shape != (0,)] or list(nodes[:1])
    return b.cat(kept, one_axis("cat", kept[0], axis))


def stack(nodes: Sequence[Node], axis: int = 0) -> Node:
    """Return the nodes of one shape along a new axis."""
    if not nodes:
        raise ShapeError("stack: there is nothing to join; give at least one tensor")
    axis = one_axis("stack", nodes[0], axis, extra=1)
    for n in nodes:
        if n.shape != nodes[0].shape:
            fail(ShapeError, "stack", "shapes differ", (nodes[0], n), "they are all equal")
    return b.cat([unsqueeze(n, axis) for n in nodes], axis)


def unsqueeze(x: Node, axis: int) -> Node:
    """Return x with a new axis of size 1."""
    axis = one_axis("unsqueeze", x, axis, extra=1)
    shape = (*x.shape[:axis], 1, *x.shape[axis:])
    return b.expand_axes(x, shape, tuple([k for k in range(len(shape)) if k != axis]))


def split(x: Node, size: int | Sequence[int], axis: int = 0) -> tuple[Node, ...]:
    """Return pieces of one size along an axis, the last one shorter, or of the given sizes."""
    axis = one_axis("split", x, axis)
    n = x.shape[axis]
    if isinstance(size, int):
        if size < 1:
            raise ShapeError(f"split: pieces of {size} elements; the size is at least 1")
        sizes = [min(size, n - start) for start in range(0, n, size)] or [0]
    else:
        sizes = list(size)
        if sum(sizes) != n or any(s < 0 for s in sizes):
            fail(
                ShapeError,
                "split",
                f"the sizes {sizes} do not add up to {n}",
                (x,),
                f"they make up axis {axis}",
            )
    pieces, start = [], 0
    for s in sizes:
        pieces.append(narrow(x, axis, start, s))
        start += s
    return tuple(pieces)


def chunk(x: Node, chunks: int, axis: int = 0) -> tuple[Node, ...]:
    """Return at most so many pieces of equal size along an axis, the last one shorter."""
    if chunks < 1:
        raise ShapeError(f"chunk: into {chunks} pieces; there is at least 1")
    axis = one_axis("chunk", x, axis)
    return split(x, max(-(-x.shape[axis] // chunks), 1), axis)


def narrow(x: Node, axis: int, start: int, size: int) -> Node:
    """Return `size` elements along an axis, from `start`."""
    starts = [0] * len(x.shape)
    sizes = list(x.shape)
    starts[axis], sizes[axis] = start, size
    return b.slice_(x, starts, sizes)


def flip(x: Node, axes: Sequence[int]) -> Node:
    """Return x with the given axes reversed."""
    turned = {one_axis("flip", x, axis) for axis in axes}
    starts = [n - 1 if k in turned else 0 for k, n in enumerate(x.shape)]
    steps = [-1 if k in turned else 1 for k in range(len(x.shape))]
    return b.slice_(x, starts, x.shape, steps) if x.size else x


def roll(x: Node, shift: int, axis: int) -> Node:
    """Return x moved along an axis by `shift`; what leaves at one end enters at the other."""
    axis = one_axis("roll", x, axis)
    n = x.shape[axis]
    cut = -shift % n if n else 0
    if cut == 0:
        return x
    return b.cat([narrow(x, axis, cut, n - cut), narrow(x, axis, 0, cut)], axis)


def tril(x: Node, diagonal: int = 0) -> Node:
    """Return the last two axes of x on and below a diagonal, zeros above."""
    row, column = _row_column("tril", x)
    return b.where(b.lt(b.add(row, diagonal), column), 0, x)


def triu(x: Node, diagonal: int = 0) -> Node:
    """Return the last two axes of x on and above a diagonal, zeros below."""
    row, column = _row_column("triu", x)
    return b.where(b.lt(column, b.add(row, diagonal)), 0, x)


def _row_column(name: str, x: Node) -> tuple[Node, Node]:
    if len(x.shape) < 2:
        fail(ShapeError, name, "there are no rows and columns", (x,), "it has at least two axes")
    ndim = len(x.shape)
    row, column = b.iota(x.shape[-2], i32), b.iota(x.shape[-1], i32)
    return along(x, row, ndim - 2), along(x, column, ndim - 1)


# Made of 0, 1, ...


def arange(start: float, step: float, n: int, dtype: Any) -> Node:
    """Return the n numbers start, start + step, ... in a dtype."""
    if dtype.is_float:
        return b.add(b.mul(b.iota(n, dtype), float(step)), float(start))
    numbers = b.iota(n, dtype)
    numbers = numbers if step == 1 else b.mul(numbers, int(step))
    return numbers if start == 0 else b.add(numbers, int(start))


def linspace(start: float, stop: float, n: int, dtype: Any) -> Node:
    """Return n numbers at equal distances from start to stop, both included."""
    if n < 2:
        return b.full((n,), float(start), dtype)
    place = b.iota(n, dtype)
    step = (stop - start) / (n - 1)
    up = b.add(b.mul(place, step), float(start))
    # From the nearer end, so that both ends are exact.
    down = b.sub(float(stop), b.mul(b.sub(float(n - 1), place), step))
    return b.where(b.lt(place, float(n) / 2), up, down)


def eye(n: int, m: int, dtype: Any) -> Node:
    """Return the n by m matrix with ones on its diagonal."""
    row, column = b.iota(n, i32), b.iota(m, i32)
    same = b.eq(b.expand_axes(row, (n, m), (0,)), b.expand_axes(column, (n, m), (1,)))
    return b.cast(same, dtype)


def one_hot(index: Node, classes: int) -> Node:
    """Return i64 [..., classes], 1 at each index and 0 elsewhere; indices are checked."""
    if not index.dtype.is_int:
        fail(DTypeError, "one_hot", f"an index of type {index.dtype}", (index,), "it is an integer")
    label = b.gather(b.iota(classes, i32), index)
    shape = (*index.shape, classes)
    label = b.expand_axes(label, shape, tuple(range(len(index.shape))))
    places = b.expand_axes(b.iota(classes, i32), shape, (len(index.shape),))
    return b.cast(b.eq(label, places), i64)


def embedding(index: Node, weight: Node, padding: int | None = None) -> Node:
    """Return the rows of a table [n, width] by number; row `padding` gets no gradient.

    Numbers are checked against the table and not wrapped.
    """
    if not index.dtype.is_int:
        what = f"an index of type {index.dtype}"
        fail(DTypeError, "embedding", what, (index, weight), "it is an integer")
    if padding is not None:
        if not -weight.shape[0] <= padding < weight.shape[0]:
            rule = f"it is a row of the table, -{weight.shape[0]}..{weight.shape[0] - 1}"
            fail(ShapeError, "embedding", f"padding_idx is {padding}", (index, weight), rule)
        row = b.expand_axes(b.iota(weight.shape[0], i32), weight.shape, (0,))
        still = b.eq(row, padding % weight.shape[0])
        weight = b.where(still, b.detach(weight), weight)
    return b.gather(weight, index, 0)


def pad_last(x: Node, amounts: Sequence[int], value: Scalar = 0) -> Node:
    """Return x with (before, after) elements added to the last axis, then the one before, ...

    Negative amounts cut. ShapeError when there are more pairs than axes.
    """
    if len(amounts) % 2 or len(amounts) > 2 * len(x.shape):
        rule = "a pair of numbers for each axis, from the last one"
        fail(ShapeError, "pad", f"the amounts {tuple(amounts)} do not fit", (x,), rule)
    sides = [(0, 0)] * len(x.shape)
    for k in range(len(amounts) // 2):
        sides[-1 - k] = (amounts[2 * k], amounts[2 * k + 1])
    cut = [(max(-lo, 0), n - max(-lo, 0) - max(-hi, 0)) for (lo, hi), n in zip(sides, x.shape)]
    if any(size < 0 for _, size in cut):
        fail(ShapeError, "pad", f"{tuple(amounts)} cuts more than there is", (x,), "sizes are >= 0")
    x = b.slice_(x, [start for start, _ in cut], [size for _, size in cut])
    low, high = [max(lo, 0) for lo, _ in sides], [max(hi, 0) for _, hi in sides]
    padded = b.pad(x, low, high)
    if value == 0 or padded is x:
        return padded
    return b.where(b.pad(b.full(x.shape, True), low, high), padded, value)
