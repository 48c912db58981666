"""Compute cheap values again where other kernels need them, instead of keeping them in memory.

Runs on placed stages, since it must know what crosses from one kernel to another; what it
changes is placed anew. In the backward pass of layer norm, say, `x - mean` is one subtraction of
values that are kept anyhow.
"""
from __future__ import annotations

from tinyc.diagnostics import Remark
from tinyc.ir.cost import expression_weight
from tinyc.ir.loop import Apply, Check, Expr, Read, Storage, substitute, walk
from tinyc.ir.plan import Buf, Nest, Plan, Stage
from tinyc.schedule.stored import KEPT

# Weighted operations that one element may take again in each reader: less than a division.
WEIGHT_LIMIT = 5
# What starts to cross kernels in a value's place has at most this share of its bytes.
NEW_SHARE = 0.25


class Readers:
    """Who stores and who reads what, and where; kept up to date as reads are replaced."""

    def __init__(self, plan: Plan):
        self.home: dict[Stage, Nest] = {s: nest for nest in plan.nests for s in nest.stages()}
        self.order = {stage: i for i, stage in enumerate(plan.stages)}
        self.writers: dict[Storage, list[Stage]] = {}
        self.regions: dict[Storage, set[Buf]] = {}
        self.readers: dict[Buf, dict[Stage, None]] = {}
        for stage in plan.stages:
            self.writers.setdefault(stage.buf.storage, []).append(stage)
            self.note(stage)

    def note(self, stage: Stage) -> None:
        """Book the reads of a stage."""
        for read in stage.reads:
            self.readers.setdefault(read.buf, {})[stage] = None
            self.regions.setdefault(read.buf.storage, set()).add(read.buf)

    def away(self, stage: Stage) -> list[Stage]:
        """The readers of a stage's value in other kernels."""
        here = self.home[stage]
        return [r for r in self.readers.get(stage.buf, ()) if self.home[r] is not here]

    def producer(self, buf: Buf) -> Stage | None:
        """The stage that makes a value, if it is one that stays in the arena."""
        made = [s for s in self.writers.get(buf.storage, ()) if s.buf is buf]
        return made[0] if made and buf.storage.role == "arena" else None


def recompute(plan: Plan) -> list[Remark]:
    """Replace reads of cheap values by their expressions; changes `plan.stages`."""
    known, inlined, remarks = Readers(plan), [], []
    for stage in reversed(plan.stages):
        readers = known.away(stage)
        if readers and is_cheap(known, stage) and all(
                can_inline(known, stage, r) for r in readers) and pays(known, stage):
            for reader in readers:
                inline(known, reader, stage)
            inlined.append(stage)
            remarks.append(Remark(
                "applied", "recompute", stage.name,
                f"computed again by {', '.join(r.name for r in readers)}", stage.node.origin,
                {"bytes": stage.buf.storage.nbytes, "operations": expression_weight(stage.expr)}))
    drop(plan, {s for s in inlined if not known.readers.get(s.buf)})
    return remarks


def is_cheap(known: Readers, stage: Stage) -> bool:
    """True for a few operations on plain reads, stored for the use of others alone."""
    storage = stage.buf.storage
    if stage.kind != "map" or storage.role != "arena" or stage.node.op in KEPT:
        return False
    if len(known.writers[storage]) > 1 or known.regions.get(storage) != {stage.buf}:
        return False  # a part of something larger, or read in parts
    if not isinstance(stage.expr, Apply):
        return False
    if any(isinstance(e, Check) for e in walk(stage.expr)) or not all(map(is_plain, stage.reads)):
        return False
    return expression_weight(stage.expr) <= WEIGHT_LIMIT


def is_plain(read: Read) -> bool:
    """True for a read without a guard, at an index that does not depend on data."""
    return not read.guard and not any(e for i in read.index for e in i.data())


def can_inline(known: Readers, stage: Stage, reader: Stage) -> bool:
    """True if a reader takes an expression in place of a read, and finds all that it needs."""
    if reader.kind in ("contract", "scatter"):
        return False
    if not all(is_plain(r) for r in reader.reads if r.buf is stage.buf):
        return False
    return all(is_there(known, read.buf, reader) for read in stage.reads)


def is_there(known: Readers, buf: Buf, reader: Stage) -> bool:
    """True if a value is whole, and not overwritten, when the reader needs it."""
    writers = known.writers.get(buf.storage, [])
    if buf.storage.role == "slot":
        return all(known.order[w] > known.order[reader] for w in writers)
    return len(writers) == 1


def pays(known: Readers, stage: Stage) -> bool:
    """True if what crosses kernels only for the expression is small beside the value."""
    new = 0
    for buf in dict.fromkeys(r.buf for r in stage.reads):
        producer = known.producer(buf)
        if producer is not None and not known.away(producer):
            new += buf.storage.nbytes
    return new <= NEW_SHARE * stage.buf.storage.nbytes


def inline(known: Readers, reader: Stage, stage: Stage) -> None:
    """Put a stage's expression in the place of each read of its value."""
    same: dict[tuple, Read] = {}

    def once(e: Expr) -> Expr:
        return same.setdefault((e.buf, e.index, e.guard), e) if isinstance(e, Read) else e

    def leaf(e: Expr) -> Expr:
        if isinstance(e, Read) and e.buf is stage.buf:
            return substitute(stage.expr, dict(zip(stage.axes, e.index)))
        return e

    reader.rewrite(leaf)
    reader.rewrite(once)
    reader.members = tuple(dict.fromkeys((*reader.members, stage.node, *stage.members)))
    producers = dict.fromkeys(reader.producers)
    del producers[stage]
    reader.producers = list(dict.fromkeys((*producers, *stage.producers)))
    del known.readers[stage.buf][reader]
    known.note(reader)
    for read in stage.reads:
        if read.buf.storage.role == "slot":
            for writer in known.writers.get(read.buf.storage, ()):
                writer.after = list(dict.fromkeys((*writer.after, reader)))


def drop(plan: Plan, gone: set[Stage]) -> None:
    """Remove values that nobody reads any more, and their memory."""
    plan.stages = [s for s in plan.stages if s not in gone]
    storages = {s.buf.storage for s in gone}
    plan.storages = [s for s in plan.storages if s not in storages]
    for s in plan.stages:
        s.after = [p for p in s.after if p not in gone]
