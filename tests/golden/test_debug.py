"""docs/debug.md shows what DEBUG prints, at each level, for the program that it begins with.

`pytest tests/golden --update-golden` runs it again and writes what it prints into the page.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinyc.runtime.toolchain import find_compiler

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "debug.md"
BLOCK = re.compile(r"^```console\n\$ (DEBUG=\S+) python predict\.py\n(.*?)^```$", re.M | re.S)
COMMANDS = [match[1] for match in BLOCK.finditer(PAGE.read_text())]
# Kernels are scheduled for the same CPU wherever the page is made or compared.
# Its peaks are measured for the page alone: the figures are not compared.
RUN = """
import runpy, sys, tinyc.runtime.host, tinyc.runtime.profile
from tinyc.ir.program import CPU
from tinyc.runtime.machine import Machine
tinyc.runtime.host.host_target = lambda: CPU
if sys.argv[1] != "True":
    tinyc.runtime.profile.machine = lambda: Machine("", 1, "", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, ())
runpy.run_path("predict.py", run_name="__main__")
"""

pytestmark = pytest.mark.cpu("the page shows C")


def output(setting: str, folder: Path, measured: bool = False) -> str:
    """What the program prints, in a process with an empty cache."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    (folder / "predict.py").write_text(code)
    level = setting.partition("=")[2].strip("'")
    done = subprocess.run(
        [sys.executable, "-u", "-c", RUN, str(measured)], cwd=folder, text=True, timeout=120,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "DEBUG": level, "TINYC_CACHE_DIR": str(folder / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout.replace(str(folder), "~/.cache")


def masked(text: str) -> str:
    """Text without what is measured, and without what another C compiler would do otherwise."""
    text = re.sub(r"(?m)^((?:compiled|pass|run|time|  \S).*?) +\| .*$", r"\1 |", text)
    text = re.sub(r"(?m)^compiled by .*$", "compiled by", text)
    text = re.sub(r"(?m)^(machine code .*\n)(?:  .*\n)*", r"\1", text)
    head, mark, rows = text.partition("time by kernel |\n")
    return head + mark + "\n".join(sorted(rows.splitlines())) + "\n"


@pytest.mark.parametrize("setting", COMMANDS)
def test_the_page_shows_what_is_printed(setting, tmp_path, request):
    updates = request.config.getoption("--update-golden")
    now = output(setting, tmp_path, measured=updates)
    page = PAGE.read_text()
    shown = next(match[2] for match in BLOCK.finditer(page) if match[1] == setting)
    if masked(now) == masked(shown):
        return
    if updates:
        block = f"```console\n$ {setting} python predict.py\n"
        PAGE.write_text(page.replace(f"{block}{shown}```", f"{block}{now}```"))
        return
    lines = [masked(text).splitlines() for text in (shown, now)]
    pytest.fail("\n".join(difflib.unified_diff(*lines, str(PAGE), setting, lineterm="")))


def test_each_level_has_a_section_with_output():
    assert sorted({int(re.search(r"\d", setting)[0]) for setting in COMMANDS}) == [*range(1, 8)]
    for match in BLOCK.finditer(PAGE.read_text()):
        assert match[2].strip(), match[1]


def test_two_runs_print_the_same_but_for_figures(tmp_path):
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        text = output("DEBUG=6", tmp_path / name)
        assert not re.search(r"0x[0-9a-f]{6,}|/tmp/", text)
        found.append(masked(text))
    assert found[0] == found[1]


@pytest.mark.skipif(
    shutil.which("objdump") is None or "gcc" not in find_compiler().family,
    reason="objdump and gcc's remarks are what the page shows",
)
def test_machine_code_is_shown_with_its_line_of_c(tmp_path):
    text = output("DEBUG=7:k1@-", tmp_path)
    assert re.search(r"^compiled by .* -O2 .* program\.c.* \| in ", text, re.M)
    assert re.search(r"^  loop vectorized using .*: a2\[i0\] = \(a1\[i0\] / r0\);", text, re.M)
    loop = re.search(r"^  loop of (\d+) instructions in k1_div: a2.*\n((?:    .*\n)+)", text, re.M)
    assert len(loop[2].splitlines()) == int(loop[1])
    assert not re.search(r"\b[0-9a-f]{4,} <", loop[2])


def test_levels_add_to_those_below(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    before: set[str] = set()
    for level in range(1, 7):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        lines = set(masked(output(f"DEBUG={level}", folder)).splitlines())
        assert before < lines, level
        before = lines


def test_a_program_in_the_cache_is_loaded(tmp_path):
    assert output("DEBUG=1", tmp_path).startswith("compiled [predict.py:8] ")
    assert output("DEBUG=1", tmp_path).startswith("loaded [predict.py:8] ")


def test_no_colours_but_on_a_terminal(tmp_path):
    assert "\033" not in output("DEBUG=6", tmp_path)
