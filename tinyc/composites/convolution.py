"""Convolution and pooling in any number of dimensions: contractions and reductions over windows.

A window axis is a view, so nothing like im2col is ever named here; the compiler packs what a
contraction reads. Inputs are [N, C, *space] or, without a batch, [C, *space].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tinyc.composites.elementwise import minimum
from tinyc.composites.reductions import first_max, mean, positions
from tinyc.composites.single import in_single, single
from tinyc.diagnostics import ShapeError
from tinyc.ir import build as b
from tinyc.ir.dtype import bool_, f32, i32, limits
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
    y = _conv_groups(single(_pad_space(x, sides)), single(weight), steps, gaps, groups)
    if bias is not None:
        y = b.add(y, b.expand_axes(single(bias), y.shape, (1,)))
    return b.cast(y, x.dtype) if x.dtype is weight.dtype else y


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
            f"the channels do not fit groups={groups}",
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
        if size == step and gap == 1 and 1 < size <= x.shape[first + k]:
            x = _tiles(x, first + k, size)
        else:
            x = b.window(x, first + k, size, step, gap)
    return x


def _tiles(x: Node, axis: int, size: int) -> Node:
    """Windows that do not overlap: a reshape, so that the gradient is one too."""
    shape = x.shape
    places = shape[axis] // size
    if places * size != shape[axis]:
        kept = (*shape[:axis], places * size, *shape[axis + 1 :])
        x = b.slice_(x, (0,) * len(shape), kept, (1,) * len(shape))
    x = b.reshape(x, (*shape[:axis], places, size, *shape[axis + 1 :]))
    rank = len(shape) + 1
    return b.permute(x, (*(k for k in range(rank) if k != axis + 1), axis + 1))


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


@dataclass(frozen=True)
class _Pool:
    """Where windows lie on each spatial axis: kernel, steps, gaps, padding, and the zeros there.

    `sides` is the padding and, with ceil_mode, what the last window needs beyond it.
    """

    kernel: tuple[int, ...]
    steps: tuple[int, ...]
    gaps: tuple[int, ...]
    padding: tuple[int, ...]
    sides: Sides

    def overlap(self) -> bool:
        """True if windows that follow each other share elements."""
        return any(k > step for k, step in zip(self.kernel, self.steps))


def _pool(
    name: str,
    x: Node,
    kernel: Extents,
    stride: Extents | None,
    padding: Extents,
    dilation: Extents,
    ceil_mode: bool,
    rank: int,
) -> _Pool:
    """Spread the arguments of a pooling over its axes and check them."""
    if len(x.shape) not in (rank + 1, rank + 2):
        rule = f"the input has {rank} spatial axes after [N, C] or [C]"
        fail(ShapeError, name, "the number of axes does not fit", (x,), rule)
    size, gaps = _each(name, kernel, rank), _each(name, dilation, rank)
    steps = size if stride is None else _each(name, stride, rank)
    pads = _each(name, padding, rank)
    if any(2 * p > k for p, k in zip(pads, size)):
        raise ShapeError(f"{name}: padding {pads} is more than half of the kernel {size}")
    sides = [(p, p) for p in pads]
    if ceil_mode:
        axes = zip(x.shape[-rank:], size, steps, gaps, pads)
        sides = [(axis[-1], axis[-1] + _overhang(*axis)) for axis in axes]
    return _Pool(size, steps, gaps, pads, sides)


def _overhang(length: int, size: int, step: int, gap: int, pad: int) -> int:
    """Return how far the last window reaches beyond the padding where counts are rounded up."""
    span = gap * (size - 1) + 1
    places = -(-(length + 2 * pad - span) // step) + 1
    if (places - 1) * step >= length + pad:
        # A window that starts in the padding on the right is left out.
        places -= 1
    return max((places - 1) * step + span - length - 2 * pad, 0)


def max_pool(
    x: Node,
    kernel: Extents,
    stride: Extents | None = None,
    padding: Extents = 0,
    dilation: Extents = 1,
    ceil_mode: bool = False,
    rank: int = 2,
    gradient: bool = True,
) -> Node:
    """Return the maximum of each window, over -inf outside x; NaN if there is one.

    The gradient goes to the first maximum of a window alone, or to its first NaN;
    `gradient=False` leaves out what only the gradient needs.
    """
    pool = _pool("max_pool", x, kernel, stride, padding, dilation, ceil_mode, rank)
    padded = _pad_lowest(x, pool.sides)
    if padded is not x and pool.overlap():
        # Windows that share elements ask once for each whether it is padding, not for each window.
        padded = b.materialize(padded)
    views = _windows(padded, pool.kernel, pool.steps, pool.gaps)
    taps = tuple(range(len(x.shape), len(x.shape) + rank))
    if not gradient or not x.dtype.is_float:
        return b.max_(views, taps)
    # As i32 throughout: as wide as f32, so that loops over both fill whole vectors.
    first = b.detach(first_max(views, taps, i32))
    first = b.expand_axes(first, views.shape, tuple(range(len(x.shape))))
    chosen = b.eq(positions(views, taps), first)
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


@in_single
def avg_pool(
    x: Node,
    kernel: Extents,
    stride: Extents | None = None,
    padding: Extents = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    rank: int = 2,
) -> Node:
    """Return the mean of each window; the padding counts as zeros, or not at all."""
    pool = _pool("avg_pool", x, kernel, stride, padding, 1, ceil_mode, rank)
    taps = tuple(range(len(x.shape), len(x.shape) + rank))
    views = _windows(_pad_space(x, pool.sides), pool.kernel, pool.steps, pool.gaps)
    total = b.sum_(views, taps)
    whole = all(lo == hi and (count_include_pad or not lo) for lo, hi in pool.sides)
    if whole:
        return b.div(total, float(math.prod(pool.kernel)))
    for k in range(rank):
        axis = len(x.shape) - rank + k
        extra = pool.padding[k] if count_include_pad else 0
        start = b.sub(b.mul(b.iota(total.shape[axis], i32), pool.steps[k]), pool.padding[k])
        end = minimum(b.add(start, pool.kernel[k]), x.shape[axis] + extra)
        inside = b.cast(b.sub(end, b.maximum(start, -extra)), f32)
        total = b.div(total, b.expand_axes(inside, total.shape, (axis,)))
    return total


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
