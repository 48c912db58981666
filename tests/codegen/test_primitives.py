"""Schedule primitives: what they keep, what they make, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyc.codegen import primitives as p
from tinyc.codegen.interpret import OutsideStorage, run_kernels
from tinyc.diagnostics import ScheduleError
from tinyc.ir.dtype import DType, bool_, f32, i64
from tinyc.ir.index import Affine, Data, Var
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Check,
    Const,
    Expr,
    For,
    Index,
    Load,
    LoopKernel,
    Stmt,
    Storage,
    Store,
    Within,
    statements,
)
from tinyc.ir.ops import Op
from tinyc.ir.plan_text import kernel_text

SIZE = 256
ZERO = Affine.const_of(0)


def memory(dtype: DType = f32) -> list[Storage]:
    return [Storage(name, SIZE, dtype, "slot") for name in "xyz"]


def add(a: Expr, c: Expr) -> Apply:
    return Apply(Op.ADD, (a, c), a.dtype)


def times(a: Expr, c: Expr) -> Apply:
    return Apply(Op.MUL, (a, c), a.dtype)


def text(body: Iterable[Stmt]) -> str:
    """The loops without a head, and without the numbers of copies."""
    lines = kernel_text(kernel(tuple(body))).splitlines()[1:]
    return re.sub(r"_[rv]?\d+|h\d+", "", "\n".join(line[2:] for line in lines))


def kernel(body: tuple[Stmt, ...], chunk: Var | None = None) -> LoopKernel:
    return LoopKernel("k", body, (), chunk or Var("chunk", 1))


def results(body: tuple[Stmt, ...], storages: list[Storage], chunk: Var | None = None):
    rng = np.random.default_rng(0)
    slots = {s: rng.integers(-4, 5, SIZE).astype(s.dtype.np) for s in storages}
    run_kernels([kernel(body, chunk)], slots)
    return list(slots.values())


def assert_kept(before: tuple[Stmt, ...], after: tuple[Stmt, ...], storages: list[Storage],
                chunk: Var | None = None) -> None:
    """Both compute the same, exactly: the numbers are small integers."""
    for a, c in zip(results(before, storages, chunk), results(after, storages, chunk)):
        np.testing.assert_array_equal(a, c)


extents = st.integers(1, 13)


@st.composite
def map_nests(draw: st.DrawFn) -> tuple[For, list[Storage]]:
    """Two loops around y[..] = x[..] * 3 + i, with strides that may or may not collapse."""
    x, y, z = memory()
    a, c = Var("a", draw(extents)), Var("c", draw(extents))
    row = draw(st.sampled_from([c.extent, c.extent, c.extent + 2]))
    at = Affine.of(a) * row + Affine.of(c)
    read = draw(st.sampled_from([at, Affine.of(c) * a.extent + Affine.of(a), Affine.of(c)]))
    guard = (Within(Affine.of(c), 1, c.extent, draw(st.sampled_from([1, 2])), bool_),)
    value = add(Load(x, read, guard if draw(st.booleans()) else ()), Index(Affine.of(c), f32))
    return For(a, (For(c, (Store(y, at, value),)),)), [x, y, z]


@given(map_nests())
def test_collapse_keeps_results(case: tuple[For, list[Storage]]) -> None:
    loop, storages = case
    try:
        after = p.collapse(loop)
    except ScheduleError:
        return
    assert after.var.extent == loop.var.extent * loop.body[0].var.extent
    assert_kept((loop,), (after,), storages)


@given(map_nests(), st.integers(1, 5))
def test_split_rest_keeps_results(case: tuple[For, list[Storage]], factor: int) -> None:
    loop, storages = case
    after = p.split_rest(loop, factor)
    assert len(after) == 1 + (loop.var.extent % factor > 0)
    assert_kept((loop,), after, storages)


def test_collapse_makes_one_loop() -> None:
    x, y, _ = memory()
    a, c = Var("a", 3), Var("c", 4)
    at = Affine.of(a) * 4 + Affine.of(c)
    loop = For(a, (For(c, (Store(y, at, Load(x, at)),)),))
    assert text([p.collapse(loop)]) == "for a_c<12\n  y[a_c] = x[a_c]"


def test_collapse_refuses() -> None:
    x, y, _ = memory()
    a, c = Var("a", 3), Var("c", 4)
    at = Affine.of(a) * 4 + Affine.of(c)
    store = Store(y, at, Load(x, Affine.of(c) * 3 + Affine.of(a)))
    with pytest.raises(ScheduleError, match=r"collapse: .* does not step evenly over a, c"):
        p.collapse(For(a, (For(c, (store,)),)))
    store = Store(y, at, Load(x, at // 2))
    with pytest.raises(ScheduleError, match=r"collapse: .* divides a or c"):
        p.collapse(For(a, (For(c, (store,)),)))
    inner = For(c, (Store(y, at, Load(x, at)),))
    with pytest.raises(ScheduleError, match="collapse: the outer loop holds more than the inner"):
        p.collapse(For(a, (inner, inner)))
    limited = For(c, inner.body, limit=Affine.of(a) + 1)
    with pytest.raises(ScheduleError, match="collapse: a loop has a limit or a kind of its own"):
        p.collapse(For(a, (limited,)))


@given(st.integers(1, 6), st.integers(1, 6))
def test_split_keeps_results(blocks: int, factor: int) -> None:
    x, y, z = memory()
    i = Var("i", blocks * factor)
    digits = Affine.of(i) // factor + Affine.of(i) % factor
    loop = For(i, (Store(y, Affine.of(i), Load(x, digits)),))
    assert_kept((loop,), (p.split(loop, factor),), [x, y, z])


def test_split_refuses() -> None:
    x, y, _ = memory()
    i = Var("i", 7)
    loop = For(i, (Store(y, Affine.of(i), Load(x, Affine.of(i))),))
    with pytest.raises(ScheduleError, match="split: i does not divide into blocks of 2"):
        p.split(loop, 2)


@given(map_nests())
def test_unroll_keeps_results(case: tuple[For, list[Storage]]) -> None:
    loop, storages = case
    assert_kept((loop,), p.unroll(loop), storages)
    inner = For(loop.var, p.unroll(loop.body[0]))
    assert_kept((loop,), (inner,), storages)


def test_unroll_gives_each_copy_registers_of_its_own() -> None:
    x, y, z = memory()
    i, r = Var("i", 3), Storage("r", 1, f32, "register")
    body = (Alloc(r), Store(r, ZERO, Load(x, Affine.of(i))), Store(y, Affine.of(i), Load(r, ZERO)))
    after = p.unroll(For(i, body))
    assert len({s.storage for s in after if isinstance(s, Alloc)}) == 3
    assert_kept((For(i, body),), after, [x, y, z])


def test_unroll_refuses() -> None:
    x, y, _ = memory()
    i = Var("i", 3)
    store = Store(y, Affine.of(i), Load(x, Affine.of(i)))
    for loop in (For(i, (store,), "chunk"), For(i, (store,), limit=Affine.const_of(2))):
        with pytest.raises(ScheduleError, match="unroll: the range of i is not known here"):
            p.unroll(loop)


@given(st.integers(1, 200), st.integers(1, 64), st.integers(1, 5))
def test_split_chunks_keeps_results(n: int, block: int, chunks: int) -> None:
    x, y, z = memory()
    i, chunk = Var("i", n), Var("chunk", chunks)
    loop = For(i, (Store(y, Affine.of(i), Load(x, Affine.of(i))),), "chunk")
    assert_kept((loop,), p.split_chunks(loop, block, chunk), [x, y, z], chunk)


def test_split_chunks_refuses() -> None:
    i = Var("i", 10)
    with pytest.raises(ScheduleError, match="split_chunks: i is not divided among chunks"):
        p.split_chunks(For(i, ()), 4, Var("chunk", 2))


def reduction(kind: str, n: int, m: int, x: Storage, y: Storage, nested: bool = True) -> For:
    """for i: for j: y[i] (+)= x[i + j]; or, not nested, for j: y[0] (+)= x[j]."""
    i, j = Var("i", n), Var("j", m)
    value = Load(x, Affine.of(i) + Affine.of(j) if nested else Affine.of(j))
    inner = For(j, (Store(y, Affine.of(i) if nested else ZERO, value, kind),))
    return For(i, (inner,)) if nested else inner


@given(st.sampled_from(["sum", "max"]), extents, st.integers(1, 40), st.sampled_from([f32, i64]))
def test_accumulate_in_register_keeps_results(kind: str, n: int, m: int, dtype: DType) -> None:
    x, y, z = memory(dtype)
    loop = reduction(kind, n, m, x, y)
    after = For(loop.var, p.accumulate_in_register(loop.body[0]))
    assert sum(isinstance(s, Alloc) for s in statements((after,))) == 1
    assert_kept((loop,), (after,), [x, y, z])


def test_accumulate_in_register_leaves_sums_that_move_or_are_read() -> None:
    x, y, _ = memory()
    j = Var("j", 8)
    moving = For(j, (Store(y, Affine.of(j), Load(x, Affine.of(j)), "sum"),))
    read = For(j, (Store(y, ZERO, Load(x, Affine.of(j)), "sum"), Store(x, ZERO, Load(y, ZERO))))
    for loop in (moving, read):
        assert p.accumulate_in_register(loop) == (loop,)


def in_register(kind: str, n: int, x: Storage, y: Storage) -> tuple[Stmt, ...]:
    """A total of n elements in a register, then stored."""
    r, j = Storage("r", 1, y.dtype, "register"), Var("j", n)
    loop = For(j, (Store(r, ZERO, Load(x, Affine.of(j)), kind),))
    start = Store(r, ZERO, p.identity(kind, y.dtype))
    return Alloc(r), start, loop, Store(y, ZERO, Load(r, ZERO))


@given(st.sampled_from(["sum", "max"]), st.integers(1, 200), st.sampled_from([1, 2, 4, 8, 16]),
       st.sampled_from([f32, i64]))
def test_interleave_keeps_results(kind: str, n: int, lanes: int, dtype: DType) -> None:
    x, y, z = memory(dtype)
    alloc, start, loop, end = in_register(kind, n, x, y)
    after = (alloc, start, *p.interleave(loop, lanes), end)
    assert_kept((alloc, start, loop, end), after, [x, y, z])


@given(st.sampled_from(["sum", "max"]), extents, st.integers(1, 90), st.sampled_from([2, 8]))
def test_interleave_across_an_outer_loop_keeps_results(kind: str, n: int, m: int,
                                                       lanes: int) -> None:
    x, y, z = memory()
    r, i, j = Storage("r", 1, f32, "register"), Var("i", n), Var("j", m)
    inner = For(j, (Store(r, ZERO, Load(x, Affine.of(i) * 9 + Affine.of(j)), kind),))
    loop = For(i, (inner,))
    ends = (Alloc(r), Store(r, ZERO, p.identity(kind, f32))), (Store(y, ZERO, Load(r, ZERO)),)
    after = (*ends[0], *p.interleave(loop, lanes), *ends[1])
    assert_kept((*ends[0], loop, *ends[1]), after, [x, y, z])


def test_interleave_gives_lanes_accumulators() -> None:
    x, y, _ = memory()
    _, _, loop, _ = in_register("sum", 16, x, y)
    lines = text(p.interleave(loop, 4)).splitlines()
    assert lines[0] == "f32 r[4]"
    assert "  simd for jl<4" in lines
    assert "    r[jl] += x[4*jo + jl]" in lines


def test_interleave_leaves_short_and_mapping_loops() -> None:
    x, y, _ = memory()
    _, _, short, _ = in_register("sum", 3, x, y)
    j = Var("j", 64)
    mapping = For(j, (Store(y, Affine.of(j), Load(x, Affine.of(j))),))
    for loop in (short, mapping):
        assert p.interleave(loop, 8) == (loop,)


@given(map_nests())
def test_vectorize_keeps_results_in_any_order(case: tuple[For, list[Storage]]) -> None:
    """The interpreter runs simd iterations backwards."""
    loop, storages = case
    if loop.body[0].var.extent > 1:
        assert_kept((loop,), (For(loop.var, (p.vectorize(loop.body[0]),)),), storages)


def test_vectorize_marks_the_loop() -> None:
    x, y, _ = memory()
    i = Var("i", 8)
    body = (Store(y, Affine.of(i), Load(x, Affine.of(i))),)
    assert p.vectorize(For(i, body)).kind == "simd"
    assert p.vectorize(For(i, body, "chunk")).kind == "chunk_simd"
    pairs = tuple(Store(y, Affine.of(i) * 2 + k, Load(x, Affine.of(i))) for k in (0, 1))
    assert p.vectorize(For(i, pairs)).kind == "simd"


def test_vectorize_refuses() -> None:
    x, y, _ = memory()
    i, j = Var("i", 8), Var("j", 8)
    at = Affine.of(i)
    with pytest.raises(ScheduleError, match="vectorize: i is not an innermost loop"):
        p.vectorize(For(i, (For(j, ()),)))
    with pytest.raises(ScheduleError, match="vectorize: y is stored at one place by all"):
        p.vectorize(For(i, (Store(y, ZERO, Load(x, at), "sum"),)))
    with pytest.raises(ScheduleError, match="vectorize: y is stored at one place by all"):
        p.vectorize(For(i, (Store(y, at // 2, Load(x, at)),)))
    with pytest.raises(ScheduleError, match="vectorize: y is read at another iteration"):
        p.vectorize(For(i, (Store(y, at, Load(y, at + 1)),)))
    with pytest.raises(ScheduleError, match="vectorize: y is stored twice at one place"):
        p.vectorize(For(i, (Store(y, at, Load(x, at)), Store(y, at + 1, Load(x, at)))))


@st.composite
def hoistable(draw: st.DrawFn) -> tuple[For, list[Storage]]:
    """for i: for j: z[..] = x[i] * 3 + y[j] * x[i], and a store that may disturb x."""
    x, y, z = memory()
    i, j = Var("i", draw(extents)), Var("j", draw(extents))
    fixed = times(Load(x, Affine.of(i)), Const(3.0, f32))
    value = add(fixed, times(Load(y, Affine.of(j)), Load(x, Affine.of(i))))
    body: list[Stmt] = [Store(z, Affine.of(i) * j.extent + Affine.of(j), value)]
    if draw(st.booleans()):
        body.append(Store(x, Affine.of(i), value))
    if draw(st.booleans()):
        body.append(Store(y, Affine.of(j), fixed))
    return For(i, (For(j, tuple(body)),)), [x, y, z]


@given(hoistable())
def test_hoist_keeps_results(case: tuple[For, list[Storage]]) -> None:
    loop, storages = case
    after = For(loop.var, p.hoist(loop.body[0]))
    assert_kept((loop,), (after,), storages)


def test_hoist_computes_what_is_fixed_once() -> None:
    x, y, z = memory()
    i, j = Var("i", 4), Var("j", 8)
    value = times(Load(y, Affine.of(j)), Apply(Op.EXP, (Load(x, Affine.of(i)),), f32))
    after = p.hoist(For(j, (Store(z, Affine.of(j), value),)))
    assert text(after).splitlines()[1:] == [
        "[0] = exp(x[i])", "for j<8", "  z[j] = mul(y[j], [0])"]


def test_hoist_checks_a_fixed_index_once() -> None:
    x, y, _ = memory()
    table = Storage("t", SIZE, i64, "slot")
    i, j = Var("i", 4), Var("j", 8)
    row = Data(Check(Load(table, Affine.of(i)), 8, 1, i64), 8, frozenset((i,)))
    inner = For(j, (Store(y, Affine.of(i) * 8 + Affine.of(j),
                          Load(x, Affine.of(row) * 8 + Affine.of(j))),))
    after = p.hoist(inner)
    assert text(after).splitlines()[:2] == ["i64 [1]", "[0] = check(t[i] < 8)"]
    assert_kept((For(i, (inner,)),), (For(i, after),), [x, y, table])


def test_hoist_leaves_what_the_loop_writes() -> None:
    x, _, z = memory()
    j = Var("j", 8)
    value = Apply(Op.EXP, (Load(x, ZERO),), f32)
    loop = For(j, (Store(z, Affine.of(j), value), Store(x, ZERO, Load(z, Affine.of(j)))))
    assert p.hoist(loop) == (loop,)


# -- the interpreter itself ------------------------------------------------------------------------


def test_the_interpreter_refuses_accesses_outside() -> None:
    x, y, z = memory()
    i = Var("i", 3)
    for at in (Affine.of(i) + SIZE - 1, Affine.of(i) - 1):
        with pytest.raises(OutsideStorage, match=r"k: elements -?\d+ to -?\d+ of x, which has 256"):
            results((For(i, (Store(y, Affine.of(i), Load(x, at)),)),), [x, y, z])


def test_the_interpreter_reads_nothing_outside_a_guard() -> None:
    x, y, z = memory()
    i = Var("i", 8)
    guard = (Within(Affine.of(i), 4, 8, 1, bool_),)
    loop = For(i, (Store(y, Affine.of(i), Load(x, Affine.of(i) - 4, guard)),))
    before, after, _ = results((loop,), [x, y, z])
    np.testing.assert_array_equal(after[:4], 0)
    np.testing.assert_array_equal(after[4:8], before[:4])


def test_the_interpreter_divides_chunks_as_programs_do() -> None:
    x, y, z = memory()
    i, chunk = Var("i", 10), Var("chunk", 4)
    loop = For(i, (Store(y, Affine.of(i), Index(Affine.of(chunk), f32)),), "chunk")
    _, after, _ = results((loop,), [x, y, z], chunk)
    np.testing.assert_array_equal(after[:10], [0, 0, 1, 1, 1, 2, 2, 3, 3, 3])
