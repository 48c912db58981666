"""Composites on halves: computed in f32 from one end to the other, and rounded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from tinyc.ir import build as b
from tinyc.ir.dtype import DType
from tinyc.ir.node import Node

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result", bound=Node | tuple[Node, ...])


def single(x: Any) -> Any:
    """Return halves as f32, anything else as it is."""
    return b.cast(x, x.dtype.wide) if isinstance(x, Node) else x


def in_single(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a composite compute halves in f32: op by op each step would be rounded.

    The result has the dtype of the float arguments; where they differ, f32 or wider.
    """

    @wraps(function)
    def computed(*args: Parameters.args, **options: Parameters.kwargs) -> Result:
        nodes = [x for x in (*args, *options.values()) if isinstance(x, Node)]
        floats = {x.dtype for x in nodes if x.dtype.is_float}
        if not any(dtype.is_half for dtype in floats):
            return function(*args, **options)
        wide = {name: single(x) for name, x in options.items()}
        found = function(*map(single, args), **wide)
        return rounded(found, floats.pop()) if len(floats) == 1 else found

    return computed


def rounded(found: Any, dtype: DType) -> Any:
    """Return one or several nodes as halves."""
    if isinstance(found, tuple):
        return tuple([b.cast(x, dtype) for x in found])
    return b.cast(found, dtype)
