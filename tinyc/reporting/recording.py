"""What ran during a block: which programs, on what, how often and when, for reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tinyc import compiler
from tinyc.compiler import Executable, NativeExecutable
from tinyc.reporting.explanation import realize
from tinyc.runtime.buffer import Buffer


@dataclass
class Recorded:
    """One program that ran: copies of what its first run was given, and how often it ran."""

    executable: NativeExecutable
    buffers: Sequence[Buffer]
    calls: int = 0


class Recording:
    """Programs in the order of their first runs."""

    def __init__(self) -> None:
        self.programs: list[Recorded] = []
        self._known: dict[int, Recorded] = {}

    def note(self, executable: Executable, buffers: Sequence[Buffer]) -> None:
        """Count a run that is about to happen; keep what the first is given.

        Kernels that Python runs have no times that would tell anything.
        """
        if not isinstance(executable, NativeExecutable) or executable.device == "interpret":
            return
        found = self._known.get(id(executable))
        if found is None:
            found = self._known[id(executable)] = Recorded(executable, compiler.copies(buffers))
            self.programs.append(found)
        found.calls += 1

    def busiest(self, most: int) -> Recording:
        """Return the programs that moved most bytes with all their calls, in their order."""
        moved = [found.calls * found.executable.program.bytes_moved for found in self.programs]
        ranked = sorted(range(len(moved)), key=lambda i: -moved[i])
        kept = Recording()
        kept.programs = [self.programs[i] for i in sorted(ranked[:most])]
        return kept


@contextmanager
def record() -> Iterator[Recording]:
    """Record the programs that run in the block, for `collect`.

    Memory of one set of arguments for each program is held, not more, however long the block runs.
    """
    found = Recording()
    with compiler.observing(found.note):
        yield found


def record_call(fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Recording:
    """Call a function once, compute the tensors that it returns, and return what ran.

    Arguments that are not computed yet are computed before: they are not the function's work.
    """
    realize([*args, *kwargs.values()])
    with record() as found:
        realize(fn(*args, **kwargs))
    return found
