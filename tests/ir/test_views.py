"""Index functions of the views against what the reference evaluator makes of them."""

from __future__ import annotations

import itertools
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyc.ir import dtype as dtypes
from tinyc.ir.evaluate import evaluate
from tinyc.ir.index import Affine, Var
from tinyc.ir.node import Node, node
from tinyc.ir.ops import OPS, Op
from tinyc.ir.views import INDEX, Between, Divides, reshape_groups, source_index


def leaf(shape: tuple[int, ...], uid: int = 0) -> Node:
    return node(Op.BUFFER, (), (uid, 0, shape, dtypes.f32, "numpy"))


def values(shape: tuple[int, ...], uid: int = 0) -> np.ndarray:
    return (np.arange(1, prod(shape) + 1, dtype=np.float32) + 1000 * uid).reshape(shape)


def gather(view: Node, arrays: list[np.ndarray]) -> np.ndarray:
    """Every element of a view of one node, read from its sources through `source_index`."""
    vars_ = tuple(Var(f"i{k}", n) for k, n in enumerate(view.shape))
    idx = tuple(Affine.of(v) for v in vars_)
    reads = [(array, source_index(view, idx, s)) for s, array in enumerate(arrays)]
    out = np.zeros(view.shape, np.float32)
    for point in itertools.product(*map(range, view.shape)):
        env = dict(zip(vars_, point))
        found = [
            array[tuple(i.evaluate(env) for i in at)]
            for array, (at, conds) in reads
            if all(c.holds(env) for c in conds)
        ]
        assert len(found) == 1 or (view.op is Op.PAD and not found)
        out[point] = found[0] if found else 0
    return out


shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)


@st.composite
def views(draw: st.DrawFn, x: Node) -> Node:
    """A view of x."""
    rank = len(x.shape)
    choices = [Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.SLICE, Op.PAD, Op.DETACH, Op.MATERIALIZE]
    op = draw(st.sampled_from(choices + [Op.WINDOW] * bool(rank)))
    if op is Op.WINDOW:
        axis = draw(st.integers(0, rank - 1))
        dilation, stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        size = draw(st.integers(1, (x.shape[axis] - 1) // dilation + 1))
        return node(op, (x,), (axis, size, stride, dilation))
    if op is Op.RESHAPE:
        return node(op, (x,), (draw(reshaped(prod(x.shape))),))
    if op is Op.PERMUTE:
        return node(op, (x,), (tuple(draw(st.permutations(range(rank)))),))
    if op is Op.EXPAND:
        return draw(expanded(x))
    if op is Op.SLICE:
        return draw(sliced(x))
    if op is Op.PAD:
        sizes = st.lists(st.integers(0, 2), min_size=rank, max_size=rank).map(tuple)
        return node(op, (x,), (draw(sizes), draw(sizes), draw(sizes)))
    return node(op, (x,), ())


@st.composite
def reshaped(draw: st.DrawFn, total: int) -> tuple[int, ...]:
    shape = []
    while total > 1 and len(shape) < 4:
        n = draw(st.sampled_from([d for d in range(1, total + 1) if total % d == 0]))
        shape.append(n)
        total //= n
    return (*shape, total)


@st.composite
def expanded(draw: st.DrawFn, x: Node) -> Node:
    out: list[int] = []
    axes = []
    for n in x.shape:
        out.extend(draw(st.lists(st.integers(1, 3), max_size=1)))
        axes.append(len(out))
        out.append(n if n > 1 else draw(st.integers(1, 3)))
    out.extend(draw(st.lists(st.integers(1, 3), max_size=1)))
    return node(Op.EXPAND, (x,), (tuple(out), tuple(axes)))


@st.composite
def sliced(draw: st.DrawFn, x: Node) -> Node:
    starts, sizes, steps = [], [], []
    for n in x.shape:
        step = draw(st.sampled_from([1, 2, -1, -2]))
        start = draw(st.integers(0, n - 1))
        room = n - start if step > 0 else start + 1
        starts.append(start)
        sizes.append(draw(st.integers(1, (room - 1) // abs(step) + 1)))
        steps.append(step)
    return node(Op.SLICE, (x,), (tuple(starts), tuple(sizes), tuple(steps)))


@settings(max_examples=300)
@given(st.data())
def test_a_view_reads_what_the_evaluator_gives(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    view = data.draw(views(leaf(shape)))
    if prod(view.shape) > 600:
        return
    (expected,) = evaluate([view], {0: values(shape)})
    np.testing.assert_array_equal(gather(view, [values(shape)]), expected)


@settings(max_examples=150)
@given(st.data())
def test_a_chain_of_views_is_the_composition_of_its_index_functions(data: st.DataObject) -> None:
    shape = data.draw(shapes)
    view = leaf(shape)
    for _ in range(3):
        following = data.draw(views(view))
        if prod(following.shape) > 400:
            break
        view = following
    array = values(shape)
    (expected,) = evaluate([view], {0: array})
    vars_ = tuple(Var(f"i{k}", n) for k, n in enumerate(view.shape))
    at, conds, at_node = tuple(Affine.of(v) for v in vars_), [], view
    while at_node.src:
        at, more = source_index(at_node, at)
        conds.extend(more)
        at_node = at_node.src[0]
    for point in itertools.product(*map(range, view.shape)):
        env = dict(zip(vars_, point))
        read = all(c.holds(env) for c in conds)
        found = array[tuple(i.evaluate(env) for i in at)] if read else 0
        assert found == expected[point]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cat_reads_one_source_at_a_time(axis: int) -> None:
    shape = [2, 3, 2]
    sources = []
    for uid, n in enumerate((1, 3, 2)):
        shape[axis] = n
        sources.append(leaf(tuple(shape), uid))
    arrays = [values(x.shape, uid) for uid, x in enumerate(sources)]
    view = node(Op.CAT, tuple(sources), (axis,))
    (expected,) = evaluate([view], dict(enumerate(arrays)))
    np.testing.assert_array_equal(gather(view, arrays), expected)


def test_every_view_has_an_index_function() -> None:
    rows = {op for op, spec in OPS.items() if spec.family in ("view", "marker")}
    assert set(INDEX) == rows


def test_copies_read_the_same_element() -> None:
    view = node(Op.COPY, (leaf((2, 3)),), ("cpu",))
    idx = (Affine.of(Var("i", 2)), Affine.of(Var("j", 3)))
    assert source_index(view, idx) == (idx, ())


def read(op: Op, shape: tuple[int, ...], attrs: tuple) -> str:
    view = node(op, (leaf(shape),), attrs)
    idx = tuple(Affine.of(Var(name, n)) for name, n in zip("ijkl", view.shape))
    at, conds = source_index(view, idx)
    return ", ".join(map(str, at)) + "".join(f" if {c}" for c in conds)


def test_reshape_takes_digits_only_inside_a_group() -> None:
    assert read(Op.RESHAPE, (2, 3, 5), ((2, 15),)) == "i, j//5, j%5"
    assert read(Op.RESHAPE, (2, 15), ((2, 3, 5),)) == "i, 5*j + k"
    assert read(Op.RESHAPE, (2, 1, 3), ((1, 2, 3, 1),)) == "j, 0, k"
    assert read(Op.RESHAPE, (4, 6), ((8, 3),)) == "i//2, j + 3*(i%2)"
    assert reshape_groups((4, 6, 1, 5), (8, 3, 5)) == [((0, 1), (0, 1)), ((3,), (2,))]
    assert reshape_groups((), (1, 1)) == []


def test_a_flip_is_affine() -> None:
    assert read(Op.SLICE, (4, 6), ((3, 5), (4, 3), (-1, -2))) == "-i + 3, -2*j + 5"


def test_a_pad_keeps_only_the_conditions_that_bounds_do_not_prove() -> None:
    view = node(Op.PAD, (leaf((3, 4)),), ((0, 1), (0, 2), (0, 0)))
    i, j = (Affine.of(Var(name, n)) for name, n in zip("ij", view.shape))
    assert source_index(view, (i, j)) == ((i, j - 1), (Between(j - 1, 0, 4),))
    inner = Affine.of(Var("k", 4)) + 1
    assert source_index(view, (i, inner)) == ((i, inner - 1), ())
    spread = node(Op.PAD, (leaf((3,)),), ((1,), (0,), (1,)))
    (k,) = (Affine.of(Var("k", n)) for n in spread.shape)
    inside = k - 1
    conds = (Between(inside, 0, 5), Divides(inside, 2))
    assert source_index(spread, (k,)) == ((inside // 2,), conds)
    even = Affine.of(Var("m", 3)) * 2
    assert source_index(spread, (even + 1,)) == ((Affine.of(*even.free_vars()),), ())


@pytest.mark.parametrize("op, attrs", [
    (Op.RESHAPE, ((3, 0),)),
    (Op.PAD, ((1, 0), (2, 0), (1, 0))),
])
def test_views_of_nothing(op: Op, attrs: tuple) -> None:
    view = node(op, (leaf((0, 3)),), attrs)
    (expected,) = evaluate([view], {0: values((0, 3))})
    np.testing.assert_array_equal(gather(view, [values((0, 3))]), expected)
