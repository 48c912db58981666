"""Stochastic gradient descent, with momentum and weight decay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinyc.optim.arena import Run
from tinyc.optim.optimizer import Optimizer, ParamGroup
from tinyc.tensor import Tensor


class SGD(Optimizer):
    """``p -= lr * g``, where g may have weight decay and momentum, as PyTorch defines them.

    With momentum ``b = momentum * b + (1 - dampening) * g`` (b = g in the first step) replaces g,
    or ``g + momentum * b`` with ``nesterov``. ``maximize`` changes the sign of the gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError for hyperparameters out of their range."""
        for name in ("momentum", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"SGD: {name} must be at least 0, not {group[name]}")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("SGD: nesterov needs a momentum and no dampening")

    def state_names(self, group: ParamGroup) -> tuple[str, ...]:
        """Return the momentum's name, where there is one."""
        return ("momentum_buffer",) if group["momentum"] else ()

    def counts_steps(self, group: ParamGroup) -> bool:
        """The first step is undamped; without dampening all steps are alike."""
        return bool(group["momentum"] and group["dampening"])

    def scalars(self, group: ParamGroup, rate: Tensor, done: Tensor) -> tuple[Any, ...]:
        """Return the rate, the momentum and the gradient's factor in it, None without dampening."""
        fresh = None
        if self.counts_steps(group):
            fresh = 1.0 - group["dampening"] * (done > 0).to(rate.dtype)
        return rate, group.value("momentum"), fresh

    def update(
        self, group: ParamGroup, scalars: Sequence[Any], run: Run, param: Tensor, grad: Tensor
    ) -> Tensor:
        """Write the momentum and return the new parameters."""
        rate, factor, fresh = scalars
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * param
        if group["momentum"]:
            added = grad if fresh is None else fresh * grad
            momentum = factor * run.read("momentum_buffer") + added
            run.write("momentum_buffer", momentum)
            grad = grad + factor * momentum if group["nesterov"] else momentum
        return param - rate * grad
