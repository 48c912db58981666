"""Learning rates that change with the number of steps, by PyTorch's names.

A schedule is a function of the number of steps and of the rates that the groups had at first, so
it can be resumed from two numbers. It writes rates into memory that programs read: nothing is
compiled again. Of two schedules that are stepped for one optimizer the last one counts; they are
put after each other with SequentialLR.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tinyc import state
from tinyc.diagnostics import TracingError
from tinyc.optim.optimizer import Optimizer, ParamGroup


class LRScheduler:
    """Base class: counts steps, and sets the rate of each group to what ``get_lr`` says.

    ``base_lrs`` are the rates at first, kept as ``initial_lr`` in the groups, too. With
    ``last_epoch`` above -1 a schedule goes on from there; then the groups must have
    ``initial_lr``, as those of a loaded optimizer do. Otherwise KeyError is raised.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"{type(self).__name__}: {type(optimizer).__name__} is no Optimizer of tinyc"
            )
        self.optimizer = optimizer
        for number, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise KeyError(
                    f"{type(self).__name__}: group {number} has no 'initial_lr', from which a "
                    "schedule with last_epoch goes on; load the optimizer's state first"
                )
        self.base_lrs: list[float] = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._last_lr: list[float] = []
        self.step()

    def get_lr(self) -> list[float]:
        """Return the rate of each group after ``last_epoch`` steps; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} must define get_lr")

    def step(self) -> None:
        """Go on by one step and set the rates; call it after the optimizer's step, outside jit."""
        self._go_to(self.last_epoch + 1)

    def _go_to(self, epoch: int) -> None:
        if state.capturing.trace is not None:
            raise TracingError(
                f"{type(self).__name__}.step: it counts in Python, and would happen once, at the "
                "capture; call it outside the function that jit captures: the program reads the "
                "rate at each run"
            )
        self.last_epoch = epoch
        self._last_lr = [float(rate) for rate in self.get_lr()]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr):
            group["lr"] = rate

    def get_last_lr(self) -> list[float]:
        """Return the rates of the groups that were set last."""
        return self._last_lr

    def state_dict(self) -> dict[str, Any]:
        """Return what the schedule is made of and where it is, without optimizer and functions."""
        return {
            key: value for key, value in self.__dict__.items()
            if key != "optimizer" and not _has_functions(value)
        }  # fmt: skip

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where another schedule was, PyTorch's too; KeyError if ``last_epoch`` is missing.

        The rates come with the optimizer's own state, or at the next step.
        """
        self.last_epoch = int(state_dict["last_epoch"])
        for key in self.state_dict():
            if key in state_dict:
                setattr(self, key, state_dict[key])


def _has_functions(value: Any) -> bool:
    return any(callable(part) for part in value) if isinstance(value, list) else callable(value)


class LambdaLR(LRScheduler):
    """The first rate times ``lr_lambda(steps)``: one function, or one for each group.

    The functions are no part of the state dict.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        self.lr_lambdas = _one_each("LambdaLR", optimizer, lr_lambda)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the first rates times the functions' values."""
        pairs = zip(self.base_lrs, self.lr_lambdas)
        return [base * function(self.last_epoch) for base, function in pairs]


class StepLR(LRScheduler):
    """The rate is multiplied by ``gamma`` after every ``step_size`` steps."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return base * gamma ** (steps // step_size)."""
        factor = self.gamma ** (self.last_epoch // self.step_size)
        return [base * factor for base in self.base_lrs]


class LinearLR(LRScheduler):
    """A factor of the rate goes from ``start_factor`` to ``end_factor`` in ``total_iters`` steps.

    Raises ValueError for factors outside 0..1 and a start of 0.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not (0 < start_factor <= 1 and 0 <= end_factor <= 1):
            raise ValueError(
                f"LinearLR: the factors are in 0..1, the first above 0, not {start_factor} and "
                f"{end_factor}"
            )
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the first rates times the factor, which stays at its end."""
        done = min(self.last_epoch / self.total_iters, 1.0)
        factor = self.start_factor + (self.end_factor - self.start_factor) * done
        return [base * factor for base in self.base_lrs]


class CosineAnnealingLR(LRScheduler):
    """The rate falls to ``eta_min`` in ``T_max`` steps by half a cosine, and then rises again.

    Source: Loshchilov and Hutter, "SGDR", 2017, without restarts.
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return eta_min + (base - eta_min) * (1 + cos(pi * steps / T_max)) / 2."""
        done = self.last_epoch / self.T_max
        return [_cosine(base, self.eta_min, done) for base in self.base_lrs]


class WarmupCosineLR(LRScheduler):
    """The rate rises evenly for ``warmup`` steps, then falls by half a cosine to ``eta_min``.

    It is at ``eta_min`` after ``total`` steps and stays there. The first step has the rate
    ``lr / (warmup + 1)``, the step after the warm-up the whole. Raises ValueError unless
    0 <= warmup < total. PyTorch spells it as a SequentialLR of LinearLR and CosineAnnealingLR.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: int,
        total: int,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= warmup < total:
            raise ValueError(f"WarmupCosineLR: 0 <= warmup < total, not {warmup} and {total}")
        self.warmup = warmup
        self.total = total
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the rates of this step."""
        if self.last_epoch < self.warmup:
            factor = (self.last_epoch + 1) / (self.warmup + 1)
            return [base * factor for base in self.base_lrs]
        done = min((self.last_epoch - self.warmup) / (self.total - self.warmup), 1.0)
        return [_cosine(base, self.eta_min, done) for base in self.base_lrs]


class OneCycleLR(LRScheduler):
    """The rate rises from ``max_lr / div_factor`` to ``max_lr``, then falls far below its start.

    It rises for the share ``pct_start`` of ``total_steps`` (or ``epochs * steps_per_epoch``), and
    ends at its start over ``final_div_factor``; with ``three_phase`` it falls as long as it rose,
    and then to the end. ``anneal_strategy`` is "cos" or "linear". With ``cycle_momentum`` the
    momentum, or Adam's first beta, goes the other way, from ``max_momentum`` to ``base_momentum``
    and back. Raises ValueError for options that don't fit and for a step too many.
    Source: Smith and Topin, "Super-Convergence", 2019.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"OneCycleLR: anneal_strategy is cos or linear, not {anneal_strategy}")
        self.total_steps = _steps(total_steps, epochs, steps_per_epoch)
        self.anneal_strategy = anneal_strategy
        self.final_div_factor = final_div_factor
        self.three_phase = three_phase
        self.ends = _ends(pct_start, self.total_steps, three_phase)
        self.max_lrs = _one_each("OneCycleLR: max_lr", optimizer, max_lr)
        self.momenta: list[tuple[float, float]] = []
        if cycle_momentum:
            most = _one_each("OneCycleLR: max_momentum", optimizer, max_momentum)
            least = _one_each("OneCycleLR: base_momentum", optimizer, base_momentum)
            self.momenta = list(zip(most, least))
            for group in optimizer.param_groups:
                group.make_live(_momentum_name(group))
        if last_epoch == -1:
            for group, highest in zip(optimizer.param_groups, self.max_lrs):
                group["initial_lr"] = highest / div_factor
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the rates of this step; ValueError after the last."""
        if self.last_epoch > self.total_steps:
            raise ValueError(
                f"OneCycleLR: step {self.last_epoch} of a schedule of {self.total_steps} steps"
            )
        rates = []
        for low, high in zip(self.base_lrs, self.max_lrs):
            last = low / self.final_div_factor
            rates.append(self._between([low, high, low, last] if self.three_phase
                                       else [low, high, last]))  # fmt: skip
        return rates

    def _go_to(self, epoch: int) -> None:
        super()._go_to(epoch)
        for group, (most, least) in zip(self.optimizer.param_groups, self.momenta):
            points = [most, least, most, most] if self.three_phase else [most, least, most]
            _set_momentum(group, self._between(points))

    def _between(self, points: Sequence[float]) -> float:
        """Return the value of this step, given those where phases begin and where the last ends."""
        begin = 0.0
        for end, start, stop in zip(self.ends, points, points[1:]):
            if self.last_epoch <= end or end == self.ends[-1]:
                done = (self.last_epoch - begin) / (end - begin)
                return (_cosine if self.anneal_strategy == "cos" else _linear)(start, stop, done)
            begin = end
        raise AssertionError("the last phase ends with the schedule")


def _steps(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    if total_steps is None and epochs is not None and steps_per_epoch is not None:
        total_steps = epochs * steps_per_epoch
    if total_steps is None or total_steps <= 0:
        raise ValueError(
            "OneCycleLR: give total_steps, or epochs and steps_per_epoch, all above 0; got "
            f"{total_steps}, {epochs} and {steps_per_epoch}"
        )
    return total_steps


def _ends(rising: float, total: int, three_phase: bool) -> list[float]:
    """Return the steps at which the phases of one cycle end, as PyTorch counts them."""
    if not 0 <= rising <= 1:
        raise ValueError(f"OneCycleLR: pct_start is in 0..1, not {rising}")
    ends = [rising * total - 1, total - 1]
    return [ends[0], 2 * rising * total - 2, ends[1]] if three_phase else ends


def _momentum_name(group: ParamGroup) -> str:
    for name in ("betas", "momentum"):
        if name in group:
            return name
    raise ValueError(
        "OneCycleLR: the optimizer has neither momentum nor betas; pass cycle_momentum=False"
    )


def _set_momentum(group: ParamGroup, value: float) -> None:
    name = _momentum_name(group)
    group[name] = (value, *group["betas"][1:]) if name == "betas" else value


class SequentialLR(LRScheduler):
    """Schedules one after another: the next one begins, at its step 0, at each milestone.

    Raises ValueError unless there is one milestone fewer than schedules, and where a schedule
    belongs to another optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"SequentialLR: {len(schedulers)} schedules have {len(schedulers) - 1} milestones "
                f"between them, not {len(milestones)}"
            )
        if any(scheduler.optimizer is not optimizer for scheduler in schedulers):
            raise ValueError("SequentialLR: all schedules belong to the optimizer it is given")
        self._schedulers = list(schedulers)
        self._milestones = list(milestones)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the rates of the schedule whose turn it is."""
        number = bisect_right(self._milestones, self.last_epoch)
        begin = self._milestones[number - 1] if number else 0
        scheduler = self._schedulers[number]
        scheduler._go_to(self.last_epoch - begin)
        return scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with a list of those of the schedules."""
        own = {key: value for key, value in super().state_dict().items() if key != "_schedulers"}
        return {**own, "_schedulers": [scheduler.state_dict() for scheduler in self._schedulers]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the state; ValueError where the number of schedules is another."""
        theirs = state_dict["_schedulers"]
        if len(theirs) != len(self._schedulers):
            raise ValueError(
                f"SequentialLR.load_state_dict: {len(theirs)} schedules, not "
                f"{len(self._schedulers)}"
            )
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "_schedulers"})
        for scheduler, entries in zip(self._schedulers, theirs):
            scheduler.load_state_dict(entries)


def _cosine(start: float, end: float, done: float) -> float:
    """Return the value at a share ``done`` of the way from start to end, by half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def _linear(start: float, end: float, done: float) -> float:
    return start + (end - start) * done


def _one_each(name: str, optimizer: Optimizer, value: Any) -> list[Any]:
    """Return one value for each group; ValueError for a list of another length."""
    count = len(optimizer.param_groups)
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name}: {len(values)} values for {count} parameter groups")
    return values
