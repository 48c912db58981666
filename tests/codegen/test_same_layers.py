"""Layers that do the same are compiled once, wherever their parameters lie."""

from __future__ import annotations

import re

import numpy as np
import pytest
from running import Compiled, buffers, floats, program_of

from tinyc.composites import activation, linear
from tinyc.ir import build as b
from tinyc.ir.node import Node

pytestmark = pytest.mark.cpu("functions of C")

LAYERS = 4


def layers(sizes: list[int]) -> tuple[list[Node], dict, np.ndarray]:
    """Products with weights that lie one after another in one buffer, and relu; their value."""
    (x, flat), memory = buffers(floats(24, 16), floats(16 * sum(sizes), seed=1))
    y, expected, start = x, memory[1], 0
    for width, out in zip([16, *sizes], sizes):
        count = width * out
        weight = b.reshape(b.slice_(flat, (start,), (count,), (1,)), (out, width))
        y = activation.relu(linear.linear(y, weight))
        expected = np.maximum(expected @ memory[2][start:start + count].reshape(out, width).T, 0)
        start += count
    return [y], memory, expected


def functions(program) -> int:
    return program.source.count("static void k")


def test_equal_layers_are_one_function() -> None:
    graph, memory, expected = layers([16] * LAYERS)
    program = program_of(graph)
    assert len(program.kernels) == LAYERS and functions(program) == 1
    np.testing.assert_allclose(Compiled(graph)(memory)[0], expected, rtol=1e-4, atol=1e-4)


def test_equal_layers_of_other_lines_are_one_function_and_keep_their_notes() -> None:
    (x, w), _ = buffers(floats(24, 16), floats(16, 16, seed=1))
    hidden = activation.relu(linear.linear(x, w))
    graph = [activation.relu(linear.linear(hidden, w))]
    program = program_of(graph)
    assert len(program.kernels) == 2 and functions(program) == 1
    first, second = (kernel.source for kernel in program.kernels)
    assert first.splitlines()[0] == second.splitlines()[0]
    places = [set(re.findall(r"test_same_layers.py:\d+", text)) for text in (first, second)]
    assert places[0] and places[1] and not places[0] & places[1]


def test_layers_of_other_sizes_are_not() -> None:
    graph, memory, expected = layers([16, 12, 16, 12])
    program = program_of(graph)
    assert len(program.kernels) == LAYERS and functions(program) > 1
    np.testing.assert_allclose(Compiled(graph)(memory)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_kernel_that_reads_and_writes_one_argument_gets_its_parts_right() -> None:
    (x,), memory = buffers(floats(40))
    part = b.slice_(x, (10,), (10,), (1,))
    graph = [b.assign(x, b.add(b.exp(part), b.slice_(x, (25,), (10,), (1,))), (30,), (10,), (1,))]
    expected = memory[1].copy()
    expected[30:] = np.exp(expected[10:20]) + expected[25:35]
    np.testing.assert_allclose(Compiled(graph)(dict(memory))[0], expected, rtol=1e-6)
