"""What the machine can do at most: FMA throughput and memory bandwidth, by two small C programs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time

import machine
import results
from processes import Lock
from weights import WORK

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAMS = ("fma_peak", "stream")


def build() -> dict[str, str]:
    """Compile the programs; return their paths."""
    os.makedirs(WORK, exist_ok=True)
    paths = {}
    for name in PROGRAMS:
        paths[name] = os.path.join(WORK, name)
        source = os.path.join(HERE, "csrc", name + ".c")
        flags = ["-O3", "-march=native", "-fopenmp"]
        subprocess.check_call(["gcc", *flags, "-o", paths[name], source])
    return paths


def measure(options: argparse.Namespace, lock: Lock) -> None:
    """Run each program with one and two threads in every round and keep the rows."""
    rows: dict[str, list[dict]] = {}
    paths = build()
    for _ in range(options.rounds):
        for name in PROGRAMS:
            for threads in (1, 2):
                with lock:
                    row = _run(paths[name], threads, options)
                print(name, row, flush=True)
                rows.setdefault(f"{name}_{threads}", []).append(row)
    merged = results.load(options.results)
    merged["ceilings"] = {"when": time.strftime("%F %T"), **rows}
    results.save(options.results, merged)


def _run(path: str, threads: int, options: argparse.Namespace) -> dict:
    machine.wait_quiet(options.quiet)
    before, started = machine.busy(), time.time()
    line = [path, str(threads)]
    if threads == 1:
        line = ["taskset", "-c", "0", *line]
    text = subprocess.check_output(line, preexec_fn=lambda: machine.set_nice(options.nice))
    others = machine.share_of_others(before, machine.busy(), time.time() - started)
    return {**json.loads(text), "others": others}
