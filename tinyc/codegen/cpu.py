"""CPU recipes: in which order the schedule primitives are applied to a kernel."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tinyc.codegen import primitives as p
from tinyc.codegen.conditions import store_changes, sum_for_readers
from tinyc.codegen.contract import schedule_contractions
from tinyc.codegen.gaps import over_gaps
from tinyc.codegen.lines import Far, ask_ahead, stream_stores
from tinyc.codegen.sums import in_blocks
from tinyc.codegen.transpose import in_tiles
from tinyc.diagnostics import ScheduleError
from tinyc.ir.choices import RULES, Choices
from tinyc.ir.loop import Alloc, For, If, LoopKernel, Stmt, Store, loads, transform
from tinyc.ir.plan_text import block_lines
from tinyc.ir.program import Target
from tinyc.ir.steps import Fired, watched

Body = tuple[Stmt, ...]
Rewrite = Callable[[Stmt], Body]

SUM_BLOCK = 4096
UNROLL_SUM = 8
UNROLL_MAP = 4
UNROLL_TOTAL = 32
UNROLL_STATEMENTS = 48
# Without vectors, too, sums that do not wait for each other are worth having.
FEWEST_SUMS = 4


def schedule(kernel: LoopKernel, target: Target, choices: Choices = RULES,
             far: Far = frozenset()) -> LoopKernel:
    """The kernel with its contractions, rows and maps scheduled for a CPU.

    What it stores to `far` goes past the caches.
    """
    p.number_names()
    body = schedule_contractions(kernel.body, kernel.name, kernel.chunks, target, choices)
    note(kernel, "tile contractions", kernel.body, body)
    body = rows_and_maps(body, kernel, target, choices, far)
    finish = rows_and_maps(kernel.finish, kernel, target, choices)
    return replace(kernel, body=body, finish=finish)


def rows_and_maps(body: tuple[Stmt, ...], kernel: LoopKernel, target: Target,
                  choices: Choices, far: Far = frozenset()) -> tuple[Stmt, ...]:
    """Loops without contractions: collapse, unroll, keep sums in registers, lanes, hoisting."""
    steps = (
        ("collapse", everywhere(collapse_all)),
        ("transpose in tiles", lambda body: in_tiles(body, target, kernel.chunk)),
        ("split digits", everywhere(split_digits)),
        ("keep sums in registers", from_the_root(keep_sums)),
        ("store changes", everywhere(store_changes)),
        ("sum for readers", everywhere(sum_for_readers)),
        ("unroll", from_the_root(lambda s: unroll_short(s, None))),
        ("block chunks", everywhere(lambda s: block_chunks(s, kernel))),
        ("sum in blocks", in_blocks),
        ("sum in lanes", from_the_root(lambda s: lanes(s, target, choices))),
        ("hoist", everywhere(hoist_all)),
        ("inline single iterations", everywhere(inline_single)),
        ("compute gaps between rows", everywhere(lambda s: over_gaps(s, target))),
        ("stream", everywhere(lambda s: stream_stores(s, kernel, far, target))),
        ("vectorize", everywhere(vectorize_all)),
        ("ask for rows", lambda body: tuple(ask_ahead(s, target) for s in body)),
    )
    for name, step in steps:
        before, body = body, step(body)
        note(kernel, name, before, body)
    return body


def note(kernel: LoopKernel, name: str, before: Body, after: Body) -> None:
    """Tell who watches what a step has made of the loops of a kernel."""
    fired = watched()
    if fired is not None and before != after:
        old, new = ("\n".join(block_lines(body, 0)) for body in (before, after))
        if old != new:
            fired.append(Fired(name, old, new, kernel=kernel.name))


def everywhere(fn: Rewrite) -> Callable[[Body], Body]:
    """Apply a rewrite to every statement, inner ones first."""
    return lambda body: transform(body, fn)


def from_the_root(fn: Rewrite) -> Callable[[Body], Body]:
    """Apply a rewrite to the outermost statements; it goes down by itself."""
    return lambda body: tuple(t for s in body for t in fn(s))


def collapse_all(stmt: Stmt) -> tuple[Stmt, ...]:
    """Collapse a loop with the loops perfectly nested in it, as far as that is legal."""
    while isinstance(stmt, For):
        try:
            stmt = p.collapse(stmt)
        except ScheduleError:
            break
    return (stmt,)


def split_digits(stmt: Stmt) -> tuple[Stmt, ...]:
    """An innermost loop whose variable is divided runs over its digits instead."""
    if isinstance(stmt, For) and not p.has_loops(stmt):
        factor = p.digit(stmt)
        if factor is not None and stmt.kind == "serial" and stmt.limit is None:
            return (p.split(stmt, factor),)
    return (stmt,)


def unroll_short(stmt: Stmt, since: int | None) -> tuple[Stmt, ...]:
    """Unroll innermost loops of a few iterations that stand inside another loop.

    `since` is the number of iterations since the last declaration outside; None: no loop around.
    """
    if isinstance(stmt, If):
        return (replace(stmt, body=tuple(t for s in stmt.body for t in unroll_short(s, since))),)
    if not isinstance(stmt, For):
        return (stmt,)
    inside = stmt.var.extent * (1 if since is None else since)
    declares = any(isinstance(s, Alloc) for s in stmt.body)
    body = tuple(t for s in stmt.body for t in unroll_short(s, 1 if declares else inside))
    stmt = replace(stmt, body=body)
    if since is not None and is_short(stmt, inside):
        return p.unroll(stmt)
    return (stmt,)


def is_short(loop: For, inside: int) -> bool:
    """True if unrolling a loop pays: few iterations, and not the loop that becomes vectors."""
    if loop.limit is not None or loop.kind != "serial" or p.has_loops(loop):
        return False
    if loop.var.extent * len(loop.body) > UNROLL_STATEMENTS:
        return False
    if any(isinstance(s, Store) and s.index.coeff(loop.var) and any(x.guard for x in loads(s.value))
           for s in loop.body):
        return False  # gcc 12 mixes up neighbouring stores of guarded loads when it makes vectors
    sums = any(isinstance(s, Store) and s.accumulate and not s.index.coeff(loop.var)
               for s in loop.body)
    return loop.var.extent <= UNROLL_MAP or (
        sums and loop.var.extent <= UNROLL_SUM and inside <= UNROLL_TOTAL)


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
    if isinstance(stmt, For) and stmt.kind == "chunk" and not p.has_loops(stmt) and (
            p.register_sums(stmt)):
        return p.split_chunks(stmt, SUM_BLOCK, kernel.chunk)
    return (stmt,)


def lanes(stmt: Stmt, target: Target, choices: Choices) -> tuple[Stmt, ...]:
    """Several accumulators for reductions, kept through all loops that the sum runs over."""
    if isinstance(stmt, If):
        return (replace(stmt, body=tuple(
            t for s in stmt.body for t in lanes(s, target, choices))),)
    if not isinstance(stmt, For):
        return (stmt,)
    out: list[Stmt] = []
    for s in p.interleave(stmt, max(target.lanes, FEWEST_SUMS), choices.sums):
        if isinstance(s, For):
            s = replace(s, body=tuple(
                t for inner in s.body for t in lanes(inner, target, choices)))
        out.append(s)
    return tuple(out)


def hoist_all(stmt: Stmt) -> tuple[Stmt, ...]:
    """Move what does not change out of a loop."""
    return p.hoist(stmt) if isinstance(stmt, For) else (stmt,)


def inline_single(stmt: Stmt) -> tuple[Stmt, ...]:
    """A loop of one iteration is its body."""
    if not isinstance(stmt, For) or stmt.var.extent != 1 or stmt.limit is not None:
        return (stmt,)
    if stmt.kind == "chunk" or any(isinstance(s, Alloc) for s in stmt.body):
        return (stmt,)
    return p.unroll(stmt)


def vectorize_all(stmt: Stmt) -> tuple[Stmt, ...]:
    """Mark a loop whose iterations are independent."""
    if not isinstance(stmt, For) or stmt.kind not in ("serial", "chunk"):
        return (stmt,)
    try:
        return (p.vectorize(stmt),)
    except ScheduleError:
        return (stmt,)
