"""Runs workloads of several frameworks in turns and prints a table; see README.md beside this."""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import time
from typing import Any

import ceilings
import latency
import machine
import report
import results
import weights
from processes import ADAPTERS, Lock, Served, modes_of, python_of, run_once
from workloads import WORKLOADS, select

HERE = os.path.dirname(os.path.abspath(__file__))
KEPT = ("losses", "tokens", "fp", "first_step_s", "build_s", "import_s")

Frameworks = list[tuple[str, str]]


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    env = os.environ.get
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--workload", "-w", default="core", help="names or groups, comma separated")
    p.add_argument(
        "--frameworks", "-f", default=",".join(ADAPTERS), help="name or name:mode, comma separated"
    )
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--reps", type=int, default=7)
    p.add_argument("--budget", type=float, default=3, help="seconds per workload and round")
    p.add_argument("--venvs", default=env("BENCH_VENVS", os.path.join(HERE, ".venvs")))
    p.add_argument("--lock", default=env("BENCH_LOCK", ""), help="file to flock while timing")
    p.add_argument("--hold", type=float, default=240, help="seconds the lock is kept at most")
    p.add_argument("--results", default=os.path.join(weights.WORK, "results.json"))
    p.add_argument("--cache", default=os.path.join(weights.WORK, "cache"))
    p.add_argument("--timeout", type=float, default=600)
    p.add_argument("--quiet", type=float, default=1.5, help="seconds to wait for a quiet machine")
    p.add_argument("--batch", type=int, default=8, help="workloads prepared at once")
    p.add_argument("--nice", type=int, default=0, help="-20 as root keeps others off the timing")
    p.add_argument("--rt", action="store_true", help="as root: SCHED_RR while timing")
    p.add_argument("--prefill", action="store_true", help="fill caches and compare, do not time")
    p.add_argument("--latency", action="store_true", help="import, first step, install size")
    p.add_argument("--first-workloads", default="lenet64", help="what --latency starts")
    p.add_argument("--ceilings", action="store_true", help="FMA peak and memory bandwidth")
    return p.parse_args()


def present_frameworks(options: argparse.Namespace) -> Frameworks:
    """Return (framework, mode) pairs that can run here; name the others."""
    wanted: Frameworks = []
    absent = []
    for text in options.frameworks.split(","):
        framework, _, mode = text.partition(":")
        if python_of(framework, options.venvs) is None:
            absent.append(framework)
            continue
        wanted += [(framework, m) for m in ([mode] if mode else modes_of(framework))]
    if absent:
        print(f"absent, so left out: {', '.join(absent)} (`make peers` installs them)", flush=True)
    return wanted


def stamp() -> str:
    """Return the time of day for progress lines."""
    return time.strftime("[%H:%M:%S]")


class Batch:
    """Some workloads, prepared in every framework and then timed in turns."""

    def __init__(self, options: argparse.Namespace, names: list[str], lock: Lock) -> None:
        self.options, self.names, self.lock = options, names, lock
        self.workers: dict[tuple, Served] = {}
        self.cells: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.worker_of: dict[tuple[str, str, str], Served] = {}

    def prepare(self, frameworks: Frameworks) -> None:
        """Prepare and check every workload in every framework, and say where they disagree."""
        for framework, mode in frameworks:
            for name in self.names:
                self._prepare(name, framework, mode)
        for name in self.names:
            columns = {f"{f}:{m}": q for (w, f, m), q in self.cells.items() if w == name}
            if disagreements := report.agreement(columns).disagreements:
                print("  DISAGREE", name, "; ".join(disagreements), flush=True)

    def _prepare(self, name: str, framework: str, mode: str) -> None:
        w = WORKLOADS[name]
        threads = w.get("threads", 2)
        # a process for each model, so that its peak memory means something
        own = w["group"] in ("train", "decode")
        key = (framework, mode, threads, name if own else "")
        started = time.time()
        if key not in self.workers:
            self.workers[key] = Served(self.options, framework, mode, threads)
        worker = self.workers[key]
        row = worker.ask("prep", name, self.options.timeout)
        if row.get("error"):
            print(f"  ERROR {framework}:{mode} {name}: {row['error'][:300]}", flush=True)
            self.cells[name, framework, mode] = {"error": row["error"]}
        elif not row.get("skipped"):
            print(f"  ready {framework}:{mode} {name} in {time.time() - started:.1f}s", flush=True)
            kept = {k: row[k] for k in KEPT if k in row}
            self.cells[name, framework, mode] = {"rounds": [], "threads": threads, **kept}
            self.worker_of[name, framework, mode] = worker
            return
        if own or worker.dead:
            self.workers.pop(key).close()

    def time(self, round_: int) -> None:
        """Time every prepared cell once; who begins changes from round to round."""
        for name in self.names:
            turn = [cell for cell in self.worker_of if cell[0] == name]
            first = round_ % max(1, len(turn))
            for cell in turn[first:] + turn[:first]:
                self._time(cell, round_)

    def _time(self, cell: tuple[str, str, str], round_: int) -> None:
        name, framework, mode = cell
        worker = self.worker_of[cell]
        with self.lock:
            if self.options.nice:
                machine.set_autogroup(worker.process.pid, self.options.nice)
            row = worker.ask("time", name, self.options.timeout)
            if self.options.nice:
                machine.set_autogroup(worker.process.pid, 0)
        if row.get("error"):
            print(f"  ERROR {framework}:{mode} {name}: {row['error'][:200]}", flush=True)
            self.cells[cell]["error"] = row["error"]
            del self.worker_of[cell]
            return
        kept = ("samples", "waited", "others", "inner", "rss_mib")
        self.cells[cell]["rounds"].append({k: row[k] for k in kept})
        middle = statistics.median(row["samples"]) * 1e3
        print(
            f"{stamp()} round {round_} {framework}:{mode} {name} {middle:.4g} ms "
            f"(waited {row['waited']:.0%}, others {row['others']:.0%})",
            flush=True,
        )

    def store(self) -> None:
        """End the workers and merge what was measured into the results."""
        self.lock.release()
        for worker in self.workers.values():
            worker.close()
        merged = results.load(self.options.results)
        for (name, framework, mode), cell in self.cells.items():
            columns = merged.setdefault("bench", {}).setdefault(name, {})
            if cell.get("rounds") or f"{framework}:{mode}" not in columns:
                columns[f"{framework}:{mode}"] = {**cell, "when": time.strftime("%F %T")}
        results.save(self.options.results, merged)


def bench(options: argparse.Namespace, frameworks: Frameworks, lock: Lock) -> None:
    """Prepare without the lock, then time all rounds of a batch under it."""
    names = select(options.workload.split(","))
    make_weights(names)
    for i in range(0, len(names), options.batch):
        batch = Batch(options, names[i : i + options.batch], lock)
        try:
            batch.prepare(frameworks)
            for round_ in range(options.rounds):
                batch.time(round_)
        finally:
            batch.store()


def make_weights(names: list[str]) -> None:
    """Write the files of weights before several processes want them."""
    for name in names:
        if WORKLOADS[name]["kind"] in ("train", "decode"):
            weights.load_for(WORKLOADS[name])


def prefill(options: argparse.Namespace, frameworks: Frameworks) -> None:
    """Fill the compile caches and compare the frameworks, without timing."""
    names = select(options.workload.split(","))
    make_weights(names)
    for name in names:
        columns: dict[str, dict] = {}
        threads = WORKLOADS[name].get("threads", 2)
        for framework, mode in frameworks:
            rows, wall = run_once(options, framework, mode, [name], threads, options.cache)
            for row in rows:
                if row.get("error"):
                    print(f"  ERROR {framework}:{mode} {name}: {row['error'][:300]}", flush=True)
                elif not row.get("skipped"):
                    columns[f"{framework}:{mode}"] = row
                    print(f"{stamp()} {framework}:{mode} {name} {wall:.0f}s", flush=True)
        agreed = report.agreement(columns)
        verdict = "; ".join(agreed.disagreements) or "agree"
        print(f"  {name}: {verdict} (largest difference {agreed.worst:.1e})", flush=True)


def main() -> None:
    """Measure what the options say and print the table."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))
    options = parse_arguments()
    frameworks = present_frameworks(options)
    lock = Lock(options.lock, options.hold)
    if options.prefill:
        prefill(options, frameworks)
        return
    if options.ceilings:
        ceilings.measure(options, lock)
    elif options.latency:
        latency.measure(options, frameworks, lock)
    else:
        bench(options, frameworks, lock)
    lock.release()
    text = report.render(results.load(options.results))
    with open(os.path.splitext(options.results)[0] + ".md", "w") as f:
        f.write(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
