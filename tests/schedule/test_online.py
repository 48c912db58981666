"""Chains of products run tile by tile where rows are too long, or no loop is around them."""

from __future__ import annotations

import numpy as np
import pytest
from chains import Case, check, some_steps, steps_between
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import Compiled, buffers, floats, interpreted, native, plan_of, unexplained

from tinyc.composites import attention, linear, randomness, reductions
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.evaluate import evaluate
from tinyc.ir.index import Data
from tinyc.ir.node import toposort
from tinyc.ir.ops import Op
from tinyc.ir.plan import Plan, Stage
from tinyc.schedule import block, online


@pytest.fixture
def tiny_tiles(monkeypatch):
    """Tiles of four rows and columns, as if nothing fitted a cache."""
    monkeypatch.setattr(online, "MIN_TILE", 4)
    monkeypatch.setattr(online, "WIDER", 0)
    monkeypatch.setattr(online, "SHARE", 1 << 30)
    monkeypatch.setattr(online, "COLUMNS_SHARE", 1 << 30)
    monkeypatch.setattr(online, "ONCE_SHARE", 1 << 30)
    monkeypatch.setattr(block, "MIN_ROWS", 4)


def attend(arrays: list[np.ndarray], gradient: bool = True, **options) -> Case:
    (q, k, v, g), memory = buffers(*arrays)
    y = attention.attention(q, k, v, **options)
    return [y, *(vjp([y], [g], [q, k, v]) if gradient else [])], memory


def operands(t: int = 24, s: int = 0, batch: tuple[int, ...] = (1, 1)) -> list[np.ndarray]:
    return [floats(*batch, n, 8, seed=i) for i, n in enumerate((t, s or t, s or t, t))]


def tiles(plan: Plan) -> list[tuple[int, int]]:
    return [(r.terms["rows"], r.terms["columns"]) for r in plan.remarks if r.pass_name == "online"]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("batch", [(1, 1), (), (2, 3), (1, 2)])
def test_attention_runs_in_tiles(batch, gradient, causal, tiny_tiles):
    case = attend(operands(batch=batch), gradient, causal=causal)
    plan = plan_of(case[0])
    assert tiles(plan) == [(4, 4)]
    assert sum(any(s.kind == "contract" for s in n.stages()) for n in plan.nests) == 1
    assert unexplained(plan) == []
    (told,) = (r.message for r in plan.remarks if r.pass_name == "online")
    assert "sums of shares are combined from blocks of columns" in told
    check(case)
    check(case, native)


@pytest.fixture
def tiny_rows(monkeypatch):
    """Blocks of four rows, as if they did not fit a cache and what stands along columns did."""
    for module in (block, online):
        monkeypatch.setattr(module, "SHARE", 1 << 30)
    monkeypatch.setattr(online, "WIDER", 0)
    monkeypatch.setattr(block, "MIN_ROWS", 4)


def blocks(plan: Plan) -> list[int]:
    return [r.terms["rows"] for r in plan.remarks if r.pass_name == "block"]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("batch", [(1, 1), ()])
def test_rows_of_one_head_run_in_blocks(batch, gradient, causal, tiny_rows):
    case = attend(operands(batch=batch), gradient, causal=causal)
    plan = plan_of(case[0])
    assert blocks(plan) == [4] and tiles(plan) == []
    assert sum(any(s.kind == "contract" for s in n.stages()) for n in plan.nests) == 1
    assert unexplained(plan) == []
    check(case)
    check(case, native)


@pytest.mark.parametrize("odd", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("which", range(4))
def test_odd_numbers_in_blocks_of_rows(which, odd, tiny_rows):
    arrays = operands()
    arrays[which][0, 0, 14, 0] = odd
    check(attend(arrays, causal=True))


def test_one_short_head_needs_no_memory_for_its_scores():
    for t, rows in ((1024, 64), (4096, 32)):
        plan = plan_of(attend([np.zeros((1, 1, t, 64), np.float32)] * 4)[0])
        assert blocks(plan) == [rows] and len(plan.nests) == 1
        # Two gradients for each of the chunks.
        assert plan.arena_size == 8 * 2 * t * 64 * 4


def test_rows_and_columns_may_differ(tiny_tiles):
    case = attend(operands(24, 40))
    assert tiles(plan_of(case[0])) == [(4, 4)]
    check(case)


@pytest.mark.parametrize("heads", [1, 8])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_memory_grows_with_the_length_and_not_with_its_square(heads, causal, gradient):
    needed = []
    for t in (32768, 131072):
        case = attend([np.broadcast_to(np.float32(0), (1, heads, t, 64))] * 4, gradient,
                      causal=causal)
        plan = plan_of(case[0])
        rows = 512 if causal else 256
        assert tiles(plan) == [(rows, 512)] and len(products(plan)) == (8 if gradient else 2)
        scratch = sum(s.buf.storage.nbytes for s in plan.stages
                      if s.buf.storage.role == "scratch")
        needed.append((plan.arena_size, scratch))
        # Two gradients, keys' and values', for each of the chunks; tiles and numbers for rows; for
        # each block of columns a sum of values for each row.
        assert plan.arena_size <= 8 * 2 * t * 64 * 4 + 4096
        blocks = t // 512
        assert scratch <= 4 * (7 * rows * 512 + blocks * rows * (64 + 4) + 2 * rows * 64 + 8 * rows)
    (arena, scratch), (longer_arena, longer_scratch) = needed
    assert longer_arena <= 4 * arena + 4096 and longer_scratch <= 4 * scratch


def products(plan: Plan) -> list[Stage]:
    """The products that are made for every block of rows."""
    return [s for s in plan.stages if s.kind == "contract" and not redone(s)]


def redone(stage: Stage) -> bool:
    """True if a stage runs only for blocks of rows with a number that is not finite."""
    return any(isinstance(atom, Data) and len(limit.terms) == 1
               for limit in stage.limits.values() for atom, _ in limit.terms)


def test_short_rows_stay_complete():
    case = attend([np.zeros((2, 2, 2048, 64), np.float32)] * 4)
    assert tiles(plan_of(case[0])) == []


def test_a_product_that_is_not_much_larger_than_its_operands_is_left_whole():
    (x, w, u), _ = buffers(*(np.zeros(s, np.float32) for s in ((2048, 512), (512, 2048),
                                                               (2048, 512))))
    hidden = b.tanh(linear.matmul(x, w))
    assert tiles(plan_of([linear.matmul(hidden, u)])) == []


ODD = [np.nan, np.inf, -np.inf, 3e38]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("which", range(4))
def test_odd_numbers_come_out_where_the_evaluator_has_them(which, odd, causal, tiny_tiles):
    for place in [(0, 0, 0, 3), (0, 0, 14, 0), (0, 0, 23, 7)]:
        arrays = operands()
        arrays[which][place] = odd
        check(attend(arrays, causal=causal))


def test_large_numbers_do_not_overflow_in_a_part_of_the_sum(tiny_tiles):
    arrays = operands()
    arrays[2][:] = 3e38  # a sum of shares of it is as large, one of exponentials would be infinite
    arrays[3][:] = 0
    check(attend(arrays))


@pytest.mark.parametrize("near", [False, True])
def test_an_infinite_value_with_a_share_of_zero_is_not_a_number(near, tiny_tiles):
    arrays = operands()
    arrays[0][:], arrays[1][:] = 1.0, 0.0
    # Scores of -2, -62 and -162: exp(-62) and exp(-100) are not zero, but exp(-160) is. The largest
    # score is in the block of the smallest one, or in the next, where no block has an exp(-160).
    arrays[1][0, 0, :, 0], arrays[1][0, 0, 6, 0] = -175.0, -450.0
    arrays[1][0, 0, 5 if near else 9, 0] = -5.0
    arrays[2][0, 0, 6, 0] = np.inf
    with np.errstate(all="ignore"):
        case = attend(arrays, gradient=False)
        assert np.isnan(evaluate(*case)[0]).any()
    check(case)
    check(case, native)


def test_only_rows_with_a_number_that_is_not_finite_are_made_again(tiny_tiles):
    """Products of shares differ in bits from combined sums: elsewhere the bits stay."""
    arrays = operands()
    outputs, memory = attend(arrays, gradient=False)
    (plain,) = interpreted(outputs, memory)
    memory[1] = memory[1].copy()
    memory[1][0, 0, 9, 3] = np.nan
    (odd,) = interpreted(outputs, memory)
    assert np.isnan(odd[0, 0, 9]).all()
    others = [r for r in range(24) if r // 4 != 9 // 4]
    np.testing.assert_array_equal(odd[0, 0, others], plain[0, 0, others])
    again = [r for r in range(8, 12) if r != 9]
    np.testing.assert_allclose(odd[0, 0, again], plain[0, 0, again], 1e-5)
    assert (odd[0, 0, again] != plain[0, 0, again]).any()


@given(st.data())
@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_any_attention_is_as_the_evaluator_has_it(tiny_tiles, data):
    draw = data.draw
    t, s = (4 * draw(st.integers(2, 6)) for _ in range(2))
    arrays = operands(t, s, draw(st.sampled_from([(1, 1), (1, 2), (3,)])))
    arrays[0] *= draw(st.sampled_from([1.0, 30.0, 1000.0]))
    for _ in range(draw(st.integers(0, 2))):
        array = arrays[draw(st.integers(0, 3))]
        array.reshape(-1)[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(ODD))
    kind = draw(st.sampled_from(["", "causal", "bool", "added"]))
    (q, k, v, g, m), memory = buffers(*arrays, mask_of(kind, t, s))
    y = attention.attention(q, k, v, m if kind in ("bool", "added") else None, kind == "causal")
    gradient = draw(st.booleans())
    check(([y, *(vjp([y], [g], [q, k, v]) if gradient else [])], memory))


def mask_of(kind: str, t: int, s: int) -> np.ndarray:
    keep = np.random.default_rng(t + s).random((t, s)) < 0.6
    return keep if kind == "bool" else np.where(keep, 0.5, -np.inf).astype("f")


MASKS = {
    "nobody": np.zeros((24, 24), bool),
    "some": np.random.default_rng(5).random((24, 24)) < 0.2,
    "columns from 12 on": np.arange(24)[None] >= np.full((24, 1), 12),
    "a row of nobody": np.arange(24)[:, None] != np.full((1, 24), 7),
    "added": np.where(np.random.default_rng(6).random((24, 24)) < 0.5, -np.inf, 0.5).astype("f"),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("safe", [True, False])
def test_masked_rows(name, safe, tiny_tiles):
    (q, k, v, g, m), memory = buffers(*operands(), MASKS[name])
    if safe:  # zeros for a row of nobody
        y = attention.attention(q, k, v, m)
    else:  # and NaN
        scores = linear.matmul(q, b.permute(k, (0, 1, 3, 2)))
        low = b.where(m, scores, -np.inf) if MASKS[name].dtype == bool else b.add(scores, m)
        y = linear.matmul(reductions.softmax(low), v)
    case = [y, *vjp([y], [g], [q, k, v])], memory
    assert tiles(plan_of(case[0])) == [(4, 4)]
    check(case)


def test_dropout_leaves_out_the_same_shares_each_time_they_are_made(tiny_tiles):
    arrays = operands(batch=(1, 2))
    (q, k, v, g, key), memory = buffers(*arrays, np.array(7, np.uint32))

    def draw(shape):
        return randomness.bits((key, 9), 0, shape)

    y = attention.attention(q, k, v, causal=True, dropout_p=0.3, draw=draw)
    case = [y, *vjp([y], [g], [q, k, v])], memory
    assert tiles(plan_of(case[0])) == [(4, 4)]
    check(case)


@pytest.mark.parametrize("batch", [(1, 1), (1, 2)])
def test_bits_do_not_depend_on_threads(batch, tiny_tiles):
    outputs, memory = attend(operands(64, batch=batch), causal=True)
    compiled = Compiled(outputs, split=True)
    assert max(k.chunks for k in compiled.program.kernels) > 1
    one, *others = (compiled(memory, threads) for threads in (1, 2, 3))
    for other in others:
        for x, y in zip(one, other):
            np.testing.assert_array_equal(x, y)


def test_shares_that_are_asked_for_are_stored_whole(tiny_tiles):
    (q, k, v), memory = buffers(*operands()[:3])
    share = attention.shares(q, k)
    outputs = [linear.matmul(share, v), share]
    assert tiles(plan_of(outputs)) == []
    check((outputs, memory))


def test_what_overwrites_an_operand_waits_for_the_tiles(tiny_tiles):
    outputs, memory = attend(operands())
    key = next(n for n in toposort(outputs) if n.op is Op.BUFFER and n.attrs[0] == 2)
    outputs = [*outputs, b.assign(key, b.mul(outputs[2], 0.5))]
    assert tiles(plan_of(outputs)) == [(4, 4)]
    check((outputs, memory))


@pytest.mark.parametrize("gradient", [False, True])
@given(some_steps, st.sampled_from([(), (3,), (1, 2)]))
@settings(max_examples=40, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_any_chain_between_two_products(tiny_tiles, gradient, steps, batch):
    check(steps_between(steps, batch, gradient))
