"""What Python costs around the kernels, each beside its budget. Prints one table.

Medians of several repeats, each the mean of many calls. Budgets are for a quiet machine; nothing
here fails, because seconds on a shared machine prove little. Tests count calls and nodes instead.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from report import table
from weights import WORK

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

REPEATS = 15


@dataclass
class Row:
    """One measured cost and what it may be."""

    what: str
    value: float
    unit: str
    budget: float

    def cells(self) -> list[str]:
        """Return the row of the table."""
        verdict = "ok" if self.value <= self.budget else "over"
        return [self.what, f"{self.value:.2f} {self.unit}", f"{self.budget:g} {self.unit}", verdict]


def microseconds(function: Callable[[], Any], calls: int, per: int = 1) -> float:
    """Return the median over repeats of the microseconds of one call, divided by ``per``."""
    function()
    gc.collect()
    gc.disable()
    try:
        samples = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            for _ in range(calls):
                function()
            samples.append((time.perf_counter() - start) / calls)
    finally:
        gc.enable()
    return statistics.median(samples) / per * 1e6


def import_ratio() -> Row:
    """Return the time of ``import tinyc`` over that of ``import numpy``, bare Python deducted."""
    statements = {"bare": "pass", "numpy": "import numpy", "tinyc": "import tinyc"}
    times: dict[str, list[float]] = {name: [] for name in statements}
    # byte code of both is kept, as in an installation, whatever this shell says of that
    env = {**os.environ, "PYTHONPYCACHEPREFIX": os.path.join(WORK, "bytecode")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    for repeat in range(REPEATS + 1):
        for name, statement in statements.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], cwd=ROOT, check=True, env=env)
            if repeat:
                times[name].append(time.perf_counter() - start)
    bare, numpy, tinyc = (statistics.median(times[name]) for name in statements)
    return Row("import tinyc over import numpy", (tinyc - bare) / (numpy - bare), "x", 1.3)


def building() -> list[Row]:
    """Return the costs of building lazy graphs."""
    from tinyc import Tensor
    from tinyc.ir.node import canonical_key

    x = Tensor(np.ones((8, 8), np.float32))
    length = 200

    def fresh_chain() -> Any:
        # a new first constant makes every node of the chain a new one
        fresh_chain.start += 1.0
        y = x + fresh_chain.start
        for _ in range(length):
            y = y + x
        return y

    fresh_chain.start = 0.0
    chain = fresh_chain()
    outputs = [chain.node]
    return [
        Row("build an elementwise op, new node", microseconds(fresh_chain, 5, length), "us", 5),
        Row("build an elementwise op, known node", microseconds(lambda: x + x, 2000), "us", 5),
        Row("build a softmax", microseconds(lambda: x.softmax(-1), 500), "us", 30),
        Row(
            "key of a graph, per node",
            microseconds(lambda: canonical_key(outputs), 50, length),
            "us",
            1,
        ),
    ]


def replaying() -> list[Row]:
    """Return the costs of calling jitted functions, the native call included."""
    import tinyc
    from tinyc import Tensor

    def jitted(count: int) -> tuple[Any, list[Any]]:
        args = [Tensor(np.ones(8, np.float32)) for _ in range(count)]

        def total(*tensors: Any) -> Any:
            y = tensors[0]
            for t in tensors[1:]:
                y = y + t
            return y * 2

        f = tinyc.jit(total)
        for _ in range(3):
            f(*args)
        return f, args

    rows = []
    for count in (1, 8):
        f, args = jitted(count)
        cost = microseconds(lambda f=f, args=args: f(*args), 2000)
        rows.append(Row(f"call a jitted function of {count} tensors", cost, "us", 5 + count))
    return rows


def looking() -> list[Row]:
    """Return the costs of computing known graphs without jit."""
    from tinyc import Tensor

    x = Tensor(np.ones(8, np.float32))

    def chain(length: int) -> Any:
        y = x
        for _ in range(length):
            y = y + x
        return y

    def looked(length: int) -> float:
        total = microseconds(lambda: chain(length).realize(), 50)
        return total - microseconds(lambda: chain(length), 50)

    short, long = looked(10), looked(110)
    at_once = microseconds(lambda: (x + x).realize(), 2000)
    return [
        Row("build and compute an elementwise op", at_once, "us", 15),
        Row("look at a known graph of 10 nodes", short, "us", 30),
        Row("look at a known graph, per further node", (long - short) / 100, "us", 0.3),
    ]


def differentiating() -> list[Row]:
    """Return the cost of building a backward graph."""
    from tinyc import Tensor

    x = Tensor(np.ones((8, 8), np.float32), requires_grad=True)
    length = 100

    def backward() -> None:
        y = x
        for _ in range(length):
            y = (y * x).tanh()
        x.grad = None
        y.sum().backward()

    cost = microseconds(backward, 3, 2 * length)
    return [Row("forward, backward and their run, per forward op", cost, "us", 30)]


PARTS: dict[str, Callable[[], Row | list[Row]]] = {
    "import": import_ratio,
    "build": building,
    "replay": replaying,
    "look": looking,
    "differentiate": differentiating,
}


def main() -> None:
    """Measure the parts asked for and print the table."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("parts", nargs="*", help=f"of {' '.join(PARTS)}; all if none is named")
    rows: list[Row] = []
    for name in p.parse_args().parts or PARTS:
        found = PARTS[name]()
        rows += found if isinstance(found, list) else [found]
    print(table(["Python's part", "measured", "budget", ""], [row.cells() for row in rows]))


if __name__ == "__main__":
    main()
