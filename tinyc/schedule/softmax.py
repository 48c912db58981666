"""A softmax over rows that are cut into blocks of columns, and all that is summed of its shares.

exp(x - maximum of the row) / sum of the row needs a complete row. Here each block of columns has a
maximum, a sum of exponentials, and sums of what these multiply, of its own; at the end of the row
they are combined, each weighted with exp(its maximum - that of the row) / sum of the row. So one
loop over blocks of columns is enough; see Milakov and Gimelshein, "Online normalizer calculation
for softmax" (2018), and Rabe and Staats, "Self-attention does not need O(n^2) memory" (2021).

Sums of exponentials can overflow where those of shares do not, and an infinity counts whose share
is zero (0 times infinity is NaN). Both leave numbers that are not finite: where a block of rows has
one, its sums are made anew, of shares, in a loop that else runs for no column at all.
"""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tinyc.ir.dtype import bool_, i64
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import Apply, Const, Expr, Read, substitute, walk
from tinyc.ir.ops import Op
from tinyc.ir.plan import Buf, Stage
from tinyc.schedule.chains import runs_at
from tinyc.schedule.remake import read_from
from tinyc.schedule.skip import new_stage, own
from tinyc.schedule.tiling import Redo, Tiling


@dataclass
class Softmax:
    """The members exp(scores - shift) and their sums, where `shift` is a function of `top`, the
    maximum of a row, which is read at `at`."""

    top: Stage
    exps: Stage
    totals: list[Stage]
    scores: Read
    shift: Expr
    at: tuple[Affine, ...]


@dataclass
class Parts:
    """A softmax in blocks of columns: exponentials with the maximum of their block, and the weight
    of each block, which is read at `at` where an exponential stands at its axes."""

    local: Stage
    weight: Stage
    at: tuple[Affine, ...]


def find_softmax(t: Tiling, top: Stage) -> Softmax | None:
    """The softmax that a maximum belongs to."""
    if top.kind != "max" or not adds_rows(t, top):
        return None
    for exps in t.body:
        match exps.expr:
            case Apply(Op.EXP, (Apply(Op.SUB, (Read() as scores, shift)),)) if (
                    scores.buf is top.reads[0].buf and runs_at(scores, exps.axes)):
                at = only_read(shift, top)
                totals = [s for s in t.body if s.kind == "sum" and adds_rows(t, s)
                          and s.reads[0].buf is exps.buf]
                if at is not None and totals:
                    return Softmax(top, exps, totals, scores, shift, at)
    return None


def adds_rows(t: Tiling, stage: Stage) -> bool:
    """True for the sum, or maximum, of whole rows of tiles."""
    own = [v for v in stage.red if v.extent > 1]
    return (isinstance(stage.expr, Read) and not stage.expr.guard and t.sums_columns(stage)
            and t.rows[stage] in stage.axes and len(own) == 2)


def only_read(expr: Expr, stage: Stage) -> tuple[Affine, ...] | None:
    """Where an expression reads a stage's value, if that is all that it depends on."""
    leaves = [e for e in walk(expr) if not isinstance(e, (Apply, Const))]
    reads = [e for e in leaves if isinstance(e, Read) and e.buf is stage.buf and not e.guard]
    same = len(reads) == len(leaves) > 0 and all(r.index == reads[0].index for r in reads)
    return reads[0].index if same else None


def split_softmax(t: Tiling, found: Softmax, sums: bool) -> None:
    """Add up exponentials with a maximum for each block of columns, weighted at a row's end; with
    `sums` so, too, what is summed of shares, once for each chain."""
    late = behind(t, found.top)
    parts = split_totals(t, found)
    for shares in t.body if sums else ():
        match shares.expr:
            case Apply(Op.DIV, (Read() as x, scale)) if (
                    x.buf is found.exps.buf and runs_at(x, shares.axes) and t.redo is None):
                total = next((s for s in found.totals if only_read(scale, s)), None)
                if total is not None:
                    sum_parts(t, found, parts, shares, total, scale, late)


def split_totals(t: Tiling, found: Softmax) -> Parts:
    """Give blocks of columns a maximum and sums of exponentials, and rows those of their blocks."""
    exps, dtype = found.exps, found.exps.dtype
    block = t.part(found.top)
    at = t.place(block)
    top = Read(block.buf, (*found.at[:at], Affine.of(t.columns[exps]), *found.at[at:]))
    t.combine(found.top, block)
    masked = Apply(Op.EQ, (top, Const(-math.inf, dtype)), bool_)  # -inf - -inf would be NaN
    shift = Apply(Op.WHERE, (masked, Const(0.0, dtype), top), dtype)
    local = t.again(exps)
    t.compute(local, moved(exponential(found.scores, shift), exps.axes, local.axes), block)
    weight = t.block_value(block, exps)
    places = [v for i in top.index for v in [i.as_var()]]
    t.compute(weight, moved(exponential(top, found.shift), places, weight.axes), block, found.top)
    parts = Parts(local, weight, top.index)
    for total in found.totals:
        part = t.part(total)
        read_from(part, {exps.buf: local})
        t.combine(total, part, weight_at(parts, exps, total, exps.buf), weight)
    return parts


def weight_at(parts: Parts, exps: Stage, reader: Stage, buf: Buf) -> Read:
    """The weight of a block for a stage that reads one element of it, as an element of `buf`."""
    index = next(r.index for r in reader.reads if r.buf is buf)
    names = dict(zip(exps.axes, index))
    return Read(parts.weight.buf, tuple(i.substitute(names) for i in parts.at))


def exponential(x: Expr, shift: Expr) -> Expr:
    """exp(x - shift)."""
    return Apply(Op.EXP, (Apply(Op.SUB, (x, shift), x.dtype),), x.dtype)


def moved(expr: Expr, old: Iterable[Var | None], new: Iterable[Var]) -> Expr:
    """An expression in other variables."""
    return substitute(expr, {v: Affine.of(u) for v, u in zip(old, new) if v is not None})


# -- sums of shares ------------------------------------------------------------------------------


def sum_parts(t: Tiling, found: Softmax, parts: Parts, shares: Stage, total: Stage, scale: Expr,
              late: set[Stage]) -> None:
    """Let sums over columns that are linear in shares be sums of blocks, of exponentials; where
    one is not finite, they are made anew."""
    sums = linear_sums(t, shares, late)
    if not any(s.kind == "contract" for s in sums):
        return
    weight = t.block_value(parts.weight, shares)
    index = dict(zip(shares.axes, found.exps.axes))
    places = [v for i in parts.at for v in [i.as_var()]]
    share = Apply(Op.DIV, (Read(parts.weight.buf, parts.at),
                           moved(scale, index.keys(), index.values())), shares.dtype)
    t.compute(weight, moved(share, places, weight.axes), parts.weight, total)
    weighted = Parts(parts.local, weight, parts.at)
    plain = {shares: parts.local}
    combined: dict[Stage, Stage] = {}
    for s, source in sums.items():
        if s.kind == "map":
            plain[s] = t.again(s)
            read_from(plain[s], {source.buf: plain[source]})
            continue
        part, combined[s] = t.part(s), t.again(s)
        read_from(part, {source.buf: plain[source]})
        t.combine(combined[s], part, weight_at(weighted, found.exps, combined[s], source.buf),
                  weight)
    remake_if_not_finite(t, combined)


def behind(t: Tiling, stage: Stage) -> set[Stage]:
    """A member and those that wait for it."""
    found = {stage}
    for s in t.body:
        if not found.isdisjoint(s.producers):
            found.add(s)
    return found


def linear_sums(t: Tiling, shares: Stage, late: set[Stage]) -> dict[Stage, Stage]:
    """Sums over columns that are linear in shares, and multiples of shares that they add up; each
    with the one that it reads. What else they read is there before a row's maximum."""
    multiples, found = {shares}, dict[Stage, Stage]()
    for s in t.body:
        sources = [p for p in s.producers if p in multiples]
        if len(sources) != 1 or s in t.parts or s in t.ends or not is_linear(
                s.expr, sources[0].buf) or any(p in late for p in s.producers if p not in sources):
            continue
        if t.is_tile(s) and s.kind == "map" and all(
                runs_at(r, s.axes) for r in s.reads if r.buf is sources[0].buf):
            multiples.add(s)
            found[s] = sources[0]
        elif s.kind in ("sum", "contract") and t.rows[s] in s.axes and t.sums_columns(s):
            found[s] = sources[0]
    return found


def is_linear(expr: Expr, buf: Buf) -> bool:
    """True if an expression is a multiple of a value, wherever it isn't zero."""
    if isinstance(expr, Read):
        return expr.buf is buf and not expr.guard
    if not isinstance(expr, Apply):
        return False
    mine = [any(isinstance(e, Read) and e.buf is buf for e in walk(a)) for a in expr.args]
    if expr.op is Op.MUL:
        return sum(mine) == 1 and is_linear(expr.args[mine.index(True)], buf)
    if expr.op is Op.DIV:
        return mine == [True, False] and is_linear(expr.args[0], buf)
    if expr.op is Op.WHERE:
        return not mine[0] and all(is_linear(a, buf) or (isinstance(a, Const) and not a.value)
                                   for a in expr.args[1:])
    return False


def remake_if_not_finite(t: Tiling, combined: dict[Stage, Stage]) -> None:
    """Choose between each combined sum and one of shares, which a loop makes for blocks of rows
    where a combined sum is not finite."""
    checks = [finite_check(t, s) for s in combined.values()]
    some = checks[0]
    fresh = tuple(Var(f"{v.name}g", v.extent) for v in some.axes)
    reads = [Read(c.buf, tuple(map(Affine.of, fresh))) for c in checks]
    good: Expr = Const(True, bool_)
    for k, read in enumerate(reads):
        zero = Apply(Op.EQ, (read, Const(0.0, read.dtype)), bool_)
        good = Apply(Op.AND, (good, zero), bool_) if k else zero
    count = t.columns[next(iter(combined))].extent
    expr = Apply(Op.WHERE, (good, Const(0, i64), Const(count, i64)), i64)
    again = new_stage(t.plan, t.number(), some.node, fresh, (), "map", expr, reads, checks)
    t.add_end(again, fresh[-1])
    t.redo = Redo(again)
    for s, mine in combined.items():
        whole = t.again(s)
        t.redo.sums.add(whole)
        at = tuple(map(Affine.of, s.axes))
        index = (*(own(t.plan, s, u) for u in t.loops), Affine.of(t.rows[s]))
        use = Apply(Op.EQ, (Read(again.buf, index), Const(0, i64)), bool_)
        s.kind, s.red, s.blocks, s.limits = "map", (), (), {}
        t.compute(s, Apply(Op.WHERE, (use, Read(mine.buf, at), Read(whole.buf, at)), s.dtype),
                  again, mine, whole)
        t.ends.add(s)


def finite_check(t: Tiling, stage: Stage) -> Stage:
    """For each block of rows a sum that is zero if all of a value is finite, else NaN."""
    kept = [*(own(t.plan, stage, u).as_var() for u in t.loops), t.rows[stage]]
    fresh = {v: Var(f"{v.name}f", v.extent) for v in stage.axes}
    axes = tuple(fresh[v] for v in kept if v is not None)
    read = Read(stage.buf, tuple(Affine.of(v) for v in fresh.values()))
    expr = Apply(Op.MUL, (read, Const(0.0, read.dtype)), read.dtype)
    check = new_stage(t.plan, t.number(), stage.node, axes,
                      tuple(v for v in fresh.values() if v not in axes), "sum", expr, [read],
                      [stage])
    t.add_end(check, axes[-1])
    return check
