"""What ran during a block: which programs, on what, how often and when, for reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tinyc import compiler
from tinyc.compiler import Executable, NativeExecutable
from tinyc.reporting.explanation import realize
from tinyc.runtime.buffer import Buffer
from tinyc.runtime.recorder import Recorder, Run, recording


@dataclass
class Recorded:
    """One program that ran: copies of what its first run was given, and all its runs."""

    executable: NativeExecutable
    buffers: Sequence[Buffer]
    runs: list[Run] = field(default_factory=list)


class Recording:
    """Programs in the order of their first runs, with a ``recorder`` of everything that ran."""

    def __init__(self) -> None:
        self.programs: list[Recorded] = []
        self.recorder = Recorder(memory=False)
        self._known: dict[int, Recorded] = {}

    def note(self, executable: Executable, buffers: Sequence[Buffer]) -> None:
        """Take a run that is about to happen; of the first, what it is given.

        Devices that run no machine code have no kernels whose times could be taken.
        """
        if not isinstance(executable, NativeExecutable) or not executable.on_pointers:
            return
        if id(executable) not in self._known:
            found = Recorded(executable, compiler.copies(buffers))
            self._known[id(executable)] = found
            self.programs.append(found)

    def sort_runs(self) -> None:
        """Give each program its runs."""
        by_program = {id(found.executable.program): found for found in self.programs}
        for run in self.recorder.runs:
            found = by_program.get(id(run.program))
            if found is not None:
                found.runs.append(run)


@contextmanager
def record() -> Iterator[Recording]:
    """Record the programs that run in the block, for `collect`.

    Memory of one set of arguments for each program is held, not more.
    """
    found = Recording()
    try:
        with compiler.observing(found.note), recording(found.recorder):
            yield found
    finally:
        found.sort_runs()


def record_call(fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Recording:
    """Call a function once, compute the tensors that it returns, and return what ran.

    Arguments that are not computed yet are computed before: they are not the function's work.
    """
    realize([*args, *kwargs.values()])
    with record() as found:
        realize(fn(*args, **kwargs))
    return found
