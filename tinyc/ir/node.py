"""Nodes of the Graph IR: hash-consed, typed at construction, with the user's line attached.

Equal nodes are the same object, so equality is `is`, sharing is free and a memo table is a dict
keyed by nodes. Nothing here recurses: graphs are tens of thousands of nodes deep.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock, local
from typing import Any, Protocol
from weakref import ref

from tinyc.diagnostics import Origin, ShapeError, caller_origin
from tinyc.ir.dtype import DType, Scalar, decode
from tinyc.ir.ops import OPS, Op, Shape, describe_type, fail

# What of a training step a node belongs to, in the order of the steps.
FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"


class Node:
    """One tensor expression. Made by `node()` only; immutable; equal nodes are identical.

    `device` is None for leaves that any device can make (CONST, IOTA, VAR) and what is computed
    from them alone. `origin` is the (file, line) of the user's code that built it first, `phase`
    says whether that was autograd, an optimizer's step, or neither. `attached` is for those who
    run graphs: None, or what they know of the node's value; the compiler never looks at it.
    """

    __slots__ = (
        *("__weakref__", "attached", "attrs", "device", "dtype", "op", "origin", "phase"),
        *("shape", "src"),
    )

    op: Op
    src: tuple[Node, ...]
    attrs: tuple
    shape: Shape
    dtype: DType
    device: str | None
    origin: Origin
    phase: str
    attached: Any

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        n = 1
        for extent in self.shape:
            n *= extent
        return n

    @property
    def value(self) -> Scalar:
        """The Python number of a CONST."""
        if self.op is not Op.CONST:
            raise AttributeError(f"a {self.op.value} node has no value")
        return decode(self.attrs[1], self.attrs[0])

    def __repr__(self) -> str:
        sources = ", ".join(s.op.value for s in self.src)
        return f"<{self.op.value}({sources}) {describe_type(self.shape, self.dtype)}>"

    def __copy__(self) -> Node:
        return self

    def __deepcopy__(self, memo: dict) -> Node:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("nodes are not pickled: a copy would not be the same node")


class _Entry(ref):
    """A weak reference that knows the key under which it is interned."""

    __slots__ = ("key",)
    key: tuple


_interned: dict[tuple, _Entry] = {}
# Guards the table where it changes: on a miss and when a node dies. Re-entrant, since making an
# entry may run the garbage collector, and that the callback below, in the same thread.
_lock = RLock()


def _forget(entry: _Entry) -> None:
    """Drop a dead node's entry, unless an equal node has taken its place meanwhile."""
    with _lock:
        if _interned.get(entry.key) is entry:
            del _interned[entry.key]


class _Deriving(local):
    """What new nodes are made from, and for: set around what passes, autograd and steps build."""

    source: HasOrigin | None = None
    phase: str | None = None


deriving = _Deriving()


@contextmanager
def marking(name: str) -> Iterator[None]:
    """Mark the nodes that are built in this thread during the block as BACKWARD or OPTIMIZER."""
    before, deriving.phase = deriving.phase, name
    try:
        yield
    finally:
        deriving.phase = before


@contextmanager
def derived_from(source: HasOrigin) -> Iterator[None]:
    """Give the nodes that are built in this thread during the block the line of another."""
    before, deriving.source = deriving.source, source
    try:
        yield
    finally:
        deriving.source = before


class HasOrigin(Protocol):
    """What a new node may be like: it has the user's line and a phase."""

    origin: Origin
    phase: str


def node(
    op: Op, src: tuple[Node, ...] = (), attrs: tuple = (), like: HasOrigin | None = None
) -> Node:
    """The node `op(src, attrs)`: an existing one, or a new one with its type inferred.

    `like`, or else `deriving.source`, gives the origin of a node that stands for another or is
    derived from it, and its phase; without either it is the user's line.
    Raises what the op's type rule raises, and ShapeError for sources on different devices.
    """
    key = (op, src, attrs)
    entry = _interned.get(key)
    if entry is not None:
        found = entry()
        if found is not None:
            return found
    new = Node()
    new.op, new.src, new.attrs = key
    new.shape, new.dtype = OPS[op].infer(src, attrs)
    new.device = _device(op, src, attrs)
    new.attached = None
    if like is not None:
        new.origin, new.phase = like.origin, like.phase
    else:
        source, marked = deriving.source, deriving.phase
        new.origin = caller_origin() if source is None else source.origin
        new.phase = marked or (FORWARD if source is None else source.phase)
    return _intern(key, new)


_BUFFER, _COPY = Op.BUFFER, Op.COPY


def _device(op: Op, src: tuple[Node, ...], attrs: tuple) -> str | None:
    """Where the node's value is: where its sources are, which must agree."""
    if not src:
        return attrs[4] if op is _BUFFER else None
    if op is _COPY:
        return attrs[0]
    device = src[0].device
    for s in src:
        if s.device is not device and s.device != device and s.device is not None:
            if device is not None:
                fail(
                    ShapeError,
                    op.value,
                    f"devices differ, {device} and {s.device}",
                    src,
                    "operands are on one device",
                    "move one with .to(device)",
                )
            device = s.device
    return device


def _intern(key: tuple, new: Node) -> Node:
    """Enter `new`, unless another thread has entered an equal node first."""
    with _lock:
        entry = _interned.get(key)
        found = entry() if entry is not None else None
        if found is not None:
            return found
        entry = _Entry(new, _forget)
        entry.key = key
        _interned[key] = entry
    return new


def interned_count() -> int:
    """How many nodes are alive: what tests of leaks look at."""
    return len(_interned)


@dataclass(frozen=True)
class Graph:
    """What passes take and return: the nodes to compute, and their names for dumps."""

    outputs: tuple[Node, ...]
    names: tuple[str, ...] = ()


def toposort(outputs: Iterable[Node]) -> list[Node]:
    """Every node that `outputs` need, each once, sources first, in a fixed order (depth first)."""
    order: dict[Node, None] = {}
    stack = list(outputs)[::-1]
    while stack:
        top = stack[-1]
        if top in order:
            stack.pop()
            continue
        waiting = [s for s in top.src if s not in order]
        if waiting:
            stack.extend(reversed(waiting))
        else:
            order[top] = None
            stack.pop()
    return list(order)


# Ops whose number of sources varies, and what a graph may be cut or changed at.
_RARE = frozenset({Op.CAT, Op.TOGETHER, Op.SLICE, Op.ASSIGN})
_SOURCES_VARY = frozenset({Op.CAT, Op.TOGETHER})


def canonical_key(outputs: Sequence[Node]) -> tuple[Hashable, list[Node]]:
    """(key, leaves): equal keys exactly when the graphs are equal up to a renaming of buffers.

    The key spells the graph out node by node in order of first visit, so it never confuses two
    graphs. In it a buffer is its shape, dtype and device, and a number that tells which buffer it
    is and how far its version lies from the first one seen. `leaves` are the BUFFER nodes in order
    of first visit: the graphs of equal keys correspond leaf by leaf. The key holds no node.
    """
    return spell(outputs)[:2]


def spell(outputs: Sequence[Node]) -> tuple[Hashable, list[Node], list[Node], list[Node]]:
    """(key, leaves, order, rare): as `canonical_key`, with all nodes in order of first visit.

    `rare` are those among them that are a CAT, TOGETHER, SLICE or ASSIGN.
    """
    order = list(dict.fromkeys(outputs))
    index = {n: i for i, n in enumerate(order)}
    text: list[Hashable] = [len(outputs), *[index[n] for n in outputs]]
    emit, find = text.append, index.get
    leaves: list[Node] = []
    rare: list[Node] = []
    seen: dict[int, tuple[int, int]] = {}
    for n in order:  # grows while it is walked
        op, src, attrs = n.op, n.src, n.attrs
        emit(op)
        if not src:
            if op is _BUFFER:
                uid, version, shape, dtype, device = attrs
                number, first = seen.setdefault(uid, (len(seen), version))
                attrs = (number, version - first, shape, dtype, device)
                leaves.append(n)
            emit(attrs)
            continue
        if attrs:
            emit(attrs)
        if op in _RARE:
            rare.append(n)
            if op in _SOURCES_VARY:
                emit(len(src))
        for s in src:
            i = find(s)
            if i is None:
                i = index[s] = len(order)
                order.append(s)
            emit(i)
    return tuple(text), leaves, order, rare


def with_sources(old: Node, src: tuple[Node, ...]) -> Node:
    """`old` computed from other sources; itself when they are the same."""
    return old if src == old.src else node(old.op, src, old.attrs, like=old)


def rebuild(graph: Graph, fn: Callable[[Node, tuple[Node, ...]], Node]) -> Graph:
    """The graph with every node replaced, sources first, by `fn(node, its new sources)`."""
    new: dict[Node, Node] = {}
    for n in toposort(graph.outputs):
        new[n] = fn(n, tuple([new[s] for s in n.src]))
    return Graph(tuple([new[n] for n in graph.outputs]), graph.names)
