"""GradScaler: losses scaled up, so that gradients in f16 do not vanish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyc.optim.optimizer import Optimizer
from tinyc.tensor import Tensor, no_grad


class GradScaler:
    """Scales losses, takes the scale out of gradients, and leaves out steps that are not finite.

    ``scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()``, outside of ``jit``:
    whether a step is taken is decided in Python. After ``growth_interval`` steps in a row the
    scale grows by ``growth_factor``; where a gradient is infinite or NaN it shrinks by
    ``backoff_factor``. bf16 has the range of f32 and needs none of this.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if not growth_factor > 1 or not 0 < backoff_factor < 1:
            raise ValueError(
                f"GradScaler: growth_factor is above 1 and backoff_factor in 0..1, not "
                f"{growth_factor} and {backoff_factor}"
            )
        self._scale, self._growth, self._backoff = init_scale, growth_factor, backoff_factor
        self._interval, self._enabled = growth_interval, enabled
        self._good = 0
        # What was found in the gradients of each optimizer since the last update.
        self._finite: dict[int, bool] = {}

    def get_scale(self) -> float:
        """Return the scale; 1 where the scaler is off."""
        return self._scale if self._enabled else 1.0

    def scale(self, loss: Tensor) -> Tensor:
        """Return a loss times the scale."""
        return loss.float() * self._scale if self._enabled else loss

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of an optimizer by the scale, to clip them for instance.

        RuntimeError where that was done since the last update.
        """
        if not self._enabled:
            return
        if id(optimizer) in self._finite:
            raise RuntimeError("GradScaler.unscale_: called twice since the last update()")
        params = [p for group in optimizer.param_groups for p in group["params"]]
        with no_grad():
            grads = [(p, p.grad.float() / self._scale) for p in params if p.grad is not None]
            finite = [grad.isfinite().all() for _, grad in grads]
            for param, grad in grads:
                param.grad = grad.to(param.dtype)
            self._finite[id(optimizer)] = not finite or bool(Tensor.stack(finite).all().item())

    def step(self, optimizer: Optimizer) -> None:
        """Take the optimizer's step if all its gradients are finite."""
        if self._enabled and id(optimizer) not in self._finite:
            self.unscale_(optimizer)
        if self._finite.get(id(optimizer), True):
            optimizer.step()

    def update(self, new_scale: float | None = None) -> None:
        """Choose the scale of the next step."""
        finite = all(self._finite.values())
        self._finite.clear()
        if not self._enabled:
            return
        self._good = self._good + 1 if finite else 0
        if new_scale is not None:
            self._scale = float(new_scale)
        elif not finite:
            self._scale *= self._backoff
        elif self._good == self._interval:
            self._scale, self._good = self._scale * self._growth, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and what it depends on, by PyTorch's names."""
        return {
            "scale": self._scale,
            "growth_factor": self._growth,
            "backoff_factor": self._backoff,
            "growth_interval": self._interval,
            "_growth_tracker": self._good,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the scaler would have whose state this is."""
        self._scale, self._good = float(state["scale"]), int(state["_growth_tracker"])
        self._growth, self._backoff = state["growth_factor"], state["backoff_factor"]
        self._interval = state["growth_interval"]
