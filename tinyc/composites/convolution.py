"""Convolution and pooling in any number of dimensions: contractions and reductions over windows.

A window axis is a view, so nothing like im2col is ever named here; the compiler packs what a
contraction reads. Inputs are [N, C, *space] or, without a batch, [C, *space].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinyc.composites.elementwise import minimum
from tinyc.composites.reductions import first_max, mean, positions
from tinyc.diagnostics import ShapeError
from tinyc.ir import build as b
from tinyc.ir.dtype import bool_, f32, i32, limits, u8
from tinyc.ir.node import Node
from tinyc.ir.ops import fail

Extents = int | Sequence[int]
Sides = list[tuple[int, int]]


def conv(
    x: Node,
    weight: Node,
    bias: Node | None = None,
    stride: Extents = 1,
    padding: Extents | str = 0,
    dilation: Extents = 1,
    groups: int = 1,
) -> Node:
    """Return the cross-correlation of x [N, C, *space] with weight [O, C/groups, *kernel].

    `padding` is a number of zeros, "valid" or "same" (then with stride 1). The result is
    [N, O, *out] with out = (space + 2*padding - dilation*(kernel-1) - 1) // stride + 1.
    """
    rank = len(weight.shape) - 2
    if len(x.shape) == rank + 1:
        batched = b.expand_axes(x, (1, *x.shape), tuple(range(1, rank + 2)))
        y = conv(batched, weight, bias, stride, padding, dilation, groups)
        return b.reshape(y, y.shape[1:])
    _check_conv(x, weight, groups)
    kernel = weight.shape[2:]
    steps, gaps = _each("conv", stride, rank), _each("conv", dilation, rank)
    sides = _conv_sides(padding, kernel, steps, gaps)
    y = _conv_groups(_pad_space(x, sides), weight, steps, gaps, groups)
    if bias is None:
        return y
    return b.add(y, b.expand_axes(bias, y.shape, (1,)))


def _check_conv(x: Node, weight: Node, groups: int) -> None:
    rank = len(weight.shape) - 2
    if rank < 1 or len(x.shape) != rank + 2:
        fail(
            ShapeError,
            "conv",
            "the number of axes does not fit",
            (x, weight),
            "the input is [N, C, *space] or [C, *space], the weight [O, C/groups, *kernel]",
        )
    if groups < 1 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        fail(
            ShapeError,
            "conv",
            f"the channels do not fit {groups} groups",
            (x, weight),
            "axis 1 of the input is axis 1 of the weight times the groups, and these divide"
            " axis 0 of the weight",
        )


def _each(name: str, value: Extents, rank: int) -> tuple[int, ...]:
    """Return one number for each spatial axis."""
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    values = values * rank if len(values) == 1 else values
    if len(values) != rank:
        raise ShapeError(f"{name}: {values} has {len(values)} numbers; there are {rank} axes")
    return values


def _conv_sides(
    padding: Extents | str, kernel: Sequence[int], steps: Sequence[int], gaps: Sequence[int]
) -> Sides:
    """Return the zeros before and after each spatial axis."""
    if not isinstance(padding, str):
        return [(p, p) for p in _each("conv", padding, len(kernel))]
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding != "same":
        raise ValueError(f"conv: padding is a number, 'valid' or 'same', not {padding!r}")
    if any(step != 1 for step in steps):
        raise ValueError("conv: padding 'same' needs stride 1; give the padding as numbers")
    totals = [gap * (size - 1) for gap, size in zip(gaps, kernel)]
    return [(total // 2, total - total // 2) for total in totals]


def _pad_space(x: Node, sides: Sides) -> Node:
    lead = (0,) * (len(x.shape) - len(sides))
    return b.pad(x, (*lead, *(lo for lo, _ in sides)), (*lead, *(hi for _, hi in sides)))


def _windows(x: Node, kernel: Sequence[int], steps: Sequence[int], gaps: Sequence[int]) -> Node:
    """Make the last axes of x places, and append one axis of taps for each of them."""
    first = len(x.shape) - len(kernel)
    for k, (size, step, gap) in enumerate(zip(kernel, steps, gaps)):
        x = b.window(x, first + k, size, step, gap)
    return x


def _conv_groups(
    x: Node, weight: Node, steps: Sequence[int], gaps: Sequence[int], groups: int
) -> Node:
    """Return the convolution of a padded input: one contraction, with groups as a batch axis."""
    rank = len(steps)
    n, o, c, g = range(4)
    place, tap = tuple(range(4, 4 + rank)), tuple(range(4 + rank, 4 + 2 * rank))
    kernel = weight.shape[2:]
    if groups == 1:
        x = _windows(x, kernel, steps, gaps)
        return b.contract(x, weight, (n, c, *place, *tap), (o, c, *tap), (n, o, *place))
    shape, outs = x.shape, weight.shape[0]
    x = b.reshape(x, (shape[0], groups, shape[1] // groups, *shape[2:]))
    weight = b.reshape(weight, (groups, outs // groups, *weight.shape[1:]))
    x = _windows(x, kernel, steps, gaps)
    y = b.contract(x, weight, (n, g, c, *place, *tap), (g, o, c, *tap), (n, g, o, *place))
    return b.reshape(y, (y.shape[0], outs, *y.shape[3:]))


# Pooling: the last `rank` axes are space, the others are kept.


def _pool_windows(
    name: str,
    x: Node,
    kernel: Extents,
    stride: Extents | None,
    padding: Extents,
    dilation: Extents,
    rank: int,
) -> tuple[tuple[int, ...], tuple[int, ...], Sides, tuple[int, ...]]:
    """Return kernel, steps, sides and gaps of each axis, checked."""
    if len(x.shape) not in (rank + 1, rank + 2):
        fail(
            ShapeError,
            name,
            "the number of axes does not fit",
            (x,),
            f"the input has {rank} spatial axes after [N, C] or [C]",
        )
    size = _each(name, kernel, rank)
    steps = size if stride is None else _each(name, stride, rank)
    pads = _each(name, padding, rank)
    if any(2 * p > k for p, k in zip(pads, size)):
        raise ShapeError(f"{name}: padding {pads} is more than half of the kernel {size}")
    return size, steps, [(p, p) for p in pads], _each(name, dilation, rank)


def max_pool(
    x: Node,
    kernel: Extents,
    stride: Extents | None = None,
    padding: Extents = 0,
    dilation: Extents = 1,
    rank: int = 2,
    gradient: bool = True,
) -> Node:
    """Return the maximum of each window, over -inf outside x; NaN if there is one.

    The gradient goes to the first maximum of a window alone, or to its first NaN, as in PyTorch;
    `gradient=False` leaves out what only the gradient needs.
    """
    size, steps, sides, gaps = _pool_windows("max_pool", x, kernel, stride, padding, dilation, rank)
    views = _windows(_pad_lowest(x, sides), size, steps, gaps)
    taps = tuple(range(len(x.shape), len(x.shape) + rank))
    if not gradient or not x.dtype.is_float:
        return b.max_(views, taps)
    places = positions(views, taps)
    total = math.prod(size)
    narrow = u8 if total <= 256 else i32
    first = b.detach(first_max(views, taps, narrow))
    lead = tuple(range(len(x.shape)))
    chosen = b.eq(b.cast(places, narrow), b.expand_axes(first, views.shape, lead))
    return b.sum_(b.where(chosen, views, 0), taps)


def _pad_lowest(x: Node, sides: Sides) -> Node:
    """Pad with -inf, or with the smallest integer."""
    if not any(map(any, sides)):
        return x
    if x.dtype is bool_:
        return _pad_space(x, sides)
    inside = _pad_space(b.full(x.shape, True), sides)
    lowest = -math.inf if x.dtype.is_float else limits(x.dtype)[0]
    return b.where(inside, _pad_space(x, sides), lowest)


def avg_pool(
    x: Node,
    kernel: Extents,
    stride: Extents | None = None,
    padding: Extents = 0,
    count_include_pad: bool = True,
    rank: int = 2,
) -> Node:
    """Return the mean of each window; the padding counts as zeros, or not at all."""
    size, steps, sides, gaps = _pool_windows("avg_pool", x, kernel, stride, padding, 1, rank)
    taps = tuple(range(len(x.shape), len(x.shape) + rank))
    views = _windows(_pad_space(x, sides), size, steps, gaps)
    total = b.sum_(views, taps)
    if count_include_pad or not any(map(any, sides)):
        return b.div(total, float(math.prod(size)))
    for axis, (low, _) in enumerate(sides, len(x.shape) - rank):
        k = axis - len(x.shape) + rank
        inside = _inside(x.shape[axis], total.shape[axis], size[k], steps[k], low)
        total = b.div(total, b.expand_axes(inside, total.shape, (axis,)))
    return total


def _inside(length: int, places: int, size: int, step: int, low: int) -> Node:
    """Return how many elements of each window lie inside an axis of this length."""
    start = b.sub(b.mul(b.iota(places, i32), step), low)
    end = minimum(b.add(start, size), length)
    return b.cast(b.sub(end, b.maximum(start, 0)), f32)


def adaptive_avg_pool(x: Node, output: Extents, rank: int = 2) -> Node:
    """Return means over equal blocks, as many on each axis as `output` says.

    ShapeError where the blocks would not be equal.
    """
    wanted = _each("adaptive_avg_pool", output, rank)
    space = x.shape[-rank:]
    if wanted == (1,) * rank:
        return mean(x, tuple(range(-rank, 0)), keepdims=True)
    if any(w < 1 or n % w for n, w in zip(space, wanted)):
        fail(
            ShapeError,
            "adaptive_avg_pool",
            f"{wanted} does not divide the space",
            (x,),
            "each output size divides its axis",
        )
    return avg_pool(x, [n // w for n, w in zip(space, wanted)], rank=rank)
