"""Kernels made by choices other than the rules' compute the same."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from running import buffers, floats, plan_of

from tinyc import pipeline
from tinyc.codegen import alternatives, contract, deep
from tinyc.codegen.c import program
from tinyc.codegen.interpret import run_kernels
from tinyc.codegen.lower import lower_nest
from tinyc.ir import build as b
from tinyc.ir.choices import RULES, Choices
from tinyc.ir.loop import MicroKernel, Storage, statements
from tinyc.ir.plan import Plan
from tinyc.ir.program import CPU

SMALL = replace(CPU, lanes=4, l2=512, serial_work=200)


def made(plan: Plan, choices: Choices) -> Plan:
    """The plan with all kernels made by some choices, ready to run."""
    plan.choices = dict.fromkeys(plan.nests, choices)
    names = [p.name for p in pipeline.PLAN]
    for p in pipeline.PLAN[names.index("lower"):]:
        p.run(plan, SMALL)
    return plan


def results(plan: Plan, memory, shape) -> np.ndarray:
    out = np.empty(shape, np.float32)
    values = [*(memory[leaf.attrs[0]].reshape(-1) for leaf in plan.leaves), out.reshape(-1)]
    run_kernels(plan.kernels, dict(zip(plan.slots, values)), plan.arena_size)
    return out


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "FLOPS_PER_CHUNK", 1000)
    monkeypatch.setattr(deep, "SHORTEST", 8)


def product_plan(m: int = 30, n: int = 40, k: int = 64, transposed: bool = False):
    x, w = floats(*((k, m) if transposed else (m, k)), seed=1), floats(k, n, seed=2)
    (nx, nw), memory = buffers(x, w)
    graph = b.contract(nx, nw, (1, 0) if transposed else (0, 1), (1, 2), (0, 2))
    return lambda: plan_of([graph], target=SMALL, until="arrays"), memory, \
        (x.T if transposed else x) @ w


def offered(plan: Plan) -> list[Choices]:
    return alternatives.alternatives(lower_nest(plan, plan.nests[0], SMALL), SMALL)


@pytest.mark.parametrize("transposed", [False, True])
def test_every_choice_of_a_product_computes_it(transposed: bool) -> None:
    plan, memory, expected = product_plan(transposed=transposed)
    tried = offered(plan())
    texts = set()
    for choices in [RULES, *tried, alternatives.together(tried)]:
        scheduled = made(plan(), choices)
        texts.add(program(scheduled.kernels, scheduled.slots).text)
        np.testing.assert_allclose(results(scheduled, memory, expected.shape), expected,
                                   rtol=1e-4, atol=1e-4, err_msg=str(choices))
    assert len(texts) > 5


def test_every_choice_of_a_sum_computes_it() -> None:
    x = floats(6, 500)
    (node,), memory = buffers(x)
    graph = b.sum_(b.exp(node), 1)
    for choices in [Choices(sums=n) for n in alternatives.SUMS] + [Choices(chunks=3)]:
        plan = made(plan_of([graph], target=SMALL, until="arrays"), choices)
        np.testing.assert_allclose(results(plan, memory, (6,)), np.exp(x).sum(1), rtol=1e-5)


def sizes(choices: Choices, part: str) -> set[int]:
    plan = made(product_plan()[0](), choices)
    return {getattr(s, part) for s in statements(plan.kernels[0].body)
            if isinstance(s, MicroKernel)}


def test_a_chosen_tile_is_the_tile() -> None:
    assert sizes(Choices(tile=(5, 3)), "height") == {5}
    assert sizes(Choices(tile=(5, 3)), "width") == {12}
    assert sizes(RULES, "width") == {8}


def packs(choices: Choices) -> bool:
    plan = made(product_plan()[0](), choices)
    return any(isinstance(s, Storage) and s.name.startswith("pack")
               for stmt in statements(plan.kernels[0].body)
               for s in [getattr(stmt, "storage", None)])


def test_a_panel_is_copied_or_not_as_chosen() -> None:
    assert not packs(RULES)
    assert packs(Choices(pack=True)) and not packs(Choices(pack=False))


def test_chunks_are_as_many_as_chosen() -> None:
    plan = product_plan()[0]
    counts = [made(plan(), Choices(chunks=n)).kernels[0].chunks for n in (1, 2, 4)]
    assert counts == [1, 2, 4]


def test_a_handful_is_offered_and_all_of_it_is_known() -> None:
    assert all(alternatives.offered(choices, SMALL) for choices in offered(product_plan()[0]()))
    assert not alternatives.offered(Choices(tile=(100, 100)), SMALL)
    assert not alternatives.offered(Choices(chunks=True), SMALL)  # type: ignore[arg-type]


def test_together_takes_the_first_of_two_that_disagree() -> None:
    both = alternatives.together([Choices(chunks=4), Choices(chunks=16, sums=2)])
    assert both == Choices(chunks=4, sums=2)
    assert str(both) == "chunks 4, sums 2" and str(RULES) == "the rules"
