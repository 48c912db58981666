"""What tinyc tells its user: error classes, remarks about decisions, and DEBUG lines.

Remarks are only collected here; ``tinyc.reporting`` turns them into reports.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, Literal, TextIO

from tinyc import config

Origin = tuple[str, int]
Term = int | float | str | bool | None

UNKNOWN: Origin = ("<unknown>", 0)


class TinycError(Exception):
    """Base class of the errors that tinyc raises on purpose."""


class ShapeError(TinycError, ValueError):
    """Shapes that do not fit an operation."""


class DTypeError(TinycError, TypeError):
    """A dtype, or a Python value, that an operation does not take."""


class AxisError(TinycError, IndexError, ValueError):
    """An axis that a tensor does not have, or that is named twice."""


class BoundsError(TinycError, IndexError):
    """A data-dependent index (or label) outside its bounds, found while a program ran.

    `overwritten` are the addresses of the memory that the program may have changed before.
    """

    overwritten: frozenset[int] = frozenset()


class VerifyError(TinycError, RuntimeError):
    """An invariant of an intermediate representation is broken: a bug in a pass."""


class ParseError(TinycError, ValueError):
    """Text that is not the IR it should be; it names file and line and what was expected."""


class ScheduleError(TinycError, ValueError):
    """A schedule primitive was asked for something illegal; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class FusionError(TinycError, ValueError):
    """What `tinyc.fuse` asks for can't be one kernel.

    `reasons` are the refusals, as remarks with rule, numbers and remedy, and `kernels` the members
    of each kernel that it would take.
    """

    def __init__(self, message: str, reasons: tuple[Remark, ...] = (),
                 kernels: tuple[tuple[str, ...], ...] = ()) -> None:
        super().__init__(message)
        self.reasons = reasons
        self.kernels = kernels


class CompileError(TinycError, RuntimeError):
    """The compiler refused generated source, which is kept for reading."""


class CompilerNotFound(CompileError):
    """No working compiler for a device's source language."""


class StaleError(TinycError, RuntimeError):
    """A tensor whose value was overwritten in place before it was computed."""


class TracingError(TinycError, RuntimeError):
    """Something that has no meaning while a function is being captured by ``jit``."""


class TinycWarning(UserWarning):
    """Category of tinyc's warnings."""


_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
# file name -> is it part of tinyc; a frame's file name is the same object each time, so the
# lookup costs a pointer comparison.
_inside: dict[str, bool] = {}


def caller_origin(depth: int = 1) -> Origin:
    """Return (file, line) of the innermost frame outside the tinyc package.

    ``depth`` frames are skipped without a look; the cost is about 0.3 us and 30 ns a frame.
    """
    frame: FrameType | None = sys._getframe(depth)
    inside = _inside
    while frame is not None:
        name = frame.f_code.co_filename
        known = inside.get(name)
        if known is None:
            known = inside[name] = _is_inside(name)
        if not known:
            return _line_of(frame)
        frame = frame.f_back
    return UNKNOWN


# id of a code object -> (it, held so that the id stays its own; instruction -> origin). Looking a
# line up takes Python time proportional to the length of the function.
_lines: dict[int, tuple[CodeType, dict[int, Origin]]] = {}


def _line_of(frame: FrameType) -> Origin:
    code = frame.f_code
    entry = _lines.get(id(code))
    if entry is None:
        entry = _lines[id(code)] = (code, {})
    found = entry[1].get(frame.f_lasti)
    if found is None:
        found = entry[1][frame.f_lasti] = (code.co_filename, frame.f_lineno)
    return found


def _is_inside(filename: str) -> bool:
    path = os.path.abspath(filename)
    # What the console command computes is a use of the package. So are the models: their lines say
    # more of a program than the one line that calls a model.
    users = tuple(_PACKAGE + name + os.sep for name in ("commands", "models"))
    own = path.startswith(_PACKAGE) and not path.startswith(users)
    return own and not filename.startswith("<")


def format_origin(origin: Origin | None) -> str:
    """Return ``train.py:12`` for an origin, and ``?`` for an unknown one."""
    if origin is None or origin == UNKNOWN:
        return "?"
    return f"{os.path.basename(origin[0])}:{origin[1]}"


RemarkKind = Literal["applied", "missed", "analysis"]


@dataclass(frozen=True)
class Remark:
    """One decision of the compiler: what was done or not, about what, where, and why.

    ``terms`` are the numbers behind it, by name. Of something that was not done, ``rule`` names the
    clause that was not met, ``remedy`` says what would change it, and ``about`` is the other member
    that it concerns. Remarks are plain data: ``to_dict`` gives what JSON can hold and ``from_dict``
    reads it back.
    """

    kind: RemarkKind
    pass_name: str
    subject: str
    message: str
    origin: Origin | None = None
    terms: Mapping[str, Term] = field(default_factory=dict)
    rule: str = ""
    remedy: str = ""
    about: str = ""

    def __str__(self) -> str:
        return f"{self.pass_name}: {self.kind}: {self.subject}: {self.reason()}"

    def reason(self) -> str:
        """Return the message with the user's line and the numbers behind it."""
        terms = ", ".join(f"{name} {_format_term(value)}" for name, value in self.terms.items())
        where = f" [{format_origin(self.origin)}]" if self.origin else ""
        return self.message + where + (f" ({terms})" if terms else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the remark as a dictionary of plain values."""
        return {**vars(self), "terms": dict(self.terms)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Remark:
        """Return the remark that ``to_dict`` gave, also after a trip through JSON."""
        origin = data["origin"]
        return Remark(**{**data, "origin": tuple(origin) if origin is not None else None})


def _format_term(value: Term) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# A context variable, so that threads which compile at once do not see each other's remarks.
_collectors: ContextVar[tuple[list[Remark], ...]] = ContextVar("collectors", default=())


@contextmanager
def collect() -> Iterator[list[Remark]]:
    """Collect the remarks emitted in this thread during the block into the list it yields."""
    remarks: list[Remark] = []
    token = _collectors.set((*_collectors.get(), remarks))
    try:
        yield remarks
    finally:
        _collectors.reset(token)


def emit(remark: Remark, level: int = 3) -> None:
    """Hand a remark to the collectors, and print it where DEBUG is at least ``level``."""
    collected(remark)
    if config.current().debug.level >= level:
        colour = {"applied": "green", "missed": "yellow", "analysis": "cyan"}[remark.kind]
        debug_line(level, str(remark), pass_name=remark.pass_name, colour=colour)


def collected(remark: Remark) -> None:
    """Hand a remark to the collectors; who calls this prints, if at all, a text of many remarks."""
    for remarks in _collectors.get():
        remarks.append(remark)


_COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "cyan": 36, "grey": 90}


def paint(text: str, colour: str, stream: TextIO) -> str:
    """Return the text coloured where the stream is a terminal, and as it is elsewhere."""
    if "NO_COLOR" in os.environ or not stream.isatty():
        return text
    return f"\033[{_COLOURS[colour]}m{text}\033[0m"


def debug_line(
    level: int,
    text: str,
    *,
    kernel: str | None = None,
    pass_name: str | None = None,
    colour: str = "",
) -> None:
    """Print text on standard error where DEBUG asks for this level, kernel and pass."""
    if config.current().debug.shows(level, kernel, pass_name):
        print_debug(text, colour)


def print_debug(text: str, colour: str = "") -> None:
    """Print text on standard error: its first line in a colour, unified diffs in the usual ones."""
    first, *rest = text.split("\n")
    rest = [_painted_difference(line) for line in rest] if "\n--- " in text else rest
    first = paint(first, colour, sys.stderr) if colour else first
    print("\n".join([first, *rest]), file=sys.stderr)


def _painted_difference(line: str) -> str:
    colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
    return paint(line, colour, sys.stderr) if colour else line


_warned: set[str] = set()


def warn_once(key: str, message: str) -> None:
    """Warn, on the user's line, the first time that this key is given in the process."""
    if key not in _warned:
        _warned.add(key)
        filename, line = caller_origin(2)
        warnings.warn_explicit(message, TinycWarning, filename, line)
