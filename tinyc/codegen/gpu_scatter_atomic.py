"""Sums by index on GPUs with atomic additions: threads share the updates, in any order.

Floats are then added in another order on each run, so this is a form that the user has to ask for.
The result is cleared first; what is added is added by a launch of its own.
"""
from __future__ import annotations

from tinyc.codegen.gpu_scatter import Concrete
from tinyc.codegen.primitives import identity
from tinyc.ir.cost import elements
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import For, Stmt, Store
from tinyc.ir.plan import Nest, Stage
from tinyc.ir.program import Target

# What a language adds atomically.
TYPES = {"cuda": ("f32", "f64", "i32", "u32", "i64", "u64"), "opencl": ("f32", "i32", "u32")}
# Up to so many updates a block has looked through before a second launch has begun.
FEW = 128


def ordered(nest: Nest, target: Target) -> str:
    """Why the updates of a scatter are added in order; empty where they are added atomically."""
    stage = nest.stages()[0]
    updates = elements(stage.red)
    if not target.atomics:
        return "so that results are the same bits on every run; TINYC_DETERMINISTIC=0 allows others"
    if stage.dtype.name not in TYPES[target.language]:
        return f"since {target.language} adds no {stage.dtype} atomically"
    if nest.finish or 0 in stage.buf.shape:
        return "since the end of the kernel is for something else"
    which = updates // max(1, elements(tuple(columns(stage))))
    return f"since there are {which}, which are soon looked through" if which <= FEW else ""


def columns(stage: Stage) -> list[Var]:
    """The variables of the updates that are places of the result."""
    found = [i.as_var() for i in stage.target]
    return [v for v in found if v is not None]


class AtomicScatter:
    """Makes the statements of a scatter: `body` clears the result, `finish` adds the updates."""

    def __init__(self, stage: Stage, target: Target, concrete: Concrete, note: str) -> None:
        self.stage, self.concrete, self.note = stage, concrete, note
        self.blocks = max(2, target.chunks)

    def body(self) -> tuple[Stmt, ...]:
        """Zeros everywhere."""
        stage = self.stage
        names = [Var(f"z{stage.number}_{d}", n) for d, n in enumerate(stage.buf.shape)]
        at = stage.buf.address(tuple(Affine.of(v) for v in names))
        return around(Store(stage.buf.storage, at, identity("sum", stage.dtype)), names)

    def finish(self) -> tuple[Stmt, ...]:
        """The updates, each an atomic addition."""
        stage = self.stage
        index = tuple(i.map_data(lambda e: self.concrete(e, {})) for i in stage.target)
        add = Store(stage.buf.storage, stage.buf.address(index), self.concrete(stage.expr, {}),
                    "sum", self.note, atomic=True)
        return around(add, stage.red)


def around(stmt: Stmt, variables: tuple[Var, ...] | list[Var]) -> tuple[Stmt, ...]:
    """Loops around a statement, one at least."""
    for v in reversed(variables):
        stmt = For(v, (stmt,)) if v.extent != 1 else stmt
    return (stmt if isinstance(stmt, For) else For(Var("one", 1), (stmt,)),)
