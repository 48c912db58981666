"""`tinyc.profile`: times of kernels, a trace, and memory by category, of what a block runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyc.diagnostics import format_origin
from tinyc.ir.program import KernelInfo, Program
from tinyc.reporting.prediction import Prediction, Reuse, predict, reuses
from tinyc.reporting.text import origins_text, quantity, table
from tinyc.reporting.trace import trace
from tinyc.runtime.buffer import ALLOCATOR
from tinyc.runtime.cpu import cpu_count
from tinyc.runtime.machine import Machine, machine
from tinyc.runtime.recorder import Recorder, Run, recording, span
from tinyc.version import __version__

# Rows of the printed table; `table` gives all.
SHOWN = 30
CATEGORIES = (
    *("parameter", "kept", "gradient", "optimizer", "input", "activation", "partial", "scratch"),
)


@dataclass(frozen=True)
class KernelTotal:
    """All runs of one kernel; times are microseconds.

    Quartiles are those of runs whose memory was there already, if there were any. ``reuse`` says
    how long ago the program used the kernel's data.
    """

    kernel: KernelInfo
    program: str
    calls: int
    total: float
    q1: float
    median: float
    q3: float
    reuse: Reuse

    def predicted(self, peaks: Machine) -> Prediction:
        """Return what a run should take on a machine."""
        return predict(self.kernel, self.reuse, peaks)

    def share(self, peaks: Machine) -> float:
        """Return the part of the roof that the median run reaches, up to 1."""
        roof = peaks.roof(self.kernel.flops, self.kernel.bytes_moved)
        return min(1.0, roof / max(self.median, 1e-3))


@dataclass(frozen=True)
class Memory:
    """Bytes by category: of tensors ``live`` at the end, and at the ``peak`` of all runs.

    The peak is the tensors that are alive during a run and its intermediate values, as planned.
    ``planned`` and ``measured`` are of the program that needs most: its arguments, its arena and
    the scratch memory of its threads, as planned, and what of it was really in memory once it had
    run (None where the system does not tell).
    """

    live: Mapping[str, int]
    peak: Mapping[str, int]
    planned: int
    measured: int | None

    def __str__(self) -> str:
        lines = [f"{'memory':<16} {'live':>10} {'peak':>10}"]
        for name in CATEGORIES:
            if self.live.get(name) or self.peak.get(name):
                live, peak = (quantity(part.get(name, 0)) + "B" for part in (self.live, self.peak))
                lines.append(f"{name:<16} {live:>10} {peak:>10}")
        live, peak = (quantity(sum(part.values())) + "B" for part in (self.live, self.peak))
        lines.append(f"{'all':<16} {live:>10} {peak:>10}")
        measured = "not measured" if self.measured is None else f"{quantity(self.measured)}B"
        lines.append(f"largest program: planned {quantity(self.planned)}B, measured {measured}")
        return "\n".join(lines)


class Profile(AbstractContextManager["Profile"]):
    """What ran in a block: see `profile`."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self._open = ExitStack()
        self._live: dict[str, int] = {}

    def __enter__(self) -> Profile:
        self._open.enter_context(recording(self.recorder))
        self._open.enter_context(span("profile", "profile"))
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()
        self._live = by_category(ALLOCATOR.categories)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Show a stretch of Python by this name in the trace."""
        with span(name, "user"):
            yield

    @property
    def runs(self) -> list[Run]:
        """Every run of a program, in order."""
        return self.recorder.runs

    @property
    def kernels(self) -> list[KernelTotal]:
        """The kernels that ran, those that took longest first."""
        titles = self._titles()
        runs: dict[int, list[Run]] = {}
        for run in self.runs:
            runs.setdefault(id(run.program), []).append(run)
        found = []
        for key, program in ((key, self.recorder.programs[key]) for key in runs):
            settled = [run for run in runs[key] if run.settled] or runs[key]
            times = np.array([np.diff(run.times) for run in runs[key]]) / 1e3
            typical = np.array([np.diff(run.times) for run in settled]) / 1e3
            quartiles = np.percentile(typical, (25, 50, 75), axis=0)
            for index, (kernel, reuse) in enumerate(zip(program.kernels, reuses(program))):
                total = float(times[:, index].sum())
                q1, median, q3 = quartiles[:, index].tolist()
                found.append(
                    KernelTotal(kernel, titles[key], len(times), total, q1, median, q3, reuse)
                )
        return sorted(found, key=lambda total: -total.total)

    def memory(self) -> Memory:
        """Return live and peak memory by category, planned and measured."""
        peak: dict[str, int] = {}
        for run in self.runs:
            needed = run_memory(run)
            if sum(needed.values()) > sum(peak.values()):
                peak = needed
        largest = max(
            self.recorder.programs.values(), key=lambda p: p.footprint(threads(p)), default=None
        )
        if largest is None:
            return Memory(self._live, peak, 0, None)
        measured = self.recorder.resident.get(id(largest))
        return Memory(self._live, peak, largest.footprint(threads(largest)), measured)

    def table(self, limit: int | None = None) -> str:
        """Return the kernels as a table, those that took longest first, ``limit`` of them."""
        peaks = machine()
        totals = self.kernels
        whole = sum(total.total for total in totals) or 1.0
        header = ["kernel", "calls", "total ms", "share", "median us", "q1-q3", "predicted"]
        header += ["ratio", "FLOP", "bytes", "GFLOP/s", "GB/s", "of peak", "lines"]
        rows = [kernel_row(total, whole, peaks) for total in totals[:limit]]
        rest = totals[limit:] if limit is not None else []
        text = table(header, rows)
        if rest:
            time = sum(total.total for total in rest)
            text += f"\nand {len(rest)} more: {time / 1e3:.2f} ms, {time / whole:.0%}"
        return text

    def __str__(self) -> str:
        if not self.runs:
            return "no compiled program ran"
        time = sum(total.total for total in self.kernels) / 1e3
        runs = f"{len(self.runs)} runs of {len(self.recorder.programs)} programs"
        head = f"{runs}, {time:.2f} ms in kernels"
        return "\n".join([head, "", self.table(SHOWN), "", str(self.memory())])

    def to_dict(self) -> dict[str, Any]:
        """Return kernels, memory and machine as plain values, such as JSON holds."""
        peaks = machine()
        memory = self.memory()
        return {
            "version": __version__,
            "machine": {**vars(peaks), "levels": [list(level) for level in peaks.levels]},
            "kernels": [total_dict(total, peaks) for total in self.kernels],
            "memory": {
                "live": dict(memory.live),
                "peak": dict(memory.peak),
                "planned": memory.planned,
                "measured": memory.measured,
            },
        }

    def trace(self) -> dict[str, Any]:
        """Return the runs and spans as a Chrome trace."""
        return trace(self.recorder, self._titles(), version=__version__)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace as JSON, for Perfetto or chrome://tracing; OSError where that fails."""
        target = Path(path)
        written = target.with_name(target.name + ".part")
        try:
            written.write_text(json.dumps(self.trace()))
            os.replace(written, target)
        finally:
            written.unlink(missing_ok=True)

    def _titles(self) -> dict[int, str]:
        return {key: title(program) for key, program in self.recorder.programs.items()}


def title(program: Program) -> str:
    """Return what a program is called: the line of its first output."""
    outputs = [storage for storage in program.storages if storage.name.startswith("out")]
    origins = [
        *(storage.origin for storage in outputs),
        *(o for k in program.kernels for o in k.origins),
    ]
    return format_origin(origins[0]) if origins else "program"


def threads(program: Program) -> int:
    """Return how many threads take part in a program at most."""
    from tinyc import config

    most = max((kernel.chunks for kernel in program.kernels), default=1)
    return min(config.current().threads or cpu_count(), most)


def by_category(live: Mapping[str, int]) -> dict[str, int]:
    """Return bytes of tensors by category; what nobody named is what programs computed."""
    found = {name: count for name, count in live.items() if name and count}
    if live.get(""):
        found["activation"] = found.get("activation", 0) + live[""]
    return found


def run_memory(run: Run) -> dict[str, int]:
    """Return the bytes that a run needs by category: tensors, arena at its fullest, scratch."""
    found = by_category(run.live)
    program = run.program
    live = program.live_bytes()
    fullest = max(range(len(live)), key=live.__getitem__, default=-1)
    for storage in program.storages:
        if storage.in_arena and storage.first <= fullest <= storage.last:
            found[storage.category] = found.get(storage.category, 0) + storage.nbytes
    scratch = program.scratch_size * threads(program)
    return {**found, "scratch": scratch} if scratch else found


def kernel_row(total: KernelTotal, whole: float, peaks: Machine) -> list[str]:
    """Return the cells of a kernel's row."""
    kernel, time = total.kernel, max(total.median, 1e-3) * 1e3
    predicted = total.predicted(peaks).total
    return [
        kernel.name,
        str(total.calls),
        f"{total.total / 1e3:.2f}",
        f"{total.total / whole:.0%}",
        f"{total.median:.1f}",
        f"{total.q1:.1f}-{total.q3:.1f}",
        f"{predicted:.1f}",
        f"{total.median / predicted:.2f}",
        quantity(kernel.flops),
        quantity(kernel.bytes_moved) + "B",
        f"{kernel.flops / time:.1f}",
        f"{kernel.bytes_moved / time:.1f}",
        f"{total.share(peaks):.0%}",
        origins_text(kernel.origins, 2),
    ]


def total_dict(total: KernelTotal, peaks: Machine) -> dict[str, Any]:
    """Return a kernel's totals as plain values; times are microseconds."""
    kernel, time = total.kernel, max(total.median, 1e-3) * 1e3
    return {
        "name": kernel.name,
        "program": total.program,
        "phase": kernel.phase,
        "lines": [list(origin) for origin in kernel.origins],
        "calls": total.calls,
        "total_us": total.total,
        "q1_us": total.q1,
        "median_us": total.median,
        "q3_us": total.q3,
        "predicted_us": total.predicted(peaks).total,
        "flops": kernel.flops,
        "bytes": kernel.bytes_moved,
        "gflops": kernel.flops / time,
        "gbs": kernel.bytes_moved / time,
        "share": total.share(peaks),
    }


def profile() -> Profile:
    """Profile what a block runs, jitted or not: ``with tinyc.profile() as p: ...``.

    Afterwards ``print(p)`` shows a table of kernels (calls, median and quartiles, what the cost
    model predicts and the median over that, FLOP, bytes, rates, the share of this machine's
    measured peak, the lines they come from) and memory by category; ``p.save("trace.json")`` writes
    a trace for Perfetto, with what was captured and compiled; ``p.kernels``, ``p.memory()`` and
    ``p.to_dict()`` give it as data. Within the block ``with p.span("name")`` shows a stretch of
    Python in the trace. FLOP and bytes are counted on the loops. Programs run as they do without
    it, but for the first two runs of each: these start on empty pages, so that memory can be
    measured, and are left out of medians.
    """
    return Profile()
