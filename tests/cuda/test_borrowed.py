"""The command for a borrowed GPU, as far as it goes without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import emulated_cuda
import pytest
from emulated_cuda import emulated_library

ROOT = Path(__file__).resolve().parents[2]


def gpu_sh(*words: str, **environment: str) -> tuple[int, str]:
    """(exit code, last line) of the command."""
    known = {**os.environ, "PYTHON": sys.executable, **environment}
    done = subprocess.run([ROOT / "benchmarks" / "gpu.sh", *words], env=known, text=True,
                          capture_output=True)
    return done.returncode, done.stdout.strip().splitlines()[-1]


def test_without_a_driver_it_says_so(monkeypatch, tmp_path):
    (tmp_path / "libcuda.so.1").write_text("no library")
    code, line = gpu_sh(LD_LIBRARY_PATH=str(tmp_path))
    assert code == 1 and line.startswith("gpu.sh: no CUDA driver")
    assert gpu_sh("/no/such/folder")[1] == "gpu.sh: no folder of wheels: /no/such/folder"
    assert gpu_sh(PYTHON="no-python")[1] == "gpu.sh: no Python: no-python"


@pytest.mark.slow
def test_it_stops_at_the_first_part_that_is_broken(tmp_path):
    emulated_library(tmp_path)  # whose GPU refuses what is compiled for real ones
    code, line = gpu_sh(str(tmp_path), str(tmp_path), LD_LIBRARY_PATH=str(tmp_path))
    assert code == 1 and line in ("gpu.sh: device: FAILED", "gpu.sh: the folder "
                                  f"{tmp_path} lacks a wheel (above) of: cuda-bindings")


@pytest.mark.oracle
def test_the_table_is_checked_measured_and_written(cuda, tmp_path):
    line = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--rehearse", "--results", tmp_path,
            "--rows", "softmax,product", "--modes", "tinyc,eager"]
    paths = os.pathsep.join([str(ROOT), str(Path(emulated_cuda.__file__).parent)])
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": paths}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-rehearsal.json").read_text())
    assert [row["row"] for row in found["rows"]] == ["softmax", "product f32", "product bf16"]
    for row in found["rows"]:
        assert row["ms"]["tinyc"] > 0 and row["ms"]["eager"] > 0 and row["share"] > 0
        assert row["row"] in done.stdout
