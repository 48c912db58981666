"""The layout of frozen operands of products: panels, as the register tile reads them.

A matrix f[columns, depth] in panels is f[columns / width, depth, width], padded to whole panels.
The product reads it through views that undo this, so for all else it is the same matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from tinyc import state
from tinyc.codegen.panel import kept_width
from tinyc.diagnostics import Remark, RemarkKind
from tinyc.ir import build as b
from tinyc.ir.halves import is_widening
from tinyc.ir.index import Var
from tinyc.ir.node import Node, derived_from, toposort, with_sources
from tinyc.ir.ops import Op, describe
from tinyc.runtime.device import get_device
from tinyc.schedule.stored import base_address

# Fewer columns are no matter of layout.
FEWEST_COLUMNS = 16


def in_panels(
    outputs: Sequence[Node], frozen: Mapping[Node, Sequence[Node]]
) -> tuple[list[Node], list[Remark]]:
    """Return a graph whose products read their frozen operands from panels, where that pays.

    `frozen` has the nodes that depend on frozen memory alone, with that memory. The remarks say of
    each product with such an operand what was chosen, and why.
    """
    new: dict[Node, Node] = {}
    remarks: list[Remark] = []
    for n in toposort(outputs):
        src = [new[s] for s in n.src]
        if n.op is Op.CONTRACT and n not in frozen:
            for place, operand in enumerate(n.src):
                if frozen.get(operand):
                    src[place], remark = _laid_out(n, place)
                    remarks.append(remark)
        new[n] = with_sources(n, tuple(src))
    return [new[n] for n in outputs], remarks


def _laid_out(product: Node, place: int) -> tuple[Node, Remark]:
    """Return a frozen operand as the product had better read it, and what is said of that."""
    operand = product.src[place]
    found = _axes(product, place)
    if found is None:
        why = "its columns are not the last axis of the result"
        return operand, _remark("missed", product, f"{describe(operand)} is read as it is: {why}")
    column, depth = found
    rows = product.size // operand.shape[column]
    width, why = _width(product, operand, column, depth, rows)
    if not width:
        return operand, _remark("missed", product, f"{describe(operand)} is read as it is: {why}")
    matrix = operand.src[0] if is_widening(operand) else operand
    with derived_from(product):
        laid_out = b.cast(_through_panels(matrix, column, depth, width), operand.dtype)
    what = f"{describe(operand)} is packed once and kept, in panels of {width} for {rows} rows"
    size = operand.size // operand.shape[column] * matrix.dtype.itemsize
    terms = {"bytes": -(-operand.shape[column] // width) * width * size}
    return laid_out, _remark("applied", product, what, terms)


def _remark(
    kind: RemarkKind, product: Node, what: str, terms: Mapping[str, int] | None = None
) -> Remark:
    return Remark(kind, "frozen", "contract", what, product.origin, terms or {})


def _axes(product: Node, place: int) -> tuple[int, list[int]] | None:
    """Return (the operand's axis of columns, those along the depth in the order of the other's).

    None where its columns are not the last axis of the result, or there are others beside them.
    """
    labels, other = product.attrs[place], product.attrs[1 - place]
    result = product.attrs[2]
    own = [axis for axis, label in enumerate(labels) if label not in other]
    depth = [labels.index(x) for x in other if x in labels and x not in result]
    if len(own) != 1 or 1 + len(depth) < len(labels) or not depth:
        return None
    return (own[0], depth) if result[-1] == labels[own[0]] else None


def _width(
    product: Node, operand: Node, column: int, depth: Sequence[int], rows: int
) -> tuple[int, str]:
    """Return (how wide the panels of an operand had better be, why there are none if that is 0)."""
    device, columns = state.device_of(product), operand.shape[column]
    target = None if device == "numpy" else get_device(device).machine()
    if target is None or target.threads > 1:
        return 0, f"the device {device} reads no panels"
    if product.dtype.kind != "f" or not product.size or columns < FEWEST_COLUMNS:
        return 0, "panels are for 16 or more columns of floats"
    if rows == 1 and _runs_along(operand, depth):
        return 0, "for one row it lies right, along the depth"
    width = kept_width(rows, columns, product.dtype.itemsize, target)
    return width, f"packing it is little beside the work of {rows} rows"


def _runs_along(operand: Node, depth: Sequence[int]) -> bool:
    """Tell whether neighbours along the depth are neighbours in memory."""
    variables = [Var(f"a{axis}", extent) for axis, extent in enumerate(operand.shape)]
    below = operand.src[0] if is_widening(operand) else operand
    return base_address(below, variables)[1].coeff(variables[depth[-1]]) == 1


def _through_panels(matrix: Node, column: int, depth: Sequence[int], width: int) -> Node:
    """Return a matrix, of any number of axes along the depth, read from panels that are stored."""
    order = (column, *depth)
    columns, deep = matrix.shape[column], [matrix.shape[axis] for axis in depth]
    count = -(-columns // width)
    flat = b.reshape(b.permute(matrix, order), (columns, prod(deep)))
    padded = b.pad(flat, (0, 0), (count * width - columns, 0))
    panels = b.permute(b.reshape(padded, (count, width, prod(deep))), (0, 2, 1))
    stored = b.materialize(panels)
    rows = b.reshape(b.permute(stored, (0, 2, 1)), (count * width, prod(deep)))
    whole = b.reshape(b.slice_(rows, (0, 0), (columns, prod(deep))), (columns, *deep))
    return b.permute(whole, tuple(sorted(range(len(order)), key=order.__getitem__)))
