"""Turns the results into tables of text."""

from __future__ import annotations

import math
import os
import statistics
import sys
from dataclasses import dataclass, field
from typing import Any

import results
from weights import WORK
from workloads import WORKLOADS, Workload

QUIET = 0.15

Columns = dict[str, dict[str, Any]]

INTRODUCTION = """# Results

A cell is the median over the quiet rounds: the workload's threads waited for a core under 10 % of
the time and, for element-wise and reduction workloads, other processes used under 15 % of the
machine. `~` marks a cell without a quiet round, which is not to be trusted. `agree` says how many
columns were compared with the first, and the largest relative difference of their check values
(10 losses, generated tokens, or 64 sampled outputs over the mean magnitude).
"""


@dataclass
class Agreement:
    """How far columns are from the first one that has a value to compare."""

    worst: float = 0.0
    compared: int = 0
    disagreements: list[str] = field(default_factory=list)


def agreement(columns: Columns) -> Agreement:
    """Compare the check values of all columns with the first one's."""
    found = Agreement()
    reference = None
    for name, cell in columns.items():
        kind = next((k for k in ("losses", "tokens", "fp") if k in cell), None)
        if cell.get("error") or kind is None:
            continue
        if reference is None:
            reference = cell[kind]
            continue
        difference, tolerance = _difference(kind, cell[kind], reference)
        found.worst = _largest([found.worst, difference])
        found.compared += 1
        if not difference <= tolerance:  # so that NaN disagrees
            found.disagreements.append(f"{name} differs by {difference:.1e}")
    return found


def _difference(kind: str, values: list, reference: list) -> tuple[float, float]:
    if kind == "losses":
        pairs = zip(values, reference, strict=True)
        return _largest([abs(a - b) / max(abs(b), 1e-6) for a, b in pairs]), 1e-3
    if kind == "tokens":
        return sum(a != b for a, b in zip(values, reference, strict=True)) / len(reference), 0
    pairs = zip(values, reference, strict=True)
    return _largest([_print_difference(a, b) for a, b in pairs]), 2e-3


def _largest(values: list[float]) -> float:
    """Return the largest value, NaN where there is one: `max` would depend on their order."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def _print_difference(a: dict, b: dict) -> float:
    if a["shape"] and b["shape"] and a["shape"] != b["shape"]:
        return float("inf")
    largest = _largest([abs(x - y) for x, y in zip(a["s"], b["s"], strict=True)])
    return largest / max(b["absmean"], 1e-12)


@dataclass
class Cell:
    """Statistics of one framework on one workload, in seconds."""

    median: float
    minimum: float
    maximum: float
    samples: int
    quiet_rounds: int
    rounds: int
    peak_mib: float

    @property
    def noisy(self) -> bool:
        """True where no round was quiet."""
        return self.quiet_rounds == 0


def aggregate(cell: dict[str, Any], kind: str) -> Cell:
    """Return the statistics over the quiet rounds, or over all where none was."""
    threads = cell.get("threads") or 2
    alone = kind in ("ew", "red")
    quiet = [
        r
        for r in cell["rounds"]
        if r["waited"] / threads < 0.1 and (r["others"] < QUIET or not alone)
    ]
    samples = sorted(s for r in quiet or cell["rounds"] for s in r["samples"])
    return Cell(
        median=statistics.median(samples),
        minimum=samples[0],
        maximum=samples[-1],
        samples=len(samples),
        quiet_rounds=len(quiet),
        rounds=len(cell["rounds"]),
        peak_mib=max(r["rss_mib"] for r in cell["rounds"]),
    )


def milliseconds(seconds: float) -> str:
    """Return a short text of a time in ms."""
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.4g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table whose columns are aligned in plain text too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = (cell.ljust(w) for cell, w in zip(cells, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(header), rule, *map(line, rows)]) + "\n"


def render(measured: dict[str, Any]) -> str:
    """Return the whole report as Markdown."""
    parts = [INTRODUCTION]
    if "ceilings" in measured:
        parts.append(_ceilings(measured["ceilings"]))
    peak = fma_peak(measured)
    bench = measured.get("bench", {})
    for group in dict.fromkeys(w["group"] for w in WORKLOADS.values()):
        names = [n for n, w in WORKLOADS.items() if w["group"] == group and n in bench]
        if names:
            parts.append(_group(group, {n: bench[n] for n in names}, peak))
    if bench:
        parts.append(_spread(bench))
    if "latency" in measured:
        parts.append(_latency(measured["latency"]))
    return "\n".join(parts)


def fma_peak(measured: dict[str, Any]) -> dict[int, float]:
    """Return the best FMA throughput seen, in GFLOP/s, for one and for two threads."""
    found = measured.get("ceilings", {})
    return {
        threads: max(row["gflops_max"] for row in found[f"fma_peak_{threads}"])
        for threads in (1, 2)
        if f"fma_peak_{threads}" in found
    }


def _ceilings(found: dict[str, Any]) -> str:
    rows = []
    for threads in (1, 2):
        peaks = found[f"fma_peak_{threads}"]
        median = max(row["gflops_median"] for row in peaks)
        best = max(row["gflops_max"] for row in peaks)
        rows.append(["FMA peak GFLOP/s", str(threads), f"{median:.1f}", f"{best:.1f}"])
    for threads in (1, 2):
        streams = found[f"stream_{threads}"]
        quiet = [row for row in streams if row["others"] < QUIET] or streams
        for name in (k for k, v in quiet[0].items() if isinstance(v, dict)):
            median = max(row[name]["median"] for row in quiet)
            best = max(row[name]["max"] for row in quiet)
            rows.append([f"{name} GB/s", str(threads), f"{median:.1f}", f"{best:.1f}"])
    title = f"## What the machine can do (measured {found['when']})\n\n"
    return title + table(["what", "threads", "median of the best round", "best"], rows)


def _group(group: str, bench: dict[str, Columns], peak: dict[int, float]) -> str:
    frameworks = list(dict.fromkeys(k for columns in bench.values() for k in columns))
    title = f"## {group}: ms of one call, median / min (median over the fastest median)\n\n"
    rows = [_row(name, columns, frameworks, peak) for name, columns in bench.items()]
    text = title + table(["workload", *frameworks, "fastest", "agree"], rows)
    if group == "train":
        memory = [
            [name, *(_peak_memory(columns.get(f), name) for f in frameworks)]
            for name, columns in bench.items()
        ]
        text += "\nPeak resident memory, MiB\n\n" + table(["workload", *frameworks], memory)
    return text


def _peak_memory(cell: dict[str, Any] | None, name: str) -> str:
    if not cell or not cell.get("rounds"):
        return ""
    return f"{aggregate(cell, WORKLOADS[name]['kind']).peak_mib:.0f}"


def _row(
    name: str, columns: Columns, frameworks: list[str], peak: dict[int, float]
) -> list[str]:
    w = WORKLOADS[name]
    cells = {f: aggregate(c, w["kind"]) for f, c in columns.items() if c.get("rounds")}
    failed = ["failed" if f in columns else "" for f in frameworks]
    if not cells:
        return [name, *failed, "", ""]
    best = min(cell.median for cell in cells.values())
    texts = [
        _cell_text(cells[f], best) if f in cells else failed[i] for i, f in enumerate(frameworks)
    ]
    agreed = agreement(columns)
    verdict = "; ".join(agreed.disagreements) or (
        f"yes, {agreed.compared + 1} ({agreed.worst:.0e})" if agreed.compared else "not compared"
    )
    return [name, *texts, _rate(w, best, peak), verdict]


def _cell_text(cell: Cell, best: float) -> str:
    ratio = cell.median / best
    text = f"{milliseconds(cell.median)} / {milliseconds(cell.minimum)}"
    if ratio == 1:
        text = f"**{text}**"
    else:
        text += f" ({ratio:.2f}x)" if ratio < 10 else f" ({ratio:.0f}x)"
    return text + ("~" if cell.noisy else "")


def _rate(w: Workload, seconds: float, peak: dict[int, float]) -> str:
    if "flops" in w:
        rate = w["flops"] / seconds / 1e9
        limit = peak.get(w.get("threads", 2))
        return f"{rate:.0f} GFLOP/s" + (f" ({rate / limit:.0%} of peak)" if limit else "")
    if "bytes" in w:
        return f"{w['bytes'] / seconds / 1e9:.1f} GB/s"
    if "tokens" in w or w["kind"] == "decode":
        return f"{w.get('tokens', w.get('n_new')) / seconds:.0f} tokens/s"
    return f"{seconds / w['n'] * 1e6:.2f} us/op" if w["kind"] == "tiny" else ""


def _spread(bench: dict[str, Columns]) -> str:
    rows = []
    for name, w in WORKLOADS.items():
        for framework, cell in bench.get(name, {}).items():
            if not cell.get("rounds"):
                rows.append([name, framework, "failed: " + cell.get("error", "")[:80], *[""] * 4])
                continue
            c = aggregate(cell, w["kind"])
            times = [milliseconds(t) for t in (c.minimum, c.median, c.maximum)]
            rounds = f"{c.quiet_rounds}/{c.rounds}"
            rows.append([name, framework, *times, str(c.samples), rounds])
    header = ["workload", "framework", "min", "median", "max", "samples", "quiet rounds"]
    return "## Spread, ms\n\n" + table(header, rows)


def _latency(found: dict[str, Any]) -> str:
    parts = []
    if found.get("import"):
        rows = [_import_row(f, samples) for f, samples in found["import"].items() if samples]
        header = ["framework", "median s", "min s", "bare python s"]
        parts.append("## Import, less a bare python\n\n" + table(header, rows))
    if found.get("first_step"):
        rows = [_first_step_row(key, v) for key, v in found["first_step"].items()]
        header = ["workload, framework", "cold", "warm", "of it import", "build and step"]
        title = "## Process start to the end of the first training step, s\n\n"
        parts.append(title + table(header, rows))
    if found.get("size_mib"):
        rows = []
        for framework, size in found["size_mib"].items():
            largest = ", ".join(f"{k} {v:.0f}" for k, v in size["top"].items())
            rows.append([framework, f"{size['total']:.0f}", largest])
        parts.append("## Installed size, MiB\n\n" + table(["framework", "total", "largest"], rows))
    return "\n".join(parts)


def _import_row(framework: str, samples: list[dict[str, float]]) -> list[str]:
    extra = [s["imp"] - s["bare"] for s in samples]
    bare = statistics.median(s["bare"] for s in samples)
    return [framework, f"{statistics.median(extra):.3f}", f"{min(extra):.3f}", f"{bare:.3f}"]


def _first_step_row(key: str, samples: list[dict[str, Any]]) -> list[str]:
    def middle(kind: str, *names: str) -> str:
        sums = [sum(s[n] for n in names) for s in samples if s["kind"] == kind and "wall" in s]
        return f"{statistics.median(sums):.2f}" if sums else "failed"

    return [
        key.replace("|", " "),
        middle("cold", "wall"),
        middle("warm", "wall"),
        middle("warm", "import_s"),
        middle("warm", "build_s", "first_step_s"),
    ]


if __name__ == "__main__":
    default = os.path.join(WORK, "results.json")
    print(render(results.load(sys.argv[1] if len(sys.argv) > 1 else default)))
