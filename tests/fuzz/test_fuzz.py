"""Random graphs: the compiler against the evaluator, fused and not, on any number of threads.

A graph that fails is printed as text that `tinyc.ir.parser` reads back.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from random_graphs import SMOOTH, Graph, assert_same, grow, outputs_of, tolerance
from running import SPLITTING, Compiled, interpreted, native, plan_of, unexplained

from tinyc.ir.autograd import vjp
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node, toposort
from tinyc.ir.ops import Op
from tinyc.ir.parser import parse_text
from tinyc.ir.plan import Plan
from tinyc.ir.printer import to_text
from tinyc.schedule.memory import kernel_accesses

Case = tuple[Graph, list[Node]]


@st.composite
def graphs(draw: st.DrawFn, most: int = 20) -> Case:
    """A graph over all ops with a few of its nodes, and its stores, as outputs."""
    g = Graph(lambda n: draw(st.integers(0, n - 1)))
    g.special = draw(st.booleans()) and draw(st.booleans())
    grow(g, draw(st.integers(4, most)))
    return g, outputs_of(g, draw(st.integers(1, 5)))


@st.composite
def gradients(draw: st.DrawFn) -> Case:
    """A graph of differentiable ops with its gradients for all float buffers."""
    g = Graph(lambda n: draw(st.integers(0, n - 1)))
    grow(g, draw(st.integers(2, 8)), SMOOTH)
    loss = [n for n in reversed(g.pool) if n.dtype.kind == "f" and n.op is not Op.BUFFER][:2]
    wrt = [n for n in g.values if n.op is Op.BUFFER and n.dtype.kind == "f"]
    cotangents = [g.buffer(n.dtype, n.shape) for n in loss]
    found = [n for n in vjp(loss, cotangents, wrt) if n is not None]
    outputs = list(dict.fromkeys([*loss[:1], *found])) or g.pool[-1:]
    for n in toposort(outputs):
        if n not in g.values:
            g.values[n] = g.value_of(n)
    return g, outputs


def compare(case: Case, got: list[np.ndarray], what: str) -> None:
    g, outputs = case
    want = evaluate(outputs, g.memory)
    near = tolerance(g, outputs, want)
    for i, (mine, theirs) in enumerate(zip(got, want)):
        assert_same(mine, theirs, near, f"{what}: output {i}")


def check_native(case: Case) -> None:
    g, outputs = case
    note(to_text(tuple(outputs)))
    compare(case, native(outputs, g.memory, fuse=False), "unfused")
    fused = Compiled(outputs, split=True)
    one = fused(g.memory)
    compare(case, one, "fused")
    for threads in (2, 3):
        several = fused(g.memory, threads)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(one, several)), f"{threads} threads"


@settings(max_examples=60)
@given(graphs())
def test_compiled_graphs(case: Case) -> None:
    check_native(case)


@settings(max_examples=40)
@given(gradients())
def test_compiled_gradients(case: Case) -> None:
    check_native(case)


@pytest.mark.parametrize("until", ["lower", "schedule", ""])
@settings(max_examples=250)
@given(graphs(30))
def test_interpreted_graphs(until: str, case: Case) -> None:
    """The same kernels before and after scheduling, and with their places in the arena."""
    g, outputs = case
    note(to_text(tuple(outputs)))
    for fuse in (False, True):
        compare(case, interpreted(outputs, g.memory, fuse, until), f"fuse={fuse}")


@settings(max_examples=250)
@given(gradients())
def test_interpreted_gradients(case: Case) -> None:
    g, outputs = case
    note(to_text(tuple(outputs)))
    compare(case, interpreted(outputs, g.memory), "fused")


@settings(max_examples=100)
@given(graphs(25))
def test_text_reads_back(case: Case) -> None:
    outputs = tuple(case[1])
    assert parse_text(to_text(outputs)) == outputs


@settings(max_examples=250)
@given(graphs(30), st.booleans())
def test_no_two_live_storages_overlap(case: Case, fuse: bool) -> None:
    plan = plan_of(case[1], fuse, target=SPLITTING)
    assert unexplained(plan) == []
    lives = lifetimes(plan)
    for s, (first, last) in lives.items():
        size = s.within.nbytes if s.within else plan.arena_size
        assert s.offset % 64 == 0 and s.offset + s.nbytes <= size
        for t, (begin, end) in lives.items():
            apart = s.offset + s.nbytes <= t.offset or t.offset + t.nbytes <= s.offset
            apart |= s.within is not t.within
            assert s is t or apart or last < begin or end < first, (s, t)


def lifetimes(plan: Plan) -> dict:
    """First and last kernel that touches each storage of the arena."""
    lives: dict = {}
    for i, kernel in enumerate(plan.kernels):
        for table in kernel_accesses(kernel):
            for s in table:
                if s.role == "arena":
                    lives[s] = (lives.get(s, (i, i))[0], i)
    return lives
