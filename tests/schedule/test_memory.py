"""What lives between kernels lies in the arena, or in results that are not written yet."""

from __future__ import annotations

import numpy as np
import pytest
from running import Compiled, Memory, buffers, floats, interpreted, plan_of

from tinyc.composites import linear
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.evaluate import evaluate
from tinyc.ir.loop import Storage
from tinyc.ir.node import Node
from tinyc.ir.plan import Plan
from tinyc.schedule.memory import (
    Life,
    keep_apart,
    kernel_accesses,
    lifetimes,
    memory_text,
    result_spaces,
)

LAYERS, WIDTH, ROWS = 5, 96, 40


def flat_gradients() -> tuple[list[Node], Memory]:
    """The gradients of a chain of layers as one array, as optimizers have them."""
    arrays = [floats(WIDTH, WIDTH, seed=k) / 10 for k in range(LAYERS)]
    (x, g, *weights), memory = buffers(floats(ROWS, WIDTH), floats(ROWS, WIDTH, seed=9), *arrays)
    y = x
    for w in weights:
        y = b.boundary(b.tanh(linear.linear(y, w)))
    found = vjp([y], [g], weights)
    return [b.cat([b.reshape(w, (WIDTH * WIDTH,)) for w in found if w is not None], 0)], memory


def inside(plan: Plan) -> dict[Storage, Life]:
    """What lies in results, and while which kernels run."""
    return {s: life for s, life in lifetimes(plan).items() if s.within is not None}


def overlap(a: tuple[int, int], c: tuple[int, int]) -> bool:
    return a[0] < c[1] and c[0] < a[1]


def test_activations_lie_in_gradients_that_are_not_there_yet() -> None:
    outputs, memory = flat_gradients()
    plan = plan_of(outputs)
    (result,) = plan.slots[len(plan.leaves):]
    found = inside(plan)
    assert len(found) >= LAYERS and {s.within for s in found} == {result}
    activation = ROWS * WIDTH * 4
    assert plan.arena_size <= 2 * activation, "what is left when the first gradients are written"
    assert sum(s.nbytes for s in lifetimes(plan)) >= 8 * activation
    assert all(s.offset % 64 == 0 and s.offset + s.nbytes <= result.nbytes for s in found)
    for got, want in zip(interpreted(outputs, memory), evaluate(outputs, memory)):
        np.testing.assert_allclose(got, want, 1e-4, 1e-5)


def test_nothing_meets_in_a_result() -> None:
    plan = plan_of(flat_gradients()[0])
    (space,) = result_spaces(plan)
    written = [i for i, k in enumerate(plan.kernels) if space.result in kernel_accesses(k)[1]]
    assert sorted({s.first for s in space.spans} - {0}) == written
    assert len(written) >= LAYERS, "gradients are written by kernels of their own"
    assert sum({(s.begin, s.end): s.end - s.begin for s in space.spans}.values()) == (
        space.result.nbytes), "each of them a part"
    lives = inside(plan)
    for s, life in lives.items():
        own = s.offset, s.offset + s.nbytes
        for span in space.spans:
            assert life.last < span.first or not overlap(own, (span.begin, span.end))
        for other, theirs in lives.items():
            together = life.first <= theirs.last and theirs.first <= life.last
            assert s is other or not together or not overlap(
                own, (other.offset, other.offset + other.nbytes))


def test_every_device_takes_places_in_results(backend: str) -> None:
    outputs, memory = flat_gradients()
    compiled = Compiled(outputs, device=backend)
    program = compiled.program
    within = [s for s in program.storages if s.within]
    assert within and all(s.within == "out0" for s in within)
    assert program.footprint(1) < program.arena_size + sum(
        s.nbytes for s in program.storages if not s.in_arena)
    assert max(program.live_bytes()) <= program.arena_size
    first, again = compiled(memory), compiled(memory)
    np.testing.assert_allclose(first[0], evaluate(outputs, memory)[0], 1e-4, 1e-5)
    np.testing.assert_array_equal(first[0], again[0])


@pytest.mark.parametrize("late", [False, True])
def test_a_kernel_that_reads_a_value_does_not_write_over_it(late: bool) -> None:
    """Two kernels follow: the one that reads it last, and the one that stores the result."""
    (x,), memory = buffers(floats(50, 64))
    value = b.boundary(b.exp(x))
    total = b.boundary(b.sum_(b.mul(value, value), (0,)))
    other = b.expand(b.reshape(total, (1, 64)), (50, 64))
    outputs = [b.add(other, 1.0) if late else b.add(other, value)]
    plan = plan_of(outputs)
    sizes = [s.nbytes for s in inside(plan)]
    assert (value.size * 4 in sizes) is late
    np.testing.assert_allclose(interpreted(outputs, memory)[0], evaluate(outputs, memory)[0], 1e-5)


def test_states_are_no_memory_for_others() -> None:
    """What is there before a program runs is kept until it is overwritten."""
    (x, state), _ = buffers(floats(50, 64), floats(50, 64))
    total = b.boundary(b.sum_(b.boundary(b.exp(x)), (0,)))
    new = b.expand(b.reshape(total, (1, 64)), (50, 64))
    assert not inside(plan_of([b.assign(state, new)]))


def test_places_in_results_are_told_and_can_be_given_up() -> None:
    plan = plan_of(flat_gradients()[0])
    assert " of out0, needed in " in memory_text(plan)
    size, moved = plan.arena_size, inside(plan)
    keep_apart(plan)
    assert not inside(plan) and " of out0" not in memory_text(plan)
    assert all(size <= s.offset <= plan.arena_size - s.nbytes for s in moved)
