"""How far functions are from their exact values on CUDA: within 4 units in the last place, as in C.

The texts are those of C; what differs is contraction, division, and how numbers become bits.
"""

from __future__ import annotations

import numpy as np
import pytest
import ulps as u
from running import Compiled, buffers

from tinyc.ir import build as b

FUNCTIONS = {
    "exp": (b.exp, np.exp), "log": (b.log, np.log), "sin": (b.sin, np.sin), "cos": (b.cos, np.cos),
    "tanh": (b.tanh, np.tanh), "erf": (b.erf, u.erf), "sqrt": (b.sqrt, np.sqrt),
    "floor": (b.floor, np.floor),
}
POWERS = (0.5, -1.5, 2.0, 3.0, 0.0, np.inf, np.nan)


@pytest.mark.parametrize("kind", ["cuda", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_functions_are_near_their_exact_values(request, kind):
    numbers = u.sweep(20)
    (x,), memory = buffers(numbers)
    device = request.getfixturevalue(kind)
    found = Compiled([make(x) for make, _ in FUNCTIONS.values()], device=device)(memory)
    for (name, (_, exact)), got in zip(FUNCTIONS.items(), found, strict=True):
        want = u.exact(exact, numbers)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=name)
        known = ~np.isnan(want)
        distance = u.ulps(got[known], want[known])
        assert distance.max() <= 4, f"{name} at {numbers[known][np.argmax(distance)]!r}"


@pytest.mark.parametrize("kind", ["cuda", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_powers_and_functions_of_f64_are_near(request, kind):
    numbers = u.sweep(4)
    (x, y), memory = buffers(numbers, numbers.astype(np.float64))
    outputs = [b.pow(x, p) for p in POWERS] + [make(y) for make, _ in FUNCTIONS.values()]
    found = Compiled(outputs, device=request.getfixturevalue(kind))(memory)
    with np.errstate(all="ignore"):
        wanted = [np.power(numbers.astype(np.float64), p).astype(np.float32) for p in POWERS]
    for p, got, want in zip(POWERS, found, wanted):
        np.testing.assert_allclose(got, want, 5e-7, 1e-44, err_msg=str(p))
    for (name, (_, exact)), got in zip(FUNCTIONS.items(), found[len(POWERS):], strict=True):
        want = u.exact(exact, numbers)
        near = 1e-6 if exact is u.erf else 1e-14  # which is good enough for f32
        np.testing.assert_allclose(got, want, near, 5e-324, err_msg=name)
