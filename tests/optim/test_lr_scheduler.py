"""Schedules: PyTorch's rates, the same after resuming, and nothing is compiled again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, compiler, nn, optim
from tinyc.diagnostics import TracingError
from tinyc.optim import lr_scheduler as ours

STEPS = 50


def sequence(L: Any, optimizer: Any) -> Any:
    parts = [
        L.LinearLR(optimizer, 0.1, total_iters=8),
        L.CosineAnnealingLR(optimizer, 20, 0.002),
        L.StepLR(optimizer, 5, 0.5),
    ]
    return L.SequentialLR(optimizer, parts, milestones=[8, 28])


SCHEDULES = {
    "lambda": lambda L, o: L.LambdaLR(o, lambda step: 0.95**step),
    "lambdas": lambda L, o: L.LambdaLR(o, [lambda step: 1 / (step + 1), lambda step: 0.5]),
    "steps": lambda L, o: L.StepLR(o, 7, 0.3),
    "linear": lambda L, o: L.LinearLR(o),
    "linear down": lambda L, o: L.LinearLR(o, 1.0, 0.0, 30),
    "cosine": lambda L, o: L.CosineAnnealingLR(o, 20, 0.01),
    "sequence": sequence,
    "one cycle": lambda L, o: L.OneCycleLR(o, 0.5, 60),
    "one cycle linear": lambda L, o: L.OneCycleLR(
        o, [0.5, 0.2], epochs=6, steps_per_epoch=10, anneal_strategy="linear", pct_start=0.4,
        div_factor=10, final_div_factor=100),
    "one cycle of three": lambda L, o: L.OneCycleLR(o, 0.5, 60, three_phase=True),
    "one cycle without momentum": lambda L, o: L.OneCycleLR(o, 0.5, 60, cycle_momentum=False),
}  # fmt: skip


def net() -> nn.Module:
    tinyc.manual_seed(0)
    return nn.Linear(3, 2)


def two_groups(library: Any, weight: Any, bias: Any, kind: str = "AdamW") -> Any:
    groups = [{"params": [weight], "lr": 0.1}, {"params": [bias], "lr": 0.02}]
    options = {"momentum": 0.9} if kind == "SGD" else {}
    return getattr(library, kind)(groups, **options)


def momenta(optimizer: Any) -> list[float]:
    key = "betas" if "betas" in optimizer.param_groups[0] else "momentum"
    return [group[key] for group in optimizer.param_groups]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_pytorch_s(name: str, kind: str) -> None:
    torch = pytest.importorskip("torch")
    layer, twin = net(), torch.nn.Linear(3, 2)
    mine = two_groups(optim, layer.weight, layer.bias, kind)
    other = two_groups(torch.optim, twin.weight, twin.bias, kind)
    schedule = SCHEDULES[name](ours, mine)
    expected = SCHEDULES[name](torch.optim.lr_scheduler, other)
    for step in range(STEPS + 5):
        np.testing.assert_allclose(
            schedule.get_last_lr(), expected.get_last_lr(), rtol=1e-9, atol=1e-12, err_msg=str(step)
        )
        rates = [group["lr"] for group in mine.param_groups]
        assert rates == schedule.get_last_lr()
        np.testing.assert_allclose(momenta(mine), momenta(other), rtol=1e-12)
        other.step()
        schedule.step()
        expected.step()


def jitted(optimizer: Any, layer: nn.Module) -> Any:
    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(layer(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return tinyc.jit(step)


X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
Y = np.arange(8) % 2


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", [*SCHEDULES, "warm-up and cosine"])
def test_fifty_steps_compile_once(name: str, kind: str) -> None:
    layer = net()
    optimizer = two_groups(optim, layer.weight, layer.bias, kind)
    make = SCHEDULES.get(name, lambda L, o: L.WarmupCosineLR(o, 10, 40, 1e-3))
    schedule, step = make(ours, optimizer), jitted(optimizer, layer)
    x, y = Tensor(X), Tensor(Y)
    step(x, y).item()
    made = compiler.compilations
    for _ in range(STEPS):
        schedule.step()
        step(x, y)
    assert compiler.compilations == made and step.captures == 1


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_training_in_one_cycle_is_pytorch_s(kind: str) -> None:
    """Rate and momentum change at each step, and the jitted program reads both."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer, twin = net(), torch.nn.Linear(3, 2)
    layer.load_state_dict(twin.state_dict())
    mine = two_groups(optim, layer.weight, layer.bias, kind)
    other = two_groups(torch.optim, twin.weight, twin.bias, kind)
    schedule = ours.OneCycleLR(mine, 0.1, 12)
    expected = torch.optim.lr_scheduler.OneCycleLR(other, 0.1, 12)
    step = jitted(mine, layer)
    for _ in range(12):
        step(Tensor(X), Tensor(Y))
        other.zero_grad()
        torch.nn.functional.cross_entropy(twin(torch.tensor(X)), torch.tensor(Y)).backward()
        other.step()
        schedule.step()
        expected.step()
    for a, b in zip(layer.parameters(), twin.parameters()):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_warm_up_and_cosine_in_closed_form() -> None:
    optimizer = optim.SGD([Tensor([1.0])], lr=1.0)
    schedule = ours.WarmupCosineLR(optimizer, 3, 11, 0.2)
    rates = []
    for _ in range(14):
        rates += schedule.get_last_lr()
        schedule.step()
    falling = 0.2 + 0.8 * (1 + np.cos(np.pi * np.arange(9) / 8)) / 2
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, *falling, 0.2, 0.2], rtol=1e-12)
    with pytest.raises(ValueError, match="0 <= warmup < total, not 5 and 5"):
        ours.WarmupCosineLR(optimizer, 5, 5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_schedule_goes_on(name: str, tmp_path) -> None:
    def make() -> Any:
        layer = net()
        optimizer = two_groups(optim, layer.weight, layer.bias)
        return optimizer, SCHEDULES[name](ours, optimizer)

    optimizer, schedule = make()
    for _ in range(17):
        schedule.step()
    parts = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    tinyc.save(parts, tmp_path / "state")
    other, again = make()
    saved = tinyc.load(tmp_path / "state")
    other.load_state_dict(saved["optimizer"])
    again.load_state_dict(saved["schedule"])
    assert again.get_last_lr() == schedule.get_last_lr()
    assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]
    assert momenta(other) == momenta(optimizer)
    for _ in range(20):
        schedule.step()
        again.step()
        assert again.get_last_lr() == schedule.get_last_lr()
        assert momenta(other) == momenta(optimizer)


@pytest.mark.oracle
def test_pytorch_s_state_is_taken_over_and_ours_by_it() -> None:
    torch = pytest.importorskip("torch")
    layer, twin = net(), torch.nn.Linear(3, 2)
    mine = two_groups(optim, layer.weight, layer.bias)
    other = two_groups(torch.optim, twin.weight, twin.bias)
    schedule, theirs = sequence(ours, mine), sequence(torch.optim.lr_scheduler, other)
    other.step()
    for _ in range(12):
        theirs.step()
    mine.load_state_dict(other.state_dict())
    schedule.load_state_dict(theirs.state_dict())
    np.testing.assert_allclose(schedule.get_last_lr(), theirs.get_last_lr(), rtol=1e-9)
    for _ in range(3):
        schedule.step()
    for group, own in zip(other.param_groups, mine.param_groups):
        group["lr"] = own["lr"]
    theirs.load_state_dict(schedule.state_dict())
    for _ in range(20):
        schedule.step()
        theirs.step()
        np.testing.assert_allclose(schedule.get_last_lr(), theirs.get_last_lr(), rtol=1e-9)


def test_going_on_at_a_given_step() -> None:
    optimizer = optim.SGD([Tensor([1.0])], lr=1.0)
    with pytest.raises(KeyError, match="group 0 has no 'initial_lr'"):
        ours.StepLR(optimizer, 2, last_epoch=3)
    optimizer.param_groups[0]["initial_lr"] = 1.0
    assert ours.StepLR(optimizer, 2, 0.5, last_epoch=3).get_last_lr() == [0.25]


def test_a_schedule_of_one_s_own() -> None:
    class Root(ours.LRScheduler):
        def get_lr(self) -> list[float]:
            return [base / (1 + self.last_epoch) ** 0.5 for base in self.base_lrs]

    schedule = Root(optim.SGD([Tensor([1.0])], lr=2.0))
    for _ in range(3):
        schedule.step()
    assert schedule.get_last_lr() == [1.0]


def test_misuse_is_explained() -> None:
    layer = net()
    optimizer = two_groups(optim, layer.weight, layer.bias)
    step = ours.StepLR(optimizer, 2)
    with pytest.raises(TracingError, match=r"StepLR\.step: it counts in Python"):
        tinyc.jit(step.step)()
    with pytest.raises(TypeError, match="list is no Optimizer"):
        ours.StepLR([layer.weight], 2)
    with pytest.raises(ValueError, match="3 values for 2 parameter groups"):
        ours.LambdaLR(optimizer, [lambda n: 1.0] * 3)
    with pytest.raises(ValueError, match="2 schedules have 1 milestones between them, not 2"):
        ours.SequentialLR(optimizer, [step, step], [1, 2])
    with pytest.raises(ValueError, match="all schedules belong to the optimizer"):
        ours.SequentialLR(optim.SGD([Tensor([1.0])]), [step], [])
    with pytest.raises(ValueError, match="the factors are in 0..1"):
        ours.LinearLR(optimizer, 0.0)
    with pytest.raises(ValueError, match="give total_steps, or epochs and steps_per_epoch"):
        ours.OneCycleLR(optimizer, 0.1, epochs=3)
    with pytest.raises(ValueError, match="pct_start is in 0..1, not 3"):
        ours.OneCycleLR(optimizer, 0.1, 10, pct_start=3)
    cycle = ours.OneCycleLR(optimizer, 0.1, 2)
    cycle.step()
    cycle.step()
    with pytest.raises(ValueError, match="step 3 of a schedule of 2 steps"):
        cycle.step()
