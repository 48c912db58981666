"""Whether operations are recorded for differentiation, and what that makes of their operands."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tinyc.ir import build as b
from tinyc.ir.dtype import DType
from tinyc.ir.node import Node
from tinyc.state import CUT, GRAD, PLAIN, Handle

F = TypeVar("F", bound=Callable[..., Any])


class _Recording(threading.local):
    """Are operations recorded in this thread, and in which half are products done, if in one?"""

    on = True
    cast: DType | None = None


recording = _Recording()


class set_grad_enabled:
    """Switch recording on or off, at once and, used with ``with``, until the block ends."""

    def __init__(self, mode: bool) -> None:
        self._before = recording.on
        recording.on = bool(mode)

    def __enter__(self) -> None:
        """Leave things as the constructor made them."""

    def __exit__(self, *exception: object) -> None:
        recording.on = self._before


class _Mode:
    """A context manager and decorator that records or does not."""

    _on: bool

    def __init__(self) -> None:
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(recording.on)
        recording.on = self._on

    def __exit__(self, *exception: object) -> None:
        recording.on = self._before.pop()

    def __call__(self, function: F) -> F:
        kind = type(self)

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with kind():
                return function(*args, **kwargs)

        return inside  # type: ignore[return-value]


class no_grad(_Mode):
    """Do not record operations: ``with no_grad():`` or ``@no_grad()``. Nests; re-entrant."""

    _on = False

    def __new__(cls, function: Any = None) -> Any:
        """Return the context, or, written without parentheses, the decorated function."""
        made = super().__new__(cls)
        if function is None:
            return made
        made._before = []
        return made(function)


class enable_grad(_Mode):
    """Record operations again within ``no_grad``."""

    _on = True


def is_grad_enabled() -> bool:
    """Tell whether operations are recorded in this thread."""
    return recording.on


def operands(handles: Iterable[Handle]) -> tuple[list[Node], int]:
    """Return the nodes an operation is built on, and the mode of its result."""
    handles = list(handles)
    mode = PLAIN
    for handle in handles:
        mode |= handle._mode
    if mode & GRAD and recording.on:
        nodes = [b.detach(h.node) if h._mode == CUT else h.node for h in handles]
        return nodes, GRAD
    return [handle.node for handle in handles], CUT if mode else PLAIN
