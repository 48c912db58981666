"""What users ask of fusion: boundaries, and functions that are to be one kernel."""

from __future__ import annotations

import numpy as np
import pytest
from running import buffers, floats, interpreted, plan_of, unexplained

from tinyc.composites import linear, reductions
from tinyc.diagnostics import FusionError
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node, canonical_key, node, toposort
from tinyc.ir.ops import Op
from tinyc.ir.parser import parse_text
from tinyc.ir.printer import to_text
from tinyc.schedule.fuse import STAGES_LIMIT


def members(outputs: list[Node], **options) -> list[list[str]]:
    return [[s.node.op.value for s in nest.stages()] for nest in plan_of(outputs, **options).nests]


def same(outputs, memory) -> None:
    for found, wanted in zip(interpreted(outputs, memory), evaluate(outputs, memory)):
        np.testing.assert_allclose(found, wanted, 1e-4, 1e-5)


class TestBoundary:
    def test_what_is_before_and_what_is_after_are_two_kernels(self):
        (x,), memory = buffers(floats(64, 50))
        y = b.mul(b.exp(x), 2.0)
        assert members([b.sum_(b.materialize(y), 1)]) == [["materialize", "reduce"]]
        outputs = [b.sum_(b.boundary(y), 1)]
        assert members(outputs) == [["boundary"], ["reduce"]]
        same(outputs, memory)

    def test_the_remark_names_the_line_that_asks(self):
        (x,), _ = buffers(floats(64, 50))
        cut = b.boundary(b.exp(x))
        plan = plan_of([b.sum_(cut, 1)])
        (found,) = [r for r in plan.remarks if r.rule == "boundary"]
        line = f"test_hints.py:{cut.origin[1]}"
        assert found.message == f"boundary asked for at {line}"
        assert line in found.remedy and found.about == "boundary0"
        assert unexplained(plan) == []

    def test_what_is_after_stays_out_however_it_gets_there(self):
        """Through views, by way of other values, and at the end of the kernel where totals run."""
        (x, y), memory = buffers(floats(8, 6), floats(8, 6, seed=1))
        cut = b.boundary(b.exp(x))
        parts = b.cat([b.slice_(cut, (0, 0), (4, 6), (1, 1)), y], 0)
        outputs = [b.sum_(b.mul(cut, y)), b.permute(cut, (1, 0)), b.sin(parts),
                   b.add(b.sum_(cut, 1), b.sum_(y, 1))]
        plan = plan_of(outputs)
        (home,) = [nest for nest in plan.nests if any(
            s.node.op is Op.BOUNDARY for s in nest.stages())]
        after = {s for s in plan.stages if cut in reads_of(s.node)}
        assert after and all(s not in after for s in home.stages())
        same(outputs, memory)

    def test_the_cotangent_is_cut_at_the_same_place(self):
        (x, g), memory = buffers(floats(64, 50), floats(64, 50, seed=1))
        y = b.tanh(b.boundary(b.exp(x)))
        (grad,) = vjp([y], [g], [x])
        assert sum(n.op is Op.BOUNDARY for n in toposort([grad])) == 2
        kernels = members([grad])
        assert len(kernels) == 3 and kernels[1][-1] == "boundary"
        same([grad], memory)

    def test_text_and_key_know_it(self):
        (x,), _ = buffers(floats(3))
        n = b.exp(b.boundary(b.sin(x)))
        assert parse_text(to_text([n])) == (n,)
        assert canonical_key([n])[0] != canonical_key([b.exp(b.materialize(b.sin(x)))])[0]
        assert "boundary(" in to_text([n])

    def test_what_is_in_memory_needs_none(self):
        (x,), _ = buffers(floats(64, 50))
        assert members([b.sum_(b.mul(b.boundary(x), 2.0), 1)]) == [["reduce"]]


def reads_of(n: Node) -> set[Node]:
    return set(toposort([n])) - {n}


def total_share(x: Node) -> Node:
    return b.div(x, b.sum_(x))


def together(function, *arguments: Node) -> list[Node]:
    results = function(*arguments)
    results = results if isinstance(results, tuple) else (results,)
    return list(b.together(results, arguments))


class TestTogether:
    def test_a_hint_that_is_met_changes_nothing(self):
        (x,), memory = buffers(floats(64, 50))
        plain = [reductions.softmax(x)]
        outputs = together(reductions.softmax, x)
        assert len(members(outputs)) == len(members(plain)) == 1
        plan = plan_of(outputs)
        (found,) = [r for r in plan.remarks if r.subject.startswith("hint at")]
        assert found.kind == "applied" and found.terms == {"kernel": 0}
        same(outputs, memory)

    def test_a_hint_overrides_what_pays(self):
        """A large value that needs a total: legal at the end of the kernel, on one thread."""
        (x,), memory = buffers(floats(1 << 16))
        assert len(members([total_share(x)])) == 2
        outputs = together(total_share, x)
        assert members(outputs) == [["reduce", "materialize"]]
        same(outputs, memory)

    def test_a_hint_overrides_the_size_of_private_sums(self):
        (x,), memory = buffers(floats(4, 400, 400))

        def both(x: Node) -> tuple[Node, ...]:
            y = b.exp(x)
            return y, b.sum_(b.materialize(y), 0)

        assert len(members(list(both(x)))) == 2
        outputs = together(both, x)
        assert len(members(outputs)) == 1
        same(outputs, memory)

    def test_a_hint_overrides_the_number_of_members(self):
        (x,), _ = buffers(floats(64, 50))

        def many(x: Node) -> tuple[Node, ...]:
            return tuple(b.exp(b.mul(x, float(i))) for i in range(2, 2 + STAGES_LIMIT + 6))

        assert len(members(list(many(x)))) == 2
        assert [len(kernel) for kernel in members(together(many, x))] == [STAGES_LIMIT + 6]

    def test_one_head_of_attention_over_a_long_sequence_can_not_be(self):
        q, k, v = buffers(*[floats(1, 1024, 64, seed=i) for i in range(3)])[0]

        def attention(q: Node, k: Node, v: Node) -> Node:
            return linear.matmul(reductions.softmax(linear.matmul(q, b.permute(k, (0, 2, 1)))), v)

        with pytest.raises(FusionError) as caught:
            plan_of(together(attention, q, k, v))
        assert "contraction-blocks" in {r.rule for r in caught.value.reasons}
        assert not any("work" in r.terms for r in caught.value.reasons)

    def test_members_wait_for_what_the_last_of_them_reads(self):
        """Its first member would join an earlier kernel than the one that the rest must follow."""
        (x, y), memory = buffers(floats(64, 50), floats(64, 50, seed=1))
        early = b.materialize(b.exp(x))
        late = b.boundary(b.sum_(b.boundary(b.exp(y)), 1))

        def function(a: Node, c: Node) -> Node:
            top = b.sum_(b.sin(a), 1)
            return b.mul(b.materialize(top), c)

        plain = [early, function(early, late)]
        assert len(members(plain)) > 1
        apart = [k for k in members(plain) if "mul" in k]
        assert apart == [["mul"]]
        outputs = [early, *together(function, early, late)]
        (kernel,) = [k for k in members(outputs) if "materialize" in k and "reduce" in k]
        assert kernel.count("materialize") == 2
        same(outputs, memory)

    def test_what_can_not_be_says_why_and_what_would_change_it(self):
        (x,), _ = buffers(floats(400, 400))

        def chained(x: Node) -> Node:
            y = reductions.softmax(x, -1)
            return linear.matmul(y, y)

        with pytest.raises(FusionError) as caught:
            plan_of(together(chained, x))
        error, text = caught.value, str(caught.value)
        line = chained.__code__.co_firstlineno
        assert text.startswith("fuse (at test_hints.py:")
        assert f"(test_hints.py:{line + 1})" in text and f"(test_hints.py:{line + 2})" in text
        assert "members would take 2 kernels" in text
        assert "is apart from div3 [contraction-blocks]" in text
        assert "what would change it: in loop i" in text and "a batch axis" in text
        assert [r.rule for r in error.reasons] == ["contraction-blocks"]
        assert [len(k) for k in error.kernels] == [4, 1]

    def test_a_boundary_inside_is_the_reason(self):
        (x,), _ = buffers(floats(64, 50))
        with pytest.raises(FusionError, match=r"\[boundary\]: boundary asked for at test_hints"):
            plan_of(together(lambda x: b.sum_(b.boundary(b.exp(x)), 1), x))

    def test_unfused_programs_take_no_notice(self):
        (x,), memory = buffers(floats(64, 50))
        outputs = together(lambda x: b.sum_(b.boundary(b.exp(x)), 1), x)
        assert len(members(outputs, fuse=False)) > 1
        np.testing.assert_allclose(
            interpreted(outputs, memory, fuse=False)[0], evaluate(outputs, memory)[0], rtol=1e-5)

    def test_a_result_that_nobody_needs_is_not_computed(self):
        (x,), _ = buffers(floats(64, 50))
        first, _ = together(lambda x: (b.exp(x), b.sum_(b.sin(x), 1)), x)
        assert members([first]) == [["materialize"]]

    def test_hints_in_hints_are_one_kernel(self):
        (x,), memory = buffers(floats(1 << 16))
        outputs = together(lambda x: b.mul(together(total_share, x)[0], 2.0), x)
        assert len(members(outputs)) == 1
        same(outputs, memory)

    def test_text_and_key_know_it(self):
        (x, y), _ = buffers(floats(3), floats(3))
        pair = together(lambda x, y: (b.exp(x), b.mul(x, y)), x, y)
        assert parse_text(to_text(pair)) == tuple(pair)
        assert canonical_key(pair)[0] != canonical_key([b.exp(x), b.mul(x, y)])[0]
        with pytest.raises(ValueError, match="one of the results"):
            node(Op.TOGETHER, (x, y, x), (1,))
