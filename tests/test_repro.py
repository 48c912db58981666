"""`tinyc repro`: the files compile without warnings, and find right and wrong results."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from running import buffers, floats

from tinyc import __main__, compiler, config, dumps
from tinyc.commands import repro, standalone
from tinyc.composites import activation, linear, reductions
from tinyc.ir import build as b
from tinyc.ir.dtype import DTYPES
from tinyc.runtime import host
from tinyc.runtime.toolchain import find_compiler

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.cpu("writes programs in C")


def softmax(rows, columns):
    (x,), memory = buffers(floats(rows, columns))
    return [reductions.softmax(x)], memory


def linear_relu():
    (x, w, c), memory = buffers(floats(32, 64), floats(16, 64), floats(16))
    return [activation.relu(linear.linear(x, w, c))], memory


def momentum():
    (p, g, m), memory = buffers(floats(1000), floats(1000, seed=1), floats(1000, seed=2))
    moved = b.add(b.mul(m, 0.9), g)
    return [b.assign(p, b.sub(p, b.mul(moved, 0.1))), b.assign(m, moved)], memory


def rows_by_index():
    (x, i), memory = buffers(floats(9, 5), np.array([8, 0, 3]))
    return [b.scatter_add(b.gather(x, i, 0), i, 0, 9)], memory


def every_kind_of_number():
    (x, n), memory = buffers(
        np.array([1.5, -0.0, np.nan, np.inf, -np.inf, 1e-45], np.float32),
        np.array([-(2**63), 2**63 - 1, 0]),
    )
    outputs = [b.cast(b.lt(x, 1.0), DTYPES[name]) for name in DTYPES if name != "bool"]
    return [*outputs, b.neg(x), b.lt(x, 1.0), b.xor(n, 5), b.cast(x, DTYPES["f64"])], memory


CASES = [lambda: softmax(8, 20), lambda: softmax(300, 200), linear_relu, momentum, rows_by_index,
         every_kind_of_number]  # fmt: skip


def case_of(make):
    outputs, memory = make()
    leaves = compiler.canonical_key(outputs)[1]
    arrays = [memory[leaf.attrs[0]] for leaf in leaves]
    return repro.Case(tuple(outputs), host.host_target(), arrays, "test.py:1", "of the test")


def compiled(path, *flags):
    binary = path.with_suffix("")
    words = [*find_compiler().command, "-Wall", "-Werror", *flags, str(path), "-o", str(binary)]
    done = subprocess.run([*words, "-lm", "-lpthread"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return binary


def run(binary, *arguments):
    line = [str(binary), *arguments]
    return subprocess.run(line, cwd=binary.parent, capture_output=True, text=True)


@pytest.mark.parametrize("make", CASES)
def test_every_kernel_of_a_program_finds_its_results(make, tmp_path):
    case = case_of(make)
    names = {k.name for k in compiler.compile_graph(case.outputs).program.kernels}
    for name in names:
        said = repro.reproduce(case, re.compile(name), str(tmp_path / f"{name}.c"))
        assert re.search(r"numpy agrees on [1-9]\d* of", said)
        binary = compiled(tmp_path / f"{name}.c")
        for threads in ("1", "2"):
            done = run(binary, threads)
            assert done.returncode == 0, done.stdout
            assert re.search(rf"^{name}: ok, median of \d+ runs [\d.]+ us, ", done.stdout)
    assert (tmp_path / f"{name}.bin").exists() == (make is CASES[1])


def test_the_command_that_it_names_compiles_as_tinyc_does(tmp_path):
    path = tmp_path / "k.c"
    said = repro.reproduce(case_of(linear_relu), re.compile("k0"), str(path))
    command = said.splitlines()[1].split(" && ")[0].replace("cc ", "cc -Wall -Werror ", 1)
    assert command in path.read_text().replace("cc -O2", "cc -Wall -Werror -O2")
    words = [*find_compiler().command, *command.split()[1:]]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = run(tmp_path / "k")
    assert ": ok, " in done.stdout and "compiled without" not in done.stdout


@pytest.mark.parametrize("embedded", [True, False])
def test_wrong_results_are_found(tmp_path, monkeypatch, embedded):
    if not embedded:
        monkeypatch.setattr(standalone, "EMBEDDED", 0)
    path = tmp_path / "k.c"
    repro.reproduce(case_of(CASES[0]), re.compile("k0"), str(path))
    before, kernel, after = re.split(r"(?=static void k0)|(?=long tinyc_step)", path.read_text())
    assert " / " in kernel
    path.write_text(before + kernel.replace(" / ", " * ") + after)
    done = run(compiled(path))
    assert done.returncode == 1
    assert re.search(r"MISMATCH in out0\[0\]: \S+ expected, \S+ computed", done.stdout)
    assert "k0_exp_div_reduce: mismatch, " in done.stdout
    if not embedded:
        path.with_suffix(".bin").unlink()
        assert run(path.with_suffix("")).returncode == 2


def test_results_that_numpy_does_not_share_are_replaced_by_its(tmp_path, monkeypatch):
    evaluate = repro.evaluate
    monkeypatch.setattr(repro, "evaluate", lambda *a: [v + 1 for v in evaluate(*a)])
    said = repro.reproduce(case_of(CASES[0]), re.compile("k0"), str(tmp_path / "k.c"))
    assert "numpy's, which differ from what tinyc computed" in said
    assert run(compiled(tmp_path / "k.c")).returncode == 1


SCRIPT = """
import sys
import tinyc
from tinyc import nn, optim
model = nn.Linear(6, 3)
optimizer = optim.SGD(model.parameters(), lr=0.1)
x, y = tinyc.ones(5, 6), tinyc.Tensor([0, 1, 2, 0, 1])

@tinyc.jit
def step(x, y):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss

for i in range(int(sys.argv[1])):
    print("step", i, step(x, y).item())
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def test_a_script_runs_until_it_has_the_kernel(script, tmp_path):
    line = [sys.executable, "-m", "tinyc", "repro", r"train.py:11", str(script), "50"]
    done = subprocess.run(
        [*line, "-o", str(tmp_path / "k.c")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 or "several kernels match" in done.stderr, done.stderr
    if done.returncode:
        name = re.findall(r"^  (\w+) \[", done.stderr, re.M)[0]
        line[4] = name
        done = subprocess.run(
            [*line, "-o", str(tmp_path / "k.c")], cwd=ROOT, capture_output=True, text=True
        )
    assert "step 49" not in done.stdout
    assert ": ok" in run(compiled(tmp_path / "k.c")).stdout
    assert f"recorded when {script} ran it first" in (tmp_path / "k.c").read_text()


@pytest.mark.parametrize("recorded", [True, False])
def test_a_dump_gives_the_kernel_and_its_inputs(tmp_path, recorded, capsys):
    outputs, memory = linear_relu()
    outputs = [b.add(outputs[0], 0.25 if recorded else 0.75)]
    executed = {uid: compiler.Buffer.from_numpy(a, "cpu") for uid, a in memory.items()}
    with config.configure(dump=str(tmp_path / "dump"), dump_inputs=recorded):
        compiler.execute(outputs, executed)
    (home,) = (tmp_path / "dump").iterdir()
    assert (home / dumps.INPUTS).exists() == recorded
    path = tmp_path / "k.c"
    words = ["repro", "k0", "--from", str(tmp_path / "dump"), "-o", str(path)]
    assert __main__.main(words) == 0, capsys.readouterr().err
    assert ("made up" in path.read_text()) != recorded
    assert ": ok" in run(compiled(path)).stdout


@pytest.mark.parametrize(("words", "message"), [
    (["k0"], "name a script to run, or a dump with --from FOLDER"),
    (["k(0", "x.py"], "missing )"),
    (["k0", "--from", "nothing-here"], "nothing-here: no dump there; TINYC_DUMP=nothing-here"),
    (["k0", "no-such-script.py"], "No such file"),
])  # fmt: skip
def test_mistakes_are_told(words, message, capsys):
    assert __main__.main(["repro", *words]) == 1
    assert message in capsys.readouterr().err


def test_kernels_are_listed_where_none_matches(tmp_path, capsys):
    node, memory = softmax(7, 11)
    executed = {uid: compiler.Buffer.from_numpy(a, "cpu") for uid, a in memory.items()}
    with config.configure(dump=str(tmp_path)):
        compiler.execute(node, executed)
    assert __main__.main(["repro", "nothing", "--from", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert re.search(r"no kernel matches 'nothing'; there are\n  k0_", told)
