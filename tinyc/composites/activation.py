"""Activation functions."""

from __future__ import annotations

import math

from tinyc.composites.elementwise import abs_, log1p
from tinyc.composites.single import in_single
from tinyc.ir import build as b
from tinyc.ir.node import Node


def relu(x: Node) -> Node:
    """Return x where it is positive, else 0; NaN stays, slope 0 at 0."""
    return b.where(b.le(x, 0), 0, x)


@in_single
def leaky_relu(x: Node, slope: float = 0.01) -> Node:
    """Return x where it is positive, else x*slope."""
    return b.where(b.lt(0, x), x, b.mul(x, slope))


@in_single
def sigmoid(x: Node) -> Node:
    """Return 1/(1+exp(-x)), accurate and with a finite gradient at any x; integers become f32."""
    # exp(-|x|) never overflows. Written by where, since at 0 the slope of |x| must be one-sided.
    negative = b.lt(x, 0)
    decay = b.exp(b.where(negative, x, b.neg(x)))
    return b.div(b.where(negative, decay, 1), b.add(decay, 1))


@in_single
def silu(x: Node) -> Node:
    """Return x * sigmoid(x)."""
    return b.mul(x, sigmoid(x))


@in_single
def softplus(x: Node) -> Node:
    """Return log(1+exp(x)), without overflow; integers become f32."""
    # One-sided at 0 in both terms, so that the slopes add up to 1/2 there.
    negative = b.lt(x, 0)
    decay = b.exp(b.where(negative, x, b.neg(x)))
    return b.add(b.where(negative, 0, x), log1p(decay))


@in_single
def logsigmoid(x: Node) -> Node:
    """Return log(sigmoid(x)), without overflow."""
    return b.neg(softplus(b.neg(x)))


@in_single
def gelu(x: Node, approximate: str = "none") -> Node:
    """Return x times the normal distribution's share below x; "tanh" gives the approximation."""
    if approximate == "tanh":
        inner = b.mul(b.add(x, b.mul(b.mul(b.mul(x, x), x), 0.044715)), math.sqrt(2 / math.pi))
        return b.mul(b.mul(x, 0.5), b.add(b.tanh(inner), 1))
    if approximate != "none":
        raise ValueError(f"gelu: approximate is 'none' or 'tanh', not {approximate!r}")
    return b.mul(b.mul(x, 0.5), b.add(b.erf(b.mul(x, math.sqrt(0.5))), 1))


@in_single
def softsign(x: Node) -> Node:
    """Return x / (1 + |x|)."""
    return b.div(x, b.add(abs_(x), 1))
