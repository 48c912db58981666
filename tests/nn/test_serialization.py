"""Checkpoints: what goes in comes out, other programs read it, a crash leaves a whole file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, nn, optim
from tinyc.nn.serialization import CheckpointError


def test_state_dict_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    path = tmp_path / "model.safetensors"
    tinyc.save(model.state_dict(), path)
    arrays = load_file(path)
    assert set(arrays) == set(model.state_dict())
    np.testing.assert_array_equal(arrays["0.weight"], model[0].weight.numpy())
    other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    other.load_state_dict(tinyc.load(path))
    np.testing.assert_array_equal(other[0].weight.numpy(), model[0].weight.numpy())


def test_nested_values_of_all_kinds_come_back(tmp_path: Path) -> None:
    path = tmp_path / "nest"
    nest = {
        "tensors": {"a.b": Tensor([1.0, 2.0]), "a": {"b": Tensor([3])}},
        "numbers": [1, 2.5, float("inf"), True, None, "text"],
        "pair": (1, (Tensor(7.0),)),
        "by number": {0: "zero", 1: Tensor([True])},
        "empty": {},
    }
    tinyc.save(nest, path)
    back = tinyc.load(path)
    assert back["tensors"]["a.b"].tolist() == [1.0, 2.0]
    assert back["tensors"]["a"]["b"].tolist() == [3]
    assert back["numbers"] == nest["numbers"] and back["empty"] == {}
    assert back["pair"][0] == 1 and back["pair"][1][0].item() == 7.0
    assert back["by number"][0] == "zero" and back["by number"][1].tolist() == [True]


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u1", "u4", "?"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_dtypes_and_shapes_survive(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    value = np.ones(shape, dtype)
    tinyc.save({"x": Tensor(value)}, tmp_path / "x")
    back = tinyc.load(tmp_path / "x")["x"].numpy()
    assert back.dtype == value.dtype and back.shape == shape
    np.testing.assert_array_equal(back, value)


def test_arrays_of_any_layout_are_saved_by_value(tmp_path: Path) -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    tinyc.save({"t": matrix.T, "every": matrix[:, ::2]}, tmp_path / "x")
    back = tinyc.load(tmp_path / "x")
    np.testing.assert_array_equal(back["t"].numpy(), matrix.T)
    np.testing.assert_array_equal(back["every"].numpy(), matrix[:, ::2])


def test_model_and_optimizer_in_one_file(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = optim.Adam(model.parameters(), lr=0.5)
    model(Tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    tinyc.save(state, tmp_path / "checkpoint")
    back = tinyc.load(tmp_path / "checkpoint")
    assert back["epoch"] == 3 and back["optimizer"]["param_groups"][0]["lr"] == 0.5
    optimizer.load_state_dict(back["optimizer"])
    model.load_state_dict(back["model"])


def test_values_that_cannot_be_held_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.hook is a function; a checkpoint holds"):
        tinyc.save({"model": {"hook": lambda: None}}, tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["half", "text", "empty"])
def test_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model"
    tinyc.save({"x": Tensor(np.arange(1000.0))}, path)
    whole = path.read_bytes()
    path.write_bytes({"half": whole[: len(whole) // 2], "text": b"hello" * 9, "empty": b""}[damage])
    with pytest.raises(CheckpointError, match=f"{path} is damaged or no safetensors file"):
        tinyc.load(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        tinyc.load(tmp_path / "absent")


SAVER = """
import sys, numpy as np, tinyc
round = 0
while True:
    round += 1
    tinyc.save({"x": np.full(200_000, round, np.int64), "round": round}, sys.argv[1])
    print(round, flush=True)
"""


def test_killing_a_save_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "model"
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "TINYC_DEVICE": "numpy",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        done = [line for line in process.stdout.read().split() if line]
        process.wait()
        back = tinyc.load(path)
        values = back["x"].numpy()
        assert (values == back["round"]).all()
        assert back["round"] >= (int(done[-1]) if done else 1)
