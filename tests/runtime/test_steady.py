"""A training step in its steady state: no page faults, no second copy, no work while idle."""

from __future__ import annotations

import resource
import time

import numpy as np
import pytest

import tinyc
from tinyc import config
from tinyc.nn import functional as F
from tinyc.runtime.buffer import ALLOCATOR

WIDE = 1024


@pytest.fixture
def training():
    """A jitted step of Adam on a network of 8 MiB, its parameters, and a batch."""
    config.configure(threads=2)
    rng = np.random.default_rng(0)

    def made(*shape: int) -> tinyc.Tensor:
        return tinyc.Tensor((rng.standard_normal(shape) / 32).astype(np.float32))

    params = [made(WIDE, WIDE).requires_grad_(), made(WIDE, WIDE).requires_grad_()]
    x, y = made(64, WIDE), made(64, WIDE)
    update = tinyc.optim.Adam(params, lr=1e-3)

    @tinyc.jit
    def step(x, y):
        loss = F.mse_loss(F.linear(F.relu(F.linear(x, params[0])), params[1]), y)
        update.zero_grad()
        loss.backward()
        update.step()
        return loss

    return step, params, (x, y)


@pytest.mark.cpu("drivers of devices take memory as they like")
def test_fifty_steps_touch_no_new_page(training):
    step, _, batch = training
    for _ in range(5):
        step(*batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        step(*batch)
    # Python takes a page now and then; fresh memory for one parameter would be a thousand.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 50


def test_weights_are_updated_where_they_are(training):
    step, params, batch = training
    first = step(*batch).item()
    flat = params[0].alias[0]
    where = flat.__array__(copy=False).ctypes.data
    live = ALLOCATOR.live_bytes
    ALLOCATOR.reset_peak()
    for _ in range(5):
        last = step(*batch).item()
    assert last < first
    assert params[1].alias[0] is flat and flat.__array__(copy=False).ctypes.data == where
    # A loss, and nothing of the size of a parameter; the arena holds less than one, too.
    assert ALLOCATOR.peak_bytes - live < 4096
    assert step.program.arena_size < params[0].nbytes


def test_threads_sleep_when_there_is_nothing_to_do(training):
    step, _, batch = training
    with config.configure(threads=4):
        step(*batch)
        time.sleep(0.05)  # longer than threads spin
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.03
