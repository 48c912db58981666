"""Contractions as plain loops: the form that any recipe can divide among threads."""
from __future__ import annotations

from dataclasses import replace

from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Const,
    Contraction,
    For,
    Stmt,
    Storage,
    Store,
    converted,
    replace_storage,
    transform,
)
from tinyc.ir.ops import Op

ZERO = Affine.const_of(0)


def expand_contractions(body: tuple[Stmt, ...], chunks: int) -> tuple[Stmt, ...]:
    """Statements without contractions; the chunks divide the outermost loop of one at the root."""
    out: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, Contraction):
            found = in_loops(stmt)
            out += divided(found, chunks) if chunks > 1 else found
        else:
            out += transform((stmt,), lambda s: in_loops(s) if isinstance(s, Contraction) else (s,))
    return tuple(out)


def divided(body: tuple[Stmt, ...], chunks: int) -> tuple[Stmt, ...]:
    """The loop of a contraction at the root as one that chunks divide."""
    (loop,) = body
    assert isinstance(loop, For) and chunks > 1
    return (replace(loop, kind="chunk"),)


def in_loops(c: Contraction) -> tuple[Stmt, ...]:
    """for rows: for cols: r = 0; for depth: r += a * b; then what is done with the sum."""
    sum_ = Storage(c.tile.name, 1, c.tile.dtype, "register")
    terms = tuple(converted(x, sum_.dtype) for x in (c.a, c.b))
    each: tuple[Stmt, ...] = (
        Store(sum_, ZERO, Apply(Op.MUL, terms, sum_.dtype), "sum", c.note),)
    each = around(each, c.depth, c)
    start = Store(sum_, ZERO, Const(sum_.dtype.np.type(0).item(), sum_.dtype), None, c.note)
    rest = replace_storage(c.body, {c.tile: sum_})
    return around((Alloc(sum_), start, *each, *rest), (*c.rows, *c.cols), c)


def around(body: tuple[Stmt, ...], variables: tuple[Var, ...],
           c: Contraction) -> tuple[Stmt, ...]:
    """Loops over variables of a contraction, each as far as its limit."""
    for v in reversed(variables):
        body = (For(v, body, "serial", c.limits.get(v)),)
    return body
