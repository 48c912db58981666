"""Mutable state in a lazy graph: what is computed when, how often, and from which version."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, compiler, config, jit, nn, optim, state
from tinyc.diagnostics import StaleError
from tinyc.ir import build as b
from tinyc.ir.dtype import f32
from tinyc.ir.node import BACKWARD, interned_count, marking, toposort
from tinyc.ir.ops import Op
from tinyc.ir.phases import phases
from tinyc.runtime.buffer import ALLOCATOR


@pytest.fixture(params=["numpy", "cpu", "interpret"], autouse=True)
def _device(request: pytest.FixtureRequest) -> Iterator[None]:
    with config.configure(device=request.param):
        yield


numpy_only = pytest.mark.parametrize("_device", ["numpy"], indirect=True)


def count_ops(runs: list, op: Op) -> int:
    return sum(n.op is op for run in runs for n in toposort(run.executable.outputs))


def test_the_loss_before_the_update_is_printed_and_the_forward_runs_once() -> None:
    w = Tensor([2.0], requires_grad=True)
    optimizer = optim.SGD([w], lr=0.25)
    x = Tensor([[1.0]])
    with compiler.observe() as runs:
        loss = ((x @ w) ** 2).sum()
        loss.backward()
        optimizer.step()
        assert loss.item() == 4.0
        assert w.item() == pytest.approx(1.0)
        assert w.grad.item() == pytest.approx(4.0)
    assert len(runs) == 1
    # x @ w once; the derivative by w is another contraction.
    assert count_ops(runs, Op.CONTRACT) <= 2


def test_an_update_by_hand_under_no_grad() -> None:
    w = Tensor([2.0, 3.0], requires_grad=True)
    loss = (w * w).sum()
    loss.backward()
    with tinyc.no_grad():
        w -= 0.5 * w.grad
    assert loss.item() == 13
    assert w.tolist() == [0, 0]
    assert w.requires_grad


@numpy_only
def test_a_thousand_steps_grow_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    rng = np.random.default_rng(0)
    counts = []
    for number in range(1000):
        x = Tensor(rng.standard_normal((8, 4)).astype(np.float32))
        y = Tensor(np.arange(8) % 3)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert np.isfinite(loss.item())
        if number in (20, 999):
            gc.collect()
            counts.append((interned_count(), ALLOCATOR.live_bytes))
    assert counts[0] == counts[1]


def test_a_loss_that_is_kept_keeps_no_graph_after_backward() -> None:
    w = Tensor(np.ones(4, np.float32), requires_grad=True)
    losses = []
    sizes = []
    for _ in range(30):
        loss = (w * w).sum()
        w.grad = None
        loss.backward()
        loss.realize()
        losses.append(loss)
        gc.collect()
        sizes.append(interned_count())
    # Each kept loss is one leaf.
    assert sizes[-1] - sizes[10] <= len(sizes) - 11 + 5
    assert all(loss.item() == 4 for loss in losses)


def test_what_is_computed_is_not_computed_again() -> None:
    x = Tensor([1.0, 2.0])
    y = x.exp()
    z = y + 1
    with compiler.observe() as runs:
        first, second = y.numpy(), z.numpy()
        y.numpy()
        z.tolist()
    assert len(runs) == 2
    assert count_ops(runs, Op.EXP) == 1
    np.testing.assert_allclose(second, first + 1)


def test_a_graph_that_wants_gradients_is_kept_and_its_value_too() -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = x.exp()
    z = (y * y).sum()
    with compiler.observe() as runs:
        y.realize()
        value = z.item()
        z.backward()
        found = x.grad.numpy()
    assert count_ops(runs[:2], Op.EXP) == 1
    np.testing.assert_allclose(found, 2 * np.exp([1, 2]) ** 2, rtol=1e-5)
    assert value == pytest.approx(float((np.exp([1, 2]) ** 2).sum()), rel=1e-5)


def test_gradients_and_loss_are_computed_together() -> None:
    w = Tensor([1.0, 2.0], requires_grad=True)
    loss = w.exp().sum()
    loss.backward()
    with compiler.observe() as runs:
        loss.item()
        w.grad.numpy()
    assert len(runs) == 1
    assert count_ops(runs, Op.EXP) == 1


def test_live_readers_keep_the_old_value() -> None:
    t = Tensor([1.0, 2.0])
    before = t * 10
    t.add_(1)
    after = t * 10
    t.mul_(2)
    last = t + 0.5
    assert last.tolist() == [4.5, 6.5]
    assert before.tolist() == [10, 20]
    assert after.tolist() == [20, 30]
    assert t.tolist() == [4, 6]


def test_readers_of_a_computed_expression_that_is_overwritten() -> None:
    x = Tensor([1.0, 2.0])
    y = x * 3
    z = y + 1
    y.realize()
    y.add_(100)
    assert z.tolist() == [4, 7]
    assert y.tolist() == [103, 106]
    twin, other = x * 3, x * 3
    twin.realize()
    twin.zero_()
    assert other.tolist() == [3, 6]
    assert twin.tolist() == [0, 0]


def test_every_realization_takes_all_pending_writes() -> None:
    counter = Tensor([0])
    x = Tensor([1.0])
    for _ in range(50):
        counter += 1
        (x + 1).realize()
        assert not state.pending
    assert counter.item() == 50
    for _ in range(5):
        counter.add_(1)
    with compiler.observe() as runs:
        assert counter.item() == 55
    assert len(runs) == 1


def test_two_tensors_that_exchange_their_values() -> None:
    a, b = Tensor([1.0, 2.0]), Tensor([3.0, 4.0])
    old = a.clone()
    a.assign(b)
    b.assign(old)
    assert a.tolist() == [3, 4]
    assert b.tolist() == [1, 2]


def test_overlapping_regions_of_one_tensor() -> None:
    t = Tensor(np.arange(6.0, dtype=np.float32))
    t[1:] = t[:-1]
    assert t.tolist() == [0, 0, 1, 2, 3, 4]
    t[::2] = t.flip(0)[::2]
    assert t.tolist() == [4, 0, 2, 2, 0, 4]
    t.copy_(t.flip(0))
    assert t.tolist() == [4, 0, 2, 2, 0, 4]
    m = Tensor(np.arange(9.0, dtype=np.float32).reshape(3, 3))
    m.copy_(m.T)
    assert m.tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


def test_loading_writes_at_once_and_readers_keep_what_was() -> None:
    t = Tensor([1.0, 2.0])
    y = t * 2
    t.load(np.array([5.0, 6.0]))
    assert y.tolist() == [2, 4]
    assert t.tolist() == [5, 6]
    t.add_(1)
    t.load([0.0, 0.0])
    assert t.tolist() == [0, 0]


def test_parameters_in_an_arena() -> None:
    base = Tensor(np.zeros(20, np.float32))
    p = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    q = Tensor(np.ones(4, np.float32), requires_grad=True)
    base[:6] = p.detach().flatten()
    base[16:] = q.detach()
    p.become_alias(base, 0)
    q.become_alias(base, 16)
    assert p.alias == (base, 0)
    assert p.sum().item() == 6
    loss = (p * p).sum() + q.sum()
    loss.backward()
    with tinyc.no_grad():
        base -= Tensor.cat([p.grad.flatten(), tinyc.zeros(10), q.grad])
    assert loss.item() == 10
    assert p.tolist() == [[-1] * 3] * 2
    assert q.tolist() == [0] * 4
    with tinyc.no_grad():
        p.fill_(3)
        q.fill_(4)
    assert base.tolist() == [3] * 6 + [0] * 10 + [4] * 4
    q.load(np.full(4, 9))
    assert base[16:].tolist() == [9] * 4
    assert p.detach().requires_grad is False


def test_a_slice_of_memory_compiles_once_wherever_it_begins() -> None:
    data = Tensor(np.arange(256, dtype=np.float32).reshape(16, 16))
    made = compiler.compilations
    for start in range(0, 16, 4):
        batch = data[start : start + 4]
        np.testing.assert_allclose((batch * 2).numpy(), data.numpy()[start : start + 4] * 2)
    assert compiler.compilations - made <= 1
    with compiler.observe() as runs:
        assert [row[0].item() for row in data[:3]] == [0, 16, 32]
        assert data[2, 3].item() == 35
    assert not runs


def test_a_stale_graph_names_the_lines() -> None:
    w = Tensor([1.0, 2.0], requires_grad=True)
    y = w * 2
    y.realize()
    with tinyc.no_grad():
        w.add_(1)
    w.realize()
    with pytest.raises(
        StaleError,
        match=r"f32\[2\] tensor \(created test_state.py:\d+\) was "
        r"updated in place at test_state.py:\d+ after .*use .clone\(\)",
    ):
        y.sum().backward()
    assert y.tolist() == [2, 4]


def test_a_failing_program_leaves_the_state_as_it_was() -> None:
    t = Tensor([1.0, 2.0, 3.0])
    index = Tensor([0, 7])
    t.assign(t * t[index].sum())
    with pytest.raises(IndexError, match="7"):
        t.realize()
    assert t.tolist() == [1, 2, 3]

    @jit
    def update() -> None:
        t.assign(t * t[index].sum())

    with pytest.raises(IndexError, match="7"):
        update()
    assert t.tolist() == [1, 2, 3]


def test_state_that_a_failing_program_overwrote_is_named() -> None:
    t, table = Tensor([0, 2, 6]), Tensor([1.0, 2.0, 3.0])

    @jit
    def update() -> Tensor:
        t.assign(t + 1)
        return table[t]

    spoiled = "" if config.current().device == "numpy" else r"is spoiled: i64\[3\] \(created test_"
    with pytest.raises(IndexError, match="index [37] is out of range.*" + spoiled):
        update()


def test_running_statistics_do_not_pile_up() -> None:
    norm = nn.BatchNorm1d(3)
    x = Tensor(np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32))
    for _ in range(5):
        norm(x).sum().item()
    assert norm.num_batches_tracked.item() == 5
    assert not state.pending
    wanted = x.numpy().mean(0) * (1 - 0.9**5)
    np.testing.assert_allclose(norm.running_mean.numpy(), wanted, rtol=1e-5)


def test_state_of_integers_and_bools() -> None:
    flags, numbers = Tensor([True, False]), Tensor([1, 2])
    flags |= Tensor([False, True])
    numbers //= 2
    assert flags.tolist() == [True, True]
    assert numbers.tolist() == [0, 1]


def test_a_gradient_in_memory_is_of_no_phase_of_what_reads_it() -> None:
    w = Tensor(np.ones(4, np.float32), requires_grad=True)
    (w * w).sum().backward()
    w.grad.realize()
    leaf = w.grad.node
    assert leaf.op is Op.BUFFER and leaf.phase == "forward"
    made = (w.grad * w.grad).node
    assert phases([made])[made] == "forward"


def test_a_constant_that_a_backward_pass_made_first_is_no_gradient() -> None:
    with marking(BACKWARD):
        constant = b.full((4,), 0.3721, f32)
    assert constant.phase == BACKWARD
    made = (Tensor(np.ones(4, np.float32)) * Tensor.from_node(constant)).node
    assert made.src[1] is constant and phases([made])[made] == "forward"
