"""Graphs as text that is Python: one line a node, and reading it back gives the same nodes."""

from __future__ import annotations

import ast
import keyword
import math
from collections.abc import Sequence
from typing import Any

from tinyc.diagnostics import format_origin
from tinyc.ir.dtype import DTYPES, DType, encode
from tinyc.ir.node import Node, node, toposort
from tinyc.ir.ops import Op, describe_type

# Op.AND is written and_, for Python's sake.
_NAMES = {op: op.name.lower() + "_" * keyword.iskeyword(op.name.lower()) for op in Op}
_OPS = {name: op for op, name in _NAMES.items()}
_VALUES: dict[str, Any] = {**DTYPES, "inf": math.inf, "nan": math.nan}


def type_text(n: Node) -> str:
    """Return a node's type on one line, such as ``f32[3,4]``."""
    return describe_type(n.shape, n.dtype)


def brief(n: Node) -> str:
    """Return a node and the kinds of its sources, such as ``add(mul f32[3], exp f32[3])``."""
    sources = [f"{_NAMES[s.op]} {type_text(s)}" for s in n.src]
    return f"{_NAMES[n.op]}({', '.join(sources + _attributes(n))})"


def to_text(outputs: Sequence[Node]) -> str:
    """Return the graph as Python, a line for each node, sources first.

    >>> print(to_text([build.add(x, 1)]))  # doctest: +SKIP
    v0 = buffer(7, 0, (3,), f32, "cpu")  # f32[3] train.py:11
    v1 = const(f32, 1.0)                 # f32[] train.py:12
    v2 = expand(v1, (3,), ())            # f32[3] train.py:12
    v3 = add(v0, v2)                     # f32[3] train.py:12
    outputs = (v3,)
    """
    names: dict[Node, str] = {}
    lines: list[tuple[str, Node]] = []
    for n in toposort(outputs):
        names[n] = name = f"v{len(names)}"
        arguments = [names[s] for s in n.src] + _attributes(n)
        lines.append((f"{name} = {_NAMES[n.op]}({', '.join(arguments)})", n))
    width = min(max((len(code) for code, _ in lines), default=0), 60)
    text = [f"{code:<{width}}  # {type_text(n)} {format_origin(n.origin)}" for code, n in lines]
    results = "".join(names[out] + ", " for out in outputs)
    return "\n".join([*text, f"outputs = ({results.rstrip()})", ""])


def _attributes(n: Node) -> list[str]:
    if n.op is Op.CONST:
        return _constant(n)
    return [_literal(value) for value in n.attrs]


def _constant(n: Node) -> list[str]:
    """The shortest text of the value where that gives the same bits, the bits for other NaNs."""
    dtype, bits = n.attrs
    value = str(dtype.np.type(n.value))
    read = float(value) if dtype.is_float else n.value
    return [repr(dtype), value if encode(read, dtype) == bits else f"bits={bits:#x}"]


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        items = [_literal(item) for item in value]
        return f"({', '.join(items)}{',' * (len(items) == 1)})"
    return repr(value)


def eval_text(text: str) -> tuple[Node, ...]:
    """Return the outputs of a graph that ``to_text`` wrote; the very same nodes while they live.

    Only assignments of op calls are understood, so text from elsewhere cannot run anything.
    Raises ValueError, with the line, for all else.
    """
    scope = dict(_VALUES)
    for statement in ast.parse(text).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                scope[name] = _value(value, scope)
            case _:
                raise _unexpected(statement)
    outputs = scope.get("outputs")
    if not isinstance(outputs, tuple):
        raise ValueError("graph text: no line 'outputs = (...)'")
    return outputs


def _value(tree: ast.expr, scope: dict[str, Any]) -> Any:
    """The value of an expression; nesting is that of attributes, so recursion is shallow."""
    match tree:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in scope:
            return scope[name]
        case ast.Tuple(elts=items):
            return tuple(_value(item, scope) for item in items)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, scope)
        case ast.Call(func=ast.Name(id="const"), args=[dtype, *value], keywords=keywords):
            return _read_constant(
                _value(dtype, scope),
                [_value(item, scope) for item in value],
                {word.arg: _value(word.value, scope) for word in keywords},
            )
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _OPS:
            values = [_value(arg, scope) for arg in args]
            sources = tuple(value for value in values if isinstance(value, Node))
            return node(_OPS[name], sources, tuple(values[len(sources) :]))
    raise _unexpected(tree)


def _read_constant(dtype: DType, value: list[Any], bits: dict[str | None, int]) -> Node:
    return node(Op.CONST, (), (dtype, encode(value[0], dtype) if value else bits["bits"]))


def _unexpected(tree: ast.stmt | ast.expr) -> ValueError:
    return ValueError(f"graph text, line {tree.lineno}: cannot read {ast.unparse(tree)!r}")
