"""CPU recipes: in which order the schedule primitives are applied to a kernel."""
from __future__ import annotations

from dataclasses import replace

from tinyc.codegen import primitives as p
from tinyc.codegen.contract import schedule_contractions
from tinyc.diagnostics import ScheduleError
from tinyc.ir.loop import For, If, LoopKernel, MicroKernel, Stmt, Store, statements, transform
from tinyc.ir.plan import Target

SUM_BLOCK = 4096
UNROLL_SUM = 8
UNROLL_MAP = 4
UNROLL_STATEMENTS = 48


def schedule(kernel: LoopKernel, target: Target) -> LoopKernel:
    """The kernel with its contractions, rows and maps scheduled for a CPU."""
    body = schedule_contractions(kernel.body, kernel.name, kernel.chunks, target)
    body = rows_and_maps(body, kernel, target)
    finish = rows_and_maps(kernel.finish, kernel, target)
    return replace(kernel, body=body, finish=finish)


def rows_and_maps(body: tuple[Stmt, ...], kernel: LoopKernel, target: Target) -> tuple[Stmt, ...]:
    """Loops without contractions: collapse, unroll, keep sums in registers, lanes, hoisting."""
    body = transform(body, collapse_all)
    body = tuple(t for s in body for t in unroll_short(s, nested=False))
    body = tuple(t for s in body for t in keep_sums(s))
    body = transform(body, lambda s: block_chunks(s, kernel))
    body = transform(body, lambda s: lanes(s, target))
    body = transform(body, hoist_all)
    return transform(body, vectorize_all)


def collapse_all(stmt: Stmt) -> tuple[Stmt, ...]:
    while isinstance(stmt, For):
        try:
            stmt = p.collapse(stmt)
        except ScheduleError:
            break
    return (stmt,)


def unroll_short(stmt: Stmt, nested: bool) -> tuple[Stmt, ...]:
    """Unroll innermost loops of a few iterations that stand inside another loop."""
    if isinstance(stmt, If):
        return (replace(stmt, body=tuple(t for s in stmt.body for t in unroll_short(s, nested))),)
    if not isinstance(stmt, For):
        return (stmt,)
    body = tuple(t for s in stmt.body for t in unroll_short(s, True))
    stmt = replace(stmt, body=body)
    if nested and is_short(stmt):
        return p.unroll(stmt)
    return (stmt,)


def is_short(loop: For) -> bool:
    if loop.limit is not None or loop.kind != "serial":
        return False
    if any(isinstance(s, (For, If, MicroKernel)) for s in loop.body):
        return False
    sums = any(isinstance(s, Store) and s.accumulate and not s.index.coeff(loop.var)
               for s in loop.body)
    most = UNROLL_SUM if sums else UNROLL_MAP
    return loop.var.extent <= most and loop.var.extent * len(loop.body) <= UNROLL_STATEMENTS


def keep_sums(stmt: Stmt) -> tuple[Stmt, ...]:
    """Promote sums at the outermost loop that leaves their address alone."""
    if not isinstance(stmt, For):
        return (stmt,)
    out: list[Stmt] = []
    for s in p.accumulate_in_register(stmt):
        if isinstance(s, For):
            s = replace(s, body=tuple(t for inner in s.body for t in keep_sums(inner)))
        out.append(s)
    return tuple(out)


def block_chunks(stmt: Stmt, kernel: LoopKernel) -> tuple[Stmt, ...]:
    """A reduction straight over the chunked loop is done in blocks."""
    if isinstance(stmt, For) and stmt.kind == "chunk" and p.register_sums(stmt) and not any(
            isinstance(s, (For, If, MicroKernel)) for s in stmt.body):
        return p.split_chunks(stmt, SUM_BLOCK, kernel.chunk)
    return (stmt,)


def lanes(stmt: Stmt, target: Target) -> tuple[Stmt, ...]:
    """Several accumulators for a reduction over an innermost loop."""
    if not isinstance(stmt, For) or stmt.kind != "serial":
        return (stmt,)
    wide = target.lanes if stmt.var.extent < 8 * target.lanes else 4 * target.lanes
    try:
        return p.interleave(stmt, wide)
    except ScheduleError:
        return (stmt,)


def hoist_all(stmt: Stmt) -> tuple[Stmt, ...]:
    return p.hoist(stmt) if isinstance(stmt, For) else (stmt,)


def vectorize_all(stmt: Stmt) -> tuple[Stmt, ...]:
    if not isinstance(stmt, For) or stmt.kind not in ("serial", "chunk"):
        return (stmt,)
    try:
        return (p.vectorize(stmt),)
    except ScheduleError:
        return (stmt,)
