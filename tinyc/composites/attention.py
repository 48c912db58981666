"""Scaled dot-product attention: products, a softmax over rows and a mask, which fusion joins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NoReturn

from tinyc.composites.linear import matmul
from tinyc.composites.normalization import dropout
from tinyc.composites.reductions import softmax
from tinyc.composites.single import single
from tinyc.diagnostics import DTypeError, ShapeError
from tinyc.ir import build as b
from tinyc.ir.dtype import bool_, i32
from tinyc.ir.node import Node
from tinyc.ir.ops import Shape, fail

NAME = "scaled_dot_product_attention"


def attention(
    query: Node,
    key: Node,
    value: Node,
    mask: Node | None = None,
    causal: bool = False,
    scale: float | None = None,
    grouped: bool = False,
    dropout_p: float = 0.0,
    draw: Callable[[Shape], Node] | None = None,
) -> Node:
    """Return softmax(query @ key^T * scale + mask) @ value; `scale` is 1/sqrt(E) unless given.

    Shapes are [..., L, E], [..., S, E], [..., S, V] to [..., L, V], leading axes broadcast, and
    the mask broadcasts to [..., L, S]: a bool one says who takes part, a floating one is added.
    A row with nobody in it gives zeros. `causal` lets row i see columns 0 ... i. `grouped` lets
    several heads of the query (axis -3) share one of key and value. `draw` makes the random u32
    of the shares' dropout. ShapeError and DTypeError for what does not fit.
    """
    _check(query, key, value, mask, causal, grouped)
    if grouped:
        key, value = (_shared_heads(x, query.shape[-3]) for x in (key, value))
    found = shares(query, key, mask, causal, scale)
    if dropout_p and draw is not None:
        found = dropout(found, dropout_p, draw(found.shape))
    # The shares of halves are halves: that is what is kept, and what tensor cores multiply.
    return matmul(b.cast(found, value.dtype), value)


def shares(
    query: Node,
    key: Node,
    mask: Node | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Node:
    """Return how much each row of the query takes of each of the keys: [..., L, S].

    That is softmax(query @ key^T * scale + mask), with the arguments of `attention`; f32 for
    halves.
    """
    scores = matmul(single(query), _transposed(single(key)))
    mask = single(mask)
    scores = b.mul(scores, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if mask is not None:
        return _safe_softmax(_masked(scores, mask))
    return softmax(_masked(scores, _lower(scores.shape[-2:])) if causal else scores)


def _transposed(x: Node) -> Node:
    axes = range(len(x.shape))
    return b.permute(x, (*axes[:-2], axes[-1], axes[-2]))


def _lower(shape: Shape) -> Node:
    """Return where the column is not beyond the row."""
    rows = b.expand_axes(b.iota(shape[0], i32), shape, (0,))
    return b.ge(rows, b.expand_axes(b.iota(shape[1], i32), shape, (1,)))


def _masked(scores: Node, mask: Node) -> Node:
    _check_mask(scores, mask)
    if mask.dtype is bool_:
        return b.where(mask, scores, -math.inf)
    return b.add(scores, mask)


def _safe_softmax(scores: Node) -> Node:
    """Return softmax over the last axis, and zeros for a row of -inf, as PyTorch's attention."""
    if scores.shape[-1] == 0:
        return scores
    axis = (len(scores.shape) - 1,)
    top = b.detach(b.max_(scores, axis, keepdims=True))
    # -inf is not subtracted: -inf - -inf would be NaN.
    e = b.exp(b.sub(scores, b.where(b.eq(top, -math.inf), 0, top)))
    total = b.sum_(e, axis, keepdims=True)
    return b.div(e, b.where(b.eq(total, 0), 1, total))


def _shared_heads(x: Node, heads: int) -> Node:
    """Return [..., K, S, E] with each head repeated until there are `heads`."""
    *lead, own, length, width = x.shape
    if own == heads:
        return x
    each = b.reshape(x, (*lead, own, 1, length, width))
    return b.reshape(b.expand(each, (*lead, own, heads // own, length, width)),
                     (*lead, heads, length, width))  # fmt: skip


def _check(
    query: Node, key: Node, value: Node, mask: Node | None, causal: bool, grouped: bool
) -> None:
    """Raise ShapeError, DTypeError or ValueError, with the shapes, where arguments do not fit."""
    three = (query, key, value)
    if len({x.dtype for x in three}) > 1 or not query.dtype.is_float:
        _refuse(DTypeError, "dtypes do not fit", three, "all three have one floating dtype")
    axes = "[..., H, L, E]" if grouped else "[..., L, E]"
    if min(len(x.shape) for x in three) < axes.count(","):
        _refuse(ShapeError, "too few axes", three, f"each is {axes}")
    if query.shape[-1] != key.shape[-1]:
        _refuse(ShapeError, "widths differ", (query, key), "the last axes are equal")
    if key.shape[-2] != value.shape[-2]:
        _refuse(ShapeError, "lengths differ", (key, value), "axis -2, the length, is equal")
    if grouped and any(not x.shape[-3] or query.shape[-3] % x.shape[-3] for x in (key, value)):
        rule = "the heads (axis -3) of key and value divide those of the query"
        _refuse(ShapeError, "heads do not fit", three, rule)
    if mask is not None and causal:
        raise ValueError(f"{NAME}: both attn_mask and is_causal=True are given; give one of them")


def _check_mask(scores: Node, mask: Node) -> None:
    if mask.dtype is not bool_ and mask.dtype is not scores.dtype:
        rule = "a mask is bool, or has the dtype of the query"
        _refuse(DTypeError, "the mask's dtype does not fit", (mask, scores), rule)
    ends = zip(reversed(mask.shape), reversed(scores.shape))
    if len(mask.shape) > len(scores.shape) or any(own not in (1, all_) for own, all_ in ends):
        rule = "the mask broadcasts to the scores, [..., L, S]"
        _refuse(ShapeError, "the mask does not fit", (mask, scores), rule)


def _refuse(error: type[Exception], what: str, nodes: Sequence[Node], rule: str) -> NoReturn:
    fail(error, NAME, what, nodes, rule)
