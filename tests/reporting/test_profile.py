"""tinyc.profile: the table, the trace and the memory of what a block runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from steps import mlp_step

import tinyc
from tinyc import config, pipeline
from tinyc.ir.node import canonical_key
from tinyc.ir.program import CPU
from tinyc.reporting import profiling
from tinyc.runtime import footprint, recorder
from tinyc.runtime.buffer import ALLOCATOR, Buffer
from tinyc.tensor import Tensor

pytestmark = pytest.mark.skipif(
    config.current().device in ("numpy", "interpret"), reason="only compiled programs have kernels"
)


@pytest.fixture(scope="module")
def profiled():
    step, batch = mlp_step(rows=44)  # a graph of its own, which is compiled in the block
    with tinyc.profile() as p:
        for _ in range(5):
            with p.span("one step"):
                step(*batch)
    return p


class TestTable:
    def test_every_kernel_is_counted_once_for_each_run(self, profiled):
        (program,) = profiled.recorder.programs.values()
        assert len(profiled.runs) == 5
        assert {total.kernel.name for total in profiled.kernels} == {
            kernel.name for kernel in program.kernels
        }
        assert all(total.calls == 5 for total in profiled.kernels)

    def test_kernels_are_sorted_by_time_and_add_up(self, profiled):
        totals = [total.total for total in profiled.kernels]
        assert totals == sorted(totals, reverse=True)
        nanoseconds = sum(int(run.times[-1] - run.times[0]) for run in profiled.runs)
        assert sum(totals) == pytest.approx(nanoseconds / 1e3)

    def test_quartiles_are_in_order(self, profiled):
        assert all(0 < t.q1 <= t.median <= t.q3 <= t.total for t in profiled.kernels)

    def test_text_has_a_row_for_each_kernel_with_its_line(self, profiled):
        rows = profiled.table().splitlines()
        assert rows[0].split()[:2] == ["kernel", "calls"]
        assert len(rows) == 2 + len(profiled.kernels)
        assert all("steps.py:" in row for row in rows[2:])

    def test_a_limit_sums_up_the_rest(self, profiled):
        rows = profiled.table(limit=2).splitlines()
        assert len(rows) == 5
        assert rows[-1].startswith(f"and {len(profiled.kernels) - 2} more: ")

    def test_it_is_plain_data(self, profiled):
        data = json.loads(json.dumps(profiled.to_dict()))
        assert len(data["kernels"]) == len(profiled.kernels)
        phases = [kernel["phase"] for kernel in data["kernels"]]
        assert {"forward", "backward"} <= set(phases) <= {"forward", "backward", "optimizer"}
        assert all(0 < kernel["share"] <= 1 for kernel in data["kernels"])

    def test_nothing_ran(self):
        with tinyc.profile() as p:
            pass
        assert str(p) == "no compiled program ran"
        assert p.memory().planned == 0

    def test_outside_the_block_nothing_is_recorded(self):
        x = Tensor(np.ones(8, np.float32))
        with tinyc.profile() as p:
            (x + 1).numpy()
        (x + 2).numpy()
        assert len(p.runs) == 1
        assert recorder.active is None

    def test_a_run_that_ends_early_is_not_counted(self):
        table, index = Tensor(np.ones((4, 3), np.float32)), Tensor(np.array([1, 9]))
        with tinyc.profile() as p, pytest.raises(IndexError):
            table[index].sum().numpy()
        assert p.runs == []
        assert str(p) == "no compiled program ran"

    def test_what_is_not_captured_is_recorded_too(self):
        x = Tensor(np.ones((5, 3), np.float32))
        with tinyc.profile() as p:
            x.softmax(-1).numpy()
        assert [total.calls for total in p.kernels] == [1]


def complete_events(trace):
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def by_track(trace):
    tracks: dict[tuple[int, int], list[dict]] = {}
    for event in complete_events(trace):
        tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    return tracks


@pytest.fixture(scope="module")
def trace(profiled, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    profiled.save(path)
    assert [other.name for other in path.parent.iterdir()] == ["trace.json"]
    return json.loads(path.read_text())


class TestTrace:
    def test_events_have_what_the_format_asks_for(self, trace):
        for event in trace["traceEvents"]:
            assert event["ph"] in "XMC"
            assert isinstance(event["name"], str) and event["name"]
            assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
            assert event["ts"] >= 0
            assert isinstance(event["args"], dict)
        for event in complete_events(trace):
            assert event["dur"] >= 0 and event["cat"]

    def test_time_is_monotonic(self, trace):
        times = [event["ts"] for event in trace["traceEvents"]]
        assert times == sorted(times)

    def test_events_of_a_track_are_nested_or_apart(self, trace):
        for events in by_track(trace).values():
            open_until: list[float] = []
            for event in events:
                end = event["ts"] + event["dur"]
                while open_until and open_until[-1] <= event["ts"] + 1e-3:
                    open_until.pop()
                assert not open_until or end <= open_until[-1] + 1e-3, event["name"]
                open_until.append(end)

    def test_tracks_and_processes_have_names(self, trace):
        named = {
            (event["pid"], event["tid"])
            for event in trace["traceEvents"]
            if event["name"] == "thread_name"
        }
        assert set(by_track(trace)) <= named

    def test_kernels_stand_there_with_their_costs(self, trace, profiled):
        kernels = [
            e for e in complete_events(trace) if "flop" in e["args"] and "lines" in e["args"]
        ]
        assert len(kernels) == 5 * len(profiled.kernels)
        total = sum(event["dur"] for event in kernels)
        assert total == pytest.approx(sum(t.total for t in profiled.kernels), rel=1e-3)

    def test_capture_compilation_and_spans_are_there(self, trace):
        names = [event["name"] for event in complete_events(trace)]
        assert names.count("one step") == 5
        assert any(name.startswith("capture ") for name in names)
        for name in ("compile", "program", "C compiler"):
            assert names.count(name) >= 1

    def test_each_pass_is_a_span(self, profiled):
        x = Tensor(np.ones(5, np.float32))
        outputs = ((x * 2).sum().node,)
        with recorder.recording(recorder.Recorder()) as found:
            pipeline.build_program(outputs, canonical_key(outputs)[1], CPU)
        passes = [span.name for span in found.spans if span.category == "pass"]
        assert passes == [p.name for p in (*pipeline.GRAPH, *pipeline.PLAN)]

    def test_live_memory_is_a_counter(self, trace):
        counters = [event for event in trace["traceEvents"] if event["ph"] == "C"]
        assert len(counters) == 5
        assert counters[0]["args"]["parameter"] > 0

    @pytest.mark.skipif(
        not shutil.which("trace_processor_shell"), reason="Perfetto's trace processor is not here"
    )
    def test_perfetto_reads_it(self, trace, profiled, tmp_path):
        processor = pytest.importorskip("perfetto.trace_processor")
        path = tmp_path / "trace.json"
        path.write_text(json.dumps(trace))
        binary = shutil.which("trace_processor_shell")
        config_ = processor.TraceProcessorConfig(bin_path=binary)
        with processor.TraceProcessor(trace=str(path), config=config_) as opened:
            rows = list(opened.query("select name, dur from slice where dur >= 0"))
        assert len(rows) == len(complete_events(trace))

    def test_a_folder_that_is_not_there_leaves_nothing(self, profiled, tmp_path):
        with pytest.raises(OSError):
            profiled.save(tmp_path / "missing" / "trace.json")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.cpu("threads of the pool")
class TestThreads:
    def test_shares_of_threads_make_up_the_parallel_kernels(self):
        x = Tensor(np.random.default_rng(0).random((1 << 9, 1 << 10), np.float32))
        with config.configure(threads=2), tinyc.profile() as p:
            (x.exp() * 2 + x).numpy()
        (run,) = p.runs
        (kernel,) = run.program.kernels
        assert kernel.chunks > 1
        assert run.shares[:, 3].sum() == kernel.chunks
        assert set(run.shares[:, 0].tolist()) <= {0, 1}
        assert (run.shares[:, 1] >= run.times[0]).all()
        assert (run.shares[:, 2] <= run.times[1]).all()


class TestMemory:
    def test_planned_is_what_is_measured(self, profiled):
        memory = profiled.memory()
        if memory.measured is None:
            pytest.skip("this system does not tell which pages are there")
        assert memory.measured == pytest.approx(memory.planned, rel=0.05)

    def test_categories_are_the_models(self, profiled):
        size = 4 * (24 * 48 + 48 + 2 * 48 + 48 * 7 + 7)
        memory = profiled.memory()
        assert memory.peak["optimizer"] >= 2 * size
        assert memory.peak["parameter"] >= size
        assert memory.peak["gradient"] >= size
        assert memory.peak["activation"] >= 4 * 40 * 48
        assert "activation" in str(memory)

    def test_training_without_capture_has_the_same_categories(self):
        model = tinyc.nn.Linear(64, 32)
        optimizer = tinyc.optim.Adam(model.parameters())
        x = Tensor(np.ones((8, 64), np.float32))
        with tinyc.profile() as p:
            loss = (model(x) ** 2).sum()
            loss.backward()
            optimizer.step()
        size = 4 * (64 * 32 + 32)
        memory = p.memory()
        assert memory.peak["parameter"] >= size
        assert memory.peak["optimizer"] >= 2 * size
        assert memory.peak["gradient"] >= size
        assert model.weight.grad is not None

    def test_a_category_is_counted_until_its_memory_dies(self):
        before = ALLOCATOR.categories
        buffer = Buffer.from_numpy(np.zeros(1000, np.float32), "cpu")
        buffer.categorize("gradient")
        assert ALLOCATOR.categories.get("gradient", 0) - before.get("gradient", 0) == 4000
        buffer.categorize("optimizer")
        assert ALLOCATOR.categories.get("gradient", 0) == before.get("gradient", 0)
        del buffer
        assert ALLOCATOR.categories.get("optimizer", 0) == before.get("optimizer", 0)

    def test_only_touched_pages_are_there(self):
        array = np.zeros(64 * footprint.PAGE, np.uint8)
        address = array.ctypes.data
        range_ = (-(-address // footprint.PAGE) * footprint.PAGE, 32 * footprint.PAGE)
        array[:] = 1
        if footprint.resident([range_]) is None:
            pytest.skip("this system does not tell which pages are there")
        assert footprint.resident([range_]) == 32 * footprint.PAGE
        footprint.forget([range_])
        assert footprint.resident([range_]) == 0
        array[range_[0] - address + 5 * footprint.PAGE + 3] = 1
        assert footprint.resident([range_, range_]) == footprint.PAGE

    def test_the_first_run_computes_what_the_others_do(self):
        x = Tensor(np.random.default_rng(0).random((300, 200), np.float32))
        expected = (x @ x.T).softmax(-1).sum().numpy()
        with tinyc.profile():
            found = (x @ x.T).softmax(-1).sum().numpy()
        assert np.array_equal(found, expected)


def test_the_title_of_a_program_is_the_line_of_its_first_output():
    x = Tensor(np.ones(11, np.float32))
    with tinyc.profile() as p:
        (x * 3).numpy()
    (program,) = p.recorder.programs.values()
    assert profiling.title(program).startswith("test_profile.py:")


# A process of its own: the tensors of other tests are alive, too, and would be counted.
GPT = """
import json, numpy as np, tinyc
from tinyc import Tensor, jit, optim
from tinyc.models import GPT, GPTConfig

model = GPT(GPTConfig(block_size=64, vocab_size=65, n_layer=4, n_head=4, n_embd=128))
optimizer = optim.AdamW(model.parameters(), lr=1e-3)

@jit
def step(x, y):
    _, loss = model(x, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss

tokens = np.random.default_rng(0).integers(0, 65, (12, 65))
with tinyc.profile() as p:
    for _ in range(2):
        step(Tensor(tokens[:, :-1]), Tensor(tokens[:, 1:]))
memory = p.memory()
size = 4 * sum(parameter.numel() for parameter in model.parameters())
print(json.dumps([memory.measured, memory.planned, dict(memory.peak), size]))
"""


@pytest.mark.slow
def test_a_step_of_gpt_needs_the_memory_that_was_planned():
    done = subprocess.run([sys.executable, "-c", GPT], capture_output=True, text=True, check=True)
    measured, planned, peak, size = json.loads(done.stdout)
    if measured is None:
        pytest.skip("this system does not tell which pages are there")
    assert measured == pytest.approx(planned, rel=0.05)
    assert sum(peak.values()) == pytest.approx(planned, rel=0.05)
    assert peak["optimizer"] == pytest.approx(2 * size, rel=0.01)
    assert peak["parameter"] == pytest.approx(size, rel=0.05)
