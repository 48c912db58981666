"""Everything that a report shows, as plain data that JSON holds: what ran, how fast, why so."""

from __future__ import annotations

import datetime
import linecache
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tinyc import config
from tinyc.diagnostics import format_origin
from tinyc.ir.program import Program
from tinyc.reporting import facts
from tinyc.reporting.assembly import kernel_code
from tinyc.reporting.measure import (
    REPEATS,
    Times,
    beside,
    measured_memory,
    run_in_turns,
    unfused_twin,
)
from tinyc.reporting.recording import Recorded, Recording, record_call
from tinyc.reporting.timeline import shares
from tinyc.runtime.machine import Machine, machine
from tinyc.runtime.recorder import Run
from tinyc.version import __version__

# Files of so many lines are kept whole, of longer ones what is around the lines that are used.
WHOLE, AROUND = 400, 12


def collect(
    what: Callable[..., Any] | Recording,
    *args: Any,
    title: str = "",
    repeats: int = REPEATS,
    unfused: bool = True,
    assembly: bool = True,
    **kwargs: Any,
) -> dict[str, Any]:
    """Return all that is known of the programs that a call of a function runs, as plain data.

    ``what`` is a function, which is called once on the arguments, or what `record` has recorded.
    Each program is then run ``repeats`` times on copies of what it was given, in turns with the
    same graph unfused, so nothing of the caller's changes further. For ``assembly`` programs are
    compiled once more, with line numbers. Times are microseconds, sizes bytes.
    """
    recording = what if isinstance(what, Recording) else record_call(what, args, kwargs)
    peaks = machine()
    programs = [
        program(recorded, peaks, repeats, unfused, assembly)
        for recorded in recording.programs
        if recorded.executable.program.kernels
    ]
    return {
        "title": title or (programs[0]["title"] if programs else "nothing ran"),
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "version": __version__,
        "machine": {**vars(peaks), "levels": [list(level) for level in peaks.levels]},
        "files": files(lines_of(programs)),
        "programs": programs,
    }


def program(
    recorded: Recorded, peaks: Machine, repeats: int, unfused: bool, assembly: bool
) -> dict[str, Any]:
    """Return what is known of one program."""
    executable = recorded.executable
    built = facts.rebuild(executable)
    others = [unfused_twin(executable)] if unfused and config.current().fuse else []
    measured = measured_memory(executable, recorded.buffers)
    times = run_in_turns([executable, *others], recorded.buffers, repeats)
    graph, edges = facts.nodes(built)
    storages = facts.storages(built.program, recorded.buffers)
    first, middle, last = times[0].total().tolist()
    timed = kernels(recorded, times, peaks)
    helpers = add_assembly(timed, times[0].program) if assembly else []
    return {
        "title": format_origin(executable.outputs[0].origin),
        "calls": recorded.calls,
        "median_us": middle,
        "q1_us": first,
        "q3_us": last,
        "arena_bytes": built.program.arena_size,
        "flops": built.program.flops,
        "bytes": built.program.bytes_moved,
        **({"unfused": totals(times[1])} if others else {}),
        "nodes": graph,
        "edges": edges,
        "kernels": timed,
        "helpers": helpers,
        "links": facts.links(built),
        "storages": storages,
        "peak": {**facts.peak(built.program, storages), "measured": measured},
        "timeline": timeline(times[0].typical()),
        "passes": facts.passes(built),
    }


def add_assembly(kernels: list[dict[str, Any]], program: Program) -> list[dict[str, Any]]:
    """Give kernels their machine code; return that of the functions that they share."""
    codes, helpers = kernel_code(program)
    for kernel, code in zip(kernels, codes, strict=True):
        kernel["asm"] = code
        kernel["calls_helpers"] = [
            h["name"] for h in helpers if h["name"] + "(" in kernel["source"]
        ]
    return helpers


def totals(times: Times) -> dict[str, Any]:
    """Return the sums of the unfused program."""
    return {
        "kernels": len(times.program.kernels),
        "us": float(times.total()[1]),
        "bytes": times.program.bytes_moved,
        "flops": times.program.flops,
    }


def kernels(recorded: Recorded, times: Sequence[Times], peaks: Machine) -> list[dict[str, Any]]:
    """Return the kernels with their times, rates and what bounds them, unfused ones beside."""
    fused = times[0]
    found = facts.kernels(fused.program)
    for kernel, (first, middle, last) in zip(found, fused.quartiles().T.tolist(), strict=True):
        kernel |= {"calls": recorded.calls, "median_us": middle}
        kernel |= {"q1_us": first, "q3_us": last, **rates(kernel, middle, peaks)}
    if len(times) > 1:
        other = times[1]
        medians = other.quartiles()[1]
        for kernel, numbers in zip(found, beside(fused.program, other.program), strict=True):
            kernel["unfused"] = {
                "kernels": len(numbers),
                "us": float(sum(medians[j] for j in numbers)),
                "bytes": sum(other.program.kernels[j].bytes_moved for j in numbers),
                "flops": sum(other.program.kernels[j].flops for j in numbers),
            }
    return found


def rates(kernel: Mapping[str, Any], microseconds: float, peaks: Machine) -> dict[str, Any]:
    """Return what a kernel reaches, which share of the roof that is, and what bounds it."""
    flops, moved = kernel["flops"], kernel["bytes"]
    time = max(microseconds, 1e-3)
    return {
        "gflops": flops / time / 1e3,
        "gbs": moved / time / 1e3,
        "share": min(1.0, peaks.roof(flops, moved) / time),
        "roof_us": peaks.roof(flops, moved),
        "bound": peaks.bound(flops, moved, microseconds),
    }


def timeline(run: Run) -> list[dict[str, Any]]:
    """Return what each thread did of each kernel in one run, in the order of time."""
    start = int(run.times[0])
    return [
        {
            "kernel": share.kernel,
            "thread": share.thread,
            "start_us": (share.start - start) / 1e3,
            "end_us": (share.end - start) / 1e3,
        }
        for share in shares(run)
    ]


# -- the user's lines ----------------------------------------------------------------------------


def lines_of(programs: Iterable[Mapping[str, Any]]) -> dict[str, set[int]]:
    """Return the numbers of the lines that programs come from, by file."""
    found: dict[str, set[int]] = {}
    for entry in programs:
        for node in entry["nodes"]:
            if node["line"]:
                found.setdefault(node["line"][0], set()).add(node["line"][1])
        for kernel in entry["kernels"]:
            for path, number in kernel["lines"]:
                found.setdefault(path, set()).add(number)
    return found


def files(lines: Mapping[str, set[int]]) -> dict[str, dict[str, Any]]:
    """Return the text of the files that lines are of, or of a long file the part around them."""
    found = {}
    for path, numbers in lines.items():
        text = [line.rstrip("\n") for line in linecache.getlines(path)]
        first, last = 1, len(text)
        if len(text) > WHOLE:
            first = max(first, min(numbers) - AROUND)
            last = min(last, max(numbers) + AROUND)
        name = path.replace("\\", "/").rpartition("/")[2]
        found[path] = {"name": name, "first": first, "lines": text[first - 1 : last]}
    return found
