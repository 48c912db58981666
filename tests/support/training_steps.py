"""The benchmarks' training steps, for tests: their graphs and programs, without compiling C."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyc import compiler, config, pipeline
from tinyc.ir.node import Node, canonical_key
from tinyc.ir.program import CPU, Program

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
OURS = (
    *("adapters", "gpt_torch", "machine", "processes", "report", "results", "weights"),
    "workloads",
)


@contextmanager
def benchmarks(folder: Path) -> Iterator[None]:
    """Let the modules of the benchmarks be imported; they keep their weights in `folder`."""
    import os

    sys.path.insert(0, str(BENCHMARKS))
    before = os.environ.get("BENCH_WORK")
    os.environ["BENCH_WORK"] = str(folder)
    try:
        yield
    finally:
        sys.path.remove(str(BENCHMARKS))
        if before is None:
            del os.environ["BENCH_WORK"]
        else:
            os.environ["BENCH_WORK"] = before
        for name in list(sys.modules):
            if name.partition(".")[0] in OURS:
                del sys.modules[name]


def case_of(name: str, framework: str, mode: str) -> Any:
    """The case of a workload; the benchmarks must be importable."""
    import importlib

    import workloads

    adapter = importlib.import_module(f"adapters.{framework}_")
    adapter.init(mode, 2)
    return adapter.make(workloads.WORKLOADS[name], mode)


class _Captured(Exception):
    pass


def training_graph(name: str, monkeypatch: Any) -> tuple[Node, ...]:
    """The outputs of a model's training step, captured but not compiled."""

    def stop(outputs: Any) -> None:
        raise _Captured(tuple(outputs))

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "compile_graph", stop)
        try:
            case_of(name, "tinyc", "jit").step(0)
        except _Captured as captured:
            return captured.args[0]
    raise AssertionError(f"{name} was not captured")


def programs(outputs: tuple[Node, ...]) -> tuple[Program, Program]:
    """The fused and the unfused program of a graph."""
    leaves = canonical_key(outputs)[1]
    found = []
    for fuse in (True, False):
        with config.configure(fuse=fuse):
            found.append(pipeline.build_program(outputs, leaves, CPU)[0])
    return found[0], found[1]
