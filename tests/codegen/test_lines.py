"""Stores that go past the caches, and rows that are asked for ahead; what stays equal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from running import Compiled, buffers, floats, plan_of

from tinyc.codegen.interpret import run_kernels
from tinyc.codegen.lines import far_stores
from tinyc.ir import build as b
from tinyc.ir.evaluate import evaluate
from tinyc.ir.loop import Prefetch, Store, statements
from tinyc.ir.node import Node
from tinyc.ir.plan import Plan
from tinyc.ir.program import CPU

pytestmark = pytest.mark.cpu("stores past the caches")

TINY = {"l2": 1 << 10, "l3": 8 << 10}
TARGET = replace(CPU, **TINY)


def streamed(plan: Plan) -> list[str]:
    """The storages that a plan's kernels store past the caches."""
    return [s.storage.name for k in plan.kernels for s in statements(k.body)
            if isinstance(s, Store) and s.streams]


def normalized(x: Node) -> Node:
    """Rows less their mean, over the root of their mean square."""
    n = x.shape[-1]

    def mean(v: Node) -> Node:
        return b.expand(b.mul(b.sum_(v, (1,), keepdims=True), 1 / n), v.shape)

    centred = b.sub(x, mean(x))
    return b.div(centred, b.sqrt(b.add(mean(b.mul(centred, centred)), 1e-5)))


@pytest.mark.parametrize("n", [16, 1000, 4096, 5003])
def test_streamed_results_are_equal(n: int) -> None:
    (x, y), memory = buffers(floats(n), floats(n, seed=1))
    out = b.add(b.mul(x, y), x)
    compiled = Compiled([out], split=True, l2=32, l3=32)
    (want,) = Compiled([out])(memory)
    for threads in (1, 3):
        np.testing.assert_array_equal(compiled(memory, threads)[0], want)
    (kernel,) = compiled.program.kernels
    assert kernel.source.count("} tc_stream(") == 1
    assert kernel.source.endswith("tc_fence(); }")


@pytest.mark.parametrize("columns", [64, 100, 101])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_need_not_begin_at_a_cache_line(columns: int, dtype: type) -> None:
    (x,), memory = buffers(floats(37, columns).astype(dtype))
    out = normalized(x)
    compiled = Compiled([out], split=True, **TINY)
    assert "tc_stream(" in compiled.program.source
    np.testing.assert_allclose(compiled(memory)[0], evaluate([out], memory)[0], 1e-5, 1e-6)


def test_what_fits_the_cache_stays_there() -> None:
    (x,), _ = buffers(floats(1000))
    out = b.add(x, 1)
    assert not streamed(plan_of([out], target=replace(CPU, l2=1 << 10, l3=8001)))
    assert streamed(plan_of([out], target=replace(CPU, l2=1 << 10, l3=7999))) == ["out0"]
    assert "tc_stream(" not in Compiled([out]).program.source
    assert not streamed(plan_of([out], target=replace(TARGET, lanes=1)))


def test_what_is_read_soon_stays_in_the_cache() -> None:
    """Of two stored values of equal size one is read by the next kernel, one far later."""
    (x,), _ = buffers(floats(1000))
    soon, late = b.boundary(b.add(x, 1)), b.boundary(b.mul(x, 3))
    other = soon
    for i in range(4):
        other = b.boundary(b.mul(other, 2 + i))
    plan = plan_of([b.add(other, late)], until="lower", target=TARGET)
    far = far_stores(plan.kernels, replace(TARGET, l3=14_000))
    stored = [{s.storage for s in statements(k.body) if isinstance(s, Store)} for k in plan.kernels]
    assert any(far), "one is far"
    assert sum(map(len, far)) < sum(map(len, stored)), "others are not"
    for past, mine in zip(far, stored):
        assert past <= mine


def test_updates_in_place_have_their_lines_already() -> None:
    (x, y), _ = buffers(floats(5000), floats(5000))
    assert not streamed(plan_of([b.assign(x, b.add(x, y))], target=TARGET))


def test_the_first_pass_asks_for_later_rows() -> None:
    rows, columns = 40, 256
    (x,), memory = buffers(floats(rows, columns))
    plan = plan_of([normalized(x)], target=TARGET)
    (kernel,) = plan.kernels
    asked = [s.load for s in statements(kernel.body) if isinstance(s, Prefetch)]
    lines = {load.index.const for load in asked}
    assert len(lines) == len(asked), "each line once"
    assert all(load.storage is plan.slots[0] for load in asked)
    assert min(lines) == (16 << 10) // 4, "as many rows ahead as are 16 KiB"
    slots = {s: np.zeros(s.size, np.float32) for s in plan.slots}
    slots[plan.slots[0]][:] = memory[1].ravel()
    run_kernels(plan.kernels, slots, plan.arena_size)
    np.testing.assert_allclose(slots[plan.slots[1]].reshape(rows, columns),
                               evaluate([normalized(x)], memory)[0], 1e-5, 1e-6)


def test_small_arrays_are_not_asked_for() -> None:
    (x,), _ = buffers(floats(4, 256))
    kernel = plan_of([normalized(x)]).kernels[0]
    assert not any(isinstance(s, Prefetch) for s in statements(kernel.body))
