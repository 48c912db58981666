"""Generated C of a few kernels, kept as text: a change of the generator shows as a diff.

`pytest tests/golden --update-golden` writes the files anew; read the diff before committing it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import buffers, floats, program_of

from tinyc.composites import activation, convolution, linear, reductions
from tinyc.ir import build as b
from tinyc.ir.node import Node


def add_relu() -> list[Node]:
    (x, y), _ = buffers(floats(33, 50), floats(50))
    return [activation.relu(b.add(x, y))]


def padded_copy() -> list[Node]:
    (x,), _ = buffers(floats(3, 20, 20))
    return [b.pad(x, (0, 1, 1), (0, 1, 1), (0, 0, 0))]


def row_sum() -> list[Node]:
    (x,), _ = buffers(floats(64, 100))
    return [b.sum_(x, 1)]


def whole_sum() -> list[Node]:
    (x,), _ = buffers(floats(1 << 18))
    return [b.sum_(x)]


def softmax() -> list[Node]:
    (x,), _ = buffers(floats(64, 100))
    return [reductions.softmax(x)]


def linear_relu() -> list[Node]:
    (x, w, c), _ = buffers(floats(32, 64), floats(16, 64), floats(16))
    return [activation.relu(linear.linear(x, w, c))]


def convolution_3x3() -> list[Node]:
    (x, w), _ = buffers(floats(2, 3, 10, 10), floats(8, 3, 3, 3))
    return [convolution.conv(x, w)]


def embedding_and_its_gradient() -> list[Node]:
    (table, g, i), _ = buffers(floats(10, 16), floats(5, 16), np.arange(5))
    return [b.gather(table, i), b.scatter_add(g, i, 0, 10)]


def momentum_in_place() -> list[Node]:
    (p, g, m), _ = buffers(floats(1000), floats(1000), floats(1000))
    moved = b.add(b.mul(m, 0.9), g)
    return [b.assign(p, b.sub(p, b.mul(moved, 0.1))), b.assign(m, moved)]


CASES = (add_relu, padded_copy, row_sum, whole_sum, softmax, linear_relu, convolution_3x3,
         embedding_and_its_gradient, momentum_in_place)
NOTE = re.compile(r" +// .*")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_source(case: Callable[[], list[Node]], request: pytest.FixtureRequest) -> None:
    source = "\n".join(kernel.source for kernel in program_of(case()).kernels)
    found = "\n".join(NOTE.sub("", line) for line in source.splitlines()) + "\n"
    path = Path(__file__).with_name(f"{case.__name__}.c")
    if request.config.getoption("--update-golden"):
        path.write_text(found)
    assert found == path.read_text(), f"{path.name} changed: see --update-golden"
