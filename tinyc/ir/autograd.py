"""Reverse-mode differentiation as Graph -> Graph: it only builds nodes, so it nests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinyc.diagnostics import DTypeError, ShapeError
from tinyc.ir import build as b
from tinyc.ir.node import BACKWARD, Node, deriving, marking, toposort
from tinyc.ir.ops import Op, fail


@dataclass(frozen=True)
class NotDifferentiable:
    """A row for an op that passes no cotangent on, and why."""

    reason: str


Row = Callable[[Node, Node, int], Node | None]
"""The cotangent of source ``i`` of node ``n``, given ``g``, the cotangent of ``n``, if any."""


def vjp(
    outputs: Sequence[Node], cotangents: Sequence[Node], wrt: Sequence[Node]
) -> tuple[Node | None, ...]:
    """Return, for each node of ``wrt``, the sum over outputs of cotangent times Jacobian.

    Cotangents have the shapes and dtypes of their outputs, which are floats; the results have
    those of ``wrt``. None stands for a node that no output depends on, or that is no float.
    A node of ``wrt`` that depends on another one passes its cotangent on to it as well.
    """
    _check(outputs, cotangents)
    order = toposort(outputs)
    active = _on_path(order, wrt)
    found: dict[Node, Node] = {}
    for out, cotangent in zip(outputs, cotangents):
        _accumulate(found, out, cotangent)
    with marking(BACKWARD):
        try:
            _walk_back(order, active, found, set(wrt))
        finally:
            deriving.source = None
    return tuple(found.get(n) if n in active else None for n in wrt)


def _walk_back(
    order: Sequence[Node], active: set[Node], found: dict[Node, Node], keep: set[Node]
) -> None:
    """Pass cotangents on from users to sources; what is built gets the line of the user."""
    for n in reversed(order):
        if n not in active or n not in found:
            continue
        g = found[n] if n in keep else found.pop(n)
        row = VJP[n.op]
        if isinstance(row, NotDifferentiable):
            continue
        deriving.source = n
        for i, source in enumerate(n.src):
            cotangent = row(n, g, i) if source in active else None
            if cotangent is not None:
                _accumulate(found, source, cotangent)


def _check(outputs: Sequence[Node], cotangents: Sequence[Node]) -> None:
    for out, cotangent in zip(outputs, cotangents):
        if out.dtype.kind != "f":
            fail(DTypeError, "grad", "no gradient", (out,), "only floats have gradients")
        if (out.shape, out.dtype) != (cotangent.shape, cotangent.dtype):
            rule = "they have equal shapes and dtypes"
            fail(ShapeError, "grad", "output and cotangent differ", (out, cotangent), rule)


def _on_path(order: Sequence[Node], wrt: Sequence[Node]) -> set[Node]:
    """The float nodes that a cotangent reaches on its way to ``wrt``."""
    wanted = set(wrt)
    active: set[Node] = set()
    for n in order:
        if n.dtype.kind != "f":
            continue
        passes = not isinstance(VJP[n.op], NotDifferentiable)
        if n in wanted or (passes and any(s in active for s in n.src)):
            active.add(n)
    return active


def _accumulate(found: dict[Node, Node], n: Node, cotangent: Node) -> None:
    earlier = found.get(n)
    found[n] = cotangent if earlier is None else b.add(earlier, cotangent)


def _zeros(n: Node) -> Node:
    return b.full(n.shape, 0, n.dtype)


def _ones(n: Node) -> Node:
    return b.full(n.shape, 1, n.dtype)


def _constant(n: Node) -> float | None:
    """The value that all elements have, where the graph says so."""
    while n.op is Op.EXPAND:
        n = n.src[0]
    return n.value if n.op is Op.CONST else None


# Elementwise. Shapes are equal, so nothing is summed here: broadcasting is an expand.


def _add(n: Node, g: Node, i: int) -> Node:
    return g


def _sub(n: Node, g: Node, i: int) -> Node:
    return b.neg(g) if i else g


def _mul(n: Node, g: Node, i: int) -> Node | None:
    if n.src[0] is not n.src[1]:
        return b.mul(g, n.src[1 - i])
    return b.mul(b.mul(g, 2.0), n.src[0]) if i == 0 else None


def _div(n: Node, g: Node, i: int) -> Node:
    quotient = b.div(g, n.src[1])
    return b.neg(b.mul(quotient, n)) if i else quotient


def _mod(n: Node, g: Node, i: int) -> Node:
    """x - y * floor(x / y) has slope 1 in x and -floor(x / y) in y."""
    return b.neg(b.mul(g, b.floor(b.div(*n.src)))) if i else g


def _max(n: Node, g: Node, i: int) -> Node:
    """Ties share; a NaN, which wins, takes the cotangent."""
    mine, other = n.src[i], n.src[1 - i]
    tied = b.where(b.eq(mine, other), b.mul(g, 0.5), g)
    return b.where(b.lt(mine, other), _zeros(g), tied)


def _pow(n: Node, g: Node, i: int) -> Node:
    x, y = n.src
    return b.mul(g, _pow_exponent(n, x, y) if i else _pow_base(x, y))


def _pow_base(x: Node, y: Node) -> Node:
    """y * x**(y-1), and 0 for 0**0, where the formula says 0 * inf."""
    value = _constant(y)
    if value == 2:
        return b.mul(x, 2.0)
    if value is None or value == 0:
        both_zero = b.and_(b.eq(x, _zeros(x)), b.eq(y, _zeros(y)))
        return b.mul(y, b.pow(x, b.sub(b.where(both_zero, _ones(y), y), 1.0)))
    return b.mul(y, b.pow(x, b.full(y.shape, value - 1, y.dtype)))


def _pow_exponent(n: Node, x: Node, y: Node) -> Node:
    """x**y * log(x), and 0 for 0**y with y >= 0, where the formula says 0 * -inf."""
    flat = b.and_(b.eq(x, _zeros(x)), b.le(_zeros(y), y))
    return b.mul(b.where(flat, _zeros(n), n), b.log(b.where(flat, _ones(x), x)))


def _where(n: Node, g: Node, i: int) -> Node:
    condition, zeros = n.src[0], _zeros(g)
    return b.where(condition, g, zeros) if i == 1 else b.where(condition, zeros, g)


def _erf(n: Node, g: Node, i: int) -> Node:
    x = n.src[0]
    return b.mul(g, b.mul(b.exp(b.neg(b.mul(x, x))), 2 / math.sqrt(math.pi)))


# Views.


def _expand(n: Node, g: Node, i: int) -> Node:
    """Sum over what was repeated; a repeated axis of size 1 comes back as a new one."""
    source, (shape, axes) = n.src[0], n.attrs
    real = tuple(k for k, a in enumerate(axes) if source.shape[k] == shape[a])
    kept = [axes[k] for k in real]
    repeated = tuple(a for a in range(len(shape)) if a not in kept)
    return b.expand_axes(b.reduce_("sum", g, repeated), source.shape, real)


def _slice_back(g: Node, shape: tuple[int, ...], slices: tuple[tuple[int, ...], ...]) -> Node:
    """Put g where a slice of an array of this shape took it from, zeros elsewhere."""
    starts, sizes, steps = slices
    ends = [start + step * max(size - 1, 0) for start, size, step in zip(*slices)]
    flipped = tuple(-1 if step < 0 else 1 for step in steps)
    first = tuple(size - 1 if f < 0 else 0 for f, size in zip(flipped, sizes))
    g = b.slice_(g, first, sizes, flipped)
    low = tuple(min(start, end) if size else 0 for start, end, size in zip(starts, ends, sizes))
    high = tuple(
        extent - 1 - max(start, end) if size else extent
        for extent, start, end, size in zip(shape, starts, ends, sizes)
    )
    gaps = tuple(abs(step) - 1 if size > 1 else 0 for step, size in zip(steps, sizes))
    return b.pad(g, low, high, gaps)


def _pad(n: Node, g: Node, i: int) -> Node:
    low, _, interior = n.attrs
    return b.slice_(g, low, n.src[0].shape, tuple(gap + 1 for gap in interior))


def _window(n: Node, g: Node, i: int) -> Node:
    axis, _, stride, dilation = n.attrs
    return b.fold(g, axis, n.src[0].shape[axis], stride, dilation)


def _permute(n: Node, g: Node, i: int) -> Node:
    (perm,) = n.attrs
    return b.permute(g, tuple(sorted(range(len(perm)), key=perm.__getitem__)))


def _cat(n: Node, g: Node, i: int) -> Node:
    (axis,) = n.attrs
    start = [0] * len(n.shape)
    start[axis] = sum(piece.shape[axis] for piece in n.src[:i])
    return b.slice_(g, tuple(start), n.src[i].shape, (1,) * len(n.shape))


# Reducing and indexed.


def _reduce(n: Node, g: Node, i: int) -> Node:
    kind, axes = n.attrs
    x = n.src[0]
    kept = tuple(a for a in range(len(x.shape)) if a not in axes)
    if kind == "sum":
        return b.expand_axes(g, x.shape, kept)
    largest = b.cast(b.eq(x, b.expand_axes(n, x.shape, kept)), x.dtype)
    share = b.div(g, b.reduce_("sum", largest, axes))
    return b.mul(largest, b.expand_axes(share, x.shape, kept))


def _contract(n: Node, g: Node, i: int) -> Node:
    left, right, out = n.attrs
    if i == 0:
        return b.contract(g, n.src[1], out, right, left)
    return b.contract(n.src[0], g, left, out, right)


def _fold(n: Node, g: Node, i: int) -> Node:
    axis, _, stride, dilation = n.attrs
    return b.window(g, axis, n.src[0].shape[-1], stride, dilation)


def _gather(n: Node, g: Node, i: int) -> Node:
    (axis,), (x, index) = n.attrs, n.src
    return b.scatter_add(g, index, axis, x.shape[axis])


def _copy(n: Node, g: Node, i: int) -> Node:
    device = n.src[0].device
    return g if device is None else b.copy(g, device)


def _assign(n: Node, g: Node, i: int) -> Node:
    """The value gets the cotangent of the region, the target that of the rest."""
    if i == 1:
        return b.slice_(g, *n.attrs)
    stored = _slice_back(b.full(n.attrs[1], True, b.bool_), n.shape, n.attrs)
    return b.where(stored, _zeros(g), g)


_LEAF = NotDifferentiable("a leaf has no sources")
_FLAT = NotDifferentiable("constant but for jumps, so its slope is zero")
_INTEGER = NotDifferentiable("its result is no float")

VJP: dict[Op, Row | NotDifferentiable] = {
    Op.BUFFER: _LEAF,
    Op.CONST: _LEAF,
    Op.IOTA: _LEAF,
    Op.VAR: _LEAF,
    Op.NEG: lambda n, g, i: b.neg(g),
    Op.EXP: lambda n, g, i: b.mul(g, n),
    Op.LOG: lambda n, g, i: b.div(g, n.src[0]),
    Op.SQRT: lambda n, g, i: b.div(b.mul(g, 0.5), n),
    Op.SIN: lambda n, g, i: b.mul(g, b.cos(n.src[0])),
    Op.COS: lambda n, g, i: b.neg(b.mul(g, b.sin(n.src[0]))),
    Op.TANH: lambda n, g, i: b.mul(g, b.sub(1.0, b.mul(n, n))),
    Op.ERF: _erf,
    Op.FLOOR: _FLAT,
    Op.ADD: _add,
    Op.SUB: _sub,
    Op.MUL: _mul,
    Op.DIV: _div,
    Op.MAX: _max,
    Op.IDIV: _FLAT,
    Op.MOD: _mod,
    Op.POW: _pow,
    Op.LT: _INTEGER,
    Op.EQ: _INTEGER,
    Op.AND: _INTEGER,
    Op.OR: _INTEGER,
    Op.XOR: _INTEGER,
    Op.SHL: _INTEGER,
    Op.SHR: _INTEGER,
    Op.WHERE: _where,
    Op.CAST: lambda n, g, i: b.cast(g, n.src[0].dtype),
    Op.BITCAST: NotDifferentiable("reads bits, which no slope describes"),
    Op.RESHAPE: lambda n, g, i: b.reshape(g, n.src[0].shape),
    Op.PERMUTE: _permute,
    Op.EXPAND: _expand,
    Op.SLICE: lambda n, g, i: _slice_back(g, n.src[0].shape, n.attrs),
    Op.PAD: _pad,
    Op.WINDOW: _window,
    Op.CAT: _cat,
    Op.REDUCE: _reduce,
    Op.CONTRACT: _contract,
    Op.FOLD: _fold,
    Op.SCATTER_ADD: lambda n, g, i: b.gather(g, n.src[1], n.attrs[0]),
    Op.GATHER: _gather,
    Op.ASSIGN: _assign,
    Op.COPY: _copy,
    Op.MATERIALIZE: _add,
    Op.BOUNDARY: lambda n, g, i: b.boundary(g),
    Op.TOGETHER: lambda n, g, i: g if i == 0 else None,
    Op.DETACH: NotDifferentiable("detach stops gradients"),
}
