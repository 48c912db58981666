"""Loss functions."""

from __future__ import annotations

from dataclasses import dataclass

from tinyc.composites.activation import softplus
from tinyc.composites.axes import along
from tinyc.composites.elementwise import abs_
from tinyc.composites.reductions import log_softmax, mean, shift_by_max
from tinyc.composites.single import in_single
from tinyc.diagnostics import DTypeError, ShapeError
from tinyc.ir import build as b
from tinyc.ir.dtype import i32, limits
from tinyc.ir.node import Node
from tinyc.ir.ops import fail


def reduced(loss: Node, reduction: str) -> Node:
    """Return the mean or the sum of the losses, or for "none" the losses."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return b.sum_(loss)
    if reduction != "mean":
        raise ValueError(f"reduction is 'none', 'mean' or 'sum', not {reduction!r}")
    return mean(loss)


def _same_shape(name: str, x: Node, target: Node) -> None:
    if x.shape != target.shape:
        fail(
            ShapeError,
            name,
            "shapes differ",
            (x, target),
            "input and target have one shape",
            "reshape the target",
        )


@in_single
def mse_loss(x: Node, target: Node, reduction: str = "mean") -> Node:
    """Return the squared difference."""
    _same_shape("mse_loss", x, target)
    difference = b.sub(x, target)
    return reduced(b.mul(difference, difference), reduction)


@in_single
def l1_loss(x: Node, target: Node, reduction: str = "mean") -> Node:
    """Return the absolute difference."""
    _same_shape("l1_loss", x, target)
    return reduced(abs_(b.sub(x, target)), reduction)


@in_single
def binary_cross_entropy(
    x: Node, target: Node, weight: Node | None = None, reduction: str = "mean"
) -> Node:
    """Return -(t*log(x) + (1-t)*log(1-x)) of probabilities x; the logarithm of 0 counts as -100.

    `weight` multiplies the losses.
    """
    _same_shape("binary_cross_entropy", x, target)
    yes, no = _clamped_log(x), _clamped_log(b.sub(1, x))
    loss = b.neg(b.add(b.mul(target, yes), b.mul(b.sub(1, target), no)))
    return reduced(_weighted(loss, weight), reduction)


def _weighted(loss: Node, weight: Node | None) -> Node:
    return loss if weight is None else b.mul(loss, weight)


def _clamped_log(x: Node) -> Node:
    """Return log(x), but -100 at 0; no infinity reaches the gradient."""
    zero = b.le(x, 0)
    return b.where(zero, -100, b.log(b.where(zero, 1, x)))


@in_single
def binary_cross_entropy_with_logits(
    x: Node,
    target: Node,
    weight: Node | None = None,
    pos_weight: Node | None = None,
    reduction: str = "mean",
) -> Node:
    """Return the binary cross entropy of sigmoid(x), finite for any finite x.

    `weight` multiplies the losses, `pos_weight` what the targets contribute to them.
    """
    _same_shape("binary_cross_entropy_with_logits", x, target)
    loss = softplus(b.neg(x))
    if pos_weight is not None:
        loss = b.mul(loss, b.add(b.mul(b.sub(pos_weight, 1), target), 1))
    loss = b.add(b.mul(b.sub(1, target), x), loss)
    return reduced(_weighted(loss, weight), reduction)


# Losses over classes, which are axis 1, or axis 0 of 1-D logits.


@in_single
def cross_entropy(
    x: Node,
    target: Node,
    weight: Node | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Node:
    """Return -log(softmax(x)) at the target: logits [N, C, ...] and labels [N, ...].

    A floating target in the shape of x holds probabilities instead. `weight` [C] weighs the
    classes; the mean is over the weights of the labels that are not ignored. A label out of range
    is an IndexError when the graph runs. Finite for any finite logits.
    """
    if target.dtype.is_float:
        return _soft_cross_entropy(x, target, weight, reduction, label_smoothing)
    labels = _labels("cross_entropy", x, target, ignore_index)
    # The label's entry is picked before the logarithm of the sum is known: one pass over a row.
    shifted, axes = shift_by_max("cross_entropy", x, labels.axis)
    total = b.log(b.sum_(b.exp(shifted), axes))
    loss = b.sub(total, labels.pick(shifted))
    share = None if weight is None else b.gather(weight, labels.label)
    loss = _weighted(loss, share)
    if label_smoothing:
        spread = _all_classes(shifted, total, weight, labels.axis)
        loss = b.add(b.mul(loss, 1 - label_smoothing), b.mul(spread, label_smoothing))
    return _over_valid(loss, labels.valid, share, reduction)


def _all_classes(shifted: Node, total: Node, weight: Node | None, axis: int) -> Node:
    """Return the loss averaged over all classes as targets."""
    classes = shifted.shape[axis]
    if weight is None:
        return b.sub(total, mean(shifted, axis))
    weighted = b.sum_(b.mul(shifted, along(shifted, weight, axis)), axis)
    return b.div(b.sub(b.mul(total, b.sum_(weight)), weighted), float(classes))


@in_single
def nll_loss(
    x: Node,
    target: Node,
    weight: Node | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
) -> Node:
    """Return -x at the target: log probabilities [N, C, ...] and labels [N, ...]."""
    labels = _labels("nll_loss", x, target, ignore_index)
    loss = b.neg(labels.pick(x))
    share = None if weight is None else b.gather(weight, labels.label)
    loss = _weighted(loss, share)
    return _over_valid(loss, labels.valid, share, reduction)


def _class_axis(x: Node) -> int:
    return 1 if len(x.shape) > 1 else 0


def _soft_cross_entropy(
    x: Node, target: Node, weight: Node | None, reduction: str, smoothing: float
) -> Node:
    _same_shape("cross_entropy", x, target)
    axis = _class_axis(x)
    classes = x.shape[axis]
    if smoothing:
        target = b.add(b.mul(target, 1 - smoothing), smoothing / classes)
    terms = b.mul(target, log_softmax(x, axis))
    if weight is not None:
        terms = b.mul(terms, along(x, weight, axis))
    return reduced(b.neg(b.sum_(terms, axis)), reduction)


def _over_valid(loss: Node, valid: Node | None, share: Node | None, reduction: str) -> Node:
    """Reduce the losses of the labels that count; the mean is over their shares."""
    if valid is not None:
        loss = b.where(valid, loss, 0)
        share = b.cast(valid, loss.dtype) if share is None else b.where(valid, share, 0)
    if reduction != "mean" or share is None:
        return reduced(loss, reduction)
    return b.div(b.sum_(loss), b.sum_(share))


@dataclass(frozen=True)
class _Labels:
    """Class labels in range: the axis of classes, and where labels count (None: everywhere)."""

    axis: int
    valid: Node | None
    label: Node

    def pick(self, x: Node) -> Node:
        """Return the entries of x at the labels.

        By comparing with 0, 1, ... along the classes, so that the gradient is elementwise too
        and nothing is scattered.
        """
        rest = tuple(k for k in range(len(x.shape)) if k != self.axis)
        classes = along(x, b.iota(x.shape[self.axis], i32), self.axis)
        hit = b.eq(classes, b.expand_axes(self.label, x.shape, rest))
        return b.sum_(b.where(hit, x, 0), self.axis)


def _labels(name: str, x: Node, target: Node, ignore_index: int | None) -> _Labels:
    """Check labels of x against its classes; DTypeError or ShapeError when they cannot be such."""
    axis = _class_axis(x)
    if not target.dtype.is_int:
        fail(
            DTypeError,
            name,
            f"labels of type {target.dtype}",
            (x, target),
            "labels are integers; probabilities are floats in the shape of the input",
        )
    if target.shape != x.shape[:axis] + x.shape[axis + 1 :]:
        fail(
            ShapeError,
            name,
            "the target does not fit",
            (x, target),
            f"labels have the input's shape without its axis {axis}, the classes",
        )
    valid = None
    low, high = limits(target.dtype)
    if ignore_index is not None and low <= ignore_index <= high:
        valid = b.ne(target, ignore_index)
        target = b.where(valid, target, 0)
    # A gather from 0, 1, ... is the label itself, checked against its range.
    return _Labels(axis, valid, b.gather(b.iota(x.shape[axis], i32), target))
