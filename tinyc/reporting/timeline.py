"""What each thread did of each kernel, when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyc.runtime.recorder import Run


@dataclass(frozen=True)
class Share:
    """A thread's part of one kernel; times are nanoseconds of the recorder's clock."""

    kernel: int
    thread: int
    start: int
    end: int
    chunks: int


def shares(run: Run) -> list[Share]:
    """Return the parts of a run in the order of time; a serial kernel is thread 0's, whole."""
    ends = run.times[1:]
    found: list[Share] = []
    parallel: set[int] = set()
    for thread, start, end, chunks in run.shares.tolist():
        kernel = int(np.searchsorted(ends, start, side="right"))
        if kernel < len(ends):
            parallel.add(kernel)
            found.append(Share(kernel, thread, start, end, chunks))
    for kernel, (start, end) in enumerate(zip(run.times[:-1].tolist(), ends.tolist())):
        if kernel not in parallel:
            found.append(Share(kernel, 0, start, end, 1))
    return sorted(found, key=lambda share: share.start)
