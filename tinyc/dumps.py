"""TINYC_DUMP: what each compilation went through, in files with stable names that can be diffed."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from tinyc.diagnostics import Origin
from tinyc.ir.program import Program
from tinyc.ir.steps import Step

_numbers = itertools.count()


def write(folder: str, origin: Origin, steps: Sequence[Step], program: Program) -> Path:
    """Write one compilation below a folder and return its own folder.

    ``steps`` are the passes with the IR as text after each. The files are numbered in the order of
    the passes; then come the source and the remarks. OSError where the folder can't be written.
    """
    line = re.sub(r"[^\w-]", "", f"{Path(origin[0]).stem}-{origin[1]}")
    home = Path(folder).expanduser() / f"{next(_numbers):03d}-{line}"
    home.mkdir(parents=True, exist_ok=True)
    for i, step in enumerate(steps):
        (home / f"{i:02d}-{step.name}.txt").write_text(step.text)
    (home / "program.c").write_text(program.source)
    (home / "remarks.json").write_text(json.dumps(program.remarks, indent=1) + "\n")
    return home
