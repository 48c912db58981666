"""What DEBUG prints at each level, and how the commands and failures read in fresh processes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, jit

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.cpu("shows C and its compiler")

TRAIN = """
import tinyc
from tinyc import nn, optim, compiler
tinyc.manual_seed(0)
model = nn.Linear(4, 3)
optimizer = optim.SGD(model.parameters(), lr=0.1)
x, y = tinyc.ones(5, 4), tinyc.Tensor([0, 1, 2, 0, 1])
for _ in range(3):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("loss", round(loss.item(), 4))
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "DEBUG": "", **environment},
    )  # fmt: skip


LEVELS = {
    1: r"kernel",
    2: r"us\b",
    3: r"apart|refus|fus",
    4: r"static void k0_",
    5: r"^[-+@]",
    6: r"->",
    7: r"-O2",
}


@pytest.mark.parametrize("level", LEVELS)
def test_each_debug_level_prints_more(level, tmp_path):
    code = "import tinyc\nprint((tinyc.ones(7, 90) * 2 + tinyc.rand(7, 90)).softmax(-1).sum())"
    text = python(code, DEBUG=str(level), TINYC_CACHE_DIR=str(tmp_path)).stderr
    assert re.search(LEVELS[level], text, re.MULTILINE), text[:2000]
    if level < 4:
        assert "static void" not in text


def test_debug_filters_kernels_and_passes(tmp_path):
    code = "import tinyc\nprint((tinyc.rand(7, 90) * 2).softmax(-1).sum())"
    folder = str(tmp_path)
    none = python(code, DEBUG="4:nothing", TINYC_CACHE_DIR=folder).stderr
    assert "static void" not in none
    every = python(code, DEBUG="5", TINYC_CACHE_DIR=folder).stderr
    some = python(code, DEBUG="5@simplify", TINYC_CACHE_DIR=folder).stderr
    assert len(some) < len(every) / 2


def test_a_jitted_function_shows_its_graph_loops_and_source():
    double = jit(lambda x: x * 2 + 1)
    x = Tensor(np.ones(50, np.float32))
    double(x)
    assert "mul" in str(double.graph())
    assert "for" in str(double.loops()) and "kernel" in str(double.loops())
    assert "static void k0_" in double.source()


def test_comparing_shows_kernels_and_totals():
    found = tinyc.compare(lambda x: x.softmax(-1), tinyc.rand(64, 64), repeats=3)
    assert found.unfused_us > 0 and found.fused_us > 0
    assert "ratio" in str(found)


def test_a_second_process_compiles_nothing(tmp_path):
    code = TRAIN + "from tinyc.runtime.cache import disk_cache\n"
    code += "print('compiles', disk_cache().stats.compiles)"
    first = python(code, TINYC_CACHE_DIR=str(tmp_path)).stdout
    second = python(code, TINYC_CACHE_DIR=str(tmp_path)).stdout
    assert "compiles 0" in second and "compiles 0" not in first
    assert first.splitlines()[0] == second.splitlines()[0]


def test_without_a_compiler_training_goes_on_with_one_warning(tmp_path):
    usual = python(TRAIN, TINYC_CACHE_DIR=str(tmp_path / "a"))
    done = python(
        TRAIN, PATH=str(tmp_path), CC="", TINYC_DEVICE="", TINYC_CACHE_DIR=str(tmp_path / "b"),
        PYTHONWARNINGS="default",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == usual.stdout
    if importlib.util.find_spec("ziglang") is None:
        assert done.stderr.count("Warning") == 1, done.stderr


def test_an_unwritable_cache_is_survived(tmp_path):
    place = tmp_path / "file"
    place.write_text("no folder")
    done = python(TRAIN, TINYC_CACHE_DIR=str(place))
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout
    assert done.stderr.count("Warning") == 1, done.stderr


def test_a_corrupt_cache_is_rebuilt_with_one_warning(tmp_path):
    cache = tmp_path / "cache"
    first = python(TRAIN, TINYC_CACHE_DIR=str(cache))
    for path in cache.rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[:-7] + b"garbage")
    second = python(TRAIN, TINYC_CACHE_DIR=str(cache))
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
    assert second.stderr.count("Warning") <= 2, second.stderr
    assert python(TRAIN, TINYC_CACHE_DIR=str(cache)).stderr == ""


def test_a_compile_error_is_short_and_keeps_the_source(tmp_path):
    broken = "from tinyc.codegen import c\nc.RUNTIME += 'int broken = nothing_like_that;'\n"
    done = python(broken + TRAIN, TINYC_CACHE_DIR=str(tmp_path))
    assert done.returncode == 1
    message = done.stderr[done.stderr.rindex("CompileError"):].splitlines()
    assert len(message) <= 20
    kept = [word.strip("',:;()") for line in message for word in line.split() if ".c" in word]
    assert any(Path(word).is_file() for word in kept), message
    assert "nothing_like_that" in "\n".join(message)
    assert "<string>:" in "\n".join(message)


@pytest.mark.parametrize("call", ["item()", "numpy()", "tolist()", "__bool__()"])
def test_looking_at_a_value_inside_jit_is_an_error(call):
    look = jit(lambda x: eval(f"x.sum().{call}", {"x": x}))
    with pytest.raises(tinyc.TinycError, match="jit"):
        look(tinyc.ones(3))


def test_commands_run():
    for arguments, expected in (
        (["doctor"], "C compiler"),
        (["cache"], "folder"),
        (["compare", "softmax", "--repeats", "2"], "medians of 2 runs"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tinyc", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert expected in done.stdout, done.stderr
