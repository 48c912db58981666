"""Measures tinyc and its peers in some runs and prints how tinyc stands to the best of them.

    python benchmarks/standing.py [--rounds 3] [options of run.py, such as --rt --nice -20]
    python benchmarks/standing.py --show FILE.json ...     # the table again, from stored results

A run is a round in which the frameworks take turns: over the machine's peaks, all workloads, and
the start of a process. A ratio is the time of the fastest peer over tinyc's, both medians of one
run; the table has the median of the runs' ratios. It is met from 0.95 of what is wanted on, since
a run differs from the next by about that much.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import report
import results
from weights import WORK
from workloads import WORKLOADS

HERE = os.path.dirname(os.path.abspath(__file__))
OURS = "tinyc:jit"
ENOUGH = 0.95
TRAINING = ("mlp", "lenet64", "lenet512", "resnet20", "gpt_small", "gpt_big")
MICROSECONDS_AN_OP = 15  # what one eager operation may cost
SMALLER = 2  # how many times less resident memory than the best of PyTorch and JAX
LOSSES = 1e-4  # how far ten losses may be from the peers', relative
START = {"cold": 2, "warm": 3}

# Workloads and who runs them. tinygrad is left out where it is more than ten times slower than
# another peer and would only prolong the run, compiled PyTorch where it is eager PyTorch.
PLAN = (
    ("ew,red", "tinyc:jit,torch,jax:jit,tinygrad:jit,numpy"),
    ("mm,mm_t1", "tinyc:jit,torch:eager,jax:jit,numpy:numpy"),
    ("conv", "tinyc:jit,torch,jax,tinygrad:jit"),
    ("attn,decode", "tinyc:jit,torch,jax:jit"),
    ("mlp,lenet64,lenet512", "tinyc:jit,torch,jax,tinygrad:jit"),
    ("resnet20,gpt_small,gpt_big", "tinyc:jit,torch,jax"),
    ("tiny", "tinyc:jit,torch,jax:jit,tinygrad:jit,numpy"),
)
STARTED = "lenet64,gpt_small"
STARTING = "tinyc:jit,torch:eager,jax:jit,tinygrad:jit"

# How many times faster than the best peer.
WANTED = {
    **dict(zip(TRAINING, (1.5, 2, 1.5, 1.4, 1.7, 1.4), strict=True)),
    "gpt_decode": 2,
    "attn_fwd": 1.7,
    "attn_fb": 1.7,
    "conv3x3_n64_16_32_28_fwd": 1,
    "conv3x3_n64_16_32_28_fb": 1.2,
    "conv3x3_n16_64_64_56_fwd": 1,
    "conv3x3_n16_64_64_56_fb": 1.2,
    "conv1x1_n32_64_128_28_fwd": 1.2,
    "conv1x1_n32_64_128_28_fb": 1.3,
    "dwconv3x3_n32_64_28_fwd": 1.1,
    "dwconv3x3_n32_64_28_fb": 1.3,
    **{name: 1.05 for name in WORKLOADS if name.startswith("mm_")},
    **{name: 1.2 for name in WORKLOADS if name.startswith("bmm_")},
    "ew_chain16m": 3,
    "ew_fma64m": 1.2,
    "layernorm_8192x1024": 1.2,
    "softmax_4096": 2,
    "transpose_4096": 2,
    "sum_64m": 1,
    "tiny_unroll": 2,
    "tiny_jitcall": 2.5,
}

# The measured bandwidth of the same access pattern, and the share of it that is wanted.
BANDWIDTH = {
    "ew_chain16m": ("fma4_nt", 0.0),
    "ew_fma64m": ("fma4_nt", 0.85),
    "layernorm_8192x1024": ("copy_nt", 0.85),
    "softmax_4096": ("copy_nt", 0.0),
    "transpose_4096": ("copy_nt", 0.0),
    "sum_64m": ("read_sum", 0.0),
}


@dataclass
class Standing:
    """One row: a figure of ours beside the best peer's in each run, and what was wanted."""

    name: str
    unit: str
    ours: list[float]
    peers: list[float]
    peer: str
    wanted: float
    enough: float = ENOUGH
    share: float = math.nan  # of the ceiling that is named beside it
    ceiling: str = ""
    share_wanted: float = 0.0

    @property
    def ratio(self) -> float:
        """How many times better than the best peer: the median of the runs."""
        return statistics.median(p / o for p, o in zip(self.peers, self.ours, strict=True))

    @property
    def met(self) -> bool:
        """True where the ratio and the share of the ceiling are what was wanted."""
        share_met = not self.share_wanted or self.share >= self.share_wanted
        return self.ratio >= self.enough * self.wanted and share_met


def standings(runs: list[dict[str, Any]]) -> list[Standing]:
    """Return a row for each figure that all the runs have with at least one peer."""
    rows = [_speed(name, wanted, runs) for name, wanted in WANTED.items()]
    rows += [
        _start(workload, kind, runs) for workload in STARTED.split(",") for kind in ("cold", "warm")
    ]
    rows += [_memory(name, runs) for name in TRAINING]
    return [row for row in rows if row is not None]


def headline(rows: list[Standing]) -> float:
    """Return the geometric mean of the ratios of the training workloads, NaN if one is missing."""
    ratios = [row.ratio for row in rows if row.name in TRAINING and row.unit == "ms"]
    return statistics.geometric_mean(ratios) if len(ratios) == len(TRAINING) else math.nan


def _speed(name: str, wanted: float, runs: list[dict[str, Any]]) -> Standing | None:
    kind = WORKLOADS[name]["kind"]
    columns = [
        {
            framework: report.aggregate(cell, kind).median * 1e3
            for framework, cell in run.get("bench", {}).get(name, {}).items()
            if cell.get("rounds")
        }
        for run in runs
    ]
    row = _row(name, "ms", wanted, columns)
    if row is not None:
        row.share, row.ceiling, row.share_wanted = _share(name, row.ours, runs)
    return row


def _row(name: str, unit: str, wanted: float, columns: list[dict[str, float]]) -> Standing | None:
    """Return the row of figures by framework, one dictionary a run; None where one is missing."""
    best = []
    for figures in columns:
        peers = {f: v for f, v in figures.items() if f != OURS}
        if OURS not in figures or not peers:
            return None
        best.append(min(peers, key=lambda f: peers[f]))
    ours = [figures[OURS] for figures in columns]
    peers_figures = [figures[f] for figures, f in zip(columns, best, strict=True)]
    return Standing(name, unit, ours, peers_figures, ", ".join(dict.fromkeys(best)), wanted)


def _share(name: str, ours: list[float], runs: list[dict[str, Any]]) -> tuple[float, str, float]:
    """Return the share of the ceiling of the same run, the ceiling, and the share wanted."""
    w = WORKLOADS[name]
    threads = w.get("threads", 2)
    if "flops" in w and all("ceilings" in run for run in runs):
        peaks = [report.fma_peak(run)[threads] for run in runs]
        shares = [w["flops"] / o / 1e6 / p for o, p in zip(ours, peaks, strict=True)]
        return statistics.median(shares), "FMA peak", 0.0
    if name in BANDWIDTH and all("ceilings" in run for run in runs):
        pattern, wanted = BANDWIDTH[name]
        peaks = [_bandwidth(run, pattern, threads) for run in runs]
        shares = [w["bytes"] / o / 1e6 / p for o, p in zip(ours, peaks, strict=True)]
        return statistics.median(shares), pattern, wanted
    return math.nan, "", 0.0


def _bandwidth(run: dict[str, Any], pattern: str, threads: int) -> float:
    rows = run["ceilings"][f"stream_{threads}"]
    return statistics.median(row[pattern]["median"] for row in rows)


def _start(workload: str, kind: str, runs: list[dict[str, Any]]) -> Standing | None:
    columns = []
    for run in runs:
        cells = run.get("latency", {}).get("first_step", {})
        figures = {}
        for key, samples in cells.items():
            walls = [s["wall"] for s in samples if s["kind"] == kind and "wall" in s]
            started, framework = key.split("|")
            if started == workload and walls:
                figures[framework] = statistics.median(walls)
        columns.append(figures)
    return _row(f"{workload}, start to first step, {kind}", "s", START[kind], columns)


def _memory(name: str, runs: list[dict[str, Any]]) -> Standing | None:
    columns = []
    for run in runs:
        cells = run.get("bench", {}).get(name, {})
        columns.append(
            {
                framework: max(r["rss_mib"] for r in cell["rounds"])
                for framework, cell in cells.items()
                if cell.get("rounds") and framework.split(":")[0] in ("tinyc", "torch", "jax")
            }
        )
    row = _row(f"{name}, peak resident memory", "MiB", SMALLER, columns)
    if row is not None:
        row.enough = 1.0
    return row


def render(runs: list[dict[str, Any]]) -> str:
    """Return the table as Markdown, with the machine's peaks and the headline."""
    rows = standings(runs)
    lines = [_text(row) for row in rows]
    header = ["what", "unit", "tinyc", "best peer", "which", "ratio", "wanted", "", "of a ceiling"]
    parts = [f"## tinyc beside the best peer, median of {len(runs)} runs\n"]
    parts += [_peaks(runs), report.table(header, lines), _eager(runs), _accuracy(runs)]
    mean = headline(rows)
    if not math.isnan(mean):
        parts.append(f"Geometric mean over the six training workloads: {mean:.2f}x\n")
    short = [row.name for row in rows if not row.met]
    parts.append(f"{len(rows) - len(short)} of {len(rows)} rows met" + _list(short))
    return "\n".join(part for part in parts if part)


def _list(short: list[str]) -> str:
    return "; short: " + "; ".join(short) if short else ""


def _text(row: Standing) -> list[str]:
    share = ""
    if row.ceiling:
        share = f"{row.share:.0%} of {row.ceiling}"
        share += f" ({row.share_wanted:.0%} wanted)" if row.share_wanted else ""
    figures = (statistics.median(row.ours), statistics.median(row.peers))
    verdict = "met" if row.met else "SHORT"
    ratio = [f"{row.ratio:.2f}x", f"{row.wanted:g}x", verdict, share]
    return [row.name, row.unit, *(f"{figure:.4g}" for figure in figures), row.peer, *ratio]


def _peaks(runs: list[dict[str, Any]]) -> str:
    if not all("ceilings" in run for run in runs):
        return ""
    peaks = [
        f"FMA {statistics.median(report.fma_peak(run)[threads] for run in runs):.0f} GFLOP/s"
        f" with {threads} thread{'s' * (threads > 1)}"
        for threads in (1, 2)
    ]
    peaks += [
        f"{pattern} {statistics.median(_bandwidth(run, pattern, 2) for run in runs):.1f} GB/s"
        for pattern in ("copy_nt", "fma4_nt", "read_sum")
    ]
    return "The machine in the same runs: " + ", ".join(peaks) + ".\n"


def _eager(runs: list[dict[str, Any]]) -> str:
    cells = [run.get("bench", {}).get("tiny_eager", {}).get(OURS) for run in runs]
    if not all(cell and cell.get("rounds") for cell in cells):
        return ""
    n = WORKLOADS["tiny_eager"]["n"]
    times = [report.aggregate(cell, "tiny").median / n * 1e6 for cell in cells if cell]
    middle = statistics.median(times)
    verdict = "met" if middle <= MICROSECONDS_AN_OP else "SHORT"
    return f"An eager operation: {middle:.1f} us, at most {MICROSECONDS_AN_OP} wanted: {verdict}.\n"


def _accuracy(runs: list[dict[str, Any]]) -> str:
    """Say how far the losses of training are from the peers' (the first column is ours)."""
    differences = [
        report.agreement(run["bench"][name]).worst
        for run in runs
        for name in TRAINING
        if name in run.get("bench", {})
    ]
    if not differences:
        return ""
    worst = max(differences)
    verdict = "met" if worst <= LOSSES else "SHORT"
    return f"Ten losses of training: within {worst:.0e} of the peers', 1e-4 wanted: {verdict}.\n"


def runs_of(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rounds of a results file, each as results of its own."""
    cells = [cell for columns in measured.get("bench", {}).values() for cell in columns.values()]
    starts = measured.get("latency", {}).get("first_step", {})
    counts = [len(cell.get("rounds", ())) for cell in cells]
    counts += [len(samples) // len(START) for samples in starts.values()]
    return [_round(measured, i) for i in range(max(counts, default=0))]


def _round(measured: dict[str, Any], i: int) -> dict[str, Any]:
    bench = {
        name: {f: {**cell, "rounds": cell.get("rounds", [])[i : i + 1]} for f, cell in row.items()}
        for name, row in measured.get("bench", {}).items()
    }
    starts = {
        key: samples[len(START) * i : len(START) * (i + 1)]
        for key, samples in measured.get("latency", {}).get("first_step", {}).items()
    }
    found = {"bench": bench, "latency": {"first_step": starts}}
    if "ceilings" in measured:
        rows = {k: v for k, v in measured["ceilings"].items() if isinstance(v, list)}
        found["ceilings"] = {k: [v[min(i, len(v) - 1)]] for k, v in rows.items()}
    return found


def measure(options: list[str]) -> str:
    """Measure three runs into a file and return its path."""
    path = os.path.join(WORK, "standing.json")
    if os.path.exists(path):
        os.remove(path)
    base = [sys.executable, os.path.join(HERE, "run.py"), "--results", path, "--rounds", "3"]
    subprocess.check_call([*base, "--ceilings", *options])
    for workloads, frameworks in PLAN:
        subprocess.check_call([*base, "-w", workloads, "-f", frameworks, *options])
    starts = ["--latency", "--first-workloads", STARTED, "-f", STARTING]
    subprocess.check_call([*base, *starts, *options])
    return path


def main() -> None:
    """Measure, or read what was measured, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--show", nargs="+", metavar="FILE.json", help="print stored results")
    options, others = parser.parse_known_args()
    paths = options.show or [measure(others)]
    print(render([run for path in paths for run in runs_of(results.load(path))]))


if __name__ == "__main__":
    main()
