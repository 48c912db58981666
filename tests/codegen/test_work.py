"""What kernels compute, in units of a multiply-add of a vector."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest
from running import SPLITTING, buffers, floats, plan_of

from tinyc.codegen import work as w
from tinyc.ir import build as b
from tinyc.ir.dtype import f64
from tinyc.ir.node import Node
from tinyc.ir.ops import Op
from tinyc.ir.program import CPU, Target, Work


def of(graph: Node, target: Target = CPU) -> Work:
    (kernel,) = plan_of([graph], target=target).kernels
    return w.work(kernel, target.lanes)


def leaf(*shape: int) -> Node:
    (node,), _ = buffers(floats(*shape))
    return node


def total(done: Work) -> float:
    return done.tile + done.vector + done.scalar + done.finish


def product(m: int, n: int, k: int) -> Node:
    return b.contract(leaf(m, k), leaf(k, n), (0, 1), (1, 2), (0, 2))


def test_costs_of_operations_are_in_bounds() -> None:
    assert all(1 < cost <= 200 for cost in w.UNITS.values())
    assert all(1 <= cost <= 100 for cost in (w.ALONE, w.FAR, w.GUARD, w.START, w.STEP, w.HIDDEN,
                                             w.ROW, w.CALL, w.TRANSPOSED))


@pytest.mark.parametrize("make", [
    lambda n: b.add(leaf(n), 1.0),
    lambda n: b.exp(leaf(n)),
    lambda n: b.sum_(leaf(n), 0),
    lambda n: b.sum_(leaf(8, n), 0),
    lambda n: product(n, 32, 32), lambda n: product(32, n, 32), lambda n: product(32, 32, n),
    lambda n: b.permute(leaf(n, 64), (1, 0)),
])  # fmt: skip
def test_more_elements_are_more_work(make) -> None:
    amounts = [total(of(make(n))) for n in (16, 100, 1000, 5000)]
    assert amounts == sorted(amounts) and amounts[0] < amounts[-1]
    assert all(math.isfinite(amount) and amount > 0 for amount in amounts)


def test_vectors_are_counted_not_numbers() -> None:
    done = of(b.mul(leaf(8000), 2.0))
    assert done.scalar == done.tile == 0
    assert 1000 < done.vector < 4000, "1000 vectors, each read, multiplied and written"
    wide = of(b.mul(leaf(8000), 2.0), replace(CPU, lanes=16))
    assert wide.vector == pytest.approx(done.vector / 2, rel=0.02)


def test_functions_cost_what_the_table_says() -> None:
    x = leaf(8000)
    assert of(b.tanh(x)).vector == pytest.approx(1000 * w.UNITS[Op.TANH], rel=0.1)


def test_wider_numbers_are_fewer_in_a_vector() -> None:
    x = leaf(8000)
    assert total(of(b.mul(b.cast(x, f64), 2.0))) > 1.5 * total(of(b.mul(x, 2.0)))


def test_a_register_tile_takes_its_multiply_adds_and_a_little() -> None:
    done = of(product(96, 64, 256))
    least = 96 * 64 * 256 / CPU.lanes
    assert least <= done.tile <= 1.3 * least
    narrow = of(product(96, 8, 256))
    assert narrow.tile >= 96 * 256, "sums of one vector are fewer than the latency asks for"


def test_what_lies_apart_costs_more() -> None:
    x = leaf(16000)
    near, apart, far = (total(of(b.mul(b.slice_(x, (0,), (1000,), (step,)), 2.0)))
                        for step in (1, 2, 16))
    assert near < apart < far


def test_guards_that_let_every_other_one_through_are_no_vectors() -> None:
    spread = of(b.pad(leaf(1000), (0,), (0,), (1,)))
    plain = of(b.pad(leaf(1000), (8,), (8,), (0,)))
    assert spread.scalar > 1000 > plain.scalar


def test_chunks_divide_the_work_and_leave_the_sum_as_it_is() -> None:
    x = leaf(64, 512)
    whole = of(b.exp(x))
    parts = of(b.exp(x), SPLITTING)
    assert total(parts) == pytest.approx(total(whole), rel=0.05)
    assert of(b.sum_(b.exp(x), 0), SPLITTING).finish > 0, "sums of chunks are added up at the end"
