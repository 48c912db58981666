"""Smart constructors: promotion, broadcasting, plain views, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from tinyc.diagnostics import AxisError, DTypeError, ShapeError
from tinyc.ir import build as B
from tinyc.ir.dtype import bool_, f32, f64, i8, i32, i64, u8, u32
from tinyc.ir.evaluate import evaluate
from tinyc.ir.ops import Op
from tinyc.ir.simplify import simplify


def buf(*shape, dtype=f32, uid=1):
    return B.buffer(uid, 0, shape, dtype, "cpu")


def run(out, *arrays):
    """The value of `out`, with buffer k holding arrays[k-1]."""
    return evaluate([out], dict(enumerate(arrays, 1)))[0]


X, ROW, COL = buf(3, 4), buf(4, uid=2), buf(3, 1, uid=3)
INT, BOOL = buf(3, 4, dtype=i32, uid=4), buf(3, 4, dtype=bool_, uid=5)


def test_equal_operands_make_one_node():
    out = B.add(X, X)
    assert (out.op, out.src) == (Op.ADD, (X, X))


def test_broadcasting_is_written_out():
    out = B.mul(X, ROW)
    assert out.src[1].op is Op.EXPAND
    assert out.src[1].attrs == ((3, 4), (1,))
    assert B.add(ROW, COL).shape == (3, 4)
    assert B.add(COL, ROW).src[0].attrs == ((3, 4), (0, 1))
    assert B.add(buf(0, 1), buf(5)).shape == (0, 5)
    assert B.broadcast_shape("op", (X, ROW, COL, B.const(1))) == (3, 4)


def test_promotion_is_written_out():
    out = B.add(X, INT)
    assert out.dtype is f32
    assert out.src[1] is B.cast(INT, f32)
    assert B.add(buf(2, dtype=u8), buf(2, dtype=i8)).dtype.name == "i16"


def test_python_numbers_take_the_tensors_dtype():
    assert B.add(X, 2) is B.add(X, 2.0)
    assert B.mul(INT, 2).dtype is i32
    assert B.mul(INT, 2.5).dtype is f32
    assert B.add(BOOL, 1).dtype is i64
    assert B.sub(1, X).src[0].src[0] is B.const(1.0)
    assert B.add(X, np.float64(2)) is B.add(X, 2.0)
    assert B.add(1, 2) is B.add(B.const(1), B.const(2))


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(DTypeError, match=r"lt .*the number 300 is no u8: u8\[2\].*holds 0 to 255"):
        B.lt(buf(2, dtype=u8), 300)
    with pytest.raises(DTypeError, match=r"const: -1 is no value of u32"):
        B.full((2,), -1, u32)
    with pytest.raises(DTypeError, match="add: list is no operand"):
        B.add(X, [1, 2])


def test_broadcast_errors_name_axis_and_sizes():
    with pytest.raises(ShapeError, match=r"maximum .*f32\[3,4\].*f32\[3\].*axis -1 is 4 and 3"):
        B.maximum(X, buf(3))
    with pytest.raises(ShapeError, match=r"where .*shapes do not broadcast"):
        B.where(BOOL, X, buf(5))
    with pytest.raises(ShapeError, match=r"^le "):
        B.le(X, buf(3))
    with pytest.raises(ShapeError, match=r"^gt "):
        B.gt(X, buf(3))


def test_division_of_integers_is_true_division():
    out = B.div(INT, 2)
    assert out.dtype is f32
    assert B.div(buf(2, dtype=f64), 2).dtype is f64
    assert B.idiv(INT, 2).op is Op.IDIV
    assert B.mod(INT, 2.0).dtype is f32


def test_functions_of_integers_are_floating():
    for fn in (B.exp, B.log, B.sqrt, B.sin, B.cos, B.tanh, B.erf):
        assert fn(INT).dtype is f32
        assert fn(BOOL).dtype is f32
        assert fn(buf(2, dtype=f64)).dtype is f64
    assert B.floor(INT) is INT


def test_arithmetic_of_bools():
    assert B.add(BOOL, BOOL).op is Op.OR
    assert B.mul(BOOL, True).op is Op.AND
    assert B.maximum(BOOL, BOOL).op is Op.MAX
    for fn in (B.sub, B.idiv, B.mod):
        with pytest.raises(DTypeError, match="on bool"):
            fn(BOOL, BOOL)
    assert B.sub(BOOL, 1).dtype is i64
    with pytest.raises(DTypeError, match="neg"):
        B.neg(BOOL)


def test_pow_multiplies_where_that_is_exact():
    assert B.pow(X, 1) is X
    assert B.pow(X, 2) is B.mul(X, X)
    assert B.pow(X, 3.0) is B.mul(X, B.mul(X, X))
    assert B.pow(X, 0.5) is B.sqrt(X)
    assert B.pow(X, -1) is B.div(1.0, X)
    assert B.pow(X, 2.5).op is Op.POW
    assert B.pow(X, X).op is Op.POW
    assert B.pow(2.0, X).op is Op.POW
    assert B.pow(INT, 0) is B.full((3, 4), 1, i32)
    base = np.array([-3, 0, 1, 2, 7], np.int32)
    for e in (0, 1, 2, 5, 13):
        got = run(B.pow(buf(5, dtype=i32), e), base)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, base**e)
    with pytest.raises(DTypeError, match="raised to a Python number that is not negative"):
        B.pow(INT, -1)
    with pytest.raises(DTypeError, match="pow"):
        B.pow(INT, INT)


def test_comparisons_are_right_for_nan():
    a = np.array([1, 2, 3, np.nan, np.nan], np.float32)
    b = np.array([2, 2, 2, 2, np.nan], np.float32)
    x, y = buf(5), buf(5, uid=2)
    for fn, want in [(B.lt, a < b), (B.le, a <= b), (B.gt, a > b), (B.ge, a >= b),
                     (B.eq, a == b), (B.ne, a != b)]:
        np.testing.assert_array_equal(run(fn(x, y), a, b), want)


@pytest.mark.parametrize("d", [bool_, u8, i8, i64], ids=repr)
def test_invert(d):
    values = np.array([0, 1, 1, 0]).astype(d.np)
    np.testing.assert_array_equal(run(B.invert(buf(4, dtype=d)), values), ~values)
    with pytest.raises(DTypeError, match=r"invert.*on f32"):
        B.invert(X)


def test_where_broadcasts_and_promotes():
    out = B.where(B.lt(COL, 0.0), INT, 1.5)
    assert (out.shape, out.dtype) == ((3, 4), f32)
    assert B.where(True, X, 0).shape == (3, 4)
    with pytest.raises(DTypeError, match="compare first"):
        B.where(X, X, X)


def test_casts():
    assert B.cast(X, f32) is X
    assert B.bitcast(X, f32) is X
    assert B.bitcast(X, u32).dtype is u32


# views ------------------------------------------------------------------------------------


def test_views_that_do_nothing_vanish():
    assert B.reshape(X, (3, 4)) is X
    assert B.permute(X, (0, 1)) is X
    assert B.expand(X, (3, 4)) is X
    assert B.slice_(X, (0, 0), (3, 4)) is X
    assert B.pad(X, (0, 0), (0, 0)) is X
    assert B.cat([X]) is X
    assert B.copy(X, "cpu") is X
    assert B.materialize(X) is X
    assert B.detach(B.detach(X)) is B.detach(X)


def test_a_view_of_a_view_depends_on_it():
    """A handle of a view finds its node behind whatever is computed from it; passes merge them."""
    views = [B.reshape(X, (12,)), B.permute(X, (1, 0)), B.expand_axes(X, (3, 1, 4), (0, 2)),
             B.slice_(X, (1, 0), (2, 4))]  # fmt: skip
    again = [B.reshape(views[0], (3, 4)), B.permute(views[1], (1, 0)),
             B.expand(views[2], (3, 5, 4)), B.slice_(views[3], (0, 0), (1, 4))]  # fmt: skip
    for view, other in zip(views, again):
        assert other.src == (view,)
    merged = [X, X, B.expand_axes(X, (3, 5, 4), (0, 2)), B.slice_(X, (1, 0), (1, 4))]
    assert [simplify((other,))[0] for other in again] == merged


def test_reshapes():
    assert B.reshape(X, (-1,)).shape == (12,)
    assert B.reshape(buf(0, 3), (3, 0)).shape == (3, 0)
    for bad in ((5, -1), (-1, -1), (0, -1)):
        with pytest.raises(ShapeError, match=r"reshape .*f32\[3,4\]"):
            B.reshape(X, bad)


def test_permutes():
    x = buf(2, 3, 4)
    assert B.permute(x, (-1, 0, 1)).shape == (4, 2, 3)
    with pytest.raises(AxisError, match="no axis 3"):
        B.permute(x, (0, 1, 3))
    with pytest.raises(AxisError, match="is no order"):
        B.permute(B.permute(x, (1, 2, 0)), (0, 1))


def test_expands():
    once = B.expand_axes(ROW, (3, 1, 4), (2,))
    with pytest.raises(ShapeError, match=r"cannot become \[2,1,4\]: f32\[3,1,4\]"):
        B.expand_axes(once, (2, 1, 4), (0, 1, 2))
    with pytest.raises(ShapeError, match="at least as many axes"):
        B.expand(X, (4,))
    with pytest.raises(ShapeError, match=r"cannot become \[3,8\]"):
        B.expand(X, (3, 8))


def test_slices():
    inner = B.slice_(buf(20), (2,), (8,), (2,))  # 2 4 .. 16
    assert B.slice_(inner, (7,), (3,), (-2,)).shape == (3,)
    with pytest.raises(ShapeError, match="elements 7 to 8 of axis 0"):
        B.slice_(inner, (7,), (2,), (1,))


def test_short_slices_have_one_spelling():
    x = buf(20)
    assert B.slice_(x, (5,), (1,), (-3,)) is B.slice_(x, (5,), (1,), (1,))
    assert B.slice_(x, (5,), (0,), (2,)) is B.slice_(x, (0,), (0,), (1,))
    with pytest.raises(AxisError, match="one start"):
        B.slice_(X, (0,), (1,))


def test_pads():
    assert B.pad(X, (1, 0), (0, 2)).shape == (4, 6)
    assert B.pad(buf(1), (0,), (0,), (3,)).shape == (1,)
    assert B.pad(buf(3), (0,), (0,), (3,)).shape == (9,)
    with pytest.raises(ShapeError, match="not negative"):
        B.pad(X, (-1, 0), (0, 0))


def test_cat_promotes_and_drops_empty_pieces():
    assert B.cat([X, INT], 1).dtype is f32
    assert B.cat([X, buf(0, 4), X]) is B.cat([X, X])
    assert B.cat([buf(0, 4), X]) is X
    assert B.cat([buf(0, 4), buf(0, 4, uid=9)]).shape == (0, 4)
    assert B.cat([X, X], -1).shape == (3, 8)
    with pytest.raises(ShapeError, match="do not fit along axis 0"):
        B.cat([X, buf(0, 5)])
    with pytest.raises(ShapeError, match="of nothing"):
        B.cat([])


# reducing ---------------------------------------------------------------------------------


def test_sums_of_integers_are_i64():
    for d in (bool_, u8, i32, i64):
        assert B.sum_(buf(3, dtype=d)).dtype is i64
    assert B.sum_(INT, ()).dtype is i64
    assert B.max_(INT, 1).dtype is i32
    assert B.max_(BOOL).dtype is bool_


def test_axes_of_reductions():
    assert B.sum_(X).shape == ()
    assert B.sum_(X, -1).shape == (3,)
    assert B.sum_(X, (1, 0)) is B.sum_(X)
    assert B.sum_(X, ()) is X
    assert B.sum_(X, 1, keepdims=True).shape == (3, 1)
    assert B.sum_(X, None, keepdims=True).shape == (1, 1)
    assert B.max_(buf(), None) is buf()
    with pytest.raises(AxisError, match=r"sum .*no axis 2: f32\[3,4\].*axes run from -2 to 1"):
        B.sum_(X, 2)
    with pytest.raises(AxisError, match="named twice"):
        B.sum_(X, (1, -1))
    with pytest.raises(AxisError, match="it has no axes"):
        B.max_(buf(), 0)


def test_keepdims_is_an_expand():
    assert B.max_(X, 1, keepdims=True) is B.expand_axes(B.max_(X, 1), (3, 1), (0,))


def test_contract_labels_are_canonical():
    a, b = buf(3, 4), buf(4, 5, uid=2)
    out = B.contract(a, b, (7, 9), (9, 1), (7, 1))
    assert out.attrs == ((0, 1), (1, 2), (0, 2))
    assert out is B.contract(a, b, (0, 1), (1, 2), (0, 2))
    assert B.contract(a, buf(4, 5, dtype=i32), (0, 1), (1, 2), (0, 2)).dtype is f32


def test_window_and_fold_undo_each_others_shapes():
    x = buf(2, 10)
    w = B.window(x, -1, 3, stride=2, dilation=2)
    assert w.shape == (2, 3, 3)
    assert B.fold(w, -1, 10, stride=2, dilation=2).shape == (2, 10)


# indexed, state ---------------------------------------------------------------------------


def test_gather_and_scatter_shapes():
    index = buf(2, 2, dtype=i64, uid=6)
    assert B.gather(X, index, -1).shape == (3, 2, 2)
    assert B.gather(X, 1).shape == (4,)
    assert B.scatter_add(buf(3, 2, 2), index, -1, 9).shape == (3, 9)
    assert B.scatter_add(buf(2, 2, 5), index, 0, 9).shape == (9, 5)
    with pytest.raises(DTypeError, match="indices are integers"):
        B.gather(X, X)


def test_assign_casts_and_expands():
    out = B.assign(X, 1)
    assert out.attrs == ((0, 0), (3, 4), (1, 1))
    assert out.src[1] is B.full((3, 4), 1.0)
    assert B.assign(X, INT).src[1].dtype is f32
    part = B.assign(out, ROW, (2, 0), (1, 4))
    assert part.src[0] is out
    with pytest.raises(ValueError, match="the target is a add"):
        B.assign(B.add(X, X), 1)
