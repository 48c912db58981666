"""The GPT example: a resumed run is the run that was not interrupted, and mistakes are named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyc

SCRIPT = Path(__file__).parents[2] / "examples" / "train_gpt.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="not a checkout: no examples")

FEW = ["--windows", "10", "--sample", "5", "--batch", "2", "--evaluate-every", "100"]


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *FEW, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
    )


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    with start(*arguments, **environment) as process:
        out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def leaves(tree, name: str = "") -> dict[str, object]:
    """Everything that a checkpoint holds, by dotted name."""
    if isinstance(tree, (dict, list, tuple)):
        entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in entries for k, v in leaves(value, f"{name}.{key}").items()}
    return {name: tree}


def test_a_resumed_run_has_the_bits_of_one_that_ran_through(tmp_path):
    through, resumed = tmp_path / "through.safetensors", tmp_path / "resumed.safetensors"
    common = ["--steps", "6", "--dropout", "0.1", "--seed", "7"]
    code, out, err = run(*common, "--checkpoint", str(through))
    assert code == 0, err
    code, _, err = run(*common, "--checkpoint", str(resumed), "--stop-after", "3")
    assert code == 1 and f"stopped after step 3, saved {resumed}; --resume goes on" in err
    half = tinyc.load(resumed)
    assert half["done"] == 3
    code, again, err = run("--checkpoint", str(resumed), "--resume")
    assert code == 0, err
    assert f"resumed {resumed} after step 3" in again
    wanted, found = leaves(tinyc.load(through)), leaves(tinyc.load(resumed))
    assert wanted.keys() == found.keys() and len(wanted) > 100
    for name, value in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value), name)
    assert not np.array_equal(half["model"]["wte.weight"], found[".model.wte.weight"])
    # The text at the end and the loss of the validation windows are the same, too.
    assert out.split("\n\n")[-2] == again.split("\n\n")[-2]
    assert [line for line in out.splitlines() if line.startswith("validation")] == [
        line for line in again.splitlines() if line.startswith("validation")
    ]


def test_a_finished_run_is_resumed_to_write_alone(tmp_path):
    place = ["--checkpoint", str(tmp_path / "gpt.safetensors")]
    assert run("--steps", "1", *place)[0] == 0
    before = (tmp_path / "gpt.safetensors").read_bytes()
    code, out, err = run("--resume", *place)
    assert code == 0, err
    assert "after step 1" in out and "training" not in out
    assert (tmp_path / "gpt.safetensors").read_bytes() == before


def test_an_interrupt_ends_after_a_whole_step(tmp_path):
    place = tmp_path / "gpt.safetensors"
    with start("--steps", "100000", "--checkpoint", str(place)) as process:
        assert "parameters" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in err
    assert "--resume goes on" in err
    assert os.listdir(tmp_path) == [place.name]
    assert tinyc.load(place)["done"] >= 1


def test_it_runs_without_a_compiler(tmp_path):
    place = ["--checkpoint", str(tmp_path / "gpt.safetensors")]
    code, out, err = run("--steps", "2", *place, TINYC_DEVICE="numpy")
    assert code == 0, err
    assert "step 2: loss 4." in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--steps", "0"], 2, "--steps must be at least 1"),
        (["--evaluate-every", "0"], 2, "--evaluate-every must be at least 1"),
        (["--lr", "0"], 2, "--lr must be above 0"),
        (["--dropout", "1"], 2, "--dropout at least 0 and below 1"),
        (["--temperature", "-1"], 2, "--temperature must be at least 0"),
        (["--config", "huge"], 2, "invalid choice: 'huge'"),
        (["--data", "/no/such.txt"], 1, "no file /no/such.txt"),
        (["--data", "SHORT"], 1, "take shorter windows"),
        (["--resume", "--checkpoint", "/no/such"], 1, "no checkpoint /no/such; run without"),
        (["--resume", "--checkpoint", "SHORT"], 1, "is no checkpoint of this example"),
        (["--lr", "1e30", "--steps", "200"], 1, "training has diverged; try a learning rate below"),
    ],
)
def test_mistakes_are_named(arguments, code, words, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short for windows " * 9)
    place = [] if "--checkpoint" in arguments else ["--checkpoint", str(tmp_path / "gpt")]
    found, _, err = run(*(str(short) if a == "SHORT" else a for a in arguments), *place)
    assert found == code and words in err
    assert "Traceback" not in err
