"""Reads graphs that ``printer.to_text`` wrote. A closed grammar over Python's: nothing is run.

Text is a line for each node and one for the outputs::

    v0 = buffer(0, 0, (3,), f32, "cpu")  # f32[3] train.py:11
    v1 = exp(v0)                         # f32[3] train.py:12
    outputs = (v1,)

The comment gives the user's line back to the node; the type in it is inferred anew.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tinyc.diagnostics import UNKNOWN, Origin, ParseError, TinycError
from tinyc.ir.dtype import DTYPES, DType, encode
from tinyc.ir.node import FORWARD, Node, node
from tinyc.ir.ops import OPS, Op
from tinyc.ir.printer import NAMES

_OPS = {name: op for op, name in NAMES.items()}
_FLOATS = {"inf": math.inf, "nan": math.nan}
_REGION = "starts: ints, sizes: ints, steps: ints"
# The attributes of each op that has some, in order: name and kind.
_ATTRIBUTES = {
    Op.BUFFER: "uid: int, version: int, shape: sizes, dtype: dtype, device: text",
    Op.CONST: "dtype: dtype, value: number",
    Op.IOTA: "n: int, dtype: dtype",
    Op.VAR: "name: text, lo: int, hi: int",
    Op.CAST: "dtype: dtype",
    Op.BITCAST: "dtype: dtype",
    Op.RESHAPE: "shape: sizes",
    Op.PERMUTE: "perm: ints",
    Op.EXPAND: "shape: sizes, axes: ints",
    Op.SLICE: _REGION,
    Op.PAD: "lo: ints, hi: ints, interior: ints",
    Op.WINDOW: "axis: int, size: int, stride: int, dilation: int",
    Op.CAT: "axis: int",
    Op.REDUCE: "kind: text, axes: ints",
    Op.CONTRACT: "la: ints, lb: ints, lo: ints",
    Op.FOLD: "axis: int, n: int, stride: int, dilation: int",
    Op.SCATTER_ADD: "axis: int, size: int",
    Op.GATHER: "axis: int",
    Op.ASSIGN: _REGION,
    Op.COPY: "device: text",
    Op.TOGETHER: "results: int",
}
_WORDS = {
    "int": "an integer",
    "ints": "a tuple of integers, such as (0, 2)",
    "sizes": "a tuple of sizes, such as (64, 100)",
    "dtype": "a dtype: " + ", ".join(DTYPES),
    "text": 'a text, such as "sum"',
}
LONGEST_SHOWN = 100
_PLACE = re.compile(r"# *\w+\[[\d,]*\] (.+):(\d+)(?: \(\w+\))?\s*$")


@dataclass
class _Place:
    """Stands for the node that a line's node is like: it has the user's line and a phase."""

    origin: Origin
    phase: str = FORWARD


def parse_text(text: str, name: str = "graph text") -> tuple[Node, ...]:
    """Return the outputs of a graph that ``to_text`` wrote; the very same nodes while they live.

    ParseError, with ``name`` and line and what was expected, where the text is anything else.
    """
    reader = _Reader(name, text.splitlines())
    try:
        body = ast.parse(text).body
    except SyntaxError as error:
        reader.line = error.lineno or 1
        reader.fail(error.msg, "a line NAME = OP(SOURCES, ATTRIBUTES)")
    except (ValueError, RecursionError, MemoryError) as error:
        reader.fail(f"not the text of a graph ({error or type(error).__name__})", "Python text")
    for statement in body:
        reader.statement(statement)
    if reader.outputs is None:
        reader.line = len(reader.lines)
        reader.fail("the text ends without outputs", "a last line outputs = (NAME, ...)")
    return reader.outputs


@dataclass
class _Reader:
    """Where in a text we are, and the nodes so far by name."""

    name: str
    lines: Sequence[str]
    line: int = 1
    nodes: dict[str, Node] = field(default_factory=dict)
    outputs: tuple[Node, ...] | None = None

    def fail(self, what: str, expected: str) -> NoReturn:
        """Raise ParseError at the current line."""
        shown = self.lines[self.line - 1].split("  #")[0].strip() if self.lines else ""
        place = f"{self.name}:{self.line}"
        raise ParseError(f"{place}: {what}; expected {expected}\n    {shown[:LONGEST_SHOWN]}")

    def source(self, tree: ast.expr) -> str:
        """Return the text of an expression, for messages."""
        return (ast.get_source_segment("\n".join(self.lines), tree) or "")[:LONGEST_SHOWN]

    def statement(self, tree: ast.stmt) -> None:
        """Read one line: a node, or the outputs."""
        self.line = tree.lineno
        match tree:
            case ast.Assign(targets=[ast.Name(id="outputs")], value=ast.Tuple(elts=items)):
                self.outputs = tuple([self.known(item) for item in items])
            case ast.Assign(targets=[ast.Name(id="outputs")]):
                self.fail("outputs are no tuple", "outputs = (NAME, ...)")
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id=op)) as c):
                if name in self.nodes:
                    self.fail(f"{name} is there already", "a new name for each node")
                self.nodes[name] = self.node(op, c)
            case _:
                self.fail("not a line of a graph", "NAME = OP(SOURCES, ATTRIBUTES)")

    def known(self, tree: ast.expr) -> Node:
        """Return the node that a name stands for."""
        if isinstance(tree, ast.Name) and tree.id in self.nodes:
            return self.nodes[tree.id]
        self.fail(f"{self.source(tree)} is no node so far", "the name of an earlier line")

    def node(self, name: str, call: ast.Call) -> Node:
        """Return the node of a call; the op's own type rule has the last word."""
        op = _OPS.get(name)
        if op is None:
            self.fail(f"there is no op {name}", f"an op{_guess(name)}")
        if op is Op.CONST:
            sources, attrs = self.arguments_of_constant(call)
        else:
            if call.keywords:
                self.fail(f"{name} takes no keywords", self.form(op))
            sources, attrs = self.arguments(op, call.args)
        try:
            return node(op, sources, attrs, like=_Place(self.origin()))
        except (TinycError, ValueError, OverflowError) as error:
            self.fail(str(error), "sources and attributes that the op takes")

    def arguments(self, op: Op, args: list[ast.expr]) -> tuple[tuple[Node, ...], tuple]:
        """Split arguments into sources and attributes, each checked for its kind."""
        words = [word for word in _ATTRIBUTES.get(op, "").split(", ") if word]
        arity = OPS[op].arity
        if arity is None:
            arity = max(len(args) - len(words), 1)
        if len(args) != arity + len(words):
            wanted = f"{arity} sources and {len(words)} attributes"
            self.fail(f"{NAMES[op]} takes {wanted}, not {len(args)} arguments", self.form(op))
        sources = tuple([self.known(tree) for tree in args[:arity]])
        values = [self.value(op, word, tree) for word, tree in zip(words, args[arity:])]
        return sources, tuple(values)

    def value(self, op: Op, word: str, tree: ast.expr) -> Any:
        """Return an attribute's value if it is of the kind that its row of the table says."""
        name, kind = word.split(": ")
        found = _literal(tree)
        if kind == "int":
            right = type(found) is int
        elif kind == "dtype":
            right = isinstance(found, DType)
        elif kind == "text":
            right = isinstance(found, str)
        else:
            right = isinstance(found, tuple) and all(type(item) is int for item in found)
            right = right and (kind == "ints" or min(found, default=0) >= 0)
        if not right:
            self.fail(f"{name} of {NAMES[op]} is {self.source(tree)}", _WORDS[kind])
        return found

    def arguments_of_constant(self, call: ast.Call) -> tuple[tuple[Node, ...], tuple]:
        """Return no sources, and dtype and bits of ``const(f32, 1.0)``.

        Or of ``const(f32, bits=0x7fc00001)``, which NaNs of their own need.
        """
        match call:
            case ast.Call(args=[kind, value], keywords=[]):
                dtype, found = self.value(Op.CONST, "dtype: dtype", kind), _literal(value)
                if isinstance(found, bool | int | float) and (dtype.is_float or found == found):
                    try:
                        return (), (dtype, encode(found, dtype))
                    except (TinycError, ValueError, OverflowError) as error:
                        self.fail(str(error), "a number that the dtype holds")
            case ast.Call(args=[kind], keywords=[ast.keyword(arg="bits", value=value)]):
                dtype, found = self.value(Op.CONST, "dtype: dtype", kind), _literal(value)
                width = 1 if dtype.kind == "b" else dtype.bits
                if type(found) is int and 0 <= found < 1 << width:
                    return (), (dtype, found)
        self.fail("not a constant", "const(DTYPE, NUMBER) or const(DTYPE, bits=INTEGER)")

    def form(self, op: Op) -> str:
        """Say how an op is written."""
        arity = OPS[op].arity
        sources = ["SOURCE", "..."] if arity is None else ["SOURCE"] * arity
        return f"{NAMES[op]}({', '.join(filter(None, [*sources, _ATTRIBUTES.get(op, '')]))})"

    def origin(self) -> Origin:
        """Return the user's line that the comment of the current line names."""
        place = _PLACE.search(self.lines[self.line - 1])
        return (place[1], int(place[2])) if place else UNKNOWN


def _literal(tree: ast.expr) -> Any:
    """The value of a literal, a dtype or a flat tuple of them; None for all else."""
    if isinstance(tree, ast.Tuple):
        return tuple([_scalar(item) for item in tree.elts])
    return _scalar(tree)


def _scalar(tree: ast.expr) -> Any:
    match tree:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=name):
            return DTYPES.get(name) or _FLOATS.get(name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
            return -math.inf
    return None


def _guess(name: str) -> str:
    import difflib  # only on the way to a message

    close = difflib.get_close_matches(name, _OPS, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f" of {', '.join(sorted(_OPS))}"
