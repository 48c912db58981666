"""f16 and bf16 are for memory: a graph on halves becomes one that computes in f32.

The pass writes out what an op on halves means: its operands are widened, it is done in f32, and its
result is rounded. From here on halves are only moved, widened and rounded, so what comes later
needs to know nothing of them but two casts.
"""
from __future__ import annotations

from collections.abc import Sequence

from tinyc.ir.dtype import DType, encode, f32
from tinyc.ir.evaluate import ARITHMETIC
from tinyc.ir.node import Node, node, toposort, with_sources
from tinyc.ir.ops import Op

VIEWS = (Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.SLICE, Op.WINDOW, Op.PAD)


def widen(outputs: Sequence[Node]) -> tuple[Node, ...]:
    """op(x: half) -> cast(op(cast(x, f32)), half), and every cast of a half by way of f32.

    Contractions read halves as they are: there the cast of an operand is above its views.
    """
    order = toposort(outputs)
    if not any(n.dtype.is_half for n in order):
        return tuple(outputs)
    done: dict[Node, Node] = {}
    for n in order:
        src = tuple([done[s] for s in n.src])
        done[n] = widened(n, src)
    return tuple([done[n] for n in outputs])


def widened(n: Node, src: tuple[Node, ...]) -> Node:
    """The node on its new sources, without arithmetic on halves."""
    if n.op is Op.CAST:
        return between(src[0], n)
    if n.op is Op.IOTA and n.dtype.is_half:
        return cast(node(Op.IOTA, (), (n.attrs[0], f32), like=n), n.dtype, n)
    if n.op not in ARITHMETIC:
        return with_sources(n, src)
    single = tuple([single_of(s, n) for s in src])
    if n.op is Op.CONTRACT:
        single = tuple([cast_last(s, n) for s in single])
    if single == n.src:
        return n
    return cast(node(n.op, single, n.attrs, like=n), n.dtype, n)


def between(x: Node, n: Node) -> Node:
    """A cast of x; between a half and what is not f32 it is two."""
    halves = x.dtype.is_half or n.dtype.is_half
    return cast(cast(x, f32, n), n.dtype, n) if halves else with_sources(n, (x,))


def cast(x: Node, dtype: DType, like: Node) -> Node:
    """x in another dtype, if it has another one."""
    return x if x.dtype is dtype else node(Op.CAST, (x,), (dtype,), like=like)


def single_of(x: Node, like: Node) -> Node:
    """x as f32, if it is of halves; a constant as one."""
    if not x.dtype.is_half:
        return x
    if x.op is Op.CONST:
        return node(Op.CONST, (), (f32, encode(x.value, f32)), like=like)
    if x.op is Op.EXPAND and x.src[0].op is Op.CONST:
        return node(Op.EXPAND, (single_of(x.src[0], like),), x.attrs, like=like)
    return cast(x, f32, like)


def cast_last(x: Node, like: Node) -> Node:
    """views(cast(half)) -> cast(views(half))"""
    views: list[Node] = []
    below = x
    while below.op in VIEWS:
        views.append(below)
        below = below.src[0]
    if not views or not is_widening(below):
        return x
    half = below.src[0]
    for view in reversed(views):
        half = with_sources(view, (half,))
    return cast(half, f32, like)


def is_widening(n: Node) -> bool:
    """True for a half as f32, which costs next to nothing: nobody stores it."""
    return n.op is Op.CAST and n.dtype is f32 and n.src[0].dtype.is_half


def as_stored(n: Node) -> Node:
    """The half that a node widens; else the node."""
    return n.src[0] if is_widening(n) else n
