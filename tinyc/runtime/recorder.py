"""What ran and when: times of kernels, of threads, and of spans of Python, while somebody looks.

Times are nanoseconds of the clock of `time.monotonic_ns`, which generated programs read too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyc.runtime.buffer import ALLOCATOR

if TYPE_CHECKING:
    from tinyc.ir.program import Program


@dataclass(frozen=True)
class Run:
    """One run of a program.

    `times`, i64[kernels + 1], are the start and then the end of each kernel; `shares`,
    i64[n, 4], what threads did of parallel loops: thread, start, end, chunks. `live` are the
    bytes of tensors that were alive, by category.
    """

    program: Program
    thread: int
    times: np.ndarray
    shares: np.ndarray
    live: Mapping[str, int]


@dataclass(frozen=True)
class Span:
    """A stretch of time in Python: its name, a category, and what else is to be shown."""

    name: str
    category: str
    thread: int
    start: int
    end: int
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Recorder:
    """Collects runs and spans of all threads; with ``memory``, what first runs really used."""

    def __init__(self, memory: bool = True) -> None:
        self.memory = memory
        self.runs: list[Run] = []
        self.spans: list[Span] = []
        # bytes that were really there after the first run of each program; None: not known
        self.resident: dict[int, int | None] = {}
        self.programs: dict[int, Program] = {}

    def is_first(self, program: Program) -> bool:
        """Tell whether a program has not run before in this recording, which measures memory."""
        if not self.memory or id(program) in self.programs:
            return False
        self.programs[id(program)] = program
        return True

    def add_run(self, program: Program, times: np.ndarray, shares: np.ndarray) -> None:
        """Book a run that has ended."""
        thread = threading.get_native_id()
        self.runs.append(Run(program, thread, times, shares, ALLOCATOR.categories))


active: Recorder | None = None


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Let a recorder collect what happens in the block; one within another takes its place."""
    global active
    before, active = active, recorder
    try:
        yield recorder
    finally:
        active = before


@contextmanager
def span(name: str, category: str, **arguments: Any) -> Iterator[None]:
    """Record how long a block takes, where somebody records."""
    recorder = active
    if recorder is None:
        yield
        return
    start = time.monotonic_ns()
    try:
        yield
    finally:
        thread = threading.get_native_id()
        end = time.monotonic_ns()
        recorder.spans.append(Span(name, category, thread, start, end, arguments))
