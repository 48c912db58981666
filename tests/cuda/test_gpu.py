"""What only a real GPU shows. The tests of all backends run on it, too: `pytest -m gpu`."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, compiler
from tinyc.runtime.device import get_device
from tinyc.runtime.device_memory import LARGE_PIECE

pytestmark = pytest.mark.gpu


def steps(device: str, count: int) -> tuple[list[float], np.ndarray]:
    """(losses, weights afterwards) of a captured training step on other data each time."""
    with tinyc.device(device):
        r = np.random.default_rng(0)
        w = Tensor(r.standard_normal((64, 32)).astype(np.float32)).requires_grad_()
        optimizer = tinyc.optim.Adam([w], lr=0.01)

        @tinyc.jit
        def step(x):
            optimizer.zero_grad()
            loss = (x @ w).softmax(-1).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        x = r.standard_normal((count, 128, 64)).astype(np.float32)
        return [step(Tensor(batch)).item() for batch in x], w.numpy()


def test_graphs_are_replayed_on_other_data_and_give_the_same_bits_again(gpu):
    losses, weights = steps(gpu, 20)
    again, weights_again = steps(gpu, 20)
    assert losses == again
    np.testing.assert_array_equal(weights, weights_again)
    want, weights_here = steps("cpu", 20)
    np.testing.assert_allclose(losses, want, rtol=1e-4)
    np.testing.assert_allclose(weights, weights_here, rtol=1e-3, atol=1e-5)


def test_large_copies_go_there_and_back(gpu):
    array = np.random.default_rng(0).integers(0, 256, 5 * LARGE_PIECE + 77, np.uint8)
    there = Tensor(array, device=gpu)
    np.testing.assert_array_equal(there.numpy(), array)
    np.testing.assert_array_equal(there[1000:-5].numpy(), array[1000:-5])


def test_other_threads_use_the_device(gpu):
    found = []

    def work() -> None:
        with tinyc.device(gpu):
            found.append((Tensor(np.arange(1000, dtype=np.float32)) * 2).sum().item())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert found == [999_000.0] * 3


def test_events_time_kernels(gpu):
    with tinyc.device(gpu):
        x = tinyc.rand(1 << 22).realize()
        with compiler.observe() as runs:
            (x.exp() / x.exp().sum()).realize()
    run = runs[-1]
    out = get_device(gpu).alloc(tinyc.f32, (1 << 22,))
    times = np.zeros(len(run.executable.program.kernels) + 1, np.int64)
    for _ in range(3):
        run.executable.native.run([*run.buffers, out], times)
    took = np.diff(times)
    # 16 MiB at least once, on a card between 10 GB/s and 100 TB/s
    assert (took > 0).all() and 300 < took.sum() < 5e6


def test_memory_that_is_not_there_is_an_error_after_which_all_works(gpu):
    device = get_device(gpu)
    held = device.driver.held_bytes()
    with pytest.raises(MemoryError, match="1,000,000,000,000,000 bytes asked for"):
        device.alloc(tinyc.u8, (10**15,))
    assert device.driver.held_bytes() == held
    assert Tensor([1.0, 2.0], device=gpu).sum().item() == 3


def test_torch_and_tinyc_share_the_device(gpu):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    mine = Tensor(np.ones((256, 256), np.float32), device=gpu)
    theirs = torch.ones((256, 256), device="cuda")
    for _ in range(3):
        mine, theirs = (mine @ mine) / 256, (theirs @ theirs) / 256
    np.testing.assert_allclose(mine.numpy(), theirs.cpu().numpy())
