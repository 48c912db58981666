"""Watching the stores of interpreted kernels: functions that see each one, and the debugger."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tinyc import config
from tinyc.diagnostics import Origin, format_origin


@dataclass
class Stored:
    """A store that is about to happen: by which kernel and member of it, from which line of yours.

    `element` of `storage` holds `old`, to which `value` is added ("sum"), with which it is compared
    ("max"), or which it replaces (None): `accumulate` says which. `loops` are the values of the
    loop variables, `reads` what the value was computed from.
    """

    kernel: str
    member: str
    origin: Origin | None
    storage: str
    element: int
    value: Any
    old: Any
    accumulate: str | None
    loops: Mapping[str, int]
    reads: Mapping[str, Any]
    stops_again: bool = field(default=False, repr=False)

    @property
    def line(self) -> str:
        """The line of yours that asked for it, such as ``train.py:12``."""
        return format_origin(self.origin)

    def again(self) -> None:
        """Stop at the next store, too: for use at the debugger's prompt."""
        self.stops_again = True

    def __str__(self) -> str:
        before = {None: "=", "sum": f"(is {self.old}) +=", "max": f"(is {self.old}) max="}
        loops = " ".join(f"{name}={value}" for name, value in self.loops.items())
        reads = " ".join(f"{name}={value}" for name, value in self.reads.items())
        what = f"{self.storage}[{self.element}] {before[self.accumulate]} {self.value}"
        more = f"; loops {loops}" * bool(loops) + f"; reads {reads}" * bool(reads)
        return f"{self.kernel} {self.member} {self.line}: {what}{more}"


@dataclass(frozen=True)
class Watcher:
    """A function that is called with each store whose "kernel member file:line" a pattern finds."""

    pattern: re.Pattern[str]
    function: Callable[[Stored], None]

    def wants(self, subject: str) -> bool:
        """Tell whether a store of this description is to be shown."""
        return self.pattern.search(subject) is not None


_watchers: tuple[Watcher, ...] = ()


@contextmanager
def on_store(function: Callable[[Stored], None], where: str = "") -> Iterator[None]:
    """Call ``function(store)`` before each store of the kernels that run interpreted in the block.

    ``where`` is a regular expression that chooses: it is looked for in ``kernel member file:line``,
    as in ``"softmax"``, ``"exp1"`` or ``"train.py:12"``. The function gets a `Stored`; to stop
    where a condition holds it calls ``breakpoint()``. The device must be ``interpret``: other
    devices run no Python. Raises re.error for a pattern that is none.
    """
    global _watchers
    before, _watchers = _watchers, (*_watchers, Watcher(re.compile(where), function))
    try:
        yield
    finally:
        _watchers = before


def wanted() -> bool:
    """Tell whether somebody wants to see stores, which only the device `interpret` shows."""
    return bool(_watchers or config.current().break_at)


def watchers() -> tuple[Watcher, ...]:
    """Those who watch now: to be asked for once for each run of a kernel."""
    where = config.current().break_at
    if not where:
        return _watchers
    return (*_watchers, Watcher(re.compile(where), Stop()))


class Stop:
    """Enters the debugger at the first store that it is shown, and after that where asked to."""

    def __init__(self) -> None:
        self.waits = True

    def __call__(self, store: Stored) -> None:
        """Stop: the local variables here are what is stored and where."""
        if not self.waits:
            return
        kernel, member, line = store.kernel, store.member, store.line  # noqa: F841
        storage, element = store.storage, store.element  # noqa: F841
        value, old, loops, reads = store.value, store.old, store.loops, store.reads  # noqa: F841
        print(f"{store}\n`store.again()` stops at the next store, too", file=sys.stderr)
        breakpoint()
        self.waits = store.stops_again
