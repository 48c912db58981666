"""explain and compare: what they count, what they leave alone, how they read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tinyc import config
from tinyc.reporting import compare, explain, quantity, table
from tinyc.tensor import Tensor

pytestmark = pytest.mark.skipif(
    config.current().device in ("numpy", "interpret"), reason="only compiled programs have kernels"
)


@pytest.fixture
def x() -> Tensor:
    # a shape of this file's own: programs remember the line that first built their graph
    return Tensor(np.random.default_rng(0).random((61, 97), np.float32))


class TestExplain:
    def test_softmax_is_one_kernel(self, x):
        found = explain(lambda x: x.softmax(-1), x)
        assert len(found.kernels) == 1
        assert found.arena_bytes == 0
        assert found.bytes_moved == 2 * 61 * 97 * 4

    def test_refusals_have_reasons_and_lines(self, x):
        found = explain(lambda x: x.softmax(-1), x)
        assert any("is complete only after loop" in remark.message for remark in found.missed)
        assert all(remark.origin[0] == __file__ for remark in found.missed)

    def test_unfused_the_same_graph_has_a_kernel_for_each_op(self, x):
        with config.configure(fuse=False):
            unfused = explain(lambda x: x.softmax(-1), x)
        fused = explain(lambda x: x.softmax(-1), x)
        assert len(unfused.kernels) >= 4
        assert fused.flops <= 1.15 * unfused.flops
        assert fused.bytes_moved < unfused.bytes_moved

    def test_text_names_kernels_members_and_lines(self, x):
        text = str(explain(lambda x: (x * 2).sum(), x))
        assert text.startswith("1 kernel in 1 program: ")
        assert "test_reporting.py:" in text
        assert "reduce" in text

    def test_each_refusal_stands_below_its_member(self, x):
        def two_layers(x: Tensor) -> Tensor:
            return (x @ x.T).relu() @ x

        lines = str(explain(two_layers, x)).splitlines()
        second = lines.index(next(line for line in lines if line.startswith("  contract2")))
        reason = "reads where1, made on the register tiles of contract0, where only elementwise"
        assert lines[second + 1].startswith(f"    apart: {reason} stages run [test_reporting.py:")

    def test_it_is_plain_data(self, x):
        found = explain(lambda x: x.exp(), x)
        assert json.loads(json.dumps(found.to_dict()))["kernels"][0]["name"]
        assert f"{found.kernels[0].name}(" in found.source()

    def test_what_is_known_already_computes_nothing(self, x):
        assert str(explain(lambda x: x, x)) == "nothing was compiled"

    def test_nested_results_are_computed(self, x):
        found = explain(lambda x: {"a": x + 1, "b": [x * 2, (x - 1,)]}, x)
        assert sum(len(k.writes) for k in found.kernels) == 3


class TestCompare:
    def test_each_fused_kernel_stands_beside_what_it_replaces(self, x):
        found = compare(lambda x: x.softmax(-1), x, repeats=3)
        (kernel,) = found.kernels
        assert kernel.unfused_kernels >= 4
        assert kernel.unfused_bytes > kernel.fused_bytes
        assert kernel.fused_us > 0 and kernel.unfused_us > 0
        assert found.speedup == pytest.approx(found.unfused_us / found.fused_us)

    def test_state_changes_once_and_no_more(self):
        state = Tensor(np.zeros(8, np.float32))

        def count(x: Tensor) -> Tensor:
            state.assign(state + 1)
            return state + x

        compare(count, Tensor(np.ones(8, np.float32)), repeats=4)
        assert state.numpy().tolist() == [1.0] * 8

    def test_switches_are_as_before(self, x):
        before = config.current()
        compare(lambda x: x + 1, x, repeats=1)
        assert config.current() == before

    def test_it_is_plain_data(self, x):
        found = compare(lambda x: x.softmax(-1), x, repeats=2)
        data = json.loads(json.dumps(found.to_dict()))
        assert data["kernels"][0]["unfused_kernels"] == found.kernels[0].unfused_kernels
        assert data["speedup"] == found.speedup

    def test_text_is_a_table_with_totals(self, x):
        lines = str(compare(lambda x: x.softmax(-1), x, repeats=2)).splitlines()
        assert lines[0].split()[:3] == ["kernel", "us", "unfused"]
        assert lines[-2].startswith("1 kernel ")
        assert "medians of 2 runs each, in turns" in lines[-1]


class TestJitted:
    @pytest.fixture
    def step(self):
        from tinyc import jit, nn, optim

        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        optimizer = optim.Adam(model.parameters())

        @jit
        def step(x: Tensor, y: Tensor) -> Tensor:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        return step

    @pytest.fixture
    def batch(self) -> tuple[Tensor, Tensor]:
        r = np.random.default_rng(0)
        return Tensor(r.random((32, 8), np.float32)), Tensor(r.integers(0, 3, 32))

    def test_a_step_is_one_program_captured_or_not(self, step, batch):
        first = explain(step, *batch)
        again = explain(step, *batch)
        assert len(first.programs) == len(again.programs) == 1
        assert first.kernels == again.kernels
        assert len(first.kernels) <= 14

    def test_comparing_is_one_step_of_training(self, step, batch):
        twin = [step(*batch).item() for _ in range(3)]
        found = compare(step, *batch, repeats=2)
        assert sum(kernel.unfused_kernels for kernel in found.kernels) > len(found.kernels)
        assert step(*batch).item() < twin[-1]

    def test_the_flops_of_a_step_are_those_of_the_unfused_one(self, step, batch):
        found = compare(step, *batch, repeats=1)
        assert found.fused_flops <= 1.15 * found.unfused_flops
        assert found.fused_bytes < found.unfused_bytes


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 "), (999, "999 "), (1500, "1.5 k"), (12_345_678, "12.3 M")]
)
def test_quantities_are_short(number, text):
    assert quantity(number) == text


def test_tables_align_figures_to_the_right():
    assert table(["a", "n", "z"], [["x", "10", "y"]]).splitlines() == [
        "a   n  z",
        "-  --  -",
        "x  10  y",
    ]
