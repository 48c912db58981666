"""Intervals of expressions on the two sides of an edge."""

from __future__ import annotations

import math

import pytest

from tinyc.ir.dtype import bool_, f32, i64
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import Apply, Const, Expr, Index, Read, Storage
from tinyc.ir.ops import Op
from tinyc.ir.plan import Buf
from tinyc.schedule.ranges import ANYTHING, ZERO, Range, Side, edges, range_of, summed

ROW, COLUMN = Var("r", 8), Var("c", 8)
WITHIN, BEYOND = Side(ROW, COLUMN, -7, 0, True), Side(ROW, COLUMN, 1, 7, False)
X = Read(Buf(Storage("x", 64, f32, "arena"), (8, 8), (8, 1)), (Affine.of(ROW), Affine.of(COLUMN)))
TOP = Read(Buf(Storage("m", 8, f32, "arena"), (8,), (1,)), (Affine.of(ROW),))


def op(name: Op, *args: Expr, dtype=f32) -> Apply:
    return Apply(name, args, dtype)


def number(value: float) -> Const:
    return Const(value, f32)


def at(index: Affine) -> Index:
    return Index(index, i64)


KNOWN = Range(-2.0, 3.0)


def judged(root: Expr, side: Side = WITHIN, x: Range = KNOWN, top: bool = False) -> Range:
    known = {X.buf: x, TOP.buf: x}
    return range_of(root, side, lambda read: known[read.buf], lambda a, b: top)


@pytest.mark.parametrize(
    "root, want",
    [
        (op(Op.ADD, X, number(1.0)), Range(-1.0, 4.0)),
        (op(Op.SUB, X, X), Range(-5.0, 5.0)),
        (op(Op.MUL, X, X), Range(-6.0, 9.0)),
        (op(Op.NEG, X), Range(-3.0, 2.0)),
        (op(Op.DIV, X, number(2.0)), Range(-1.0, 1.5)),
        (op(Op.DIV, number(1.0), X), ANYTHING),
        (op(Op.MUL, number(0.0), number(math.inf)), ANYTHING),
        (op(Op.SUB, number(math.inf), number(math.inf)), ANYTHING),
        (op(Op.EXP, number(-math.inf)), ZERO),
        (op(Op.MAX, X, number(0.0)), Range(0.0, 3.0)),
        (op(Op.LOG, X), ANYTHING),
        (number(math.nan), ANYTHING),
        (op(Op.MUL, X, number(1e38)), Range(-math.inf, math.inf)),
    ],
)
def test_arithmetic(root, want):
    assert judged(root) == want


ROW_AT, COLUMN_AT = at(Affine.of(ROW)), at(Affine.of(COLUMN))
LESS = op(Op.LT, COLUMN_AT, ROW_AT, dtype=bool_)
SAME = op(Op.EQ, COLUMN_AT, ROW_AT, dtype=bool_)
CAUSAL = [
    op(Op.OR, LESS, SAME, dtype=bool_),
    op(Op.LT, op(Op.SUB, COLUMN_AT, ROW_AT, dtype=i64), Const(1, i64), dtype=bool_),
    op(Op.XOR, op(Op.LT, ROW_AT, COLUMN_AT, dtype=bool_), Const(True, bool_), dtype=bool_),
]


@pytest.mark.parametrize("cond", CAUSAL)
def test_a_comparison_is_known_on_each_side(cond):
    chosen = op(Op.WHERE, cond, X, number(-math.inf))
    assert judged(chosen, WITHIN) == Range(-2.0, 3.0)
    assert judged(chosen, BEYOND) == Range(-math.inf, -math.inf)
    assert 0 in edges(chosen, ROW, COLUMN)


def test_one_comparison_alone_leaves_both_branches():
    chosen = op(Op.WHERE, LESS, X, number(7.0))
    assert judged(chosen, WITHIN) == Range(-2.0, 7.0)
    assert judged(chosen, BEYOND) == Range(7.0, 7.0)


def test_comparisons_of_numbers_are_not_decided():
    cond = op(Op.LT, X, number(100.0), dtype=bool_)
    assert judged(op(Op.WHERE, cond, number(1.0), number(2.0))) == Range(1.0, 2.0)


def test_a_row_less_its_maximum_reaches_zero():
    shifted = op(Op.EXP, op(Op.SUB, X, TOP))
    found = judged(shifted, WITHIN, top=True)
    assert (found.hi, found.reached) == (1.0, 1.0)
    assert summed(found, 8, f32) == Range(1.0, 8.0)
    assert judged(shifted, BEYOND, top=True).reached is None
    assert judged(shifted, WITHIN, Range(-1.0, math.inf), top=True).nan


@pytest.mark.parametrize(
    "term, want",
    [
        (Range(1.0, 2.0), Range(0.0, 16.0)),
        (Range(-1.0, 2.0), Range(-8.0, 16.0)),
        (ZERO, ZERO),
        (Range(0.0, 1e37), Range(0.0, math.inf)),
        (ANYTHING, ANYTHING),
    ],
)
def test_sums(term, want):
    assert summed(term, 8, f32) == want
