"""Long sums: no less accurate than numpy's, the same for any number of threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import Compiled, buffers, plan_of

from tinyc.codegen import sums
from tinyc.codegen.interpret import run_kernels
from tinyc.composites import reductions
from tinyc.ir import build as b
from tinyc.ir.dtype import f32, f64
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc,
    Const,
    For,
    Load,
    LoopKernel,
    Stmt,
    Storage,
    Store,
    loads_of,
    statements,
)
from tinyc.ir.node import Node
from tinyc.ir.program import CPU

ZERO = Affine.const_of(0)
# Sums and the axes they go over: rows, columns, all of it, what a batch norm needs.
CASES = [
    ((4000, 8), (1,)), ((9000, 16), (1,)), ((4000, 100), (1,)),
    ((2000, 64), (1,)), ((500, 1000), (1,)), ((1000, 1001), (1,)), ((200, 4096), (1,)),
    ((40, 50257), (1,)), ((6, 300_000), (1,)), ((3000, 64), (0,)), ((64, 16, 28, 28), (0, 2, 3)),
    ((32, 700, 40), (1,)), ((32, 70, 40), (0, 2)),
]  # fmt: skip
# The ratio of two root mean squares of 1000 errors is known to 3 %; three times that.
NOISE = 1.09
WHOLE = [4096, 100_000, 1 << 20, (1 << 22) + 5]


def error(got: np.ndarray, exact: np.ndarray) -> float:
    """The root of the mean square of the errors."""
    return float(np.sqrt(np.mean(np.square(got.astype(exact.dtype) - exact))))


def draw(shape: tuple[int, ...], kind: str, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.random(shape) if kind == "positive" else rng.standard_normal(shape)
    return values.astype(dtype)


def wider(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64 if array.dtype == np.float32 else np.longdouble)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["positive", "around zero"])
@pytest.mark.parametrize(("shape", "axes"), CASES, ids=str)
def test_sums_are_as_accurate_as_numpys(shape: tuple, axes: tuple, kind: str, dtype: type) -> None:
    if dtype is np.float64 and np.prod(shape) > 1 << 20:
        shape = (shape[0] // 4, *shape[1:])
    array = draw(shape, kind, dtype=dtype)
    (x,), memory = buffers(array)
    (got,) = Compiled([b.sum_(x, axes)])(memory)
    exact = wider(array).sum(axes)
    assert error(got, exact) <= NOISE * error(array.sum(axes), exact)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), [((4000, 24), 1), ((2000, 768), 1), ((3000, 64), 0)])
def test_so_are_means_and_variances(shape: tuple, axis: int, dtype: type) -> None:
    array = draw(shape, "positive", dtype=dtype)
    (x,), memory = buffers(array)
    got = Compiled([reductions.mean(x, axis), reductions.var(x, axis)])(memory)
    wide = wider(array)
    for mine, theirs, exact in zip(got, (array.mean(axis), array.var(axis, ddof=1)),
                                   (wide.mean(axis), wide.var(axis, ddof=1))):
        assert error(mine, exact) <= NOISE * error(theirs, exact)


@pytest.mark.parametrize("kind", ["positive", "around zero"])
@pytest.mark.parametrize("n", [4096, 100_000, 1 << 20])
def test_sums_of_all_f64_are_as_accurate_as_numpys(n: int, kind: str) -> None:
    """What a tenth more allows for is that the error of one number is known to 5 % after 200."""
    (x,), _ = buffers(draw((n,), kind, dtype=np.float64))
    compiled = Compiled([b.sum_(x)])
    found = []
    for seed in range(min(200, (1 << 25) // n)):
        array = draw((n,), kind, seed, np.float64)
        exact = wider(array).sum()
        found.append([float(compiled({1: array})[0] - exact), float(array.sum() - exact)])
    mine, theirs = np.sqrt(np.mean(np.square(found), axis=0))
    assert mine <= 1.1 * theirs


@pytest.mark.parametrize("kind", ["positive", "around zero"])
@pytest.mark.parametrize("n", WHOLE)
def test_sums_of_everything_are_as_accurate_as_numpys(n: int, kind: str) -> None:
    (x,), _ = buffers(draw((n,), kind))
    compiled = Compiled([b.sum_(x), b.sum_(b.mul(x, x))])
    mine, numpys = [], []
    seeds = max(16, min(500, (1 << 26) // n))
    for seed in range(seeds):
        array = draw((n,), kind, seed)
        exact = array.astype(np.float64)
        got = compiled({1: array})
        want = exact.sum(), np.square(exact).sum()
        mine.append([g - w for g, w in zip(got, want)])
        numpys.append([array.sum() - want[0], np.square(array).sum() - want[1]])
    for m, theirs in zip(np.transpose(mine), np.transpose(numpys)):
        assert error(m, np.zeros(seeds)) <= 1.02 * error(theirs, np.zeros(seeds))


def rows(x: Node) -> list[Node]:
    mean = b.mul(b.sum_(x, (1,), keepdims=True), 1 / x.shape[1])
    centred = b.sub(x, b.expand(mean, x.shape))
    return [b.sum_(b.mul(centred, centred), (1,)), b.sum_(x, (0,)), b.sum_(x)]


def test_the_same_bits_for_any_number_of_threads() -> None:
    (x,), memory = buffers(draw((130, 5000), "around zero"))
    compiled = Compiled(rows(x), split=True)
    first = compiled(memory, 1)
    for threads in (2, 3, 5):
        for one, other in zip(first, compiled(memory, threads)):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("places", "want"), [
    ({7: np.inf}, np.inf), ({7: np.inf, 9000: -np.inf}, np.nan), ({12_345: np.nan}, np.nan),
    ({1: 3e38, 9000: 3e38}, np.inf),
])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinities_and_nan_come_through(places: dict[int, float], want: float,
                                         dtype: type) -> None:
    array = np.ones(20_000, dtype)
    if dtype is np.float64:
        places = {k: v if abs(v) != 3e38 else 1.7e308 for k, v in places.items()}
    for place, value in places.items():
        array[place] = value
    (x,), memory = buffers(array)
    for split in (False, True):
        np.testing.assert_equal(Compiled([b.sum_(x)], split=split)(memory)[0], dtype(want))


extents = st.integers(1, 9)


@st.composite
def nests(draw: st.DrawFn) -> tuple[Stmt, ...]:
    """r = 0; some loops: r += x[..]; y[0] = r."""
    x, y = Storage("x", 1024, f32, "slot"), Storage("y", 1, f32, "slot")
    r = Storage("r", 1, f32, "register")
    loops = [Var(name, draw(extents)) for name in "abc"[:draw(st.integers(1, 3))]]
    at = ZERO
    for v in loops:
        at = at * v.extent + Affine.of(v)
    nest: Stmt = Store(r, ZERO, Load(x, at), "sum")
    for v in reversed(loops):
        nest = For(v, (nest,))
    return (Alloc(r), Store(r, ZERO, Const(0.0, f32)), nest, Store(y, ZERO, Load(r, ZERO)))


def run(body: tuple[Stmt, ...]) -> float:
    slots = {}
    for s in statements(body):
        if isinstance(s, Store):
            for storage in (s.storage, *(x.storage for x in loads_of(s))):
                if storage.role == "slot":
                    slots[storage] = np.arange(storage.size, dtype=np.float32) % 7
    run_kernels([LoopKernel("k", body, (), Var("chunk", 1))], slots)
    return next(float(a[0]) for s, a in slots.items() if s.name == "y")


@given(nests(), st.integers(1, 20))
def test_blocks_keep_results(body: tuple[Stmt, ...], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "BLOCK", 4 * most)
        after = sums.in_blocks(body)
    assert run(body) == run(after)
    points = np.prod([s.var.extent for s in statements(body) if isinstance(s, For)])
    wide = [s for s in statements(after) if isinstance(s, Alloc) and s.storage.dtype is f64]
    assert len(wide) == (points > most)


@pytest.mark.parametrize("columns", [17, 49, 100, 111])
@pytest.mark.parametrize("kind", ["sum", "max"])
def test_what_a_short_row_has_beyond_vectors_is_not_stored(columns: int, kind: str) -> None:
    """To read a vector of which a part was just stored by itself takes a CPU three times as long
    as the rest of such a row."""
    array = draw((50, columns), "around zero")
    (x,), memory = buffers(array)
    out = b.sum_(x, (1,)) if kind == "sum" else b.max_(x, (1,))
    plan = plan_of([out], target=replace(CPU, lanes=16))
    (body,) = [list(statements(k.body)) for k in plan.kernels]
    lanes = {s.storage for s in body if isinstance(s, Alloc) and s.storage.size >= 4}
    vectors = [s for s in body if isinstance(s, For) and s.kind == "simd"]
    lengths = {v.var.extent for v in vectors for s in v.body
               if isinstance(s, Store) and s.storage in lanes}
    assert lengths and all(n & (n - 1) == 0 for n in lengths), "whole vectors, and halves of them"
    single = [s for s in body if isinstance(s, Store) and s.storage in lanes
              and not any(s in v.body for v in vectors)]
    assert len(single) == 1, "the last two lanes"
    (got,) = Compiled([out])(memory)
    np.testing.assert_allclose(got, array.sum(1) if kind == "sum" else array.max(1), 1e-4, 1e-5)
