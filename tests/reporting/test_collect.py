"""What a report is made of: everything known of a run, as plain data that fits together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from steps import mlp_step

from tinyc import compiler, config
from tinyc.reporting import collect, facts, record
from tinyc.runtime.machine import Machine, machine
from tinyc.tensor import Tensor

pytestmark = pytest.mark.skipif(
    config.current().device in ("numpy", "interpret"), reason="only compiled programs have kernels"
)


@pytest.fixture(scope="module")
def report():
    step, batch = mlp_step()
    return json.loads(json.dumps(collect(step, *batch, repeats=4)))


@pytest.fixture(scope="module")
def program(report):
    (only,) = report["programs"]
    return only


def by_name(items):
    return {item["name"]: item for item in items}


class TestGraph:
    def test_edges_go_from_sources_to_users(self, program):
        numbers = [node["id"] for node in program["nodes"]]
        assert numbers == list(range(len(numbers)))
        assert all(source < user for source, user in program["edges"])

    def test_phases_are_those_of_a_training_step(self, program):
        phases = {node["phase"] for node in program["nodes"]}
        assert phases == {"forward", "backward", "optimizer"}
        order = ["forward", "backward", "optimizer"]
        by_id = program["nodes"]
        for source, user in program["edges"]:
            before, after = by_id[source], by_id[user]
            assert order.index(before["phase"]) <= order.index(after["phase"])

    def test_lines_and_phases_agree(self, program, report):
        path = next(path for path in report["files"] if path.endswith("steps.py"))
        text = report["files"][path]["lines"]
        first = report["files"][path]["first"]
        for node in program["nodes"]:
            if node["phase"] == "optimizer" and node["line"] and node["line"][0] == path:
                assert "optimizer" in text[node["line"][1] - first], node

    def test_every_node_that_computes_has_a_kernel(self, program):
        for node in program["nodes"]:
            if node["op"] not in ("assign",):
                assert node["kernels"], node


class TestKernels:
    def test_members_name_nodes_and_lines(self, program):
        for kernel in program["kernels"]:
            assert kernel["members"]
            for number in (n for member in kernel["members"] for n in member["nodes"]):
                assert kernel["index"] in program["nodes"][number]["kernels"]
            # numbers that programs of other tests compute too keep their first line
            assert any(path.endswith("steps.py") for path, _ in kernel["lines"])

    def test_each_line_of_source_belongs_to_a_member_or_nobody(self, program):
        for kernel in program["kernels"]:
            names = by_name(kernel["members"])
            lines = kernel["source"].splitlines()
            assert [number for number, _ in kernel["source_lines"]] == list(
                range(1, len(lines) + 1)
            )
            owners = [owner for _, owner in kernel["source_lines"]]
            assert {owner for owner in owners if owner} <= set(names)
            for line, owner in zip(lines, owners):
                if "  // " in line and owner:
                    assert owner in line.partition("  // ")[2].split()
            stored = [name for name in names if f"// {name} " in kernel["source"]]
            assert set(stored) <= set(owners)

    def test_times_and_rates_fit(self, program, report):
        peak = report["machine"]["peak_gflops"]
        for kernel in program["kernels"]:
            assert 0 < kernel["q1_us"] <= kernel["median_us"] <= kernel["q3_us"]
            assert kernel["gflops"] == pytest.approx(kernel["flops"] / kernel["median_us"] / 1e3)
            assert 0 < kernel["share"] <= 1
            assert kernel["bound"] in ("memory", "compute", "latency")
            assert kernel["roof_us"] >= kernel["flops"] / peak / 1e3

    def test_unfused_sums_are_those_of_the_unfused_program(self, program):
        beside = [kernel["unfused"] for kernel in program["kernels"]]
        assert sum(part["kernels"] for part in beside) == program["unfused"]["kernels"]
        assert sum(part["bytes"] for part in beside) == program["unfused"]["bytes"]
        assert program["unfused"]["kernels"] > len(program["kernels"])

    @pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
    @pytest.mark.skipif(compiler.default_device() != "cpu", reason="machine code of generated C")
    def test_machine_code_knows_the_lines_of_c(self, program):
        for kernel in program["kernels"]:
            lines = kernel["source"].count("\n") + 1
            assert kernel["asm"]
            numbers = [line for _, line in kernel["asm"] if line is not None]
            assert all(1 <= line <= lines for line in numbers)
            assert len(numbers) > len(kernel["asm"]) // 2
            computing = {
                line for line, owner in kernel["source_lines"] if owner and line in set(numbers)
            }
            assert computing
        names = {name for kernel in program["kernels"] for name in kernel["calls_helpers"]}
        assert names == set(by_name(program["helpers"]))
        assert all(len(helper["asm"]) > 10 for helper in program["helpers"])


class TestLinks:
    def test_what_crosses_kernels_is_written_by_one_and_read_by_the_other(self, program):
        kernels = program["kernels"]
        assert program["links"]
        for link in program["links"]:
            assert link["from"] < link["to"]
            assert link["producer"] in by_name(kernels[link["from"]]["members"])
            assert link["consumer"] in by_name(kernels[link["to"]]["members"])
            assert link["bytes"] > 0

    def test_each_has_a_reason_and_what_would_change_it(self, program):
        for link in program["links"]:
            assert link["why"], link
            assert all(why["rule"] and why["remedy"] and why["message"] for why in link["why"])


class TestMemory:
    def test_the_peak_is_the_sum_of_its_parts(self, program):
        peak = program["peak"]
        assert peak["bytes"] == sum(part["bytes"] for part in peak["contributors"])
        sizes = [part["bytes"] for part in peak["contributors"]]
        assert sizes == sorted(sizes, reverse=True)
        assert max(peak["live"]) == peak["live"][peak["kernel"]] <= peak["arena"]

    def test_what_was_planned_is_what_is_there(self, program):
        peak = program["peak"]
        if peak["measured"] is None:
            pytest.skip("this system does not tell which pages are there")
        assert peak["measured"] == pytest.approx(peak["planned"], rel=0.05)
        assert peak["bytes"] == pytest.approx(peak["planned"], rel=0.05)

    def test_storages_that_live_at_once_lie_apart(self, program):
        placed = [s for s in program["storages"] if s["offset"] is not None]
        assert any(s["within"] for s in placed) and not all(s["within"] for s in placed)
        sizes = {s["name"]: s["bytes"] for s in program["storages"]}
        for one in placed:
            size = sizes[one["within"]] if one["within"] else program["arena_bytes"]
            assert one["offset"] + one["bytes"] <= size
            for other in (s for s in placed if s["within"] == one["within"]):
                if one is not other and one["first"] <= other["last"] >= other["first"]:
                    together = one["last"] >= other["first"] and other["last"] >= one["first"]
                    apart = (
                        one["offset"] + one["bytes"] <= other["offset"]
                        or other["offset"] + other["bytes"] <= one["offset"]
                    )
                    assert apart or not together, (one["name"], other["name"])

    def test_categories_are_those_of_a_training_step(self, program):
        found = {storage["category"] for storage in program["storages"]}
        wanted = {"parameter", "optimizer", "gradient", "activation", "input", "output"}
        assert wanted <= found
        parameters = 4 * (24 * 48 + 48 + 2 * 48 + 48 * 7 + 7)
        sizes = {s["category"]: s["bytes"] for s in program["storages"] if s["bytes"] == parameters}
        assert set(sizes) == {"parameter", "optimizer", "gradient"}

    def test_arguments_are_named_and_have_the_line_that_made_them(self, program):
        large = {s["category"]: s for s in program["storages"] if s["name"].startswith("in")}
        assert large["parameter"]["what"].startswith("parameters f32[")
        assert large["input"]["line"][0].endswith("steps.py")

    def test_the_graph_alone_tells_parameters_from_state(self, monkeypatch):
        step, batch = mlp_step()
        with record() as recording:
            step(*batch)
        (recorded,) = recording.programs
        told = facts.storages(recorded.executable.program, recorded.buffers)
        alone = facts.storages(recorded.executable.program, ())
        large = [i for i, s in enumerate(told) if s["bytes"] > 8]
        assert [told[i]["category"] for i in large] == [alone[i]["category"] for i in large]


class TestRuns:
    def test_the_timeline_is_one_run(self, program):
        line = program["timeline"]
        assert {part["kernel"] for part in line} == set(range(len(program["kernels"])))
        assert all(0 <= part["start_us"] <= part["end_us"] for part in line)
        starts = [part["start_us"] for part in line]
        assert starts == sorted(starts)

    def test_calls_are_counted_while_recording(self):
        step, batch = mlp_step()
        with record() as recording:
            for _ in range(3):
                step(*batch)
        (program,) = collect(recording, repeats=1, unfused=False, assembly=False)["programs"]
        assert program["calls"] == 3
        assert "unfused" not in program
        assert "asm" not in program["kernels"][0]

    def test_without_fusion_there_is_nothing_beside(self):
        x = Tensor(np.ones((9, 13), np.float32))
        with config.configure(fuse=False):
            (program,) = collect(lambda x: x.softmax(-1), x, repeats=1)["programs"]
        assert "unfused" not in program
        assert len(program["kernels"]) >= 4
        assert {why["rule"] for link in program["links"] for why in link["why"]} == {"fusion-off"}

    def test_a_program_is_rebuilt_as_it_was(self):
        x = Tensor(np.random.default_rng(3).random((17, 23), np.float32))
        with record() as recording:
            (x.softmax(-1) @ x.T).sum().numpy()
        (recorded,) = recording.programs
        once, again = recorded.executable.program, facts.rebuild(recorded.executable).program
        assert once.source == again.source
        assert once.storages == again.storages
        # names of registers in texts of loops go on counting
        strip = [[replace(k, loops="") for k in p.kernels] for p in (once, again)]
        assert strip[0] == strip[1]

    def test_collecting_changes_nothing_of_the_callers(self):
        step, batch = mlp_step()
        twin, same = mlp_step()
        losses = [twin(*same).item() for _ in range(2)]
        with record() as recording:
            first = step(*batch)
        collect(recording, repeats=2, unfused=False, assembly=False)
        assert [first.item(), step(*batch).item()] == losses

    def test_nothing_ran(self):
        found = collect(lambda: None, repeats=1)
        assert found["programs"] == [] and found["title"] == "nothing ran"

    def test_observers_are_gone_afterwards(self):
        with record():
            pass
        assert not compiler.observed()


class TestPasses:
    def test_each_pass_has_its_text_and_time(self, program):
        passes = program["passes"]
        assert [p["name"] for p in passes][:2] == ["simplify", "lift"]
        assert all(p["ms"] > 0 and p["after"] for p in passes)
        assert passes[0]["before"] != passes[0]["after"]

    def test_rules_that_fired_have_lines(self, program):
        fired = program["passes"][0]["firings"]
        assert fired
        assert all(f["rule"] and f["before"] and f["after"] for f in fired)
        assert any(f["line"] and f["line"][0].endswith("steps.py") for f in fired)

    def test_scheduling_is_shown_as_diffs_of_kernels(self, program):
        names = set(by_name(program["kernels"]))
        (schedule,) = [p for p in program["passes"] if p["name"] == "schedule"]
        assert schedule["firings"]
        assert all(f["kernel"] in names for f in schedule["firings"])
        assert all(f["after"].startswith("@@") for f in schedule["firings"])


class TestMachine:
    def test_peaks_are_measured_and_kept(self):
        first = machine()
        assert machine() == first
        assert first.peak_gflops > 1 and first.read_gbs > 0.1 and first.copy_gbs > 0.1
        assert all(speed > 0 for _, speed in first.levels)
        assert first.cpu and first.compiler

    def test_the_roof_is_of_arithmetic_or_of_memory(self):
        levels = ((1 << 10, 400.0), (1 << 20, 100.0))
        peaks = Machine("cpu", 2, "cc", 200.0, 20.0, 10.0, 8.0, 5.0, 1.0, levels)
        assert peaks.bandwidth(1 << 20) == 100.0
        assert peaks.bandwidth(1 << 30) == 10.0
        assert peaks.roof(200_000, 0) == pytest.approx(1.0)
        assert peaks.roof(0, 1 << 20) == pytest.approx((1 << 20) / 100e3)
        assert peaks.bound(200_000_000, 100, 2000.0) == "compute"
        assert peaks.bound(100, 1 << 30, 200_000.0) == "memory"
        assert peaks.bound(100, 100, 3.0) == "latency"
