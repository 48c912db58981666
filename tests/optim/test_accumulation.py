"""Gradients of several small batches are that of the large one, and nothing grows or compiles."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import tinyc
import tinyc.nn.functional as F
from tinyc import Tensor, compiler, nn, optim, state
from tinyc.runtime.buffer import ALLOCATOR

PARTS = 4
X = np.random.default_rng(0).standard_normal((PARTS, 16, 24)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 10, (PARTS, 16))

Run = Callable[[nn.Module, optim.Optimizer], Iterator[None]]


def make() -> tuple[nn.Module, optim.Optimizer]:
    tinyc.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 10))
    return net, optim.AdamW(net.parameters(), lr=1e-2)


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y) / PARTS


def large_batch(net: nn.Module, optimizer: optim.Optimizer) -> Iterator[None]:
    while True:
        optimizer.zero_grad()
        F.cross_entropy(net(Tensor(X.reshape(-1, 24))), Tensor(Y.ravel())).backward()
        optimizer.step()
        yield


def eager(net: nn.Module, optimizer: optim.Optimizer) -> Iterator[None]:
    while True:
        optimizer.zero_grad()
        for x, y in zip(X, Y):
            loss_of(net, Tensor(x), Tensor(y)).backward()
        optimizer.step()
        yield


def eager_and_looked_at(net: nn.Module, optimizer: optim.Optimizer) -> Iterator[None]:
    while True:
        optimizer.zero_grad()
        for x, y in zip(X, Y):
            loss = loss_of(net, Tensor(x), Tensor(y))
            loss.backward()
            assert np.isfinite(loss.item())
        optimizer.step()
        yield


def in_one_program(net: nn.Module, optimizer: optim.Optimizer) -> Iterator[None]:
    @tinyc.jit
    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        for part in range(PARTS):
            loss_of(net, x[part], y[part]).backward()
        optimizer.step()

    while True:
        step(Tensor(X), Tensor(Y))
        yield


def in_two_programs(net: nn.Module, optimizer: optim.Optimizer) -> Iterator[None]:
    @tinyc.jit
    def add(x: Tensor, y: Tensor) -> Tensor:
        loss = loss_of(net, x, y)
        loss.backward()
        return loss

    @tinyc.jit
    def update() -> None:
        nn.utils.clip_grad_norm_(net.parameters(), 1e6)
        optimizer.step()
        optimizer.zero_grad()

    while True:
        for x, y in zip(X, Y):
            add(Tensor(x), Tensor(y))
        update()
        yield


def with_an_eager_update(net: nn.Module, optimizer: optim.Optimizer) -> Iterator[None]:
    add = tinyc.jit(lambda x, y: loss_of(net, x, y).backward())
    while True:
        optimizer.zero_grad()
        for x, y in zip(X, Y):
            add(Tensor(x), Tensor(y))
        optimizer.step()
        yield


# name -> (how, programs that one step runs)
WAYS: dict[str, tuple[Run, int]] = {
    "eager": (eager, 1),
    "eager, looked at": (eager_and_looked_at, PARTS + 1),
    "one program": (in_one_program, 1),
    "two programs": (in_two_programs, PARTS + 1),
    "an eager update": (with_an_eager_update, PARTS + 1),
}


@pytest.mark.parametrize("name", WAYS)
def test_small_batches_are_one_large_batch(name: str) -> None:
    found = []
    for run in (large_batch, WAYS[name][0]):
        net, optimizer = make()
        steps = run(net, optimizer)
        for _ in range(5):
            next(steps)
        found.append([param.numpy() for param in net.parameters()])
    for a, b in zip(*found):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WAYS)
def test_accumulating_does_not_grow_or_compile(name: str) -> None:
    run, programs = WAYS[name]
    steps = run(*make())
    for _ in range(3):
        next(steps)
    gc.collect()  # what other tests have left behind
    made, memory = compiler.compilations, []
    for _ in range(10):
        with compiler.observe() as runs:
            next(steps)
        assert len(runs) == programs
        memory.append((ALLOCATOR.live_bytes, len(state.live_expressions())))
    assert compiler.compilations == made
    assert len(set(memory)) == 1
