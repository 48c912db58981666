"""TINYC_CHECK: compares what a compiled program computed with what numpy's evaluator says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tinyc.diagnostics import VerifyError, format_origin
from tinyc.ir.dtype import DType, from_numpy, numbers
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node, toposort
from tinyc.ir.ops import Op

# Relative to the values, for each term of the longest reduction's square root.
TOLERANCE = {"f16": 2e-3, "bf16": 1.6e-2, "f32": 1e-5, "f64": 1e-12}


def expected(outputs: Sequence[Node], memory: Mapping[int, np.ndarray]) -> list[np.ndarray]:
    """Return the outputs as the evaluator computes them, from memory by the uid of buffers."""
    return evaluate(outputs, memory)


def compare(outputs: Sequence[Node], wanted: list[np.ndarray], found: list[np.ndarray]) -> None:
    """Raise VerifyError where a program's outputs are not equal by the contract on numbers."""
    for node, a, b in zip(outputs, wanted, found, strict=True):
        problem = difference(a, b, tolerance(outputs, node.dtype))
        if problem:
            where = format_origin(node.origin)
            raise VerifyError(f"{node.op.value} (at {where}): program and numpy differ: {problem}")


def tolerance(outputs: Sequence[Node], dtype: DType) -> float:
    """Return by how much values of a dtype in the program of a graph may differ, relative to the
    largest: where halves are rounded on the way, by what that may come to."""
    if not dtype.is_float:
        return 0.0
    halves = {node.dtype for node in toposort(outputs) if node.dtype.is_half}
    return max(TOLERANCE[d.name] for d in (dtype, *halves)) * math.sqrt(longest_reduction(outputs))


def difference(wanted: np.ndarray, found: np.ndarray, tolerance: float) -> str:
    """Say where two arrays differ by more than a tolerance; nothing if they do not."""
    wanted, found = (numbers(x, from_numpy(x.dtype)) for x in (wanted, found))
    if tolerance:
        size = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))
        with np.errstate(invalid="ignore"):
            near = np.abs(wanted - found) <= tolerance * size
        finite = np.isfinite(wanted) & np.isfinite(found)
        equal = finite & near | (wanted == found) | (np.isnan(wanted) & np.isnan(found))
    else:
        equal = wanted == found
    if equal.all():
        return ""
    index = tuple(int(i) for i in np.argwhere(~equal)[0])
    return f"{wanted[index]} expected, {found[index]} computed at {list(index)}"


def longest_reduction(outputs: Sequence[Node]) -> int:
    """Return the largest number of terms that any node of the graph adds up."""
    longest = 1
    for node in toposort(outputs):
        if node.op is Op.REDUCE:
            longest = max(longest, node.src[0].size // max(node.size, 1))
        elif node.op is Op.CONTRACT:
            la, _, lo = node.attrs
            extents = [d for label, d in zip(la, node.src[0].shape, strict=True) if label not in lo]
            longest = max(longest, math.prod(extents))
        elif node.op in (Op.FOLD, Op.SCATTER_ADD):
            longest = max(longest, node.src[0].size // max(node.size, 1))
    return longest
