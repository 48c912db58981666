"""Every elementwise operator and every cast in C against the evaluator, on values that hurt."""

from __future__ import annotations

import numpy as np
import pytest
from running import buffers, native

from tinyc.ir import build as b
from tinyc.ir import dtype as d
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node, node
from tinyc.ir.ops import Op

INTEGERS = (d.u8, d.i8, d.u16, d.i16, d.u32, d.i32, d.u64, d.i64)
FLOATS = (d.f32, d.f64)
MATH = (Op.EXP, Op.LOG, Op.SQRT, Op.SIN, Op.COS, Op.TANH, Op.ERF)
ARITHMETIC = (Op.ADD, Op.SUB, Op.MUL, Op.MAX, Op.IDIV, Op.MOD, Op.LT, Op.EQ)
BITS = (Op.AND, Op.OR, Op.XOR)


def special(dtype: d.DType) -> np.ndarray:
    """Numbers at and around the edges of a dtype."""
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.kind != "f":
        low, high = d.limits(dtype)
        near = {low, low + 1, high, high - 1, high // 2, 0, 1, 2, 3, 5, 7, 8, 31, 32, 63, 64, 100}
        wanted = [v for v in sorted(near | {-1, -2, -3, -7}) if low <= v <= high]
        return np.array(wanted, dtype.np)
    info = np.finfo(dtype.np)
    values = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.5, -3.0, 7.25, 1e-3, -40.0, 90.0, 1e4, info.max,
              -info.max, info.tiny, info.smallest_subnormal, -info.smallest_subnormal,
              np.inf, -np.inf, np.nan]
    return np.array(values, dtype.np)


def pairs(dtype: d.DType) -> tuple[list[Node], dict[int, np.ndarray]]:
    values = special(dtype)
    first, second = np.meshgrid(values, values, indexing="ij")
    return buffers(np.ascontiguousarray(first).ravel(), np.ascontiguousarray(second).ravel())


def binary_ops(dtype: d.DType) -> list[Op]:
    if dtype.kind == "b":
        return [*BITS, Op.MAX, Op.LT, Op.EQ]
    if dtype.kind == "f":
        return [*ARITHMETIC, Op.DIV, Op.POW]
    return [*ARITHMETIC, *BITS, Op.SHL, Op.SHR]


def check(outputs: list[Node], memory: dict[int, np.ndarray]) -> None:
    """Bits of integers, places of NaN and infinities, 8 units in the last place of floats."""
    got = native(outputs, memory)
    for out, mine, want in zip(outputs, got, evaluate(outputs, memory)):
        what = f"{out.op.value} {[s.dtype for s in out.src]} -> {out.dtype}"
        if out.dtype.kind != "f":
            np.testing.assert_array_equal(mine, want, what)
            continue
        info = np.finfo(out.dtype.np)
        np.testing.assert_allclose(mine, want, 8 * info.eps, 8 * info.smallest_subnormal,
                                   err_msg=what)


@pytest.mark.parametrize("dtype", [d.bool_, *INTEGERS, *FLOATS], ids=str)
def test_binary_operators(dtype: d.DType) -> None:
    (x, y), memory = pairs(dtype)
    outputs = [node(op, (x, y)) for op in binary_ops(dtype)]
    outputs.append(b.where(b.lt(x, y), x, y))
    check(outputs, memory)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_unary_operators_of_floats(dtype: d.DType) -> None:
    ordinary = np.linspace(-12, 12, 401, dtype=dtype.np)
    (x,), memory = buffers(np.concatenate([special(dtype), ordinary]))
    check([node(op, (x,)) for op in (*MATH, Op.NEG, Op.FLOOR)], memory)


def test_negation_of_integers() -> None:
    nodes, memory = buffers(*[special(t) for t in INTEGERS])
    check([b.neg(x) for x in nodes], memory)


def test_casts_between_all_dtypes() -> None:
    """Floats to integers only where the value fits: elsewhere C leaves the result open."""
    outputs: list[Node] = []
    memory: dict[int, np.ndarray] = {}
    for source in (d.bool_, *INTEGERS, *FLOATS):
        for to in (d.bool_, *INTEGERS, *FLOATS):
            values = special(source)
            if source.kind == "f" and to.kind in "iu":
                low, high = d.limits(to)
                values = values[np.isfinite(values) & (values > low - 1) & (values < high)]
            uid = len(memory) + 1
            memory[uid] = values
            outputs.append(b.cast(b.buffer(uid, 0, values.shape, source, "cpu"), to))
    check(outputs, memory)


def test_bitcasts() -> None:
    all_dtypes = (*INTEGERS, *FLOATS)
    nodes, memory = buffers(*[special(t) for t in all_dtypes])
    outputs = [b.bitcast(x, to) for x in nodes for to in all_dtypes
               if to.itemsize == x.dtype.itemsize and to is not x.dtype]
    check([b.bitcast(o, d.u32 if o.dtype is d.f32 else d.u64) if o.dtype.kind == "f" else o
           for o in outputs], memory)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_fused_pairs_of_unary_operators(dtype: d.DType) -> None:
    """No pair is simplified or contracted into something with NaN at another place."""
    (x,), memory = buffers(special(dtype))
    ops = (*MATH, Op.NEG, Op.FLOOR)
    outputs = [node(outer, (node(inner, (x,)),)) for inner in ops for outer in ops]
    got = native(outputs, memory)
    for out, mine, want in zip(outputs, got, evaluate(outputs, memory)):
        inner = out.src[0]
        assert np.array_equal(np.isnan(mine), np.isnan(want)), (inner.op, out.op)
        # The outer function magnifies the inner one's last bit where its slope is large.
        calm = np.isfinite(want) & (np.abs(evaluate([inner], memory)[0]) < 50)
        what = f"{out.op.value} of {inner.op.value}"
        np.testing.assert_allclose(mine[calm], want[calm], 2e-4, 1e-5, err_msg=what)


def test_float_division_and_remainder_are_numpys() -> None:
    rng = np.random.default_rng(0)
    near = (rng.integers(-40, 41, 4000) / 8).astype(np.float32)
    far = rng.standard_normal(4000).astype(np.float32) * 1000
    for a, c in ((near, near[::-1].copy()), (far, near), (near, far), (far, far[::-1].copy())):
        (x, y), memory = buffers(a, c)
        quotient, rest = native([b.idiv(x, y), b.mod(x, y)], memory)
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(quotient, np.floor_divide(a, c))
            np.testing.assert_array_equal(rest, np.mod(a, c))


def test_nothing_that_hides_a_nan_is_simplified() -> None:
    (x,), memory = buffers(special(d.f32))
    outputs = [b.sub(x, x), b.mul(x, 0.0), b.div(x, x), b.add(x, 0.0), b.maximum(x, x)]
    check(outputs, memory)
    assert np.isnan(native(outputs[:3], memory)[0][-1])
