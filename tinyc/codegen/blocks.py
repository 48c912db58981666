"""Text of kernels whose chunks are blocks of threads: what OpenCL and CUDA say alike.

`thread` is a thread's number in its block, `chunk` the block's. A language gives its words by
overriding the few methods at the end of `BlockScope`.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from tinyc.codegen.c import CScope
from tinyc.codegen.primitives import renamed
from tinyc.ir.dtype import DType
from tinyc.ir.index import Affine, Atom, Data, FloorDiv, Mod, Var
from tinyc.ir.loop import (
    Barrier,
    Combine,
    Expr,
    For,
    If,
    Load,
    LoopKernel,
    MicroKernel,
    MicroMma,
    MicroPack,
    Stmt,
    Storage,
    Store,
    indices,
    limits_of,
    loads,
    statements,
    stored_at,
    substitute_stmt,
    walk,
)

# Sums of products of indices below this are what 32-bit arithmetic gives.
MOST_INT = (1 << 31) - 1
# Bytes of the widest access, and the names of a vector's parts.
WIDEST = 16
PARTS = "xyzw"
Place = tuple[Storage, Affine]


@dataclass
class BlockScope(CScope):
    """Names and statements of one kernel of blocks of threads; plain C where there are none."""

    WAIT: ClassVar[str]
    # What stands for an element that is a part of a vector in registers.
    parts: dict[Place, str] = field(default_factory=dict)

    def statement(self, stmt: Stmt, depth: int) -> list[str]:
        pad = "  " * depth
        if isinstance(stmt, Barrier):
            return [pad + self.WAIT]
        if isinstance(stmt, Combine):
            return [pad + self.combine(stmt)]
        return super().statement(stmt, depth)

    def store(self, stmt: Store, pad: str) -> list[str]:
        """A store; an atomic sum is a call."""
        if not stmt.atomic:
            return super().store(stmt, pad)
        lines: list[str] = []
        value = self.expression(stmt.value, lines, pad)
        place = self.element(stmt.storage, stmt.index, lines, pad)
        note = f"  // {stmt.note}" if stmt.note else ""
        return [*lines, f"{pad}{self.atomic_sum(stmt.storage, place, value)}{note}"]

    def combine(self, stmt: Combine) -> str:
        """The call that makes one number of the registers of neighbouring threads."""
        name = f"{stmt.how}_{stmt.storage.dtype.name}"
        if stmt.how == "max":
            self.maximum("", "", stmt.storage.dtype)
        self.owner.helpers[f"combine_{name}"] = None
        register = self.storage(stmt.storage)
        width = stmt.width or self.kernel.threads
        return f"{register} = tc_combine_{name}({register}, thread, {width}, pool);"

    # -- loops -----------------------------------------------------------------------------------

    def loop(self, stmt: For, depth: int) -> list[str]:
        pad = "  " * depth
        if stmt.kind == "thread":
            return self.dealt(stmt, depth)
        if stmt.kind == "vector":
            return self.vector(stmt, depth)
        if stmt.kind == "chunk" and stmt.limit is None and stmt.var.extent == self.chunks:
            head = f"{pad}{{ const {self.integer} {self.var(stmt.var)} = chunk;"
            return [head, *self.block(stmt.body, depth + 1), pad + "}"]
        return super().loop(stmt, depth)

    def dealt(self, stmt: For, depth: int) -> list[str]:
        """A loop whose iterations are dealt out to the threads."""
        pad = "  " * depth
        lines: list[str] = []
        v, n, threads = self.var(stmt.var), stmt.var.extent, self.kernel.threads
        stop = str(n)
        if stmt.limit is not None:
            self.owner.helpers["min"] = None
            stop = self.index(stmt.limit, lines, pad)
            stop = stop if stmt.limit.bounds()[1] <= n else f"tc_min({n}, {stop})"
        if n > threads:
            head = f"for ({self.integer} {v} = thread; {v} < {stop}; {v} += {threads}) {{"
        elif n == threads and stmt.limit is None:
            head = f"{{ const {self.integer} {v} = thread;"
        else:
            head = f"if (thread < {stop}) {{ const {self.integer} {v} = thread;"
        return [*lines, pad + head, *self.block(stmt.body, depth + 1), pad + "}"]

    def hints(self, stmt: For) -> list[str]:
        """Short loops are written out where the recipe says so."""
        return ["#pragma unroll"] if stmt.kind == "unroll" else []

    # -- vectors ---------------------------------------------------------------------------------

    def vector(self, stmt: For, depth: int) -> list[str]:
        """A loop over the elements of vectors, written out: loads first, stores last."""
        pad, width = "  " * (depth + 1), stmt.var.extent
        first = {stmt.var: Affine.const_of(0)}
        names = {place: f"q{self.next_number()}" for place in vector_places(stmt)}
        read = places_read(stmt)
        lines = ["  " * depth + "{"]
        for (s, index), name in names.items():
            kind = self.vector_type(s.dtype, width)
            start = ""
            if (s, index) in read:
                at = self.index(index.substitute(first))
                start = f" = *({self.pointer_to(s, 'const ' + kind)})({self.storage(s)} + {at})"
            lines.append(f"{pad}{kind} {name}{start};")
        lines += self.written_out(stmt, names, depth)
        stores = [self.vector_store(place, name, first, width) for place, name in names.items()
                  if place in places_written(stmt)]
        return [*lines, "  " * depth + " ".join([*stores, "}"])]

    def written_out(self, stmt: For, names: dict[Place, str], depth: int) -> list[str]:
        """The body, once for each element; what lies in vectors is a part of one."""
        lines: list[str] = []
        outer = self.parts
        for k in range(stmt.var.extent):
            at = {stmt.var: Affine.const_of(k)}
            self.parts = {**outer, **{(s, index.substitute(at)): f"{name}.{PARTS[k]}"
                                      for (s, index), name in names.items()}}
            copies = renamed(tuple(substitute_stmt(s, at) for s in stmt.body)) if k else tuple(
                substitute_stmt(s, at) for s in stmt.body)
            lines += self.block(copies, depth + 1)
            for mine, copy in zip(stmt.body, copies):
                self.lengths[mine] = self.lengths.get(mine, 0) + self.lengths[copy]
        self.parts = outer
        return lines

    def vector_store(self, place: Place, name: str, first: dict[Var, Affine], width: int) -> str:
        """The store of a vector that has been made."""
        s, index = place
        kind = self.pointer_to(s, self.vector_type(s.dtype, width))
        at = self.index(index.substitute(first))
        return f"*({kind})({self.storage(s)} + {at}) = {name};"

    def next_number(self) -> int:
        self.temporaries += 1
        return self.temporaries - 1

    def element(self, s: Storage, index: Affine, lines: list[str], pad: str) -> str:
        found = self.parts.get((s, index)) if self.parts else None
        return found or super().element(s, index, lines, pad)

    def load(self, e: Load, text: dict[int, str]) -> str:
        found = self.parts.get((e.storage, e.index)) if self.parts and not e.guard else None
        return found or super().load(e, text)

    # -- indices ---------------------------------------------------------------------------------

    def term(self, atom: Atom, coeff: int, text: dict[int, str]) -> str:
        """Quotients and remainders are unsigned, which a shift or a multiplication gives."""
        if self.integer != "int" or not isinstance(atom, (FloorDiv, Mod)):
            return super().term(atom, coeff, text)
        sign = "/" if isinstance(atom, FloorDiv) else "%"
        name = f"(int)((unsigned){self.affine(atom.operand, text)} {sign} {atom.n}u)"
        return name if coeff == 1 else f"{coeff} * {name}" if coeff != -1 else f"-{name}"

    # -- a language's words ----------------------------------------------------------------------

    def vector_type(self, dtype: DType, width: int) -> str:
        """The type of a vector of numbers."""
        raise NotImplementedError

    def atomic_sum(self, s: Storage, place: str, value: str) -> str:
        """The call that adds to an element which others may add to."""
        raise NotImplementedError

    def pointer_to(self, s: Storage, kind: str) -> str:
        """The type of a pointer to something in the memory of a storage."""
        return f"{kind} *"


# -- which accesses are of whole vectors ---------------------------------------------------------


def vector_places(loop: For) -> list[Place]:
    """What a loop over the elements of vectors reads or writes one vector of, in order."""
    found: dict[Place, None] = {}
    for s in loop.body:
        if isinstance(s, Store):
            found.update(((x.storage, x.index), None) for x in loads(s.value) if not x.guard)
            found[s.storage, s.index] = None
    written = places_written(loop)
    stored = {s for s, _ in written}
    return [(s, index) for s, index in found if is_vector(s, index, loop.var)
            and (s not in stored or all(i == index for t, i in found if t is s))]


def places_written(loop: For) -> set[Place]:
    """The elements that a loop's own statements store."""
    return {(s.storage, s.index) for s in loop.body if isinstance(s, Store)}


def places_read(loop: For) -> set[Place]:
    """The elements that a loop's own statements read before they have stored them."""
    read: set[Place] = set()
    written: set[Place] = set()
    for s in loop.body:
        if isinstance(s, Store):
            read |= {(x.storage, x.index) for x in loads(s.value)} - written
            if s.accumulate:
                read |= {(s.storage, s.index)} - written
            written.add((s.storage, s.index))
    return read


def is_vector(s: Storage, index: Affine, v: Var) -> bool:
    """True if the elements at all values of `v` are one aligned vector of at most WIDEST bytes."""
    width = v.extent
    if s.role not in ("slot", "arena", "scratch", "shared") or s.dtype.kind == "b":
        return False
    if width not in (2, 4) or width * s.dtype.itemsize > WIDEST:
        return False
    if index.coeff(v) != 1 or not index.is_linear_in(v) or index.data():
        return False
    return index.const % width == 0 and all(c % width == 0 for a, c in index.terms if a is not v)


# -- the range of indices ------------------------------------------------------------------------


def small_indices(kernel: LoopKernel) -> bool:
    """True if no part of any index of a kernel can leave 32 bits."""
    seen: set[int] = set()
    for stmt in statements(kernel.body + kernel.finish):
        if isinstance(stmt, For) and stmt.var.extent + kernel.threads > MOST_INT:
            return False
        if any(magnitude(i) > MOST_INT for i in indices_of(stmt, seen)):
            return False
    return True


def indices_of(stmt: Stmt, seen: set[int]) -> Iterator[Affine]:
    """The index expressions of a statement, those inside its expressions included."""
    place = stored_at(stmt)
    roots: list[Expr] = []
    found = [] if place is None else [place[1]]
    if isinstance(stmt, (For, MicroKernel)):
        found += limits_of(stmt)
    if isinstance(stmt, Store):
        roots = [stmt.value]
    elif isinstance(stmt, If):
        roots = [stmt.cond]
    elif isinstance(stmt, MicroKernel):
        roots, found = [stmt.a, stmt.b], [*found, stmt.first, stmt.more]
    elif isinstance(stmt, MicroMma):
        roots = [stmt.a, stmt.b]
    elif isinstance(stmt, MicroPack):
        roots, found = [stmt.b], [*found, stmt.first]
    yield from found
    roots += [e for index in found for e in index.data()]
    for root in roots:
        for e in walk(root):
            if id(e) not in seen:
                seen.add(id(e))
                yield from indices(e)


def magnitude(index: Affine) -> int:
    """A bound of what computing an index comes to on the way."""
    total = abs(index.const)
    for atom, coeff in index.terms:
        below = magnitude(atom.operand) if isinstance(atom, (FloorDiv, Mod)) else 0
        most = max(abs(atom.lo), abs(atom.hi), atom.bound if isinstance(atom, Data) else 0)
        total += abs(coeff) * most
        if below > MOST_INT:
            return below
    return total
