"""Rules that make a graph smaller and never change what it computes.

An identity is here only where it holds for NaN, infinities and -0.0 as well: x*0, x-x and x/x
stay, x+0.0 stays (it turns -0.0 into 0.0), float sums and products are not regrouped. (Of a sum
over an axis, or with the zeros of a padding, the sign of a zero is not kept.) A gather stays
whatever it reads, since it checks its index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tinyc.ir import build as b
from tinyc.ir.dtype import DType, Scalar, decode, encode, finfo, promote, stored
from tinyc.ir.evaluate import EVAL
from tinyc.ir.node import Node, node
from tinyc.ir.ops import Op
from tinyc.ir.rewrite import Firing, by_op, rewrite, rule


def simplify(outputs: Sequence[Node], firings: list[Firing] | None = None) -> tuple[Node, ...]:
    """Return outputs of equal value with every rule of ``RULES`` applied until none fires."""
    return rewrite(outputs, _TABLE, firings)


def _uniform(n: Node) -> Node | None:
    """The CONST that all elements of a node are, where the graph says so."""
    if n.op is Op.EXPAND:
        n = n.src[0]
    return n if n.op is Op.CONST else None


def _value(n: Node) -> Scalar | None:
    constant = _uniform(n)
    return None if constant is None else constant.value


def _is(n: Node, value: Scalar) -> bool:
    """Are all elements this number? Tells 0.0 from -0.0, unlike ``==``."""
    constant = _uniform(n)
    return constant is not None and constant.attrs[1] == encode(value, n.dtype)


def _full(n: Node, constant: Node) -> Node:
    """An array of one value in the shape of n."""
    return _expand(constant, n.shape, ())


def _expand(x: Node, shape: tuple[int, ...], axes: tuple[int, ...]) -> Node:
    return x if x.shape == shape else node(Op.EXPAND, (x,), (shape, axes))


# Constants.

_UNARY = (Op.NEG, Op.EXP, Op.LOG, Op.SQRT, Op.SIN, Op.COS, Op.TANH, Op.ERF, Op.FLOOR)
_COMPARE = (Op.LT, Op.EQ)
_LOGIC = (Op.AND, Op.OR, Op.XOR)
_ARITHMETIC = (Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MAX, Op.IDIV, Op.MOD, Op.POW, Op.SHL, Op.SHR)
_FOLDABLE = (*_UNARY, *_COMPARE, *_LOGIC, *_ARITHMETIC, Op.CAST, Op.BITCAST)


@rule(*_FOLDABLE)
def fold_constants(n: Node) -> Node | None:
    """op(c1, c2) -> c3"""
    operands = tuple(constant for s in n.src if (constant := _uniform(s)) is not None)
    if len(operands) < len(n.src):
        return None
    scalar = node(n.op, operands, n.attrs)
    with np.errstate(all="ignore"):
        values = [stored(np.array(c.value), c.dtype) for c in operands]
        result = np.asarray(EVAL[n.op](scalar, *values), n.dtype.np)
    bits = int.from_bytes(result.tobytes(), "little")
    return _full(n, node(Op.CONST, (), (n.dtype, bits)))


@rule(Op.RESHAPE, Op.PERMUTE, Op.SLICE, Op.WINDOW, Op.EXPAND)
def view_of_constant(n: Node) -> Node | None:
    """view(expand c) -> expand c"""
    constant = _uniform(n.src[0])
    if constant is None or n.src[0] is constant:
        return None
    return _full(n, constant)


@rule(Op.PAD)
def pad_of_zeros(n: Node) -> Node | None:
    """pad(expand 0) -> expand 0"""
    constant = _uniform(n.src[0])
    return _full(n, constant) if constant is not None and constant.attrs[1] == 0 else None


# Arithmetic.


@rule(Op.ADD)
def add_zero(n: Node) -> Node | None:
    """x + 0 -> x    for floats x + -0.0 -> x"""
    zero = -0.0 if n.dtype.is_float else 0
    return _without(n, zero)


@rule(Op.MUL)
def mul_one(n: Node) -> Node | None:
    """x * 1 -> x"""
    return _without(n, 1)


@rule(Op.SUB)
def sub_zero(n: Node) -> Node | None:
    """x - 0 -> x"""
    return n.src[0] if _is(n.src[1], 0) else None


@rule(Op.DIV, Op.IDIV)
def div_one(n: Node) -> Node | None:
    """x / 1 -> x    and x // 1 -> x for integers"""
    if n.op is Op.IDIV and n.dtype.is_float:
        return None
    return n.src[0] if _is(n.src[1], 1) else None


@rule(Op.SHL, Op.SHR)
def shift_zero(n: Node) -> Node | None:
    """x << 0 -> x"""
    return n.src[0] if _is(n.src[1], 0) else None


def _without(n: Node, neutral: Scalar) -> Node | None:
    """The other operand where one is the neutral element of a commutative op."""
    x, y = n.src
    if _is(y, neutral):
        return x
    return y if _is(x, neutral) else None


@rule(Op.MUL)
def mul_minus_one(n: Node) -> Node | None:
    """x * -1 -> neg(x)    for floats"""
    if not n.dtype.is_float:
        return None
    rest = _without(n, -1)
    return None if rest is None else node(Op.NEG, (rest,))


@rule(Op.DIV)
def div_by_power_of_two(n: Node) -> Node | None:
    """x / 2**k -> x * 2**-k    exact, as both are normal numbers"""
    value = _value(n.src[1])
    if value is None or not math.isfinite(value) or abs(math.frexp(value)[0]) != 0.5:
        return None
    inverse = 1.0 / value
    smallest = finfo(n.dtype).tiny
    if abs(inverse) < smallest or abs(value) < smallest or math.isinf(inverse):
        return None
    bits = encode(inverse, n.dtype)
    if decode(bits, n.dtype) != inverse:
        return None
    factor = _full(n, node(Op.CONST, (), (n.dtype, bits)))
    return node(Op.MUL, (n.src[0], factor))


@rule(Op.POW)
def pow_small(n: Node) -> Node | None:
    """x**0 -> 1, x**1 -> x, x**2 -> x*x, x**3 -> x*x*x, x**-1 -> 1/x    x**3 not of halves"""
    x, exponent = n.src[0], _value(n.src[1])
    if exponent == 0 or exponent == -1:
        one = _full(n, b.const(1, n.dtype))
        return one if exponent == 0 else node(Op.DIV, (one, x))
    if exponent not in (1, 2, 3) or (exponent == 3 and n.dtype.is_half):
        return None
    power = x
    for _ in range(int(exponent) - 1):
        power = node(Op.MUL, (power, x))
    return power


@rule(Op.NEG)
def neg_neg(n: Node) -> Node | None:
    """neg(neg x) -> x"""
    return n.src[0].src[0] if n.src[0].op is Op.NEG else None


@rule(Op.ADD, Op.SUB)
def add_neg(n: Node) -> Node | None:
    """x + neg(y) -> x - y, neg(x) + y -> y - x, x - neg(y) -> x + y"""
    x, y = n.src
    if y.op is Op.NEG:
        return node(Op.SUB if n.op is Op.ADD else Op.ADD, (x, y.src[0]))
    if n.op is Op.ADD and x.op is Op.NEG:
        return node(Op.SUB, (y, x.src[0]))
    return None


@rule(Op.ADD, Op.MUL, Op.XOR)
def regroup_integers(n: Node) -> Node | None:
    """(x + c1) + c2 -> x + (c1 + c2)    integers only, they wrap alike"""
    inner, outer = n.src
    if n.dtype.is_float or _uniform(outer) is None or inner.op is not n.op:
        return None
    x, constant = inner.src
    if _uniform(constant) is None:
        return None
    return node(n.op, (x, node(n.op, (constant, outer))))


@rule(Op.ADD, Op.MUL, Op.AND, Op.OR, Op.XOR)
def constant_last(n: Node) -> Node | None:
    """c + x -> x + c    so that other rules look in one place; exact for floats too"""
    x, y = n.src
    if _uniform(x) is None or _uniform(y) is not None:
        return None
    return node(n.op, (y, x))


@rule(Op.MAX, Op.AND, Op.OR)
def same_twice(n: Node) -> Node | None:
    """max(x, x) -> x"""
    return n.src[0] if n.src[0] is n.src[1] else None


# Logic and choice.


def _all_ones(dtype: DType) -> Scalar:
    return decode((1 << (1 if dtype.kind == "b" else dtype.bits)) - 1, dtype)


@rule(*_LOGIC)
def logic_with_constant(n: Node) -> Node | None:
    """x & 0 -> 0, x & ~0 -> x, x | 0 -> x, x | ~0 -> ~0, x ^ 0 -> x"""
    x, y = n.src
    zero, ones = _is(y, 0), _is(y, _all_ones(n.dtype))
    if (n.op is Op.AND and ones) or (n.op is not Op.AND and zero):
        return x
    if (n.op is Op.AND and zero) or (n.op is Op.OR and ones):
        return y
    return None


@rule(Op.WHERE)
def where_known(n: Node) -> Node | None:
    """where(True, a, b) -> a, where(c, a, a) -> a, where(not c, a, b) -> where(c, b, a)"""
    condition, yes, no = n.src
    if yes is no:
        return yes
    known = _value(condition)
    if known is not None:
        return yes if known else no
    if condition.op is Op.XOR and _is(condition.src[1], True):
        return node(Op.WHERE, (condition.src[0], no, yes))
    return None


# Casts.

_EXACT_FLOAT_BITS = {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}


def _lossless(narrow: DType, wide: DType) -> bool:
    """Is every value of one type a value of the other?"""
    if narrow is wide or narrow.kind == "b":
        return True
    if wide.is_float and not narrow.is_float:
        return narrow.bits <= _EXACT_FLOAT_BITS[wide.name]
    return promote(narrow, wide) is wide


def _only_wraps(n: Node) -> bool:
    """Is a chain of two casts between integers one that only drops high bits twice?"""
    (outer,), middle = n.attrs, n.src[0].dtype
    inner = n.src[0].src[0].dtype
    return all(d.is_int for d in (outer, middle, inner)) and middle.bits >= outer.bits


@rule(Op.CAST, Op.BITCAST)
def cast_same(n: Node) -> Node | None:
    """cast(x, its own dtype) -> x"""
    return n.src[0] if n.src[0].dtype is n.dtype else None


@rule(Op.CAST)
def cast_chain(n: Node) -> Node | None:
    """cast(cast(x, wider), d) -> cast(x, d)    where the first cast loses nothing"""
    inner = n.src[0]
    if inner.op is not Op.CAST:
        return None
    x = inner.src[0]
    if _lossless(x.dtype, inner.dtype) or _only_wraps(n):
        return node(Op.CAST, (x,), n.attrs)
    return None


# Views.


@rule(Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.SLICE, Op.PAD)
def identity_view(n: Node) -> Node | None:
    """view(x) -> x    where it changes nothing"""
    x = n.src[0]
    if n.shape != x.shape:
        return None
    axes = tuple(range(len(n.shape)))
    unchanged = (
        n.op is Op.RESHAPE
        or (n.op is Op.PERMUTE and n.attrs[0] == axes)
        or (n.op is Op.EXPAND and n.attrs[1] == axes)
        or (n.op is Op.SLICE and not any(n.attrs[0]) and set(n.attrs[2]) <= {1})
        or (n.op is Op.PAD and not any(map(any, n.attrs)))
    )
    return x if unchanged else None


@rule(Op.RESHAPE)
def reshape_chain(n: Node) -> Node | None:
    """reshape(reshape x) -> reshape(x)    also past an expand that only adds axes of size 1"""
    inner = n.src[0]
    adds_ones = inner.op is Op.EXPAND and math.prod(inner.shape) == math.prod(inner.src[0].shape)
    if inner.op is not Op.RESHAPE and not adds_ones:
        return None
    return node(Op.RESHAPE, (inner.src[0],), n.attrs)


@rule(Op.RESHAPE)
def reshape_adds_ones(n: Node) -> Node | None:
    """reshape(x, with axes of size 1 added) -> expand(x)    a plainer index function"""
    x = n.src[0]
    axes: list[int] = []
    for axis, size in enumerate(n.shape):
        if len(axes) < len(x.shape) and size == x.shape[len(axes)]:
            axes.append(axis)
        elif size != 1:
            return None
    if len(axes) < len(x.shape):
        return None
    return node(Op.EXPAND, (x,), (n.shape, tuple(axes)))


@rule(Op.PERMUTE)
def permute_chain(n: Node) -> Node | None:
    """permute(permute x) -> permute(x)"""
    inner = n.src[0]
    if inner.op is not Op.PERMUTE:
        return None
    perm = tuple(inner.attrs[0][axis] for axis in n.attrs[0])
    return node(Op.PERMUTE, (inner.src[0],), (perm,))


@rule(Op.EXPAND)
def expand_chain(n: Node) -> Node | None:
    """expand(expand x) -> expand(x)"""
    inner = n.src[0]
    if inner.op is not Op.EXPAND:
        return None
    axes = tuple(n.attrs[1][axis] for axis in inner.attrs[1])
    return node(Op.EXPAND, (inner.src[0],), (n.attrs[0], axes))


@rule(Op.SLICE)
def slice_chain(n: Node) -> Node | None:
    """slice(slice x) -> slice(x)"""
    inner = n.src[0]
    if inner.op is not Op.SLICE:
        return None
    (starts, sizes, steps), (starts0, _, steps0) = n.attrs, inner.attrs
    # An empty axis may start anywhere in the inner slice, and then only 0 is safe outside.
    first = tuple(
        s0 + t0 * s if size else 0 for s0, t0, s, size in zip(starts0, steps0, starts, sizes)
    )
    step = tuple(t0 * t for t0, t in zip(steps0, steps))
    return node(Op.SLICE, (inner.src[0],), (first, sizes, step))


@rule(Op.PAD)
def pad_chain(n: Node) -> Node | None:
    """pad(pad x) -> pad(x)    without interior zeros"""
    inner = n.src[0]
    if inner.op is not Op.PAD or any(n.attrs[2]) or any(inner.attrs[2]):
        return None
    low = tuple(p + q for p, q in zip(n.attrs[0], inner.attrs[0]))
    high = tuple(p + q for p, q in zip(n.attrs[1], inner.attrs[1]))
    return node(Op.PAD, (inner.src[0],), (low, high, n.attrs[2]))


@rule(Op.SLICE)
def slice_of_pad(n: Node) -> Node | None:
    """slice(pad x) -> pad(slice x)    with less padding, where steps are 1 and nothing interior"""
    inner = n.src[0]
    if inner.op is not Op.PAD or any(inner.attrs[2]) or set(n.attrs[2]) - {1}:
        return None
    x, starts, sizes = inner.src[0], [], []
    lows, highs = [], []
    for start, size, low, extent in zip(n.attrs[0], n.attrs[1], inner.attrs[0], x.shape):
        first, last = start - low, start - low + size
        begin, end = min(max(first, 0), extent), min(max(last, 0), extent)
        starts.append(begin if end > begin else 0)
        sizes.append(end - begin)
        lows.append(min(max(-first, 0), size))
        highs.append(size - (end - begin) - lows[-1])
    cut = _slice(x, starts, sizes)
    return node(Op.PAD, (cut,), (tuple(lows), tuple(highs), inner.attrs[2]))


def _slice(x: Node, starts: Sequence[int], sizes: Sequence[int]) -> Node:
    if tuple(sizes) == x.shape:
        return x
    attrs = (tuple(starts), tuple(sizes), (1,) * len(x.shape))
    return node(Op.SLICE, (x,), attrs)


@rule(Op.SLICE)
def slice_of_expand(n: Node) -> Node | None:
    """slice(expand x) -> expand(slice x)    repeated axes are just made shorter"""
    inner = n.src[0]
    if inner.op is not Op.EXPAND:
        return None
    x, (shape, axes) = inner.src[0], inner.attrs
    repeated = [extent != shape[a] or extent == 1 for extent, a in zip(x.shape, axes)]
    if any(r and n.shape[a] == 0 for r, a in zip(repeated, axes)):
        return None
    starts, sizes, steps = (
        tuple(default if r else attr[a] for r, a in zip(repeated, axes))
        for attr, default in zip(n.attrs, (0, 1, 1))
    )
    cut = node(Op.SLICE, (x,), (starts, sizes, steps))
    return node(Op.EXPAND, (cut,), (n.shape, axes))


@rule(Op.SLICE)
def slice_of_window(n: Node) -> Node | None:
    """slice(window x) -> window(slice x)    less is windowed, where steps are positive"""
    inner = n.src[0]
    (starts, sizes, steps) = n.attrs
    if inner.op is not Op.WINDOW or min(steps) < 1 or 0 in sizes:
        return None
    axis, _, stride, dilation = inner.attrs
    start = starts[axis] * stride + starts[-1] * dilation
    gap, reach = stride * steps[axis], dilation * steps[-1]
    span = (sizes[axis] - 1) * gap + (sizes[-1] - 1) * reach + 1
    cut = tuple(
        (*values[:axis], mine, *values[axis + 1 : -1])
        for values, mine in zip(n.attrs, (start, span, 1))
    )
    x = node(Op.SLICE, inner.src, cut)
    return node(Op.WINDOW, (x,), (axis, sizes[-1], gap, reach))


@rule(Op.PAD)
def pad_of_window(n: Node) -> Node | None:
    """pad(window x) -> window(pad x)    of other axes, so that paddings meet"""
    inner = n.src[0]
    if inner.op is not Op.WINDOW:
        return None
    axis = inner.attrs[0]
    if any(widths[axis] or widths[-1] for widths in n.attrs):
        return None
    x = node(Op.PAD, inner.src, tuple(widths[:-1] for widths in n.attrs))
    return node(Op.WINDOW, (x,), inner.attrs)


@rule(Op.WINDOW)
def window_of_one(n: Node) -> Node | None:
    """window(x, size 1) -> expand(slice x)    every stride-th element, and an axis of size 1"""
    axis, size, stride, _ = n.attrs
    if size != 1:
        return None
    shape = n.shape[:-1]
    steps = tuple(stride if k == axis else 1 for k in range(len(shape)))
    x = node(Op.SLICE, n.src, ((0,) * len(shape), shape, steps))
    return node(Op.EXPAND, (x,), (n.shape, tuple(range(len(shape)))))


@rule(Op.FOLD)
def fold_of_one(n: Node) -> Node | None:
    """fold(x, size 1) -> pad(reshape x)    nothing overlaps"""
    axis, extent, stride, _ = n.attrs
    x = n.src[0]
    if x.shape[-1] != 1 or x.shape[axis] == 0:
        return None
    x = node(Op.RESHAPE, (x,), (x.shape[:-1],))
    high = extent - 1 - (x.shape[axis] - 1) * stride
    none = (0,) * len(x.shape)
    attrs = (none, _with(none, axis, high), _with(none, axis, stride - 1))
    return node(Op.PAD, (x,), attrs)


def _with(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])


@rule(Op.SLICE)
def slice_of_cat(n: Node) -> Node | None:
    """slice(cat(a, b)) -> slice(b)    where it reads one piece only"""
    inner = n.src[0]
    if inner.op is not Op.CAT:
        return None
    (axis,), (starts, sizes, steps) = inner.attrs, n.attrs
    if sizes[axis] == 0:
        return None
    ends = (starts[axis], starts[axis] + (sizes[axis] - 1) * steps[axis])
    offset = 0
    for piece in inner.src:
        extent = piece.shape[axis]
        if all(offset <= end < offset + extent for end in ends):
            moved = (*starts[:axis], starts[axis] - offset, *starts[axis + 1 :])
            return node(Op.SLICE, (piece,), (moved, sizes, steps))
        offset += extent
    return None


@rule(Op.CAT)
def cat_of_one(n: Node) -> Node | None:
    """cat(x) -> x, cat(x, empty) -> cat(x)"""
    (axis,) = n.attrs
    pieces = tuple(piece for piece in n.src if piece.shape[axis])
    if len(pieces) == 1:
        return pieces[0]
    if not pieces:
        return n.src[0]
    return None if len(pieces) == len(n.src) else node(Op.CAT, pieces, n.attrs)


@rule(Op.CAT)
def cat_of_neighbours(n: Node) -> Node | None:
    """cat(x[:2], x[2:5]) -> x[:5]    slices that lie side by side are one"""
    (axis,) = n.attrs
    pieces = [n.src[0]]
    for piece in n.src[1:]:
        joined = _joined(pieces[-1], piece, axis)
        if joined is None:
            pieces.append(piece)
        else:
            pieces[-1] = joined
    if len(pieces) == len(n.src):
        return None
    return pieces[0] if len(pieces) == 1 else node(Op.CAT, tuple(pieces), n.attrs)


def _joined(x: Node, y: Node, axis: int) -> Node | None:
    """Return the slice that is x and then y, None where they are no neighbours."""
    if x.op is not Op.SLICE or y.op is not Op.SLICE or x.src != y.src:
        return None
    (starts, sizes, steps), (others, more, _) = x.attrs, y.attrs
    first = _with(others, axis, starts[axis]), _with(more, axis, sizes[axis]), y.attrs[2]
    if first != x.attrs or steps[axis] != 1 or others[axis] != starts[axis] + sizes[axis]:
        return None
    whole = _with(sizes, axis, sizes[axis] + more[axis])
    return node(Op.SLICE, x.src, (starts, whole, steps))


@rule(Op.ADD)
def add_disjoint(n: Node) -> Node | None:
    """pad(x) + pad(y) -> cat(x, y)    where one is padding wherever the other is not"""
    left, right = (_padded_parts(s) for s in n.src)
    if left is None or right is None or left[0] != right[0]:
        return None
    axis = left[0]
    parts = sorted([*left[1], *right[1]], key=lambda part: part[0])
    ends = [start + part.shape[axis] for start, part in parts]
    if any(end > start for end, (start, _) in zip(ends, parts[1:])):
        return None
    pieces = [parts[0][1]]
    for end, (start, part) in zip(ends, parts[1:]):
        if start > end:
            gap = _with(part.shape, axis, start - end)
            pieces.append(_expand(b.const(0, n.dtype), gap, ()))
        pieces.append(part)
    whole = node(Op.CAT, tuple(pieces), (axis,))
    none = (0,) * len(n.shape)
    low, high = (_with(none, axis, width) for width in (parts[0][0], n.shape[axis] - ends[-1]))
    return node(Op.PAD, (whole,), (low, high, none)) if whole.shape != n.shape else whole


def _padded_parts(n: Node) -> tuple[int, list[tuple[int, Node]]] | None:
    """(axis, [(start, part)]): the parts of a node that is zero outside of them on one axis."""
    first = 0
    if n.op is Op.PAD and not any(n.attrs[2]):
        padded = [k for k, widths in enumerate(zip(*n.attrs[:2])) if any(widths)]
        if len(padded) != 1:
            return None
        (axis,), n, first = padded, n.src[0], n.attrs[0][padded[0]]
        if n.op is not Op.CAT or n.attrs[0] != axis:
            return axis, [(first, n)]
    elif n.op is not Op.CAT:
        return None
    (axis,) = n.attrs
    parts = []
    for piece in n.src:
        if not _is(piece, 0):
            parts.append((first, piece))
        first += piece.shape[axis]
    return axis, parts


@rule(*_FOLDABLE, Op.WHERE)
def elementwise_of_expand(n: Node) -> Node | None:
    """f(expand x, expand y) -> expand(f(x, y))    fewer elements; constants are of any shape"""
    spread = [s for s in n.src if _uniform(s) is None]
    if not spread or any(s.op is not Op.EXPAND for s in spread):
        return None
    attrs, shape = spread[0].attrs, spread[0].src[0].shape
    if any(s.attrs != attrs or s.src[0].shape != shape for s in spread):
        return None
    operands = tuple(
        s.src[0] if constant is None else _expand(constant, shape, ())
        for s, constant in ((s, _uniform(s)) for s in n.src)
    )
    return node(Op.EXPAND, (node(n.op, operands, n.attrs),), attrs)


# Reductions.


@rule(Op.REDUCE)
def reduce_of_ones(n: Node) -> Node | None:
    """reduce(x over axes of size 1) -> reshape(x)"""
    kind, axes = n.attrs
    x = n.src[0]
    real = tuple(axis for axis in axes if x.shape[axis] != 1)
    if len(real) == len(axes):
        return None
    shape = tuple(size for axis, size in enumerate(x.shape) if axis not in axes or axis in real)
    x = node(Op.RESHAPE, (x,), (shape,))
    if not real:
        return x
    dropped = [axis for axis in axes if axis not in real]
    moved = tuple(axis - sum(d < axis for d in dropped) for axis in real)
    return node(Op.REDUCE, (x,), (kind, moved))


@rule(Op.REDUCE, sole=True)
def reduce_of_reduce(n: Node) -> Node | None:
    """sum(sum x) -> sum(x)    max(max x) -> max(x)"""
    kind, axes = n.attrs
    inner = n.src[0]
    if inner.op is not Op.REDUCE or inner.attrs[0] != kind:
        return None
    x, gone = inner.src[0], inner.attrs[1]
    left = [axis for axis in range(len(x.shape)) if axis not in gone]
    merged = tuple(sorted({*gone, *(left[axis] for axis in axes)}))
    return node(Op.REDUCE, (x,), (kind, merged))


@rule(Op.REDUCE)
def sum_of_neg(n: Node) -> Node | None:
    """sum(neg x) -> neg(sum x)    exact, and negates less"""
    x = n.src[0]
    if n.attrs[0] != "sum" or x.op is not Op.NEG:
        return None
    return node(Op.NEG, (node(Op.REDUCE, x.src, n.attrs),))


@rule(Op.REDUCE)
def reduce_of_permute(n: Node) -> Node | None:
    """reduce(permute x) -> permute(reduce x)    the permute is smaller, or gone"""
    kind, axes = n.attrs
    inner = n.src[0]
    if inner.op is not Op.PERMUTE:
        return None
    perm = inner.attrs[0]
    gone = {perm[axis] for axis in axes}
    left = [axis for axis in range(len(perm)) if axis not in gone]
    reduced = node(Op.REDUCE, (inner.src[0],), (kind, tuple(sorted(gone))))
    order = tuple(left.index(p) for axis, p in enumerate(perm) if axis not in axes)
    return node(Op.PERMUTE, (reduced,), (order,))


@rule(Op.REDUCE)
def reduce_of_expand(n: Node) -> Node | None:
    """sum(expand x over n) -> expand(x * n)    max(expand x) -> expand(x)"""
    kind, axes = n.attrs
    inner = n.src[0]
    if inner.op is not Op.EXPAND:
        return None
    x, (shape, placed) = inner.src[0], inner.attrs
    real = {a for extent, a in zip(x.shape, placed) if extent == shape[a]}
    repeats = math.prod(shape[axis] for axis in axes if axis not in real)
    if repeats == 0 or not set(axes) - real or not _holds(repeats, n.dtype):
        return None
    gone = tuple(k for k, a in enumerate(placed) if a in axes)
    y = node(Op.REDUCE, (x,), (kind, gone)) if gone else x
    if kind == "sum" and repeats > 1:
        factor = _full(y, b.const(repeats, n.dtype))
        y = node(Op.MUL, (y, factor))
    kept = [a for a in placed if a not in axes]
    moved = tuple(a - sum(axis < a for axis in axes) for a in kept)
    return _expand(y, n.shape, moved)


def _holds(count: int, dtype: DType) -> bool:
    """Is the count exact in the dtype? (Integers wrap, but a constant has to fit.)"""
    if dtype.is_half:
        return False  # the sum would be rounded before it is multiplied
    return count <= 1 << (24 if dtype.is_float else dtype.bits - 1) - (not dtype.is_float)


# Softmax.


@rule(Op.MUL)
def softmax_gradient(n: Node) -> Node | None:
    """(g/s - sum(g/s * p)) * e -> (g - sum(g * p)) * p    for e = exp(x - max x), p = e/s

    What is kept for the backward pass is p alone. As 1 <= s = sum e, nothing over- or underflows
    that did not before, and NaN and infinities stay where they were.
    """
    for centred, e in (n.src, n.src[::-1]):
        if e.op is Op.EXP and centred.op is Op.ADD:
            share, total = centred.src
            p = _softmax_below(share, total, e)
            if p is not None:
                g = share.src[0]
                mean = node(Op.REDUCE, (node(Op.MUL, (g, p)),), total.src[0].src[0].attrs)
                again = node(Op.EXPAND, (node(Op.NEG, (mean,)),), total.attrs)
                return node(Op.MUL, (node(Op.ADD, (g, again)), p))
    return None


def _softmax_below(share: Node, total: Node, e: Node) -> Node | None:
    """p = e/s where share is g/s and total is expand(neg(sum(share * p))); else None."""
    if share.op is not Op.DIV or total.op is not Op.EXPAND or total.src[0].op is not Op.NEG:
        return None
    mean, s = total.src[0].src[0], share.src[1]
    if mean.op is not Op.REDUCE or mean.src[0].op is not Op.MUL or share not in mean.src[0].src:
        return None
    first, second = mean.src[0].src
    p = second if first is share else first
    x, top = e.src[0].src if e.src[0].op is Op.SUB else (e, e)
    known = (
        p.op is Op.DIV and p.src == (e, s)
        and s.op is Op.EXPAND and s.attrs == total.attrs == top.attrs
        and s.src[0].op is Op.REDUCE and s.src[0].src == (e,)
        and top.op is Op.EXPAND and top.src[0].op is Op.REDUCE and top.src[0].src == (x,)
        and mean.attrs == s.src[0].attrs == ("sum", top.src[0].attrs[1])
        and top.src[0].attrs[0] == "max"
    )
    return p if known else None


# Markers.


@rule(Op.DETACH)
def detach_done(n: Node) -> Node | None:
    """detach(x) -> x    gradients are in the graph by now"""
    return n.src[0]


@rule(Op.MATERIALIZE)
def materialize_twice(n: Node) -> Node | None:
    """materialize(materialize x) -> materialize(x)    not of a buffer: it asks for a copy"""
    return n.src[0] if n.src[0].op is Op.MATERIALIZE else None


@rule(Op.BOUNDARY)
def boundary_of_memory(n: Node) -> Node | None:
    """boundary(buffer) -> buffer    it is complete before any kernel; also of a boundary"""
    return n.src[0] if n.src[0].op in (Op.BUFFER, Op.BOUNDARY) else None


RULES = (
    fold_constants,
    view_of_constant,
    pad_of_zeros,
    constant_last,
    add_zero,
    mul_one,
    sub_zero,
    div_one,
    shift_zero,
    mul_minus_one,
    div_by_power_of_two,
    pow_small,
    neg_neg,
    add_neg,
    regroup_integers,
    same_twice,
    logic_with_constant,
    where_known,
    cast_same,
    cast_chain,
    identity_view,
    reshape_chain,
    reshape_adds_ones,
    permute_chain,
    expand_chain,
    slice_chain,
    pad_chain,
    slice_of_pad,
    slice_of_expand,
    slice_of_window,
    slice_of_cat,
    pad_of_window,
    window_of_one,
    fold_of_one,
    elementwise_of_expand,
    cat_of_one,
    cat_of_neighbours,


    add_disjoint,
    reduce_of_ones,
    reduce_of_expand,
    sum_of_neg,
    reduce_of_permute,
    reduce_of_reduce,
    softmax_gradient,
    detach_done,
    materialize_twice,
    boundary_of_memory,
)
_TABLE = by_op(RULES)
