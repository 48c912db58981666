"""The reference interpreter against numpy, spelled out op by op."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from tinyc.diagnostics import BoundsError
from tinyc.ir import build as B
from tinyc.ir.dtype import (
    DTYPES,
    bool_,
    f32,
    f64,
    from_numpy,
    i8,
    i16,
    i32,
    i64,
    stored,
    u8,
    u16,
    u32,
    u64,
)
from tinyc.ir.evaluate import Unbound, evaluate
from tinyc.ir.node import node
from tinyc.ir.ops import OPS, Op

INTS = [u8, i8, u16, i16, u32, i32, u64, i64]
FLOATS = [f32, f64]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.75, 1e-30, 40.0, math.inf, -math.inf, math.nan]


def rng(seed=0):
    return np.random.default_rng(seed)


def leaf(array, uid):
    return B.buffer(uid, 0, array.shape, from_numpy(array.dtype), "cpu")


def apply(fn, *arrays):
    """fn of one buffer for each array, evaluated, with its type checked against the node's."""
    nodes = [leaf(a, uid) for uid, a in enumerate(arrays)]
    out = fn(*nodes)
    (value,) = evaluate([out], dict(enumerate(arrays)))
    assert value.shape == out.shape
    assert value.dtype == out.dtype.np
    assert value.flags.c_contiguous
    assert value.flags.writeable
    return value


def row(op, *attrs):
    return lambda *src: node(op, src, attrs)


def same(got, want):
    """Equal to the bit, with NaN equal to NaN and 0.0 not to -0.0."""
    np.testing.assert_array_equal(got, want)
    if got.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(got), np.signbit(want))


def samples(d):
    """Values of a dtype with its edges, as pairs of every one with every other."""
    if d is bool_:
        values = np.array([False, True])
    elif d.kind == "f":
        values = np.array(SPECIAL, d.np)
    else:
        info = np.iinfo(d.np)
        values = np.unique(np.array([info.min, info.min + 1, 0, 1, 2, 3, 7, info.max], d.np))
        if d.kind == "i":
            values = np.append(values, np.array([-1, -2, -7], d.np))
    a, b = np.array(list(itertools.product(values, values)), d.np).T
    return np.ascontiguousarray(a), np.ascontiguousarray(b)


# elementwise ------------------------------------------------------------------------------

UNARY = {
    Op.EXP: np.exp, Op.LOG: np.log, Op.SQRT: np.sqrt, Op.SIN: np.sin, Op.COS: np.cos,
    Op.TANH: np.tanh, Op.FLOOR: np.floor, Op.NEG: np.negative,
}  # fmt: skip
BINARY = {
    Op.ADD: np.add, Op.SUB: np.subtract, Op.MUL: np.multiply, Op.MAX: np.maximum,
    Op.LT: np.less, Op.EQ: np.equal,
}  # fmt: skip


@pytest.mark.parametrize("d", FLOATS, ids=repr)
@pytest.mark.parametrize("op", UNARY, ids=lambda op: op.value)
def test_unary_floats(op, d):
    x = np.array(SPECIAL, d.np)
    with np.errstate(all="ignore"):
        same(apply(row(op), x), UNARY[op](x))


@pytest.mark.parametrize("d", FLOATS + INTS, ids=repr)
@pytest.mark.parametrize("op", BINARY, ids=lambda op: op.value)
def test_binary(op, d):
    a, b = samples(d)
    with np.errstate(all="ignore"):
        same(apply(row(op), a, b), BINARY[op](a, b))


@pytest.mark.parametrize("d", FLOATS, ids=repr)
def test_division_and_power(d):
    a, b = samples(d)
    with np.errstate(all="ignore"):
        same(apply(row(Op.DIV), a, b), a / b)
        same(apply(row(Op.IDIV), a, b), np.floor_divide(a, b))
        same(apply(row(Op.MOD), a, b), np.mod(a, b))
        same(apply(row(Op.POW), a, b), np.power(a, b))


@pytest.mark.parametrize("d", INTS, ids=repr)
def test_integer_division_floors_and_never_fails(d):
    a, b = samples(d)
    quotient, remainder = apply(row(Op.IDIV), a, b), apply(row(Op.MOD), a, b)
    for x, y, q, r in zip(*(v.tolist() for v in (a, b, quotient, remainder))):
        want = (0, 0) if y == 0 else divmod(x, y)
        wrapped = int(np.array([want[0] % (1 << d.bits)], np.uint64).astype(d.np)[0])
        assert (q, r) == (wrapped, want[1]), (x, y)


@pytest.mark.parametrize("d", INTS, ids=repr)
def test_integers_wrap(d):
    top = np.array([np.iinfo(d.np).max], d.np)
    assert apply(lambda x: B.add(x, 1), top)[0] == np.iinfo(d.np).min
    assert apply(lambda x: B.mul(x, x), top)[0] == 1
    bottom = np.array([np.iinfo(d.np).min], d.np)
    assert apply(B.neg, bottom)[0] == bottom[0]


@pytest.mark.parametrize("d", [bool_, *INTS], ids=repr)
def test_bitwise(d):
    a, b = samples(d)
    same(apply(B.and_, a, b), a & b)
    same(apply(B.or_, a, b), a | b)
    same(apply(B.xor, a, b), a ^ b)


@pytest.mark.parametrize("d", INTS, ids=repr)
def test_shifts_and_their_counts_out_of_range(d):
    counts = [0, 1, d.bits - 1, d.bits, d.bits + 3] + ([-1] if d.kind == "i" else [])
    values = [np.iinfo(d.np).min, 1, 5, np.iinfo(d.np).max]
    for x, k in itertools.product(values, counts):
        a, b = np.array([x], d.np), np.array([k], d.np)
        inside = 0 <= k < d.bits
        left = (int(x) << k) % (1 << d.bits) if inside else 0
        assert int(apply(B.shl, a, b)[0]) % (1 << d.bits) == left
        assert apply(B.shr, a, b)[0] == (int(x) >> k if inside else -(x < 0))


def test_max_and_comparisons_of_nan():
    nan, one = np.array([math.nan], np.float32), np.array([1], np.float32)
    assert np.isnan(apply(B.maximum, nan, one)[0])
    assert np.isnan(apply(B.maximum, one, nan)[0])
    assert np.isnan(apply(B.max_, np.array([1, math.nan, 2], np.float32)))
    assert not apply(B.lt, nan, one)[0]
    assert not apply(B.eq, nan, nan)[0]
    assert apply(B.ne, nan, nan)[0]


def test_bools_compare_and_max():
    a, b = samples(bool_)
    same(apply(row(Op.MAX), a, b), a | b)
    same(apply(row(Op.LT), a, b), ~a & b)
    same(apply(row(Op.EQ), a, b), a == b)


def test_where_takes_only_the_chosen_side():
    cond = np.array([True, False, True])
    a, b = np.array([1, math.nan, 3], "f"), np.array([math.nan, 2, math.inf], "f")
    same(apply(B.where, cond, a, b), np.array([1, 2, 3], "f"))


def test_f32_stays_f32():
    x = rng().standard_normal(100).astype(np.float32)
    same(apply(lambda v: B.add(B.mul(v, 3.1), 0.7), x), x * np.float32(3.1) + np.float32(0.7))


def test_erf():
    x = np.concatenate([np.linspace(-7, 7, 20001), [0.0, -0.0, 1e-30, 1e-300, np.inf, -np.inf]])
    want = np.array([math.erf(v) for v in x])
    same(apply(B.erf, x), want)
    x32 = x.astype(np.float32)
    want32 = np.array([math.erf(v) for v in x32], np.float32)
    np.testing.assert_array_max_ulp(apply(B.erf, x32), want32, 1)
    assert np.signbit(apply(B.erf, np.array([-0.0], "f")))[0]
    assert np.isnan(apply(B.erf, np.array([math.nan], "f")))[0]
    assert np.isnan(apply(B.erf, np.array([math.nan])))[0]


@pytest.mark.parametrize("d", DTYPES.values(), ids=repr)
def test_casts(d):
    x = np.array([0.0, 0.5, 1.0, 99.9] + ([-1.75] if d.kind in "if" else []))
    same(apply(row(Op.CAST, d), x), stored(x, d))
    same(apply(row(Op.CAST, d), np.array([True, False])), stored(np.array([1, 0]), d))


def test_bitcasts():
    x = np.array([1.0, -0.0, math.inf], np.float32)
    same(apply(lambda v: B.bitcast(v, u32), x), x.view(np.uint32))
    same(apply(lambda v: B.bitcast(B.bitcast(v, i32), f32), x), x)
    flipped = apply(lambda v: B.bitcast(B.permute(v, (1, 0)), i32), x.reshape(1, 3))
    same(flipped, x.view(np.int32).reshape(3, 1))
    assert apply(lambda v: B.bitcast(v, u32), np.zeros((0, 2), np.float32)).shape == (0, 2)
    assert apply(lambda v: B.bitcast(v, i64), np.array(1.0)).shape == ()


# leaves -----------------------------------------------------------------------------------


def test_leaves():
    same(evaluate([B.const(-0.0)], {})[0], np.array(-0.0, np.float32))
    same(evaluate([B.const(2**64 - 1, u64)], {})[0], np.array(2**64 - 1, np.uint64))
    same(evaluate([B.iota(4)], {})[0], np.arange(4))
    same(evaluate([B.iota(3, f32)], {})[0], np.arange(3, dtype="f"))
    n = B.var("n", 0, 9)
    same(evaluate([B.add(n, 1)], {}, {"n": 4})[0], np.array(5))
    with pytest.raises(BoundsError, match="n is 10; it lies in 0 to 9"):
        evaluate([n], {}, {"n": 10})
    with pytest.raises(Unbound, match="no value for var n"):
        evaluate([n], {})


def test_buffers_must_be_there_and_fit():
    x = B.buffer(7, 0, (2,), f32, "cpu")
    with pytest.raises(Unbound, match=r"no value for buffer 7 f32\[2\]"):
        evaluate([x], {})
    with pytest.raises(ValueError, match=r"buffer 7 is f32\[2\].*not float64\(2,\)"):
        evaluate([x], {7: np.zeros(2)})


def test_results_share_no_memory():
    data = np.arange(6, dtype="f").reshape(2, 3)
    x = leaf(data, 0)
    views = [B.reshape(x, (6,)), B.permute(x, (1, 0)), B.expand(x, (4, 2, 3))]
    outs = evaluate([x, x, *views], {0: data})
    for i, out in enumerate(outs):
        assert not np.shares_memory(out, data)
        assert not any(np.shares_memory(out, other) for other in outs[:i])
        assert out.flags.writeable


# views ------------------------------------------------------------------------------------


def test_simple_views():
    x = rng().standard_normal((2, 3, 4))
    same(apply(lambda v: B.reshape(v, (4, 6)), x), x.reshape(4, 6))
    same(apply(lambda v: B.permute(v, (2, 0, 1)), x), x.transpose(2, 0, 1))
    same(apply(lambda v: B.expand(v, (5, 2, 3, 4)), x), np.broadcast_to(x, (5, 2, 3, 4)))
    same(
        apply(lambda v: B.expand_axes(v, (2, 7, 3, 8, 4), (0, 2, 4)), x),
        np.broadcast_to(x[:, None, :, None, :], (2, 7, 3, 8, 4)),
    )
    same(apply(lambda v: B.cat([v, B.neg(v), v], 1), x), np.concatenate([x, -x, x], 1))


@pytest.mark.parametrize(
    ("start", "size", "step"), [(0, 5, 2), (1, 3, 3), (9, 10, -1), (8, 4, -2), (3, 0, 1), (4, 1, 1)]
)
def test_slices(start, size, step):
    x = np.arange(20).reshape(10, 2)
    got = apply(lambda v: B.slice_(v, (start, 1), (size, 1), (step, 1)), x)
    same(got, x[[start + step * i for i in range(size)], 1:])


@pytest.mark.parametrize("d", [f32, i32, bool_], ids=repr)
def test_pads(d):
    x = np.ones((2, 3), d.np)
    want = np.zeros((5, 8), d.np)
    want[1:4:2, 0:7:3] = 1
    same(apply(lambda v: B.pad(v, (1, 0), (1, 1), (1, 2)), x), want)
    assert not apply(lambda v: B.pad(v, (2, 0), (1, 0)), np.zeros((0, 3), d.np)).any()


WINDOWS = [(1, 3, 1, 1), (1, 3, 2, 1), (0, 2, 1, 3), (1, 4, 3, 2), (0, 1, 2, 1), (1, 2, 5, 1)]


@pytest.mark.parametrize(("axis", "size", "stride", "dilation"), WINDOWS)
def test_window_and_fold(axis, size, stride, dilation):
    x = rng().integers(0, 9, (7, 11)).astype(float)
    got = apply(lambda v: B.window(v, axis, size, stride, dilation), x)
    for i, k in itertools.product(range(got.shape[axis]), range(size)):
        same(got.take(i, axis)[..., k], x.take(i * stride + k * dilation, axis))
    y = rng(1).integers(0, 9, got.shape).astype(float)


    def fold(v):
        return B.fold(v, axis, x.shape[axis], stride, dilation)

    back = apply(fold, y)
    assert (got * y).sum() == (x * back).sum()  # fold is the adjoint of window
    same(apply(fold, y.astype("f")), back.astype("f"))


# reducing ---------------------------------------------------------------------------------


def test_reductions():
    x = rng().standard_normal((3, 4, 5))
    same(apply(lambda v: B.max_(v, (0, 2)), x), x.max((0, 2)))
    np.testing.assert_allclose(apply(lambda v: B.sum_(v, 1), x), x.sum(1), rtol=1e-15)
    assert apply(lambda v: B.sum_(v, 1, keepdims=True), x).shape == (3, 1, 5)
    big = np.full(1 << 16, 0.1, np.float32)
    assert apply(B.sum_, big) == np.float32(big.astype(float).sum())
    same(apply(B.sum_, np.array([200, 100], np.uint8)), np.array(300))
    same(apply(B.sum_, np.array([True, True])), np.array(2))
    same(apply(lambda v: B.sum_(v, 0), np.zeros((0, 3), "f")), np.zeros(3, "f"))
    same(apply(row(Op.REDUCE, "sum", (0,)), np.array([2**31 - 1, 1], np.int32)),
         np.array(-(2**31), np.int32))
    same(apply(lambda v: B.max_(v, 0), np.array([[True, False], [False, False]])),
         np.array([True, False]))


CONTRACTIONS = [
    ("ij,jk->ik", (3, 4), (4, 5)),
    ("ij,kj->ki", (3, 4), (5, 4)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    ("ibj,jkb->kib", (3, 2, 4), (4, 5, 2)),
    ("i,i->", (4,), (4,)),
    ("i,j->ij", (3,), (4,)),
    ("ij,ij->ij", (3, 4), (3, 4)),
    (",->", (), ()),
    ("i,->i", (3,), ()),
    ("nihwkl,oikl->nohw", (2, 3, 4, 4, 2, 2), (5, 3, 2, 2)),
    ("ij,jk->ik", (3, 0), (0, 5)),
    ("ij,jk->ik", (0, 4), (4, 5)),
]


@pytest.mark.parametrize("d", [f32, f64, i32, u8], ids=repr)
@pytest.mark.parametrize(("spec", "left", "right"), CONTRACTIONS, ids=[c[0] for c in CONTRACTIONS])
def test_contract_is_einsum(spec, left, right, d):
    a = rng(1).integers(-9, 9, left).astype(d.np)
    b = rng(2).integers(-9, 9, right).astype(d.np)
    labels = [[ord(c) for c in part] for part in spec.replace("->", ",").split(",")]
    got = apply(lambda x, y: B.contract(x, y, *labels), a, b)
    same(got + d.np.type(0), np.einsum(spec, a, b) + d.np.type(0))


def test_contract_of_f32_rounds_once():
    a, b = (rng(s).standard_normal((50, 50)).astype("f") for s in (1, 2))
    got = apply(lambda x, y: B.contract(x, y, (0, 1), (1, 2), (0, 2)), a, b)
    same(got, (a.astype(float) @ b.astype(float)).astype("f"))


# indexed, state, markers ------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("d", INTS, ids=repr)
def test_gather_and_scatter_add(axis, d):
    x = rng().integers(0, 9, (4, 5, 6)).astype(np.float32)
    index = rng(1).integers(0, 4, (2, 3)).astype(d.np)
    got = apply(lambda v, i: B.gather(v, i, axis), x, index)
    same(got, np.take(x, index.astype(int), axis))
    y = rng(2).integers(0, 9, got.shape).astype(np.float32)
    back = apply(lambda v, i: B.scatter_add(v, i, axis, x.shape[axis]), y, index)
    assert (got * y).sum() == (x * back).sum()  # scatter_add is the adjoint of gather


def test_gather_by_a_scalar_and_of_nothing():
    x = np.arange(6.0).reshape(2, 3)
    same(apply(lambda v: B.gather(v, 1, 1), x), x[:, 1])
    none = np.zeros((0,), np.int64)
    assert apply(lambda v, i: B.gather(v, i, 0), np.zeros((0, 3)), none).shape == (0, 3)
    assert not apply(lambda v, i: B.scatter_add(v, i, 0, 4), np.zeros((0, 3)), none).any()


@pytest.mark.parametrize("bad", [-1, 3, 250])
def test_indices_are_checked(bad):
    x = np.zeros((3, 2), np.float32)
    index = np.array([0, bad, 1], np.int16)
    with pytest.raises(IndexError) as caught:
        apply(lambda v, i: B.gather(v, i, 0), x, index)
    assert isinstance(caught.value, BoundsError)
    message = str(caught.value)
    assert message.startswith("gather (at test_evaluate.py:")
    assert f"index {bad} is out of range for axis 0: f32[3,2] (test_evaluate.py:" in message
    assert message.endswith("0 <= index < 3")
    with pytest.raises(BoundsError, match=f"scatter_add .*index {bad} .*index < 3"):
        apply(lambda v, i: B.scatter_add(v, i, 0, 3), np.zeros((3, 2)), index)


def test_assign_gives_a_new_array():
    data = np.zeros((3, 4), np.float32)
    x = leaf(data, 0)
    first = B.assign(x, 1.0, (2, 0), (2, 2), (-2, 3))
    both = B.assign(first, 5, (1, 1), (1, 1))
    want = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1]], "f")
    got = evaluate([first, both, B.assign(x, 7)], {0: data})
    same(got[0], want)
    want[1, 1] = 5
    same(got[1], want)
    same(got[2], np.full((3, 4), 7, "f"))
    assert not data.any()


def test_markers_do_nothing():
    x = np.arange(3.0)
    for fn in (B.detach, B.materialize, B.boundary, lambda v: B.copy(v, "cuda:0")):
        same(apply(fn, x), x)
    same(apply(lambda v: B.together([B.neg(v), B.exp(v)], [v])[1], x), np.exp(x))


def test_every_op_was_evaluated():
    """The tests of this file are complete: each op is named in one of them."""
    text = Path(__file__).read_text(encoding="utf-8")
    named = {Op.AND: "B.and_", Op.OR: "B.or_", Op.SHL: "B.shl", Op.SHR: "B.shr", Op.VAR: "B.var"}
    named |= {Op.SLICE: "B.slice_", Op.ASSIGN: "B.assign", Op.BUFFER: "B.buffer"}
    for op in OPS:
        calls = (named.get(op, ""), f"Op.{op.name}", f"B.{op.value}")
        assert any(c and c in text for c in calls), op


def test_deep_graphs():
    x = leaf(np.ones(3, "f"), 0)
    out = x
    for _ in range(10_000):
        out = B.add(out, x)
    same(evaluate([out], {0: np.ones(3, "f")})[0], np.full(3, 10_001, "f"))


def test_values_are_dropped_when_read():
    """A long chain of large arrays needs the memory of a few of them."""
    import tracemalloc

    data = np.ones(1 << 20, np.float32)
    out = leaf(data, 0)
    for _ in range(30):
        out = B.add(out, 1.0)
    tracemalloc.start()
    evaluate([out], {0: data})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * data.nbytes


def test_warnings_are_silent(recwarn):
    apply(lambda v: B.log(B.sub(v, v)), np.array([1.0, math.inf]))
    apply(lambda v: B.idiv(v, 0), np.array([1]))
    apply(lambda v: B.cast(v, i8), np.array([math.nan, 1e30]))
    assert not recwarn.list
