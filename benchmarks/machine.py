"""What else the machine is doing, and how a timing is kept apart from it. Linux only."""

from __future__ import annotations

import contextlib
import os
import time

TICKS = os.sysconf("SC_CLK_TCK")

Busy = tuple[float, float]


def busy() -> Busy:
    """Return (busy seconds of all cores, CPU seconds of this process and its children)."""
    with open("/proc/stat") as f:
        v = [int(x) for x in f.readline().split()[1:9]]
    t = os.times()
    own = t.user + t.system + t.children_user + t.children_system
    return (v[0] + v[1] + v[2] + v[5] + v[6] + v[7]) / TICKS, own


def share_of_others(before: Busy, after: Busy, wall: float) -> float:
    """Return the share of the machine that other processes took between two ``busy()``."""
    others = (after[0] - before[0]) - (after[1] - before[1])
    return max(0.0, others / max(wall, 1e-9) / (os.cpu_count() or 1))


def waited() -> float:
    """Return the seconds that threads of this process waited for a core, steal included."""
    nanoseconds = 0
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/schedstat") as f:
            nanoseconds += int(f.read().split()[1])
    with open("/proc/stat") as f:
        steal = int(f.readline().split()[8])
    return nanoseconds / 1e9 + steal / TICKS


def peak_memory() -> float:
    """Return the peak resident memory of this process in MiB."""
    with open("/proc/self/status") as f:
        fields = dict(line.split(":", 1) for line in f)
    return int(fields["VmHWM"].split()[0]) / 1024


def wait_quiet(limit: float) -> float:
    """Wait until others use under 10 % of the machine, at most ``limit`` s; return their share."""
    started = time.time()
    while True:
        before, t = busy(), time.time()
        time.sleep(0.15)
        share = share_of_others(before, busy(), time.time() - t)
        if share < 0.1 or time.time() - started > limit:
            return share


def set_nice(level: int) -> None:
    """Set the priority of this process and of its autogroup, without which nice counts little."""
    if not level:
        return
    with contextlib.suppress(OSError):
        os.setsid()
    with contextlib.suppress(OSError):
        os.nice(level)
        set_autogroup("self", level)


def set_autogroup(pid: int | str, level: int) -> None:
    """Set the priority of a process's session against the rest of the machine, if root."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/autogroup", "w") as f:
        f.write(str(level))


def set_realtime(on: bool) -> None:
    """Put all threads of this process in or out of SCHED_RR, if root."""
    policy = os.SCHED_RR if on else os.SCHED_OTHER
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(int(thread), policy, os.sched_param(1 if on else 0))
