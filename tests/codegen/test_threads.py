"""Blocks of threads: what the interpreter computes, what it finds, and which rules are checked."""

from __future__ import annotations

import numpy as np
import pytest

from tinyc.codegen.interpret import run_kernels
from tinyc.codegen.threads import RaceError
from tinyc.diagnostics import VerifyError
from tinyc.ir.dtype import bool_, f32, f64
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc,
    Await,
    Barrier,
    Combine,
    Const,
    For,
    If,
    Load,
    LoopKernel,
    Stmt,
    Storage,
    Store,
    Within,
)
from tinyc.ir.plan_text import kernel_text
from tinyc.ir.verify_loops import verify_threads

T = 8
ZERO = Affine.const_of(0)
X, Y = (Storage(name, 24, f32, "slot") for name in "xy")
SUM = Storage("s", 1, f32, "register")
WIDE = Storage("w", 1, f64, "register")
ROW, OTHER = (Storage(name, T, f32, "shared") for name in ("row", "other"))


def at(v: Var | Affine) -> Affine:
    return v if isinstance(v, Affine) else Affine.of(v)


def load(s: Storage, i: Var | Affine) -> Load:
    return Load(s, at(i))


def dealt(v: Var, *body: Stmt, limit: Affine | None = None) -> For:
    return For(v, body, "thread", limit)


def kernel(*body: Stmt, chunks: int = 1, finish: tuple[Stmt, ...] = ()) -> LoopKernel:
    return LoopKernel("k", body, finish, Var("chunk", chunks), threads=T)


def run(k: LoopKernel) -> np.ndarray:
    y = np.zeros(24, np.float32)
    verify_threads(k, 1024)
    run_kernels([k], {X: np.arange(24, dtype=np.float32), Y: y})
    return y


def turned(*, waits: bool) -> LoopKernel:
    """y = x backwards, through shared memory."""
    i, j = Var("i", T), Var("j", T)
    fill = dealt(i, Store(ROW, at(i), load(X, i)))
    give = dealt(j, Store(Y, at(j), load(ROW, T - 1 - at(j))))
    return kernel(fill, *([Barrier()] if waits else []), give)


def test_what_one_thread_writes_others_see_after_all_have_waited() -> None:
    np.testing.assert_array_equal(run(turned(waits=True))[:T], np.arange(T)[::-1])
    with pytest.raises(RaceError, match="threads meet at byte .* of row"):
        run(turned(waits=False))


def test_iterations_are_dealt_out_and_registers_combined() -> None:
    i, one = Var("i", 20), Var("one", 1)
    for how, width, want in (("sum", 0, 190), ("max", 0, 19), ("sum", 4, 0 + 8 + 16 + 1 + 9 + 17
                                                                      + 2 + 10 + 18 + 3 + 11 + 19)):
        k = kernel(Alloc(SUM), Store(SUM, ZERO, Const(0.0, f32)),
                   dealt(i, Store(SUM, ZERO, load(X, i), how)), Combine(SUM, how, width),
                   dealt(one, Store(Y, ZERO, load(SUM, ZERO))))
        assert run(k)[0] == want


def test_blocks_have_numbers_and_finish_has_its_own() -> None:
    b, e, t = Var("b", 3), Var("e", 2), Var("t", T)
    each = at(b) * T + at(t)
    k = kernel(For(b, (dealt(t, Store(Y, each, load(X, each))),), "chunk"), chunks=3)
    np.testing.assert_array_equal(run(k), np.arange(24))
    k.finish = (For(e, (dealt(t, Store(Y, at(e) * T + at(t), Const(-1.0, f32))),), "chunk"),)
    k.last = Var("chunk", 2)
    np.testing.assert_array_equal(run(k), [*[-1] * 16, *range(16, 24)])
    assert "finish in 2 blocks" in kernel_text(k)


def test_blocks_that_use_each_others_elements_are_found() -> None:
    b, t = Var("b", 2), Var("t", 4)
    place = at(b) * 2 + at(t)
    with pytest.raises(RaceError, match="blocks meet at byte"):
        run(kernel(For(b, (dealt(t, Store(Y, place, load(X, t))),), "chunk"), chunks=2))


def test_atomic_sums_meet_only_each_other() -> None:
    i, one = Var("i", 24), Var("one", 1)
    add = Store(Y, ZERO, load(X, i), "sum", atomic=True)
    assert run(kernel(dealt(i, add)))[0] == sum(range(24))
    with pytest.raises(RaceError):
        run(kernel(dealt(i, add), dealt(one, Store(Y, Affine.const_of(1), load(Y, ZERO)))))
    with pytest.raises(RaceError):
        run(kernel(dealt(i, Store(Y, ZERO, load(X, i), "sum"))))


def test_threads_that_wait_at_different_places_are_found() -> None:
    t = Var("t", T)
    some = If(Within(at(t), 0, 4, 1, bool_), (Barrier(),))
    with pytest.raises(RaceError, match="different places"):
        run_kernels([kernel(dealt(t, some, Barrier()))], {X: np.zeros(24, np.float32)})


def brought(*, pending: int, waits: bool) -> LoopKernel:
    """y = x backwards, through two groups of asynchronous stores into shared memory."""
    i, j, k = Var("i", T), Var("j", T), Var("k", T)
    first = dealt(i, Store(ROW, at(i), load(X, i), asynchronous=True))
    second = dealt(k, Store(OTHER, at(k), load(X, k), asynchronous=True))
    give = dealt(j, Store(Y, at(j), load(ROW, T - 1 - at(j))))
    return kernel(first, Await(2), second, Await(pending), *([Barrier()] if waits else []), give)


def test_asynchronous_stores_happen_when_their_thread_has_waited_for_them() -> None:
    for pending in (0, 1):
        np.testing.assert_array_equal(run(brought(pending=pending, waits=True))[:T],
                                      np.arange(T)[::-1])
    with pytest.raises(RaceError, match="row, which is on its way"):
        run(brought(pending=2, waits=True))
    with pytest.raises(RaceError, match="of row"):
        run(brought(pending=0, waits=False))


def test_what_an_asynchronous_store_overwrites_is_no_longer_read() -> None:
    i, j = Var("i", T), Var("j", T)
    read = dealt(j, Store(Y, at(j), load(ROW, T - 1 - at(j))))
    ask = dealt(i, Store(ROW, at(i), load(X, i), asynchronous=True))
    v = Var("v", T)
    fill = dealt(v, Store(ROW, at(v), Const(1.0, f32)))
    run(kernel(fill, Barrier(), read, Barrier(), ask, Await(0)))
    with pytest.raises(RaceError, match="threads meet at byte .* of row"):
        run(kernel(fill, Barrier(), read, ask, Await(0)))


@pytest.mark.parametrize("body, message", [
    ((Store(Y, ZERO, Const(0.0, f32)),), "y is stored by every thread"),
    ((dealt(Var("i", 3), Barrier()),), "not all of them come"),
    ((dealt(Var("i", T), Barrier(), limit=Affine.const_of(3)),), "not all of them come"),
    ((dealt(Var("i", 3), dealt(Var("j", 3))),), "deals out iterations that are dealt out"),
    ((dealt(Var("i", 3), Store(Storage("big", 2000, f32, "shared"), ZERO, Const(0.0, f32))),),
     "8000 bytes of shared memory, of 1024"),
    ((dealt(Var("i", T), Store(Y, ZERO, load(X, ZERO), asynchronous=True)),),
     "y can't be stored asynchronously"),
    ((dealt(Var("i", T), Store(ROW, ZERO, Const(0.0, f32), asynchronous=True)),),
     "row can't be stored asynchronously"),
    ((dealt(Var("i", 3), Await(0)),), "not all of them come"),
])
def test_rules(body: tuple[Stmt, ...], message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        verify_threads(kernel(*body), 1024)


def test_a_condition_may_ask_what_was_combined_but_not_what_each_thread_has() -> None:
    i = Var("i", T)
    start = (Alloc(WIDE), Store(WIDE, ZERO, Const(0.0, f64)),
             dealt(i, Store(WIDE, ZERO, Const(1.0, f64), "sum")))
    waits = If(load(WIDE, ZERO), (Barrier(),))
    verify_threads(kernel(*start, Combine(WIDE, "sum"), waits), 0)
    with pytest.raises(VerifyError, match="not all of them come"):
        verify_threads(kernel(*start, waits), 0)
    i = Var("t", T)
    with pytest.raises(VerifyError, match="not all of them come"):
        verify_threads(kernel(dealt(i, If(Within(at(i), 0, 3, 1, bool_), (Barrier(),)))), 0)
