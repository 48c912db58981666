"""The console command: what it prints, and its exit status."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyc import __main__, config, doctor
from tinyc.commands import compare

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "tinyc", *arguments],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip


class TestDoctor:
    def test_all_sections_are_there(self):
        sections = dict.fromkeys(finding.section for finding in doctor.examine())
        expected = "software, C compiler, processor, devices, cache, extras, switches"
        assert ", ".join(sections) == expected

    def test_every_switch_is_listed_with_its_source(self, monkeypatch):
        monkeypatch.setitem(config._environment, "fuse", False)
        with config.configure(fuse=False):
            text = doctor.render(doctor.examine())
        assert re.search(r"TINYC_FUSE +0 +\(environment\)", text)
        assert re.search(r"TINYC_BOUNDS +1 +\(default\)", text)

    def test_a_missing_compiler_is_a_problem_with_its_fix(self, tmp_path):
        done = run("doctor", CC="no-such-compiler", PATH=str(tmp_path), TINYC_DEVICE="numpy")
        assert done.returncode == 1
        assert "no-such-compiler: not found" in done.stdout
        assert re.search(r"fix: .*pip install 'ziglang'", done.stdout)

    def test_whatever_is_not_good_has_a_fix(self):
        for finding in doctor.examine():
            part_of_this = "not part of" not in finding.text
            assert finding.state == "good" or finding.fix or not part_of_this, finding

    def test_a_folder_that_others_may_write_is_a_problem(self, tmp_path, monkeypatch):
        shared = tmp_path / "shared"
        shared.mkdir()
        shared.chmod(0o777)
        with config.configure(cache_dir=str(shared)):
            findings = {f.name: f for f in doctor.cache()}
        assert findings["folder"].state == "bad"
        assert "chmod 700" in findings["folder"].fix


class TestCache:
    def test_shows_and_clears(self, tmp_path, capsys):
        from tinyc.runtime.cache import disk_cache, make_key

        with config.configure(cache_dir=str(tmp_path / "cache")):
            disk_cache().put(make_key("a"), {"text": b"x"})
            assert __main__.main(["cache"]) == 0
            assert "entries  1" in capsys.readouterr().out
            assert __main__.main(["cache", "--clear"]) == 0
            shown = capsys.readouterr().out
        assert "removed 1 entries" in shown and "entries  0" in shown


class TestCompare:
    def test_lists_what_is_built_in(self, capsys):
        assert __main__.main(["compare", "list"]) == 0
        assert "softmax" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("what", "message"),
        [
            ("softmin", "no built-in 'softmin'"),
            ("missing.py:f", "no file 'missing.py'"),
        ],
    )
    def test_says_what_is_wrong(self, what, message, capsys):
        assert __main__.main(["compare", what]) == 1
        assert message in capsys.readouterr().err

    def test_functions_of_a_file(self, tmp_path):
        path = tmp_path / "mine.py"
        path.write_text("def make():\n    return (lambda x: x, 3)\n\nwrong = 4\n")
        function, argument = compare.find_function(f"{path}:make")
        assert function(argument) == 3
        assert "no function 'wrong'" in compare.find_function(f"{path}:wrong")


def test_version_and_help(capsys):
    for option in ("--version", "--help"):
        with pytest.raises(SystemExit) as left:
            __main__.main([option])
        assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "tinyc 0." in shown
    for command in ("demo", "doctor", "compare", "cache"):
        assert command in shown


def test_demo_passes_arguments_on(tmp_path, monkeypatch, capsys):
    example = tmp_path / "examples" / "train_cnn.py"
    example.parent.mkdir()
    example.write_text("import sys\nprint('got', sys.argv[1:])\n")
    monkeypatch.setattr(__main__, "__file__", str(tmp_path / "tinyc" / "__main__.py"))
    assert __main__.main(["demo", "--steps", "3"]) == 0
    assert "got ['--steps', '3']" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        __main__.main(["cache", "--steps", "3"])


def test_demo_outside_a_clone_says_where_the_examples_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "__file__", str(tmp_path / "tinyc" / "__main__.py"))
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["demo"]) == 1
    assert "run it in a clone" in capsys.readouterr().err
