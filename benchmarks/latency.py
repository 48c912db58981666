"""How long a user waits: import, process start to the first training step, and installed size."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
from typing import Any

import machine
import results
from processes import HERE, Lock, environment, open_log, python_of, run_once
from weights import WORK

IMPORTS = {"jax": "import jax, jax.numpy", "tinygrad": "from tinygrad import Tensor"}
NOT_COUNTED = re.compile(
    r"(pip|setuptools|_distutils_hack|distutils-precedence|pkg_resources)([-._].*)?"
)


def measure(options: argparse.Namespace, frameworks: list[tuple[str, str]], lock: Lock) -> None:
    """Measure all three for the frameworks and keep them."""
    names = list(dict.fromkeys(framework for framework, _ in frameworks))
    for framework in names:
        _put(options, "import", framework, [])
        size = _installed_size(framework, options.venvs)
        if size:
            _put(options, "size_mib", framework, size)
            print(framework, f"{size['total']:.0f} MiB", flush=True)
    for _ in range(max(7, options.rounds)):
        for framework in names:
            with lock:
                _import_once(options, framework)
    for workload in options.first_workloads.split(","):
        for framework, mode in frameworks:
            if framework != "numpy":
                _put(options, "first_step", f"{workload}|{framework}:{mode}", [])
        for _ in range(options.rounds):
            for framework, mode in frameworks:
                if framework != "numpy":
                    _first_step(options, workload, framework, mode, lock)


def _put(options: argparse.Namespace, part: str, key: str, value: Any) -> None:
    """Store a value; a dictionary is appended where a list stands."""
    merged = results.load(options.results)
    cells = merged.setdefault("latency", {}).setdefault(part, {})
    if isinstance(cells.get(key), list) and isinstance(value, dict):
        cells[key].append(value)
    else:
        cells[key] = value
    results.save(options.results, merged)


def _installed_size(framework: str, venvs: str) -> dict[str, Any]:
    library = os.path.join(venvs, framework, "lib")
    if not os.path.isdir(library):
        return {}
    packages = os.path.join(library, os.listdir(library)[0], "site-packages")
    sizes = {}
    for name in os.listdir(packages):
        if not NOT_COUNTED.fullmatch(name):
            text = subprocess.check_output(["du", "-sk", os.path.join(packages, name)])
            sizes[name] = round(int(text.split()[0]) / 1024, 1)
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:6]
    return {"total": round(sum(sizes.values()), 1), "top": dict(largest)}


def _import_once(options: argparse.Namespace, framework: str) -> None:
    python = python_of(framework, options.venvs)
    assert python
    env = environment(2, options.cache)
    bare = _wall([python, "-c", "pass"], env)
    statement = IMPORTS.get(framework, "import " + framework)
    imported = _wall([python, "-c", statement], env)
    if bare is not None and imported is not None:
        _put(options, "import", framework, {"bare": bare, "imp": imported})


def _wall(line: list[str], env: dict[str, str]) -> float | None:
    started = time.perf_counter()
    with open_log(" ".join(line)) as log:
        code = subprocess.run(line, env=env, stdout=log, stderr=log, cwd=HERE).returncode
    return time.perf_counter() - started if code == 0 else None


def _first_step(
    options: argparse.Namespace, workload: str, framework: str, mode: str, lock: Lock
) -> None:
    key = f"{workload}|{framework}:{mode}"
    cache = tempfile.mkdtemp(prefix="cold", dir=WORK)
    try:
        for kind in ("cold", "warm"):
            with lock:
                before, started = machine.busy(), time.time()
                rows, wall = run_once(
                    options, framework, mode, [workload], 2, cache, "--first-step-only"
                )
                others = machine.share_of_others(before, machine.busy(), time.time() - started)
            row = rows[0] if rows else {"error": "no result"}
            if row.get("error") or row.get("skipped"):
                failure = {"kind": kind, "error": row.get("error", "skipped")}
                _put(options, "first_step", key, failure)
                return
            parts = {k: row[k] for k in ("import_s", "build_s", "first_step_s")}
            measured = {"kind": kind, "wall": wall, "others": others, **parts}
            _put(options, "first_step", key, measured)
            print(f"{key} {kind} {wall:.2f}s {parts}", flush=True)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
