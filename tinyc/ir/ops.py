"""The closed op set of the Graph IR: every op, its arity, and how shape and dtype follow.

`OPS[op].infer(srcs, attrs)` is the type rule. Attributes are hashable tuples in the order that
the comments of `Op` give. Sources of elementwise ops have equal shapes and dtypes already:
broadcasting and promotion are written out as EXPAND and CAST by `tinyc.ir.build`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, NoReturn

from tinyc.diagnostics import AxisError, DTypeError, ShapeError, caller_origin, format_origin
from tinyc.ir.dtype import DType, bool_, i64

if TYPE_CHECKING:
    from tinyc.ir.node import Node

Shape = tuple[int, ...]
Typed = tuple[Shape, DType]
Infer = Callable[[Sequence["Node"], tuple], Typed]


class Op(Enum):
    """The ops. The name of a member in lower case is what messages and dumps print."""

    __hash__ = object.__hash__  # Enum's own hash is Python code, and nodes are hashed by op

    # leaves
    BUFFER = "buffer"  # (uid, version, shape, dtype, device)
    CONST = "const"  # (dtype, bits), 0-d
    IOTA = "iota"  # (n, dtype): 0, 1, ... n-1
    VAR = "var"  # (name, lo, hi): an i64 0-d, lo <= value <= hi, known at each run
    # elementwise
    NEG = "neg"
    EXP = "exp"
    LOG = "log"
    SQRT = "sqrt"
    SIN = "sin"
    COS = "cos"
    TANH = "tanh"
    ERF = "erf"
    FLOOR = "floor"
    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    DIV = "div"
    MAX = "max"
    IDIV = "idiv"
    MOD = "mod"
    POW = "pow"
    LT = "lt"
    EQ = "eq"
    AND = "and"
    OR = "or"
    XOR = "xor"
    SHL = "shl"
    SHR = "shr"
    WHERE = "where"
    CAST = "cast"  # (dtype,)
    BITCAST = "bitcast"  # (dtype,)
    # views
    RESHAPE = "reshape"  # (shape,)
    PERMUTE = "permute"  # (perm,): out axis i is source axis perm[i]
    EXPAND = "expand"  # (shape, axes): source axis i becomes out axis axes[i]
    SLICE = "slice"  # (starts, sizes, steps)
    PAD = "pad"  # (lo, hi, interior)
    WINDOW = "window"  # (axis, size, stride, dilation): the window axis is appended last
    CAT = "cat"  # (axis,)
    # reducing
    REDUCE = "reduce"  # (kind, axes)
    CONTRACT = "contract"  # (la, lb, lo): labels of the axes of a, b and out
    FOLD = "fold"  # (axis, n, stride, dilation): adjoint of WINDOW
    SCATTER_ADD = "scatter_add"  # (axis, size); sources updates, index
    # indexed
    GATHER = "gather"  # (axis,); sources x, index
    # state
    ASSIGN = "assign"  # (starts, sizes, steps); sources target, value
    # markers
    COPY = "copy"  # (device,)
    MATERIALIZE = "materialize"
    BOUNDARY = "boundary"
    TOGETHER = "together"
    DETACH = "detach"


@dataclass(frozen=True)
class OpSpec:
    """What is known of an op.

    `arity` is the number of sources, None for any number from 1. `infer(srcs, attrs)` gives
    (shape, dtype) or raises. `flops_per_element` counts simple operations for each element of
    the iteration space: of the output, of REDUCE's, FOLD's and SCATTER_ADD's input, and of all
    labels of CONTRACT. `family` is leaf, elementwise, view, reduce, indexed, state or marker.
    """

    arity: int | None
    infer: Infer
    doc: str
    flops_per_element: int
    family: str


# Errors -----------------------------------------------------------------------------------


def describe(node: Node) -> str:
    """`f32[64,128] (train.py:31)`: type and the user's line of a node, for messages."""
    return f"{describe_type(node.shape, node.dtype)} ({format_origin(node.origin)})"


def describe_type(shape: Sequence[int], dtype: DType) -> str:
    """`f32[64,128]`."""
    return f"{dtype.name}[{','.join(map(str, shape))}]"


def fail(
    error: type[Exception], name: str, what: str, srcs: Sequence[Node], rule: str, hint: str = ""
) -> NoReturn:
    """Raise `error` in the one form: op at the user's line: what, operands; rule; hint."""
    where = format_origin(caller_origin(2))
    operands = " and ".join(describe(s) for s in srcs)
    parts = [f"{name} (at {where}): {what}" + (f": {operands}" if operands else ""), rule, hint]
    raise error("; ".join(p for p in parts if p))


def check_axis(name: str, axis: int, ndim: int, srcs: Sequence[Node]) -> None:
    """Raise AxisError unless 0 <= axis < ndim."""
    if not 0 <= axis < ndim:
        fail(AxisError, name, f"there is no axis {axis}", srcs, f"axes run from 0 to {ndim - 1}")


def _need(name: str, srcs: Sequence[Node], kinds: str, hint: str = "") -> None:
    """Raise DTypeError unless every source's dtype is one of `kinds`."""
    for s in srcs:
        if s.dtype.kind not in kinds:
            words = " or ".join(_KIND_WORDS[k] for k in kinds if k != "u")
            fail(DTypeError, name, f"no such operation on {s.dtype}", srcs,
                 f"it takes {words} elements", hint or _CAST_HINT)


_KIND_WORDS = {"b": "bool", "i": "integer", "f": "floating"}
_CAST_HINT = "cast the operand first"


def _same_dtype(name: str, srcs: Sequence[Node]) -> DType:
    dtype = srcs[0].dtype
    for s in srcs:
        if s.dtype is not dtype:
            fail(DTypeError, name, "dtypes differ", srcs, "operands have one dtype", _CAST_HINT)
    return dtype


# Leaves -----------------------------------------------------------------------------------


def _infer_buffer(srcs: Sequence[Node], attrs: tuple) -> Typed:
    return attrs[2], attrs[3]


def _infer_const(srcs: Sequence[Node], attrs: tuple) -> Typed:
    return (), attrs[0]


def _infer_iota(srcs: Sequence[Node], attrs: tuple) -> Typed:
    n, dtype = attrs
    if n < 0:
        fail(ShapeError, "iota", f"its length is {n}", (), "lengths are not negative")
    if dtype is bool_:
        fail(DTypeError, "iota", "no iota of bool", (), "it counts in integers or floats")
    return (n,), dtype


def _infer_var(srcs: Sequence[Node], attrs: tuple) -> Typed:
    name, lo, hi = attrs
    if lo > hi:
        fail(ShapeError, "var", f"{name} has no value in {lo} to {hi}", (), "lo <= hi")
    return (), i64


# Elementwise ------------------------------------------------------------------------------


def _mismatch(name: str, srcs: Sequence[Node]) -> NoReturn:
    if any(s.shape != srcs[0].shape for s in srcs):
        fail(ShapeError, name, "shapes differ", srcs, "operands have one shape",
             "expand the smaller one")
    _same_dtype(name, srcs)
    raise AssertionError(name)


def _elementwise(name: str, kinds: str, result: DType | None = None) -> Infer:
    """The rule of ops whose sources have one shape and one dtype, of one of `kinds`."""

    def infer(srcs: Sequence[Node], attrs: tuple) -> Typed:
        first = srcs[0]
        shape, dtype = first.shape, first.dtype
        if len(srcs) == 2:
            second = srcs[1]
            if second.shape != shape or second.dtype is not dtype:
                _mismatch(name, srcs)
        if dtype.kind not in kinds:
            _need(name, srcs, kinds)
        return shape, result or dtype

    return infer


def _infer_where(srcs: Sequence[Node], attrs: tuple) -> Typed:
    cond, a, b = srcs
    if cond.dtype is not bool_:
        fail(DTypeError, "where", "the condition is not bool", srcs, "it selects by bool",
             "compare first, as in x != 0")
    if a.dtype is not b.dtype or a.shape != b.shape:
        _mismatch("where", (a, b))
    if cond.shape != a.shape:
        _mismatch("where", srcs)
    return a.shape, a.dtype


def _infer_cast(srcs: Sequence[Node], attrs: tuple) -> Typed:
    return srcs[0].shape, attrs[0]


def _infer_bitcast(srcs: Sequence[Node], attrs: tuple) -> Typed:
    (x,), (dtype,) = srcs, attrs
    if bool_ in (dtype, x.dtype) or dtype.itemsize != x.dtype.itemsize:
        fail(DTypeError, "bitcast", f"{x.dtype} cannot be read as {dtype}", srcs,
             "both have the same width and neither is bool", "cast converts values")
    return x.shape, dtype


# Views ------------------------------------------------------------------------------------


def _infer_reshape(srcs: Sequence[Node], attrs: tuple) -> Typed:
    (x,), (shape,) = srcs, attrs
    if prod(shape) != prod(x.shape) or any(n < 0 for n in shape):
        fail(ShapeError, "reshape", f"cannot become [{','.join(map(str, shape))}]", srcs,
             f"the number of elements stays {prod(x.shape)}, not {prod(shape)}")
    return shape, x.dtype


def _infer_permute(srcs: Sequence[Node], attrs: tuple) -> Typed:
    (x,), (perm,) = srcs, attrs
    if sorted(perm) != list(range(len(x.shape))):
        fail(AxisError, "permute", f"{perm} is no order of the axes", srcs,
             f"each of the axes 0 to {len(x.shape) - 1} is named once")
    return tuple([x.shape[p] for p in perm]), x.dtype


def _bad_axes(srcs: Sequence[Node], attrs: tuple) -> NoReturn:
    fail(AxisError, "expand", f"{attrs[1]} does not place the axes in {attrs[0]}", srcs,
         "one output axis for each source axis, ascending")


def _infer_expand(srcs: Sequence[Node], attrs: tuple) -> Typed:
    (x,), (shape, axes) = srcs, attrs
    last = -1
    for axis in axes:
        if axis <= last or axis >= len(shape):
            _bad_axes(srcs, attrs)
        last = axis
    if len(axes) != len(x.shape):
        _bad_axes(srcs, attrs)
    for n, axis in zip(x.shape, axes):
        if n != shape[axis] and n != 1:
            fail(ShapeError, "expand", f"cannot become [{','.join(map(str, shape))}]", srcs,
                 f"an axis keeps its size or grows from 1, and axis {axis} has {n}")
    if shape and min(shape) < 0:
        fail(ShapeError, "expand", f"negative size in {shape}", srcs, "sizes are not negative")
    return shape, x.dtype


def _check_region(name: str, x: Node, attrs: tuple, srcs: Sequence[Node]) -> None:
    starts, sizes, steps = attrs
    if not len(starts) == len(sizes) == len(steps) == len(x.shape):
        fail(AxisError, name, f"{starts}, {sizes}, {steps} do not fit", srcs,
             "one start, size and step for each axis")
    for axis, (n, start, size, step) in enumerate(zip(x.shape, starts, sizes, steps)):
        if step == 0 or size < 0:
            fail(ShapeError, name, f"axis {axis} has size {size} and step {step}", srcs,
                 "sizes are not negative and steps are not 0")
        last = start + (size - 1) * step
        if size and not (0 <= start < n and 0 <= last < n):
            fail(ShapeError, name, f"elements {start} to {last} of axis {axis}", srcs,
                 f"its elements are 0 to {n - 1}")


def _infer_slice(srcs: Sequence[Node], attrs: tuple) -> Typed:
    _check_region("slice", srcs[0], attrs, srcs)
    return attrs[1], srcs[0].dtype


def _infer_pad(srcs: Sequence[Node], attrs: tuple) -> Typed:
    (x,), (lo, hi, interior) = srcs, attrs
    if not len(lo) == len(hi) == len(interior) == len(x.shape):
        fail(AxisError, "pad", f"{lo}, {hi}, {interior} do not fit", srcs,
             "one lo, hi and interior for each axis")
    if any(p < 0 for p in (*lo, *hi, *interior)):
        fail(ShapeError, "pad", f"negative padding in {lo}, {hi}, {interior}", srcs,
             "paddings are not negative", "slice takes elements away")
    sizes = [p + n + max(n - 1, 0) * i + q for n, p, q, i in zip(x.shape, lo, hi, interior)]
    return tuple(sizes), x.dtype


def window_count(n: int, size: int, stride: int, dilation: int) -> int:
    """How many windows fit on an axis of n elements; not positive when none does."""
    return (n - (size - 1) * dilation - 1) // stride + 1


def _check_window(name: str, attrs: tuple, srcs: Sequence[Node]) -> None:
    if min(attrs) < 1:
        fail(ShapeError, name, "size {}, stride {}, dilation {}".format(*attrs), srcs,
             "all three are at least 1")


def _infer_window(srcs: Sequence[Node], attrs: tuple) -> Typed:
    (x,), (axis, size, stride, dilation) = srcs, attrs
    check_axis("window", axis, len(x.shape), srcs)
    _check_window("window", attrs[1:], srcs)
    n = x.shape[axis]
    count = window_count(n, size, stride, dilation)
    if count < 1:
        fail(ShapeError, "window", f"size {size} with dilation {dilation} on axis {axis}", srcs,
             f"a window spans {(size - 1) * dilation + 1} elements and the axis has {n}",
             "pad the axis or use a smaller window")
    return (*x.shape[:axis], count, *x.shape[axis + 1 :], size), x.dtype


def _infer_together(srcs: Sequence[Node], attrs: tuple) -> Typed:
    (results,) = attrs
    if not 0 < results < len(srcs) or srcs[0] not in srcs[1 : 1 + results]:
        fail(ShapeError, "together", f"{results} results of {len(srcs) - 1}", srcs,
             "the value is one of the results, which come before the arguments")
    return srcs[0].shape, srcs[0].dtype


def _infer_cat(srcs: Sequence[Node], attrs: tuple) -> Typed:
    (axis,) = attrs
    first = srcs[0].shape
    check_axis("cat", axis, len(first), srcs)
    dtype = _same_dtype("cat", srcs)
    pre, post = first[:axis], first[axis + 1 :]
    for s in srcs:
        if len(s.shape) != len(first) or s.shape[:axis] != pre or s.shape[axis + 1 :] != post:
            fail(ShapeError, "cat", f"pieces do not fit along axis {axis}", srcs,
                 "all other axes have equal sizes")
    return (*pre, sum(s.shape[axis] for s in srcs), *post), dtype


# Reducing ---------------------------------------------------------------------------------


def _infer_reduce(srcs: Sequence[Node], attrs: tuple) -> Typed:
    (x,), (kind, axes) = srcs, attrs
    if kind not in ("sum", "max"):
        fail(ValueError, "reduce", f"no reduction is called {kind!r}", srcs, "sum or max")
    if not axes or any(a >= b for a, b in pairwise(axes)):
        fail(AxisError, kind, f"over the axes {axes}", srcs, "ascending, each once, at least one")
    for axis in axes:
        check_axis(kind, axis, len(x.shape), srcs)
    if kind == "sum":
        _need("sum", srcs, "uif")
    elif any(x.shape[a] == 0 for a in axes):
        fail(ShapeError, "max", "over no elements", srcs, "an empty maximum has no value")
    return tuple([n for i, n in enumerate(x.shape) if i not in axes]), x.dtype


def _check_labels(srcs: Sequence[Node], la: tuple, lb: tuple, lo: tuple) -> None:
    for labels in (la, lb, lo):
        if len(set(labels)) != len(labels):
            fail(AxisError, "contract", f"a label is repeated in {labels}", srcs,
                 "an operand has each label once")
    for node, labels in zip(srcs, (la, lb)):
        if len(labels) != len(node.shape):
            fail(AxisError, "contract", f"{len(labels)} labels for {len(node.shape)} axes", srcs,
                 "one label for each axis")
    for label in {*la, *lb, *lo}:
        if (label in la) + (label in lb) + (label in lo) < 2:
            fail(AxisError, "contract", f"label {label} stands alone in {la}, {lb} -> {lo}", srcs,
                 "a label is in both operands or in one and the output",
                 "sum over an axis of one operand first")


def _infer_contract(srcs: Sequence[Node], attrs: tuple) -> Typed:
    (a, b), (la, lb, lo) = srcs, attrs
    dtype = _same_dtype("contract", srcs)
    _need("contract", srcs, "uif")
    _check_labels(srcs, la, lb, lo)
    sizes = dict(zip(la, a.shape))
    for axis, (label, n) in enumerate(zip(lb, b.shape)):
        if sizes.setdefault(label, n) != n:
            left = la.index(label)
            fail(ShapeError, "contract", "dimensions differ", srcs,
                 f"axis {left} of the first is {sizes[label]}, axis {axis} of the second is {n}")
    return tuple([sizes[label] for label in lo]), dtype


def _infer_fold(srcs: Sequence[Node], attrs: tuple) -> Typed:
    (x,), (axis, n, stride, dilation) = srcs, attrs
    check_axis("fold", axis, len(x.shape) - 1, srcs)
    _check_window("fold", (x.shape[-1], stride, dilation), srcs)
    _need("fold", srcs, "uif")
    count = window_count(n, x.shape[-1], stride, dilation)
    if x.shape[axis] != count:
        fail(ShapeError, "fold", f"{x.shape[axis]} windows on axis {axis}", srcs,
             f"{count} windows of {x.shape[-1]} (stride {stride}, dilation {dilation}) fit on {n}")
    return (*x.shape[:axis], n, *x.shape[axis + 1 : -1]), x.dtype


def _infer_scatter_add(srcs: Sequence[Node], attrs: tuple) -> Typed:
    (updates, index), (axis, size) = srcs, attrs
    _need("scatter_add", (updates,), "uif")
    _need("scatter_add", (index,), "ui", "indices are integers")
    end = axis + len(index.shape)
    if axis < 0 or size < 0 or updates.shape[axis:end] != index.shape:
        fail(ShapeError, "scatter_add", f"the updates do not hold the index at axis {axis}", srcs,
             "updates.shape[axis:axis+index.ndim] is index.shape, and the size is not negative")
    return (*updates.shape[:axis], size, *updates.shape[end:]), updates.dtype


# Indexed, state, markers ------------------------------------------------------------------


def _infer_gather(srcs: Sequence[Node], attrs: tuple) -> Typed:
    (x, index), (axis,) = srcs, attrs
    check_axis("gather", axis, len(x.shape), srcs)
    _need("gather", (index,), "ui", "indices are integers")
    return x.shape[:axis] + index.shape + x.shape[axis + 1 :], x.dtype


def _infer_assign(srcs: Sequence[Node], attrs: tuple) -> Typed:
    target, value = srcs
    if target.op is not Op.BUFFER and target.op is not Op.ASSIGN:
        fail(ValueError, "assign", f"the target is a {target.op.value}", srcs,
             "only a buffer, or what was assigned to one, can be assigned to")
    _same_dtype("assign", srcs)
    _check_region("assign", target, attrs, srcs)
    if value.shape != attrs[1]:
        fail(ShapeError, "assign", f"the value does not fill the region {attrs[1]}", srcs,
             "the value has the region's shape")
    return target.shape, target.dtype


def _infer_same(srcs: Sequence[Node], attrs: tuple) -> Typed:
    return srcs[0].shape, srcs[0].dtype


# The table --------------------------------------------------------------------------------


def _math(op: Op, doc: str, flops: int) -> OpSpec:
    return OpSpec(1, _elementwise(op.value, "f"), doc, flops, "elementwise")


def _pair(op: Op, kinds: str, doc: str, flops: int = 1, result: DType | None = None) -> OpSpec:
    return OpSpec(2, _elementwise(op.value, kinds, result), doc, flops, "elementwise")


def _view(infer: Infer, doc: str) -> OpSpec:
    return OpSpec(1, infer, doc, 0, "view")


# Transcendental functions count as the polynomials that they become in vector code.
OPS: dict[Op, OpSpec] = {
    Op.BUFFER: OpSpec(0, _infer_buffer, "the elements of a buffer at a version", 0, "leaf"),
    Op.CONST: OpSpec(0, _infer_const, "one number", 0, "leaf"),
    Op.IOTA: OpSpec(0, _infer_iota, "0, 1, ... n-1", 0, "leaf"),
    Op.VAR: OpSpec(0, _infer_var, "a bounded integer given at each run", 0, "leaf"),
    Op.NEG: OpSpec(1, _elementwise("neg", "uif"), "-x; wraps", 1, "elementwise"),
    Op.EXP: _math(Op.EXP, "e ** x", 10),
    Op.LOG: _math(Op.LOG, "natural logarithm", 10),
    Op.SQRT: _math(Op.SQRT, "square root", 4),
    Op.SIN: _math(Op.SIN, "sine of radians", 12),
    Op.COS: _math(Op.COS, "cosine of radians", 12),
    Op.TANH: _math(Op.TANH, "hyperbolic tangent", 12),
    Op.ERF: _math(Op.ERF, "error function", 14),
    Op.FLOOR: _math(Op.FLOOR, "largest integer not above x", 1),
    Op.ADD: _pair(Op.ADD, "uif", "a + b; integers wrap"),
    Op.SUB: _pair(Op.SUB, "uif", "a - b; integers wrap"),
    Op.MUL: _pair(Op.MUL, "uif", "a * b; integers wrap"),
    Op.DIV: _pair(Op.DIV, "f", "a / b", 4),
    Op.MAX: _pair(Op.MAX, "buif", "the larger; NaN if either is NaN"),
    Op.IDIV: _pair(Op.IDIV, "uif", "floor of a / b; integers: 0 where b is 0, wraps", 8),
    Op.MOD: _pair(Op.MOD, "uif", "a - b * floor(a / b), sign of b; integers: 0 where b is 0", 8),
    Op.POW: _pair(Op.POW, "f", "a ** b as C's pow", 24),
    Op.LT: _pair(Op.LT, "buif", "a < b; false for NaN", 1, bool_),
    Op.EQ: _pair(Op.EQ, "buif", "a == b; false for NaN", 1, bool_),
    Op.AND: _pair(Op.AND, "bui", "bitwise and"),
    Op.OR: _pair(Op.OR, "bui", "bitwise or"),
    Op.XOR: _pair(Op.XOR, "bui", "bitwise exclusive or"),
    Op.SHL: _pair(Op.SHL, "ui", "a << b; 0 unless 0 <= b < width"),
    Op.SHR: _pair(Op.SHR, "ui", "a >> b, keeps the sign; all sign unless 0 <= b < width"),
    Op.WHERE: OpSpec(3, _infer_where, "a where cond, else b", 1, "elementwise"),
    Op.CAST: OpSpec(1, _infer_cast, "the value in another dtype; towards zero", 1, "elementwise"),
    Op.BITCAST: OpSpec(1, _infer_bitcast, "the same bits as another dtype", 0, "elementwise"),
    Op.RESHAPE: _view(_infer_reshape, "the elements in row-major order in another shape"),
    Op.PERMUTE: _view(_infer_permute, "axes in another order"),
    Op.EXPAND: _view(_infer_expand, "elements repeated along new axes and axes of size 1"),
    Op.SLICE: _view(_infer_slice, "out[i] = x[start + step*i]"),
    Op.PAD: _view(_infer_pad, "zeros outside, and `interior` of them between elements"),
    Op.WINDOW: _view(_infer_window, "out[.., i, .., k] = x[.., i*stride + k*dilation, ..]"),
    Op.CAT: OpSpec(None, _infer_cat, "pieces one after another along an axis", 0, "view"),
    Op.REDUCE: OpSpec(1, _infer_reduce, "sum or max over axes, which go", 1, "reduce"),
    Op.CONTRACT: OpSpec(2, _infer_contract, "einsum of two operands", 2, "reduce"),
    Op.FOLD: OpSpec(1, _infer_fold, "windows added up where they overlap", 1, "reduce"),
    Op.SCATTER_ADD: OpSpec(2, _infer_scatter_add, "updates added up by index", 1, "reduce"),
    Op.GATHER: OpSpec(2, _infer_gather, "elements of an axis by index", 0, "indexed"),
    Op.ASSIGN: OpSpec(2, _infer_assign, "the target with a region replaced", 0, "state"),
    Op.COPY: OpSpec(1, _infer_same, "the same on another device", 0, "marker"),
    Op.MATERIALIZE: OpSpec(1, _infer_same, "the same, stored", 0, "marker"),
    Op.BOUNDARY: OpSpec(1, _infer_same, "the same, complete before its readers begin", 0, "marker"),
    Op.TOGETHER: OpSpec(None, _infer_together, "the first source, made in one kernel from the last",
                        0, "marker"),
    Op.DETACH: OpSpec(1, _infer_same, "the same, with no gradient", 0, "marker"),
}


def _family(name: str) -> frozenset[Op]:
    return frozenset(op for op, spec in OPS.items() if spec.family == name)


LEAVES = _family("leaf")
ELEMENTWISE = _family("elementwise")
VIEWS = _family("view")
