"""The invariants of the Graph IR, checked between passes: a failure is a bug in a pass."""

from __future__ import annotations

from collections.abc import Sequence

from tinyc.diagnostics import VerifyError, format_origin
from tinyc.ir.node import Node, node, toposort
from tinyc.ir.ops import OPS, Op, describe_type
from tinyc.ir.printer import brief, type_text


def verify(outputs: Sequence[Node]) -> None:
    """Check every node that the outputs need; raise VerifyError naming the first that is wrong.

    Each node must have the type that its op infers from its sources, be the one interned node
    of its kind, and store, if it stores, through the only live chain on its buffer.
    """
    order = toposort(outputs)
    for n in order:
        _check_type(n)
        if n.op is Op.CONTRACT:
            _check_labels(n)
        elif n.op is Op.SLICE:
            _check_slice(n)
    _check_state(order)


def _fail(n: Node, what: str) -> VerifyError:
    return VerifyError(f"verify: {what}: {brief(n)} ({format_origin(n.origin)})")


def _check_type(n: Node) -> None:
    try:
        shape, dtype = OPS[n.op].infer(n.src, n.attrs)
    except (ValueError, TypeError, IndexError) as error:
        raise _fail(n, f"the op refuses its sources ({error})") from error
    if (shape, dtype) != (n.shape, n.dtype):
        raise _fail(n, f"type is {type_text(n)}, inferred is {describe_type(shape, dtype)}")
    if node(n.op, n.src, n.attrs) is not n:
        raise _fail(n, "two nodes for one expression")
    if len({s.device for s in n.src if s.device is not None}) > 1:
        raise _fail(n, "sources on several devices")


def _check_labels(n: Node) -> None:
    la, lb, lo = n.attrs
    for labels in (la, lb, lo):
        if len(set(labels)) != len(labels):
            raise _fail(n, "a label twice on one operand")
    for label in {*la, *lb, *lo}:
        if (label in la) + (label in lb) + (label in lo) < 2:
            raise _fail(n, f"label {label} in one operand only")
    extents: dict[int, int] = {}
    for labels, shape in ((la, n.src[0].shape), (lb, n.src[1].shape), (lo, n.shape)):
        for label, extent in zip(labels, shape):
            if extents.setdefault(label, extent) != extent:
                raise _fail(n, f"label {label} has extents {extents[label]} and {extent}")


def _check_slice(n: Node) -> None:
    for start, size, step, extent in zip(*n.attrs, n.src[0].shape):
        if size and not (0 <= start < extent and 0 <= start + (size - 1) * step < extent):
            raise _fail(n, "slice leaves its source")


def _check_state(order: Sequence[Node]) -> None:
    """Stores to a buffer form one chain from its leaf, and only one version of it is read."""
    leaves: dict[int, Node] = {}
    stored: dict[Node, Node] = {}
    for n in order:
        if n.op is Op.BUFFER and leaves.setdefault(n.attrs[0], n) is not n:
            raise _fail(n, "two versions of a buffer in one graph")
        if n.op is not Op.ASSIGN:
            continue
        target = n.src[0]
        if target.op not in (Op.BUFFER, Op.ASSIGN):
            raise _fail(n, "the target of an assign is not a buffer or an assign")
        if stored.setdefault(target, n) is not n:
            raise _fail(n, "two assigns to one version of a buffer")
