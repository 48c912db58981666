"""Index functions of the views: which element of its source an element of a view is.

`INDEX` is the complete meaning of the view ops for the compiler: one function for each, from the
index into the view to the index into the source, with the conditions under which it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinyc.ir.index import Affine, Env, ravel, unravel
from tinyc.ir.node import Node
from tinyc.ir.ops import Op

Indices = tuple[Affine, ...]


@dataclass(frozen=True)
class Between:
    """lo <= index < hi."""

    index: Affine
    lo: int
    hi: int

    def holds(self, env: Env) -> bool:
        """Whether it is true where `env` gives the variables."""
        return self.lo <= self.index.evaluate(env) < self.hi


@dataclass(frozen=True)
class Divides:
    """index % n == 0."""

    index: Affine
    n: int

    def holds(self, env: Env) -> bool:
        """Whether it is true where `env` gives the variables."""
        return self.index.evaluate(env) % self.n == 0


Cond = Between | Divides
Access = tuple[Indices, tuple[Cond, ...]]


def source_index(node: Node, idx: Indices, s: int = 0) -> Access:
    """(index, conditions): element `idx` of a view is element `index` of its source number `s`.

    Where a condition is false the source is not read: a PAD is zero there, and a CAT takes its
    element from another source. Conditions that the bounds of `idx` prove are left out.
    """
    return INDEX[node.op](node, idx, s)


def between(index: Affine, lo: int, hi: int) -> tuple[Cond, ...]:
    """The condition lo <= index < hi, unless the bounds of `index` prove it."""
    least, most = index.bounds()
    return () if lo <= least and most < hi else (Between(index, lo, hi),)


def divides(index: Affine, n: int) -> tuple[Cond, ...]:
    """The condition index % n == 0, unless it is always true."""
    return () if index % n == Affine(0) else (Divides(index, n),)


def _reshape(node: Node, idx: Indices, s: int) -> Access:
    """Axes are matched in groups of equal size; only inside a group are digits taken."""
    old, new = node.src[0].shape, node.shape
    if 0 in new:
        return tuple(Affine(0) for _ in old), ()
    at = [Affine(0)] * len(old)
    for source_axes, axes in reshape_groups(old, new):
        if len(source_axes) == len(axes) == 1:
            at[source_axes[0]] = idx[axes[0]]
            continue
        flat = ravel([idx[a] for a in axes], [new[a] for a in axes])
        for axis, digit in zip(source_axes, unravel(flat, [old[a] for a in source_axes])):
            at[axis] = digit
    return tuple(at), ()


def reshape_groups(
    old: tuple[int, ...], new: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The finest groups (axes of `old`, axes of `new`) of equal product, axes of size 1 left out.

    Both shapes have the same number of elements, not 0.
    """
    left = [a for a, n in enumerate(old) if n != 1]
    right = [a for a, n in enumerate(new) if n != 1]
    groups = []
    i = j = 0
    while i < len(left):
        i0, j0 = i, j
        p, q = old[left[i]], new[right[j]]
        i, j = i + 1, j + 1
        while p != q:
            if p < q:
                p *= old[left[i]]
                i += 1
            else:
                q *= new[right[j]]
                j += 1
        groups.append((tuple(left[i0:i]), tuple(right[j0:j])))
    return groups


def _permute(node: Node, idx: Indices, s: int) -> Access:
    (perm,) = node.attrs
    at = [Affine(0)] * len(perm)
    for i, p in zip(idx, perm):
        at[p] = i
    return tuple(at), ()


def _expand(node: Node, idx: Indices, s: int) -> Access:
    _, axes = node.attrs
    shape = node.src[0].shape
    return tuple(Affine(0) if n == 1 else idx[a] for n, a in zip(shape, axes)), ()


def _slice(node: Node, idx: Indices, s: int) -> Access:
    starts, _, steps = node.attrs
    return tuple(i * step + start for i, start, step in zip(idx, starts, steps)), ()


def _pad(node: Node, idx: Indices, s: int) -> Access:
    at: list[Affine] = []
    conds: list[Cond] = []
    for i, n, lo, interior in zip(idx, node.src[0].shape, node.attrs[0], node.attrs[2]):
        inside, step = i - lo, interior + 1
        conds.extend(between(inside, 0, max((n - 1) * step + 1, 0)))
        conds.extend(divides(inside, step))
        at.append(inside // step)
    return tuple(at), tuple(conds)


def _window(node: Node, idx: Indices, s: int) -> Access:
    axis, _, stride, dilation = node.attrs
    moved = idx[axis] * stride + idx[-1] * dilation
    return (*idx[:axis], moved, *idx[axis + 1 : -1]), ()


def _cat(node: Node, idx: Indices, s: int) -> Access:
    (axis,) = node.attrs
    start = sum(x.shape[axis] for x in node.src[:s])
    inside = idx[axis] - start
    conds = between(inside, 0, node.src[s].shape[axis])
    return (*idx[:axis], inside, *idx[axis + 1 :]), conds


def _same(node: Node, idx: Indices, s: int) -> Access:
    return idx, ()


INDEX: dict[Op, Callable[[Node, Indices, int], Access]] = {
    Op.RESHAPE: _reshape,
    Op.PERMUTE: _permute,
    Op.EXPAND: _expand,
    Op.SLICE: _slice,
    Op.PAD: _pad,
    Op.WINDOW: _window,
    Op.CAT: _cat,
    Op.DETACH: _same,
    Op.MATERIALIZE: _same,
    Op.BOUNDARY: _same,
    Op.TOGETHER: _same,
    Op.COPY: _same,
}
