"""The error of products against a wider type: at most that of numpy's own library."""

from __future__ import annotations

import numpy as np
import pytest
from running import Compiled, buffers

from tinyc.codegen.depth import DepthPart, depth_parts
from tinyc.composites import linear
from tinyc.ir import build as b

# Depths of the benchmark's products, and some that no length of parts divides.
DEPTHS = [2, 3, 5, 6, 8, 11, 16, 24, 32, 48, 64, 80, 96, 100, 128, 256, 333, 512, 784, 1031, 2048,
          4096]
# Rows and columns do not matter to an element's error, but for what libraries do at their edges:
# beyond whole tiles, and with few rows. A shape, and how often it is drawn.
SIDES = [(64, 64, 1), (37, 51, 2), (8, 16, 64), (4, 64, 64), (1, 64, 256),
         (64, 1, 256)]


def errors(m: int, n: int, k: int, kind: str = "nn", dtype: type = np.float32,
           positive: bool = False, draws: int = 1) -> tuple[float, float]:
    """(error of tinyc, error of numpy): root mean squares, each element's relative to the sum of
    its products' magnitudes. A t in `kind` marks an operand that is stored transposed."""
    rng = np.random.default_rng(m * n + k)
    draw = rng.random if positive else rng.standard_normal
    (x, y), _ = buffers(*(np.zeros(s[::-1] if t == "t" else s, dtype)
                          for s, t in zip(((m, k), (k, n)), kind)))
    x, y = (b.permute(v, (1, 0)) if t == "t" else v for v, t in zip((x, y), kind))
    compiled = Compiled([linear.matmul(x, y)])
    found = []
    for _ in range(draws):
        arrays = draw((m, k), dtype=dtype), draw((k, n), dtype=dtype)
        stored = [np.ascontiguousarray(v.T) if t == "t" else v for v, t in zip(arrays, kind)]
        wide = [v.astype(np.float64 if dtype is np.float32 else np.longdouble) for v in arrays]
        exact, size = wide[0] @ wide[1], np.abs(wide[0]) @ np.abs(wide[1])
        found.append([np.mean(((got - exact) / size) ** 2)
                      for got in (compiled(dict(enumerate(stored, 1)))[0], arrays[0] @ arrays[1])])
    ours, theirs = np.sqrt(np.mean(found, axis=0))
    return float(ours), float(theirs)


@pytest.mark.parametrize("kind", ["nn", "nt", "tn"])
@pytest.mark.parametrize("k", DEPTHS)
def test_products_are_as_accurate_as_those_of_numpy(k: int, kind: str) -> None:
    """Of 4096 elements a root mean square is known to 1 %; where tinyc does the same as libraries,
    which is up to a depth of 5, it has the same bits, and beyond it has a tenth less or better."""
    ours, theirs = errors(64, 64, k, kind)
    assert ours <= theirs


@pytest.mark.parametrize("m,n,draws", SIDES)
def test_so_are_those_of_few_rows_and_at_edges(m: int, n: int, draws: int) -> None:
    for k in (5, 7, 11, 24, 32, 64, 96, 128, 512):
        ours, theirs = errors(m, n, k, draws=draws)
        assert ours <= 1.03 * theirs, k


@pytest.mark.parametrize("k", [2, 5, 8, 32, 64, 96, 128, 333, 1024])
def test_so_are_those_of_f64(k: int) -> None:
    ours, theirs = errors(40, 50, k, dtype=np.float64, draws=2)
    assert ours <= theirs


@pytest.mark.parametrize("kind,m,n", [("nn", 32, 32), ("tn", 40, 48)])
@pytest.mark.parametrize("k", [16384, 20000, 65536])
def test_so_are_the_longest(k: int, kind: str, m: int, n: int) -> None:
    ours, theirs = errors(m, n, k, kind, draws=2)
    assert ours <= theirs


@pytest.mark.parametrize("k", [64, 256, 777, 2048])
def test_so_are_sums_of_one_sign(k: int) -> None:
    ours, theirs = errors(64, 64, k, positive=True)
    assert ours <= theirs


def lengths(parts: list[DepthPart]) -> list[tuple[int, ...]]:
    """(parts, length, length of the last, calls, what comes before) of each statement."""
    return [(p.levels[0][0], p.levels[2][0], p.last, p.around[0][0] if p.around else 1, p.before)
            for p in parts]


def test_the_depth_is_cut_into_parts_of_about_the_same_length() -> None:
    def cut(n: int, sums: int = 24, adds: bool = False) -> list[tuple[int, ...]]:
        parts = depth_parts([(n, 3)], sums, adds)
        assert sum(p.points * (p.around[0][0] if p.around else 1) for p in parts) == n
        return lengths(parts)

    assert cut(5) == [(1, 5, 5, 1, 0)]
    assert cut(64) == [(2, 32, 32, 1, 0)]
    assert cut(333) == [(5, 67, 65, 1, 0)]
    assert cut(1031) == [(9, 115, 111, 1, 0)]
    assert cut(64, sums=8) == [(4, 16, 16, 1, 0)], "few sums wait for each other anyway"
    assert cut(64, adds=True) == [(1, 64, 64, 1, 0)], "a part already"
    assert cut(256, adds=True) == [(2, 128, 128, 1, 0)]
    assert cut(20000) == [(64, 128, 128, 2, 0), (29, 125, 116, 1, 16384)], "calls add to each other"


def test_the_depth_of_a_window_is_one_sum() -> None:
    (part,) = depth_parts([(64, 900), (3, 30), (3, 1)], 24, False)
    assert (part.many, part.points) == (64, 576)
