"""The error of products in f32 against f64: at most that of numpy's own library."""

from __future__ import annotations

import numpy as np
import pytest
from running import Compiled, buffers

from tinyc.codegen.c import MOST_PARTS_OF_SUM, depth_parts
from tinyc.composites import linear
from tinyc.ir import build as b

# The products of the benchmark, scaled down along rows and columns, which do not matter to an
# element's error; and long sums.
SHAPES = [(64, 64, 128), (64, 64, 256), (64, 64, 512), (64, 64, 1024), (64, 64, 2048),
          (125, 97, 333), (32, 128, 784), (48, 64, 768), (32, 24, 1536), (64, 64, 4096),
          (13, 33, 1031)]


def errors(m: int, n: int, k: int, kind: str, positive: bool) -> tuple[float, float]:
    """(error of tinyc, error of numpy): root mean squares, each element's relative to the sum of
    its products' magnitudes. A t in `kind` marks an operand that is stored transposed."""
    rng = np.random.default_rng(m * n + k)
    draw = rng.random if positive else rng.standard_normal
    left, right = draw((m, k), dtype=np.float32), draw((k, n), dtype=np.float32)
    stored = [np.ascontiguousarray(x.T) if t == "t" else x for x, t in zip((left, right), kind)]
    (x, y), memory = buffers(*stored)
    x, y = (b.permute(v, (1, 0)) if t == "t" else v for v, t in zip((x, y), kind))
    wide = [v.astype(np.float64) for v in (left, right)]
    exact, size = wide[0] @ wide[1], np.abs(wide[0]) @ np.abs(wide[1])

    def error(found: np.ndarray) -> float:
        return float(np.sqrt(np.mean(((found - exact) / size) ** 2)))

    return error(Compiled([linear.matmul(x, y)])(memory)[0]), error(left @ right)


@pytest.mark.parametrize("kind", ["nn", "nt", "tn"])
@pytest.mark.parametrize("m,n,k", SHAPES)
def test_products_are_as_accurate_as_those_of_numpy(m: int, n: int, k: int, kind: str) -> None:
    ours, theirs = errors(m, n, k, kind, positive=False)
    assert ours <= theirs


@pytest.mark.parametrize("k", [256, 777, 2048])
def test_sums_of_one_sign_are_as_accurate_as_those_of_numpy(k: int) -> None:
    ours, theirs = errors(64, 64, k, "nn", positive=True)
    assert ours <= theirs


@pytest.mark.parametrize("k", [32, 64, 96])
def test_one_chain_of_additions_is_no_worse_than_any_other(k: int) -> None:
    """Such short sums are one chain in every library; their order is all that differs."""
    ours, theirs = errors(64, 64, k, "nn", positive=False)
    assert ours <= 1.1 * theirs


def test_the_depth_is_cut_into_parts_that_are_equal_where_that_is_possible() -> None:
    def parts(*levels: tuple[int, int]) -> list[tuple[tuple[int, ...], int, int]]:
        return [(tuple(n for n, _ in p.levels), p.many, p.before)
                for p in depth_parts(list(levels))]

    assert parts((64, 1)) == [((1, 1, 64), 1, 0)]
    assert parts((128, 1)) == [((2, 1, 64), 1, 0)]
    assert parts((333, 1)) == [((3, 1, 111), 1, 0)]
    assert parts((1031, 1)) == [((8, 1, 128), 1, 0), ((1, 1, 7), 1, 1024)], "a prime"
    assert parts((64, 900), (3, 30), (3, 1)) == [((64, 3, 3), 64, 0)], "a window is not cut"
    assert parts((2, 10_000), (100, 1)) == [((2, 1, 100), 2, 0)]
    (whole,) = parts((1 << 20, 1))
    assert whole[0][0] == MOST_PARTS_OF_SUM, "parts of the longest sums grow with them"
