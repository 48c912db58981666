"""What changed from one report to another: the text of `tinyc report --diff`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyc.markup import plural, size, time
from tinyc.reporting.text import table

FIGURES = (("time", "median_us", time), ("moved", "bytes", size), ("arena", "arena_bytes", size))


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return a text: programs beside one another in order, then their kernels by what they hold."""
    lines = []
    pairs = list(zip(before["programs"], after["programs"], strict=False))
    for old, new in pairs:
        lines += [f"{old['title']} → {new['title']}", *_program(old, new), ""]
    for report, word in ((before, "only before"), (after, "only after")):
        lines += [f"{word}: {p['title']}, {plural(len(p['kernels']), 'kernel')}"
                  for p in report["programs"][len(pairs):]]  # fmt: skip
    return "\n".join(lines).rstrip()


def _program(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    rows = [["kernels", str(len(old["kernels"])), str(len(new["kernels"])), ""]]
    for name, key, shown in FIGURES:
        rows.append([name, shown(old[key]), shown(new[key]), _ratio(old[key], new[key])])
    peaks = [program["peak"]["bytes"] for program in (old, new)]
    rows.append(["peak", *map(size, peaks), _ratio(*peaks)])
    lines = ["", table(["", "before", "after", ""], rows)]
    kernels = _kernels(old["kernels"], new["kernels"])
    if kernels:
        lines += ["", table(["kernel", "before", "after", "", "members"], kernels)]
    return lines


def _ratio(before: float, after: float) -> str:
    return f"{after / before:.2f}x" if before else ""


def _kernels(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return rows of the kernels that are new, gone, or a tenth slower or faster."""
    rows = []
    left = list(old)
    for kernel in new:
        same = next((k for k in left if _work(k) == _work(kernel)), None)
        if same is None:
            rows.append([kernel["name"], "", time(kernel["median_us"]), "new", _names(kernel)])
            continue
        left.remove(same)
        ratio = kernel["median_us"] / same["median_us"] if same["median_us"] else 1.0
        if not 0.9 <= ratio <= 1.1:
            rows.append([kernel["name"], time(same["median_us"]), time(kernel["median_us"]),
                         f"{ratio:.2f}x", _names(kernel)])  # fmt: skip
    rows += [[k["name"], time(k["median_us"]), "", "gone", _names(k)] for k in left]
    return rows


def _work(kernel: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a kernel computes, without the numbers that names carry."""
    return [(m["name"].rstrip("0123456789"), m["text"]) for m in kernel["members"]]


def _names(kernel: Mapping[str, Any]) -> str:
    return ", ".join(member["name"] for member in kernel["members"])
