"""Smart constructors of the Graph IR: numpy's broadcasting, dtype promotion, plain views.

They take nodes and Python numbers, write broadcasting and promotion out as EXPAND and CAST, and
put views into their simplest form (a reshape of a reshape is one reshape). A wrong argument
raises here, on the user's line. Axes may be negative; node attributes never are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from operator import index as integer
from typing import NoReturn

import numpy as np

from tinyc.diagnostics import AxisError, DTypeError, ShapeError
from tinyc.ir.dtype import (
    DType,
    Scalar,
    bool_,
    default_dtype,
    encode,
    f32,
    i64,
    limits,
    promote,
    weak_promote,
)
from tinyc.ir.node import Node, node
from tinyc.ir.ops import Op, Shape, describe_type, fail

Operand = Node | bool | int | float

_ADD, _SUB, _MUL, _DIV, _MAX, _LT, _EQ = Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MAX, Op.LT, Op.EQ


# Leaves -----------------------------------------------------------------------------------


def buffer(uid: int, version: int, shape: Shape, dtype: DType, device: str) -> Node:
    """The elements of the buffer `uid` as of `version`."""
    return node(Op.BUFFER, (), (uid, version, shape, dtype, device))


def const(value: Scalar, dtype: DType | None = None) -> Node:
    """A 0-d number; on its own a bool, i64 or f32. DTypeError if `dtype` does not hold it."""
    value = _number("const", value)
    dtype = default_dtype(value) if dtype is None else dtype
    return node(Op.CONST, (), (dtype, encode(value, dtype)))


def full(shape: Sequence[int], value: Scalar, dtype: DType | None = None) -> Node:
    """`value` everywhere."""
    return expand(const(value, dtype), shape)


def iota(n: int, dtype: DType = i64) -> Node:
    """0, 1, ... n-1, of shape (n,)."""
    return node(Op.IOTA, (), (integer(n), dtype))


def var(name: str, lo: int, hi: int) -> Node:
    """An i64 0-d, lo <= value <= hi, whose value is given at each run."""
    return node(Op.VAR, (), (name, integer(lo), integer(hi)))


# Operands ---------------------------------------------------------------------------------


def _number(name: str, value: object) -> Scalar:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (float, int)):
        return value
    raise DTypeError(f"{name}: {type(value).__name__} is no operand; nodes and numbers are")


def _as_node(name: str, x: Operand) -> Node:
    return x if isinstance(x, Node) else const(_number(name, x))


def _common(name: str, a: Operand, b: Operand) -> tuple[Node, Node]:
    """Both as nodes of one dtype: promoted; a Python number follows the other operand."""
    if not isinstance(b, Node):
        a = _as_node(name, a)
        return _beside(name, a, b)
    if not isinstance(a, Node):
        b, a = _beside(name, b, a)
        return a, b
    dtype = promote(a.dtype, b.dtype)
    return cast(a, dtype), cast(b, dtype)


def _beside(name: str, x: Node, value: Scalar) -> tuple[Node, Node]:
    """A node and a Python number, which takes the node's dtype or at most changes its kind."""
    value = _number(name, value)
    dtype = weak_promote(x.dtype, value)
    if dtype.kind in "iu":
        low, high = limits(dtype)
        if not low <= value <= high:
            fail(DTypeError, name, f"the number {value} is no {dtype}", (x,),
                 f"a Python number takes the tensor's dtype, which holds {low} to {high}",
                 "cast the tensor to a wider one")
    number = node(Op.CONST, (), (dtype, encode(value, dtype)))
    return (x if x.dtype is dtype else cast(x, dtype)), number


def broadcast_shape(name: str, nodes: Sequence[Node]) -> Shape:
    """The shape that numpy's rule gives all of `nodes`, or ShapeError for `name`."""
    shape: Shape = ()
    for n in nodes:
        wider = _merged(shape, n.shape)
        if wider is None:
            _no_broadcast(name, nodes, shape, n.shape)
        shape = wider
    return shape


@lru_cache(maxsize=4096)
def _merged(a: Shape, b: Shape) -> Shape | None:
    """Two shapes broadcast, or None where they do not."""
    out = list(a if len(a) >= len(b) else b)
    for axis in range(-min(len(a), len(b)), 0):
        if a[axis] != b[axis] and 1 not in (a[axis], b[axis]):
            return None
        out[axis] = b[axis] if a[axis] == 1 else a[axis]
    return tuple(out)


def _no_broadcast(name: str, nodes: Sequence[Node], a: Shape, b: Shape) -> NoReturn:
    axis = next(i for i in range(-1, -len(a) - 1, -1) if a[i] != b[i] and 1 not in (a[i], b[i]))
    fail(ShapeError, name, "shapes do not broadcast", nodes,
         f"axis {axis} is {a[axis]} and {b[axis]}; sizes are equal or 1, counted from the end",
         "reshape, unsqueeze or transpose an operand")


def _together(name: str, a: Node, b: Node) -> tuple[Node, Node]:
    """Both expanded to their common shape."""
    shape = _merged(a.shape, b.shape)
    if shape is None:
        _no_broadcast(name, (a, b), a.shape, b.shape)
    return _broadcast(a, shape), _broadcast(b, shape)


def _broadcast(x: Node, shape: Shape) -> Node:
    """x expanded to `shape`, which is known to fit."""
    if x.shape == shape:
        return x
    ndim = len(shape)
    return expand_axes(x, shape, tuple(range(ndim - len(x.shape), ndim)))


# What an arithmetic op does to two bools, as in PyTorch.
_ON_BOOL = {_ADD: Op.OR, _MUL: Op.AND}


def _pair(op: Op, a: Operand, b: Operand, name: str = "") -> Node:
    """The binary elementwise `op` after promotion and broadcasting."""
    if not isinstance(a, Node) or not isinstance(b, Node) or a.dtype is not b.dtype:
        a, b = _common(name or op.value, a, b)
    if a.shape != b.shape:
        a, b = _together(name or op.value, a, b)
    if a.dtype is bool_:
        op = _ON_BOOL.get(op, op)
    return node(op, (a, b))


# Arithmetic -------------------------------------------------------------------------------


def add(a: Operand, b: Operand) -> Node:
    """a + b; of two bools their `or`."""
    return _pair(_ADD, a, b)


def sub(a: Operand, b: Operand) -> Node:
    """a - b; DTypeError for two bools."""
    return _pair(_SUB, a, b)


def mul(a: Operand, b: Operand) -> Node:
    """a * b; of two bools their `and`."""
    return _pair(_MUL, a, b)


def div(a: Operand, b: Operand) -> Node:
    """a / b; integers and bools are divided as f32."""
    a, b = _common("div", a, b)
    if a.dtype.kind != "f":
        a, b = cast(a, f32), cast(b, f32)
    return _pair(_DIV, a, b)


def idiv(a: Operand, b: Operand) -> Node:
    """The floor of a / b, Python's `//`; an integer divided by 0 gives 0."""
    return _pair(Op.IDIV, a, b)


def mod(a: Operand, b: Operand) -> Node:
    """a - b * (a // b), Python's `%`, with the sign of b; of an integer and 0 it is 0."""
    return _pair(Op.MOD, a, b)


def pow(a: Operand, b: Operand) -> Node:
    """a ** b. Integers take a number >= 0 as exponent; a tensor of exponents must be floating."""
    if not isinstance(b, Node):
        found = _power(_as_node("pow", a), _number("pow", b))
        if found is not None:
            return found
    a, b = _common("pow", a, b)
    if a.dtype.kind != "f":
        fail(DTypeError, "pow", "integer base and exponents", (a, b),
             "an integer is raised to a Python number that is not negative", "cast to f32 first")
    return _pair(Op.POW, a, b)


def _power(x: Node, exponent: Scalar) -> Node | None:
    """x ** exponent by multiplication where that is as exact as the library's pow."""
    if x.dtype.kind != "f":
        if isinstance(exponent, float) or exponent < 0:
            return None
        x = cast(x, i64) if x.dtype is bool_ else x
        return _repeated(x, exponent)
    if exponent in (1, 2, 3):
        return cast(_repeated(cast(x, x.dtype.wide), int(exponent)), x.dtype)
    if exponent == -1:
        return div(1.0, x)
    return sqrt(x) if exponent == 0.5 else None


def _repeated(x: Node, exponent: int) -> Node:
    """x multiplied by itself, by squaring."""
    result = None
    while exponent:
        if exponent & 1:
            result = x if result is None else mul(result, x)
        exponent >>= 1
        x = mul(x, x) if exponent else x
    return full(x.shape, 1, x.dtype) if result is None else result


def neg(x: Operand) -> Node:
    """-x; unsigned integers wrap."""
    return node(Op.NEG, (_as_node("neg", x),))


def _floating(op: Op, x: Operand) -> Node:
    """The unary `op` of a float; integers and bools become f32 first, as in PyTorch."""
    x = _as_node(op.value, x)
    return node(op, (x if x.dtype.kind == "f" else cast(x, f32),))


def exp(x: Operand) -> Node:
    """e ** x."""
    return _floating(Op.EXP, x)


def log(x: Operand) -> Node:
    """The natural logarithm."""
    return _floating(Op.LOG, x)


def sqrt(x: Operand) -> Node:
    """The square root."""
    return _floating(Op.SQRT, x)


def sin(x: Operand) -> Node:
    """The sine of x radians."""
    return _floating(Op.SIN, x)


def cos(x: Operand) -> Node:
    """The cosine of x radians."""
    return _floating(Op.COS, x)


def tanh(x: Operand) -> Node:
    """The hyperbolic tangent."""
    return _floating(Op.TANH, x)


def erf(x: Operand) -> Node:
    """The error function."""
    return _floating(Op.ERF, x)


def floor(x: Operand) -> Node:
    """The largest integer not above x, in x's dtype."""
    x = _as_node("floor", x)
    return node(Op.FLOOR, (x,)) if x.dtype.kind == "f" else x


def maximum(a: Operand, b: Operand) -> Node:
    """The larger; NaN where either is NaN."""
    return _pair(_MAX, a, b, "maximum")


# Comparison, logic, bits ------------------------------------------------------------------


def lt(a: Operand, b: Operand) -> Node:
    """a < b, as bool."""
    return _pair(_LT, a, b)


def gt(a: Operand, b: Operand) -> Node:
    """a > b, as bool."""
    return _pair(_LT, b, a, "gt")


def eq(a: Operand, b: Operand) -> Node:
    """a == b, as bool."""
    return _pair(_EQ, a, b)


def ne(a: Operand, b: Operand) -> Node:
    """a != b, as bool; true for NaN."""
    return invert(_pair(_EQ, a, b, "ne"))


def le(a: Operand, b: Operand) -> Node:
    """a <= b, as bool; false for NaN."""
    return or_(_pair(_LT, a, b, "le"), _pair(_EQ, a, b))


def ge(a: Operand, b: Operand) -> Node:
    """a >= b, as bool; false for NaN."""
    return le(b, a)


def and_(a: Operand, b: Operand) -> Node:
    """Bitwise and; of bools, the logical one."""
    return _pair(Op.AND, a, b)


def or_(a: Operand, b: Operand) -> Node:
    """Bitwise or; of bools, the logical one."""
    return _pair(Op.OR, a, b)


def xor(a: Operand, b: Operand) -> Node:
    """Bitwise exclusive or; of bools, whether they differ."""
    return _pair(Op.XOR, a, b)


def invert(x: Operand) -> Node:
    """Bitwise not; of bools, the logical one."""
    x = _as_node("invert", x)
    ones = {"b": 1, "u": limits(x.dtype)[1], "i": -1}.get(x.dtype.kind)
    if ones is None:
        fail(DTypeError, "invert", f"no such operation on {x.dtype}", (x,),
             "it takes bool or integer elements")
    return node(Op.XOR, (x, full(x.shape, ones, x.dtype)))


def shl(a: Operand, b: Operand) -> Node:
    """a << b; 0 unless 0 <= b < width."""
    return _pair(Op.SHL, a, b)


def shr(a: Operand, b: Operand) -> Node:
    """a >> b, keeping the sign."""
    return _pair(Op.SHR, a, b)


def where(cond: Operand, a: Operand, b: Operand) -> Node:
    """a where cond, else b; the three broadcast, a and b promote. `cond` must be bool."""
    cond = _as_node("where", cond)
    a, b = _common("where", a, b)
    if not cond.shape == a.shape == b.shape:
        shape = broadcast_shape("where", (cond, a, b))
        cond, a, b = _broadcast(cond, shape), _broadcast(a, shape), _broadcast(b, shape)
    return node(Op.WHERE, (cond, a, b))


def cast(x: Operand, dtype: DType) -> Node:
    """The values of x as `dtype`; floats become integers towards zero."""
    x = _as_node("cast", x)
    return x if x.dtype is dtype else node(Op.CAST, (x,), (dtype,))


def bitcast(x: Node, dtype: DType) -> Node:
    """The bits of x read as `dtype`, of equal width."""
    return x if x.dtype is dtype else node(Op.BITCAST, (x,), (dtype,))


# Views ------------------------------------------------------------------------------------


def _shape(shape: Iterable[int]) -> Shape:
    return tuple([integer(n) for n in shape])


def _axis(name: str, axis: int, x: Node, ndim: int | None = None) -> int:
    """`axis` counted from the front; AxisError when there is none such."""
    ndim = len(x.shape) if ndim is None else ndim
    if not -ndim <= axis < ndim:
        fail(AxisError, name, f"there is no axis {axis}", (x,),
             f"axes run from {-ndim} to {ndim - 1}" if ndim else "it has no axes")
    return integer(axis) % ndim


def reshape(x: Node, shape: Sequence[int]) -> Node:
    """The elements of x in row-major order in `shape`, of which one size may be -1."""
    shape = _shape(shape)
    if -1 in shape:
        shape = _inferred(x, shape)
    return x if shape == x.shape else node(Op.RESHAPE, (x,), (shape,))


def _inferred(x: Node, shape: Shape) -> Shape:
    """`shape` with its -1 replaced by the size that keeps the number of elements."""
    known = prod(n for n in shape if n != -1)
    if shape.count(-1) != 1 or not known or x.size % known:
        fail(ShapeError, "reshape", f"cannot become [{','.join(map(str, shape))}]", (x,),
             f"one size may be -1 if the others' product divides {x.size}")
    return tuple([x.size // known if n == -1 else n for n in shape])


def permute(x: Node, perm: Sequence[int]) -> Node:
    """Axes in another order: axis i of the result is axis perm[i] of x."""
    perm = tuple([_axis("permute", p, x) for p in perm])
    return x if perm == tuple(range(len(x.shape))) else node(Op.PERMUTE, (x,), (perm,))


def expand(x: Node, shape: Sequence[int]) -> Node:
    """x repeated to `shape` by numpy's rule: new axes in front, axes of size 1 grown."""
    shape = _shape(shape)
    new = len(shape) - len(x.shape)
    if new < 0:
        fail(ShapeError, "expand", f"cannot become {describe_type(shape, x.dtype)}", (x,),
             "the result has at least as many axes")
    return expand_axes(x, shape, tuple(range(new, len(shape))))


def expand_axes(x: Node, shape: Shape, axes: tuple[int, ...]) -> Node:
    """x repeated to `shape`, source axis i becoming axis axes[i] (ascending); the rest is new."""
    return x if x.shape == shape else node(Op.EXPAND, (x,), (shape, axes))


def slice_(
    x: Node, starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int] | None = None
) -> Node:
    """out[i] = x[start + step*i] on each axis, for i < size; steps may be negative."""
    steps = (1,) * len(x.shape) if steps is None else _shape(steps)
    starts, sizes = _shape(starts), _shape(sizes)
    if not len(starts) == len(sizes) == len(steps) == len(x.shape):
        return node(Op.SLICE, (x,), (starts, sizes, steps))  # raises
    # An axis of no or one element has many spellings of which one is kept.
    starts = tuple([0 if n == 0 else s for s, n in zip(starts, sizes)])
    steps = tuple([1 if n < 2 and t else t for t, n in zip(steps, sizes)])
    if sizes == x.shape and not any(starts) and all(t == 1 for t in steps):
        return x
    return node(Op.SLICE, (x,), (starts, sizes, steps))


def pad(
    x: Node, lo: Sequence[int], hi: Sequence[int], interior: Sequence[int] | None = None
) -> Node:
    """Zeros (False) before, after, and `interior` of them between the elements of each axis."""
    lo, hi = _shape(lo), _shape(hi)
    interior = (0,) * len(x.shape) if interior is None else _shape(interior)
    if len(interior) == len(x.shape):  # nothing lies between fewer than two elements
        interior = tuple([0 if n < 2 and i > 0 else i for i, n in zip(interior, x.shape)])
    if len(lo) == len(hi) == len(x.shape) and not any(lo + hi + interior):
        return x
    return node(Op.PAD, (x,), (lo, hi, interior))


def window(x: Node, axis: int, size: int, stride: int = 1, dilation: int = 1) -> Node:
    """out[.., i, .., k] = x[.., i*stride + k*dilation, ..]: the window axis k comes last."""
    axis = _axis("window", axis, x)
    return node(Op.WINDOW, (x,), (axis, integer(size), integer(stride), integer(dilation)))


def cat(nodes: Sequence[Node], axis: int = 0) -> Node:
    """The nodes one after another along `axis`, promoted to one dtype."""
    if not nodes:
        fail(ShapeError, "cat", "of nothing", (), "it takes at least one node")
    axis = _axis("cat", axis, nodes[0])
    dtype = nodes[0].dtype
    for n in nodes[1:]:
        dtype = promote(dtype, n.dtype)
    pieces = tuple([cast(n, dtype) for n in nodes])
    whole = node(Op.CAT, pieces, (axis,))
    kept = tuple([n for n in pieces if n.shape[axis]])
    if len(kept) == len(pieces) > 1:
        return whole
    if len(kept) < 2:
        return kept[0] if kept else pieces[0]
    return node(Op.CAT, kept, (axis,))


# Reducing ---------------------------------------------------------------------------------


def reduced_axes(name: str, x: Node, axes: int | Sequence[int] | None) -> tuple[int, ...]:
    """The axes that a user named, ascending and from the front; None means all of them."""
    if axes is None:
        return tuple(range(len(x.shape)))
    if isinstance(axes, int):
        return (_axis(name, axes, x),)
    found = sorted([_axis(name, a, x) for a in axes])
    if len(set(found)) != len(found):
        fail(AxisError, name, f"an axis is named twice in {tuple(axes)}", (x,),
             "each axis at most once")
    return tuple(found)


def reduce_(
    kind: str, x: Node, axes: int | Sequence[int] | None = None, keepdims: bool = False
) -> Node:
    """The "sum" or "max" over `axes` (all by default); integers and bools are summed as i64."""
    axes = reduced_axes(kind, x, axes)
    if kind == "sum" and x.dtype.kind != "f":
        x = cast(x, i64)
    out = node(Op.REDUCE, (x,), (kind, axes)) if axes else x
    if not keepdims:
        return out
    shape = list(x.shape)
    for axis in axes:
        shape[axis] = 1
    kept = tuple([i for i in range(len(shape)) if i not in axes])
    return expand_axes(out, tuple(shape), kept)


def sum_(x: Node, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Node:
    """The sum over `axes`; of no elements it is 0; integers and bools are summed as i64."""
    return reduce_("sum", x, axes, keepdims)


def max_(x: Node, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Node:
    """The maximum over `axes`; NaN if there is one; of bools it tells whether any is true."""
    return reduce_("max", x, axes, keepdims)


def contract(
    a: Node, b: Node, la: Sequence[int], lb: Sequence[int], lo: Sequence[int]
) -> Node:
    """Einsum of two: axes of a, b and the result carry labels, equal labels are one axis.

    Operands promote. Labels are renumbered by first appearance, so equal contractions are one.
    """
    if a.dtype is not b.dtype:
        a, b = _common("contract", a, b)
    names: dict[int, int] = {}
    la, lb, lo = (
        tuple([names.setdefault(label, len(names)) for label in labels]) for labels in (la, lb, lo)
    )
    return node(Op.CONTRACT, (a, b), (la, lb, lo))


def fold(x: Node, axis: int, n: int, stride: int = 1, dilation: int = 1) -> Node:
    """The adjoint of `window`: windows (last axis) added up on an axis of n elements."""
    axis = _axis("fold", axis, x, len(x.shape) - 1)
    return node(Op.FOLD, (x,), (axis, integer(n), integer(stride), integer(dilation)))


# Indexed, state, markers ------------------------------------------------------------------


def gather(x: Node, index: Operand, axis: int = 0) -> Node:
    """x.shape[:axis] + index.shape + x.shape[axis+1:]: elements of `axis` by index.

    Each index must be in 0 <= index < n: BoundsError when the graph runs.
    """
    return node(Op.GATHER, (x, _as_node("gather", index)), (_axis("gather", axis, x),))


def scatter_add(updates: Node, index: Operand, axis: int, size: int) -> Node:
    """The adjoint of `gather`: zeros of `size` along `axis` with the updates added by index."""
    index = _as_node("scatter_add", index)
    ndim = len(updates.shape) - len(index.shape) + 1
    axis = _axis("scatter_add", axis, updates, ndim)
    return node(Op.SCATTER_ADD, (updates, index), (axis, integer(size)))


def assign(
    target: Node,
    value: Operand,
    starts: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Node:
    """`target` (a BUFFER or an ASSIGN) with a region replaced, all of it by default.

    The value is cast to the target's dtype and expanded to the region.
    """
    starts = (0,) * len(target.shape) if starts is None else _shape(starts)
    sizes = target.shape if sizes is None else _shape(sizes)
    steps = (1,) * len(target.shape) if steps is None else _shape(steps)
    new = cast(value, target.dtype) if isinstance(value, Node) else const(value, target.dtype)
    return node(Op.ASSIGN, (target, expand(new, sizes)), (starts, sizes, steps))


def copy(x: Node, device: str) -> Node:
    """x on another device."""
    return x if x.device == device else node(Op.COPY, (x,), (device,))


def materialize(x: Node) -> Node:
    """x, stored in memory whatever the scheduler would rather do."""
    return x if x.op in (Op.MATERIALIZE, Op.BUFFER) else node(Op.MATERIALIZE, (x,))


def boundary(x: Node) -> Node:
    """x, complete before a kernel that reads it begins: nothing is fused across."""
    return x if x.op is Op.BOUNDARY else node(Op.BOUNDARY, (x,))


def together(results: Sequence[Node], arguments: Sequence[Node]) -> tuple[Node, ...]:
    """The results, with the wish that all that leads from the arguments to them is one kernel."""
    sources = (*results, *arguments)
    return tuple(node(Op.TOGETHER, (x, *sources), (len(results),)) for x in results)


def detach(x: Node) -> Node:
    """x with no gradient."""
    return x if x.op is Op.DETACH else node(Op.DETACH, (x,))
