"""Mutable tensors over an immutable graph: buffers with versions, pending writes, what is stored.

A Handle is what a variable of the user refers to. It is one of three things: an expression that is
not computed yet, a Slot (memory with a version), or a view of another handle. Writing in place
leaves an ASSIGN pending on the slot; the next computation takes all pending ones, together with
every live expression that reads what they replace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import ref

from tinyc import config
from tinyc.diagnostics import Origin, TinycError
from tinyc.ir import build as b
from tinyc.ir.dtype import DType, bool_
from tinyc.ir.node import FORWARD, Node, node, toposort, with_sources
from tinyc.ir.ops import Op, fail
from tinyc.runtime.buffer import Buffer
from tinyc.runtime.device import default_device

if TYPE_CHECKING:
    from typing_extensions import Self

# How a handle takes part in differentiation. A CUT one depends on tensors that want a gradient
# but passes none on: expressions that do are built on its node behind a DETACH.
PLAIN, GRAD, CUT = 0, 1, 2


class Clock:
    """Counts writes: what a handle remembers of its slot or parent holds while it stands still."""

    __slots__ = ("writes",)

    def __init__(self) -> None:
        self.writes = 0


clock = Clock()
# What is attached to a node: to a BUFFER the Slot whose memory it reads, which it keeps alive; to a
# placeholder the node whose value it stands for, once that is known; to any other node the leaf
# under which its value is stored, where graphs are cut when they are computed.

# The slots with a pending write, in the order of their first one.
pending: dict[int, Slot] = {}
# Weak references to handles that were made as expressions; the dead and computed are pruned.
expressions: list[ref[Handle]] = []
_next_prune = 1000
# Guards the tables above: what is pending may be computed by any thread.
lock = threading.RLock()


class _Capturing(threading.local):
    """What this thread captures by jit, if anything."""

    trace: Any = None


capturing = _Capturing()


class Slot:
    """Memory of a tensor and how often it was overwritten.

    `pending` is the ASSIGN that the next computation stores. `writers` are counters of captured
    programs, one for each program that overwrites the memory at every run, so that a run counts
    for all slots at once. `leaves` are the handles on this memory that want a gradient. `born` is
    the capture in which the slot was made. `freed` says that the value's graph was given up. Memory
    belongs to no `phase` of a step.
    """

    written: Origin | None = None
    pending: Node | None = None
    leaves: Sequence[ref[Handle]] = ()
    writers: Sequence[list[int]] = ()
    freed = False
    born: Any = None
    phase = FORWARD
    _base = 0

    def __init__(self, buffer: Buffer, origin: Origin) -> None:
        self.buffer = buffer
        self.origin = buffer.origin = origin
        if capturing.trace is not None:
            self.born = capturing.trace

    @property
    def version(self) -> int:
        """How often the memory was overwritten."""
        if not self.writers:
            return self._base
        return self._base + sum(count[0] for count in self.writers)

    def leaf(self, own_line: bool = False) -> Node:
        """Return the BUFFER node of the memory as it is now.

        A new one is on the user's line, or on that of the memory, which is quicker to tell.
        """
        buffer = self.buffer
        attrs = (buffer.uid, self.version, buffer.shape, buffer.dtype, buffer.device)
        leaf = node(Op.BUFFER, (), attrs, self if own_line else None)
        leaf.attached = self
        return leaf

    def add_versions(self, count: int) -> None:
        """Count writes of a captured program that is given up."""
        self._base += count

    def overwritten(self) -> None:
        """Note that the memory holds new values now."""
        self._base += 1
        self.pending = None
        clock.writes += 1


def stored_leaf(node: Node) -> Node | None:
    """Return the leaf under which a node's value is in memory, None where it is not or no more."""
    leaf = node.attached
    if leaf is None or node.op is Op.BUFFER:
        return None
    return leaf if leaf.attached.version == leaf.attrs[1] else None


def owner(leaf: Node) -> Slot | None:
    """Return the slot whose memory a leaf reads; None for a placeholder."""
    found = leaf.attached
    return found if isinstance(found, Slot) else None


def definition(leaf: Node) -> Node | None:
    """Return what a placeholder stands for, where that is known."""
    found = leaf.attached
    return found if isinstance(found, Node) else None


_placeholders = 0


def placeholder(shape: tuple[int, ...], dtype: DType, device: str) -> Node:
    """Return a BUFFER node like no other, for a value that is given later."""
    global _placeholders
    _placeholders -= 1
    return b.buffer(_placeholders, 0, shape, dtype, device)


def define(leaf: Node, value: Node) -> None:
    """Say what a placeholder stands for."""
    leaf.attached = value


def substitute(nodes: Sequence[Node], mapping: dict[Node, Node]) -> list[Node]:
    """Return the nodes with leaves replaced."""
    new: dict[Node, Node] = {}
    for n in toposort(nodes):
        new[n] = mapping[n] if n in mapping else with_sources(n, tuple([new[s] for s in n.src]))
    return [new[n] for n in nodes]


class Handle:
    """What a tensor is, less its operations: an expression, a slot, or a view of another handle."""

    _node: Node
    _slot: Slot | None = None
    _parent: Handle | None = None
    # A view's node from its parent's: (function, further arguments).
    _step: tuple[Callable[..., Node], tuple] | None = None
    # The parent's node, or the slot's version, that `_node` was made of, and when that was checked.
    _made_of: Any = None
    _checked = -1
    _mode = PLAIN
    # A leaf wants a gradient of its own; `_computed` says that an expression's value is stored.
    _is_leaf = False
    _computed = False
    # `backward` has been through the graph and need not come back.
    _freed = False
    # Handles to be computed together with this one.
    _group: list[ref[Handle]] | None = None

    @property
    def node(self) -> Node:
        """The graph node of the tensor's present value."""
        # Both are None for an expression, the common case.
        if self._slot is self._parent:
            return self._node
        if self._checked == clock.writes:
            return self._node
        return self._refresh()

    def _refresh(self) -> Node:
        chain: list[Handle] = []
        handle = self
        while handle._parent is not None:
            chain.append(handle)
            handle = handle._parent
        node = handle._root_node()
        for view in reversed(chain):
            if view._made_of is not node:
                function, arguments = view._step  # type: ignore[misc]
                view._made_of = node
                view._node = function(node, *arguments)
            view._checked = clock.writes
            node = view._node
        return node

    def _root_node(self) -> Node:
        slot = self._slot
        if slot is None:
            return self._node
        write = slot.pending
        if write is not None:
            # What was written whole is read as it was written. A tensor that wants a gradient
            # needs a node of its own, though.
            whole = write.attrs[1] == write.shape and not slot.leaves
            return write.src[1] if whole else write
        version = slot.version
        if self._made_of != version:
            self._node = slot.leaf()
            self._made_of = version
        self._checked = clock.writes
        return self._node

    @property
    def _root(self) -> Handle:
        """The handle that this one is a view of, in the end."""
        handle = self
        while handle._parent is not None:
            handle = handle._parent
        return handle

    # Made of

    def _init_expression(self, node: Node, mode: int) -> Self:
        self._node = node
        if mode and node.dtype.kind == "f":
            self._mode = mode
        expressions.append(ref(self))
        if len(expressions) > _next_prune:
            live_expressions()
        return self

    def _init_buffer(self, buffer: Buffer, origin: Origin) -> Self:
        self._slot = Slot(buffer, origin)
        return self

    def _init_view(self, parent: Handle, function: Callable[..., Node], arguments: tuple) -> Self:
        node = parent.node
        self._node = function(node, *arguments)
        self._parent = parent
        self._step = (function, arguments)
        self._made_of = node
        if parent._mode:
            self._mode = parent._mode
        return self

    # Written to

    def _write(self, value: Node, mode: int, origin: Origin) -> None:
        """Replace the present value by one of the same shape and dtype."""
        handle, region = self, None
        while handle._parent is not None:
            parent = handle._parent
            function, arguments = handle._step  # type: ignore[misc]
            value, region = _unviewed(value, function, arguments, parent._shape())
            if region is not None and parent._parent is not None:
                value, region = replaced(parent.node, region, value), None
                mode |= parent._mode
            handle = parent
        handle._store(value, region, mode, origin)

    def _shape(self) -> tuple[int, ...]:
        return self._slot.buffer.shape if self._slot is not None else self._node.shape

    def _store(self, value: Node, region: tuple | None, mode: int, origin: Origin) -> None:
        slot = self._slot
        if region is not None and region[1] == self._shape():
            value, region = _forwards(value, region), None
        # Memory that a capture makes is the same at every run, so it is a first value there.
        trace = capturing.trace
        constant = slot is not None and trace is not None and slot.born is trace
        if slot is None or constant or mode & GRAD:
            if region is not None:
                value, mode = self._with_region(value, region, mode)
            self._become(value, mode)
            return
        if mode:
            value = b.detach(value)
        with lock:
            if region is None:
                slot.pending = b.assign(slot.leaf(), value)
            else:
                slot.pending = b.assign(slot.pending or slot.leaf(), value, *region)
            slot.written = origin
            pending[id(slot)] = slot
            clock.writes += 1

    def _with_region(self, value: Node, region: tuple, mode: int) -> tuple[Node, int]:
        """Return the whole value with a region replaced, and its mode."""
        whole, both = self.node, mode | self._mode
        if both & GRAD:
            whole = b.detach(whole) if self._mode == CUT else whole
            value = b.detach(value) if mode == CUT else value
            both = GRAD
        return replaced(whole, region, value), both

    def _become(self, node: Node, mode: int) -> None:
        """Make this root handle the expression `node`."""
        if capturing.trace is not None:
            capturing.trace.touch(self)
        elif self._slot is not None:
            # Captured programs know the memory that is left behind.
            config.bump_epoch()
        self._slot = None
        self._computed = False
        self._node = node
        self._mode = mode
        self._is_leaf = False
        expressions.append(ref(self))
        clock.writes += 1

    def _become_view(self, parent: Handle, function: Callable[..., Node], arguments: tuple) -> None:
        """Make this handle a view of another, its own memory being forgotten."""
        self._parent = parent
        self._step = (function, arguments)
        self._slot = None
        self._made_of = None
        if self._is_leaf:
            register_leaf(self)
        clock.writes += 1
        config.bump_epoch()


def register_leaf(handle: Handle) -> None:
    """Let the slot behind a handle know that the handle wants a gradient."""
    slot = handle._root._slot
    assert slot is not None
    slot.buffer.categorize("parameter")
    slot.leaves = [*[other for other in slot.leaves if other() is not None], ref(handle)]


def device_of(node: Node) -> str:
    """Return where a node is computed."""
    return node.device if node.device is not None else default_device()


def categorize(handle: Handle, category: str) -> None:
    """Say what a handle's memory is used for, where it has memory of its own."""
    slot = handle._root._slot
    if slot is not None:
        slot.buffer.categorize(category)


# Views in reverse.


def _unviewed(
    value: Node, function: Callable[..., Node], arguments: tuple, shape: tuple[int, ...]
) -> tuple[Node, tuple | None]:
    """Return what a view's value says of its parent: a value, and the region it belongs to."""
    stand_in = b.buffer(0, 0, shape, value.dtype, "stand-in")
    n = function(stand_in, *arguments)
    region: tuple | None = None
    while n is not stand_in:
        source = n.src[0]
        if n.op is Op.PERMUTE:
            (perm,) = n.attrs
            value = b.permute(value, tuple(sorted(range(len(perm)), key=perm.__getitem__)))
        elif n.op is Op.SLICE and source is stand_in:
            region = n.attrs
        elif n.op is Op.SLICE:
            fail(
                TinycError,
                "in-place write",
                "a view of a view that was reshaped in between",
                (value,),
                "a write goes through one slice of the tensor",
                "write to the tensor it was made of",
            )
        elif n.op in (Op.RESHAPE, Op.EXPAND) and n.size == source.size:
            value = b.reshape(value, source.shape)
        else:
            fail(
                TinycError,
                "in-place write",
                "one element of the view stands for several",
                (value,),
                "a view is written to only where each element has its own memory",
                "use .clone() before writing",
            )
        n = source
    return value, region


def _forwards(value: Node, region: tuple) -> Node:
    """Return the value of a region with the axes turned that the region goes through backwards."""
    _, sizes, steps = region
    first = tuple([size - 1 if step < 0 else 0 for size, step in zip(sizes, steps)])
    return b.slice_(value, first, sizes, tuple([-1 if step < 0 else 1 for step in steps]))


def replaced(whole: Node, region: tuple, value: Node) -> Node:
    """Return a node with a region (starts, sizes, steps) replaced."""
    starts, sizes, steps = region
    if 0 in sizes:
        return whole
    value = _forwards(value, region)
    low = tuple([min(s, s + t * (n - 1)) for s, n, t in zip(starts, sizes, steps)])
    high = tuple(
        [
            extent - 1 - max(s, s + t * (n - 1))
            for extent, s, n, t in zip(whole.shape, starts, sizes, steps)
        ]
    )
    gaps = tuple([abs(t) - 1 for t in steps])
    inside = b.pad(b.full(sizes, True, bool_), low, high, gaps)
    return b.where(inside, b.pad(value, low, high, gaps), whole)


def live_expressions() -> list[Handle]:
    """Return the handles that are expressions without a value of their own."""
    global _next_prune
    kept = []
    for entry in expressions:
        handle = entry()
        if handle is not None and handle._slot is None and not handle._computed:
            kept.append(handle)
    expressions[:] = [ref(handle) for handle in kept]
    _next_prune = 2 * len(kept) + 1000
    return kept
