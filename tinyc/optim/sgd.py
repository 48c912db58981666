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

    def scalars(self, group: ParamGroup, rate: Tensor, done: Tensor) -> tuple[Tensor, ...]:
        """Return the rate and, with dampening, the gradient's factor in the momentum."""
        if not self.counts_steps(group):
            return (rate,)
        return rate, 1.0 - group["dampening"] * (done > 0).to(rate.dtype)

    def update(
        self, group: ParamGroup, scalars: Sequence[Tensor], run: Run, param: Tensor, grad: Tensor
    ) -> Tensor:
        """Write the momentum and return the new parameters."""
        rate = scalars[0]
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * param
        if group["momentum"]:
            fresh = scalars[1] * grad if len(scalars) > 1 else grad
            momentum = group["momentum"] * run.read("momentum_buffer") + fresh
            run.write("momentum_buffer", momentum)
            grad = grad + group["momentum"] * momentum if group["nesterov"] else momentum
        return param - rate * grad
