"""Computing what handles refer to: which nodes, from which memory, and what is bound afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from weakref import ref

import numpy as np

from tinyc import state
from tinyc.compiler import executable_for, execute
from tinyc.diagnostics import BoundsError, Origin, StaleError, TracingError, format_origin
from tinyc.ir import build as b
from tinyc.ir.dtype import DType, stored
from tinyc.ir.evaluate import EVAL
from tinyc.ir.node import Node, node, spell, toposort, with_sources
from tinyc.ir.ops import Op
from tinyc.runtime import recorder
from tinyc.runtime.buffer import Buffer, address_of
from tinyc.runtime.device import copy_of, get_device
from tinyc.state import (
    GRAD,
    Handle,
    Slot,
    clock,
    definition,
    device_of,
    live_expressions,
    owner,
    pending,
    stored_leaf,
)


def add_leaf(handle: Handle) -> None:
    """Make a handle one that wants a gradient: it gets memory, so a node that is its alone."""
    root = handle._root
    if state.capturing.trace is None:
        own(root)
    if root._slot is None:
        # The root keeps its graph; this handle gets a value of its own.
        node = handle.node
        handle._parent = None
        if state.capturing.trace is None:
            handle._slot = Slot(compute([node])[0], node.origin)
            handle._made_of, handle._checked = None, -1
        else:
            handle._node = state.placeholder(node.shape, node.dtype, device_of(node))
            state.define(handle._node, node)
            state.capturing.trace.leaves[handle._node] = ref(handle)
    handle._mode = GRAD
    handle._is_leaf = True
    if handle._root._slot is not None:
        state.register_leaf(handle)


def is_known(handle: Handle) -> bool:
    """Tell whether the value is in memory and up to date."""
    root = handle._root
    if root._slot is not None:
        return root._slot.pending is None
    return stored_leaf(root._node) is not None


def realize(handles: Iterable[Handle] = ()) -> None:
    """Compute expressions, all pending writes, and live expressions that read what is replaced.

    Within a capture nothing is computed: the program does that. StaleError names a tensor that
    was overwritten and is still read. When a program fails, pending writes are dropped.
    """
    if state.capturing.trace is not None:
        return
    with state.lock:
        roots: dict[int, Handle] = {}
        for handle in handles:
            _add_unknown(roots, handle._root)
        if not roots and not pending:
            return
        if recorder.active is None:
            run(_with_others(roots))
        else:
            with recorder.span("realize", "python"):
                run(_with_others(roots))


def _with_others(roots: dict[int, Handle]) -> list[Handle]:
    """Return the expressions to compute, with those that belong to the same program."""
    for handle in list(roots.values()):
        for member in handle._group or ():
            other = member()
            if other is not None:
                _add_unknown(roots, other._root)
        handle._group = None
    if pending:
        for handle in readers({slot.buffer.uid for slot in pending.values()}):
            roots.setdefault(id(handle), handle)
    return list(roots.values())


def _add_unknown(roots: dict[int, Handle], root: Handle) -> None:
    # A graph that was given up goes once the handle has the value in memory of its own.
    if root._slot is None and (root._freed or stored_leaf(root._node) is None):
        roots[id(root)] = root


def run(expressions: list[Handle]) -> None:
    """Compute expressions and all pending writes."""
    slots = list(pending.values())
    writes = [slot.pending for slot in slots if slot.pending is not None]
    try:
        buffers = compute([handle._node for handle in expressions], writes)
    except BaseException as error:
        drop_pending()
        spoil(error, slots)
        raise
    for slot, write in zip(slots, writes):
        slot.overwritten()
        write.attached = slot.leaf()
    pending.clear()
    clock.writes += 1
    for handle, buffer in zip(expressions, buffers):
        _bind(handle, buffer)


def _bind(handle: Handle, buffer: Buffer) -> None:
    """Let an expression refer to its value in memory of its own."""
    computed = handle._node
    slot = Slot(buffer, computed.origin)
    leaf = slot.leaf(own_line=True)
    # Constants belong to no device, so their value on one is not theirs.
    if computed.op is not Op.BUFFER and computed.device is not None:
        computed.attached = leaf
    if handle._mode & GRAD and not handle._freed:
        handle._computed = True
        return
    slot.freed = handle._freed
    handle._slot = slot
    handle._node = leaf
    handle._made_of = slot.version
    handle._checked = clock.writes


def own(root: Handle) -> None:
    """Give an expression its value in memory that nobody else writes to."""
    if root._slot is None and not root._computed:
        realize([root])
        if root._slot is None and not root._computed:
            run([root])


def spoil(error: BaseException, slots: Iterable[Slot]) -> None:
    """Say which tensors a program may have overwritten before it met an index out of range."""
    if not isinstance(error, BoundsError):
        return
    changed = [slot for slot in slots if slot.buffer.ptr in error.overwritten]
    if changed:
        for slot in changed:
            slot.overwritten()
        shapes = [
            f"{s.buffer.dtype}{list(s.buffer.shape)} (created {format_origin(s.origin)})"
            for s in changed
        ]
        more = f" and {len(shapes) - 3} more" if len(shapes) > 3 else ""
        raise BoundsError(
            f"{error}; the state that the program overwrote before is spoiled: "
            + ", ".join(shapes[:3])
            + more
        ) from None


def drop_pending() -> None:
    """Forget all pending writes: their tensors keep the values they have."""
    for slot in pending.values():
        slot.pending = None
    pending.clear()
    clock.writes += 1


def readers(uids: set[int]) -> list[Handle]:
    """Return the live expressions whose computation reads one of these buffers."""
    live = live_expressions()
    if not live:
        return live
    order, cuts = _order([handle._node for handle in live])
    reached: set[Node] = set()
    for n in order:
        leaf = cuts.get(n, n)
        if leaf.op is Op.BUFFER:
            if leaf.attrs[0] in uids:
                reached.add(n)
        elif any(s in reached for s in n.src):
            reached.add(n)
    return [handle for handle in live if handle._node in reached]


def _order(outputs: Sequence[Node]) -> tuple[list[Node], dict[Node, Node]]:
    """Return the nodes to compute, sources first, and what replaces some of them.

    A node whose value is stored is replaced by its leaf, a placeholder by what it stands for;
    what only they need is left out.
    """
    order: dict[Node, None] = {}
    cuts: dict[Node, Node] = {}
    stack = list(outputs)[::-1]
    while stack:
        top = stack[-1]
        if top in order:
            stack.pop()
            continue
        sources = top.src
        if top.attached is not None and top not in cuts:
            leaf = stored_leaf(top)
            if leaf is not None:
                cuts[top] = leaf
        if top in cuts:
            sources = ()
        elif top.op is Op.BUFFER:
            defined = definition(top)
            if defined is not None:
                cuts[top] = defined
                sources = (defined,)
        waiting = [s for s in sources if s not in order]
        if waiting:
            stack.extend(reversed(waiting))
        else:
            order[top] = None
            stack.pop()
    return list(order), cuts


def resolve(nodes: Sequence[Node], writes: Sequence[Node]) -> list[Node]:
    """Return what a captured program computes, in terms of its inputs and of state.

    Placeholders are replaced by what they stand for, where that is known.
    """
    outputs = [*nodes, *writes]
    mapping: dict[Node, Node] = {}
    for n in toposort(outputs):
        defined = definition(n) if n.op is Op.BUFFER else None
        if defined is not None:
            mapping[n] = defined
    if mapping:
        outputs = state.substitute(outputs, mapping)
        return resolve(outputs[: len(nodes)], outputs[len(nodes) :])
    carried_out = _chains(writes)
    new: dict[Node, Node] = {}
    for n in toposort(outputs):
        new[n] = _with_sources(n, tuple([new[s] for s in n.src]), carried_out)
    return [as_result(new[n]) for n in nodes] + [new[n] for n in writes]


def _chains(writes: Sequence[Node]) -> set[Node]:
    """Return the ASSIGNs that a program carries out: the writes and those before them."""
    found = set()
    for n in writes:
        while n.op is Op.ASSIGN:
            found.add(n)
            n = n.src[0]
    return found


def _with_sources(n: Node, sources: tuple[Node, ...], carried_out: set[Node]) -> Node:
    """Return a node on other sources; a write that is not carried out becomes a value."""
    if n.op is Op.ASSIGN and n not in carried_out:
        return state.replaced(sources[0], n.attrs, sources[1])
    return with_sources(n, sources)


def as_result(n: Node) -> Node:
    """Return a node as an output that gives a value: state is copied."""
    return node(Op.MATERIALIZE, (n,)) if n.op in (Op.BUFFER, Op.ASSIGN) else n


def _cut(nodes: Sequence[Node], writes: Sequence[Node]) -> tuple[list[Node], dict[int, Buffer]]:
    """Return nodes and writes as they are computed from memory, and that memory by uid."""
    outputs = [*nodes, *writes]
    carried_out = _chains(writes)
    order, cuts = _order(outputs)
    new: dict[Node, Node] = {}
    memory: dict[int, Buffer] = {}
    for n in order:
        leaf = cuts.get(n)
        if leaf is None:
            if n.op is Op.SLICE and n.src[0].op is Op.BUFFER:
                leaf = _part(n, memory)
        elif leaf.op is not Op.BUFFER:
            leaf = new[leaf]
        if leaf is None and n.op is Op.BUFFER:
            leaf = n
        if leaf is not None:
            new[n] = leaf
            if leaf.op is Op.BUFFER and leaf.attrs[0] not in memory:
                memory[leaf.attrs[0]] = _memory_of(leaf).buffer
        else:
            new[n] = _with_sources(n, tuple([new[s] for s in n.src]), carried_out)
    return [new[n] for n in outputs], memory


def _computed_as_it_is(
    nodes: Sequence[Node], writes: Sequence[Node]
) -> Sequence[Buffer | None] | None:
    """Return the values of a graph no part of which is stored or replaced; None of another.

    This is how eager code and known steps run, so the graph is walked once.
    """
    for n in nodes:
        if n.op in _ELSEWHERE or n.device is None:
            return None
    outputs = [*nodes, *writes] if writes else nodes
    if len(outputs) > 1 and not _is_one_program(outputs):
        return None
    key, leaves, order, rare = spell(outputs)
    for n in order:
        if n.attached is not None and n.src:
            return None
    if rare and not _chains(writes).issuperset(n for n in rare if _may_change(n)):
        return None
    buffers = []
    for leaf in leaves:
        slot = owner(leaf)
        if slot is None or slot.version != leaf.attrs[1]:
            return None
        buffers.append(slot.buffer)
    return executable_for(key, outputs, leaves).run(buffers)


def _is_one_program(outputs: Sequence[Node]) -> bool:
    """Tell whether all outputs are different nodes of one device."""
    device = outputs[0].device
    return len(set(outputs)) == len(outputs) and all(n.device == device for n in outputs)


def _may_change(n: Node) -> bool:
    """Tell whether `_cut` puts something else in the place of a rare node, unless it writes it."""
    return n.op is Op.ASSIGN or (n.op is Op.SLICE and n.src[0].op is Op.BUFFER)


def _memory_of(leaf: Node) -> Slot:
    """Return the slot that a leaf reads; StaleError where it has been overwritten."""
    slot = owner(leaf)
    if slot is None:
        where = format_origin(leaf.origin)
        raise TracingError(
            f"this value was computed inside a function that jit or grad captured ({where}) and "
            "exists only there; return it from the function"
        )
    if slot.version != leaf.attrs[1]:
        raise stale(slot, leaf)
    return slot


def stale(slot: Slot, leaf: Node) -> StaleError:
    """Return the error for reading an overwritten value."""
    shape = ",".join(map(str, leaf.shape))
    where = f" at {format_origin(slot.written)}" if slot.written else ""
    return StaleError(
        f"a {leaf.dtype}[{shape}] tensor (created {format_origin(slot.origin)}) was updated in "
        f"place{where} after this expression was built; realize it before the update or use "
        ".clone()"
    )


def _part(n: Node, memory: dict[int, Buffer]) -> Node | None:
    """Return a leaf for a slice of memory that is contiguous itself, or None.

    Where it begins is then no part of the program: the same one runs for every batch of an array.
    """
    slot = owner(n.src[0])
    if slot is None or slot.pending is not None or slot.version != n.src[0].attrs[1]:
        return None
    whole = slot.buffer.layout
    array = EVAL[Op.SLICE](n, whole)
    if not array.flags.c_contiguous:
        return None
    first = (address_of(array) - address_of(whole)) // n.dtype.itemsize
    buffer = get_device(slot.buffer.device).part(slot.buffer, first, array.shape)
    memory[buffer.uid] = buffer
    return b.buffer(buffer.uid, 0, buffer.shape, buffer.dtype, buffer.device)


def compute(nodes: Sequence[Node], writes: Sequence[Node] = ()) -> list[Buffer]:
    """Return the values of nodes, each in a buffer of its own, and carry out writes (ASSIGNs)."""
    quickly = _computed_as_it_is(nodes, writes)
    if quickly is not None:
        return quickly[: len(nodes)]  # type: ignore[return-value]
    cut, memory = _cut(nodes, writes)
    cut[: len(nodes)] = [n if n.op is Op.BUFFER else as_result(n) for n in cut[: len(nodes)]]
    results: dict[Node, Buffer] = {}
    by_device: dict[str, list[Node]] = {}
    # Copies first: a write may replace what they read.
    for n in dict.fromkeys(cut[: len(nodes)]):
        array = _quick_value(n, memory)
        if array is not None:
            results[n] = get_device(device_of(n)).upload(array)
    for n in dict.fromkeys(cut):
        if n not in results:
            by_device.setdefault(device_of(n), []).append(n)
    for outputs in by_device.values():
        for n, buffer in zip(outputs, execute(outputs, memory)):
            if buffer is not None:
                results[n] = buffer
    taken: set[Node] = set()
    buffers = []
    for n in cut[: len(nodes)]:
        buffer = results[n]
        if n in taken:
            buffer = copy_of(buffer)
        taken.add(n)
        buffers.append(buffer)
    return buffers


# Views and casts of these sizes are cheaper in numpy than a program is to look up.
_QUICK = 1 << 14
_VIEWS = frozenset({Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.SLICE})
# Outputs that may be no program's matter, or are not new values.
_ELSEWHERE = _VIEWS | {Op.CAST, Op.CONST, Op.IOTA, Op.BUFFER, Op.ASSIGN}


def _quick_value(n: Node, memory: dict[int, Buffer]) -> np.ndarray | None:
    """Return the value where it is a constant, or a slice or small view of what is in memory."""
    chain = []
    cheap = n.size <= _QUICK
    while n.op in _VIEWS or n.op is Op.CAST:
        cheap = cheap or n.op is Op.SLICE
        chain.append(n)
        n = n.src[0]
    if n.op is Op.BUFFER and (cheap or not chain) and n.attrs[0] in memory:
        array = memory[n.attrs[0]].array
    elif n.op is Op.CONST:
        array = stored(np.array(n.value), n.dtype)
    elif n.op is Op.IOTA:
        array = stored(np.arange(n.attrs[0]), n.dtype)
    else:
        return None
    for view in reversed(chain):
        array = EVAL[view.op](view, array)
    return array


def array_of(handle: Handle) -> np.ndarray:
    """Return the value as numpy's view of its memory, computing it first if need be.

    TracingError within a capture, where there is no value yet.
    """
    if state.capturing.trace is not None:
        raise TracingError(state.capturing.trace.no_value())
    if not is_known(handle):
        constant = _quick_value(handle.node, {})
        if constant is not None:
            return constant
        realize([handle])
    root = handle._root
    slot = root._slot
    if slot is None:
        slot = _memory_of(stored_leaf(root._node))  # type: ignore[arg-type]
    return _part_of(handle, slot.buffer.array, slot.buffer.dtype)


def _part_of(handle: Handle, array: np.ndarray, dtype: DType) -> np.ndarray:
    """Return the part of its root's array that a view stands for."""
    views = []
    while handle._parent is not None:
        views.append(handle)
        handle = handle._parent
    for view in reversed(views):
        array = _viewed(array, dtype, *view._step)  # type: ignore[misc]
    return array


def _viewed(
    array: np.ndarray, dtype: DType, function: Callable[..., Node], arguments: tuple
) -> np.ndarray:
    """Return an array as a view's function sees it."""
    stand_in = b.buffer(0, 0, array.shape, dtype, "stand-in")
    n = function(stand_in, *arguments)
    chain = []
    while n is not stand_in:
        chain.append(n)
        n = n.src[0]
    for view in reversed(chain):
        array = EVAL[view.op](view, array)
    return array


def overwrite(handle: Handle, array: np.ndarray, origin: Origin) -> None:
    """Write an array of the handle's shape into its memory now, outside any program."""
    root = handle._root
    if root._slot is None:
        own(root)
    if root._slot is None:
        root._slot = owner(stored_leaf(root._node))  # type: ignore[arg-type]
    slot = root._slot
    assert slot is not None
    with state.lock:
        realize()
        late = readers({slot.buffer.uid})
        if late:
            run(late)
        slot.written = origin
        slot.overwritten()
        device, whole = get_device(slot.buffer.device), slot.buffer.array
        seen = whole if whole.flags.writeable else whole.copy()
        _part_of(handle, seen, slot.buffer.dtype)[...] = array
        if seen is not whole:
            device.copy_in(slot.buffer, seen)
