"""Times of a program's kernels, fused and unfused in turns, on copies of what it was given."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyc import compiler, config
from tinyc.compiler import NativeExecutable
from tinyc.ir.program import Program
from tinyc.runtime.buffer import Buffer
from tinyc.runtime.recorder import Recorder, Run, recording

REPEATS = 15
# Programs that run long are repeated less often, but so often at least.
SECONDS, LEAST = 6.0, 3


@dataclass(frozen=True)
class Times:
    """Runs of one program."""

    program: Program
    runs: tuple[Run, ...]

    @property
    def samples(self) -> np.ndarray:
        """The nanoseconds of each kernel in each run."""
        return np.array([np.diff(run.times) for run in self.runs])

    def typical(self) -> Run:
        """Return the run whose time is the median, to be shown by thread."""
        return sorted(self.runs, key=lambda run: run.times[-1] - run.times[0])[len(self.runs) // 2]

    def quartiles(self) -> np.ndarray:
        """Return the quartiles of each kernel in microseconds: f64[3, kernels]."""
        return np.percentile(self.samples, (25, 50, 75), axis=0) / 1e3

    def total(self) -> np.ndarray:
        """Return the quartiles of the whole program in microseconds: f64[3]."""
        return np.percentile(self.samples.sum(axis=1), (25, 50, 75)) / 1e3


def unfused_twin(executable: NativeExecutable) -> NativeExecutable:
    """Return the program of the same graph without fusion."""
    with config.configure(fuse=False):
        made = compiler.compile_graph(executable.outputs)
    assert isinstance(made, NativeExecutable)
    return made


def run_in_turns(
    executables: Sequence[NativeExecutable], buffers: Sequence[Buffer], repeats: int = REPEATS
) -> list[Times]:
    """Run programs that do the same in turns; the first round, which warms up, is not counted."""
    runs: list[list[Run]] = [[] for _ in executables]
    end = time.perf_counter() + SECONDS
    for repeat in range(repeats + 1):
        order = list(enumerate(executables))
        for number, executable in order if repeat % 2 else order[::-1]:
            recorder = Recorder(memory=False)
            with recording(recorder):
                executable.run(buffers)
            if repeat:
                runs[number] += recorder.runs
        if repeat >= LEAST and time.perf_counter() > end:
            break
    return [Times(way.program, tuple(found)) for way, found in zip(executables, runs)]


def measured_memory(executable: NativeExecutable, buffers: Sequence[Buffer]) -> int | None:
    """Run once; return the bytes of a program's memory that were really there then, if known."""
    recorder = Recorder()
    with recording(recorder):
        executable.run(buffers)
    return recorder.resident.get(id(executable.program))


def beside(fused: Program, unfused: Program) -> list[list[int]]:
    """Return, for each fused kernel, the unfused kernels that do its work."""
    home: dict[int, int] = {}
    for i, kernel in enumerate(fused.kernels):
        for number in kernel.computes:
            home.setdefault(number, i)
    found: list[list[int]] = [[] for _ in fused.kernels]
    for j, kernel in enumerate(unfused.kernels):
        # what a kernel stores comes first; what it has inlined may be elsewhere too
        place = next((home[number] for number in kernel.computes if number in home), None)
        if place is not None:
            found[place].append(j)
    return found
