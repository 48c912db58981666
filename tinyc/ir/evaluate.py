"""What the Graph IR means: the reference interpreter, in numpy.

Everything else is checked against this file. One row of `EVAL` per op takes the node and the
values of its sources and gives an array of the node's shape and dtype. Integers wrap; f32
arithmetic is done in f32, but sums and contractions of f32 accumulate in f64 and round once.
An op on f16 or bf16 is done in f32, and its result is rounded once, to nearest even.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import prod

import numpy as np

from tinyc.diagnostics import BoundsError, format_origin
from tinyc.ir.dtype import DType, f32, f64, numbers, stored
from tinyc.ir.node import Node, toposort
from tinyc.ir.ops import OPS, Op, describe

Row = Callable[..., np.ndarray]


class Unbound(KeyError):
    """A buffer or variable of the graph for which no value was given."""

    def __str__(self) -> str:
        return str(self.args[0])


def evaluate(
    outputs: Sequence[Node],
    memory: Mapping[int, np.ndarray],
    variables: Mapping[str, int] | None = None,
) -> list[np.ndarray]:
    """The values of `outputs`, each a new array that shares no memory with another.

    `memory` maps the uid of each BUFFER to its elements and is only read: an ASSIGN gives the
    whole buffer as it is after it. `variables` maps the name of each VAR to its value. BoundsError
    for an index out of range, Unbound for a missing value.
    """
    order = toposort(outputs)
    readers = Counter(s for n in order for s in n.src)
    readers.update(outputs)
    values: dict[Node, np.ndarray] = {}
    with np.errstate(all="ignore"):
        for n in order:
            if n.src:
                value = EVAL[n.op](n, *[values[s] for s in n.src])
                _release(values, readers, n.src)
            else:
                value = _leaf(n, memory, variables or {})
            values[n] = value
    return [np.array(values[n], dtype=n.dtype.np, order="C") for n in outputs]


def _release(values: dict[Node, np.ndarray], readers: Counter[Node], src: Sequence[Node]) -> None:
    """Drop the values that nobody will read any more, so that memory is freed on the way."""
    for s in src:
        readers[s] -= 1
        if not readers[s]:
            del values[s]


def _leaf(n: Node, memory: Mapping[int, np.ndarray], variables: Mapping[str, int]) -> np.ndarray:
    if n.op is Op.BUFFER:
        return EVAL[n.op](n, _lookup(memory, n.attrs[0], n))
    if n.op is Op.VAR:
        return EVAL[n.op](n, _lookup(variables, n.attrs[0], n))
    return EVAL[n.op](n)


def _lookup(table: Mapping, name: object, n: Node) -> object:
    try:
        return table[name]
    except KeyError:
        raise Unbound(f"no value for {n.op.value} {name} {describe(n)}") from None


# Leaves -----------------------------------------------------------------------------------


def _buffer(n: Node, value: np.ndarray) -> np.ndarray:
    if value.shape != n.shape or value.dtype != n.dtype.np:
        raise ValueError(f"buffer {n.attrs[0]} is {describe(n)}, not {value.dtype}{value.shape}")
    return value


def _const(n: Node) -> np.ndarray:
    return stored(np.array(n.value), n.dtype)


def _iota(n: Node) -> np.ndarray:
    return stored(np.arange(n.attrs[0]), n.dtype)


def _var(n: Node, value: int) -> np.ndarray:
    name, lo, hi = n.attrs
    if not lo <= value <= hi:
        raise BoundsError(
            f"var (at {format_origin(n.origin)}): {name} is {value}; it lies in {lo} to {hi}"
        )
    return np.array(value, n.dtype.np)


# Elementwise ------------------------------------------------------------------------------


def _ufunc(fn: Callable[..., np.ndarray]) -> Row:
    """A row that applies a numpy function elementwise."""

    def row(n: Node, *args: np.ndarray) -> np.ndarray:
        return np.asarray(fn(*args), n.dtype.np)

    return row


def _int_division(fn: Callable[..., np.ndarray]) -> Row:
    """Floor division or its remainder; of an integer and 0 it is 0."""

    def row(n: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if n.dtype.kind == "f":
            return np.asarray(fn(a, b), n.dtype.np)
        zero = b == 0
        return np.where(zero, np.zeros_like(a), fn(a, np.where(zero, np.ones_like(b), b)))

    return row


def _shift_left(n: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    inside = (b >= 0) & (b < n.dtype.bits)
    return np.where(inside, a << np.where(inside, b, 0), 0)


def _shift_right(n: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    inside = (b >= 0) & (b < n.dtype.bits)
    return np.where(inside, a >> np.where(inside, b, 0), -(a < 0).astype(a.dtype))


def _erf(n: Node, x: np.ndarray) -> np.ndarray:
    if n.dtype is f64:
        return np.asarray(_erf_exact(x), np.float64)
    return _erf_table(x.astype(np.float64)).astype(np.float32)


_erf_exact = np.frompyfunc(math.erf, 1, 1)
_CELLS = 64  # grid points per unit of the table below
_TERMS = 8


@lru_cache(maxsize=1)
def _erf_taylor() -> np.ndarray:
    """Taylor coefficients of erf about each grid point of [0, 6], one row for each power."""
    x = np.arange(6 * _CELLS + 1) / _CELLS
    rows = [np.array([math.erf(v) for v in x])]
    # erf' = c exp(-x^2), and its k-th derivative is that times a Hermite polynomial:
    # H[k+1] = -2x H[k] - 2k H[k-1].
    last, current = np.zeros_like(x), 2 / math.sqrt(math.pi) * np.exp(-x * x)
    for k in range(_TERMS - 1):
        rows.append(current / math.factorial(k + 1))
        last, current = current, -2 * x * current - 2 * k * last
    return np.array(rows)


def _erf_table(x: np.ndarray) -> np.ndarray:
    """erf to about 1e-15, as fast as numpy allows: the Taylor series about the nearest point."""
    a = np.minimum(np.abs(x), 6.0)
    cell = np.rint(np.where(np.isnan(a), 0.0, a) * _CELLS).astype(np.intp)
    d = a - cell / _CELLS
    table = _erf_taylor()
    out = table[-1][cell]
    for row in table[-2::-1]:
        out = out * d + row[cell]
    return np.copysign(out, x)


def _cast(n: Node, x: np.ndarray) -> np.ndarray:
    return stored(numbers(x, n.src[0].dtype), n.dtype)


def _bitcast(n: Node, x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(n.dtype.np).reshape(n.shape)


# Views ------------------------------------------------------------------------------------


def _reshape(n: Node, x: np.ndarray) -> np.ndarray:
    return x.reshape(n.shape)


def _permute(n: Node, x: np.ndarray) -> np.ndarray:
    return x.transpose(n.attrs[0])


def _expand(n: Node, x: np.ndarray) -> np.ndarray:
    shape, axes = n.attrs
    aligned = [1] * len(shape)
    for extent, axis in zip(x.shape, axes):
        aligned[axis] = extent
    return np.broadcast_to(x.reshape(aligned), shape)


def _region(attrs: tuple) -> tuple[slice, ...]:
    """numpy's slices for (starts, sizes, steps)."""
    slices = []
    for start, size, step in zip(*attrs):
        stop = start + step * size
        if size == 0:
            slices.append(slice(0, 0))
        else:
            slices.append(slice(start, stop if stop >= 0 else None, step))
    return tuple(slices)


def _slice(n: Node, x: np.ndarray) -> np.ndarray:
    return x[_region(n.attrs)]


def _pad(n: Node, x: np.ndarray) -> np.ndarray:
    lo, _, interior = n.attrs
    out = np.zeros(n.shape, n.dtype.np)
    out[_region((lo, x.shape, [i + 1 for i in interior]))] = x
    return out


def _window(n: Node, x: np.ndarray) -> np.ndarray:
    axis, _, stride, dilation = n.attrs
    strides = list(x.strides)
    step = strides[axis]
    strides[axis] = step * stride
    strides.append(step * dilation)
    return np.lib.stride_tricks.as_strided(x, n.shape, strides, writeable=False)


def _cat(n: Node, *pieces: np.ndarray) -> np.ndarray:
    return np.concatenate(pieces, axis=n.attrs[0])


# Reducing ---------------------------------------------------------------------------------


def _reduce(n: Node, x: np.ndarray) -> np.ndarray:
    kind, axes = n.attrs
    if kind == "max":
        return np.asarray(x.max(axis=axes))
    wide = np.float64 if n.dtype is f32 else n.dtype.np
    return np.asarray(x.sum(axis=axes, dtype=wide), n.dtype.np)


def _matrices(x: np.ndarray, labels: tuple, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """x with its axes in the order of `groups`, each group made one axis."""
    x = x.transpose([labels.index(label) for group in groups for label in group])
    extents = iter(x.shape)
    return x.reshape([prod(next(extents) for _ in group) for group in groups])


def _contract(n: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A batch of matrix products: numpy's matmul uses BLAS for them, its einsum does not."""
    la, lb, lo = n.attrs
    sizes = {**dict(zip(la, a.shape)), **dict(zip(lb, b.shape))}
    batch = [label for label in la if label in lb and label in lo]
    left = [label for label in la if label not in lb]
    inner = [label for label in la if label not in lo]
    right = [label for label in lb if label not in la]
    wide = np.float64 if n.dtype is f32 else n.dtype.np
    first = _matrices(a, la, (batch, left, inner)).astype(wide, copy=False)
    second = _matrices(b, lb, (batch, inner, right)).astype(wide, copy=False)
    labels = [*batch, *left, *right]
    out = np.matmul(first, second).astype(n.dtype.np, copy=False)
    return out.reshape([sizes[x] for x in labels]).transpose([labels.index(x) for x in lo])


def _fold(n: Node, x: np.ndarray) -> np.ndarray:
    axis, _, stride, dilation = n.attrs
    out = np.zeros(n.shape, np.float64 if n.dtype is f32 else n.dtype.np)
    along = np.moveaxis(out, axis, -1)
    windows = np.moveaxis(x, axis, -2)
    span = stride * (windows.shape[-2] - 1) + 1
    for k in range(x.shape[-1]):
        along[..., k * dilation : k * dilation + span : stride] += windows[..., k]
    return out.astype(n.dtype.np, copy=False)


def _scatter_add(n: Node, updates: np.ndarray, index: np.ndarray) -> np.ndarray:
    axis, size = n.attrs
    _check_bounds(n, index, size)
    out = np.zeros(n.shape, np.float64 if n.dtype is f32 else n.dtype.np)
    place = (slice(None),) * axis + (index.astype(np.intp),)
    np.add.at(out, place, updates.astype(out.dtype, copy=False))
    return out.astype(n.dtype.np, copy=False)


# Indexed, state, markers ------------------------------------------------------------------


def _check_bounds(n: Node, index: np.ndarray, bound: int) -> None:
    """BoundsError naming op, user's line, value and bound if an index is out of range."""
    bad = (index < 0) | (index >= bound)
    if bad.any():
        raise BoundsError(bounds_message(n, int(index[bad].flat[0]), bound))


def bounds_message(n: Node, value: int, bound: int) -> str:
    """What is said of an index out of range in the GATHER or SCATTER_ADD `n`."""
    axis = n.attrs[0]
    return (
        f"{n.op.value} (at {format_origin(n.origin)}): index {value} is out of range for axis"
        f" {axis}: {describe(n.src[0])}; 0 <= index < {bound}"
    )


def _gather(n: Node, x: np.ndarray, index: np.ndarray) -> np.ndarray:
    (axis,) = n.attrs
    _check_bounds(n, index, x.shape[axis])
    if not index.size:
        return np.zeros(n.shape, n.dtype.np)
    return x.take(index.astype(np.intp), axis=axis)


def _assign(n: Node, target: np.ndarray, value: np.ndarray) -> np.ndarray:
    out = target.copy()
    out[_region(n.attrs)] = value
    return out


def _same(n: Node, x: np.ndarray) -> np.ndarray:
    return x


# Halves -----------------------------------------------------------------------------------


class _Wide:
    """A node of halves with the dtype that it is computed in."""

    def __init__(self, n: Node) -> None:
        self.op, self.attrs, self.shape, self.src = n.op, n.attrs, n.shape, n.src
        self.origin = n.origin
        self.dtype = n.dtype.wide


def _computed(row: Row) -> Row:
    """The row for arithmetic: halves are widened, and what they give is rounded."""

    def widened(n: Node, *args: np.ndarray) -> np.ndarray:
        types: list[DType] = [s.dtype for s in n.src]
        if not any(d.is_half for d in types):
            return row(n, *args)
        found = row(_Wide(n), *map(numbers, args, types))
        return stored(found, n.dtype) if n.dtype.is_half else found

    return widened


EVAL: dict[Op, Row] = {
    Op.BUFFER: _buffer,
    Op.CONST: _const,
    Op.IOTA: _iota,
    Op.VAR: _var,
    Op.NEG: _ufunc(np.negative),
    Op.EXP: _ufunc(np.exp),
    Op.LOG: _ufunc(np.log),
    Op.SQRT: _ufunc(np.sqrt),
    Op.SIN: _ufunc(np.sin),
    Op.COS: _ufunc(np.cos),
    Op.TANH: _ufunc(np.tanh),
    Op.ERF: _erf,
    Op.FLOOR: _ufunc(np.floor),
    Op.ADD: _ufunc(np.add),
    Op.SUB: _ufunc(np.subtract),
    Op.MUL: _ufunc(np.multiply),
    Op.DIV: _ufunc(np.divide),
    Op.MAX: _ufunc(np.maximum),
    Op.IDIV: _int_division(np.floor_divide),
    Op.MOD: _int_division(np.mod),
    Op.POW: _ufunc(np.power),
    Op.LT: _ufunc(np.less),
    Op.EQ: _ufunc(np.equal),
    Op.AND: _ufunc(np.bitwise_and),
    Op.OR: _ufunc(np.bitwise_or),
    Op.XOR: _ufunc(np.bitwise_xor),
    Op.SHL: _shift_left,
    Op.SHR: _shift_right,
    Op.WHERE: _ufunc(np.where),
    Op.CAST: _cast,
    Op.BITCAST: _bitcast,
    Op.RESHAPE: _reshape,
    Op.PERMUTE: _permute,
    Op.EXPAND: _expand,
    Op.SLICE: _slice,
    Op.PAD: _pad,
    Op.WINDOW: _window,
    Op.CAT: _cat,
    Op.REDUCE: _reduce,
    Op.CONTRACT: _contract,
    Op.FOLD: _fold,
    Op.SCATTER_ADD: _scatter_add,
    Op.GATHER: _gather,
    Op.ASSIGN: _assign,
    Op.COPY: _same,
    Op.MATERIALIZE: _same,
    Op.BOUNDARY: _same,
    Op.TOGETHER: lambda n, x, *others: x,
    Op.DETACH: _same,
}
# Ops that calculate with elements; all others only move them.
ARITHMETIC = tuple(
    op for op, spec in OPS.items() if spec.family in ("elementwise", "reduce")
    and op not in (Op.CAST, Op.BITCAST, Op.WHERE)
)
EVAL.update({op: _computed(EVAL[op]) for op in ARITHMETIC})
