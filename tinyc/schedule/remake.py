"""Make large values anew for their late readers, where a program would need much memory at once.

Between the forward and the backward pass all that a training step saves is alive. Much of it can
be made again from the rest: probabilities of attention from queries, keys and two numbers for each
row, values of GELU from its argument. That costs work, so nothing is made anew that is small, or
dear for its size, and no more than brings the peak below a limit.
"""
from __future__ import annotations

from dataclasses import replace

from tinyc.diagnostics import Remark
from tinyc.ir.cost import stage_work
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import Check, Expr, Read, Storage, walk
from tinyc.ir.plan import Buf, Hint, Plan, Stage
from tinyc.schedule.recompute import Readers, can_inline, inline, is_plain, is_there
from tinyc.schedule.stored import KEPT

# A program may keep so many bytes between kernels at once.
ENOUGH = 192 << 20
# Values below this size are kept.
LARGE = 1 << 20
# Weighted operations that a byte is worth: cheap values go first, then products of heads.
WORK_PER_BYTE = (8, 48)
# What begins to be kept for it has at most this share of a value's bytes.
NEW_SHARE = 1 / 16


class Peak:
    """The kernel during which most is kept, how much that is, and who reads it afterwards."""

    def __init__(self, plan: Plan, known: Readers) -> None:
        self.known = known
        ends: dict[Storage, tuple[int, int]] = {}
        for stage in plan.stages:
            nest = known.home[stage].number
            for storage in {stage.buf.storage, *(r.buf.storage for r in stage.reads)}:
                if storage.role == "arena":
                    first, last = ends.get(storage, (nest, nest))
                    ends[storage] = min(first, nest), max(last, nest)
        kept = [0] * (len(plan.nests) + 1)
        for storage, (first, last) in ends.items():
            if first < last:
                kept[first] += storage.nbytes
                kept[last] -= storage.nbytes
        for i in range(1, len(kept)):
            kept[i] += kept[i - 1]
        self.nbytes = max(kept)
        self.nest = kept.index(self.nbytes)

    def late(self, stage: Stage) -> list[Stage]:
        """The readers of a value in kernels after the peak, if it is made before."""
        known = self.known
        if known.home[stage].number > self.nest:
            return []
        return sorted((r for r in known.readers.get(stage.buf, ())
                       if known.home[r].number > self.nest), key=known.order.__getitem__)


def remake(plan: Plan) -> list[Remark]:
    """Give late readers values of their own; changes `plan.stages`, which are placed.

    From the last value to the first, so that it is known what is read late; cheap ones before dear.
    """
    known = Readers(plan)
    peak = Peak(plan, known)
    remarks: list[Remark] = []
    over = peak.nbytes - ENOUGH
    for limit in WORK_PER_BYTE:
        for stage in reversed(tuple(plan.stages)):
            readers = peak.late(stage) if over > 0 else []
            if not readers or stage.buf.storage.nbytes < LARGE or not make_anew(
                    plan, peak, stage, readers, limit):
                continue
            over -= stage.buf.storage.nbytes
            remarks.append(Remark(
                "applied", "remake", stage.name,
                f"made anew for {', '.join(r.name for r in readers)}", stage.node.origin,
                {"bytes": stage.buf.storage.nbytes, "peak": peak.nbytes}))
    return remarks


def make_anew(plan: Plan, peak: Peak, stage: Stage, readers: list[Stage], limit: int) -> bool:
    """Let late readers compute a value themselves, or read what is made for them; False if they
    can't, or if it takes more than `limit` operations for each byte."""
    known = peak.known
    chain = chain_of(peak, stage, readers[0], plan.hints)
    if not chain or sum(map(stage_work, chain)) > limit * stage.buf.storage.nbytes:
        return False
    if all(takes(known, s, r) for s in chain for r in readers):
        for s in reversed(chain):
            for reader in readers:
                if reader in known.readers[s.buf]:
                    inline(known, reader, s)
        return True
    before = max(readers[0].producers, key=known.order.__getitem__)
    if known.home[before].number <= peak.nest:
        return False
    make_again(plan, known, chain, readers, before)
    return True


def takes(known: Readers, stage: Stage, reader: Stage) -> bool:
    """True if a reader computes a value as part of its own expression, once for each element."""
    return (stage.kind == "map" and reader.points() <= stage.points()
            and can_inline(known, stage, reader))


def chain_of(peak: Peak, stage: Stage, reader: Stage, hints: list[Hint]) -> list[Stage]:
    """The stages to run again before a reader, in order: all that is not there then anyhow.

    Empty if some of it can't be had.
    """
    known, limit = peak.known, stage.buf.storage.nbytes * NEW_SHARE
    chain: dict[Stage, None] = {}
    waiting = [stage]
    while waiting:
        s = waiting.pop()
        if s in chain:
            continue
        if not can_repeat(known, s) or any(s.node in hint.members for hint in hints):
            return []
        chain[s] = None
        for buf in dict.fromkeys(r.buf for r in s.reads):
            if not is_there(known, buf, reader):
                return []
            maker = known.producer(buf)
            if maker is not None and not peak.late(maker) and buf.storage.nbytes > limit:
                waiting.append(maker)
    return sorted(chain, key=known.order.__getitem__)


def can_repeat(known: Readers, stage: Stage) -> bool:
    """True for a map or product of plain reads, with memory of the arena to itself."""
    storage = stage.buf.storage
    return (
        stage.kind in ("map", "contract") and stage.node.op not in KEPT and storage.role == "arena"
        and known.writers[storage] == [stage] and known.regions.get(storage) == {stage.buf}
        and all(map(is_plain, stage.reads))
        and not any(isinstance(e, Check) for e in walk(stage.expr)))


def make_again(plan: Plan, known: Readers, chain: list[Stage], readers: list[Stage],
               before: Stage) -> None:
    """Repeat a chain before the first of its readers; all of them read what that makes.

    It runs after `before`, for which the first reader waits, too: it would join the kernel of the
    values that it repeats else.
    """
    first, last = readers[0], chain[-1]
    number = 1 + max(s.number for s in plan.stages)
    made: dict[Buf, Stage] = {}
    for stage in chain:
        copy = repeated(plan, stage, number + len(made))
        copy.after = [before]
        read_from(copy, made)
        made[stage.buf] = copy
        known.home[copy] = known.home[first]
        known.writers[copy.buf.storage] = [copy]
        known.note(copy)
        for slot in {r.buf.storage for r in copy.reads if r.buf.storage.role == "slot"}:
            for writer in known.writers.get(slot, ()):
                writer.after.append(copy)
    at = plan.stages.index(first)
    plan.stages[at:at] = made.values()
    known.order = {stage: i for i, stage in enumerate(plan.stages)}
    for reader in readers:
        read_from(reader, {last.buf: made[last.buf]})
        del known.readers[last.buf][reader]
        known.note(reader)


def repeated(plan: Plan, stage: Stage, number: int) -> Stage:
    """A stage that does what another does, with variables and memory of its own."""
    names = {v: Var(v.name, v.extent) for v in (*stage.axes, *stage.red)}
    old = stage.buf
    storage = Storage(f"{old.storage.name}_{number}", old.storage.size, old.dtype, "arena")
    plan.storages.append(storage)
    copy = replace(
        stage, number=number, buf=Buf(storage, old.shape, old.strides, old.offset),
        axes=tuple(names[v] for v in stage.axes), red=tuple(names[v] for v in stage.red),
        hoist=names[stage.hoist] if stage.hoist else None,
        blocks=tuple(names[v] for v in stage.blocks),
        limits={names[v]: limit for v, limit in stage.limits.items()})
    index = {v: Affine.of(u) for v, u in names.items()}
    copy.rewrite(lambda e: e, lambda a: a.substitute(index))
    return copy


def read_from(stage: Stage, made: dict[Buf, Stage]) -> None:
    """Let a stage read what other stages make in place of what it reads now."""
    def leaf(e: Expr) -> Expr:
        return replace(e, buf=made[e.buf].buf) if isinstance(e, Read) and e.buf in made else e

    stage.rewrite(leaf)
    stage.producers = list(dict.fromkeys(made.get(p.buf, p) for p in stage.producers))
