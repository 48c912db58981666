"""What ran and when: times of kernels, of threads, and of spans of Python, while somebody looks.

Times are nanoseconds of the clock of `time.monotonic_ns`, which generated programs read too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
    bytes of tensors that were alive, by category. A run that is not `settled` began without its
    pages in memory, since the program's memory was measured then or the run before.
    """

    program: Program
    thread: int
    times: np.ndarray
    shares: np.ndarray
    live: Mapping[str, int]
    settled: bool = True


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
        self._counts: dict[int, int] = {}

    def is_first(self, program: Program) -> bool:
        """Tell whether a program runs for the first time, where memory is to be measured."""
        known = id(program) in self.programs
        self.programs[id(program)] = program
        return self.memory and not known

    def add_run(self, program: Program, times: np.ndarray, shares: np.ndarray) -> None:
        """Book a run that has ended."""
        thread = threading.get_native_id()
        count = self._counts[id(program)] = self._counts.get(id(program), 0) + 1
        settled = not self.memory or count > 2
        self.runs.append(Run(program, thread, times, shares, ALLOCATOR.categories, settled))


active: Recorder | None = None


@contextmanager
def recording(recorder: Recorder | None) -> Iterator[Recorder | None]:
    """Let a recorder collect what happens in the block; one within another takes its place.

    None: nobody does.
    """
    global active
    before, active = active, recorder
    try:
        yield recorder
    finally:
        active = before


class _Open:
    """A span that has begun, and is recorded when its block ends."""

    def __init__(self, recorder: Recorder, name: str, category: str, **arguments: Any) -> None:
        self.recorder = recorder
        self.what = (name, category, threading.get_native_id())
        self.arguments = arguments

    def __enter__(self) -> None:
        self.start = time.monotonic_ns()

    def __exit__(self, *exception: object) -> None:
        end = time.monotonic_ns()
        self.recorder.spans.append(Span(*self.what, self.start, end, self.arguments))


_NOTHING = nullcontext()


def span(name: str, category: str, **arguments: Any) -> AbstractContextManager[None]:
    """Record how long a block takes, where somebody records."""
    recorder = active
    return _NOTHING if recorder is None else _Open(recorder, name, category, **arguments)
