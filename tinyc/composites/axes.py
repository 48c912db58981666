"""Axis arguments as users write them, made into plain axes counted from the front."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from operator import index as integer

from tinyc.diagnostics import AxisError
from tinyc.ir import build as b
from tinyc.ir.node import Node
from tinyc.ir.ops import fail

Axes = int | Sequence[int] | None


def one_axis(name: str, x: Node, axis: int, extra: int = 0) -> int:
    """Return the axis counted from the front; `extra` axes may lie beyond those of x.

    AxisError when there is no such axis. A 0-d node takes 0 and -1, as PyTorch has it.
    """
    ndim = max(len(x.shape) + extra, 1)
    axis = integer(axis)
    if not -ndim <= axis < ndim:
        rule = f"axes run from {-ndim} to {ndim - 1}"
        fail(AxisError, name, f"there is no axis {axis}", (x,), rule)
    return axis + ndim if axis < 0 else axis


def many_axes(name: str, x: Node, axis: Axes) -> tuple[int, ...]:
    """Return the axes ascending; None means all. AxisError when one is absent or named twice."""
    if axis is not None and not isinstance(axis, Sequence):
        axis = one_axis(name, x, axis)
        return (axis,) if x.shape else ()
    return b.reduced_axes(name, x, axis)


def count(x: Node, axes: Sequence[int]) -> int:
    """Return the number of elements along these axes together."""
    return prod([x.shape[axis] for axis in axes])


def along(x: Node, vector: Node, axis: int) -> Node:
    """Return a vector repeated over all other axes of x."""
    return b.expand_axes(vector, x.shape, (axis,))
