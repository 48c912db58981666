"""What the elements of a value can be, as intervals: enough to prove that terms of a sum are zero.

Values are judged apart on the two sides of an edge, a line between rows and columns that
comparisons of their indices draw: `side` bounds `column - row`, and so decides the comparisons.
Nothing is assumed of a value that is not known: it may be anything, NaN included.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tinyc.ir.dtype import DType
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import Apply, Const, Expr, Index, Read, walk
from tinyc.ir.ops import Op


@dataclass(frozen=True)
class Range:
    """lo <= x <= hi, or NaN where `nan` allows it.

    In each row some element within the edge is `reached` or more, if that is not None.
    """

    lo: float
    hi: float
    nan: bool = False
    reached: float | None = None

    @property
    def is_zero(self) -> bool:
        return self == ZERO

    @property
    def is_finite(self) -> bool:
        return not self.nan and -math.inf < self.lo and self.hi < math.inf


ZERO = Range(0.0, 0.0)
ANYTHING = Range(-math.inf, math.inf, True)
TRUE, FALSE, EITHER = Range(1.0, 1.0), Range(0.0, 0.0), Range(0.0, 1.0)


@dataclass(frozen=True)
class Side:
    """A side of the edge, where lo <= column - row <= hi; `within` is the one that stays."""

    row: Var
    column: Var
    lo: int
    hi: int
    within: bool

    def bounds(self, index: Affine) -> tuple[int, int]:
        """The bounds of an index, which may depend on the difference of column and row."""
        k = index.coeff(self.column)
        if not k or index.coeff(self.row) != -k:
            return index.bounds()
        rest = index - Affine.of(self.column) * k + Affine.of(self.row) * k
        ends = sorted((k * self.lo, k * self.hi))
        lo, hi = rest.bounds()
        return lo + ends[0], hi + ends[1]


def range_of(root: Expr, side: Side, known: Callable[[Read], Range],
             below_top: Callable[[Expr, Expr], bool]) -> Range:
    """What an expression can be on a side of the edge.

    `known` tells what is read; `below_top` whether the first of two expressions is an element of a
    row whose maximum the second one is.
    """
    found: dict[int, Range] = {}
    for e in walk(root):
        if isinstance(e, Read):
            found[id(e)] = ANYTHING if e.guard else known(e)
        elif isinstance(e, Const):
            v = float(e.value)
            found[id(e)] = ANYTHING if math.isnan(v) else Range(v, v)
        elif isinstance(e, Index):
            lo, hi = side.bounds(e.index)
            found[id(e)] = Range(lo, hi)
        elif isinstance(e, Apply):
            args = [found[id(a)] for a in e.args]
            found[id(e)] = applied(e, args, side, below_top)
        else:
            found[id(e)] = ANYTHING
    return found[id(root)]


def applied(e: Apply, args: list[Range], side: Side,
            below_top: Callable[[Expr, Expr], bool]) -> Range:
    """The range of an operator's result."""
    if e.op is Op.WHERE:
        cond, a, b = args
        return a if cond == TRUE else b if cond == FALSE else union(a, b)
    if e.op in (Op.LT, Op.EQ):
        return compared(e, side)
    at_most = gap_at_most(e)
    if at_most is not None:
        lo, hi = side.bounds(at_most)
        return TRUE if lo >= 0 else FALSE if hi < 0 else EITHER
    if e.op in (Op.AND, Op.OR) and e.dtype.kind == "b":
        return both(*args) if e.op is Op.AND else negated(both(*map(negated, args)))
    if e.op is Op.XOR and e.dtype.kind == "b":
        return negated(args[0]) if args[1] == TRUE else args[0] if args[1] == FALSE else EITHER
    if e.dtype.kind != "f":
        return EITHER if e.dtype.kind == "b" else ANYTHING
    rule = RULES.get(e.op)
    found = rounded(rule(*args), e.dtype) if rule else ANYTHING
    if e.op is Op.SUB and args[1].is_finite and not found.nan and below_top(*e.args):
        return replace(found, hi=min(found.hi, 0.0), reached=0.0 if side.within else None)
    return found


def union(a: Range, b: Range) -> Range:
    """What is in one of two ranges."""
    return Range(min(a.lo, b.lo), max(a.hi, b.hi), a.nan or b.nan)


def negated(a: Range) -> Range:
    """The range of `not a`."""
    return Range(1 - a.hi, 1 - a.lo)


def both(a: Range, b: Range) -> Range:
    """The range of `a and b`."""
    return Range(min(a.lo, b.lo), min(a.hi, b.hi))


def compared(e: Apply, side: Side) -> Range:
    """Whether a < b, or a == b: known of index expressions, by the bounds of b - a."""
    gap = gap_of(e)
    if gap is None:
        return EITHER
    lo, hi = side.bounds(gap)
    if e.op is Op.LT:
        return TRUE if lo > 0 else FALSE if hi <= 0 else EITHER
    return FALSE if lo > 0 or hi < 0 else TRUE if lo == hi == 0 else EITHER


def gap_at_most(e: Apply) -> Affine | None:
    """b - a of `a < b or a == b`, if both are indices."""
    if e.op is not Op.OR:
        return None
    less, same = e.args
    if not (isinstance(less, Apply) and less.op is Op.LT):
        return None
    if not (isinstance(same, Apply) and same.op is Op.EQ):
        return None
    first, second = gap_of(less), gap_of(same)
    return first if first is not None and second in (first, -first) else None


def gap_of(e: Apply) -> Affine | None:
    """b - a of an operator on two indices a and b; None if they are none."""
    a, b = map(index_of, e.args)
    return None if a is None or b is None else b - a


def index_of(e: Expr) -> Affine | None:
    """A whole number that an expression computes from loop variables alone, as an index."""
    if isinstance(e, Index):
        return e.index
    if isinstance(e, Const) and e.dtype.kind in "iu":
        return Affine.const_of(int(e.value))
    if not isinstance(e, Apply) or e.dtype.kind not in "iu":
        return None
    args = [index_of(a) for a in e.args]
    if e.op is Op.CAST:
        return args[0]
    if None in args or e.op not in (Op.ADD, Op.SUB, Op.NEG):
        return None
    first, *rest = [a for a in args if a is not None]
    if e.op is Op.NEG:
        return -first
    return first + rest[0] if e.op is Op.ADD else first - rest[0]


def subtracted(a: Range, b: Range) -> Range:
    """The range of a - b."""
    return added(a, Range(-b.hi, -b.lo, b.nan))


def added(a: Range, b: Range) -> Range:
    """The range of a + b; infinities of opposite signs give NaN."""
    clash = (a.hi == math.inf and b.lo == -math.inf) or (a.lo == -math.inf and b.hi == math.inf)
    if clash:
        return Range(-math.inf, math.inf, True)
    return Range(a.lo + b.lo, a.hi + b.hi, a.nan or b.nan)


def multiplied(a: Range, b: Range) -> Range:
    """The range of a * b; zero times infinity gives NaN."""
    for x, y in ((a, b), (b, a)):
        if x.lo <= 0 <= x.hi and math.inf in (y.hi, -y.lo):
            return ANYTHING
    ends = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    return Range(min(ends), max(ends), a.nan or b.nan)


def divided(a: Range, b: Range) -> Range:
    """The range of a / b."""
    if b.lo <= 0 <= b.hi or math.inf in (b.hi, -b.lo):
        return ANYTHING
    return multiplied(a, Range(1 / b.hi, 1 / b.lo, b.nan))


def exponential(a: Range) -> Range:
    """The range of exp(a)."""
    lo, hi = (math.exp(min(x, 700.0)) if x <= 700 else math.inf for x in (a.lo, a.hi))
    return Range(lo, hi, a.nan, None if a.reached is None else math.exp(min(a.reached, 700.0)))


def larger(a: Range, b: Range) -> Range:
    """The range of max(a, b)."""
    return Range(max(a.lo, b.lo), max(a.hi, b.hi), a.nan or b.nan)


def rounded(a: Range, dtype: DType) -> Range:
    """What is near the largest number of a dtype may overflow, what is near the smallest vanish."""
    most = 2.0 ** {"f16": 14, "f64": 1000}.get(dtype.name, 120)
    lo = -math.inf if a.lo < -most else 0.0 if 0 < a.lo < 1 / most else a.lo
    hi = math.inf if a.hi > most else 0.0 if -1 / most < a.hi < 0 else a.hi
    return replace(a, lo=lo, hi=hi)


RULES: Mapping[Op, Callable[..., Range]] = {
    Op.ADD: added, Op.SUB: subtracted, Op.MUL: multiplied, Op.DIV: divided, Op.MAX: larger,
    Op.NEG: lambda a: Range(-a.hi, -a.lo, a.nan), Op.EXP: exponential, Op.CAST: lambda a: a,
    Op.TANH: lambda a: Range(math.tanh(a.lo), math.tanh(a.hi), a.nan),
    Op.ERF: lambda a: Range(math.erf(a.lo), math.erf(a.hi), a.nan),
}


def summed(term: Range, count: int, dtype: DType) -> Range:
    """The range of a sum of up to `count` terms; of at least one that reaches what is reached."""
    if term.is_zero:
        return ZERO
    lo = min(0.0, term.lo * count)
    if term.lo >= 0 and term.reached is not None:
        lo = term.reached
    clash = term.lo == -math.inf and term.hi == math.inf
    found = Range(lo, max(0.0, term.hi * count), term.nan or clash)
    return rounded(found, dtype)


def edges(root: Expr, row: Var, column: Var) -> set[int]:
    """The numbers m for which `column - row <= m` may be what comparisons of indices ask."""
    found = set()
    for e in walk(root):
        if isinstance(e, Apply) and e.op in (Op.LT, Op.EQ):
            gap = gap_of(e)
            if gap is None:
                continue
            k = gap.coeff(column)
            rest = gap - Affine.of(column) * k + Affine.of(row) * k
            if k in (1, -1) and gap.coeff(row) == -k and rest.is_const:
                # lt is true where k * (column - row) + rest > 0
                found.update({-k * rest.const, -k * rest.const - 1})
    return found
