"""Reports of blocks, scripts and processes: that they are written, also when something fails."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import tinyc
from tinyc.commands.report import take_output
from tinyc.diagnostics import TinycError
from tinyc.reporting.packing import read_page
from tinyc.reporting.recording import record

SCRIPT = """
import sys, tinyc
print("arguments", *sys.argv[1:])
x = tinyc.randn(64, 64)

@tinyc.jit
def step(x):
    return (x @ x).relu().softmax(-1)

for _ in range(3):
    step(x).numpy()
"""


def run(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )  # fmt: skip


class TestBlock:
    def test_is_reported_with_the_users_lines(self, tmp_path, capsys):
        x = tinyc.randn(32, 32)
        with tinyc.report(tmp_path / "r.html", title="mine"):
            (x @ x).tanh().numpy()
        report = read_page(tmp_path / "r.html")
        assert report["title"] == "mine"
        (program,) = report["programs"]
        assert any(path == __file__ for path, _ in program["kernels"][0]["lines"])
        assert "r.html (2 kernels, " in capsys.readouterr().err  # the random numbers, too

    def test_is_reported_when_it_raises(self, tmp_path):
        x = tinyc.randn(32, 32)
        with pytest.raises(ZeroDivisionError), tinyc.report(tmp_path / "r.html"):
            (x + 1).numpy()
            raise ZeroDivisionError
        assert len(read_page(tmp_path / "r.html")["programs"]) == 1

    def test_without_anything_compiled_is_an_error(self, tmp_path):
        with pytest.raises(TinycError, match="no kernel ran"), tinyc.report(tmp_path / "r.html"):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_its_own_error_is_not_hidden_by_a_missing_report(self, tmp_path, capsys):
        with pytest.raises(ZeroDivisionError), tinyc.report(tmp_path / "r.html"):
            raise ZeroDivisionError
        assert "no report was written" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["no/such/folder/r.html", "."])
    def test_a_place_that_cannot_be_written_is_refused_before_the_work(self, tmp_path, name):
        ran = []
        with pytest.raises(TinycError, match="can't be written"), tinyc.report(tmp_path / name):
            ran.append(1)
        assert not ran

    def test_missing_pygments_is_told_before_the_work(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "pygments", None)
        with pytest.raises(TinycError, match=r"tinyc\[report\]"), tinyc.report(tmp_path / "r.html"):
            pass

    def test_counts_runs_and_keeps_none_of_them(self, tmp_path):
        @tinyc.jit
        def f(x):
            return x + 1

        x = tinyc.zeros(1000).numpy()
        x = tinyc.Tensor(x)
        f(x).numpy()
        with record() as seen:
            for _ in range(50):
                f(x)
        (found,) = seen.programs
        assert found.calls == 50 and vars(seen).keys() == {"programs", "_known"}

    def test_of_many_programs_has_the_busiest(self):
        with record() as seen:
            for size in (10, 1000, 20, 2000):
                (tinyc.Tensor(np.zeros(size, np.float32)) + 1).numpy()
        shapes = [p.executable.program.outputs[0].shape for p in seen.busiest(2).programs]
        assert shapes == [(1000,), (2000,)]

    def test_goes_where_it_was_asked_to(self, tmp_path, monkeypatch):
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path)
        with tinyc.report("r.html"):
            monkeypatch.chdir(tmp_path / "elsewhere")
            (tinyc.zeros(3) + 1).numpy()
        assert (tmp_path / "r.html").exists()

    def test_changes_nothing_of_the_users(self, tmp_path):
        weight = tinyc.randn(8, 8).requires_grad_()
        optimizer = tinyc.optim.SGD([weight], lr=0.5, momentum=0.9)
        with tinyc.report(tmp_path / "r.html"):
            (weight * weight).sum().backward()
            optimizer.step()
            inside = weight.numpy().copy()
        assert (weight.numpy() == inside).all()


class TestScript:
    def test_runs_as_python_runs_it(self, tmp_path):
        (tmp_path / "s.py").write_text(SCRIPT)
        done = run(tmp_path, "-m", "tinyc", "report", "s.py", "--epochs", "3", "-o", "r.html", "x")
        assert done.returncode == 0, done.stderr
        assert "arguments --epochs 3 x" in done.stdout
        report = read_page(tmp_path / "r.html")
        assert report["title"] == "s.py --epochs 3 x"
        assert report["script"] == "s.py --epochs 3 x"
        assert [p["calls"] for p in report["programs"] if "s.py" in p["title"]]

    def test_that_fails_is_reported_up_to_there(self, tmp_path):
        (tmp_path / "s.py").write_text(SCRIPT + "raise SystemExit(7)")
        done = run(tmp_path, "-m", "tinyc", "report", "s.py")
        assert done.returncode == 7, done.stderr
        assert read_page(tmp_path / "report.html")["programs"]

    def test_that_is_interrupted_is_reported_up_to_there(self, tmp_path):
        (tmp_path / "s.py").write_text(SCRIPT + "raise KeyboardInterrupt")
        done = run(tmp_path, "-m", "tinyc", "report", "s.py")
        assert done.returncode == 130 and "interrupted" in done.stderr
        assert read_page(tmp_path / "report.html")["programs"]

    def test_without_tinyc_is_an_error(self, tmp_path):
        (tmp_path / "s.py").write_text("print('hello')")
        done = run(tmp_path, "-m", "tinyc", "report", "s.py")
        assert done.returncode == 1 and "no kernel ran" in done.stderr

    def test_that_does_not_exist_is_an_error(self, tmp_path):
        done = run(tmp_path, "-m", "tinyc", "report", "s.py")
        assert done.returncode == 1 and "no file 's.py'" in done.stderr

    def test_two_pages_are_compared(self, tmp_path):
        for name in ("a.html", "b.html"):
            with tinyc.report(tmp_path / name):
                (tinyc.randn(16, 16) + 1).numpy()
        done = run(tmp_path, "-m", "tinyc", "report", "--diff", "a.html", "b.html")
        assert done.returncode == 0 and "kernels" in done.stdout
        done = run(tmp_path, "-m", "tinyc", "report", "--diff", "a.html", "c.html")
        assert done.returncode == 1 and "c.html" in done.stderr


def test_a_process_is_reported_by_its_environment(tmp_path):
    (tmp_path / "s.py").write_text(SCRIPT)
    done = run(tmp_path, "s.py", TINYC_REPORT="r.html")
    assert done.returncode == 0, done.stderr
    assert read_page(tmp_path / "r.html")["title"] == "s.py"
    done = run(tmp_path, "s.py", TINYC_REPORT="no/such/folder/r.html")
    assert done.returncode == 0 and "TINYC_REPORT is ignored" in done.stderr


@pytest.mark.parametrize(("given", "kept", "output"), [
    (["-o", "r.html"], [], "r.html"),
    (["--output=r.html", "--lr", "1"], ["--lr", "1"], "r.html"),
    (["a", "-o", "r.html", "b"], ["a", "b"], "r.html"),
    (["--", "-o", "x"], ["-o", "x"], "report.html"),
    ([], [], "report.html"),
])  # fmt: skip
def test_the_pages_name_is_taken_from_the_scripts_arguments(given, kept, output):
    assert take_output(given, None) == (kept, output)


def test_a_missing_name_is_told():
    with pytest.raises(TinycError, match="-o needs the name of a file"):
        take_output(["a", "-o"], None)
