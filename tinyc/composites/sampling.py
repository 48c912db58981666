"""Choosing among logits by chance, without a sort: a threshold for the k largest, a maximum."""

from __future__ import annotations

from tinyc.composites.reductions import argmax
from tinyc.diagnostics import ShapeError
from tinyc.ir import build as b
from tinyc.ir.dtype import DType, f64, i64, u32, u64
from tinyc.ir.node import Node
from tinyc.ir.ops import fail


def sample(logits: Node, draws: Node, top_k: int | None = None) -> Node:
    """Return i64[...]: for each row [..., n] a number drawn with probability softmax(row).

    `draws` are uniform in [0, 1), in the shape of the logits. With `top_k` only the k largest
    logits of a row, and what equals the least of them, are drawn from. The way is that of Gumbel:
    the place of max(logit - log(-log u)) has the wanted distribution.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        logits = b.where(largest(logits, top_k), logits, -float("inf"))
    # Away from 0, whose logarithm is infinite.
    inside = b.add(b.mul(draws, 1 - 2.0**-24), 2.0**-25)
    noise = b.neg(b.log(b.neg(b.log(inside))))
    return argmax(b.add(logits, noise), len(logits.shape) - 1)


def largest(x: Node, k: int) -> Node:
    """Return bool in the shape of x: where an element is at least the k-th largest of its row.

    The k-th largest is found bit by bit, from the highest: that many passes over a row, whatever
    k is. NaN is larger than all numbers. ShapeError unless 1 <= k <= the row's length.
    """
    if not x.shape or not 1 <= k <= x.shape[-1]:
        fail(ShapeError, "topk", f"there are no {k} largest", (x,), "k is 1 to the last axis' size")
    keys = _ordered_bits(x)
    axis = (len(x.shape) - 1,)
    least = b.full((*x.shape[:-1], 1), 0, keys.dtype)
    for bit in reversed(range(8 * keys.dtype.itemsize)):
        higher = b.or_(least, 1 << bit)
        count = b.sum_(b.cast(b.ge(keys, higher), i64), axis, keepdims=True)
        least = b.where(b.ge(count, k), higher, least)
    return b.ge(keys, least)


def _ordered_bits(x: Node) -> Node:
    """Return unsigned integers that are ordered as the floats are (IEEE 754, -0 below 0)."""
    unsigned: DType = u64 if x.dtype is f64 else u32
    top = 8 * unsigned.itemsize - 1
    bits = b.bitcast(x, unsigned)
    negative = b.eq(b.shr(bits, top), 1)
    return b.where(negative, b.invert(bits), b.or_(bits, 1 << top))
