"""Derivatives of tensors: `backward`, and the functions `grad`, `value_and_grad` and `vjp`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from tinyc import state
from tinyc.diagnostics import ShapeError, TinycError, caller_origin
from tinyc.ir import autograd
from tinyc.ir import build as b
from tinyc.ir.node import Node
from tinyc.ir.ops import Op, fail
from tinyc.realization import stale
from tinyc.runtime import recorder
from tinyc.state import CUT, GRAD, PLAIN, Handle
from tinyc.tensor.modes import enable_grad, recording

if TYPE_CHECKING:
    from tinyc.tensor.core import Tensor


# node -> the handles of expressions that `retain_grad` was called on.
_retained: WeakKeyDictionary[Node, list[ref[Handle]]] = WeakKeyDictionary()


def retain(tensor: Tensor) -> None:
    """Let `backward` set the gradient of an expression."""
    if not tensor._is_leaf:
        node = tensor.node
        _retained.setdefault(node, []).append(ref(tensor))


def backward(
    loss: Tensor,
    gradient: Any,
    retain_graph: bool | None,
    create_graph: bool,
    inputs: Sequence[Tensor] | None,
) -> None:
    """Add the derivatives of `loss` to the gradients of the leaves it depends on."""
    if not loss.requires_grad:
        fail(
            TinycError,
            "backward",
            "the tensor does not require grad",
            (loss.node,),
            "it depends on no tensor with requires_grad=True through recorded operations",
        )
    cotangent = _cotangent(loss, gradient)
    reached, slots = _reached(loss.node)
    targets = list(inputs) if inputs is not None else _targets(reached, slots)
    if not targets:
        _explain_nothing(loss, slots)
    with recorder.span("backward", "python"):
        found = autograd.vjp([loss.node], [cotangent], [target.node for target in targets])
    mode = GRAD if create_graph and recording.on else CUT
    made = [
        _accumulate(target, node, mode) for target, node in zip(targets, found) if node is not None
    ]
    _compute_together([loss, *made])
    if not (create_graph if retain_graph is None else retain_graph):
        loss._root._freed = True


def _cotangent(loss: Tensor, gradient: Any) -> Node:
    node = loss.node
    if gradient is None:
        if node.size != 1:
            fail(
                ShapeError,
                "backward",
                "a gradient is needed",
                (node,),
                "only a tensor of one element may leave it out",
                "reduce it, or pass gradient=",
            )
        return b.full(node.shape, 1, node.dtype)
    cotangent = gradient.node if isinstance(gradient, Handle) else b.const(gradient, node.dtype)
    if cotangent.shape != node.shape:
        fail(
            ShapeError,
            "backward",
            "the gradient's shape differs",
            (node, cotangent),
            "it has the shape of the tensor",
        )
    return b.cast(cotangent, node.dtype)


def _reached(node: Node) -> tuple[set[Node], list[tuple[Node, state.Slot]]]:
    """Return the float nodes behind a node, short of DETACH, and the memory among them."""
    seen = {node}
    stack = [node]
    slots = []
    while stack:
        n = stack.pop()
        if n.op is Op.BUFFER:
            slot = state.owner(n)
            if slot is not None:
                slots.append((n, slot))
        if n.op is Op.DETACH:
            continue
        for s in n.src:
            if s not in seen and s.dtype.kind == "f":
                seen.add(s)
                stack.append(s)
    return seen, slots


def _targets(reached: set[Node], slots: Iterable[tuple[Node, state.Slot]]) -> list[Tensor]:
    """Return the leaves that want a gradient, and the retained expressions."""
    found: list[Any] = []
    for leaf, slot in slots:
        for entry in slot.leaves:
            handle = entry()
            if handle is None or not handle._is_leaf:
                continue
            if handle.node in reached:
                found.append(handle)
            elif slot.pending is not None or slot.version != leaf.attrs[1]:
                raise stale(slot, leaf)
    if state.capturing.trace is not None:
        for leaf, entry in state.capturing.trace.leaves.items():
            if leaf in reached and (handle := entry()) is not None:
                found.append(handle)
    for node in reached if _retained else ():
        for entry in _retained.get(node, ()):
            handle = entry()
            if handle is not None:
                found.append(handle)
    return list({id(handle): handle for handle in found}.values())


def _explain_nothing(loss: Tensor, slots: Iterable[tuple[Node, state.Slot]]) -> None:
    """Raise for a backward that reaches no leaf."""
    if loss._freed or any(slot.freed for _, slot in slots):
        fail(
            TinycError,
            "backward",
            "the graph was given up by an earlier backward",
            (loss.node,),
            "a graph is used once",
            "pass retain_graph=True the first time",
        )
    fail(
        TinycError,
        "backward",
        "no leaf with requires_grad is reached",
        (loss.node,),
        "there is nothing to differentiate by",
    )


def _accumulate(target: Tensor, node: Node, mode: int) -> Tensor:
    """Add a derivative to a tensor's gradient and return that."""
    fresh = target._new(node, mode)
    for hook in target._hooks:
        other = hook(fresh)
        fresh = fresh if other is None else other
    before = target.grad
    if before is None:
        target.grad = fresh
    elif mode == GRAD:
        target.grad = before + fresh
    else:
        before._write(b.add(before.node, fresh.node), CUT, caller_origin())
    grad = target.grad
    assert grad is not None
    return grad


def _compute_together(tensors: Sequence[Handle]) -> None:
    """Whoever is computed first, the others share its program: they share most of the work."""
    group = [ref(tensor) for tensor in tensors]
    for tensor in tensors:
        tensor._group = group


# Functions of functions.


def grad(function: Callable[..., Any], argnums: Any = 0, has_aux: bool = False) -> Callable:
    """Return a function that gives the derivatives of `function`, which returns one number.

    `argnums` says by which positional arguments (a number, or several). With `has_aux` the
    function returns (number, anything), and so does its derivative.
    """
    both = value_and_grad(function, argnums, has_aux)

    def derivative(*args: Any, **kwargs: Any) -> Any:
        value, gradients = both(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return derivative


def value_and_grad(
    function: Callable[..., Any], argnums: Any = 0, has_aux: bool = False
) -> Callable:
    """Return a function that gives (value, derivatives), as `grad` has them."""

    def both(*args: Any, **kwargs: Any) -> Any:
        numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
        inputs = [args[number] for number in numbers]

        def of_inputs(*inner: Any) -> Any:
            filled = list(args)
            for number, value in zip(numbers, inner):
                filled[number] = value
            return function(*filled, **kwargs)

        result, pull = _linearized(of_inputs, inputs, has_aux)
        value = result[0] if has_aux else result
        if value.node.size != 1:
            fail(
                ShapeError,
                "grad",
                "the function returns several elements",
                (value.node,),
                "it returns one number",
                "use vjp",
            )
        found = pull(b.full(value.node.shape, 1, value.node.dtype))
        return result, found[0] if isinstance(argnums, int) else found

    return both


def vjp(function: Callable[..., Any], *inputs: Tensor) -> tuple[Any, Callable[..., Any]]:
    """Return (function(*inputs), pull); pull(cotangent) gives the derivatives by each input."""
    result, pull_nodes = _linearized(function, inputs, False)

    def pull(cotangent: Any) -> tuple[Tensor, ...]:
        return pull_nodes(_cotangent(result, cotangent))

    return result, pull


def _linearized(
    function: Callable[..., Any], inputs: Sequence[Tensor], has_aux: bool
) -> tuple[Any, Callable[[Node], tuple[Tensor, ...]]]:
    """Return the function's result and a function from the cotangent to the derivatives."""
    inner, actual = [], {}
    for tensor in inputs:
        if not isinstance(tensor, Handle) or not tensor.node.dtype.is_float:
            raise TinycError(f"grad: {tensor!r} is no tensor of floats to differentiate by")
        node = tensor.node
        leaf = state.placeholder(node.shape, node.dtype, state.device_of(node))
        state.define(leaf, node)
        actual[leaf] = node
        inner.append(tensor._new(leaf, GRAD))
    with enable_grad():
        result = function(*inner)
    value = result[0] if has_aux else result
    if not hasattr(value, "node"):
        raise TinycError(f"grad: the function returned {type(value).__name__}, not a tensor")
    inner_value = value.node
    outside = _outer_mode([inner_value], inputs)

    def pull(cotangent: Node) -> tuple[Tensor, ...]:
        leaves = list(actual)
        found = autograd.vjp([inner_value], [cotangent], leaves)
        nodes = [
            node if node is not None else b.full(leaf.shape, 0, leaf.dtype)
            for node, leaf in zip(found, leaves)
        ]
        modes = _outer_mode(nodes, inputs)
        return tuple([value._new(n, modes) for n in state.substitute(nodes, actual)])

    (outer,) = state.substitute([inner_value], actual)
    shown = value._new(outer, outside)
    return ((shown, *result[1:]) if has_aux else shown), pull


def _outer_mode(nodes: Sequence[Node], inputs: Sequence[Tensor]) -> int:
    """Return the mode of what a differentiated function returns, seen from outside."""
    wanted = any(tensor._mode == GRAD for tensor in inputs)
    for node in nodes:
        reached, slots = _reached(node)
        wanted = wanted or bool(_targets(reached, slots))
    if not wanted:
        return CUT if any(tensor._mode for tensor in inputs) else PLAIN
    return GRAD if recording.on else CUT
