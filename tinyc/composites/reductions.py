"""Reductions made of sum and max: mean, var, min, any, all, argmax, softmax and its kin.

A mean or a maximum that only shifts values, as in var and softmax, is detached: the result does
not depend on the shift, so all derivatives stay exact and the backward is one reduction shorter.
"""

from __future__ import annotations

import math

from tinyc.composites.axes import Axes, count, many_axes, one_axis
from tinyc.composites.elementwise import reversed_order
from tinyc.composites.single import in_single
from tinyc.ir import build as b
from tinyc.ir.dtype import DType, bool_, f32, i32, i64, u8
from tinyc.ir.node import Node


def sum_(x: Node, axis: Axes = None, keepdims: bool = False) -> Node:
    """Return the sum; integers and bools are summed as i64; of no elements 0."""
    return b.sum_(x, many_axes("sum", x, axis), keepdims)


@in_single
def mean(x: Node, axis: Axes = None, keepdims: bool = False) -> Node:
    """Return the mean; of integers an f32; of no elements NaN."""
    axes = many_axes("mean", x, axis)
    return b.div(b.sum_(x, axes, keepdims), float(count(x, axes)))


@in_single
def var_mean(
    x: Node, axis: Axes = None, correction: float = 1, keepdims: bool = False
) -> tuple[Node, Node]:
    """Return the variance, with n - correction as divisor, and the mean; integers become f32."""
    axes = many_axes("var", x, axis)
    x = x if x.dtype.is_float else b.cast(x, f32)
    n = count(x, axes)
    mu, total = _deviations_by_rows(x) if _has_long_rows(x, axes) else _deviations(x, axes)
    var = b.div(total, float(max(n - correction, 0)))
    if not keepdims:
        return _drop(var, axes), _drop(mu, axes)
    return var, mu


def _deviations(x: Node, axes: tuple[int, ...]) -> tuple[Node, Node]:
    """Return the mean and the sum of the squared deviations from it, reduced axes kept."""
    mu = mean(x, axes, keepdims=True)
    shift = b.detach(mu)
    centred = b.sub(x, shift)
    # sum((x-c)^2) - n (mean-c)^2 is the sum for every constant c. Here the last term is 0, and
    # carries the derivative through the mean.
    rest = b.sub(mu, shift)
    correction = b.mul(b.mul(rest, rest), float(count(x, axes)))
    return mu, b.sub(b.sum_(b.mul(centred, centred), axes, True), correction)


def _has_long_rows(x: Node, axes: tuple[int, ...]) -> bool:
    return len(axes) == len(x.shape) > 1 and x.shape[-1] >= 64 and count(x, axes) >= 1 << 13


def _deviations_by_rows(x: Node) -> tuple[Node, Node]:
    """Return the mean and squared deviations of a whole tensor in one pass over memory.

    Each row is summed about its own mean while it is in the cache, then rows are merged as in
    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979): with c the constant mean of a row of n, sum((x-m)^2) over the row is
    sum((x-c)^2) + n (c-m) (2 (mean-c) + c-m).
    """
    every, last = tuple(range(len(x.shape))), (len(x.shape) - 1,)
    n = float(x.shape[-1])
    row = mean(x, last, keepdims=True)
    shift = b.detach(row)
    centred = b.sub(x, shift)
    mu = mean(row, every, keepdims=True)
    off = b.sub(shift, mu)
    moved = b.mul(b.mul(off, n), b.add(b.mul(b.sub(row, shift), 2.0), off))
    squares = b.sum_(b.mul(centred, centred), last, True)
    return mu, b.sum_(b.add(squares, moved), every, True)


def _drop(x: Node, axes: tuple[int, ...]) -> Node:
    """Remove axes of size 1."""
    return b.reshape(x, [n for axis, n in enumerate(x.shape) if axis not in axes])


def var(x: Node, axis: Axes = None, correction: float = 1, keepdims: bool = False) -> Node:
    """Return the variance, with n - correction as divisor (NaN where that is 0 of 0)."""
    return var_mean(x, axis, correction, keepdims)[0]


@in_single
def std(x: Node, axis: Axes = None, correction: float = 1, keepdims: bool = False) -> Node:
    """Return the square root of the variance."""
    return b.sqrt(var(x, axis, correction, keepdims))


def max_(x: Node, axis: Axes = None, keepdims: bool = False) -> Node:
    """Return the maximum; NaN if there is one; ties share the gradient."""
    return b.max_(x, many_axes("max", x, axis), keepdims)


def min_(x: Node, axis: Axes = None, keepdims: bool = False) -> Node:
    """Return the minimum; NaN if there is one; ties share the gradient."""
    return reversed_order(b.max_(reversed_order(x), many_axes("min", x, axis), keepdims))


def any_(x: Node, axis: Axes = None, keepdims: bool = False) -> Node:
    """Return whether any element is not zero (bool); of no elements False."""
    axes = many_axes("any", x, axis)
    x = x if x.dtype is bool_ else b.ne(x, 0)
    if count(x, axes) == 0:
        return b.lt(0, b.sum_(x, axes, keepdims))
    return b.max_(x, axes, keepdims)


def all_(x: Node, axis: Axes = None, keepdims: bool = False) -> Node:
    """Return whether no element is zero (bool); of no elements True."""
    zero = b.invert(x) if x.dtype is bool_ else b.eq(x, 0)
    return b.invert(any_(zero, axis, keepdims))


def argmax(x: Node, axis: int | None = None, keepdims: bool = False) -> Node:
    """Return the first index of the maximum (i64), counted over all of x where axis is None.

    The first NaN goes before all. ValueError where there is nothing to choose from.
    """
    ndim = len(x.shape)
    if axis is None:
        flat = first_max(b.reshape(x, (x.size,)), (0,))
        return b.reshape(flat, (1,) * ndim) if keepdims else flat
    axis = one_axis("argmax", x, axis)
    if not ndim:
        return b.full((), 0, i64)
    found = first_max(x, (axis,))
    if not keepdims:
        return found
    rest = tuple(k for k in range(ndim) if k != axis)
    return b.expand_axes(found, (*x.shape[:axis], 1, *x.shape[axis + 1 :]), rest)


def argmin(x: Node, axis: int | None = None, keepdims: bool = False) -> Node:
    """Return the first index of the minimum (i64), as `argmax` does."""
    return argmax(reversed_order(x), axis, keepdims)


def first_max(x: Node, axes: tuple[int, ...], result: DType = i64) -> Node:
    """Return the row-major position over `axes` of the first maximum, or of the first NaN."""
    x = b.cast(x, u8) if x.dtype is bool_ else x
    n = count(x, axes)
    best = b.max_(x, axes, keepdims=True)
    chosen = b.eq(x, best)
    if x.dtype.is_float:
        chosen = b.or_(chosen, b.ne(x, x))
    from_end = b.sub(n - 1, positions(x, axes))
    last = b.max_(b.where(chosen, from_end, 0), axes)
    return b.cast(b.sub(n - 1, last), result)


def positions(x: Node, axes: tuple[int, ...]) -> Node:
    """Return each element's row-major position over `axes`, in the shape of x (i32 if it fits)."""
    dtype = i32 if count(x, axes) < 2**31 else i64
    stride, total = 1, None
    for axis in reversed(axes):
        step = b.iota(x.shape[axis], dtype)
        step = b.expand_axes(step if stride == 1 else b.mul(step, stride), x.shape, (axis,))
        total = step if total is None else b.add(total, step)
        stride *= x.shape[axis]
    return b.full(x.shape, 0, dtype) if total is None else total


def shift_by_max(name: str, x: Node, axis: int) -> tuple[Node, tuple[int, ...]]:
    """Return x as floats minus its detached maximum along the axis, and the axes to reduce."""
    x = x if x.dtype.is_float else b.cast(x, f32)
    axes = (one_axis(name, x, axis),) if x.shape else ()
    if count(x, axes) == 0:
        return x, axes
    return b.sub(x, b.detach(b.max_(x, axes, keepdims=True))), axes


@in_single
def softmax(x: Node, axis: int = -1) -> Node:
    """Return exp(x) over its sum along the axis; NaN for a row of -inf, as in PyTorch."""
    shifted, axes = shift_by_max("softmax", x, axis)
    e = b.exp(shifted)
    return b.div(e, b.sum_(e, axes, keepdims=True))


@in_single
def log_softmax(x: Node, axis: int = -1) -> Node:
    """Return log(softmax(x)), finite for any finite x; NaN for a row of -inf, as in PyTorch."""
    shifted, axes = shift_by_max("log_softmax", x, axis)
    return b.sub(shifted, b.log(b.sum_(b.exp(shifted), axes, keepdims=True)))


@in_single
def logsumexp(x: Node, axis: Axes = -1, keepdims: bool = False) -> Node:
    """Return log(sum(exp(x))) without overflow; -inf for a row of -inf or of nothing."""
    x = x if x.dtype.is_float else b.cast(x, f32)
    axes = many_axes("logsumexp", x, axis)
    if count(x, axes) == 0:
        return b.log(b.sum_(b.exp(x), axes, keepdims))
    top = b.detach(b.max_(x, axes, keepdims=True))
    # Infinities are not subtracted: inf - inf would be NaN.
    infinite = b.or_(b.eq(top, math.inf), b.eq(top, -math.inf))
    top = b.where(infinite, 0, top)
    result = b.add(b.log(b.sum_(b.exp(b.sub(x, top)), axes, keepdims=True)), top)
    return result if keepdims else _drop(result, axes)
