"""Times of kernels: a line for each run at DEBUG=2, and a summary when the process ends."""

from __future__ import annotations

import atexit
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tinyc import config
from tinyc.diagnostics import Origin, debug_line, format_origin, print_debug
from tinyc.ir.program_text import count, places, with_figures
from tinyc.runtime.machine import machine

if TYPE_CHECKING:
    from tinyc.ir.program import KernelInfo, Program

SHOWN = 12


@dataclass
class Total:
    """What the runs of one kernel took together."""

    runs: int = 0
    nanoseconds: int = 0


@dataclass
class Profile:
    """Adds up the times of kernels of the same name and lines."""

    totals: dict[tuple[str, tuple[Origin, ...]], Total] = field(
        default_factory=lambda: defaultdict(Total)
    )

    def add(self, kernel: KernelInfo, nanoseconds: int) -> None:
        """Book one run of a kernel."""
        total = self.totals[kernel.name, kernel.origins]
        total.runs += 1
        total.nanoseconds += nanoseconds

    def summary(self) -> str:
        """Return the kernels, and the user's lines, that took most of the time, the longest first.

        A kernel's time is shared equally among the lines that it comes from.
        """
        whole = sum(total.nanoseconds for total in self.totals.values()) or 1
        ranked = sorted(self.totals.items(), key=lambda item: -item[1].nanoseconds)
        lines = ["", with_figures("time by kernel", f"{'ms':>10} {'share':>6} {'runs':>7}")]
        for (name, origins), total in ranked[:SHOWN]:
            figures = f"{total.nanoseconds / 1e6:10.2f} {total.nanoseconds / whole:>6.0%}"
            lines.append(with_figures(f"  {name} {places(origins)}", f"{figures} {total.runs:7}"))
        lines.append(with_figures("time by line", f"{'ms':>10} {'share':>6}"))
        by_line = self._by_line()
        for origin in sorted(by_line, key=lambda o: -by_line[o])[:SHOWN]:
            figures = f"{by_line[origin] / 1e6:10.2f} {by_line[origin] / whole:>6.0%}"
            lines.append(with_figures(f"  {format_origin(origin)}", figures))
        return "\n".join(lines)

    def _by_line(self) -> dict[Origin, float]:
        """Share each kernel's time among the lines that it comes from."""
        found: dict[Origin, float] = defaultdict(float)
        for (_, origins), total in self.totals.items():
            for origin in origins:
                found[origin] += total.nanoseconds / len(origins)
        return found


_profile: Profile | None = None


def wanted() -> bool:
    """Tell whether the times of kernels are to be shown."""
    return config.current().debug.level >= 2


def run_shown(program: Program, run: Callable[[np.ndarray], None]) -> None:
    """Call ``run(times)`` of a program and print what each kernel took."""
    global _profile
    if _profile is None:
        _profile = Profile()
        atexit.register(_at_exit)
    times = np.zeros(len(program.kernels) + 1, np.int64)
    run(times)
    for kernel, nanoseconds in zip(program.kernels, np.diff(times).tolist(), strict=True):
        _profile.add(kernel, nanoseconds)
        debug_line(2, run_line(kernel, nanoseconds), kernel=kernel.name)


def run_line(kernel: KernelInfo, nanoseconds: int) -> str:
    """Return the line of one run: where the kernel comes from; its time, rates, share of the roof.

    The roof is the least time that its arithmetic and traffic could take on this machine.
    """
    time, here = max(nanoseconds, 1), machine()
    least = here.roof(kernel.flops, kernel.bytes_moved) * 1e3
    bound = here.bound(kernel.flops, kernel.bytes_moved, time / 1e3)
    rates = f"{kernel.flops / time:8.2f} GFLOP/s {kernel.bytes_moved / time:8.2f} GB/s"
    share = f"{least / time:5.0%} of the roof, bound by {bound}, {count(kernel.chunks, 'chunk')}"
    figures = f"{nanoseconds / 1e3:10.1f} us {rates} {share}"
    return with_figures(f"run {kernel.name} {places(kernel.origins)}", figures)


def _at_exit() -> None:
    debug = config.current().debug
    if _profile is not None and debug.level >= 2:
        for kernel in [key for key in _profile.totals if not debug.shows(2, key[0])]:
            del _profile.totals[kernel]
        if _profile.totals:
            print_debug(_profile.summary())
