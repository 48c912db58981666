"""A captured program: what it reads and writes, and running it with as little Python as can be."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tinyc import compiler, config, state
from tinyc.capture.arguments import replace
from tinyc.capture.frozen import Folded, Frozen
from tinyc.capture.trace import GradUse, Trace
from tinyc.compiler import NativeExecutable
from tinyc.diagnostics import BoundsError, TracingError
from tinyc.ir import build as b
from tinyc.ir.dtype import DType
from tinyc.ir.node import Graph, Node, canonical_key
from tinyc.ir.ops import Op, describe
from tinyc.realization import compute, readers, realize, resolve, run, spoil, stale
from tinyc.runtime import profile
from tinyc.runtime.buffer import Buffer
from tinyc.runtime.device import copy_of, get_device
from tinyc.state import GRAD, Handle, Slot, clock
from tinyc.tensor import Tensor

if TYPE_CHECKING:
    from tinyc.ir.program import Program

# What is known of a tensor argument: shape, dtype, device, whether it wants a gradient.
Spec = tuple[tuple[int, ...], DType, str, bool]


def spec_of(tensor: Tensor) -> Spec:
    """Return what a program depends on of an argument."""
    slot = tensor._slot
    if slot is not None:
        buffer = slot.buffer
        return buffer.shape, buffer.dtype, buffer.device, tensor._mode == GRAD
    shown = tensor.node
    return shown.shape, shown.dtype, state.device_of(shown), tensor._mode == GRAD


class KeptGrad:
    """A gradient that a program wrote and nobody has asked for: the next run may overwrite it.

    `steps` are the views, outermost last, that it is of what the program wrote: an optimizer
    makes gradients views of one flat tensor, which is stored once.
    """

    __slots__ = ("number", "replay", "steps")

    def __init__(self, replay: Replay, number: int, steps: Sequence[tuple]) -> None:
        self.replay = replay
        self.number = number
        self.steps = steps

    def take(self) -> Tensor:
        """Return the gradient; the next run writes elsewhere."""
        self.replay.taken.append(self.number)
        made = Tensor._from_buffer(self.replay.kept[self.number])
        for function, arguments in self.steps:
            made = made._view(function, *arguments)
        return made


class Replay:
    """A captured program with what it reads and writes.

    Inputs are arguments, then gradients that the function looks at. The program's pointers are
    those of the graph's leaves, then of its fresh outputs, which are the values that it returns,
    then gradients that it leaves behind.
    """

    def __init__(self, graph: Graph, leaves: Sequence[Node], inputs: dict[Node, int]) -> None:
        self.graph = graph
        self.executable: Any = None
        self.runs = [0]
        self.taken: list[int] = []
        self.kept: list[Buffer] = []
        self.result: Any = None
        # What was computed of frozen tensors, for all calls.
        self.folded: Folded | None = None
        # Tensors whose gradient was looked at: they had none, or one that is an input.
        self.without_grad: list[Tensor] = []
        self.with_grad: list[Tensor] = []
        # What `.grad` becomes: of a tensor, or of an argument (by number).
        self.grads: list[tuple[Tensor | int, Any]] = []
        self.overwritten: list[Slot] = []
        self.donated: list[int] = []
        # (position among the leaves, input) of what changes from call to call; the rest is state.
        self.inputs: list[tuple[int, int]] = []
        self._state: list[Slot | None] = []
        for position, leaf in enumerate(leaves):
            number = inputs.get(leaf)
            if number is not None:
                self.inputs.append((position, number))
            self._state.append(_state_of(leaf) if number is None else None)
        self._buffers: list[Any] = [None if s is None else s.buffer for s in self._state]
        if graph.outputs:
            self.executable = compiler.compile_graph(graph.outputs)

    @property
    def program(self) -> Program | None:
        """The compiled program, where the device runs source."""
        return None if self.executable is None else self.executable.program

    def finish(self, values: int) -> None:
        """Prepare for running; the first `values` outputs are returned, the others kept."""
        self.values = values
        self.native: Any = None
        outputs = [out for out in self.graph.outputs if out.op is not Op.ASSIGN]
        self._fresh = [(out.shape, out.dtype, state.device_of(out)) for out in outputs]
        self.kept = [_gradient(*spec) for spec in self._fresh[values:]]
        self._overwritten = {id(slot) for slot in self.overwritten}
        self._uids = {slot.buffer.uid for slot in self.overwritten}
        for slot in self.overwritten:
            slot.writers = [*slot.writers, self.runs]
        if isinstance(self.executable, NativeExecutable) and self.executable.on_pointers:
            self.native = self.executable.native
            leaves = len(self._buffers)
            self.returned_at = [(leaves + k, *self._fresh[k]) for k in range(values)]
            self.pointers = (ctypes.c_void_p * (leaves + len(self._fresh)))()
            for position, buffer in enumerate(self._buffers):
                if buffer is not None:
                    self.pointers[position] = buffer.ptr
            for position, buffer in enumerate(self.kept, leaves + values):
                self.pointers[position] = buffer.ptr

    def retire(self) -> None:
        """Take back what running this program stands for in the versions of its state."""
        for slot in self.overwritten:
            slot.writers = [count for count in slot.writers if count is not self.runs]
            slot.add_versions(self.runs[0])

    def is_pure(self) -> bool:
        """Does a run do nothing but make new values, from arguments and state?"""
        effects = (self.overwritten, self.donated, self.grads, self.kept)
        return not any((*effects, self.with_grad, self.without_grad))

    def fits_grads(self) -> bool:
        """Tell whether gradients are there or not as they were at the capture."""
        for tensor in self.without_grad:
            if tensor._grad is not None:
                return False
        for tensor in self.with_grad:  # noqa: SIM110  (this runs at every call)
            if tensor._grad is None:
                return False
        return True

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """Run on the tensors of a call and return what the function returns."""
        if state.pending:
            realize()
        if self._uids and state.expressions:
            late = readers(self._uids)
            if late:
                run(late)
        if self.folded is not None:
            self.folded.refresh()
        inputs: Sequence[Any] = tensors
        if self.with_grad:
            inputs = [*tensors, *[tensor.grad for tensor in self.with_grad]]
        buffers = []
        for tensor in inputs:
            slot = tensor._slot
            buffers.append(_buffer_of(tensor) if slot is None else slot.buffer)
        if self._overwritten or self.donated:
            self._check_aliases(inputs, buffers)
        try:
            values = self._call(buffers) if self.executable is not None else []
        except BoundsError as error:
            spoil(error, [*self.overwritten, *[inputs[k]._slot for k in self.donated]])
            raise
        if self._overwritten:
            self.runs[0] += 1
            clock.writes += 1
        for number in self.donated:
            inputs[number]._slot.overwritten()
        for target, grad in self.grads:
            if isinstance(target, int):
                tensors[target]._grad = None if grad is None else _tensor(values[grad])
            else:
                target._grad = grad
        return self._returned(self.result, values, tensors)

    def _call(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        """Run the program once and return its values."""
        native = self.native
        if is_watched() or not isinstance(self.executable, NativeExecutable):
            return self._call_watched(buffers)
        if native is None:
            return self._call_on_buffers(buffers)
        pointers = self.pointers
        values = []
        with native.device.lock:
            for position, number in self.inputs:
                pointers[position] = buffers[number].ptr
            for position, shape, dtype, device in self.returned_at:
                buffer = Buffer(device, dtype, shape)
                pointers[position] = buffer.ptr
                values.append(buffer)
            if self.taken:
                self._renew(len(self._buffers) + self.values)
            native.call(pointers)
        return values

    def _renew(self, first: int) -> None:
        """Give away the memory of gradients that somebody holds, and take other."""
        for number in self.taken:
            self.kept[number] = _gradient(*self._fresh[self.values + number])
            if self.native is not None:
                self.pointers[first + number] = self.kept[number].ptr
        self.taken.clear()

    def _given(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        """Return the buffers of the graph's leaves."""
        given = list(self._buffers)
        for position, number in self.inputs:
            given[position] = buffers[number]
        return given

    def _call_on_buffers(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        """Run the program where memory is more than an address."""
        fresh = self._fresh[: self.values]
        values = [get_device(device).alloc(dtype, shape) for shape, dtype, device in fresh]
        if self.taken:
            self._renew(len(self._buffers) + self.values)
        self.executable.native.run([*self._given(buffers), *values, *self.kept])
        return values

    def _call_watched(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        """Run by way of the executable, which reports and checks."""
        fresh = [b for b in self.executable.run(self._given(buffers)) if b is not None]
        if self.taken:
            self._renew(len(self._buffers) + self.values)
        for kept, buffer in zip(self.kept, fresh[self.values :]):
            get_device(kept.device).copy_in(kept, buffer.array)
        return fresh[: self.values]

    def _check_aliases(self, inputs: Sequence[Any], buffers: Sequence[Buffer]) -> None:
        """Raise where an input is memory that the program overwrites under another name."""
        for number, tensor in enumerate(inputs):
            if id(tensor._root._slot) in self._overwritten:
                raise TracingError(
                    f"jit: argument {number}, {describe(tensor.node)}, is also state that the "
                    "function overwrites in place; pass a .clone() of it, or only the state"
                )
        for number in self.donated:
            slot = inputs[number]._slot
            if slot is None:
                raise TracingError(
                    f"jit: argument {number} is overwritten in place by the function, and is a "
                    "view or an expression here; pass a tensor with memory of its own"
                )
            others = [k for k, buffer in enumerate(buffers) if buffer is slot.buffer]
            captured = any(other is slot for other in self._state) or (
                self.folded is not None and self.folded.reads(slot))
            if len(others) > 1 or captured:
                raise TracingError(
                    f"jit: argument {number} is overwritten in place by the function, which also "
                    "reads it under another name; pass a .clone() for one of them"
                )

    def _returned(self, what: Any, values: Sequence[Buffer], tensors: Sequence[Tensor]) -> Any:
        if type(what) is Value:
            return _tensor(values[what.number])
        return replace_values(what, values, tensors)


class Value:
    """In a result: the tensor of an output; one output may stand for several tensors."""

    def __init__(self, number: int, copy: bool) -> None:
        self.number = number
        self.copy = copy


class Argument:
    """In a result: an argument, itself."""

    def __init__(self, number: int) -> None:
        self.number = number


def replace_values(what: Any, values: Sequence[Buffer], tensors: Sequence[Tensor]) -> Any:
    """Return a result with tensors in the places of outputs and arguments."""
    if type(what) is Value:
        buffer = values[what.number]
        return _tensor(copy_of(buffer) if what.copy else buffer)
    if type(what) is Argument:
        return tensors[what.number]
    if isinstance(what, tuple):
        parts = [replace_values(part, values, tensors) for part in what]
        return type(what)(*parts) if hasattr(what, "_fields") else tuple(parts)
    if isinstance(what, list):
        return [replace_values(part, values, tensors) for part in what]
    if isinstance(what, dict):
        return {key: replace_values(part, values, tensors) for key, part in what.items()}
    return what


ORIGIN = ("<jit>", 0)


def is_watched() -> bool:
    """Does somebody want to see or check each run?"""
    settings = config.current()
    return compiler.observed() or settings.check or settings.dump_inputs or profile.wanted()


def _tensor(buffer: Buffer) -> Tensor:
    return Tensor.__new__(Tensor)._init_buffer(buffer, ORIGIN)


def _gradient(shape: tuple[int, ...], dtype: DType, device: str) -> Buffer:
    """Return memory for a gradient that a program leaves behind."""
    buffer = get_device(device).alloc(dtype, shape)
    buffer.categorize("gradient")
    return buffer


def _state_of(leaf: Node) -> Slot:
    """Return the memory that a captured graph reads by itself."""
    slot = state.owner(leaf)
    if slot is None:
        raise TracingError(
            f"jit: the function uses {describe(leaf)}, which belongs to another function that "
            "was being captured; pass it as an argument"
        )
    if slot.version != leaf.attrs[1]:
        raise stale(slot, leaf)
    return slot


def _buffer_of(tensor: Tensor) -> Buffer:
    """Return the value of an argument that is an expression or a view, in memory."""
    if tensor._parent is None:
        realize([tensor])
        if tensor._slot is not None:
            return tensor._slot.buffer
    return compute([tensor.node])[0]


# Capturing.


def _grad_of(tensor: Tensor) -> Tensor | None:
    """Return an argument's gradient as a stand-in begins with it."""
    found = tensor._grad
    if found is not None and not isinstance(found, Tensor):
        found = tensor._grad = found.take()
    return found


def capture(
    name: str,
    function: Callable[[list[Tensor]], Any],
    tensors: Sequence[Tensor],
    frozen: Frozen | None = None,
) -> Replay:
    """Return the program of one call, which finds computed what frozen tensors alone decide."""
    if frozen is not None:
        frozen.own()
    trace = Trace(name)
    with trace.active():
        inner = [trace.stand_in(tensor, tensor._mode == GRAD) for tensor in tensors]
        leaves = [tensor._node for tensor in inner]
        trace.arguments = {id(tensor): number for number, tensor in enumerate(inner)}
        for tensor, given in zip(inner, tensors):
            tensor._grad = _grad_of(given)
        result = function(list(inner))
        return _Collector(trace, inner, leaves).replay(result, frozen)


class _Collector:
    """Makes a Replay of what a trace has seen."""

    def __init__(self, trace: Trace, inner: list[Tensor], leaves: list[Node]) -> None:
        self.trace = trace
        self.inner = inner
        self.inputs = {leaf: number for number, leaf in enumerate(leaves)}
        self.leaf_of = leaves
        self.values: list[Node] = []
        self.where: dict[Node, int] = {}
        self.writes: list[Node] = []
        self.overwritten: list[Slot] = []
        self.donated: list[int] = []

    def replay(self, result: Any, frozen: Frozen | None) -> Replay:
        """Return the program that computes a result and all effects."""
        shown = replace(result, self._value)
        for number, tensor in enumerate(self.inner):
            self._donate(number, tensor)
        without, with_grad, grads, kept = self._collect_grads()
        self._collect_writes()
        returned = len(self.values)
        nodes = resolve([*self.values, *kept], self.writes)
        folded = None
        if frozen is not None:
            nodes, folded = frozen.fold(self.trace.name, nodes, self.overwritten)
        _, leaves = canonical_key(nodes)
        made = Replay(Graph(tuple(nodes)), leaves, self.inputs)
        made.result, made.folded = shown, folded
        made.without_grad, made.with_grad = without, with_grad
        made.overwritten, made.donated = self.overwritten, self.donated
        made.grads = [
            (target, KeptGrad(made, *what) if isinstance(what, tuple) else what)
            for target, what in grads
        ]
        made.finish(returned)
        return made

    def _value(self, tensor: Any) -> Any:
        """Return what stands for a tensor in the result."""
        if not isinstance(tensor, Handle):
            return tensor
        number = self.trace.arguments.get(id(tensor))
        if number is not None:
            return Argument(number)
        if self.trace.is_outside(tensor) and id(tensor._root) not in self.trace.touched:
            return tensor
        return self._output(tensor.node)

    def _output(self, shown: Node) -> Value:
        if shown in self.where:
            return Value(self.where[shown], copy=True)
        self.where[shown] = len(self.values)
        self.values.append(shown)
        return Value(self.where[shown], copy=False)

    def _donate(self, number: int, tensor: Tensor) -> None:
        """An input that was written in place is written so at every call."""
        leaf = self.leaf_of[number]
        if tensor.node is not leaf:
            self.writes.append(b.assign(leaf, b.detach(tensor.node)))
            self.donated.append(number)

    def _collect_grads(self) -> tuple[list, list, list, list[Node]]:
        without: list[Tensor] = []
        with_grad: list[Tensor] = []
        grads: list[tuple[Tensor | int, Any]] = []
        kept: list[Node] = []
        for use in self.trace.grads.values():
            number = self.trace.arguments.get(id(use.handle))
            if use.read and number is None:
                (without if use.entry is None else with_grad).append(use.handle)
            if use.inner is not None:
                self._add_grad_input(use, number)
            final = use.handle._grad
            if final is not None and final is use.inner:
                continue
            if final is not None and not isinstance(final, Tensor):
                continue
            target = use.handle if number is None else number
            if final is None:
                grads.append((target, None))
            elif number is None:
                whole, steps = _unviewed(final)
                if whole not in kept:
                    kept.append(whole)
                grads.append((target, (kept.index(whole), steps)))
            else:
                grads.append((target, self._output(final.node).number))
        return without, with_grad, grads, kept

    def _add_grad_input(self, use: GradUse, number: int | None) -> None:
        """A gradient that was looked at is an input after the arguments."""
        if number is not None:
            raise TracingError(
                f"{self.trace.name}: argument {number} has a gradient already, to which the "
                "function adds; set its .grad to None before the call"
            )
        assert use.inner is not None and use.entry is not None
        position = len(self.leaf_of)
        leaf = self.trace.grad_leaves[id(use.inner)]
        self.leaf_of.append(leaf)
        self.inputs[leaf] = position
        self._donate(position, use.inner)

    def _collect_writes(self) -> None:
        """Collect writes to memory that was there before."""
        for generator, count in self.trace.draws.items():
            generator.advance(count)
        for handle, slot, _, _ in self.trace.touched.values():
            if handle._slot is not slot:
                slot.pending = b.assign(slot.leaf(), b.detach(handle.node))
                state.pending[id(slot)] = slot
        for slot in state.pending.values():
            assert slot.pending is not None
            self.writes.append(slot.pending)
            self.overwritten.append(slot)


def _unviewed(tensor: Handle) -> tuple[Node, list[tuple]]:
    """Return the expression that a tensor is a view of, and the views; memory is no expression."""
    shown, steps = tensor.node, []
    while tensor._parent is not None:
        assert tensor._step is not None
        steps.append(tensor._step)
        tensor = tensor._parent
    if tensor._slot is not None:
        return shown, []
    return tensor.node, steps[::-1]
