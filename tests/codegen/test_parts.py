"""A long program is divided into parts that compiler processes turn into one library."""

from __future__ import annotations

import numpy as np
import pytest

from tinyc import compiler, pipeline, program_cache
from tinyc.codegen import c
from tinyc.ir import build as b
from tinyc.ir.dtype import f32
from tinyc.runtime import host
from tinyc.runtime.buffer import Buffer
from tinyc.runtime.toolchain import Unit

pytestmark = pytest.mark.cpu("how C is compiled")


def chain():
    """Three products, so three kernels or more."""
    rng = np.random.default_rng(0)
    memory, leaves = {}, []
    for _ in range(3):
        buffer = Buffer.from_numpy(rng.random((16, 16), np.float32), "cpu")
        memory[buffer.uid] = buffer
        leaves.append(b.buffer(buffer.uid, 0, buffer.shape, f32, "cpu"))
    product = b.contract(leaves[0], leaves[1], (0, 1), (1, 2), (0, 2))
    for leaf in leaves:
        product = b.exp(b.mul(b.contract(product, leaf, (0, 1), (1, 2), (0, 2)), 1e-3))
    return [product], leaves, memory


def test_short_programs_are_whole():
    outputs, leaves, _ = chain()
    program, _ = pipeline.build_program(outputs, leaves, host.host_target())
    assert program.parts == 1 and "TC_PART" not in program.source


def test_a_divided_program_computes_the_same(monkeypatch):
    outputs, _, memory = chain()
    monkeypatch.setattr(compiler, "_programs", {})
    (whole,) = compiler.execute(outputs, memory)
    monkeypatch.setattr(c, "PART_TEXT", 500)
    compiler._programs.clear()
    monkeypatch.setattr(program_cache, "program_key", lambda *graph: None)
    (divided,) = compiler.execute(outputs, memory)
    program = compiler.compile_graph(outputs).program
    assert program.parts > 1 and "TC_PART" in program.source
    assert not any("TC_PART" in kernel.source for kernel in program.kernels)
    np.testing.assert_array_equal(divided.array, whole.array)


@pytest.mark.parametrize("lengths", [[5], [5, 5], [900, 10, 10, 880], [10] * 1000])
def test_parts_are_balanced(monkeypatch, lengths):
    monkeypatch.setattr(c, "PART_TEXT", 600)
    functions = {f"k{i}": "x" * n for i, n in enumerate(lengths)}
    groups = c.balanced(functions)
    assert sorted(n for g in groups for n in g) == sorted(functions)
    assert 1 <= len(groups) <= c.MOST_PARTS
    sizes = [sum(len(functions[n]) for n in g) for g in groups]
    assert max(sizes) - min(sizes) <= max(lengths)


def test_the_text_is_told_before_the_rest_of_the_program_is_made():
    outputs, leaves, _ = chain()
    told = []
    target = host.host_target()
    program, _ = pipeline.build_program(outputs, leaves, target, prepare=told.append)
    (unit,) = told
    assert unit == Unit(program.source, program.libm, parts=program.parts)
