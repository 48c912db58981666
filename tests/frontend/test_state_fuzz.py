"""Random programs of views, expressions and writes, eager and captured, against numpy."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tinyc import Tensor, config, jit

Pair = tuple[Tensor, np.ndarray]
KEYS: list[Any] = [
    slice(None),
    slice(1, 3),
    slice(None, None, -1),
    slice(3, 0, -2),
    (slice(None), slice(0, 2)),
    (slice(None, None, 2), slice(None, None, -1)),
]


@pytest.fixture(autouse=True)
def _on_numpy() -> Iterator[None]:
    with config.configure(device="numpy"):
        yield


def view(pair: Pair, rng: random.Random) -> Pair:
    t, a = pair
    if rng.random() < 0.3 and a.ndim == 2:
        return t.T, a.T
    key = rng.choice([k for k in KEYS if a.ndim == 2 or not isinstance(k, tuple)])
    return t[key], a[key]


def compute(one: Pair, other: Pair, rng: random.Random) -> Pair:
    kind = rng.randrange(5)
    if kind == 0:
        return one[0] + other[0].sum() * 0.25, one[1] + other[1].sum(dtype=np.float32) * 0.25
    if kind == 1:
        return one[0] * 0.5 + 1, one[1] * 0.5 + 1
    if kind == 2:
        return one[0].clone(), one[1].copy()
    if kind == 3:
        return one[0].detach(), one[1]
    return one[0] - one[0].mean(), one[1] - one[1].mean(dtype=np.float32)


def write(one: Pair, other: Pair, rng: random.Random) -> None:
    t, a = one
    kind = rng.randrange(6)
    if kind == 0:
        t += 1
        a += 1
    elif kind == 1:
        t.mul_(0.5)
        a *= 0.5
    elif kind == 2:
        key = rng.choice(KEYS[:4])
        t[key] = 3
        a[key] = 3
    elif kind == 3:
        value, array = other[0].sum() * 0.125, other[1].sum(dtype=np.float32) * 0.125
        t.copy_(value)
        a[...] = array
    elif kind == 4 and t.shape == other[0].shape:
        source = other[1].copy()
        t.copy_(other[0])
        a[...] = source
    else:
        t[1:2] += 2
        a[1:2] += 2


def run(pool: list[Pair], rng: random.Random, steps: int, look: Callable[[Pair], None]) -> None:
    for _ in range(steps):
        one, other = rng.choice(pool), rng.choice(pool)
        kind = rng.random()
        if kind < 0.3:
            found = view(one, rng)
            if found[1].size and len(found[1]) > 1:
                pool.append(found)
        elif kind < 0.55:
            pool.append(compute(one, other, rng))
        elif kind < 0.85:
            write(one, other, rng)
        elif kind < 0.92 and len(pool) > 4:
            pool.pop(rng.randrange(2, len(pool)))
        else:
            look(one)


def check(pair: Pair) -> None:
    np.testing.assert_allclose(pair[0].numpy(), pair[1], rtol=1e-4, atol=1e-4)


def start(rng: random.Random, count: int = 2) -> list[Pair]:
    arrays = [
        np.array([[rng.randrange(-8, 8) for _ in range(4)] for _ in range(4)], np.float32)
        for _ in range(count)
    ]
    return [(Tensor(a), a.copy()) for a in arrays]


@pytest.mark.parametrize("seed", range(60))
def test_eager_programs(seed) -> None:
    rng = random.Random(seed)
    pool = start(rng)
    run(pool, rng, 40, check)
    for pair in pool:
        check(pair)


def program(pool: list[Pair], seed: int) -> list[Pair]:
    run(pool, random.Random(seed), 25, lambda pair: None)
    return pool[2:]


@pytest.mark.parametrize("seed", range(40))
def test_captured_programs(seed) -> None:
    rng = random.Random(1000 + seed)
    state, arguments = start(rng), [a for _, a in start(rng)]

    @jit
    def captured(*tensors: Tensor) -> list[Tensor]:
        # What numpy does meanwhile is not looked at.
        pool = [(t, np.zeros(t.shape, np.float32)) for t in (*(t for t, _ in state), *tensors)]
        return [t for t, _ in program(pool, seed)]

    for call in range(3):
        found = captured(*[Tensor(a + call) for a in arguments])
        pool = [(Tensor(a), a) for a in (*(a for _, a in state), *(a + call for a in arguments))]
        for t, (_, wanted) in zip(found, program(pool, seed)):
            np.testing.assert_allclose(t.numpy(), wanted, rtol=1e-4, atol=1e-4)
        for pair in state:
            check(pair)
    assert captured.captures == 1
