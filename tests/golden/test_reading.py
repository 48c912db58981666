"""docs/reading.md shows what its Python prints; --update-golden writes it anew.

The blocks run in order, as one program. What a ```text machine``` block shows depends on the CPU
and the C compiler: it is made anew with the rest, and compared in its first line only.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reading.md"
BLOCK = re.compile(r"^```python\n(.*?)^```\n\n```(text|text machine)\n(.*?)^```$", re.M | re.S)
# Kernels are scheduled for the same CPU wherever the page is made or compared.
RUN = """
import contextlib, io, json, sys
import tinyc.runtime.host
from tinyc.ir.program import CPU
tinyc.runtime.host.host_target = lambda: CPU
names, printed, line = {}, [], 0
for code in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile("\\n" * line + code, "page.py", "exec"), names)
    printed.append(out.getvalue())
    line += code.count("\\n")
json.dump(printed, sys.stdout)
"""

pytestmark = pytest.mark.cpu("the page shows C")


def printed(folder: Path) -> list[str]:
    """What each block of the page prints, in a process with an empty cache."""
    codes = [match[1] for match in BLOCK.finditer(PAGE.read_text())]
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(codes), cwd=folder, text=True, timeout=120,
        capture_output=True, env={**os.environ, "TINYC_CACHE_DIR": str(folder / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def compared(kind: str, text: str) -> str:
    """The part of a block's output that is the same on every machine."""
    return text if kind == "text" else text.split("\n")[0]


def test_the_page_shows_what_its_code_prints(tmp_path, request):
    page = PAGE.read_text()
    now = printed(tmp_path)
    shown = [(match[2], match[3]) for match in BLOCK.finditer(page)]
    assert len(now) == len(shown) == page.count("```python"), "a block without its output"
    pairs = [(compared(kind, old), compared(kind, new)) for (kind, old), new in zip(shown, now)]
    if all(old == new for old, new in pairs):
        return
    if request.config.getoption("--update-golden"):
        fresh = iter(now)
        PAGE.write_text(BLOCK.sub(
            lambda m: f"```python\n{m[1]}```\n\n```{m[2]}\n{next(fresh)}```", page))  # fmt: skip
        return
    old, new = ("\n".join(texts).splitlines() for texts in zip(*pairs))
    pytest.fail("\n".join(difflib.unified_diff(old, new, str(PAGE), "now", lineterm="")))


def test_no_block_is_empty():
    assert all(match[3].strip() for match in BLOCK.finditer(PAGE.read_text()))
