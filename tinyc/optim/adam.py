"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinyc.optim.arena import Run
from tinyc.optim.optimizer import Optimizer, ParamGroup
from tinyc.tensor import Tensor


class Adam(Optimizer):
    """Steps of about ``lr``: the mean gradient over the root of the mean squared gradient.

    Both means are exponential, with factors ``betas``, and freed of their bias to zero.
    ``weight_decay`` adds to the gradient.
    """

    decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError for hyperparameters out of their range."""
        name = type(self).__name__
        if not all(0 <= beta < 1 for beta in group["betas"]) or len(group["betas"]) != 2:
            raise ValueError(f"{name}: betas are two numbers in 0..1, not {group['betas']}")
        for key in ("eps", "weight_decay"):
            if not group[key] >= 0:
                raise ValueError(f"{name}: {key} must be at least 0, not {group[key]}")

    def state_names(self, group: ParamGroup) -> tuple[str, ...]:
        """Return the names of the two means."""
        return "exp_avg", "exp_avg_sq"

    def counts_steps(self, group: ParamGroup) -> bool:
        """Adam's bias depends on the number of the step."""
        return True

    def scalars(self, group: ParamGroup, rate: Tensor, done: Tensor) -> tuple[Any, ...]:
        """Return the step size, 1/sqrt of the second bias, the decay factor and both betas."""
        betas = group.value("betas")
        first, second = betas[0], betas[1]
        size = rate / (1 - first * first**done)
        root = 1 / (1 - second * second**done).sqrt()
        return size, root, 1 - rate * group["weight_decay"], first, second

    def update(
        self, group: ParamGroup, scalars: Sequence[Any], run: Run, param: Tensor, grad: Tensor
    ) -> Tensor:
        """Write both means and return the new parameters."""
        size, root, decay, first, second = scalars
        if group["weight_decay"] and self.decoupled:
            param = param * decay
        elif group["weight_decay"]:
            grad = grad + group["weight_decay"] * param
        mean = run.read("exp_avg")
        mean = mean + (grad - mean) * (1 - first)
        square = second * run.read("exp_avg_sq") + (1 - second) * grad * grad
        run.write("exp_avg", mean)
        run.write("exp_avg_sq", square)
        return param - size * mean / (square.sqrt() * root + group["eps"])


class AdamW(Adam):
    """Adam whose ``weight_decay`` shrinks the parameters themselves by ``lr * weight_decay``."""

    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize)
