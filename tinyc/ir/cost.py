"""What things cost: operator weights and the work of a stage."""
from __future__ import annotations

import math
from collections.abc import Iterable

from tinyc.ir.index import Var
from tinyc.ir.loop import Apply, Expr, children, indices, walk
from tinyc.ir.ops import Op
from tinyc.ir.plan import Stage

# Operations of a multiply-add pipe that one scalar operator is worth.
WEIGHT = {
    Op.DIV: 6, Op.SQRT: 6, Op.IDIV: 12, Op.MOD: 12, Op.EXP: 12, Op.LOG: 14, Op.SIN: 14,
    Op.COS: 14, Op.TANH: 16, Op.ERF: 16, Op.POW: 30,
}


def expression_weight(expr: Expr) -> int:
    """Weighted operators of one evaluation: shared subexpressions count once, and those that no
    loop variable changes not at all, since they are computed before the loops."""
    moving: set[int] = set()
    weight = 0
    for e in walk(expr):
        if any(i.free_vars() for i in indices(e)) or any(id(c) in moving for c in children(e)):
            moving.add(id(e))
            weight += WEIGHT.get(e.op, 1) if isinstance(e, Apply) else 0
    return weight


def stage_work(stage: Stage) -> int:
    """Weighted operations of a whole stage; moving an element counts as one."""
    return stage.points() * (1 + expression_weight(stage.expr))


def elements(axes: Iterable[Var]) -> int:
    """How many points variables span."""
    return math.prod(v.extent for v in axes)


