"""Large values are made anew for the backward pass where all would need too much memory at once."""

from __future__ import annotations

import numpy as np
import pytest
from running import SPLITTING, Compiled, Memory, buffers, floats, interpreted, plan_of

from tinyc.composites import activation, attention, linear, normalization
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node
from tinyc.ir.plan import Plan, Stage
from tinyc.schedule import remake


@pytest.fixture(autouse=True)
def scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory is enough, and no value is small."""
    monkeypatch.setattr(remake, "ENOUGH", 0)
    monkeypatch.setattr(remake, "LARGE", 1024)


def layers_both_ways() -> tuple[list[Node], Memory]:
    """Layer norm, two linear layers with GELU between them, twice, and the gradients."""
    arrays = [floats(64, 32), floats(64, 32, seed=1)]
    arrays += [floats(*shape, seed=9 + k) for k in range(2) for shape in ((96, 32), (32, 96))]
    (x, g, *weights), memory = buffers(*arrays)
    y = x
    for wide, narrow in zip(weights[::2], weights[1::2]):
        h = linear.linear(normalization.layer_norm(y, (32,)), wide)
        y = b.add(y, linear.linear(activation.gelu(h, "tanh"), narrow))
    return [y, *vjp([y], [g], [x, *weights])], memory


def heads_both_ways(length: int = 32) -> tuple[list[Node], Memory]:
    """Attention between two products, so that its two passes are in different kernels."""
    shapes = [(2, length, 24), (24, 24), (24, 24), (2, length, 24)]
    arrays = [floats(*shape, seed=k) / 4 for k, shape in enumerate(shapes)]
    (x, w, v, g), memory = buffers(*arrays)

    def split(t: Node) -> Node:
        return b.permute(b.reshape(t, (2, length, 3, 8)), (0, 2, 1, 3))

    q = split(linear.linear(x, w))
    y = attention.attention(q, q, q, causal=True)
    out = linear.linear(b.reshape(b.permute(y, (0, 2, 1, 3)), (2, length, 24)), v)
    return [out, *vjp([out], [g], [x, w, v])], memory


def made_anew(plan: Plan) -> list[str]:
    return [r.subject for r in plan.remarks if r.pass_name == "remake"]


def kept(plan: Plan) -> list[Stage]:
    """What one kernel makes and others read."""
    home = {s: nest for nest in plan.nests for s in nest.stages()}
    return [s for s in plan.stages
            if any(s in r.producers and home[r] is not home[s] for r in plan.stages)]


def check(outputs: list[Node], memory: Memory) -> None:
    wanted = evaluate(outputs, memory)
    for found in (interpreted(outputs, memory), Compiled(outputs, split=True)(memory, threads=2)):
        for got, want in zip(found, wanted):
            np.testing.assert_allclose(got, want, 1e-4, 1e-4)


def test_gelu_and_norms_are_made_anew_and_arguments_kept(monkeypatch):
    outputs, memory = layers_both_ways()
    plan = plan_of(outputs, target=SPLITTING)
    names = made_anew(plan)
    assert sum(name.startswith("tanh") for name in names) == 2
    assert sum(name.startswith("mul") for name in names) >= 3
    assert not any(s.node.op.value == "tanh" for s in kept(plan))
    monkeypatch.setattr(remake, "ENOUGH", 1 << 40)
    assert plan.arena_size < 0.75 * plan_of(outputs, target=SPLITTING).arena_size
    check(outputs, memory)


def test_probabilities_of_attention_are_made_anew_from_rows():
    outputs, memory = heads_both_ways()
    plan = plan_of(outputs, target=SPLITTING)
    assert any(name.startswith("div") for name in made_anew(plan))
    assert all(s.buf.shape[-2:] != (32, 32) for s in kept(plan))
    check(outputs, memory)


def test_no_more_is_made_anew_than_memory_asks_for(monkeypatch):
    outputs, memory = layers_both_ways()
    everything = made_anew(plan_of(outputs, target=SPLITTING))
    monkeypatch.setattr(remake, "ENOUGH", 150 << 10)
    some = made_anew(plan_of(outputs, target=SPLITTING))
    assert 0 < len(some) < len(everything) and set(some) <= set(everything)
    check(outputs, memory)
    monkeypatch.setattr(remake, "ENOUGH", 1 << 40)
    assert made_anew(plan_of(outputs, target=SPLITTING)) == []


def test_a_dear_value_is_kept(monkeypatch):
    monkeypatch.setattr(remake, "WORK_PER_BYTE", (1,))
    outputs, _ = heads_both_ways()
    assert made_anew(plan_of(outputs, target=SPLITTING)) == []


def test_a_parameter_is_read_again_before_it_is_overwritten():
    (x, w, g), memory = buffers(floats(64, 48), floats(48, 48, seed=1), floats(64, 48, seed=2))
    y = b.mul(b.tanh(linear.linear(x, w)), linear.linear(x, w))
    (dx, dw) = vjp([y], [g], [x, w])
    outputs = [dx, b.assign(w, b.sub(w, b.mul(dw, 0.1)))]
    check(outputs, memory)
