"""The parts of the benchmarks that decide what a table says."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

OURS = ("adapters", "machine", "processes", "report", "results", "standing", "weights", "workloads")
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_WORK", str(tmp_path))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in list(sys.modules):
        if name.partition(".")[0] in OURS:
            del sys.modules[name]


def cell(*medians: float, losses: list[float], others: float = 0.0) -> dict:
    rounds = [
        {"samples": [m, m, m], "waited": 0.0, "others": others, "inner": 1, "rss_mib": 10.0}
        for m in medians
    ]
    return {"rounds": rounds, "threads": 2, "losses": losses}


def test_every_workload_has_inputs_or_weights():
    import weights
    import workloads

    for name in ("mm_256", "conv3x3_n64_16_32_28_fwd", "attn_fwd", "tiny_eager"):
        assert all(a.dtype == np.float32 for a in workloads.inputs(workloads.WORKLOADS[name]))
    for name, w in workloads.WORKLOADS.items():
        assert w["name"] == name
        if w["kind"] == "train":
            assert name in weights.MODELS
    assert set(workloads.CORE) <= set(workloads.WORKLOADS)
    assert workloads.select(["tiny", "mlp"])[-1] == "mlp"
    with pytest.raises(SystemExit, match="no workload or group 'nothing'"):
        workloads.select(["nothing"])


def test_weights_are_the_same_each_time():
    import weights

    first, second = weights.load("mlp"), weights.load("mlp")
    np.testing.assert_array_equal(first[0]["w0"], second[0]["w0"])
    assert first[1].shape == (4, 128, 784)


def test_a_table_has_medians_ratios_and_who_disagrees():
    import report

    columns = {
        "torch:eager": cell(0.002, 0.002, losses=[2.0, 1.0]),
        "tinyc:jit": cell(0.001, 0.003, 0.001, losses=[2.0, 1.0]),
        "jax:jit": cell(0.004, losses=[2.0, math.nan]),
    }
    text = report.render({"bench": {"mlp": columns}})
    row = next(line for line in text.splitlines() if line.startswith("| mlp "))
    assert "**1 / 1**" in row
    assert "2 / 2 (2.00x)" in row
    assert "jax:jit differs by nan" in row


def test_a_cell_without_a_quiet_round_is_marked():
    import report

    loud = cell(0.001, losses=[1.0], others=0.9)
    assert not report.aggregate(loud, "train").noisy
    assert report.aggregate(loud, "red").noisy
    assert report._cell_text(report.aggregate(loud, "red"), 0.001).endswith("~")


def test_absent_frameworks_are_known_without_importing_them(tmp_path):
    import processes

    assert processes.python_of("jax", str(tmp_path)) is None
    assert processes.python_of("tinyc", str(tmp_path)) == sys.executable
    assert processes.modes_of("torch") == ["eager", "compile"]
    assert processes.modes_of("tinygrad") == ["jit"]
    assert set(processes.ADAPTERS) == {"jax", "numpy", "tinyc", "tinygrad", "torch"}


def test_tinycs_adapter_computes_what_numpys_does(tmp_path):
    import workloads
    from adapters import numpy_, tinyc_

    numpy_.init("numpy", 1)
    tinyc_.init("jit", 2)
    for name in ("mm_256", "tiny_eager", "tiny_jitcall"):
        w = {**workloads.WORKLOADS[name]}
        expected = numpy_.make({**w, "name": name.replace("jitcall", "eager")}, "numpy")
        found = tinyc_.make(w, "jit")
        for a, b in zip(found.check(), expected.check(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_tinycs_adapter_trains():
    import workloads
    from adapters import tinyc_

    tinyc_.init("jit", 2)
    case = tinyc_.make(workloads.WORKLOADS["mlp"], "jit")
    # PyTorch's losses from the same weights and batches
    expected = [2.309663, 2.313196, 2.325159, 2.314722, 1.857850, 1.915029]
    losses = [case.step(i) for i in range(6)]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


# The most kernels that one step may take.
STEPS = {"mlp": 14, "lenet64": 28, "lenet512": 28, "resnet20": 100}


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_few_kernels_that_compute_no_more_and_move_less(name):
    import workloads
    from adapters import tinyc_

    from tinyc import compiler, config, pipeline
    from tinyc.runtime.device import get_device

    tinyc_.init("jit", 2)
    case = tinyc_.make(workloads.WORKLOADS[name], "jit")
    with compiler.observe() as runs:
        case.step(0)
    (run,) = (run for run in runs if len(run.executable.program.kernels) > 2)
    graph, leaves = run.executable.outputs, run.executable.leaves
    with config.configure(fuse=False):
        unfused, _ = pipeline.build_program(graph, leaves, get_device("cpu").machine())
    fused = run.executable.program
    assert len(fused.kernels) <= STEPS[name]
    assert fused.flops <= 1.15 * unfused.flops
    assert fused.bytes_moved < unfused.bytes_moved


def measured(ours: float, peers: dict[str, float], name: str = "mm_256", **more) -> dict:
    columns = {"tinyc:jit": cell(ours, losses=[1.0])}
    columns |= {peer: cell(time, losses=[1.0]) for peer, time in peers.items()}
    return {"bench": {name: columns}, **more}


def test_a_ratio_is_to_the_best_peer_of_each_run_and_met_from_095_on():
    import standing

    runs = [
        measured(1.0, {"torch:eager": 1.0, "jax:jit": 2.0}),
        measured(1.0, {"torch:eager": 3.0, "jax:jit": 0.9}),
        measured(2.0, {"torch:eager": 2.8, "jax:jit": 6.0}),
    ]
    (row,) = standing.standings(runs)
    assert row.ratio == pytest.approx(1.0) and row.peer == "torch:eager, jax:jit"
    assert row.met  # 1.05 was wanted, and 0.95 of it is enough
    (row,) = standing.standings([measured(1.0, {"jax:jit": 0.99})])
    assert not row.met
    assert standing.standings([measured(1.0, {})]) == []


def test_a_share_of_the_ceiling_can_fall_short_alone():
    import standing
    import workloads

    bandwidth = {"fma4_nt": {"median": 50.0}, "others": 0.0}
    peaks = {
        "fma_peak_1": [{"gflops_max": 100.0}],
        "fma_peak_2": [{"gflops_max": 200.0}],
        "stream_2": [bandwidth],
    }
    moved = workloads.WORKLOADS["ew_fma64m"]["bytes"]
    for share, met in ((0.84, False), (0.86, True)):
        ours = moved / (50e9 * share)
        run = measured(ours, {"jax:jit": 2 * ours}, "ew_fma64m", ceilings=peaks)
        (row,) = standing.standings([run])
        assert row.share == pytest.approx(share) and row.met is met


def test_memory_is_compared_strictly_and_with_pytorch_and_jax_only():
    import standing

    run = measured(1.0, {"torch:eager": 2.0, "tinygrad:jit": 3.0}, "mlp")
    for framework, mib in (("tinyc:jit", 51.0), ("torch:eager", 100.0), ("tinygrad:jit", 1.0)):
        run["bench"]["mlp"][framework]["rounds"][0]["rss_mib"] = mib
    speed, memory = standing.standings([run])
    assert speed.met and not memory.met and memory.peer == "torch:eager"


def test_the_table_of_standings_names_what_is_short():
    import standing

    runs = [measured(1.0, {"jax:jit": 0.5}), measured(1.0, {"jax:jit": 0.6})]
    text = standing.render(runs)
    assert "0.55x" in text and "0 of 1 rows met; short: mm_256" in text
    start = [
        {"kind": kind, "wall": wall, "import_s": 0.0, "build_s": 0.0, "first_step_s": 0.0}
        for kind, wall in (("cold", 1.0), ("warm", 0.5))
    ]
    slower = [{**sample, "wall": 3 * sample["wall"]} for sample in start]
    starts = {"lenet64|tinyc:jit": start, "lenet64|jax:jit": slower}
    text = standing.render([{"latency": {"first_step": starts}}])
    assert "2 of 2 rows met" in text and "Geometric mean" not in text


def test_the_headline_is_the_geometric_mean_of_the_six():
    import standing

    merged: dict = {"bench": {}}
    for place, name in enumerate(standing.TRAINING):
        merged["bench"] |= measured(1.0, {"jax:jit": 2.0 ** (place % 2)}, name)["bench"]
    assert standing.headline(standing.standings([merged])) == pytest.approx(2.0**0.5)


def test_rounds_that_were_measured_together_are_runs():
    import standing

    merged = {"bench": {"mm_256": {
        "tinyc:jit": cell(1.0, 1.0, 2.0, losses=[1.0]),
        "jax:jit": cell(1.0, 2.0, 3.0, losses=[1.0]),
    }}}  # fmt: skip
    runs = standing.runs_of(merged)
    assert len(runs) == 3
    (row,) = standing.standings(runs)
    assert row.ratio == pytest.approx(1.5) and row.ours == [1e3, 1e3, 2e3]
