"""Batch, layer and RMS normalization, and dropout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinyc.composites.elementwise import rsqrt
from tinyc.composites.reductions import count, mean, var_mean
from tinyc.composites.single import single
from tinyc.diagnostics import DTypeError, ShapeError
from tinyc.ir import build as b
from tinyc.ir.dtype import finfo
from tinyc.ir.node import Node
from tinyc.ir.ops import fail


def layer_norm(
    x: Node,
    normalized_shape: Sequence[int],
    weight: Node | None = None,
    bias: Node | None = None,
    eps: float = 1e-5,
) -> Node:
    """Return x with mean 0 and variance 1 over its last axes, then times weight plus bias.

    The last axes are `normalized_shape`, which is the shape of weight and bias too.
    """
    if x.dtype.is_half:
        wide = (single(x), normalized_shape, single(weight), single(bias), eps)
        return b.cast(layer_norm(*wide), x.dtype)
    axes = _normalized_axes("layer_norm", x, normalized_shape, weight, bias)
    var, mu = var_mean(x, axes, correction=0, keepdims=True)
    y = b.mul(b.sub(x, mu), rsqrt(b.add(var, eps)))
    if weight is not None:
        y = b.mul(y, weight)
    return y if bias is None else b.add(y, bias)


def rms_norm(
    x: Node,
    normalized_shape: Sequence[int],
    weight: Node | None = None,
    eps: float | None = None,
) -> Node:
    """Return x over the root of its mean square over the last axes, then times weight.

    The last axes are `normalized_shape`, the weight's shape too; `eps` is added to the mean
    square, by default the distance of 1 to the next number of x's dtype. DTypeError where x is
    no float.
    """
    axes = _normalized_axes("rms_norm", x, normalized_shape, weight, None)
    if not x.dtype.is_float:
        fail(DTypeError, "rms_norm", "the input is no float", (x,), "it is a float", "cast it")
    if eps is None:
        eps = finfo(x.dtype).eps
    if x.dtype.is_half:
        return b.cast(rms_norm(single(x), normalized_shape, single(weight), eps), x.dtype)
    y = b.mul(x, rsqrt(b.add(mean(b.mul(x, x), axes, keepdims=True), eps)))
    return y if weight is None else b.mul(y, weight)


def _normalized_axes(
    name: str, x: Node, normalized_shape: Sequence[int], weight: Node | None, bias: Node | None
) -> tuple[int, ...]:
    """Return the last axes, after a check that their sizes are the shape of weight and bias."""
    shape = tuple(normalized_shape)
    if not shape or x.shape[-len(shape) :] != shape:
        rule = "normalized_shape is the end of the input's shape"
        fail(ShapeError, name, f"the last axes are not {shape}", (x,), rule)
    for what, node in (("weight", weight), ("bias", bias)):
        if node is not None and node.shape != shape:
            rule = f"the {what} has the shape of the axes that are normalized, {shape}"
            fail(ShapeError, name, f"the {what} does not fit", (x, node), rule)
    return tuple(range(-len(shape), 0))


@dataclass(frozen=True)
class BatchNorm:
    """The normalized input, and what the running statistics become (None where there are none)."""

    y: Node
    running_mean: Node | None
    running_var: Node | None


def batch_norm(
    x: Node,
    running_mean: Node | None = None,
    running_var: Node | None = None,
    weight: Node | None = None,
    bias: Node | None = None,
    training: bool = False,
    momentum: float | Node = 0.1,
    eps: float = 1e-5,
) -> BatchNorm:
    """Normalize each channel (axis 1) of x by its statistics, or by the running ones.

    In training the batch's own are used, and move the running ones by `momentum`, the variance
    with n-1 as divisor. ValueError in training when a channel has one value only.
    """
    if len(x.shape) < 2:
        fail(ShapeError, "batch_norm", "there is no axis 1 of channels", (x,), "it is [N, C, ...]")
    if x.dtype.is_half:
        return _batch_norm_of_halves(x, running_mean, running_var, weight, bias, training, momentum,
                                     eps)  # fmt: skip
    if not training and running_mean is not None and running_var is not None:
        y = _scale_shift(x, running_mean, running_mean, running_var, weight, bias, eps)
        return BatchNorm(y, running_mean, running_var)
    axes = (0, *range(2, len(x.shape)))
    n = count(x, axes)
    if training and n == 1:
        raise ShapeError(f"batch_norm: one value a channel in {x.shape}; training needs more")
    var, mu = var_mean(x, axes, correction=0)
    y = _scale_shift(x, b.detach(mu), mu, var, weight, bias, eps)
    if not training or running_mean is None or running_var is None:
        return BatchNorm(y, running_mean, running_var)
    unbiased = b.mul(b.detach(var), n / (n - 1))
    return BatchNorm(
        y, _moved(running_mean, b.detach(mu), momentum), _moved(running_var, unbiased, momentum)
    )


def _batch_norm_of_halves(
    x: Node, running_mean: Node | None, running_var: Node | None, *rest: Any
) -> BatchNorm:
    """Return the same computed in f32, rounded to what each of them was."""
    old = (running_mean, running_var)
    found = batch_norm(*map(single, (x, *old, *rest)))
    new = [f if f is None or o is None else b.cast(f, o.dtype)
           for f, o in zip((found.running_mean, found.running_var), old)]  # fmt: skip
    return BatchNorm(b.cast(found.y, x.dtype), *new)


def _moved(running: Node, new: Node, momentum: float | Node) -> Node:
    """Return the exponential moving average's next value."""
    kept = b.sub(1, momentum) if isinstance(momentum, Node) else 1 - momentum
    moved = b.add(b.mul(running, kept), b.mul(new, momentum))
    return b.cast(moved, running.dtype)


def _scale_shift(
    x: Node, centre: Node, mu: Node, var: Node, weight: Node | None, bias: Node | None, eps: float
) -> Node:
    """Return (x - mu) / sqrt(var + eps) * weight + bias, for each channel one scale and shift.

    `centre` has the value of mu without its gradient: (x - centre)*scale + shift, with the
    difference in the shift, needs two sums over x in the backward where (x - mu)*scale has three.
    """
    scale = rsqrt(b.add(var, eps))
    if weight is not None:
        scale = b.mul(scale, weight)
    shift = None if mu is centre else b.mul(b.sub(centre, mu), scale)
    if bias is not None:
        shift = bias if shift is None else b.add(bias, shift)
    y = b.mul(b.sub(x, _channels(centre, x)), _channels(scale, x))
    return y if shift is None else b.add(y, _channels(shift, x))


def _channels(vector: Node, x: Node) -> Node:
    """Return a vector of channels repeated over the other axes of x."""
    return b.expand_axes(vector, x.shape, (1,))


def dropout(x: Node, p: float, bits: Node) -> Node:
    """Return x with elements zeroed with probability p, the others divided by 1-p.

    `bits` are uniform u32 in the shape of x.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: the probability p is {p}; it must be in 0..1")
    if p == 0:
        return x
    if p == 1:
        return b.full(x.shape, 0, x.dtype)
    dropped = b.lt(bits, min(round(p * 2**32), 2**32 - 1))
    kept = b.cast(b.mul(single(x), 1 / (1 - p)), x.dtype)
    return b.where(dropped, 0, kept)
