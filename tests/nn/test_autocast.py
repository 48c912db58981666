"""Mixed precision: autocast and GradScaler, against training in f32 and against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import tinyc
import tinyc.functional as F
from tinyc import Tensor, nn, optim
from tinyc.diagnostics import DTypeError


def net() -> nn.Module:
    tinyc.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 4))


def batch() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    return Tensor(rng.standard_normal((48, 20)).astype("f")), Tensor(rng.integers(0, 4, 48))


def test_products_are_halves_and_what_needs_digits_is_not():
    x, w = tinyc.ones(4, 4), tinyc.ones(4, 4)
    image, kernel = tinyc.ones(1, 1, 4, 4), tinyc.ones(1, 1, 3, 3)
    q = tinyc.ones(2, 4, 4)
    with tinyc.autocast("cpu", dtype="bfloat16"):
        assert tinyc.is_autocast_enabled()
        for y in (x @ w, F.linear(x, w), tinyc.einsum("ij,jk->ik", x, w), F.conv2d(image, kernel),
                  F.scaled_dot_product_attention(q, q, q)):
            assert y.dtype is tinyc.bf16
        half = x @ w
        for y in (half.softmax(-1), half.log_softmax(-1), F.layer_norm(half, (4,)),
                  F.mse_loss(half, half), F.cross_entropy(half, Tensor([0, 1, 2, 3]))):
            assert y.dtype is tinyc.f32
        assert (half + 1).dtype is tinyc.bf16 and (half + x).dtype is tinyc.f32
        assert (x.double() @ w.double()).dtype is tinyc.f64
        with tinyc.autocast(enabled=False):
            assert (x @ w).dtype is tinyc.f32 and not tinyc.is_autocast_enabled()
        with tinyc.autocast(tinyc.f16):
            assert (x @ w).dtype is tinyc.f16
    assert (x @ w).dtype is tinyc.f32
    with pytest.raises(DTypeError, match="f32 is no half"):
        tinyc.autocast(dtype=tinyc.f32)


def test_it_is_a_decorator_and_ends_with_an_error():
    @tinyc.autocast(dtype=tinyc.f16)
    def product(x: Tensor) -> Tensor:
        return x @ x

    assert product(tinyc.ones(2, 2)).dtype is tinyc.f16
    with pytest.raises(ValueError, match="stop"), tinyc.autocast():
        raise ValueError("stop")
    assert not tinyc.is_autocast_enabled()


def test_jitted_functions_are_captured_for_each_mode():
    @tinyc.jit
    def product(x: Tensor) -> Tensor:
        return x @ x

    x = tinyc.ones(3, 3)
    for _ in range(70):
        assert product(x).dtype is tinyc.f32
        with tinyc.autocast():
            assert product(x).dtype is tinyc.bf16


@pytest.mark.parametrize("dtype", [tinyc.f16, tinyc.bf16], ids=repr)
def test_training_follows_that_in_f32(dtype):
    def losses(mixed: bool) -> list[float]:
        model, (x, y) = net(), batch()
        optimizer = optim.AdamW(model.parameters(), lr=0.01)

        @tinyc.jit
        def step(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            with tinyc.autocast(dtype=dtype, enabled=mixed):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        found = [step(x, y).item() for _ in range(6)]
        assert {p.dtype for p in model.parameters()} == {tinyc.f32}
        assert {p.grad.dtype for p in model.parameters()} == {tinyc.f32}
        return found

    np.testing.assert_allclose(losses(True), losses(False), atol=0.02)


def test_a_scaled_loss_trains_and_bad_steps_are_left_out():
    model, (x, y) = net(), batch()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scaler = optim.GradScaler(init_scale=1024.0, growth_interval=2)

    def step(factor: float = 1.0) -> None:
        optimizer.zero_grad()
        with tinyc.autocast(dtype=tinyc.f16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    plain = net()
    reference = optim.SGD(plain.parameters(), lr=0.1)
    F.cross_entropy(plain(x), y).backward()
    reference.step()
    step()
    for p, q in zip(model.parameters(), plain.parameters()):
        np.testing.assert_allclose(p.numpy(), q.numpy(), atol=2e-4)
    assert scaler.get_scale() == 1024
    step()
    assert scaler.get_scale() == 2048
    before = [p.numpy() for p in model.parameters()]
    step(float("inf"))
    assert scaler.get_scale() == 1024
    for p, old in zip(model.parameters(), before):
        np.testing.assert_array_equal(p.numpy(), old)
    other = optim.GradScaler()
    other.load_state_dict(scaler.state_dict())
    assert other.state_dict() == scaler.state_dict()


def test_unscaled_gradients_can_be_clipped():
    model, (x, y) = net(), batch()
    optimizer, scaler = optim.SGD(model.parameters(), lr=0.1), optim.GradScaler(512.0)
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.unscale_(optimizer)
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), 1e9))
    plain = net()
    F.cross_entropy(plain(x), y).backward()
    assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(plain.parameters(), 1e9)), 1e-4)
    with pytest.raises(RuntimeError, match="called twice"):
        scaler.unscale_(optimizer)
    off = optim.GradScaler(enabled=False)
    assert off.get_scale() == 1 and off.scale(norm) == norm
    with pytest.raises(ValueError, match="growth_factor is above 1"):
        optim.GradScaler(growth_factor=1.0)


@pytest.mark.oracle
def test_a_step_under_autocast_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    model, (x, y) = net(), batch()
    theirs = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.LayerNorm(32), torch.nn.GELU(),
                                 torch.nn.Linear(32, 4))
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in model.state_dict().items()})
    with tinyc.autocast(dtype=tinyc.bf16):
        loss = F.cross_entropy(model(x), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = torch.nn.functional.cross_entropy(theirs(torch.tensor(x.numpy())),
                                                   torch.tensor(y.numpy()))
    loss.backward(), wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), abs=5e-3)
    for p, q in zip(model.parameters(), theirs.parameters()):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), atol=3e-3)
