"""NumPy (forward operations only) and, for the element-wise workloads, numexpr and numba."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import workloads

from adapters.case import Case, repeat_add

MODES = ["numpy", "numexpr", "numba"]
# float32 constants, so that nothing is computed in double
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
_threads = 1


def init(mode: str, threads: int) -> None:
    """Keep the number of threads; NumPy's own comes from the environment."""
    global _threads
    _threads = threads


def operation(function: Callable, args: list) -> Case:
    """Return the case of a function of arrays."""

    def run(n: int) -> Any:
        for _ in range(n):
            y = function(*args)
        return y

    return Case(run, lambda: [np.asarray(run(1))])


def numexpr_function(name: str) -> Callable:
    """Return an element-wise workload through numexpr, which has no relu and no sigmoid."""
    import numexpr

    numexpr.set_num_threads(_threads)
    text = "a*b+c"
    if "chain" in name:
        text = "tanh(a*b+c)*(one/(one+exp(-a)))-where(b>zero,b,zero)*half"
    constants = {"one": ONE, "half": HALF, "zero": ZERO}
    return lambda a, b, c: numexpr.evaluate(text, {"a": a, "b": b, "c": c, **constants})


def numba_function(name: str) -> Callable:
    """Return an element-wise workload through numba."""
    import numba

    numba.set_num_threads(_threads)
    one, zero, half = ONE, ZERO, HALF

    def chain(a: Any, b: Any, c: Any) -> Any:
        y = np.empty_like(a)
        for i in numba.prange(a.size):
            gate = one / (one + math.exp(-a[i]))
            y[i] = math.tanh(a[i] * b[i] + c[i]) * gate - max(b[i], zero) * half
        return y

    def fma(a: Any, b: Any, c: Any) -> Any:
        y = np.empty_like(a)
        for i in numba.prange(a.size):
            y[i] = a[i] * b[i] + c[i]
        return y

    return numba.njit(chain if "chain" in name else fma, parallel=True, fastmath=True)


def softmax(x: Any) -> Any:
    """Return the softmax of the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    e /= e.sum(-1, keepdims=True)
    return e


def layer_norm(x: Any, g: Any, b: Any) -> Any:
    """Return the normalised last axis, scaled and shifted."""
    d = x - x.mean(-1, keepdims=True)
    return d / np.sqrt((d * d).mean(-1, keepdims=True) + np.float32(1e-5)) * g + b


def chain(a: Any, b: Any, c: Any) -> Any:
    """Return the element-wise chain."""
    return np.tanh(a * b + c) * (ONE / (ONE + np.exp(-a))) - np.maximum(b, ZERO) * HALF


FUNCTIONS: dict[str, Callable] = {
    "ew_chain": chain,
    "ew_fma": lambda a, b, c: a * b + c,
    "softmax": softmax,
    "layernorm": layer_norm,
    "sum": lambda x: x.sum(),
    "transpose": lambda x: np.ascontiguousarray(x.T),
    "mm": np.matmul,
    "bmm": np.matmul,
    "tiny_eager": repeat_add(1000),
}


def make(w: dict, mode: str) -> Case | None:
    """Return the case of a workload, None for models, convolutions and attention."""
    name = w["name"]
    found = [function for prefix, function in FUNCTIONS.items() if name.startswith(prefix)]
    if not found or (mode != "numpy" and w["kind"] != "ew"):
        return None
    args = workloads.inputs(w)
    if mode == "numexpr":
        return operation(numexpr_function(name), args)
    if mode == "numba":
        return operation(numba_function(name), args)
    return operation(found[0], args)
