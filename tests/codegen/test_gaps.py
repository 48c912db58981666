"""Short rows that are computed as one, with the gaps between them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from running import buffers, floats, interpreted, native, plan_of

from tinyc.codegen.gaps import over_gaps
from tinyc.codegen.interpret import run_kernels
from tinyc.composites import convolution
from tinyc.ir import build as b
from tinyc.ir.dtype import bool_, f32
from tinyc.ir.evaluate import evaluate
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Const,
    Expr,
    For,
    Load,
    LoopKernel,
    Stmt,
    Storage,
    Store,
    Within,
    statements,
)
from tinyc.ir.ops import Op
from tinyc.ir.program import CPU

pytestmark = pytest.mark.cpu("rows in the recipes of CPUs")

WIDE = replace(CPU, lanes=16)
X, Y = Storage("x", 400, f32, "slot"), Storage("y", 400, f32, "slot")
ROW, COLUMN = Var("i", 7), Var("j", 7)


def at(index: Affine, x: Storage = X) -> Load:
    return Load(x, index)


def place(pitch: int, step: int = 1) -> Affine:
    return Affine.of(ROW) * pitch + Affine.of(COLUMN) * step


def window(first: Affine, pitch: int) -> Expr:
    """A sum of nine products of a window."""
    total: Expr = Const(0.5, f32)
    for i in range(9):
        x = at(first + i // 3 * pitch + i % 3)
        total = Apply(Op.ADD, (total, Apply(Op.MUL, (x, Const(float(i), f32)), f32)), f32)
    return total


def nest(value: Expr, index: Affine, **changed: object) -> For:
    inner = For(COLUMN, (replace(Store(Y, index, value), **changed),))
    return For(ROW, (inner,))


def results(body: tuple[Stmt, ...]) -> np.ndarray:
    slots = {X: np.arange(400, dtype=np.float32), Y: np.full(400, -1, np.float32)}
    run_kernels([LoopKernel("k", body, (), Var("chunk", 1))], slots)
    return slots[Y]


@pytest.mark.parametrize("pitch", [9, 12])
@pytest.mark.parametrize("stored", [7, 8])
@pytest.mark.parametrize("step", [1, 2])
def test_rows_are_computed_as_one(pitch: int, stored: int, step: int) -> None:
    before = nest(window(place(pitch * step, step), pitch), place(stored))
    computed, copied = over_gaps(before, WIDE)
    assert isinstance(computed, For) and computed.var.extent == 6 * pitch + 7
    assert not any(s.storage is Y for s in statements((computed,)) if isinstance(s, Store))
    np.testing.assert_array_equal(results((computed, copied)), results((before,)))


def test_registers_go_along() -> None:
    r = Storage("r", 1, f32, "register")
    zero = Affine.const_of(0)
    body = (Alloc(r), Store(r, zero, window(place(9), 9)), Store(r, zero, at(place(9)), "sum"),
            Store(Y, place(7), Load(r, zero)))
    before = For(ROW, (For(COLUMN, body),))
    after = over_gaps(before, WIDE)
    assert len(after) == 2
    np.testing.assert_array_equal(results(after), results((before,)))


def refused() -> dict[str, For]:
    value, nine = window(place(9), 9), place(9)
    inside = Within(nine, 0, 60, 1, bool_)
    both = Apply(Op.ADD, (value, at(place(10))), f32)
    return {
        "a row follows the other": nest(window(place(7), 7), place(7)),
        "rows of two distances": nest(both, place(7)),
        "columns first": nest(window(Affine.of(COLUMN) * 9 + Affine.of(ROW), 9), place(7)),
        "what is stored is read": nest(Apply(Op.ADD, (value, at(place(9), Y)), f32), place(7)),
        "a guard": nest(Apply(Op.ADD, (value, replace(at(nine), guard=(inside,))), f32), place(7)),
        "sums": nest(value, place(7), accumulate="sum"),
        "little work": nest(at(nine), place(7)),
        "an index as a number": nest(Apply(Op.ADD, (value, at(nine // 2)), f32), place(7)),
        "long gaps": nest(window(place(100), 9), place(7)),
    }  # fmt: skip


@pytest.mark.parametrize("why", refused())
def test_other_rows_are_left_alone(why: str) -> None:
    before = refused()[why]
    assert over_gaps(before, WIDE) == (before,)


def test_plain_c_has_no_vectors_to_fill() -> None:
    before = nest(window(place(9), 9), place(7))
    assert over_gaps(before, replace(CPU, lanes=1)) == (before,)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(7, 3, 1), (14, 5, 2), (13, 3, 1), (9, 3, 2)]
)  # fmt: skip
def test_depthwise_convolutions(size: int, kernel: int, stride: int) -> None:
    (x, w), memory = buffers(floats(3, 10, size, size), floats(10, 1, kernel, kernel, seed=1))
    memory[1][1, 2, 3, 4] = np.nan
    memory[1][2, 2, 0, 0] = np.inf
    out = convolution.conv(x, w, None, stride, kernel // 2, 1, 10)
    names = {s.storage.name for k in plan_of([out], target=WIDE).kernels
             for s in statements(k.body) if isinstance(s, Store)}
    assert any(name.startswith("rows") for name in names)
    want = evaluate([b.materialize(out)], memory)[0]
    for got in (native([out], memory)[0], interpreted([out], memory, target=WIDE)[0]):
        np.testing.assert_allclose(got, want, 1e-4, 1e-4)
