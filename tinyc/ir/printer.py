"""Graphs as text that is Python: one line a node, and reading it back gives the same nodes."""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from typing import Any

from tinyc.diagnostics import format_origin
from tinyc.ir.dtype import encode
from tinyc.ir.node import Node, canonical_key, toposort
from tinyc.ir.ops import Op, describe_type

# Op.AND is written and_, for Python's sake.
NAMES = {op: op.name.lower() + "_" * keyword.iskeyword(op.name.lower()) for op in Op}


def type_text(n: Node) -> str:
    """Return a node's type on one line, such as ``f32[3,4]``."""
    return describe_type(n.shape, n.dtype)


def brief(n: Node) -> str:
    """Return a node and the kinds of its sources, such as ``add(mul f32[3], exp f32[3])``."""
    sources = [f"{NAMES[s.op]} {type_text(s)}" for s in n.src]
    return f"{NAMES[n.op]}({', '.join(sources + _attributes(n))})"


def to_text(outputs: Sequence[Node], names: Mapping[Node, str] | None = None) -> str:
    """Return the graph as Python, a line for each node, sources first.

    What `names` does not name is numbered in that order. Arguments of a program are marked.

    >>> print(to_text([build.add(x, 1)]))  # doctest: +SKIP
    v0 = buffer(7, 0, (3,), f32, "cpu")  # f32[3] train.py:11 (in0)
    v1 = const(f32, 1.0)                 # f32[] train.py:12
    v2 = expand(v1, (3,), ())            # f32[3] train.py:12
    v3 = add(v0, v2)                     # f32[3] train.py:12
    outputs = (v3,)
    """
    names = names or number(outputs)
    lines = []
    for n in toposort(outputs):
        arguments = [names[s] for s in n.src] + _attributes(n)
        lines.append((f"{names[n]} = {NAMES[n.op]}({', '.join(arguments)})", n))
    width = min(max((len(code) for code, _ in lines), default=0), 60)
    marks = {leaf: f" (in{i})" for i, leaf in enumerate(canonical_key(outputs)[1])}
    text = [f"{code:<{width}}  # {type_text(n)} {format_origin(n.origin)}{marks.get(n, '')}"
            for code, n in lines]  # fmt: skip
    results = "".join(names[out] + ", " for out in outputs)
    return "\n".join([*text, f"outputs = ({results.rstrip()})", ""])


def number(outputs: Sequence[Node]) -> dict[Node, str]:
    """Return names for all nodes of a graph, v0, v1 and so on, sources first."""
    return {n: f"v{i}" for i, n in enumerate(toposort(outputs))}


def carry_names(
    names: Mapping[Node, str], before: Sequence[Node], after: Sequence[Node]
) -> dict[Node, str]:
    """Return names for a rewritten graph under which as little as possible differs in text.

    A node that stayed keeps its name. So does one that does the same to rewritten sources, and
    whatever else is new gets the next number.
    """
    order = toposort(after)
    kept = {n: names[n] for n in order if n in names}
    free = {n for n in names if n not in kept}
    pairs = list(zip(before, after, strict=True))
    seen = set()
    while pairs:
        old, new = pairs.pop()
        if (old, new) in seen or old is new:
            continue
        seen.add((old, new))
        if (old.op, old.attrs, len(old.src)) == (new.op, new.attrs, len(new.src)):
            if old in free and new not in kept:
                free.remove(old)
                kept[new] = names[old]
            pairs += zip(old.src, new.src, strict=True)
    fresh = 1 + max((int(name[1:]) for name in names.values()), default=-1)
    for n in order:
        if n not in kept:
            kept[n] = f"v{fresh}"
            fresh += 1
    return kept


def _attributes(n: Node) -> list[str]:
    if n.op is Op.CONST:
        return _constant(n)
    return [_literal(value) for value in n.attrs]


def _constant(n: Node) -> list[str]:
    """The shortest text of the value where that gives the same bits, the bits for other NaNs."""
    dtype, bits = n.attrs
    value = str(dtype.wide.np.type(n.value))
    read = float(value) if dtype.is_float else n.value
    return [repr(dtype), value if encode(read, dtype) == bits else f"bits={bits:#x}"]


def _literal(value: Any) -> str:
    if isinstance(value, str):
        plain = value.isprintable() and not set(value) & {'"', "\\"}
        return f'"{value}"' if plain else repr(value)
    if isinstance(value, tuple):
        items = [_literal(item) for item in value]
        return f"({', '.join(items)}{',' * (len(items) == 1)})"
    return repr(value)
