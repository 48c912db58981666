"""Every example runs as a script, without a question or a network, and ends well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="not a checkout: no examples")

TINY = {
    "train_cnn.py": ["--steps", "3", "--batch", "16", "--tests", "100"],
    "train_gpt.py": ["--steps", "4", "--evaluate-every", "3", "--windows", "60", "--sample", "9"],
    "fused_vs_unfused.py": ["--tiny", "--steps", "2"],
    "inspect_ir.py": [],
}


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
    )


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(TINY)


@pytest.mark.parametrize("script", TINY)
def test_example_ends_well(script: str, tmp_path: Path) -> None:
    place = ["--checkpoint", str(tmp_path / "gpt.safetensors")] if script == "train_gpt.py" else []
    done = run(script, *TINY[script], *place)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if script == "train_cnn.py":
        for name in ("accuracy", "of 100 test images", "a step", "kernels", "next"):
            assert name in done.stdout
    if script == "train_gpt.py":
        for name in ("step 3: loss 4.", "step 4: loss 4.", "over 60 windows", "a step", "programs"):
            assert name in done.stdout
        assert os.listdir(tmp_path) == ["gpt.safetensors"]
    if script == "fused_vs_unfused.py":
        for name in ("chain", "softmax", "layer_norm", "linear", "conv", "mlp", "lenet"):
            assert f"\n{name}" in done.stdout


def test_a_diverging_run_stops_with_a_word_on_it() -> None:
    done = run("train_cnn.py", "--steps", "30", "--batch", "8", "--tests", "8", "--lr", "1e30")
    assert done.returncode == 1
    assert "training has diverged; try a learning rate below 1e+30 with --lr" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run("train_cnn.py", "--data", str(tmp_path))
    assert done.returncode == 1
    assert f"no data in {tmp_path}; a folder with the files train-images-idx3" in done.stderr


def test_an_unknown_case_is_refused() -> None:
    done = run("fused_vs_unfused.py", "nonsense")
    assert done.returncode == 2
    assert "no case nonsense; there are chain, softmax" in done.stderr
