"""The device `interpret`: the kernels of the cpu device, run by Python, in which one can stop."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from running import SPLITTING

import tinyc
from tinyc import Tensor, compiler, config, nn, optim, pipeline
from tinyc.diagnostics import TinycWarning
from tinyc.interpreted import Interpreted
from tinyc.ir import build as b
from tinyc.ir.dtype import f32
from tinyc.ir.node import canonical_key
from tinyc.runtime.buffer import Buffer

HERE = "test_interpret.py"


@pytest.fixture(autouse=True)
def _device():
    with config.configure(device="interpret"):
        yield


def softmax(x: Tensor) -> Tensor:
    return (x * 2).softmax(-1)


SOFTMAX = f"{HERE}:{softmax.__code__.co_firstlineno + 1}"
ROWS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def training(device: str) -> tuple[list[float], list[tuple[str, ...]]]:
    """Losses of a few steps, and the kernels of the step."""
    with config.configure(device=device):
        tinyc.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
        optimizer = optim.AdamW(model.parameters(), lr=0.01)

        @tinyc.jit
        def step(x: Tensor, y: Tensor) -> Tensor:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        x = Tensor(np.linspace(-1, 1, 4 * 36, dtype=np.float32).reshape(4, 1, 6, 6))
        losses = [step(x, Tensor(np.arange(4) % 3)).item() for _ in range(3)]
        assert step.program is not None
        return losses, [kernel.members for kernel in step.program.kernels]


@pytest.mark.cpu("compares with generated C")
def test_a_training_step_is_the_cpu_s_kernel_for_kernel() -> None:
    losses, kernels = training("interpret")
    wanted, same = training("cpu")
    assert kernels == same
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert losses[2] < losses[0]


def test_the_program_of_another_device_is_not_taken() -> None:
    results = {}
    for device in ("numpy", "interpret"):
        with config.configure(device=device), compiler.observe() as runs:
            results[device] = softmax(Tensor(ROWS)).numpy()
        kind = type(runs[-1].executable)
        assert (kind is compiler.NativeExecutable) == (device == "interpret")
    np.testing.assert_allclose(results["interpret"], results["numpy"], rtol=1e-6)


def test_chunks_and_a_small_target_compute_the_same() -> None:
    x = b.buffer(1, 0, (64, 32), f32, "interpret")
    outputs = (b.sum_(b.exp(x), (0,)),)
    program, done = pipeline.build_program(outputs, canonical_key(outputs)[1], SPLITTING)
    assert done.plan is not None and done.plan.kernels[0].chunks > 1
    array = np.linspace(0, 1, 64 * 32, dtype=np.float32).reshape(64, 32)
    given, out = Buffer.from_numpy(array, "interpret"), Buffer("interpret", f32, (32,))
    times = np.zeros(len(program.kernels) + 1, np.int64)
    Interpreted(program, done.plan).run([given, out], times)
    np.testing.assert_allclose(out.array, np.exp(array).sum(0), rtol=1e-5)
    assert (np.diff(times) > 0).all()


class TestOnStore:
    def test_sees_each_store_with_what_it_was_computed_from(self) -> None:
        stores: list = []
        with tinyc.on_store(stores.append, " div"):
            result = softmax(Tensor(ROWS)).numpy()
        assert len(stores) == ROWS.size
        for store in stores:
            row, column = divmod(store.element, 4)
            assert store.storage == "out0" and store.line == SOFTMAX
            assert store.value == result[row, column]
            assert row in store.loops.values()
            above, below = store.reads.values()
            np.testing.assert_allclose(above / below, store.value, rtol=1e-6)
        assert f"{SOFTMAX}: out0[" in str(stores[0])

    def test_shows_a_sum_as_it_grows_and_its_end(self) -> None:
        stores: list = []
        with tinyc.on_store(stores.append, "reduce"):
            total = Tensor(ROWS).sum()
            value = total.item()
        added = [store for store in stores if store.accumulate == "sum"]
        assert added and all(store.old != store.value for store in added)
        assert stores[-1].storage == "out0" and stores[-1].value == value

    def test_chooses_by_line_and_ends_with_its_block(self) -> None:
        stores: list = []
        with tinyc.on_store(stores.append, "test_no_such.py:1"):
            softmax(Tensor(ROWS)).numpy()
        softmax(Tensor(ROWS + 1)).numpy()
        assert stores == []
        with tinyc.on_store(stores.append, SOFTMAX):
            softmax(Tensor(ROWS)).numpy()
        assert {store.line for store in stores} == {SOFTMAX}

    def test_names_the_line_of_an_equal_graph_elsewhere(self) -> None:
        lines = []
        with tinyc.on_store(lambda store: lines.append(store.line), "add"):
            (Tensor(ROWS) + 1.5).numpy()
            (Tensor(ROWS) + 1.5).numpy()
        first, second = dict.fromkeys(lines)
        assert int(second.split(":")[1]) == int(first.split(":")[1]) + 1

    def test_a_condition_finds_the_first_bad_number(self) -> None:
        found: list = []

        def watch(store) -> None:
            if not found and np.isnan(store.value):
                found.append(store)

        x = Tensor([1.0, -1.0, 4.0])
        with tinyc.on_store(watch):
            (x.log() + 1).numpy()
        assert found[0].reads == {"in0[1]": -1}


class TestBreakAt:
    @pytest.fixture
    def stops(self, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
        """The local variables that a debugger would show at each stop."""
        seen: list[dict] = []

        def look() -> None:
            frame = sys._getframe(1)
            seen.append(dict(frame.f_locals))
            if len(seen) < 3:
                frame.f_locals["store"].again()

        monkeypatch.setattr(sys, "breakpointhook", look)
        return seen

    @pytest.mark.parametrize("where", ["k0_.*div", SOFTMAX])
    def test_stops_with_the_store_in_local_variables(self, stops, where, capsys) -> None:
        with config.configure(break_at=where):
            softmax(Tensor(ROWS)).numpy()
        assert len(stops) == 3  # the first, and twice again
        first = stops[0]
        assert first["line"] == SOFTMAX and first["kernel"].startswith("k0_")
        assert {"storage", "element", "value", "old", "loops", "reads", "member"} <= set(first)
        assert SOFTMAX in capsys.readouterr().err

    def test_stops_once_in_each_run_where_not_asked_again(self, stops) -> None:
        stops += [{}, {}, {}]
        with config.configure(break_at="add"):
            for _ in range(2):
                (Tensor(ROWS) + 1).numpy()
        assert len(stops) == 5

    def test_what_does_not_match_runs_through(self, stops) -> None:
        with config.configure(break_at="matmul"):
            softmax(Tensor(ROWS)).numpy()
        assert stops == []

    def test_a_pattern_that_is_none_is_refused(self) -> None:
        with pytest.raises(ValueError, match="break_at='k\\[': expected a regular expression"):
            config.configure(break_at="k[")
        with pytest.warns(UserWarning, match="TINYC_BREAK_AT='k\\[' is ignored"):
            assert config.read_environment({"TINYC_BREAK_AT": "k["}) == {}

    def test_a_device_that_can_not_stop_says_so(self, monkeypatch) -> None:
        monkeypatch.setattr(tinyc.diagnostics, "_warned", set())
        with config.configure(break_at="add", device="cpu"), warnings.catch_warnings():
            warnings.simplefilter("error", TinycWarning)
            with pytest.raises(TinycWarning, match="TINYC_DEVICE=interpret"):
                (Tensor(ROWS) - 17.5).numpy()
