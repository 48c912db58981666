"""Modules of halves: training in them, their state, and files."""

from __future__ import annotations

import numpy as np
import pytest

import tinyc
import tinyc.functional as F
from tinyc import Tensor, nn, optim
from tinyc.models.gpt import GPT, GPTConfig

HALVES = pytest.mark.parametrize("dtype", [tinyc.f16, tinyc.bf16], ids=repr)


def classifier() -> nn.Module:
    tinyc.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                         nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 20), nn.LayerNorm(20),
                         nn.GELU(), nn.Dropout(0.0), nn.Linear(20, 4))  # fmt: skip


def losses(dtype, make, steps: int = 6) -> list[float]:
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((24, 1, 8, 8)).astype("f")).to(dtype)
    y = Tensor(rng.integers(0, 4, 24))
    model = classifier().to(dtype)
    optimizer = make(model.parameters())

    @tinyc.jit
    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    found = [step(x, y).item() for _ in range(steps)]
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {p.grad.dtype for p in model.parameters()} == {dtype}
    states = [s for group in optimizer.param_groups for s in group.segments[0].state.values()]
    assert states and {s.dtype for s in states} == {tinyc.f32}
    return found


@HALVES
@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, lr=0.05, momentum=0.9),
                                  lambda p: optim.AdamW(p, lr=0.01)], ids=["sgd", "adamw"])
def test_training_follows_that_in_f32(dtype, make):
    single, half = losses(tinyc.f32, make), losses(dtype, make)
    assert single[-1] < single[0] - 0.2
    np.testing.assert_allclose(half, single, atol=0.04 if dtype is tinyc.bf16 else 0.008)


@pytest.mark.parametrize("kind", ["f16", "bf16", "autocast"])
def test_a_small_gpt_has_the_losses_of_f32(kind):
    def losses(kind: str) -> list[float]:
        tinyc.manual_seed(0)
        model = GPT(GPTConfig(block_size=16, vocab_size=20, n_layer=2, n_head=2, n_embd=32))
        if kind in ("f16", "bf16"):
            model.to(kind)
        optimizer = optim.AdamW(model.parameters(), lr=3e-3)
        tokens = np.random.default_rng(0).integers(0, 20, (4, 17))

        @tinyc.jit
        def step(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            with tinyc.autocast(enabled=kind == "autocast"):
                loss = model(x, y)[1]
            loss.backward()
            optimizer.step()
            return loss

        return [step(Tensor(tokens[:, :-1]), Tensor(tokens[:, 1:])).item() for _ in range(6)]

    single = losses("f32")
    assert single[-1] < single[0] - 0.2
    np.testing.assert_allclose(losses(kind), single, atol=0.02)


@HALVES
def test_modules_change_their_floats_only(dtype):
    model = classifier()
    model.half() if dtype is tinyc.f16 else model.bfloat16()
    kinds = {name: t.dtype for name, t in model.state_dict().items()}
    assert kinds.pop("1.num_batches_tracked") is tinyc.i64
    assert set(kinds.values()) == {dtype}
    assert {t.dtype for t in model.float().state_dict().values()} == {tinyc.f32, tinyc.i64}


@HALVES
def test_files_keep_halves(dtype, tmp_path):
    pytest.importorskip("ml_dtypes")
    model = classifier().to(dtype)
    tinyc.save(model.state_dict(), tmp_path / "model.safetensors")
    found = tinyc.load(tmp_path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert found[name].dtype is tensor.dtype and found[name].equal(tensor), name
    other = classifier().to(dtype)
    other.load_state_dict(found)
    single = classifier()
    single.load_state_dict(found)
    assert other.state_dict()["5.weight"].equal(single.state_dict()["5.weight"])


@HALVES
def test_the_state_of_an_optimizer_goes_on(dtype):
    def made() -> tuple[nn.Module, optim.Optimizer]:
        tinyc.manual_seed(0)
        model = nn.Linear(5, 3).to(dtype)
        return model, optim.AdamW(model.parameters(), lr=0.01)

    def step(model: nn.Module, optimizer: optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(tinyc.ones(2, 5, dtype=dtype)).sum().backward()
        optimizer.step()

    first, second = made(), made()
    step(*first)
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    step(*first), step(*second)
    assert first[0].weight.equal(second[0].weight)


@pytest.mark.oracle
def test_state_dicts_of_pytorch_in_bf16_load():
    torch = pytest.importorskip("torch")
    theirs, ours = torch.nn.Linear(4, 3).bfloat16(), nn.Linear(4, 3).bfloat16()
    ours.load_state_dict(theirs.state_dict())
    assert ours.weight.tolist() == theirs.weight.tolist()
