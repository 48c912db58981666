"""One process, one adapter, one mode: prepares, checks and times workloads as ``run.py`` asks.

With ``--out FILE`` it prepares the named workloads once and writes one JSON object for each. With
``--out -`` it serves lines ``prep NAME``, ``time NAME`` and ``drop NAME`` from standard input.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
import time
import traceback
from typing import Any

import machine
from workloads import WORKLOADS

INNER_SECONDS = 0.04
WARM_SECONDS = 0.25


def fingerprint(arrays: list) -> list[dict]:
    """Return shape, mean magnitude and 64 sampled values of each array."""
    import numpy as np

    prints = []
    for array in map(np.asarray, arrays):
        flat = array.reshape(-1)
        sample = flat[np.random.default_rng(7).integers(0, flat.size, 64)]
        mean = float(np.abs(flat[: 1 << 22]).mean(dtype=np.float64))
        values = [float(v) for v in sample]
        prints.append({"shape": list(array.shape), "absmean": mean, "s": values})
    return prints


def _timed(run: Any, n: int) -> float:
    start = time.perf_counter()
    run(n)
    return (time.perf_counter() - start) / n


def _warm_up(run: Any) -> float:
    """Run for a quarter of a second and at least twice; return the seconds of one call."""
    seconds = _timed(run, 1)
    n = max(1, min(20000, int(INNER_SECONDS / max(seconds, 1e-7))))
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < WARM_SECONDS or calls < 2:
        seconds = _timed(run, n)
        calls += 1
        if time.perf_counter() - started > 6:
            break
    return seconds


def measure(run: Any, reps: int, quiet: float, budget: float) -> dict[str, Any]:
    """Return samples of the seconds of one call, with how disturbed the best of 3 tries was."""
    seconds = _warm_up(run)
    inner = max(1, min(20000, int(INNER_SECONDS / seconds)))
    if seconds * inner * reps > budget:
        reps = max(3, min(reps, int(budget / (seconds * inner))))
    best: dict[str, Any] = {}
    for _ in range(3):
        if quiet:
            machine.wait_quiet(quiet)
        gc.collect()
        before, waited, started = machine.busy(), machine.waited(), time.time()
        samples = [_timed(run, inner) for _ in range(reps)]
        wall = time.time() - started
        lost = (machine.waited() - waited) / wall
        others = machine.share_of_others(before, machine.busy(), wall)
        if not best or lost < best["waited"]:
            best = {"samples": samples, "waited": lost, "others": others, "inner": inner}
        if lost < 0.05 or seconds * inner * reps > 3:
            break
    return best


class Worker:
    """The prepared cases of one adapter and mode."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cases: dict[str, Any] = {}
        started = time.time()
        self.adapter = importlib.import_module("adapters." + options.adapter)
        self.adapter.init(options.mode, options.threads)
        self.import_seconds = round(time.time() - started, 3)

    def prepare(self, name: str) -> dict[str, Any]:
        """Build a workload, run what can be compared with other frameworks, and return that."""
        o, w, started = self.options, WORKLOADS[name], time.time()
        row = {"threads": o.threads, "import_s": self.import_seconds}
        case = self.adapter.make(w, o.mode)
        if case is None:
            return {**row, "skipped": True}
        row["build_s"] = round(time.time() - started, 3)
        started = time.time()
        if w["kind"] == "train":
            row["losses"] = [case.step(0)]
            row["first_step_s"] = round(time.time() - started, 3)
            if not o.first_step_only:
                row["losses"] += [case.step(i) for i in range(1, o.check_steps)]
        else:
            checked = case.check()
            row["first_step_s"] = round(time.time() - started, 3)
            row |= {"tokens": checked} if w["kind"] == "decode" else {"fp": fingerprint(checked)}
        self.cases[name] = case
        return row

    def time(self, name: str) -> dict[str, Any]:
        """Time a prepared workload."""
        o = self.options
        realtime = o.rt and o.threads > 1
        quiet = o.quiet if WORKLOADS[name]["kind"] in ("ew", "red") else 0
        if realtime:
            machine.set_realtime(True)
        try:
            row = measure(self.cases[name].run, o.reps, quiet, o.budget)
        finally:
            if realtime:
                machine.set_realtime(False)
        return {**row, "rss_mib": round(machine.peak_memory(), 1)}

    def drop(self, name: str) -> dict[str, Any]:
        """Forget a workload."""
        self.cases.pop(name, None)
        gc.collect()
        return {"dropped": name}

    def do(self, command: str, name: str) -> dict[str, Any]:
        """Carry out ``prep``, ``time`` or ``drop``; an exception becomes an ``error`` row."""
        action = {"prep": self.prepare, "time": self.time, "drop": self.drop}[command]
        row = {"workload": name, "mode": self.options.mode}
        try:
            return {**row, **action(name)}
        except Exception as error:
            traceback.print_exc()
            return {**row, "error": f"{type(error).__name__}: {error}"[:400]}


def parse_arguments() -> argparse.Namespace:
    """Return the options; ``run.py`` gives all of them."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--adapter", required=True)
    p.add_argument("--mode", required=True)
    p.add_argument("--workloads", default="")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--reps", type=int, default=7)
    p.add_argument("--out", required=True)
    p.add_argument("--quiet", type=float, default=8)
    p.add_argument("--budget", type=float, default=8)
    p.add_argument("--check-steps", type=int, default=10)
    p.add_argument("--first-step-only", action="store_true")
    p.add_argument("--nice", type=int, default=0)
    p.add_argument("--rt", type=int, default=0)
    return p.parse_args()


def main() -> None:
    """Prepare once, or serve."""
    options = parse_arguments()
    machine.set_nice(options.nice)
    if options.out != "-":
        worker = Worker(options)
        with open(options.out, "a") as out:
            for name in options.workloads.split(","):
                out.write(json.dumps(worker.do("prep", name)) + "\n")
                worker.drop(name)
        return
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a framework prints must not reach the protocol's channel
    worker = Worker(options)
    out.write(json.dumps({"ready": True}) + "\n")
    out.flush()
    for line in sys.stdin:
        command, name = line.split()
        out.write(json.dumps(worker.do(command, name)) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
