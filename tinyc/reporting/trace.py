"""A recording as a Chrome trace: JSON that Perfetto, chrome://tracing and speedscope open.

The format is the Trace Event Format: complete events ("X") with start and duration in microseconds
that nest on each track, counters ("C"), and names of tracks ("M").
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from tinyc.diagnostics import format_origin
from tinyc.ir.program import Program
from tinyc.reporting.timeline import shares
from tinyc.runtime.recorder import Recorder, Run

# Tracks of kernels stand in a process of their own, below those of Python's threads.
KERNELS = 1


def trace(recorder: Recorder, titles: Mapping[int, str], **about: Any) -> dict[str, Any]:
    """Return a recording as a trace. ``titles`` are the programs', by the identity of each."""
    starts = [span.start for span in recorder.spans]
    starts += [int(run.times[0]) for run in recorder.runs]
    origin = min(starts, default=0)
    events = [*names(recorder)]
    for span in recorder.spans:
        where = (os.getpid(), span.thread)
        events.append(
            complete(span.name, span.category, where, span.start, span.end, origin, span.arguments)
        )
    for run in recorder.runs:
        events += run_events(run, titles.get(id(run.program), "program"), origin)
    events.sort(key=lambda event: (event["ts"], -event.get("dur", 0)))
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def names(recorder: Recorder) -> Iterable[dict[str, Any]]:
    """Yield the names of the tracks."""
    yield named("process_name", os.getpid(), 0, "Python")
    yield named("process_name", KERNELS, 0, "kernels")
    for thread in sorted(
        {run.thread for run in recorder.runs} | {s.thread for s in recorder.spans}
    ):
        yield named("thread_name", os.getpid(), thread, f"Python thread {thread}")
    yield named("thread_name", KERNELS, 0, "kernels")
    workers = {int(worker) for run in recorder.runs for worker in run.shares[:, 0]}
    for worker in sorted(workers | {0}):
        yield named("thread_name", KERNELS, worker + 1, f"thread {worker}")


def named(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    """Return the event that names a process or thread."""
    arguments = {"name": name}
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "ts": 0, "args": arguments}


def complete(
    name: str,
    category: str,
    where: tuple[int, int],
    start: int,
    end: int,
    origin: int,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Return one event with a duration; ``start`` and ``end`` are nanoseconds."""
    process, thread = where
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": process,
        "tid": thread,
        "ts": (start - origin) / 1e3,
        "dur": (end - start) / 1e3,
        "args": dict(arguments),
    }


def run_events(run: Run, title: str, origin: int) -> list[dict[str, Any]]:
    """Return the events of one run: itself, its kernels, the threads' shares, the live memory."""
    first, last = int(run.times[0]), int(run.times[-1])
    where = (os.getpid(), run.thread)
    program = run.program
    total = {"kernels": len(program.kernels), "flop": program.flops, "bytes": program.bytes_moved}
    events = [complete(title, "program", where, first, last, origin, total)]
    for index, kernel in enumerate(program.kernels):
        begin, end = int(run.times[index]), int(run.times[index + 1])
        arguments = kernel_arguments(program, index, end - begin)
        events.append(
            complete(kernel.name, kernel.phase, (KERNELS, 0), begin, end, origin, arguments)
        )
    for share in shares(run):
        kernel = program.kernels[share.kernel]
        events.append(
            complete(kernel.name, kernel.phase, (KERNELS, share.thread + 1), share.start,
                     share.end, origin, {"chunks": share.chunks})
        )  # fmt: skip
    live = {name or "activation": count for name, count in run.live.items()}
    counter = {"ph": "C", "name": "live tensors, bytes", "pid": os.getpid(), "tid": 0}
    events.append({**counter, "ts": (last - origin) / 1e3, "args": live})
    return events


def kernel_arguments(program: Program, index: int, nanoseconds: int) -> dict[str, Any]:
    """Return what the trace viewer shows of a kernel that was clicked on."""
    kernel = program.kernels[index]
    time = max(nanoseconds, 1)
    return {
        "members": list(kernel.members),
        "lines": [format_origin(origin) for origin in kernel.origins],
        "flop": kernel.flops,
        "bytes": kernel.bytes_moved,
        "GFLOP/s": round(kernel.flops / time, 3),
        "GB/s": round(kernel.bytes_moved / time, 3),
        "chunks": kernel.chunks,
    }
