"""Sums by index are divided among chunks along an axis that the index leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
from running import Compiled, buffers, floats, interpreted, plan_of

from tinyc.ir import build as b
from tinyc.ir.node import Node

CASES = [
    ("columns", (700, 384), 0, 8),
    ("columns that do not divide", (40, 100, 130), 1, 6),
    ("rows", (400, 700), 1, 8),
    ("three axes", (4, 90, 3, 64), 1, 4),
    ("no axis of its own", (3000,), 0, 1),
    ("too little work", (10, 32), 0, 1),
]


def scattered(shape: tuple[int, ...], axis: int) -> tuple[list[Node], dict, np.ndarray]:
    (updates, index), memory = buffers(floats(*shape), np.arange(shape[axis]) * 7 % 11)
    expected = np.zeros((*shape[:axis], 11, *shape[axis + 1:]), np.float32)
    np.add.at(expected, (slice(None),) * axis + (memory[2],), memory[1])
    return [b.scatter_add(updates, index, axis, 11)], memory, expected


@pytest.mark.parametrize(("shape", "axis", "chunks"), [c[1:] for c in CASES],
                         ids=[c[0] for c in CASES])
def test_chunks_never_meet(shape: tuple[int, ...], axis: int, chunks: int) -> None:
    graph, memory, expected = scattered(shape, axis)
    (kernel,) = plan_of(graph).kernels
    assert kernel.chunks == chunks
    compiled = Compiled(graph)
    for threads in (1, 2):
        assert np.array_equal(compiled(memory, threads)[0], expected), "added in the order given"


def test_parts_with_an_end_are_interpreted_as_they_are_compiled() -> None:
    graph, memory, expected = scattered((6, 5, 13), 1)
    assert np.array_equal(interpreted(graph, memory)[0], expected)


def test_a_sum_by_index_takes_no_other_work_into_its_kernel() -> None:
    """Beside columns in parts, what runs along the updates would lose its own parallel loop."""
    (g, i), _ = buffers(floats(300, 384), np.arange(300) % 11)
    graph = [b.scatter_add(g, i, 0, 11), b.sum_(b.exp(g), 1)]
    scatter, sums = plan_of(graph).kernels
    assert [len(k.members) for k in (scatter, sums)] == [1, 1] and sums.chunks > 1
