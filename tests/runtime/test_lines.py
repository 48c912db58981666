"""TINYC_LINES: debuggers and profilers find the user's lines and the kernels' names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinyc import Tensor, compiler, config
from tinyc.codegen import c
from tinyc.runtime.toolchain import Unit, find_compiler, library_key

pytestmark = pytest.mark.cpu("lines of generated C")
OBJDUMP = shutil.which("objdump")
GDB = shutil.which("gdb")
HERE = os.path.abspath(__file__)
ROOT = Path(__file__).resolve().parents[2]


def rows(x: Tensor) -> Tensor:
    y = x.exp() * 3
    return y - y.sum(-1, keepdim=True)


FIRST = rows.__code__.co_firstlineno
ROWS = np.linspace(-1, 1, 64 * 48, dtype=np.float32).reshape(64, 48)


@pytest.fixture
def executable():
    with config.configure(lines=True), compiler.observe() as runs:
        result = rows(Tensor(ROWS)).numpy()
    y = np.exp(ROWS) * 3
    np.testing.assert_allclose(result, y - y.sum(-1, keepdims=True), rtol=1e-5, atol=1e-4)
    return runs[-1].executable


def test_the_compiler_is_told_the_lines_of_kernels_and_then_its_own(executable):
    lines = executable.program.source.split("\n")
    told = {m[1] for line in lines if (m := re.match(rf'#line (\d+) "{HERE}"$', line))}
    assert told == {str(FIRST + 1), str(FIRST + 2)}
    own = [(i, m[1]) for i, line in enumerate(lines, 1)
           if (m := re.match(r'#line (\d+) "program.c"$', line))]  # fmt: skip
    assert own and all(int(number) == i + 1 for i, number in own)
    assert "#line" not in executable.program.kernels[0].source


@pytest.mark.skipif(OBJDUMP is None, reason="objdump is not installed")
def test_instructions_of_a_kernel_name_the_user_s_file_and_line(executable):
    library = executable.native.library
    name = executable.program.kernels[0].name
    line = [OBJDUMP, "-dl", f"--disassemble={name}", str(library)]
    shown = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert f"<{name}>:" in shown
    named = set(re.findall(rf"^{re.escape(HERE)}:(\d+)", shown, re.M))
    assert {str(FIRST + 1), str(FIRST + 2)} <= named
    # what is not of a kernel is in the text of the program, where it is kept
    line = [OBJDUMP, "-dl", "--disassemble=tinyc_step", str(library)]
    shown = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    numbers = re.findall(rf"^{re.escape(str(library.parent))}/program.c:(\d+)", shown, re.M)
    text = (library.parent / "program.c").read_text().splitlines()
    assert any("rt->par" in text[int(n) - 1] or f"{name}(" in text[int(n) - 1] for n in numbers)


def test_parts_are_compiled_with_lines_too(monkeypatch):
    monkeypatch.setattr(c, "PART_TEXT", 200)
    with config.configure(lines=True), compiler.observe() as runs:
        x = Tensor(ROWS)
        total = (x.sum(0).sum() + (x @ x.T).exp().sum(1)).numpy()
    assert runs[-1].executable.program.parts > 1
    assert total.shape == (64,) and np.isfinite(total).all()


def test_an_equal_graph_on_another_line_is_another_library():
    libraries = []
    for lines in (True, False):
        with config.configure(lines=lines), compiler.observe() as runs:
            (Tensor(ROWS) * 0.125).numpy()
            (Tensor(ROWS) * 0.125).numpy()
        libraries.append({run.executable.native.library for run in runs})
    assert [len(found) for found in libraries] == [2, 1]


def test_the_key_of_a_library_knows_lines_only_where_the_library_does():
    found = find_compiler()
    keys = [
        library_key(Unit(f"int f;  // train.py:{n}\n", lines=lines), found)
        for lines in (False, True) for n in (1, 2)
    ]  # fmt: skip
    assert keys[0] == keys[1] and len(set(keys)) == 3


@pytest.mark.skipif(GDB is None, reason="gdb is not installed")
def test_gdb_stops_at_a_line_of_the_user(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("import tinyc\nx = tinyc.randn(64, 48)\ny = x.softmax(-1)\n"
                      "print((y * y).sum().item())\n")  # fmt: skip
    orders = ["set breakpoint pending on", "set debuginfod enabled off", "set pagination off",
              "break train.py:3", "run", "backtrace 1", "list"]  # fmt: skip
    line = [GDB, "-q", "-nx", "-batch", *(word for order in orders for word in ("-ex", order))]
    done = subprocess.run(
        [*line, "--args", sys.executable, str(script)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "TINYC_LINES": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if "ptrace" in done.stderr and "Breakpoint 1," not in done.stdout:
        pytest.skip("processes may not be traced here")
    assert re.search(r"hit Breakpoint 1.*, k\d+_\w+ \(", done.stdout), done.stdout + done.stderr
    assert f"at {script}:3" in done.stdout
    assert "y = x.softmax(-1)" in done.stdout
