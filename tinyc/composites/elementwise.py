"""Elementwise functions made of the primitive ones: abs, clip, minimum, rsqrt, log1p, isnan."""

from __future__ import annotations

import math

from tinyc.composites.single import in_single
from tinyc.ir import build as b
from tinyc.ir.dtype import Scalar, promote, weak_promote
from tinyc.ir.node import Node

Operand = Node | Scalar


def abs_(x: Node) -> Node:
    """Return |x|; slope 0 at 0, NaN stays."""
    return x if x.dtype.kind in "bu" else b.maximum(x, b.neg(x))


def sign(x: Node) -> Node:
    """Return -1, 0 or 1 in the dtype of x; NaN stays."""
    if x.dtype.kind == "b":
        return x
    above = b.where(b.lt(0, x), 1, x)
    return above if x.dtype.kind == "u" else b.where(b.lt(x, 0), -1, above)


def reciprocal(x: Node) -> Node:
    """Return 1/x; integers become f32."""
    return b.div(1, x)


@in_single
def rsqrt(x: Node) -> Node:
    """Return 1/sqrt(x); integers become f32."""
    return b.div(1, b.sqrt(x))


def square(x: Node) -> Node:
    """Return x*x."""
    return b.mul(x, x)


@in_single
def log1p(x: Node) -> Node:
    """Return log(1+x), accurate near 0 as well; integers become f32."""
    total = b.add(x, 1.0)
    # What 1+x lost by rounding, to first order. In real numbers it is 0, so it is detached and
    # the derivatives are those of the logarithm. Far from 0 it is small, and at inf it is NaN.
    lost = b.div(b.sub(x, b.sub(total, 1)), total)
    near = b.and_(b.lt(-1, x), b.lt(x, 1))
    # A sum, but turned round, so that the result for -0 is -0 and not log(1) = +0.
    return b.neg(b.sub(b.neg(b.log(total)), b.detach(b.where(near, lost, 0))))


def minimum(x: Operand, y: Operand) -> Node:
    """Return the smaller element; NaN wins, the gradient is shared at ties."""
    if not isinstance(x, Node):
        x, y = y, x
    if not isinstance(x, Node):
        x = b.const(x)
    dtype = promote(x.dtype, y.dtype) if isinstance(y, Node) else weak_promote(x.dtype, y)
    x = b.cast(x, dtype)
    y = b.cast(y, dtype) if isinstance(y, Node) else b.const(y, dtype)
    return reversed_order(b.maximum(reversed_order(x), reversed_order(y)))


def reversed_order(x: Node) -> Node:
    """Return x mapped so that its order is reversed: -x for floats, all bits inverted for others.

    The map is its own inverse and, unlike -x, has no overflow and works for unsigned numbers.
    """
    return b.neg(x) if x.dtype.is_float else b.invert(x)


def clip(x: Node, low: Operand | None = None, high: Operand | None = None) -> Node:
    """Return x between the bounds, `high` where they cross; NaN stays, slope 1 on the bounds."""
    if low is not None:
        x = b.where(b.lt(x, low), low, x)
    if high is not None:
        x = b.where(b.lt(high, x), high, x)
    return x


def isnan(x: Node) -> Node:
    """Return where x is NaN (bool)."""
    return b.ne(x, x)


def isinf(x: Node) -> Node:
    """Return where x is infinite (bool)."""
    return b.eq(abs_(x), math.inf) if x.dtype.is_float else b.full(x.shape, False)


def isfinite(x: Node) -> Node:
    """Return where x is neither infinite nor NaN (bool)."""
    return b.lt(abs_(x), math.inf) if x.dtype.is_float else b.full(x.shape, True)
