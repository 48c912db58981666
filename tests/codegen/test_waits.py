"""Where the threads of a block wait for each other: no race, and no barrier that nobody needs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tinyc.codegen import gpu_block
from tinyc.codegen.crew import Crew
from tinyc.codegen.interpret import run_kernels
from tinyc.codegen.spread import Costs
from tinyc.ir.dtype import bool_, f32
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc,
    Barrier,
    Const,
    For,
    If,
    Load,
    LoopKernel,
    Stmt,
    Storage,
    Store,
    Within,
    statements,
)
from tinyc.ir.program import GPU
from tinyc.ir.verify_loops import verify_threads

N = 64
ZERO = Affine.const_of(0)
X, Y = (Storage(name, 4 * N, f32, "slot") for name in "xy")
TOTAL = Storage("total", 1, f32, "register")


def at(i: Affine | Var | int) -> Affine:
    return Affine.const_of(i) if isinstance(i, int) else Affine.of(i) if isinstance(i, Var) else i


def row() -> Storage:
    return Storage("row", N, f32, "scratch")


def by_crew(kernel: LoopKernel) -> LoopKernel:
    body = Crew(32, Costs()).block(kernel.body)
    return LoopKernel("k", body, (), kernel.chunk, threads=32)


def by_block(kernel: LoopKernel) -> LoopKernel:
    made = gpu_block.Together(32, GPU)
    body = gpu_block.on_the_chip(made.block(kernel.body), GPU.shared)
    return LoopKernel("k", body, (), kernel.chunk, threads=32)


RECIPES = pytest.mark.parametrize("recipe", [by_crew, by_block])
Recipe = Callable[[LoopKernel], LoopKernel]


def run(recipe: Recipe, *body: Stmt) -> tuple[np.ndarray, int]:
    """What the kernel makes of 0, 1, 2, ..., and how many barriers it has."""
    kernel = recipe(LoopKernel("k", body, (), Var("chunk", 1)))
    verify_threads(kernel, GPU.shared)
    y = np.zeros(4 * N, np.float32)
    run_kernels([kernel], {X: np.arange(4 * N, dtype=np.float32), Y: y})
    return y, sum(isinstance(s, Barrier) for s in statements(kernel.body))


def copy(to: Storage, to_at: Callable[[Var], Affine], source: Storage,
         from_at: Callable[[Var], Affine]) -> For:
    v = Var("i", N)
    return For(v, (Store(to, to_at(v), Load(source, from_at(v))),))


@RECIPES
def test_an_iteration_waits_for_reads_of_the_one_before(recipe):
    """for r: row[i] = x[64r + i]; total += row[63]: the last statement only reads."""
    r, shared = Var("r", 4), row()
    fill = copy(shared, at, X, lambda v: at(r) * N + at(v))
    add = Store(TOTAL, ZERO, Load(shared, at(N - 1)), "sum")
    y, barriers = run(recipe, Alloc(TOTAL), Store(TOTAL, ZERO, Const(0.0, f32)),
                      For(r, (fill, add)), Store(Y, ZERO, Load(TOTAL, ZERO)))
    assert y[0] == sum(N * k + N - 1 for k in range(4))
    assert barriers == 2


@RECIPES
def test_a_condition_that_may_not_hold_clears_nothing(recipe):
    """The barrier inside is no barrier for what comes after the condition."""
    first, second = row(), row()
    flag = Within(at(0), 1, 2, 1, bool_)
    inside = (copy(second, at, X, at), copy(Y, lambda v: at(v) + N, second, lambda v: 63 - at(v)))
    y, barriers = run(recipe, copy(first, at, X, at), If(flag, inside),
                      copy(Y, at, first, lambda v: 63 - at(v)))
    np.testing.assert_array_equal(y[:N], np.arange(N)[::-1])
    assert not y[N:].any() and barriers == 2


@RECIPES
def test_a_loop_that_may_be_empty_clears_nothing(recipe):
    first, second, r = row(), row(), Var("r", 2)
    inside = (copy(second, at, X, at), copy(Y, lambda v: at(v) + N, second, lambda v: 63 - at(v)))
    none = Affine.of(Var("chunk", 1))
    y, _ = run(recipe, copy(first, at, X, at), For(r, inside, "serial", none),
               copy(Y, at, first, lambda v: 63 - at(v)))
    np.testing.assert_array_equal(y[:N], np.arange(N)[::-1])


@RECIPES
def test_threads_do_not_wait_for_what_is_their_own(recipe):
    """for r: row[i] = x[64r + i]; y[64r + i] = row[i]."""
    r, shared = Var("r", 4), row()
    y, barriers = run(recipe, For(r, (copy(shared, at, X, lambda v: at(r) * N + at(v)),
                                      copy(Y, lambda v: at(r) * N + at(v), shared, at))))
    np.testing.assert_array_equal(y, np.arange(4 * N))
    assert barriers == 0


@RECIPES
def test_iterations_that_move_what_is_whose_wait(recipe):
    """for r: row[r + i] = x[i]; total += row[r]: an element changes hands from one to the next."""
    r, shared = Var("r", 4), Storage("row", N + 4, f32, "scratch")
    add = Store(TOTAL, ZERO, Load(shared, at(r)), "sum")
    y, barriers = run(recipe, Alloc(TOTAL), Store(TOTAL, ZERO, Const(0.0, f32)),
                      For(r, (copy(shared, lambda v: at(r) + at(v), X, at), add)),
                      Store(Y, ZERO, Load(TOTAL, ZERO)))
    assert y[0] == 0 and barriers == 2


@RECIPES
def test_what_is_pending_before_a_loop_is_waited_for_once(recipe):
    """row = x; for r: y[64r + i] = row[63 - i]: before the loop, not in each iteration."""
    r, shared = Var("r", 4), row()
    y, barriers = run(recipe, copy(shared, at, X, at), For(r, (
        copy(Y, lambda v: at(r) * N + at(v), shared, lambda v: 63 - at(v)),)))
    np.testing.assert_array_equal(y, np.tile(np.arange(N)[::-1], 4))
    assert barriers == 1


def sum_of(source: Storage, extent: int, limit: Affine | None = None) -> For:
    v = Var("i", extent)
    return For(v, (Store(TOTAL, ZERO, Load(source, at(v)), "sum"),), "serial", limit)


START = (Alloc(TOTAL), Store(TOTAL, ZERO, Const(0.0, f32)))


@RECIPES
def test_a_row_that_changes_between_passes_is_read_again(recipe):
    """total = sum of x; x[3] = total; y = x."""
    y, _ = run(recipe, *START, sum_of(X, N), Store(X, at(3), Load(TOTAL, ZERO)),
               copy(Y, at, X, at))
    np.testing.assert_array_equal(y[:N], [*range(3), sum(range(N)), *range(4, N)])


def test_nothing_is_read_beyond_a_limit():
    """Two passes over the first 20 of up to 30 numbers, where there are 20."""
    short, v = Storage("short", 20, f32, "slot"), Var("i", 30)
    kernel = LoopKernel("k", (), (), Var("chunk", 1))
    limit = at(20) + Affine.of(kernel.chunk)
    body = (*START, sum_of(short, 30, limit), For(v, (
        Store(Y, at(v), Load(short, at(v))),), "serial", limit))
    made = by_crew(LoopKernel("k", body, (), kernel.chunk))
    y = np.zeros(4 * N, np.float32)
    run_kernels([made], {short: np.arange(20, dtype=np.float32), Y: y})
    np.testing.assert_array_equal(y[:20], np.arange(20))
