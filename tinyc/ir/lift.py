"""Rules that find contractions in what the user wrote or what autograd built."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from tinyc.ir.node import Node, node
from tinyc.ir.ops import Op
from tinyc.ir.rewrite import Firing, by_op, rewrite, rule
from tinyc.ir.simplify import RULES as SIMPLIFY_RULES

Labels = tuple[int, ...]


def lift(outputs: Sequence[Node], firings: list[Firing] | None = None) -> tuple[Node, ...]:
    """Return outputs of equal value (but for rounding) in which contractions are CONTRACT nodes."""
    return rewrite(outputs, _TABLE, firings)


def _contract(src: Sequence[Node], la: Labels, lb: Labels, lo: Labels) -> Node:
    """A contraction with its labels renumbered by first appearance, as ``build`` has them."""
    names: dict[int, int] = {}
    attrs = tuple(
        tuple(names.setdefault(label, len(names)) for label in labels) for labels in (la, lb, lo)
    )
    return node(Op.CONTRACT, tuple(src), attrs)


def _reshape(x: Node, shape: tuple[int, ...]) -> Node:
    return x if x.shape == shape else node(Op.RESHAPE, (x,), (shape,))


def _expand(x: Node, shape: tuple[int, ...], axes: Labels) -> Node:
    return x if x.shape == shape else node(Op.EXPAND, (x,), (shape, axes))


# Products that are summed.


@rule(Op.REDUCE)
def sum_of_product(n: Node) -> Node | None:
    """sum(mul(expand a, expand b)) -> contract(a, b)    if each has axes that the other has not"""
    kind, axes = n.attrs
    product = n.src[0]
    if kind != "sum" or product.op is not Op.MUL or not n.dtype.is_float:
        return None
    (a, la), (b, lb) = (_carried(operand) for operand in product.src)
    wide = [axis for axis, size in enumerate(product.shape) if size != 1]
    summed = {axis for axis in wide if axis in axes}
    kept = tuple(axis for axis in wide if axis not in axes)
    both, either = set(la) & set(lb), set(la) | set(lb)
    if not summed or not summed <= both or not set(kept) <= either:
        return None
    if not set(la) - set(lb) or not set(lb) - set(la):
        return None
    y = _contract((a, b), la, lb, kept)
    remaining = [axis for axis in range(len(product.shape)) if axis not in axes]
    return _expand(y, n.shape, tuple(remaining.index(axis) for axis in kept))


def _carried(x: Node) -> tuple[Node, Labels]:
    """What an operand is without its repeated axes, and which axes of x those of the rest are."""
    labels = tuple(range(len(x.shape)))
    while x.op in (Op.PERMUTE, Op.EXPAND):
        if x.op is Op.EXPAND:
            labels = tuple(labels[axis] for axis in x.attrs[1])
        else:
            perm = x.attrs[0]
            labels = tuple(labels[perm.index(axis)] for axis in range(len(perm)))
        x = x.src[0]
    real = [k for k, size in enumerate(x.shape) if size != 1]
    x = _reshape(x, tuple(x.shape[k] for k in real))
    return x, tuple(labels[k] for k in real)


# Views around a contraction.


@rule(Op.PERMUTE, sole=True)
def permute_of_contract(n: Node) -> Node | None:
    """permute(contract(a, b)) -> contract(a, b)    with its result's axes in that order"""
    inner = n.src[0]
    if inner.op is not Op.CONTRACT:
        return None
    la, lb, lo = inner.attrs
    return _contract(inner.src, la, lb, tuple(lo[axis] for axis in n.attrs[0]))


@rule(Op.CONTRACT)
def contract_of_permute(n: Node) -> Node | None:
    """contract(permute a, b) -> contract(a, b)    with the labels of a in that order"""
    sources, labels = list(n.src), list(n.attrs)
    for k, source in enumerate(n.src):
        if source.op is Op.PERMUTE:
            perm = source.attrs[0]
            sources[k] = source.src[0]
            labels[k] = tuple(labels[k][perm.index(axis)] for axis in range(len(perm)))
    if tuple(sources) == n.src:
        return None
    return _contract(sources, labels[0], labels[1], labels[2])


@rule(Op.CONTRACT)
def contract_of_expand(n: Node) -> Node | None:
    """contract(expand a, b) -> contract(a, b)    where what is repeated are batch axes of b"""
    la, lb, lo = n.attrs
    batch = {label for label in lo if label in la and label in lb}
    sources, labels = list(n.src), [la, lb]
    for k, x in enumerate(n.src):
        if x.op is not Op.EXPAND:
            continue
        places = x.attrs[1]
        real = [axis for s, axis in zip(x.src[0].shape, places) if s == x.shape[axis]]
        gone = {label for axis, label in enumerate(labels[k]) if axis not in real} & batch
        if gone:
            sources[k], labels[k] = _drop(x, labels[k], gone)
            batch -= gone
    return None if labels == [la, lb] else _contract(sources, labels[0], labels[1], lo)


def _drop(expand: Node, labels: Labels, gone: set[int]) -> tuple[Node, Labels]:
    """An expand without those of its axes that have these labels, all of them repeated."""
    x, places = expand.src[0], expand.attrs[1]
    kept = [axis for axis, label in enumerate(labels) if label not in gone]
    x = _reshape(x, tuple(s for s, axis in zip(x.shape, places) if axis in kept))
    axes = tuple(kept.index(axis) for axis in places if axis in kept)
    shape = tuple(expand.shape[axis] for axis in kept)
    return _expand(x, shape, axes), tuple(labels[axis] for axis in kept)


@rule(Op.REDUCE, sole=True)
def sum_of_contract(n: Node) -> Node | None:
    """sum(contract(a, b) over batch axes) -> contract(a, b)    with those contracted as well"""
    kind, axes = n.attrs
    inner = n.src[0]
    if kind != "sum" or inner.op is not Op.CONTRACT:
        return None
    la, lb, lo = inner.attrs
    if any(lo[axis] not in la or lo[axis] not in lb for axis in axes):
        return None
    kept = tuple(label for axis, label in enumerate(lo) if axis not in axes)
    return _contract(inner.src, la, lb, kept)


@rule(Op.SLICE, sole=True)
def slice_of_contract(n: Node) -> Node | None:
    """slice(contract(a, b)) -> contract(slice a, slice b)    computes what is read only"""
    inner = n.src[0]
    if inner.op is not Op.CONTRACT:
        return None
    la, lb, lo = inner.attrs
    wanted = dict(zip(lo, zip(*n.attrs)))
    a, b = (_slice_labels(source, labels, wanted) for source, labels in zip(inner.src, (la, lb)))
    return _contract((a, b), la, lb, lo)


def _slice_labels(x: Node, labels: Labels, wanted: dict[int, tuple[int, int, int]]) -> Node:
    spans = [wanted.get(label, (0, size, 1)) for label, size in zip(labels, x.shape)]
    if spans == [(0, size, 1) for size in x.shape]:
        return x
    return node(Op.SLICE, (x,), tuple(zip(*spans)))


# Input gradients of convolutions, and transposed convolutions.


@rule(Op.FOLD)
def fold_of_contract(n: Node) -> Node | None:
    """fold(contract(g, w)) -> contract(window(pad g), flip w)

    With stride s the taps k = s*t + r are split into t, which is contracted, and r, an axis of
    the result that is then merged with the one folded to: out[s*q + r] = sum_t g[q-t] w[s*t+r].
    """
    axis, extent, stride, dilation = n.attrs
    found = _merged_contract(n.src[0])
    if found is None or (stride > 1 and dilation > 1):
        return None
    inner, groups = found
    shape = n.src[0].shape
    if len(groups[axis]) != 1 or len(groups[-1]) != 1:
        return None
    (place,), (tap,) = groups[axis], groups[-1]
    sides = _sides(inner, place, tap)
    if sides is None or _extent(inner, place) != shape[axis] or _extent(inner, tap) != shape[-1]:
        return None
    g, lg, w, lw = sides
    if _is_uneven(n) and _is_tap(inner, groups[-2][0], lg):
        return None  # the taps of another axis are folded next, and both at once by the other rule
    steps, blocks = -(-shape[-1] // stride), -(-extent // stride)
    w = _split_taps(w, lw.index(tap), steps, stride)
    g = _window_padded(g, lg.index(place), blocks, steps, dilation)
    residue = max(*lg, *lw) + 1
    if stride > 1:
        lw = (*lw[: lw.index(tap) + 1], residue, *lw[lw.index(tap) + 1 :])
        groups[axis] = (place, residue)
    groups = groups[:-1]
    out = tuple(label for group in groups for label in group)
    y = _contract((g, w), (*lg, tap), lw, out)
    return _merge_axes(y, groups, n.shape)


@rule(Op.FOLD)
def folds_of_contract(n: Node) -> Node | None:
    """fold(.. fold(contract(g, w))) -> interleaved contract(window(pad g), flip w[r::s]), ..

    One contraction for each remainder r of every axis, where there are more taps for some than for
    others: as by the rule above, but no taps of zeros are added to have as many for each.
    """
    folds = [n]
    while folds[-1].src[0].op is Op.FOLD:
        folds.append(folds[-1].src[0])
    folds.reverse()
    inner = folds[0].src[0]
    if inner.op is not Op.CONTRACT or not any(map(_is_uneven, folds)):
        return None
    labels = list(inner.attrs[2])
    places = [f.attrs[0] for f in folds]
    found = [_sides(inner, labels[f.attrs[0]], labels[-1 - k]) for k, f in enumerate(folds)]
    if len(set(found)) != 1 or found[0] is None or len(set(places)) < len(folds):
        return None
    if any(map(_is_sparse, folds)):
        return None
    if _is_tap(inner, labels[-1 - len(folds)], found[0][1]):
        return None
    strides = [f.attrs[2] for f in folds]
    pieces = [_remainders(folds, rest, labels, found[0])
              for rest in itertools.product(*map(range, strides))]
    y = _interleaved(pieces, places, strides)
    return y if y.shape == n.shape else node(
        Op.SLICE, (y,), ((0,) * len(n.shape), n.shape, (1,) * len(n.shape)))


def _interleaved(pieces: list[Node], places: list[int], strides: list[int]) -> Node:
    """Pieces, one for each remainder of each of some axes, as one value with these axes whole."""
    shape = pieces[0].shape
    whole = node(Op.CAT, tuple(_reshape(y, (1, *shape)) for y in pieces), (0,))
    order: list[int] = []
    sizes = []
    for axis, size in enumerate(shape):
        inside = [k for k, place in enumerate(places) if place == axis]
        order += [len(places) + axis, *inside]
        sizes.append(size * math.prod(strides[k] for k in inside))
    apart = node(Op.PERMUTE, (_reshape(whole, (*strides, *shape)),), (tuple(order),))
    return _reshape(apart, tuple(sizes))


def _is_tap(contract: Node, label: int, images: Labels) -> bool:
    """True if a result's last axis but those that are folded is to be folded, too."""
    return label not in images and _extent(contract, label) > 1


def _is_uneven(fold: Node) -> bool:
    """True if some remainders of a strided fold have more taps than others, and all have one."""
    _, _, stride, dilation = fold.attrs
    taps = fold.src[0].shape[-1]
    return dilation == 1 and taps > stride and taps % stride != 0


def _is_sparse(fold: Node) -> bool:
    """True if some remainders of a fold have no tap."""
    _, _, stride, dilation = fold.attrs
    return stride > 1 and (dilation > 1 or fold.src[0].shape[-1] < stride)


def _remainders(folds: list[Node], rest: tuple[int, ...], labels: list[int],
                sides: tuple[Node, Labels, Node, Labels]) -> Node:
    """The elements of nested folds of a contraction at stride * q + rest, q along each axis."""
    g, lg, w, lw = sides
    for k, (fold, r) in enumerate(zip(folds, rest)):
        axis, extent, stride, dilation = fold.attrs
        place, tap = labels[axis], labels[-1 - k]
        size = w.shape[lw.index(tap)]
        steps = -(-(size - r) // stride)
        at = lw.index(tap)
        w = node(Op.SLICE, (w,), (
            tuple(r + (steps - 1) * stride if d == at else 0 for d in range(len(w.shape))),
            tuple(steps if d == at else m for d, m in enumerate(w.shape)),
            tuple(-stride if d == at else 1 for d in range(len(w.shape)))))
        g = _window_padded(g, lg.index(place), -(-extent // stride), steps, dilation)
        lg = (*lg, tap)
    return _contract((g, w), lg, lw, tuple(labels[: -len(folds)]))


def _merged_contract(x: Node) -> tuple[Node, list[Labels]] | None:
    """A contraction below x and the labels that make up each axis of x.

    Sees through what ``_merge_axes`` builds: adjacent axes merged, and cut at their end.
    """
    target = x
    if x.op is Op.SLICE and not any(x.attrs[0]) and set(x.attrs[2]) <= {1}:
        x = x.src[0]
    merged = x.shape
    if x.op is Op.RESHAPE:
        x = x.src[0]
    if x.op is not Op.CONTRACT or len(merged) != len(target.shape):
        return None
    groups: list[Labels] = []
    labels, sizes = list(x.attrs[2]), list(x.shape)
    for size in merged:
        group = [labels.pop(0)] if labels else []
        product = sizes.pop(0) if group else 1
        while product < size and labels:
            group.append(labels.pop(0))
            product *= sizes.pop(0)
        if product != size:
            return None
        groups.append(tuple(group))
    return None if labels else (x, groups)


def _extent(contract: Node, label: int) -> int:
    return contract.shape[contract.attrs[2].index(label)]


def _sides(contract: Node, place: int, tap: int) -> tuple[Node, Labels, Node, Labels] | None:
    """The operands, the one with the place first, if the other alone has the tap."""
    la, lb, _ = contract.attrs
    a, b = contract.src
    if place in la and place not in lb and tap in lb and tap not in la:
        return a, la, b, lb
    if place in lb and place not in la and tap in la and tap not in lb:
        return b, lb, a, la
    return None


def _split_taps(w: Node, axis: int, steps: int, stride: int) -> Node:
    """Make axis k of w the axes (t, r) of k = stride*t + r, with t counted backwards."""
    rank = len(w.shape)
    if stride > 1:
        none = (0,) * rank
        more = tuple(steps * stride - w.shape[axis] if k == axis else 0 for k in range(rank))
        w = node(Op.PAD, (w,), (none, more, none)) if any(more) else w
        shape = (*w.shape[:axis], steps, stride, *w.shape[axis + 1 :])
        w = node(Op.RESHAPE, (w,), (shape,))
    starts = tuple(steps - 1 if k == axis else 0 for k in range(len(w.shape)))
    backwards = tuple(-1 if k == axis else 1 for k in range(len(w.shape)))
    return node(Op.SLICE, (w,), (starts, w.shape, backwards))


def _window_padded(g: Node, axis: int, blocks: int, steps: int, dilation: int) -> Node:
    """Window g so that place q and tap t (backwards) read g[q - t*dilation], zeros outside."""
    rank = len(g.shape)
    low = tuple((steps - 1) * dilation if k == axis else 0 for k in range(rank))
    high = tuple(blocks - g.shape[axis] if k == axis else 0 for k in range(rank))
    g = node(Op.PAD, (g,), (low, high, (0,) * rank))
    return node(Op.WINDOW, (g,), (axis, steps, 1, dilation))


def _merge_axes(y: Node, groups: Sequence[Labels], shape: tuple[int, ...]) -> Node:
    sizes = iter(y.shape)
    y = _reshape(y, tuple(math.prod(next(sizes) for _ in group) for group in groups))
    if y.shape == shape:
        return y
    return node(Op.SLICE, (y,), ((0,) * len(shape), shape, (1,) * len(shape)))


RULES = (
    sum_of_product,
    contract_of_permute,
    contract_of_expand,
    permute_of_contract,
    sum_of_contract,
    slice_of_contract,
    folds_of_contract,
    fold_of_contract,
)
_TABLE = by_op((*RULES, *SIMPLIFY_RULES))
