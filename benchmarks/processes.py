"""Worker processes as ``run.py`` sees them: their environment, the lock, one-shot and served."""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, TextIO

from weights import WORK

HERE = os.path.dirname(os.path.abspath(__file__))
ADAPTERS = sorted(
    f[: -len("_.py")]
    for f in os.listdir(os.path.join(HERE, "adapters"))
    if f.endswith("_.py") and not f.startswith("__")
)
# `beam` searches for minutes, so it runs only where it is asked for by name.
DEFAULT_MODES = {"tinygrad": ["jit"]}
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "NUMBA_NUM_THREADS",
    "BENCH_THREADS",
    "TINYC_THREADS",
)


def modes_of(framework: str) -> list[str]:
    """Return a framework's default modes without importing it."""
    if framework in DEFAULT_MODES:
        return DEFAULT_MODES[framework]
    with open(os.path.join(HERE, "adapters", framework + "_.py")) as f:
        match = re.search(r"^MODES\s*=\s*(\[.*?\])", f.read(), re.M)
    return ast.literal_eval(match.group(1)) if match else ["default"]


def python_of(framework: str, venvs: str) -> str | None:
    """Return the interpreter of a framework's environment, our own for tinyc, or None."""
    path = os.path.join(venvs, framework, "bin", "python")
    if os.path.exists(path):
        return path
    return sys.executable if framework == "tinyc" else None


def environment(threads: int, cache: str) -> dict[str, str]:
    """Return the environment of a worker: its thread count, and every cache in one folder."""
    os.makedirs(cache, exist_ok=True)
    env = dict(os.environ)
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        env.pop(name, None)
    # byte code is kept, as that of the installed peers is, whatever this shell says of that
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    env.update(
        TORCHINDUCTOR_CACHE_DIR=os.path.join(cache, "inductor"),
        TRITON_CACHE_DIR=os.path.join(cache, "triton"),
        JAX_COMPILATION_CACHE_DIR=os.path.join(cache, "jax"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
        JAX_PLATFORMS="cpu",
        CACHEDB=os.path.join(cache, "tinygrad.db"),
        TINYC_CACHE_DIR=os.path.join(cache, "tinyc"),
        PYTHONPATH=os.pathsep.join([HERE, os.path.dirname(HERE)]),
        TF_CPP_MIN_LOG_LEVEL="3",
    )
    return env


def open_log(title: str) -> TextIO:
    """Open the log that workers write to, with a line that says which one comes now."""
    os.makedirs(WORK, exist_ok=True)
    log = open(os.path.join(WORK, "log.txt"), "a")  # noqa: SIM115 (the caller closes it)
    log.write(f"\n$ {title}\n")
    log.flush()
    return log


class Lock:
    """A lock like flock(1)'s, kept over consecutive uses for at most ``hold`` seconds."""

    def __init__(self, path: str, hold: float) -> None:
        self.path, self.hold = path, hold
        self.file: TextIO | None = None
        self.since = 0.0

    def __enter__(self) -> None:
        if self.path and self.file is None:
            asked = time.time()
            self.file = open(self.path, "a")
            fcntl.flock(self.file, fcntl.LOCK_EX)
            self.since = time.time()
            if self.since - asked > 5:
                print(f"  (waited {self.since - asked:.0f}s for the lock)", flush=True)

    def __exit__(self, *exception: object) -> None:
        if time.time() - self.since > self.hold:
            self.release()

    def release(self) -> None:
        """Let others have the lock."""
        if self.file:
            fcntl.flock(self.file, fcntl.LOCK_UN)
            self.file.close()
            self.file = None
            time.sleep(0.3)


def command(
    options: argparse.Namespace, framework: str, mode: str, threads: int, out: str, *extra: str
) -> list[str]:
    """Return the command line of a worker."""
    python = python_of(framework, options.venvs)
    assert python, f"no environment for {framework}"
    line = [python, os.path.join(HERE, "worker.py"), "--adapter", framework + "_", "--mode", mode]
    line += ["--threads", str(threads), "--out", out, "--reps", str(options.reps)]
    line += ["--budget", str(options.budget), "--quiet", str(options.quiet)]
    line += ["--rt", str(int(options.rt)), *extra]
    return ["taskset", "-c", "0", *line] if threads == 1 else line


def run_once(
    options: argparse.Namespace,
    framework: str,
    mode: str,
    names: list[str],
    threads: int,
    cache: str,
    *extra: str,
) -> tuple[list[dict], float]:
    """Prepare and check workloads in a process of their own; return its rows and wall seconds."""
    descriptor, out = tempfile.mkstemp(suffix=".jsonl")
    os.close(descriptor)
    extra = ("--workloads", ",".join(names), "--nice", str(options.nice), *extra)
    line = command(options, framework, mode, threads, out, *extra)
    started = time.time()
    with open_log(f"{framework} {mode} {names} threads {threads}") as log:
        try:
            done = subprocess.run(
                line, env=environment(threads, cache), stdout=log, stderr=log,
                timeout=options.timeout, cwd=HERE,
            )  # fmt: skip
            code: int | str = done.returncode
        except subprocess.TimeoutExpired:
            code = "timeout"
    wall = time.time() - started
    with open(out) as f:
        rows = [json.loads(line) for line in f]
    os.remove(out)
    missing = [name for name in names if name not in {row["workload"] for row in rows}]
    if code != 0 and missing:
        rows.append({"workload": missing[0], "error": f"process: {code} after {wall:.0f}s"})
    return rows, wall


class Served:
    """A worker that keeps prepared workloads, stopped (SIGSTOP) whenever it is not its turn."""

    def __init__(
        self, options: argparse.Namespace, framework: str, mode: str, threads: int
    ) -> None:
        with open_log(f"serve {framework} {mode} threads {threads}") as log:
            self.process = subprocess.Popen(
                command(options, framework, mode, threads, "-"),
                env=environment(threads, options.cache), stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, cwd=HERE, start_new_session=True,
            )  # fmt: skip
        self.dead: str | None = self._read(options.timeout).get("error")
        self._stop()

    def _stop(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGSTOP)

    def _read(self, timeout: float) -> dict[str, Any]:
        assert self.process.stdout
        deadline, line = time.time() + timeout, b""
        while not line.endswith(b"\n"):
            wait = max(0, deadline - time.time())
            if not select.select([self.process.stdout], [], [], wait)[0]:
                self.close()
                return {"error": f"timeout after {timeout:.0f}s"}
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                return {"error": f"process died ({self.process.wait()})"}
            line += part
        return json.loads(line)

    def ask(self, what: str, name: str, timeout: float) -> dict[str, Any]:
        """Have the worker do ``prep``, ``time`` or ``drop`` with a workload; return its row."""
        if self.dead:
            return {"workload": name, "error": self.dead}
        assert self.process.stdin
        os.kill(self.process.pid, signal.SIGCONT)
        self.process.stdin.write(f"{what} {name}\n".encode())
        self.process.stdin.flush()
        row = self._read(timeout)
        if str(row.get("error", "")).startswith(("timeout", "process")):
            self.dead = row["error"]
        self._stop()
        return {**row, "workload": name}

    def close(self) -> None:
        """End the worker and whatever it started."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
