"""Long sums of f32: in blocks, whose totals are added as f64.

Each addition to a sum rounds it. The lanes of a block of a few thousand numbers add few enough of
them that little is lost, and of what the blocks lose most averages out; added as f64 their totals
lose nothing. So the error of a sum does not grow with its length.
"""
from __future__ import annotations

from dataclasses import replace

from tinyc.codegen import primitives as p
from tinyc.ir.dtype import f32, f64
from tinyc.ir.index import Affine
from tinyc.ir.loop import (
    Alloc,
    Const,
    For,
    If,
    Load,
    Stmt,
    Storage,
    Store,
    converted,
    replace_storage,
    statements,
)

# Numbers to a block, at most: enough for the time that its total takes to be small.
BLOCK = 1024
ZERO = Affine.const_of(0)


def in_blocks(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """Statements whose long sums into registers of f32, those below them too, are in blocks.

    for i < N: s += f(i)
      ->  S = 0; for o < N/B: (t = 0; for i < B: t += f(B*o + i); S += t); s += S
    """
    out: list[Stmt] = []
    for stmt in body:
        found = long_sums(stmt) if isinstance(stmt, For) else {}
        for s in wide(stmt, found) if isinstance(stmt, For) and found else (stmt,):
            out.append(replace(s, body=in_blocks(s.body)) if isinstance(s, (For, If)) else s)
    return tuple(out)


def long_sums(loop: For) -> dict[Storage, Store]:
    """Registers of f32 from outside a loop to which it adds more than a block of numbers."""
    inside = {s.storage for s in statements((loop,)) if isinstance(s, Alloc)}
    found: dict[Storage, Store] = {}

    def visit(stmt: For | If, times: int) -> None:
        if isinstance(stmt, For):
            times *= stmt.var.extent
        for s in stmt.body:
            if isinstance(s, (For, If)):
                visit(s, times)
            elif times > BLOCK and isinstance(s, Store) and is_sum(s) and (
                    s.storage not in inside):
                found[s.storage] = s

    visit(loop, 1)
    return found


def is_sum(s: Store) -> bool:
    """True for the addition of something to a register of f32."""
    return s.accumulate == "sum" and s.storage.dtype is f32 and (
        s.storage.role == "register" and s.storage.size == 1)


def wide(loop: For, found: dict[Storage, Store]) -> tuple[Stmt, ...]:
    """A loop whose sums go to totals of f64, which are added to where they went after it."""
    before: list[Stmt] = []
    after: list[Stmt] = []
    totals = {}
    for r, s in found.items():
        total = totals[r] = Storage(f"{r.name}_w{p.fresh_number()}", 1, f64, "register")
        before += [Alloc(total), Store(total, ZERO, Const(0.0, f64), None, s.note)]
        after.append(replace(s, value=converted(Load(total, ZERO), f32), index=ZERO))
    return (*before, *blocks(loop, totals), *after)


def blocks(stmt: Stmt, totals: dict[Storage, Storage]) -> tuple[Stmt, ...]:
    """A statement with the sums in it in blocks that are added to totals."""
    if isinstance(stmt, If):
        return (replace(stmt, body=tuple(t for s in stmt.body for t in blocks(s, totals))),)
    if isinstance(stmt, Store) and stmt.storage in totals and stmt.accumulate:
        total = totals[stmt.storage]
        return (replace(stmt, storage=total, value=converted(stmt.value, f64)),)
    if not isinstance(stmt, For):
        return (stmt,)
    inside = max((terms(s, totals) for s in stmt.body), default=0)
    if not inside:
        return (stmt,)
    if inside * stmt.var.extent <= BLOCK:
        return block(stmt, totals)
    if stmt.kind == "serial" and stmt.limit is None and 2 * inside <= BLOCK:
        each, *rest = p.split_rest(stmt, block_size(stmt.var.extent, BLOCK // inside))
        assert isinstance(each, For)
        body = tuple(t for s in each.body for t in block(s, totals))
        return (replace(each, body=body), *(t for s in rest for t in block(s, totals)))
    return (replace(stmt, body=tuple(t for s in stmt.body for t in blocks(s, totals))),)


def terms(stmt: Stmt, totals: dict[Storage, Storage]) -> int:
    """How many numbers a statement adds to one total."""
    if isinstance(stmt, Store):
        return int(stmt.storage in totals and stmt.accumulate is not None)
    if not isinstance(stmt, (For, If)):
        return 0
    inside = max((terms(s, totals) for s in stmt.body), default=0)
    return inside * (stmt.var.extent if isinstance(stmt, For) else 1)


def block_size(extent: int, most: int) -> int:
    """The iterations that are a block: a divisor of all of them if there is a good one."""
    return next((n for n in range(most, most // 2, -1) if extent % n == 0), most)


def block(loop: Stmt, totals: dict[Storage, Storage]) -> tuple[Stmt, ...]:
    """A loop that adds to registers of its own, and these to the totals."""
    before: list[Stmt] = []
    after: list[Stmt] = []
    own = {}
    for s in statements((loop,)):
        if isinstance(s, Store) and s.storage in totals and s.storage not in own:
            r = own[s.storage] = Storage(f"{s.storage.name}_b{p.fresh_number()}", 1, f32,
                                         "register")
            before += [Alloc(r), Store(r, ZERO, p.neutral(s), None, s.note)]
            after.append(Store(totals[s.storage], ZERO, converted(Load(r, ZERO), f64), "sum",
                               s.note))
    return (*before, *replace_storage((loop,), own), *after)
