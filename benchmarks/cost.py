"""Where the cost model and the clock disagree: kernels of workloads, predicted beside measured.

Shows the kernels that take at least ``--share`` of a call and ``--least`` microseconds, and marks
with ``!`` those where prediction and median are more than 2x apart: there the model is to be
mended, or the kernel. A workload is run again, up to three times, while other programs keep its
threads waiting. Nothing here fails, because seconds on a shared machine prove little.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

import machine
from report import table
from workloads import WORKLOADS

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

TRAIN = ("mlp", "lenet64", "lenet512", "resnet20", "gpt_small", "gpt_big")
# A call is repeated for so many seconds, and so often at least and at most.
SECONDS, LEAST, MOST = 2.0, 5, 100
TRIES, WAITED = 3, 0.03
APART = 2.0


def profiled(name: str) -> tuple[Any, Any]:
    """Return the profile of a workload that has warmed up, of a few the least disturbed, and the
    peaks of the machine as they were just before: shared machines have better and worse minutes."""
    import adapters.tinyc_ as adapter

    from tinyc.runtime.device import get_device
    from tinyc.runtime.machine import measure
    from tinyc.runtime.toolchain import find_compiler

    case = adapter.make(WORKLOADS[name], "jit")
    case.run(3)
    device: Any = get_device("cpu")
    best: tuple[float, Any, Any] | None = None
    for _ in range(TRIES):
        peaks = measure(device, device.threads, find_compiler().version)
        waited, started = machine.waited(), time.time()
        profile = repeated(case)
        lost = (machine.waited() - waited) / (time.time() - started)
        if best is None or lost < best[0]:
            best = lost, profile, peaks
        if lost < WAITED:
            break
    assert best is not None
    if best[0] >= WAITED:
        print(f"{name}: its threads waited {best[0]:.0%} of the time for a core")
    return best[1:]


def repeated(case: Any) -> Any:
    """Return the profile of some calls."""
    import tinyc

    end = time.time() + SECONDS
    with tinyc.profile() as profile:
        for number in range(MOST):
            case.run(1)
            if number + 1 >= LEAST and time.time() > end:
                break
    return profile


def rows(name: str, profile: Any, peaks: Any, share: float, least: float) -> list[list[str]]:
    """Return the rows of the kernels that count."""
    totals = profile.kernels
    call = sum(total.median for total in totals)
    found = []
    for total in totals:
        if total.median < max(share * call, least):
            continue
        expected = total.predicted(peaks)
        ratio = total.median / expected.total
        parts = f"{expected.compute:.0f} / {expected.memory:.0f} + {expected.sharing:.0f}"
        off = "" if 1 / APART <= ratio <= APART else "!"
        found.append(
            [name, total.kernel.name, f"{total.median / call:.0%}", f"{total.median:.0f}",
             f"{expected.total:.0f}", parts, f"{ratio:.2f}", off]
        )  # fmt: skip
    return found


def main() -> None:
    """Print one table for the workloads that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=TRAIN, help="those of training by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--least", type=float, default=20.0)
    options = parser.parse_args()
    import adapters.tinyc_ as adapter

    adapter.init("jit", options.threads)
    found: list[list[str]] = []
    for name in options.workloads:
        profile, peaks = profiled(name)
        found += rows(name, profile, peaks, options.share, options.least)
    header = ["workload", "kernel", "share", "measured us", "predicted us"]
    header += ["compute / memory + sharing"]
    print(table([*header, "ratio", ""], found))
    print(f"\n{sum(row[-1] == '!' for row in found)} of {len(found)} kernels are off by over 2x")


if __name__ == "__main__":
    main()
