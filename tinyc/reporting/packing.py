"""The data inside a page: readable JSON, with what is long compressed beside it; and back again.

Code, dumps and the graph are nine tenths of a report. They go, gzipped and in base64, into an
element of their own, so that a page with all assembly stays small; browsers can unpack it.
"""

from __future__ import annotations

import base64
import copy
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tinyc.diagnostics import TinycError

# What is packed of the items of each list of a program; None is all of the item.
HEAVY: dict[str, tuple[str, ...] | None] = {
    "kernels": ("loops", "source", "source_lines", "asm"),
    "passes": ("before", "after", "diff", "firings", "remarks"),
    "links": ("why",),
    "helpers": None,
    "nodes": None,
    "edges": None,
}


def split(report: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the report without its long texts, and those texts in lists of the same order."""
    programs, texts = [], []
    for program in report["programs"]:
        light, heavy = dict(program), {}
        for part, names in HEAVY.items():
            items = program.get(part, [])
            if names is None:
                light[part], heavy[part] = [], copy.deepcopy(items)
                continue
            light[part] = [{k: v for k, v in item.items() if k not in names} for item in items]
            heavy[part] = [{k: v for k, v in item.items() if k in names} for item in items]
        programs.append(light)
        texts.append(heavy)
    return {**report, "programs": programs}, texts


class Lines:
    """Lines of text by number. Kernels of equal layers share nearly all of theirs."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def fold(self, texts: Iterable[str]) -> list[int]:
        """Return the numbers of lines, new ones for those not seen before."""
        return [self.numbers.setdefault(text, len(self.numbers)) for text in texts]

    def fold_assembly(self, item: dict[str, Any]) -> None:
        """Put numbers in the place of a kernel's or helper's instructions."""
        if "asm" in item:
            item["asm"] = [self.fold(text for text, _ in item["asm"]), [n for _, n in item["asm"]]]


def to_json(value: Any) -> str:
    """Return JSON that may stand in a script element: no ``<`` can end it."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True).replace("<", "\\u003c")


def compressed(value: Any) -> str:
    """Return a value's JSON, gzipped, in base64; the same for the same value."""
    raw = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
    return base64.b64encode(gzip.compress(raw, 9, mtime=0)).decode()


def read_page(path: str | Path) -> dict[str, Any]:
    """Return the report that a page was made from. TinycError if the file is no such page."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    packed = re.search(r'<script type="text/plain" id="texts">(.*?)</script>', text, re.S)
    if data is None or packed is None:
        raise TinycError(f"report: {path} is not a page that `tinyc report` wrote")
    try:
        report = json.loads(data[1])
        texts = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise TinycError(f"report: the data in {path} is damaged: {error}") from None
    for program, heavy in zip(report["programs"], texts["programs"], strict=True):
        for item in (*heavy["kernels"], *heavy["helpers"]):
            item.pop("coloured", None)
            if "asm" in item:
                numbers, lines = item["asm"]
                item["asm"] = [[texts["lines"][n], k] for n, k in zip(numbers, lines, strict=True)]
        for part, names in HEAVY.items():
            if names is None:
                program[part] = heavy[part]
                continue
            for item, rest in zip(program[part], heavy[part], strict=True):
                item.update(rest)
    return report
