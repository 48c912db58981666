"""The parts of the benchmarks that decide what a table says."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

OURS = ("adapters", "machine", "processes", "report", "results", "weights", "workloads")
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

    tinyc_.init("jit", 2)
    case = tinyc_.make(workloads.WORKLOADS[name], "jit")
    with compiler.observe() as runs:
        case.step(0)
    (run,) = (run for run in runs if len(run.executable.program.kernels) > 2)
    graph, leaves = run.executable.outputs, run.executable.leaves
    with config.configure(fuse=False):
        unfused, _ = pipeline.build_program(graph, leaves, compiler.host_target())
    fused = run.executable.program
    assert len(fused.kernels) <= STEPS[name]
    assert fused.flops <= 1.15 * unfused.flops
    assert fused.bytes_moved < unfused.bytes_moved
