"""Running a function on stand-ins: what it reads, returns, overwrites and leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

from tinyc import state
from tinyc.diagnostics import caller_origin
from tinyc.ir.node import Node
from tinyc.realization import drop_pending, own, realize
from tinyc.state import CUT, GRAD, PLAIN, Handle, Slot
from tinyc.tensor import Tensor


class GradUse:
    """The `.grad` of a tensor during a capture: what it was, and whether that was looked at."""

    def __init__(self, handle: Tensor, read: bool) -> None:
        found = handle._grad
        if found is not None and not isinstance(found, Tensor):
            found = found.take() if read else None
        self.handle = handle
        self.read = read
        self.before = handle._grad
        self.entry: Tensor | None = found
        self.inner: Tensor | None = None


class Trace:
    """What happens to tensors that exist already while a function is captured."""

    def __init__(self, name: str) -> None:
        self.name = name
        # Placeholders of tensors that want a gradient and exist only in the capture.
        self.leaves: dict[Node, ref[Handle]] = {}
        # Handles that become expressions, with the memory and mode that they had.
        self.touched: dict[int, tuple[Handle, Slot, int, bool]] = {}
        self.grads: dict[int, GradUse] = {}
        # The leaves of stand-ins of gradients, by the stand-in's identity.
        self.grad_leaves: dict[int, Node] = {}
        self.draws: dict[Any, int] = {}
        # Stand-ins of arguments, by identity: the argument's number.
        self.arguments: dict[int, int] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Collect within the block; afterwards every tensor is again what it was before."""
        with state.lock:
            live = state.live_expressions()
            realize(live)
            for handle in live:
                own(handle)
            state.capturing.trace = self
            try:
                yield
            finally:
                self._restore()

    def _restore(self) -> None:
        state.capturing.trace = None
        drop_pending()
        # What is left of the expressions made inside has no value outside.
        state.expressions.clear()
        for handle, slot, mode, is_leaf in self.touched.values():
            handle._slot, handle._mode, handle._is_leaf = slot, mode, is_leaf
            handle._made_of, handle._checked = None, -1
        for use in self.grads.values():
            use.handle._grad = use.before if use.entry is None else use.entry

    # Called by tensors

    def touch(self, handle: Handle) -> None:
        """Note that a handle is about to become another expression."""
        if not self.is_outside(handle) or id(handle) in self.touched:
            return
        slot = handle._slot
        if slot is None:
            leaf = state.stored_leaf(handle._node)
            slot = None if leaf is None else state.owner(leaf)
        if slot is not None:
            mode = handle._mode if handle._slot is not None else PLAIN
            self.touched[id(handle)] = (handle, slot, mode, handle._is_leaf)

    def is_outside(self, handle: Handle) -> bool:
        """Was the memory behind the handle there before the capture?"""
        root = handle._root
        return root._computed if root._slot is None else root._slot.born is not self

    def reads_grad(self, handle: Tensor) -> None:
        """Note that a gradient is looked at; one that was there is an input of the program."""
        if id(handle) in self.grads or not self._keeps_grad(handle):
            return
        use = self.grads[id(handle)] = GradUse(handle, read=True)
        if use.entry is not None:
            use.inner = handle._grad = self.stand_in(use.entry, False)
            self.grad_leaves[id(use.inner)] = use.inner._node

    def writes_grad(self, handle: Tensor) -> None:
        """Note that a gradient is replaced unseen."""
        if id(handle) not in self.grads and self._keeps_grad(handle):
            self.grads[id(handle)] = GradUse(handle, read=False)

    def _keeps_grad(self, handle: Tensor) -> bool:
        return id(handle) in self.arguments or self.is_outside(handle)

    def stand_in(self, tensor: Tensor, wants_grad: bool) -> Tensor:
        """Return the tensor that stands for an input of the program."""
        shown = tensor.node
        leaf = state.placeholder(shown.shape, shown.dtype, state.device_of(shown))
        inner = Tensor._new(leaf, CUT if tensor._mode and not wants_grad else PLAIN)
        if wants_grad:
            inner._mode = GRAD
            inner._is_leaf = True
            self.leaves[leaf] = ref(inner)
        return inner

    def skip(self, generator: Any, count: int) -> int:
        """Return how many numbers the capture has drawn so far, and draw more."""
        drawn = self.draws.get(generator, 0)
        self.draws[generator] = drawn + count
        return drawn

    def no_value(self) -> str:
        """Return why there is no value to look at."""
        filename, line = caller_origin()
        return (
            f"{self.name}: the value of a tensor is asked for at {filename}:{line} (by item(), "
            "numpy(), print, if or a conversion) while jit captures the function; it is not known "
            "there yet: return the tensor, use where() to choose, or leave this line out of jit"
        )
