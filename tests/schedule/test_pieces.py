"""Pieces of a concatenation, such as the gradients of `split`, are computed into their places."""

from __future__ import annotations

import numpy as np
import pytest
from running import buffers, floats, interpreted, native, plan_of

from tinyc.ir import build as b
from tinyc.ir.dtype import f32
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import Load, Read, Storage, Store, statements, walk
from tinyc.ir.plan import Buf
from tinyc.schedule.stage import reshaped_strides


def masked_reads(plan):
    return [e for s in plan.stages for e in walk(s.expr) if isinstance(e, Read) and e.guard]


def test_gradients_of_parts_are_stores_side_by_side():
    (x, y), memory = buffers(floats(6, 8), floats(6, 8, seed=1))
    parts = [b.exp(x), b.mul(x, y), b.neg(y)]
    padded = [b.pad(v, (0, 8 * k), (0, 16 - 8 * k), (0, 0)) for k, v in enumerate(parts)]
    graph = [b.add(b.add(padded[0], padded[1]), padded[2])]
    plan = plan_of(graph)
    assert len(plan.kernels) == 1
    assert not masked_reads(plan)
    assert sorted(s.buf.offset for s in plan.stages) == [0, 8, 16]
    assert len({s.buf.storage for s in plan.stages}) == 1
    first, second = memory[1], memory[2]
    expected = np.concatenate([np.exp(first), first * second, -second], 1)
    np.testing.assert_allclose(interpreted(graph, memory)[0], expected, rtol=1e-6)


def test_heads_are_merged_where_the_contraction_stores_them():
    """Of [batch, head, time, size] a piece [batch, time, head * size] is no copy."""
    (p, v, w), memory = buffers(floats(2, 4, 8, 8), floats(2, 4, 8, 5), floats(2, 8, 20))
    heads = b.contract(p, v, (0, 1, 2, 3), (0, 1, 3, 4), (0, 1, 2, 4))
    merged = b.reshape(b.permute(heads, (0, 2, 1, 3)), (2, 8, 20))
    graph = [b.cat([w, merged, b.exp(w)], 2)]
    plan = plan_of(graph)
    assert sorted(s.kind for s in plan.stages) == ["contract", "map", "map"]
    stores = [s for k in plan.kernels for s in statements(k.body) if isinstance(s, Store)]
    tiles = [s for s in stores if isinstance(s.value, Load) and s.value.storage.role == "tile"]
    assert tiles and all(s.storage.role == "slot" for s in tiles)
    q, u, x = (memory[k] for k in (1, 2, 3))
    merged_value = (q @ u).transpose(0, 2, 1, 3).reshape(2, 8, 20)
    expected = np.concatenate([x, merged_value, np.exp(x)], 2)
    for result in (interpreted(graph, memory), native(graph, memory)):
        np.testing.assert_allclose(result[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape,strides,new", [
    ((4, 6), (18, 1), (4, 2, 3)),
    ((4, 6), (18, 1), (2, 2, 6)),
    ((4, 6), (18, 1), (1, 4, 1, 6)),
    ((2, 3, 4), (30, 8, 2), (2, 12)),
    ((4, 6), (6, 1), (24,)),
    ((4, 6), (18, 1), (24,)),
    ((4, 6), (18, 1), (3, 8)),
    ((2, 3, 4), (30, 8, 2), (6, 4)),
])  # fmt: skip
def test_a_region_in_another_shape(shape, strides, new):
    whole = np.arange(100)
    region = np.lib.stride_tricks.as_strided(whole, shape, [s * 8 for s in strides])
    buf = Buf(Storage("x", 100, f32, "arena"),
              shape, strides)
    found = reshaped_strides(buf, new)
    expected = region.reshape(new)
    if not np.shares_memory(expected, whole):
        assert found is None
        return
    same = Buf(buf.storage, new, found)
    variables = [Var(f"i{k}", n) for k, n in enumerate(new)]
    address = same.address(tuple(map(Affine.of, variables)))
    for index in np.ndindex(*new):
        assert whole[address.evaluate(dict(zip(variables, index)))] == expected[index]


def test_a_transposed_value_assigned_to_its_square_is_read_back_transposed():
    """A value may be computed through a permutation into a buffer that others read in order."""
    (state, x), memory = buffers(floats(3, 3), floats(3, 3, seed=1))
    after = b.assign(state, b.permute(b.exp(x), (1, 0)))
    graph = [after, b.neg(after)]
    expected = np.exp(memory[2]).T
    for result in (interpreted(graph, dict(memory)), native(graph, dict(memory))):
        np.testing.assert_allclose(result[0], expected, rtol=1e-6)
        np.testing.assert_allclose(result[1], -expected, rtol=1e-6)
