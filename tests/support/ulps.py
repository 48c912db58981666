"""Numbers of single precision to sweep functions with, and how far results are from exact ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, 2.5, -2.5, np.inf,
                    -np.inf, np.nan, 1e-45, -1e-45, 1.1754942e-38, -1.1754944e-38, 3.4028235e38,
                    -3.4028235e38, 16777215.0, 16777217.0, -16777215.0, 1e10, -1e10, 88.72284,
                    -103.97208, 0.1], np.float32)  # fmt: skip

# Where functions change their form, or their results leave the normal or the finite numbers.
EDGES = np.array([0.925, 3.95, 9.02, 87.336, 88.7228, 89.0, 103.9721, 104.0, 0.7071068, 1.4142136,
                  0.3465736, 0.6931472, 0.7853982, 1.5707964, 3.1415927, 1.0, 2.0, 16.6355, 17.3287,
                  2.0**22, 2.0**23, 2.0**24, 1.1754944e-38, 1.8446742e19])  # fmt: skip


def every_exponent(per_exponent: int, seed: int, dtype: type = np.float32) -> np.ndarray:
    """Random numbers of every exponent and sign, with each exponent's least and greatest."""
    word, exponents, bits = {np.float32: (np.uint32, 512, 23), np.float64: (np.uint64, 4096, 52)}[
        dtype]
    rng = np.random.default_rng(seed)
    mantissas = rng.integers(0, 1 << bits, (exponents, per_exponent), dtype=word)
    mantissas[:, :2] = 0, (1 << bits) - 1
    return (mantissas | np.arange(exponents, dtype=word)[:, None] << word(bits)).ravel().view(dtype)


def near(points: np.ndarray, reach: int) -> np.ndarray:
    """The f32 numbers that are up to `reach` steps from the points, and the same below 0."""
    bits = points.astype(np.float32).view(np.int32)[:, None] + np.arange(-reach, reach + 1)
    found = bits.astype(np.int32).ravel().view(np.float32)
    return np.concatenate([found, -found])


def sweep(per_exponent: int) -> np.ndarray:
    """Every exponent, special numbers, edges with their neighbours, and where functions bend."""
    rng = np.random.default_rng(2)
    turns = np.arange(1, 20_000) * (math.pi / 2)
    hardest = np.ldexp(np.array([16367173.0, -16367173.0]), 72)  # near a multiple of pi/2
    parts = [every_exponent(per_exponent, seed=1), SPECIAL, near(EDGES, 500), turns, -turns,
             hardest, rng.uniform(-110, 110, 50_000), rng.normal(0, 1, 50_000),
             1 + rng.normal(0, 1e-3, 50_000)]  # fmt: skip
    return np.concatenate([p.astype(np.float32) for p in parts])


def all_numbers(count: int) -> Iterator[np.ndarray]:
    """All 2**32 numbers, `count` at a time."""
    for start in range(0, 1 << 32, count):
        yield np.arange(start, start + count, dtype=np.uint64).astype(np.uint32).view(np.float32)


def exact(function: Callable[..., np.ndarray], *args: np.ndarray) -> np.ndarray:
    """A function of f64 at f32 numbers."""
    with np.errstate(all="ignore"):
        return function(*(a.astype(np.float64) for a in args))


def erf(x: np.ndarray) -> np.ndarray:
    """The error function in double precision; far from 0 it is 1, near it the first two terms."""
    a = np.abs(x)
    out = np.where(a < 1.0, x * (1 - x * x / 3) * (2 / math.sqrt(math.pi)), np.sign(x))
    middle = (a > 2.0**-13) & (a < 7.0)
    out[middle] = [math.erf(v) for v in x[middle].tolist()]
    return np.where(np.isnan(x), x, out)


def ulps(got: np.ndarray, want: np.ndarray, scale: np.ndarray | float = 0.0) -> np.ndarray:
    """The distance of results from those of a wider type, in the results' units in the last place.

    The units are those of the result, or of `scale` where that is larger.
    """
    with np.errstate(all="ignore"):
        nearest = want.astype(got.dtype)
        size = np.fmax(np.abs(nearest), np.abs(got.dtype.type(scale)))
        finite = np.nan_to_num(size, nan=0.0, posinf=np.finfo(got.dtype).max)
        distance = (np.abs(got - want) / np.spacing(finite)).astype(np.float64)
    same = (got == nearest) | (np.isnan(got) & np.isnan(nearest))
    distance = np.where(np.isfinite(distance), distance, np.inf)
    return np.where(same, np.where(np.isfinite(distance), distance, 0.0), distance)
