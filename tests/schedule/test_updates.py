"""Stores into buffers: in place where that is right, by way of a copy where it is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from running import Memory, buffers, floats, interpreted, native, plan_of

from tinyc.ir import build as b
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node

Case = tuple[list[Node], Memory]


def pair() -> tuple[list[Node], Memory]:
    return buffers(floats(5, 4), floats(5, 4, seed=1))


def whole(x: Node, value: Node, step: int = 1) -> Node:
    """x with all of it replaced, its last axis backwards if `step` is -1."""
    rows, columns = x.shape
    starts = (0, 0 if step > 0 else columns - 1)
    return b.assign(x, value, starts, (rows, columns), (1, step))


def itself() -> Case:
    (x, _), memory = pair()
    return [b.assign(x, x)], memory


def itself_backwards() -> Case:
    (x, _), memory = pair()
    return [whole(x, x, -1)], memory


def function_of_itself_backwards() -> Case:
    (x, _), memory = pair()
    return [whole(x, b.exp(x), -1)], memory


def gathered_from_itself() -> Case:
    (x, _, i), memory = buffers(floats(5, 4), floats(5, 4), np.array([3, 3, 0, 1, 2]))
    return [b.assign(x, b.gather(b.mul(x, x), i, 0))], memory


def shifted_part() -> Case:
    (x, _), memory = pair()
    upper = b.slice_(x, (0, 0), (4, 4), (1, 1))
    return [b.assign(x, b.neg(upper), (1, 0), (4, 4), (1, 1))], memory


def swap() -> Case:
    (x, y), memory = pair()
    return [b.assign(x, y), b.assign(y, x)], memory


def fibonacci() -> Case:
    (x, y), memory = pair()
    return [b.assign(x, y), b.assign(y, b.add(x, y))], memory


def old_and_new_together() -> Case:
    (x, y), memory = pair()
    new = b.assign(x, b.mul(y, 2.0))
    return [b.sub(new, x), new], memory


def old_value_after_two_stores() -> Case:
    (x, y), memory = pair()
    first = b.assign(x, y)
    return [whole(first, b.add(x, 1.0), -1)], memory


def two_stores_in_opposite_directions() -> Case:
    (x, y), memory = pair()
    return [b.assign(whole(x, y, -1), y)], memory


def earlier_store_needs_the_later_value() -> Case:
    (x, y), memory = pair()
    value = b.exp(y)
    return [b.assign(b.assign(x, b.div(value, x)), value)], memory


def pieces_of_a_buffer() -> Case:
    (x, y), memory = pair()
    top = b.slice_(y, (0, 0), (2, 4), (1, 1))
    first = b.assign(x, b.exp(top), (0, 0), (2, 4), (1, 1))
    second = b.assign(first, b.neg(top), (3, 0), (2, 4), (1, 1))
    return [second, b.sum_(second, 1)], memory


def nothing() -> Case:
    (x, _), memory = pair()
    return [b.assign(x, 1.0, (0, 0), (0, 4), (1, 1))], memory


CASES = (itself, itself_backwards, function_of_itself_backwards, gathered_from_itself, shifted_part,
         swap, fibonacci, old_and_new_together, old_value_after_two_stores,
         two_stores_in_opposite_directions, earlier_store_needs_the_later_value,
         pieces_of_a_buffer, nothing)
cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)


@cases
@pytest.mark.parametrize("fuse", [False, True])
def test_updates_are_those_of_the_evaluator(case: Callable[[], Case], fuse: bool) -> None:
    outputs, memory = case()
    want = evaluate(outputs, memory)
    for got in (interpreted(outputs, memory, fuse), native(outputs, memory, fuse)):
        for mine, theirs in zip(got, want):
            np.testing.assert_allclose(mine, theirs, 1e-5)


def test_an_aligned_update_needs_no_memory() -> None:
    (x, y), _ = pair()
    plan = plan_of([b.assign(x, b.sub(x, b.mul(b.exp(y), 0.1)))])
    assert plan.arena_size == 0 and len(plan.stages) == 1


def test_a_result_that_turns_out_to_be_a_state_is_still_returned() -> None:
    (x, y), memory = pair()
    outputs = [b.detach(b.assign(x, b.exp(y)))]
    (got,) = native(outputs, memory)
    np.testing.assert_allclose(got, np.exp(memory[2]), 1e-5)
