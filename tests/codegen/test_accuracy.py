"""How far functions are from their exact values, as users get them: compiled programs.

Each is swept over all exponents and where it bends; `pytest -m exhaustive tests/codegen` takes all
2**32 numbers, some minutes a function, and prints the worst.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import ulps as u
from running import Compiled, buffers

from tinyc.composites import activation, elementwise
from tinyc.ir import build as b
from tinyc.ir.node import Node

pytestmark = pytest.mark.cpu("vectors and sums of generated C")

Exact = Callable[[np.ndarray], np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    decay = np.exp(-np.abs(x))
    return np.where(x < 0, decay, 1.0) / (1.0 + decay)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + u.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


@dataclass(frozen=True)
class Case:
    """A function, its exact form in f64, and the worst distance allowed, in units in the last place
    of the result, or of this `share` of the argument where that is larger."""

    graph: Callable[[Node], Node]
    exact: Exact
    limit: float
    share: float = 0.0


# GELU multiplies x by 1 + erf, which is a small difference of large numbers far below 0, SiLU by a
# sigmoid that may be denormal.
CASES = {
    "exp": Case(b.exp, np.exp, 1.1),
    "log": Case(b.log, np.log, 0.9),
    "sin": Case(b.sin, np.sin, 1.7),
    "cos": Case(b.cos, np.cos, 1.7),
    "tanh": Case(b.tanh, np.tanh, 2.5),
    "erf": Case(b.erf, u.erf, 1.3),
    "sqrt": Case(b.sqrt, np.sqrt, 0.5),
    "floor": Case(b.floor, np.floor, 0.5),
    "rsqrt": Case(elementwise.rsqrt, lambda x: 1 / np.sqrt(x), 4),
    "reciprocal": Case(elementwise.reciprocal, lambda x: 1 / x, 4),
    "log1p": Case(elementwise.log1p, np.log1p, 4),
    "sigmoid": Case(activation.sigmoid, sigmoid, 4),
    "silu": Case(activation.silu, lambda x: x * sigmoid(x), 4, share=2.0**-125),
    "softplus": Case(activation.softplus, softplus, 4),
    "logsigmoid": Case(activation.logsigmoid, lambda x: -softplus(-x), 4),
    "softsign": Case(activation.softsign, lambda x: x / (1 + np.abs(x)), 4),
    "gelu": Case(activation.gelu, gelu, 4, share=1.0),
    "gelu_tanh": Case(lambda x: activation.gelu(x, "tanh"), gelu_tanh, 4, share=1.0),
}


def worst(case: Case, x: np.ndarray, got: np.ndarray) -> tuple[float, str]:
    """The largest distance of results, and where that is; a zero of the wrong sign is infinitely
    far. What is rounded correctly is not looked at, so the least answer is 0.5."""
    want = u.exact(case.exact, x)
    with np.errstate(all="ignore"):
        wrong = got.view(np.int32) != want.astype(np.float32).view(np.int32)
    wrong &= ~(np.isnan(got) & np.isnan(want))
    if not wrong.any():
        return 0.5, "nowhere"
    x, got, want = x[wrong], got[wrong], want[wrong]
    distance = u.ulps(got, want, np.where(np.isfinite(x), x, 0) * np.float32(case.share))
    distance[(want == 0) & (got == 0)] = np.inf
    at = int(np.argmax(distance))
    return float(distance[at]), f"at {x[at]!r}: {got[at]!r}, exactly {want[at]!r}"


@pytest.fixture(scope="module")
def swept() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The numbers, and all functions of them, computed by one program."""
    numbers = u.sweep(1000)
    (x,), memory = buffers(numbers)
    values = Compiled([case.graph(x) for case in CASES.values()])(memory, threads=2)
    return numbers, dict(zip(CASES, values))


@pytest.mark.parametrize("name", CASES)
def test_functions_are_near_their_exact_values(swept: tuple, name: str) -> None:
    numbers, values = swept
    distance, where = worst(CASES[name], numbers, values[name])
    assert distance <= CASES[name].limit, where


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="nothing is more exact than f64")
@pytest.mark.parametrize(("function", "exact", "limit"), [
    (b.exp, np.exp, 1.0), (b.log, np.log, 0.9), (b.tanh, np.tanh, 2.7)])  # fmt: skip
def test_functions_of_f64_are_near_their_exact_values(
        function: Callable[[Node], Node], exact: Exact, limit: float) -> None:
    rng = np.random.default_rng(4)
    edges = np.array([709.782712893384, 709.7827128933841, 710.0, -708.4, -745.1332191019412,
                      -745.2, -746.0, 0.5**0.5, 2**0.5, 20.0, 1e308, 5e-324, 2.0**-1022])
    parts = [u.every_exponent(20, 1, np.float64), u.SPECIAL, edges, -edges,
             rng.uniform(-750, 750, 50_000), rng.normal(0, 1, 50_000),
             1 + rng.normal(0, 1e-3, 50_000)]
    numbers = np.concatenate([p.astype(np.float64) for p in parts])
    (x,), memory = buffers(numbers)
    (got,) = Compiled([function(x)])(memory)
    with np.errstate(all="ignore"):
        want = exact(numbers.astype(np.longdouble))
    distance = u.ulps(got, want)
    assert distance.max() <= limit, numbers[np.argmax(distance)]
    assert (np.signbit(got) == np.signbit(want))[want == 0].all(), "the sign of zero"


def distance_of_powers(x: np.ndarray, y: np.ndarray) -> tuple[float, str]:
    """The largest distance of x ** y, compiled, from C's pow in f64."""
    (a, c), memory = buffers(x, y)
    (got,) = Compiled([b.pow(a, c)])(memory, threads=2)
    want = u.exact(np.power, *memory.values())
    distance = u.ulps(got, want)
    distance[(want == 0) & (np.signbit(got) != np.signbit(want))] = np.inf
    at = int(np.argmax(distance))
    return float(distance[at]), f"{x[at]!r} ** {y[at]!r}: {got[at]!r}, exactly {want[at]!r}"


def test_powers_of_special_numbers_are_c_s() -> None:
    x, y = (v.ravel() for v in np.meshgrid(u.SPECIAL, u.SPECIAL))
    distance, where = distance_of_powers(x, y)
    assert distance <= 0.6, where


def test_powers_are_near_their_exact_values() -> None:
    rng = np.random.default_rng(3)
    count = 200_000
    base = np.exp(rng.normal(0, 3, count))
    pairs = [(u.every_exponent(400, seed=4), rng.permutation(u.every_exponent(400, seed=5))),
             (base, rng.uniform(-40, 40, count)), (-base, rng.integers(-20, 20, count)),
             (1 + rng.normal(0, 1e-4, count), rng.normal(0, 1e5, count)),
             (base, rng.normal(0, 149, count) / np.log2(base))]  # fmt: skip
    with np.errstate(all="ignore"):
        x, y = (np.concatenate(side).astype(np.float32) for side in zip(*pairs))
    distance, where = distance_of_powers(x, y)
    assert distance <= 0.6, where


@pytest.mark.exhaustive
@pytest.mark.parametrize("exponent", [1 / 3, -0.5, 1.5, 2.5, -2.0, 10.0, 1e-3, 77.7])
def test_powers_of_all_numbers(exponent: float, capsys: pytest.CaptureFixture[str]) -> None:
    parts = (distance_of_powers(x, np.full_like(x, exponent)) for x in u.all_numbers(1 << 22))
    distance, where = max(parts)
    with capsys.disabled():
        print(f"\npow: {distance:.3f} units in the last place, {where}")
    assert distance <= 0.6


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CASES)
def test_all_numbers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    case, count = CASES[name], 1 << 22
    (x,), memory = buffers(np.zeros(count, np.float32))
    compiled = Compiled([case.graph(x)])
    found = (0.0, "")
    for numbers in u.all_numbers(count):
        memory = dict.fromkeys(memory, numbers)
        found = max(found, worst(case, numbers, compiled(memory)[0]))
    with capsys.disabled():
        print(f"\n{name}: {found[0]:.3f} units in the last place, {found[1]}")
    assert found[0] <= case.limit
