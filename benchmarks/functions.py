"""Nanoseconds an element of mathematical functions, one thread, data in the second-level cache.

tinyc's own code, as generated programs have it, in a loop compiled with their flags, beside numpy
and, where it is installed, PyTorch; all write to memory that is there. Medians, in turns.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from report import table

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

SIZE = 1 << 15
ROUNDS = 15
CALLS = 20
# What is a number for each function: from here to there, drawn evenly.
RANGES = {"exp": (-20, 20), "log": (0.01, 100), "sqrt": (0.01, 100), "pow": (0.01, 10)}
ANYWHERE = (-6, 6)
WHO = ("tinyc", "numpy", "torch")


def loops(dtype: str) -> tuple[ctypes.CDLL, list[str]]:
    """Return a library with a loop for each function of a dtype, and their names."""
    from tinyc.codegen.mathfn import MATH, prelude
    from tinyc.codegen.render import TYPES
    from tinyc.runtime.toolchain import Unit, load_library

    keys = [key for key in MATH if key[1] == dtype]
    text, ctype = prelude(keys), TYPES[dtype]
    for op, _ in keys:
        other, more = (f", const {ctype} *b", ", b[i]") if op.value == "pow" else ("", "")
        text += (
            f"void run_{op.value}({ctype} *restrict o, const {ctype} *a{other}, long n) {{\n"
            "  #pragma omp simd\n"
            f"  for (long i = 0; i < n; i++) o[i] = {MATH[op, dtype].name}(a[i]{more});\n}}\n"
        )
    return load_library(Unit(text, libm=True))[0], [op.value for op, _ in keys]


def numbers(name: str, dtype: str) -> list[np.ndarray]:
    """Return the arguments of a function."""
    rng = np.random.default_rng(0)
    ranges = [RANGES.get(name, ANYWHERE), *([(-5, 5)] if name == "pow" else [])]
    kind = {"f32": np.float32, "f64": np.float64}[dtype]
    return [rng.uniform(low, high, SIZE).astype(kind) for low, high in ranges]


def candidates(name: str, dtype: str, library: ctypes.CDLL) -> dict[str, Callable[..., Any]]:
    """Return what is timed for a function: tinyc's loop, and its peers' where they have it."""
    given = numbers(name, dtype)
    out = np.empty_like(given[0])
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (out, *given)]
    loop, count = getattr(library, f"run_{name}"), ctypes.c_long(SIZE)
    arrays = out, given  # which the pointers do not keep alive
    found: dict[str, Callable[..., Any]] = {"tinyc": lambda kept=arrays: loop(*pointers, count)}
    theirs = getattr(np, {"pow": "power"}.get(name, name), None)
    if theirs is not None:
        found["numpy"] = lambda: theirs(*given, out=out)
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)
        tensors, result = [torch.from_numpy(a) for a in given], torch.from_numpy(out.copy())
        function = getattr(torch, name)
        found["torch"] = lambda: function(*tensors, out=result)
    return found


def nanoseconds(functions: dict[str, Callable[..., Any]]) -> dict[str, float]:
    """Return the medians of an element's time, the functions taking turns."""
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            function()
            start = time.perf_counter()
            for _ in range(CALLS):
                function()
            samples[name].append((time.perf_counter() - start) / CALLS / SIZE * 1e9)
    return {name: statistics.median(times) for name, times in samples.items()}


def main() -> None:
    """Time the functions that are asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="functions, such as exp; all without any")
    options = parser.parse_args()
    rows = []
    for dtype in ("f32", "f64"):
        library, names = loops(dtype)
        for name in names:
            if options.names and name not in options.names:
                continue
            found = nanoseconds(candidates(name, dtype, library))
            cells = [f"{found[who]:.3f}" if who in found else "" for who in WHO]
            best = min((found[who] for who in found if who != "tinyc"), default=float("nan"))
            rows.append([f"{name} {dtype}", *cells, f"{best / found['tinyc']:.2f}"])
    print(table(["ns an element", *WHO, "best / tinyc"], rows))


if __name__ == "__main__":
    main()
