"""Let other kernels read a padded copy in place of the value that it was made from.

A convolution with padding reads a padded copy, which is kept for the gradient of its weights. The
value itself is wanted later, too: by a residual connection, by the gradient of relu. Each element
of it is in the copy, so one array is enough.
"""
from __future__ import annotations

from dataclasses import replace

from tinyc.diagnostics import Remark
from tinyc.ir.index import Affine
from tinyc.ir.loop import Expr, Read
from tinyc.ir.plan import Plan, Stage
from tinyc.schedule.recompute import Readers, is_there


def read_padded(plan: Plan) -> list[Remark]:
    """Redirect reads to padded copies; changes `plan.stages`, which are placed."""
    known, remarks = Readers(plan), []
    for pad in plan.stages:
        margin = margin_of(pad)
        value = known.producer(pad.reads[0].buf) if margin is not None else None
        if margin is None or value is None or known.home[pad] is not known.home[value]:
            continue
        readers = known.away(value)
        if readers and is_whole(known, value) and is_whole(known, pad) and all(
                may_read(known, r, pad) for r in readers):
            for reader in readers:
                redirect(known, reader, value, pad, margin)
            remarks.append(Remark(
                "applied", "recompute", value.name,
                f"{', '.join(r.name for r in readers)} read the padded copy {pad.name}",
                value.node.origin, {"bytes": value.buf.storage.nbytes}))
    return remarks


def margin_of(pad: Stage) -> tuple[int, ...] | None:
    """How far a stage moves all elements of what it copies, by axis; None if it does otherwise."""
    read = pad.expr
    if pad.kind != "map" or not isinstance(read, Read) or not read.guard:
        return None
    moved = [Affine.of(v) - i for v, i in zip(pad.axes, read.index)]
    inside = all(m.is_const and 0 <= m.const <= wide - narrow
                 for m, wide, narrow in zip(moved, pad.buf.shape, read.buf.shape))
    return tuple(m.const for m in moved) if inside else None


def is_whole(known: Readers, stage: Stage) -> bool:
    """True for a value with a storage of the arena to itself, of which no part is read apart."""
    storage = stage.buf.storage
    return (storage.role == "arena" and known.writers[storage] == [stage]
            and known.regions.get(storage) == {stage.buf})


def may_read(known: Readers, reader: Stage, pad: Stage) -> bool:
    """True if a stage comes after the copy; contractions keep to rows without margins."""
    return (reader.kind not in ("contract", "scatter") and is_there(known, pad.buf, reader)
            and known.order[pad] < known.order[reader])


def redirect(known: Readers, reader: Stage, value: Stage, pad: Stage,
             margin: tuple[int, ...]) -> None:
    """Let a stage read the padded copy in place of the value."""
    def leaf(e: Expr) -> Expr:
        if not isinstance(e, Read) or e.buf is not value.buf:
            return e
        return replace(e, buf=pad.buf, index=tuple(i + m for i, m in zip(e.index, margin)))

    reader.rewrite(leaf)
    reader.producers = list(dict.fromkeys(pad if p is value else p for p in reader.producers))
    del known.readers[value.buf][reader]
    known.note(reader)
