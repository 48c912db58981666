"""The op table: complete in every interpretation, and each type rule's refusals."""

from __future__ import annotations

import pytest

from tinyc.diagnostics import AxisError, DTypeError, ShapeError
from tinyc.ir import build as B
from tinyc.ir.autograd import VJP
from tinyc.ir.dtype import bool_, f32, f64, i32, i64, u8
from tinyc.ir.evaluate import EVAL
from tinyc.ir.node import node
from tinyc.ir.ops import ELEMENTWISE, LEAVES, OPS, VIEWS, Op
from tinyc.ir.views import INDEX

FAMILIES = {"leaf", "elementwise", "view", "reduce", "indexed", "state", "marker"}


def buf(*shape, dtype=f32, uid=1):
    return B.buffer(uid, 0, shape, dtype, "cpu")


@pytest.mark.parametrize("op", Op, ids=lambda op: op.value)
def test_every_op_has_its_rows(op):
    spec = OPS[op]
    assert spec.family in FAMILIES
    assert spec.doc
    assert spec.flops_per_element >= 0
    assert op in EVAL
    assert op in VJP
    assert (op in INDEX) == (spec.family in ("view", "marker"))
    assert op.value == op.name.lower()


def test_tables_have_no_other_rows():
    for table in (OPS, EVAL):
        assert list(table) == list(Op)  # the same order, for the eye
    assert set(VJP) == set(Op)
    assert len(LEAVES) == 4
    assert len(VIEWS) == 7
    assert all(OPS[op].arity in (1, 2, 3) for op in ELEMENTWISE)
    assert [op for op, spec in OPS.items() if spec.arity is None] == [Op.CAT, Op.TOGETHER]


X, Y, WIDE = buf(3, 4), buf(3, 5, uid=2), buf(3, 4, dtype=f64, uid=3)
INT, BOOL = buf(3, 4, dtype=i32, uid=4), buf(3, 4, dtype=bool_, uid=5)

REFUSED = [
    (Op.ADD, (X, Y), (), ShapeError, "add .*shapes differ: f32.3,4. .* and f32.3,5. "),
    (Op.ADD, (X, WIDE), (), DTypeError, "dtypes differ.*f32.* and f64.*cast"),
    (Op.ADD, (BOOL, BOOL), (), DTypeError, "add.*no such operation on bool.*integer or floating"),
    (Op.NEG, (BOOL,), (), DTypeError, "neg.*bool"),
    (Op.EXP, (INT,), (), DTypeError, "exp.*on i32.*floating"),
    (Op.DIV, (INT, INT), (), DTypeError, "div.*on i32"),
    (Op.POW, (INT, INT), (), DTypeError, "pow.*on i32"),
    (Op.FLOOR, (INT,), (), DTypeError, "floor"),
    (Op.AND, (X, X), (), DTypeError, "and.*on f32.*bool or integer"),
    (Op.SHL, (BOOL, BOOL), (), DTypeError, "shl.*integer"),
    (Op.WHERE, (X, X, X), (), DTypeError, "condition is not bool.*x != 0"),
    (Op.WHERE, (BOOL, X, WIDE), (), DTypeError, "where.*dtypes differ"),
    (Op.WHERE, (BOOL, Y, Y), (), ShapeError, "where.*shapes differ"),
    (Op.BITCAST, (X,), (f64,), DTypeError, "f32 cannot be read as f64.*same width"),
    (Op.BITCAST, (buf(2, dtype=u8),), (bool_,), DTypeError, "neither is bool"),
    (Op.IOTA, (), (-1, i64), ShapeError, "its length is -1"),
    (Op.IOTA, (), (2, bool_), DTypeError, "no iota of bool"),
    (Op.VAR, (), ("n", 3, 2), ShapeError, "n has no value in 3 to 2"),
    (Op.RESHAPE, (X,), ((5, 2),), ShapeError, "cannot become .5,2.: f32.3,4.*stays 12, not 10"),
    (Op.RESHAPE, (X,), ((-3, -4),), ShapeError, "reshape"),
    (Op.PERMUTE, (X,), ((0, 0),), AxisError, "is no order of the axes"),
    (Op.EXPAND, (X,), ((3, 4), (1, 0)), AxisError, "ascending"),
    (Op.EXPAND, (X,), ((3, 4), (0,)), AxisError, "one output axis for each"),
    (Op.EXPAND, (X,), ((3, 4), (0, 2)), AxisError, "does not place"),
    (Op.EXPAND, (X,), ((6, 4), (0, 1)), ShapeError, "cannot become .6,4.*axis 0 has 3"),
    (Op.EXPAND, (buf(),), ((-1,), ()), ShapeError, "negative"),
    (Op.SLICE, (X,), ((0,), (1,), (1,)), AxisError, "one start, size and step for each"),
    (Op.SLICE, (X,), ((0, 2), (3, 3), (1, 1)), ShapeError, "elements 2 to 4 of axis 1.*0 to 3"),
    (Op.SLICE, (X,), ((1, 0), (3, 1), (-1, 1)), ShapeError, "elements 1 to -1 of axis 0"),
    (Op.SLICE, (X,), ((0, 0), (3, 4), (1, 0)), ShapeError, "steps are not 0"),
    (Op.PAD, (X,), ((1,), (1,), (0,)), AxisError, "one lo, hi and interior"),
    (Op.PAD, (X,), ((0, -1), (0, 0), (0, 0)), ShapeError, "not negative; slice"),
    (Op.WINDOW, (X,), (2, 1, 1, 1), AxisError, "no axis 2.*0 to 1"),
    (Op.WINDOW, (X,), (1, 3, 1, 2), ShapeError, "spans 5 elements and the axis has 4; pad"),
    (Op.WINDOW, (X,), (1, 0, 1, 1), ShapeError, "at least 1"),
    (Op.CAT, (X, Y), (0,), ShapeError, "do not fit along axis 0.*f32.3,4.*f32.3,5."),
    (Op.CAT, (X, WIDE), (0,), DTypeError, "cat.*dtypes differ"),
    (Op.REDUCE, (X,), ("sum", ()), AxisError, "at least one"),
    (Op.REDUCE, (X,), ("sum", (1, 0)), AxisError, "ascending"),
    (Op.REDUCE, (X,), ("max", (2,)), AxisError, "max.*no axis 2"),
    (Op.REDUCE, (X,), ("prod", (1,)), ValueError, "sum or max"),
    (Op.REDUCE, (BOOL,), ("sum", (1,)), DTypeError, "sum.*bool"),
    (Op.REDUCE, (buf(0, 3),), ("max", (0,)), ShapeError, "empty maximum has no value"),
    (Op.CONTRACT, (X, Y), ((0, 1), (2, 1), (0, 2)), ShapeError,
     "contract .*dimensions differ: f32.3,4. .* and f32.3,5. .*"
     "axis 1 of the first is 4, axis 1 of the second is 5"),
    (Op.CONTRACT, (X, WIDE), ((0, 1), (2, 1), (0, 2)), DTypeError, "dtypes differ"),
    (Op.CONTRACT, (BOOL, BOOL), ((0, 1), (2, 1), (0, 2)), DTypeError, "bool"),
    (Op.CONTRACT, (X, X), ((0, 0), (1, 2), (0,)), AxisError, "repeated"),
    (Op.CONTRACT, (X, X), ((0, 1), (2, 1), (0,)), AxisError, "label 2 stands alone.*sum over"),
    (Op.CONTRACT, (X, X), ((0,), (0, 1), (1,)), AxisError, "1 labels for 2 axes"),
    (Op.CONTRACT, (X, X), ((0, 1), (0, 1), (0, 7)), AxisError, "label 7 stands alone"),
    (Op.FOLD, (X,), (0, 7, 1, 1), ShapeError, "3 windows on axis 0.*4 windows of 4"),
    (Op.FOLD, (X,), (1, 7, 1, 1), AxisError, "no axis 1"),
    (Op.SCATTER_ADD, (X, INT), (1, 9), ShapeError, "do not hold the index at axis 1"),
    (Op.SCATTER_ADD, (X, X), (0, 9), DTypeError, "indices are integers"),
    (Op.GATHER, (X, X), (0,), DTypeError, "gather.*on f32.*indices are integers"),
    (Op.GATHER, (X, INT), (2,), AxisError, "no axis 2"),
    (Op.ASSIGN, (B.neg(X), X), ((0, 0), (3, 4), (1, 1)), ValueError, "the target is a neg"),
    (Op.ASSIGN, (X, WIDE), ((0, 0), (3, 4), (1, 1)), DTypeError, "assign"),
    (Op.ASSIGN, (X, X), ((0, 0), (2, 4), (1, 1)), ShapeError, "does not fill the region .2, 4."),
    (Op.ASSIGN, (X, X), ((1, 0), (3, 4), (1, 1)), ShapeError, "elements 1 to 3 of axis 0"),
]


@pytest.mark.parametrize(
    ("op", "src", "attrs", "error", "message"), REFUSED, ids=[r[0].value for r in REFUSED]
)
def test_type_rules_refuse(op, src, attrs, error, message):
    with pytest.raises(error, match=message):
        node(op, src, attrs)


def test_a_message_names_the_users_lines():
    a = buf(7, uid=91)
    b = buf(8, uid=92)
    with pytest.raises(ShapeError) as caught:
        B.add(a, b)
    base = a.origin[1]
    file = "test_ops.py"
    here = next(t.lineno for t in caught.traceback if t.path.name == file) + 1
    assert str(caught.value) == (
        f"add (at {file}:{here}): shapes do not broadcast:"
        f" f32[7] ({file}:{base}) and f32[8] ({file}:{base});"
        " axis -1 is 7 and 8; sizes are equal or 1, counted from the end;"
        " reshape, unsqueeze or transpose an operand"
    )


ACCEPTED = [
    (Op.CAST, (X,), (i64,), (3, 4), i64),
    (Op.LT, (X, X), (), (3, 4), bool_),
    (Op.RESHAPE, (X,), ((2, 6),), (2, 6), f32),
    (Op.PERMUTE, (X,), ((1, 0),), (4, 3), f32),
    (Op.EXPAND, (X,), ((3, 7, 4), (0, 2)), (3, 7, 4), f32),
    (Op.EXPAND, (buf(1, 4),), ((9, 4), (0, 1)), (9, 4), f32),
    (Op.SLICE, (X,), ((2, 0), (3, 2), (-1, 3)), (3, 2), f32),
    (Op.PAD, (X,), ((1, 0), (2, 0), (0, 2)), (6, 10), f32),
    (Op.PAD, (buf(0),), ((1,), (2,), (5,)), (3,), f32),
    (Op.WINDOW, (buf(2, 10),), (1, 3, 2, 2), (2, 3, 3), f32),
    (Op.FOLD, (buf(2, 3, 3),), (1, 10, 2, 2), (2, 10), f32),
    (Op.CAT, (X, Y), (1,), (3, 9), f32),
    (Op.REDUCE, (X,), ("sum", (0, 1)), (), f32),
    (Op.REDUCE, (BOOL,), ("max", (1,)), (3,), bool_),
    (Op.REDUCE, (buf(0, 3),), ("sum", (0,)), (3,), f32),
    (Op.CONTRACT, (buf(2, 3, 4), buf(2, 4, 5)), ((0, 1, 2), (0, 2, 3), (0, 3, 1)), (2, 5, 3), f32),
    (Op.SCATTER_ADD, (buf(2, 3, 4, 5), INT), (1, 9), (2, 9, 5), f32),
    (Op.GATHER, (buf(2, 9, 5), INT), (1,), (2, 3, 4, 5), f32),
    (Op.COPY, (X,), ("cuda:0",), (3, 4), f32),
]


@pytest.mark.parametrize(
    ("op", "src", "attrs", "shape", "dtype"), ACCEPTED, ids=[r[0].value for r in ACCEPTED]
)
def test_type_rules_infer(op, src, attrs, shape, dtype):
    made = node(op, src, attrs)
    assert (made.shape, made.dtype) == (shape, dtype)
