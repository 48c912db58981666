"""Loop IR -> C-like text: one walk over a kernel, shared by all targets that speak a kind of C.

Names are given in order of first use, so kernels that do the same have the same text.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinyc.ir.dtype import DType, encode
from tinyc.ir.index import Affine, Atom, Data, FloorDiv, Mod, Var
from tinyc.ir.loop import (
    Alloc,
    Apply,
    Check,
    Const,
    Expr,
    For,
    If,
    Index,
    Load,
    LoopKernel,
    MicroKernel,
    MicroPack,
    Prefetch,
    Stmt,
    Storage,
    Store,
    Within,
    children,
    walk,
)
from tinyc.ir.ops import Op

if TYPE_CHECKING:
    import numpy as np

TYPES = {"bool": "unsigned char", "u8": "unsigned char", "i8": "signed char", "i16": "short",
         "u16": "unsigned short", "i32": "int", "u32": "unsigned int", "i64": "long",
         "u64": "unsigned long", "f32": "float", "f64": "double",
         "f16": "unsigned short", "bf16": "unsigned short"}

INFIX = {Op.ADD: "+", Op.SUB: "-", Op.MUL: "*", Op.DIV: "/", Op.LT: "<", Op.EQ: "==",
         Op.AND: "&", Op.OR: "|", Op.XOR: "^"}

ALIGNED = "__attribute__((aligned(64)))"

NOTE = re.compile(r" *// .*")
STAGE_NAME = re.compile(r"// \w+")
# Stands for the name of a function, until it is known.
UNNAMED = "\0"

# A longer subexpression gets a line of its own.
LONGEST_TEXT = 160


@dataclass
class KernelText:
    """What rendering a kernel gives: its parameters in order, its text, what it used.

    `lengths` are the lines of each statement's text; the body has `declared` lines before them.
    What it has on the chip is `shared`, with names.
    """

    storages: list[Storage]
    scratch: list[tuple[Storage, int]]
    body: str
    finish: str
    scratch_size: int
    lengths: Mapping[Stmt, int]
    declared: int
    shared: list[tuple[Storage, str]] = field(default_factory=list)
    threads: int = 1

    @property
    def shared_size(self) -> int:
        """Bytes on the chip that a block of threads has."""
        return sum(-(-s.nbytes // 16) * 16 for s, _ in self.shared)


@dataclass
class Functions:
    """The functions of a program by name: those that do the same, as layers in a loop do, are one.

    Only their notes differ, the numbers of stages and the user's lines. With `lines` compilers are
    told of these, so they count. `own` is the text for each kernel, with its own notes.
    """

    lines: bool = False
    texts: dict[str, str] = field(default_factory=dict)
    own: list[str] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)

    def define(self, name: str, write: Callable[[str], str]) -> str:
        """The name of a function with the text that `write` makes for a name; added if it is the
        first."""
        text = write(UNNAMED)
        plain = STAGE_NAME.sub("//", text) if self.lines else NOTE.sub("", text)
        found = self.known.setdefault(plain, name)
        self.own.append(text.replace(UNNAMED, found))
        if found == name:
            self.texts[name] = self.own[-1]
        return found


# (dtypes of sums, rows and columns; height, lanes, width) and (dtypes from and to; lanes)
TileKey = tuple[str, str, str, int, int, int, bool]
PackKey = tuple[str, str, int]


@dataclass
class Renderer:
    """Text of one program: kernels, and the functions that they call."""

    functions: dict[tuple[Op, str], None] = field(default_factory=dict)
    helpers: dict[str, None] = field(default_factory=dict)
    tiles: dict[TileKey, None] = field(default_factory=dict)
    packs: dict[PackKey, None] = field(default_factory=dict)


@dataclass
class Scope:
    """Names of one kernel."""

    owner: Renderer
    kernel: LoopKernel
    params: dict[Storage, str] = field(default_factory=dict)
    scratch: dict[Storage, tuple[str, int]] = field(default_factory=dict)
    locals: dict[Storage, str] = field(default_factory=dict)
    variables: dict[Var, str] = field(default_factory=dict)
    scratch_size: int = 0
    temporaries: int = 0
    # Where a loop collects a vector that goes past the caches, and the loop's variable.
    collected: dict[Store, tuple[str, Var]] = field(default_factory=dict)
    # How many lines the text of each statement has, what is below it included.
    lengths: dict[Stmt, int] = field(default_factory=dict)
    # The type of loop variables and indices.
    integer: str = "long"
    # How many chunks there are of what is being rendered.
    chunks: int = 1

    # -- names -----------------------------------------------------------------------------------

    def storage(self, s: Storage) -> str:
        if s.role in ("slot", "arena"):
            return self.params.setdefault(s, f"a{len(self.params)}")
        if s.role == "scratch":
            if s not in self.scratch:
                self.scratch[s] = (f"s{len(self.scratch)}", self.scratch_size)
                self.scratch_size += -(-s.nbytes // 64) * 64
            return self.scratch[s][0]
        letter = "v" if s.size > 1 or s.role == "shared" else "r"
        return self.locals.setdefault(s, f"{letter}{len(self.locals)}")

    def var(self, v: Var) -> str:
        if v is self.kernel.chunk or v is self.kernel.last:
            return "chunk"
        return self.variables.setdefault(v, f"i{len(self.variables)}")

    # -- statements ------------------------------------------------------------------------------

    def block(self, body: tuple[Stmt, ...], depth: int) -> list[str]:
        lines: list[str] = []
        for stmt in body:
            text = self.statement(stmt, depth)
            self.lengths[stmt] = len(text)
            lines += text
        return lines

    def statement(self, stmt: Stmt, depth: int) -> list[str]:
        pad = "  " * depth
        if isinstance(stmt, Store):
            return self.store(stmt, pad)
        if isinstance(stmt, For):
            return self.loop(stmt, depth)
        if isinstance(stmt, Alloc):
            return [pad + self.declaration(stmt.storage)]
        if isinstance(stmt, Prefetch):
            return [pad + self.prefetch(stmt)]
        if isinstance(stmt, If):
            lines: list[str] = []
            cond = self.expression(stmt.cond, lines, pad)
            return [*lines, f"{pad}if ({cond}) {{", *self.block(stmt.body, depth + 1), pad + "}"]
        if isinstance(stmt, MicroKernel):
            return self.micro_kernel(stmt, pad)
        if isinstance(stmt, MicroPack):
            return self.micro_pack(stmt, pad)
        raise AssertionError(f"not scheduled: {type(stmt).__name__}")

    def declaration(self, s: Storage) -> str:
        name, ctype = self.storage(s), TYPES[s.dtype.name]
        if s.size == 1:
            return f"{local_type(s.dtype)} {name};"
        return f"{ctype} {name}[{s.size}] {ALIGNED};"

    def loop(self, stmt: For, depth: int) -> list[str]:
        pad = "  " * depth
        v, n = self.var(stmt.var), stmt.var.extent
        start, stop = "0", str(n)
        before: list[str] = []
        if stmt.kind.startswith("chunk"):
            start, stop = f"chunk * {n}L / {self.chunks}", f"(chunk + 1) * {n}L / {self.chunks}"
        if stmt.limit is not None:
            self.owner.helpers["min"] = None
            stop = f"tc_min({stop}, {self.index(stmt.limit, before, pad)})"
        streamed = [s for s in stmt.body if isinstance(s, Store) and s.streams]
        lines = [*before, *(self.collect(s, stmt.var, pad) for s in streamed)]
        lines += [pad + line for line in self.hints(stmt)]
        lines.append(f"{pad}for ({self.integer} {v} = {start}; {v} < {stop}; {v}++) {{")
        body = self.block(stmt.body, depth + 1)
        return [*lines, *body, " ".join([pad + "}", *(self.stream(s) for s in streamed)])]

    def hints(self, stmt: For) -> list[str]:
        """Lines before a loop that tell the compiler what is known of it."""
        return ["#pragma omp simd"] if stmt.kind.endswith("simd") else []

    def store(self, stmt: Store, pad: str) -> list[str]:
        lines: list[str] = []
        value = self.expression(stmt.value, lines, pad)
        if stmt.streams:
            name, v = self.collected[stmt]
            where = f"{name}[{self.var(v)}]"
        else:
            where = self.element(stmt.storage, stmt.index, lines, pad)
        note = f"  // {stmt.note}" if stmt.note else ""
        if stmt.accumulate == "sum":
            if stmt.storage.dtype.kind == "b":
                return [*lines, f"{pad}{where} |= {value};{note}"]
            return [*lines, f"{pad}{where} += {value};{note}"]
        if stmt.accumulate == "max":
            most = self.maximum(where, value, stmt.storage.dtype)
            return [*lines, f"{pad}{where} = {most};{note}"]
        return [*lines, f"{pad}{where} = {value};{note}"]

    def element(self, s: Storage, index: Affine, lines: list[str], pad: str) -> str:
        if s.role == "register" and s.size == 1:
            return self.storage(s)
        return f"{self.storage(s)}[{self.index(index, lines, pad)}]"

    def maximum(self, a: str, b: str, dtype: DType) -> str:
        name = f"max_{dtype.name}"
        self.owner.helpers[name] = None
        return f"tc_{name}({b}, {a})"

    def collect(self, stmt: Store, v: Var, pad: str) -> str:
        """The declaration of the vector that a loop over `v` makes for a streaming store."""
        name = f"n{self.temporaries}"
        self.temporaries += 1
        self.collected[stmt] = name, v
        return f"{pad}{TYPES[stmt.storage.dtype.name]} {name}[{v.extent}] {ALIGNED};"

    def stream(self, stmt: Store) -> str:
        raise NotImplementedError

    def prefetch(self, stmt: Prefetch) -> str:
        raise NotImplementedError

    def micro_kernel(self, stmt: MicroKernel, pad: str) -> list[str]:
        raise NotImplementedError

    def micro_pack(self, stmt: MicroPack, pad: str) -> list[str]:
        raise NotImplementedError

    # -- expressions -----------------------------------------------------------------------------

    def expression(self, root: Expr, lines: list[str], pad: str) -> str:
        """The text of an expression; what is used twice, or is long, gets a line of its own.

        So do loads and both sides of a selection: compilers vectorise `c ? x : y` of two values,
        but not a load that happens only where `c` holds.
        """
        uses: dict[int, int] = {}
        order = list(walk(root))
        selects = any(isinstance(e, Apply) and e.op is Op.WHERE for e in order)
        for e in order:
            chosen = isinstance(e, Apply) and e.op is Op.WHERE
            for c in children(e):
                uses[id(c)] = uses.get(id(c), 0) + 1 + chosen
        text: dict[int, str] = {}
        for e in order:
            t = self.scalar(e, text)
            plain = isinstance(e, Const) or (isinstance(e, Load) and e.storage.role == "register")
            apart = uses.get(id(e), 0) > 1 or len(t) > LONGEST_TEXT or (
                selects and isinstance(e, Load) and not e.guard)
            if e is not root and not plain and apart:
                name = f"t{self.temporaries}"
                self.temporaries += 1
                lines.append(f"{pad}const {local_type(e.dtype)} {name} = {t};")
                t = name
            text[id(e)] = t
        return text[id(root)]

    def scalar(self, e: Expr, text: dict[int, str]) -> str:
        if isinstance(e, Const):
            return self.literal(e)
        if isinstance(e, Load):
            return self.load(e, text)
        if isinstance(e, Index):
            return f"(({TYPES[e.dtype.name]})({self.affine(e.index, text)}))"
        if isinstance(e, Within):
            return self.within(e, text)
        if isinstance(e, Check):
            self.owner.helpers["check"] = None
            value = text[id(e.value)]
            return f"tc_check({value}, {e.bound}L, {e.site}L, status)"
        if isinstance(e, Apply):
            return self.apply(e, [text[id(a)] for a in e.args])
        raise AssertionError(f"not an expression of a kernel: {e}")

    def literal(self, e: Const) -> str:
        if e.dtype.kind == "b":
            return "1" if e.value else "0"
        if e.dtype.is_half:
            return f"{encode(e.value, e.dtype):#x}"
        if e.dtype.kind != "f":
            suffix = {"i64": "L", "u64": "UL", "u32": "U"}.get(e.dtype.name, "")
            if e.value == -(1 << 63):
                return "(-9223372036854775807L - 1L)"
            return f"({e.value}{suffix})" if e.value < 0 else f"{e.value}{suffix}"
        suffix = "f" if e.dtype.name == "f32" else ""
        value = float(e.dtype.np.type(e.value))
        if math.isnan(value):
            return f'__builtin_nan{suffix}("")'
        if math.isinf(value):
            return f"({'-' if value < 0 else ''}__builtin_inf{suffix}())"
        body = repr(value) if e.dtype.name == "f64" else float_text(e.dtype.np.type(e.value))
        return f"({body}{suffix})" if body.startswith("-") else body + suffix

    def load(self, e: Load, text: dict[int, str]) -> str:
        at = self.storage(e.storage)
        if e.storage.role != "register" or e.storage.size > 1:
            at = f"{at}[{self.affine(e.index, text)}]"
        if not e.guard:
            return at
        cond = " && ".join(self.within(g, text) for g in e.guard)
        return f"({cond} ? {at} : 0)"

    def within(self, e: Within, text: dict[int, str]) -> str:
        lo, hi = e.index.bounds()
        at = self.affine(e.index, text)
        tests = [f"{at} >= {e.lo}"] if lo < e.lo else []
        tests += [f"{at} < {e.hi}"] if hi >= e.hi else []
        tests += [f"({at}) % {e.step} == 0"] if e.step > 1 else []
        return "(" + (" && ".join(tests) or "1") + ")"

    def apply(self, e: Apply, args: list[str]) -> str:
        op, dtype = e.op, e.dtype
        if op in INFIX:
            return self.wrapped(f"({args[0]} {INFIX[op]} {args[1]})", dtype)
        if op is Op.WHERE:
            return f"({args[0]} ? {args[1]} : {args[2]})"
        if op is Op.NEG:
            return self.wrapped(f"(-{args[0]})", dtype)
        if op is Op.CAST:
            return self.cast(args[0], e.args[0].dtype, dtype)
        if op is Op.MAX:
            return self.maximum(args[0], args[1], dtype)
        if op is Op.BITCAST:
            name = f"bitcast_{e.args[0].dtype.name}_{dtype.name}"
        elif dtype.kind == "f" and op not in (Op.IDIV, Op.MOD):
            self.owner.functions[(op, dtype.name)] = None
            return f"tc_{op.name.lower()}_{dtype.name}({', '.join(args)})"
        else:
            name = f"{op.name.lower()}_{dtype.name}"
        self.owner.helpers[name] = None
        return f"tc_{name}({', '.join(args)})"

    def wrapped(self, text: str, dtype: DType) -> str:
        """Integers narrower than int wrap at their own width."""
        if dtype.kind in "iu" and dtype.itemsize < 4:
            return f"(({TYPES[dtype.name]}){text})"
        return text

    def cast(self, text: str, source: DType, dtype: DType) -> str:
        if dtype.kind == "b":
            return f"({text} != 0)"
        if source.is_half or dtype.is_half:
            return self.half(text, source, dtype)
        if source.kind == "f" and dtype.kind in "iu":
            name = f"to_{dtype.name}_{source.name}"
            self.owner.helpers[name] = None
            return f"tc_{name}({text})"
        return f"(({TYPES[dtype.name]}){text})"

    def half(self, text: str, source: DType, dtype: DType) -> str:
        """A half as f32, or f32 as a half: no other casts of halves are left here."""
        if dtype.is_half:
            return f"{self.converter('narrow', dtype)}({text})"
        narrow = f"tc_narrow_{source.name}("
        if text.startswith(narrow):  # rounded, and computed with further
            return f"{self.converter('round', source)}({text.removeprefix(narrow)}"
        return f"{self.converter('widen', source)}({text})"

    def converter(self, what: str, half: DType) -> str:
        """The name of a function on halves, which the program then has."""
        self.owner.functions[(Op.CAST, f"{what}_{half.name}")] = None
        return f"tc_{what}_{half.name}"

    # -- indices ---------------------------------------------------------------------------------

    def index(self, index: Affine, lines: list[str] | None = None, pad: str = "") -> str:
        text: dict[int, str] = {}
        for expr in index.data():
            assert lines is not None
            text[id(expr)] = self.expression(expr, lines, pad)
        return self.affine(index, text)

    def affine(self, index: Affine, text: dict[int, str]) -> str:
        parts = [self.term(atom, coeff, text) for atom, coeff in index.terms]
        if index.const or not parts:
            parts.append(str(index.const))
        joined = " + ".join(parts).replace("+ -", "- ")
        return joined if len(parts) == 1 else f"({joined})"

    def term(self, atom: Atom, coeff: int, text: dict[int, str]) -> str:
        if isinstance(atom, Var):
            name = self.var(atom)
        elif isinstance(atom, Data):
            name = f"({self.integer})({text[id(atom.expr)]})"
        elif isinstance(atom, FloorDiv):
            name = f"({self.affine(atom.operand, text)} / {atom.n})"
        else:
            assert isinstance(atom, Mod)
            name = f"({self.affine(atom.operand, text)} % {atom.n})"
        return name if coeff == 1 else f"{coeff} * {name}" if coeff != -1 else f"-{name}"


def local_type(dtype: DType) -> str:
    """The type of a scalar; conditions are _Bool, which compilers turn into masks of any width."""
    return "_Bool" if dtype.kind == "b" else TYPES[dtype.name]


def float_text(value: np.floating) -> str:
    """The shortest text that reads back as the same single-precision number."""
    text = str(value)
    return text if any(c in text for c in ".en") else text + ".0"
