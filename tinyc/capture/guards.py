"""What a captured function reads besides its arguments: variables of closures and modules."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

_ABSENT = object()
_VALUES = (bool, int, float, str, bytes, type(None), tuple)


class Guards:
    """The variables that a function reads, by closure and by module, and what they held.

    Functions among them are followed, except tinyc's own. A number or string is compared by value,
    anything else by identity: what changes inside an object is not seen here.
    """

    def __init__(self, function: Any) -> None:
        self._cells: list[tuple[str, Any, Any]] = []
        self._globals: list[tuple[str, dict[str, Any], Any]] = []
        self._attributes: list[tuple[str, dict[str, Any], Any]] = []
        self._follow(function, set())

    def _follow(self, function: Any, seen: set[int]) -> None:
        owner = getattr(function, "__self__", None)
        if owner is not None and not hasattr(owner, "_parameters"):
            held = getattr(owner, "__dict__", {})
            self._attributes += [
                (name, held, value) for name, value in held.items() if type(value) in _VALUES
            ]
        for module in function.modules() if hasattr(function, "modules") else ():
            self._follow(type(module).forward, seen)
        function = getattr(function, "__func__", function)
        if not isinstance(function, FunctionType) or id(function) in seen:
            return
        seen.add(id(function))
        home = function.__module__ or ""  # None for what exec has made
        if home.partition(".")[0] == "tinyc":
            return
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            value = _content(cell)
            self._cells.append((name, cell, value))
            self._follow(value, seen)
        for name in dict.fromkeys(_global_names(function.__code__)):
            if name in function.__globals__:
                value = function.__globals__[name]
                self._globals.append((name, function.__globals__, value))
                self._follow(value, seen)

    def hold(self) -> bool:
        """Tell whether all variables still hold what they held."""
        for name, names, value in self._globals:
            now = names.get(name)
            if now is not value and not _equal(now, value):
                return False
        for _, cell, value in self._cells:
            now = _content(cell)
            if now is not value and not _equal(now, value):
                return False
        for name, names, value in self._attributes:
            now = names.get(name)
            if now is not value and not _equal(now, value):
                return False
        return True

    def places(self) -> list[tuple[Any, str, Any]]:
        """Return (dictionary or cell, name, value) of each variable."""
        named = [(names, name, value) for name, names, value in self._globals + self._attributes]
        return named + [(cell, name, value) for name, cell, value in self._cells]

    def change(self) -> str:
        """Return in words which variable has changed, or nothing."""
        found = [(name, names.get(name, _ABSENT), v) for name, names, v in self._globals]
        found += [(name, _content(cell), v) for name, cell, v in self._cells]
        found += [
            (f"self.{name}", names.get(name, _ABSENT), v) for name, names, v in self._attributes
        ]
        for name, now, value in found:
            if now is not value and not _equal(now, value):
                if type(now) in _VALUES and type(value) in _VALUES:
                    return f"the variable {name} changed from {value!r} to {now!r}"
                return f"the variable {name} refers to another object"
        return ""


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _ABSENT


def _equal(now: Any, value: Any) -> bool:
    kind = type(value)
    if type(now) is not kind or kind not in _VALUES:
        return False
    if kind is tuple:
        return len(now) == len(value) and all(a is b or _equal(a, b) for a, b in zip(now, value))
    return now == value


def _global_names(code: CodeType) -> Iterator[str]:
    """Yield the names of module variables that code, or a function made in it, reads."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)
