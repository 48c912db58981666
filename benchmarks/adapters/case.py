"""What an adapter gives the worker for one workload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Case:
    """A prepared workload.

    ``run(n)`` does it n times, each call finished before the next, inputs already in the
    framework's memory. ``step(i)`` (training) does one step on batch ``i % 4`` and returns the loss
    before the update. ``check()`` (all others) returns numpy outputs, or the tokens of a decode.
    """

    run: Callable[[int], Any]
    check: Callable[[], list] | None = None
    step: Callable[[int], float] | None = None


def training_case(one: Callable[[int], Any], value: Callable[[Any], float]) -> Case:
    """Return the case of a training loop whose step on batch i is ``one(i)``.

    ``value`` waits for the loss and returns it as a float.
    """
    position = 0

    def run(n: int) -> None:
        nonlocal position
        for _ in range(n):
            one(position)
            position += 1

    return Case(run, step=lambda i: value(one(i)))


def repeat_add(n: int) -> Callable[[Any, Any], Any]:
    """Return a function that adds its second argument n times to its first."""

    def chain(x: Any, b: Any) -> Any:
        for _ in range(n):
            x = x + b
        return x

    return chain


def as_tuple(value: Any) -> tuple:
    """Return a tuple or list as a tuple and anything else as a tuple of one."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)
