"""Clipping of gradients, and parameters as one vector.

Gradients are taken together as flat tensors, parameters of one arena in its order: the norm is one
reduction, whatever the number of parameters, and an optimizer finds its flat gradient as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from tinyc.diagnostics import ShapeError
from tinyc.tensor import Tensor, no_grad


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale the gradients so that their norm, taken over all of them, is at most ``max_norm``.

    ``norm_type`` is p of the p-norm, or infinity. Returns the norm before, a 0-d tensor that
    nobody needs to look at: within ``jit`` all is part of the program. Parameters without a
    gradient are left out. A norm of NaN or infinity makes the gradients NaN or zero, or raises
    RuntimeError with ``error_if_nonfinite``, which looks at it and so can't be captured.
    """
    if not norm_type > 0:
        raise ValueError(f"clip_grad_norm_: norm_type is above 0, not {norm_type}")
    with no_grad():
        parts = list(_flat_gradients(parameters))
        if not parts:
            return Tensor(0.0)
        total = _norm([flat for _, flat in parts], float(norm_type))
        if error_if_nonfinite and not math.isfinite(total.item()):
            raise RuntimeError(
                f"clip_grad_norm_: the norm of the gradients is {total.item()}; look at the loss, "
                "or leave error_if_nonfinite out to go on"
            )
        scale = (float(max_norm) / (total + 1e-6)).clip(max=1.0)
        for params, flat in parts:
            _share(params, flat * scale.to(dtype=flat.dtype, device=flat.device))
    return total


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limit each element of the gradients to -clip_value..clip_value."""
    limit = float(clip_value)
    with no_grad():
        for params, flat in _flat_gradients(parameters):
            _share(params, flat.clip(-limit, limit))


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """Return all elements of the parameters in one flat tensor, in the order given."""
    return Tensor.cat([param.reshape(-1) for param in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Write a flat tensor's elements to the parameters, in the order given.

    Raises ShapeError where it has more or fewer elements than they.
    """
    params = list(parameters)
    count = sum(param.numel() for param in params)
    if tuple(vec.shape) != (count,):
        raise ShapeError(
            f"vector_to_parameters: a vector of shape {tuple(vec.shape)}; the parameters have "
            f"{count} elements, and so has the vector"
        )
    begin = 0
    with no_grad():
        for param in params:
            part = vec[begin : begin + param.numel()]
            param.copy_(part.reshape(param.shape))
            begin += param.numel()


def _flat_gradients(parameters: Tensor | Iterable[Tensor]) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield parameters with their gradients as one flat tensor, by arena, dtype and device."""
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    together: dict[tuple[object, ...], list[Tensor]] = {}
    for param in {id(param): param for param in given}.values():
        if param.grad is not None:
            base = None if param.alias is None else id(param.alias[0])
            key = (base, param.grad.dtype, param.grad.device)
            together.setdefault(key, []).append(param)
    for params in together.values():
        if params[0].alias is not None:
            params.sort(key=_begin)
        grads = [param.grad.reshape(-1) for param in params if param.grad is not None]
        yield params, Tensor.cat(grads)


def _begin(param: Tensor) -> int:
    """Return where in its arena a parameter begins."""
    assert param.alias is not None
    return param.alias[1]


def _norm(flats: Sequence[Tensor], p: float) -> Tensor:
    """Return the p-norm of all elements of flat tensors, in the first one's dtype and place."""
    first = flats[0]
    if p == math.inf:
        parts = [flat.abs().max() for flat in flats]
    elif p == 2:
        parts = [(flat * flat).sum() for flat in flats]
    else:
        parts = [(flat.abs() ** p).sum() for flat in flats]
    total = parts[0]
    for part in parts[1:]:
        other = part.to(dtype=first.dtype, device=first.device)
        total = total.maximum(other) if p == math.inf else total + other
    if p == math.inf:
        return total
    return total.sqrt() if p == 2 else total ** (1 / p)


def _share(params: Sequence[Tensor], flat: Tensor) -> None:
    """Make the gradients of parameters the stretches of a flat tensor."""
    begin = 0
    for param in params:
        part = flat[begin : begin + param.numel()]
        param.grad = part.reshape(param.shape)
        begin += param.numel()
