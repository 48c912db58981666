"""Frozen tensors: what a captured program computes from them alone is computed once, and kept.

It is constant folding by the user's word. The graph of a capture is cut where a value depends on
frozen tensors and constants only: those values have memory of their own, which a program of its own
fills before the first call, and again when tinyc has overwritten what they were made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from tinyc import state
from tinyc.capture.panels import in_panels
from tinyc.diagnostics import Remark, TracingError, emit, format_origin
from tinyc.ir import build as b
from tinyc.ir.halves import is_widening
from tinyc.ir.node import Node, derived_from, toposort
from tinyc.ir.ops import LEAVES, Op, describe
from tinyc.realization import as_result, compute, own
from tinyc.runtime.device import get_device
from tinyc.schedule.stored import HEAVY, REDUCERS, VIEWS
from tinyc.state import Slot, clock
from tinyc.tensor import Tensor

# What is not folded: other devices, state, numbers that change, and what users ask of fusion.
_APART = (Op.COPY, Op.ASSIGN, Op.VAR, Op.BOUNDARY, Op.TOGETHER)


class Kept:
    """A value of frozen tensors alone, in memory of its own.

    `value` says what it is, on stand-ins for the memory of `sources`; `versions` are those of the
    memory when it was computed, None before.
    """

    def __init__(self, value: Node, sources: Mapping[Node, Slot]) -> None:
        self.value = value
        self.sources = dict(sources)
        self.versions: tuple[int, ...] | None = None
        buffer = get_device(state.device_of(value)).alloc(value.dtype, value.shape)
        buffer.categorize("kept")
        self.slot = Slot(buffer, value.origin)
        self.slot.born = None  # it outlives the capture

    def now(self) -> tuple[int, ...]:
        """Return the versions of what the value is made from."""
        return tuple([slot.version for slot in self.sources.values()])

    def write(self) -> Node:
        """Return the ASSIGN that computes the value."""
        leaves = {stand_in: slot.leaf() for stand_in, slot in self.sources.items()}
        with derived_from(self.value):
            return b.assign(self.slot.leaf(), state.substitute([self.value], leaves)[0])


class Folded:
    """The kept values that one captured program reads, and what is to be said of frozen tensors."""

    def __init__(self, kept: Sequence[Kept], remarks: Sequence[Remark]) -> None:
        self.kept = kept
        self.remarks = tuple(remarks)
        self._checked = -1

    def refresh(self) -> None:
        """Compute the values whose sources were overwritten since, in one program."""
        if self._checked == clock.writes:
            return
        with state.lock:
            checked = clock.writes
            late = [(kept, now) for kept in self.kept if (now := kept.now()) != kept.versions]
            if late:
                compute([], [kept.write() for kept, _ in late])
            for kept, now in late:
                kept.versions = now
            self._checked = checked

    def reads(self, slot: Slot) -> bool:
        """Tell whether a kept value is made from some memory."""
        return any(slot is source for kept in self.kept for source in kept.sources.values())


class Frozen:
    """The tensors that a user says are constant between calls, and what is kept of them.

    Programs of one function share kept values, which live as long as one of them does.
    """

    def __init__(self, what: Any) -> None:
        self._what = what if hasattr(what, "buffers") else _listed(what)
        self._stand_ins: WeakKeyDictionary[Slot, Node] = WeakKeyDictionary()
        self._kept: WeakValueDictionary[Node, Kept] = WeakValueDictionary()

    def tensors(self) -> list[Tensor]:
        """Return the tensors, a module's as they are now."""
        if isinstance(self._what, list):
            return self._what
        return [*self._what.parameters(), *self._what.buffers()]

    def forget(self) -> None:
        """Let all that is kept be computed again."""
        with state.lock:
            for kept in self._kept.values():
                kept.versions = None
            clock.writes += 1

    def own(self) -> None:
        """Give each tensor memory, which a capture can tell from other memory."""
        for tensor in self.tensors():
            own(tensor._root)

    def fold(
        self, name: str, outputs: Sequence[Node], overwritten: Sequence[Slot]
    ) -> tuple[list[Node], Folded]:
        """Return a captured graph that reads kept values, and these.

        TracingError if the program overwrites what is frozen.
        """
        slots = self._slots()
        for slot in slots.intersection(overwritten):
            raise _overwrites(name, slot)
        before = _sources(toposort(outputs), slots)
        outputs, remarks = in_panels(outputs, before)
        order = toposort(outputs)
        sources = _sources(order, slots)
        cuts = _cuts(order, outputs, sources)
        kept = {n: self._keep(n, sources[n]) for n in cuts}
        leaves = {n: value.slot.leaf() for n, value in kept.items()}
        remarks += [_remark(value) for n, value in kept.items() if n in before]
        for remark in remarks:
            emit(remark)
        nodes = state.substitute(outputs, leaves)
        nodes = [n if n.op is Op.ASSIGN else as_result(n) for n in nodes]
        return nodes, Folded(list(kept.values()), remarks)

    def _slots(self) -> set[Slot]:
        """Return the memory of the tensors; that of views is shared with others."""
        found = [tensor._root._slot for tensor in self.tensors()]
        return {slot for slot in found if slot is not None}

    def _keep(self, value: Node, leaves: Iterable[Node]) -> Kept:
        """Return what is kept of a value: the same for all programs."""
        slots = {leaf: leaf.attached for leaf in leaves}
        for leaf, slot in slots.items():
            if slot not in self._stand_ins:
                self._stand_ins[slot] = state.placeholder(leaf.shape, leaf.dtype, leaf.attrs[4])
        stand_ins = {leaf: self._stand_ins[slot] for leaf, slot in slots.items()}
        (key,) = state.substitute([value], stand_ins)
        kept = self._kept.get(key)
        if kept is None:
            named = {stand_ins[leaf]: slot for leaf, slot in slots.items()}
            kept = self._kept[key] = Kept(key, named)
        return kept


def _listed(what: Any) -> list[Tensor]:
    """Return tensors as a list: TypeError for what holds others."""
    if isinstance(what, Tensor):
        return [what]
    found = list(what.values() if isinstance(what, Mapping) else what)
    for tensor in found:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"jit: frozen holds {type(tensor).__name__}; it is a module, a tensor, "
                            "or several tensors, also as the values of a dictionary")
    return found


def _overwrites(name: str, slot: Slot) -> TracingError:
    buffer = slot.buffer
    where = f" at {format_origin(slot.written)}" if slot.written else ""
    return TracingError(
        f"{name}: {buffer.dtype}{list(buffer.shape)} (created {format_origin(slot.origin)}) is "
        f"frozen, and the function overwrites it{where}; leave it out of frozen, or overwrite it "
        "outside of the function: what is kept is computed again then"
    )


def _sources(order: Sequence[Node], slots: Set[Slot]) -> dict[Node, tuple[Node, ...]]:
    """Return, for each node that needs nothing but frozen memory and constants, that memory."""
    found: dict[Node, tuple[Node, ...]] = {}
    for n in order:
        if n.op is Op.BUFFER:
            if state.owner(n) in slots:
                found[n] = (n,)
        elif n.op not in _APART and all(s in found for s in n.src):
            found[n] = tuple(dict.fromkeys(leaf for s in n.src for leaf in found[s]))
    return found


def _cuts(
    order: Sequence[Node], outputs: Sequence[Node], sources: Mapping[Node, Sequence[Node]]
) -> list[Node]:
    """Return the values to keep: the last ones that are computed from frozen memory alone, where
    reading them is no dearer than computing them."""
    wanted = [n.src[0] if n.op is Op.MATERIALIZE else n for n in outputs if n in sources]
    wanted += [s for n in order if n not in sources for s in n.src if s in sources]
    cuts: dict[Node, None] = {}
    seen: set[Node] = set()
    while wanted:
        n = wanted.pop()
        while n.op in VIEWS or is_widening(n):
            n = n.src[0]
        if n in seen or n.op in LEAVES or not sources[n]:
            continue
        seen.add(n)
        if _pays(n, sources):
            cuts[n] = None
        else:
            wanted += n.src
    return [n for n in order if n in cuts]


def _pays(n: Node, sources: Mapping[Node, Sequence[Node]]) -> bool:
    """Tell whether a value is asked for, not larger than what it is made from, or dear."""
    if n.op is Op.MATERIALIZE or _bytes(n) <= sum(_bytes(leaf) for leaf in sources[n]):
        return True
    return any(below.op in REDUCERS or below.op in HEAVY for below in toposort([n]))


def _bytes(n: Node) -> int:
    return n.size * n.dtype.itemsize


def _remark(kept: Kept) -> Remark:
    """Return what is said of a kept value."""
    value = kept.value
    message = f"{describe(value)} is of frozen tensors alone: it is computed once and kept"
    terms = {"bytes": _bytes(value)}
    return Remark("applied", "frozen", value.op.name.lower(), message, value.origin, terms)
