"""What is stored, and added up, only where a condition of the data holds."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from running import SPLITTING, Memory, buffers, floats, interpreted, native, plan_of

from tinyc.codegen.interpret import new_arena, run_kernel
from tinyc.codegen.watch import Watcher
from tinyc.ir import build as b
from tinyc.ir.evaluate import evaluate
from tinyc.ir.loop import If, statements
from tinyc.ir.node import Node
from tinyc.ir.plan import Plan

HEADS, PLACES, WIDTH = 2, 24, 80
pytestmark = pytest.mark.cpu("branches in the recipes of CPUs")


def over(x: Node, shape: tuple[int, ...], *axes: int) -> Node:
    """A small array repeated along the axes of `shape` that it does not have."""
    return b.expand(b.reshape(x, tuple(n if i in axes else 1 for i, n in enumerate(shape))), shape)


def appended(leaves: list[Node]) -> tuple[Node, Node]:
    """A cache with a new row for each head at a place, and where the cache is filled."""
    cache, new, places, place = leaves[:4]
    here = b.expand(place, (PLACES,))
    at = over(b.eq(places, here), cache.shape, 1)
    filled = b.or_(b.lt(places, here), b.eq(places, here))
    return b.assign(cache, b.where(at, over(new, cache.shape, 0, 2), cache)), filled


def decoding(place: int) -> tuple[list[Node], Memory]:
    """A row for each of two heads goes to a cache, and its filled places meet a query."""
    arrays = [floats(HEADS, PLACES, WIDTH), floats(HEADS, WIDTH, seed=1), np.arange(PLACES),
              np.array([place]), floats(HEADS, WIDTH, seed=2)]
    leaves, memory = buffers(*arrays)
    cache, filled = appended(leaves)
    products = b.mul(over(leaves[4], cache.shape, 0, 2), cache)
    scores = b.sum_(products, (2,))
    masked = b.where(over(filled, scores.shape, 1), b.mul(scores, 0.5), -np.inf)
    return [cache, masked], memory


def stores(plan: Plan, memory: Memory, member: str) -> int:
    """How many elements the kernels of a plan store for members of a name."""
    seen = []
    watcher = Watcher(re.compile(member), seen.append)
    leaves = [np.array(a).reshape(-1) for a in memory.values()]
    shared = dict(zip(plan.slots, leaves))
    shared |= {s: np.zeros(s.size, s.dtype.np) for s in plan.slots[len(leaves):]}
    for kernel in plan.kernels:
        run_kernel(kernel, shared, new_arena(plan.arena_size), (watcher,))
    return len(seen)


def branches(outputs: list[Node]) -> int:
    """How many conditions the kernels of a graph ask."""
    plan = plan_of(outputs)
    return sum(isinstance(s, If) for k in plan.kernels for s in statements(k.body))


@pytest.mark.parametrize("place", [0, 7, PLACES - 1])
def test_what_decoding_computes(place: int) -> None:
    outputs, memory = decoding(place)
    memory[1][:, 3] = np.nan
    memory[1][:, 5, 7] = np.inf
    want = evaluate(outputs, {k: np.array(v) for k, v in memory.items()})
    for run in (native, lambda *a: interpreted(*a, target=SPLITTING)):
        for got, expected in zip(run(outputs, memory), want):
            np.testing.assert_allclose(got, expected, 1e-5, 1e-5)


def test_only_the_new_row_is_stored_and_only_filled_places_are_summed() -> None:
    outputs, memory = decoding(7)
    plan = plan_of(outputs)
    assert stores(plan, memory, " where") == HEADS * (WIDTH + PLACES)
    few = stores(plan, memory, " reduce")
    _, memory = decoding(PLACES - 1)
    assert few - 2 * HEADS * PLACES < 0.4 * stores(plan, memory, " reduce")


Refused = Callable[[list[Node]], Node]


@pytest.mark.parametrize("value", [
    pytest.param(lambda v: b.where(over(b.lt(v[1], 0.0), v[0].shape, 1), 0.0, v[0]),
                 id="another condition for each element"),
    pytest.param(lambda v: b.where(over(v[2], v[0].shape, 0), 0.0, b.neg(v[0])),
                 id="something else where it does not hold"),
])
def test_other_choices_are_made_element_by_element(value: Refused) -> None:
    arrays = floats(16, 96), floats(96, seed=1), np.arange(16) % 3 == 0
    leaves, memory = buffers(*arrays)
    outputs = [b.assign(leaves[0], value(leaves))]
    assert branches(outputs) == 0
    want = evaluate(outputs, {k: np.array(v) for k, v in memory.items()})
    np.testing.assert_array_equal(native(outputs, memory)[0], want[0])


def test_short_rows_are_not_worth_a_branch() -> None:
    def update(columns: int) -> list[Node]:
        (x, mask), _ = buffers(floats(16, columns), np.arange(16) % 3 == 0)
        return [b.assign(x, b.where(over(mask, x.shape, 0), 0.0, x))]

    assert branches(update(63)) == 0
    assert branches(update(64)) == 1


def test_a_sum_that_others_read_too_is_made_everywhere() -> None:
    (x, mask), memory = buffers(floats(16, 96), np.arange(16) % 3 == 0)
    total = b.sum_(x, (1,))
    asked = b.where(mask, total, 0.0)
    assert branches([asked]) == 1
    assert branches([asked, b.neg(total)]) == 0
    assert branches([b.where(mask, 0.0, total)]) == 0
    long = b.lt(b.exp(b.cast(mask, x.dtype)), 2.0)
    assert branches([b.where(long, total, 0.0)]) == 0, "the condition would be computed twice"
    assert branches([b.where(b.lt(total, 0.0), total, 0.0)]) == 0
    for outputs in ([asked], [asked, b.neg(total)]):
        for got, want in zip(native(outputs, memory), evaluate(outputs, memory)):
            np.testing.assert_allclose(got, want, 1e-5, 1e-5)


def test_indices_are_checked_whether_or_not_a_sum_is_read() -> None:
    (x, index, mask), _ = buffers(floats(16, 96), np.zeros((16, 96), np.int64),
                                  np.arange(16) % 3 == 0)
    picked = b.gather(b.reshape(x, (16 * 96,)), b.reshape(index, (16 * 96,)), 0)
    total = b.sum_(b.reshape(picked, (16, 96)), (1,))
    assert branches([b.where(mask, total, 0.0)]) == 0
