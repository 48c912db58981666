"""Ask a stored value instead of what it was made from: fewer arrays outlive the forward pass."""
from __future__ import annotations

from collections.abc import Sequence

from tinyc.ir import build as b
from tinyc.ir.node import Node, node, toposort, with_sources
from tinyc.ir.ops import Op


def reuse(outputs: Sequence[Node]) -> tuple[Node, ...]:
    """Let the gradient of relu test relu's result.

    y = where(x <= 0, 0, x); f(x <= 0)  ->  y = where(x <= 0, 0, x); f(y <= 0)

    Exact: both conditions are true where x <= 0 and false where x > 0 or NaN.
    """
    results = {y.src[0]: y for y in toposort(outputs) if is_relu(y)}
    if not results:
        return tuple(outputs)

    done: dict[Node, Node] = {}
    stack = list(outputs)
    while stack:
        n = stack[-1]
        needs = [results[s] if asks(n, s, results) else s for s in n.src]
        waiting = [s for s in needs if s not in done]
        if n in done or not waiting:
            stack.pop()
            if n not in done:
                done[n] = with_sources(n, tuple(
                    tested(done[s], n) if s is not old else done[s]
                    for s, old in zip(needs, n.src)))
        stack.extend(waiting if n not in done else ())
    return tuple(done[n] for n in outputs)


def asks(n: Node, cond: Node, results: dict[Node, Node]) -> bool:
    """True if a node uses a relu's condition and is not that relu."""
    return cond in results and results[cond] is not n


def tested(y: Node, like: Node) -> Node:
    """y <= 0, as a node."""
    zero = node(Op.EXPAND, (b.const(0, y.dtype),), (y.shape, ()), like=like) if y.shape else (
        b.const(0, y.dtype))
    less = node(Op.LT, (y, zero), like=like)
    return node(Op.OR, (less, node(Op.EQ, (y, zero), like=like)), like=like)


def is_relu(n: Node) -> bool:
    """True for where(x <= 0, 0, x)."""
    if n.op is not Op.WHERE or not is_zero(n.src[1]):
        return False
    cond, _, x = n.src
    if cond.op is not Op.OR:
        return False
    tests = {s.op for s in cond.src}
    return tests == {Op.LT, Op.EQ} and all(
        s.src[0] is x and is_zero(s.src[1]) for s in cond.src)


def is_zero(n: Node) -> bool:
    """True for the constant 0, in any shape."""
    while n.op is Op.EXPAND:
        n = n.src[0]
    return n.op is Op.CONST and n.value == 0
