"""tinyc.fuse: a function whose computation is to be one kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from tinyc.capture.arguments import flatten, rebuild
from tinyc.ir import build as b
from tinyc.ir.node import Node
from tinyc.tensor import Tensor
from tinyc.tensor.core import apply

F = TypeVar("F", bound=Callable[..., Any])


def fuse(function: F) -> F:
    """Return the function with the demand that what it computes from its arguments is one kernel.

    It is a decorator: ``@tinyc.fuse``, or ``tinyc.fuse(f)(x, y)``. Everything on the way from a
    tensor among the arguments to a tensor of the result counts; what is computed before, or from
    other tensors, may be anywhere. Fusion then does what is legal whether or not it would pay. When
    the program is compiled, FusionError says which rule forbids one kernel, if one does, and what
    would change that. The gradient of the function is fused as always, TINYC_FUSE=0 and the device
    ``numpy`` take no notice. TypeError for a call without tensors.
    """

    @functools.wraps(function)
    def fused(*args: Any, **kwargs: Any) -> Any:
        given: list[Tensor] = []
        flatten((args, kwargs), given)
        if not given:
            name = getattr(function, "__name__", "the function")
            raise TypeError(f"fuse: {name} was called without tensors; pass what it computes from "
                            "as an argument")
        inner_args, inner_kwargs = rebuild((args, kwargs), iter(given))
        result = function(*inner_args, **inner_kwargs)
        made: list[Tensor] = []
        flatten(result, made)
        if not made:
            return result

        def together(*nodes: Node) -> tuple[Node, ...]:
            return b.together(nodes[: len(made)], nodes[len(made):])

        return rebuild(result, iter(apply(together, *made, *given)))

    return fused  # type: ignore[return-value]
