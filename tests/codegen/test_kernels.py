"""Kernels that were once wrong, and graphs of unusual size."""

from __future__ import annotations

import numpy as np
import pytest
from running import Compiled, buffers, floats, interpreted, native

from tinyc.ir import build as b
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node


def check(outputs: list[Node], memory: dict[int, np.ndarray]) -> None:
    want = evaluate(outputs, memory)
    for fuse in (False, True):
        for got in (interpreted(outputs, memory, fuse), native(outputs, memory, fuse)):
            for mine, theirs in zip(got, want):
                np.testing.assert_allclose(mine, theirs, 1e-4, 1e-5)


def test_a_guarded_read_of_a_value_in_a_register() -> None:
    (x,), memory = buffers(floats(4, 1, 7, 4))
    check([b.fold(b.fold(x, 0, 10, 1, 2), 1, 7, 2, 1)], memory)


@pytest.mark.parametrize("step", [1, -1])
def test_short_rows_read_under_a_guard(step: int) -> None:
    """gcc 12 makes wrong vectors of neighbouring stores of masked loads."""
    (x,), memory = buffers(floats(15, 2))
    turned = b.slice_(x, (0, 0 if step > 0 else 1), (15, 2), (1, step))
    check([b.pad(turned, (1, 0), (1, 0), (0, 0))], memory)


def test_contractions_of_empty_and_repeated_operands() -> None:
    (x, y, u, v), memory = buffers(floats(4, 0), floats(5, 0), floats(2, 1, 5), floats(8, 5))
    wide = b.expand_axes(u, (2, 1, 4, 5), (0, 1, 3))
    check([b.contract(x, y, (0, 1), (2, 1), (0, 2)),
           b.contract(wide, v, (0, 1, 2, 3), (4, 3), (0, 1, 2, 4))], memory)


def test_an_empty_result_beside_others() -> None:
    (x, y), memory = buffers(floats(1, 3, 17), floats(3, 0, 5))
    check([b.sum_(x, (1, 2)), b.contract(x, y, (0, 1, 2), (1, 3, 4), (0, 2, 4, 3)),
           b.sum_(y, 1)], memory)


@pytest.mark.parametrize("bad", [-1, 7, 1 << 40])
@pytest.mark.parametrize("fuse", [False, True])
def test_an_index_out_of_range_is_told_and_skipped(bad: int, fuse: bool) -> None:
    index = np.array([0, 3, bad, 2])
    (x, u, i), memory = buffers(floats(7, 5), floats(4, 5), index)
    for out in (b.gather(x, i, 0), b.scatter_add(u, i, 0, 7), b.gather(b.iota(7), i)):
        with pytest.raises(IndexError, match=f"index {bad} is out of range"):
            native([out], memory, fuse)


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 300), (70_000,), (40, 2000)], ids=str)
def test_threads_do_not_change_a_bit(shape: tuple[int, ...]) -> None:
    (x,), memory = buffers(floats(*shape))
    total = b.sum_(x)
    outputs = [total, b.max_(x), b.sum_(b.exp(x), 0), b.sum_(x, len(shape) - 1), b.div(x, total)]
    program = Compiled(outputs, split=True)
    one = program(memory, 1)
    for threads in (2, 3):
        for mine, theirs in zip(program(memory, threads), one):
            assert mine.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("m,n,k", [(4, 4, 1), (7, 5, 3), (33, 17, 64), (64, 48, 100), (5, 130, 9)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_register_tiles_of_odd_sizes(m: int, n: int, k: int, dtype: str) -> None:
    (x, w, c), memory = buffers(*[a.astype(dtype) for a in (floats(m, k), floats(n, k), floats(n))])
    y = b.add(b.contract(x, w, (0, 1), (2, 1), (0, 2)), c)
    across = b.contract(w, x, (2, 1), (0, 1), (2, 0))
    check([b.maximum(y, 0.0), b.sum_(across, 0)], memory)


def test_ten_thousand_operations_in_a_row() -> None:
    (x, y), memory = buffers(floats(64), floats(64, seed=1))
    n = x
    for _ in range(5000):
        n = b.add(b.mul(n, 0.5), y)
    program = Compiled([n])
    assert len(program.program.kernels) < 20
    np.testing.assert_allclose(program(memory)[0], evaluate([n], memory)[0], 1e-5)


def test_values_that_double_their_users_are_computed_once() -> None:
    (x, _), memory = buffers(floats(64), floats(64))
    n = x
    for _ in range(60):
        turned = b.slice_(n, (63,), (64,), (-1,))
        n = b.mul(b.add(n, turned), 0.5)
    program = Compiled([n])
    assert program.program.flops < 60 * 64 * 30
    np.testing.assert_allclose(program(memory)[0], evaluate([n], memory)[0], 1e-4, 1e-5)
