"""Optimizers as objects: arenas, groups, learning rates, missing gradients, resuming."""

from __future__ import annotations

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, config, nn, optim
from tinyc.diagnostics import collect


def model(seed: int = 0) -> nn.Module:
    tinyc.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
Y = np.arange(8) % 2


def step(net: nn.Module, optimizer: optim.Optimizer) -> Tensor:
    loss = nn.functional.cross_entropy(net(Tensor(X)), Tensor(Y))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def weights(net: nn.Module) -> list[np.ndarray]:
    return [param.numpy().copy() for param in net.parameters()]


def test_parameters_keep_identity_and_value_in_the_arena() -> None:
    net = model()
    handles, before = list(net.parameters()), weights(net)
    optimizer = optim.AdamW(net.parameters())
    assert all(a is b for a, b in zip(handles, net.parameters()))
    for handle, value in zip(handles, before):
        np.testing.assert_array_equal(handle.numpy(), value)
        assert handle.requires_grad and handle.shape == value.shape
    (segment,) = optimizer.param_groups[0].segments
    assert segment.size == segment.base.numel() == 15 + 5 + 10 + 2
    step(net, optimizer)
    assert all(a is b for a, b in zip(handles, net.parameters()))
    whole = np.concatenate([piece.param.numpy().ravel() for piece in segment.pieces])
    np.testing.assert_array_equal(whole, segment.base.numpy())


def test_parameters_of_whole_cache_lines_are_aligned() -> None:
    shapes = [(3,), (4, 16), (5, 5), (32,)]
    params = [Tensor(np.ones(shape, np.float32), requires_grad=True) for shape in shapes]
    optim.SGD(params)
    assert [param.alias[1] for param in params] == [96, 0, 99, 64]


@pytest.mark.parametrize(
    "view", [lambda w: w.reshape(-1), lambda w: w.reshape(2, 3), lambda w: w[1:], lambda w: w.T]
)
@pytest.mark.parametrize("shape", [(3, 2), (6,)])
def test_a_parameter_in_an_arena_has_the_gradient_of_its_views(view, shape) -> None:
    first, other = (Tensor(np.ones(s, np.float32), requires_grad=True) for s in ((16,), shape))
    optim.SGD([first, other])
    (first.sum() + (view(other) * 2).sum()).backward()
    touched = 2 * view(Tensor(np.ones(shape, np.float32))).numel()
    assert other.grad is not None and other.grad.sum().item() == touched


def test_the_loss_printed_after_the_step_is_the_one_before_it() -> None:
    net = model()
    expected = nn.functional.cross_entropy(net(Tensor(X)), Tensor(Y)).item()
    assert step(net, optim.SGD(net.parameters(), lr=1.0)).item() == pytest.approx(expected)


def test_training_lowers_the_loss() -> None:
    net = model()
    optimizer = optim.AdamW(net.parameters(), lr=0.05)
    losses = [step(net, optimizer).item() for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_tied_weight_is_updated_once() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    optimizer = optim.SGD([net[0].weight, net[1].weight], lr=1.0)
    assert len(optimizer.param_groups[0]["params"]) == 1
    before = net[0].weight.numpy().copy()
    net(Tensor(np.ones((1, 2), np.float32))).sum().backward()
    grad = net[0].weight.grad.numpy()
    optimizer.step()
    np.testing.assert_allclose(net[0].weight.numpy(), before - grad, rtol=1e-6)


def test_groups_have_options_of_their_own() -> None:
    net = model()
    optimizer = optim.SGD(
        [
            {"params": net[0].parameters(), "lr": 0.0},
            {"params": net[2].parameters(), "weight_decay": 0.5},
        ],
        lr=0.1,
    )
    before = weights(net)
    step(net, optimizer)
    after = weights(net)
    np.testing.assert_array_equal(after[0], before[0])
    assert not np.array_equal(after[2], before[2])
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.1]
    optimizer.add_param_group({"params": Tensor([1.0], requires_grad=True)})
    assert len(optimizer.param_groups) == 3
    optimizer.add_param_group({"params": []})
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    with pytest.raises(ValueError, match="in more than one group"):
        optimizer.add_param_group({"params": net[0].parameters()})
    with pytest.raises(TypeError, match="unknown option momentun"):
        optimizer.add_param_group({"params": [Tensor([1.0])], "momentun": 0.9})


class Tied:
    """A small language model whose embedding is its last layer, of either library."""

    def __init__(self, nn) -> None:
        self.wte, self.norm, self.fc = nn.Embedding(7, 6), nn.LayerNorm(6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.wte.weight
        self.net = nn.ModuleList([self.wte, self.norm, self.fc, self.head])

    def groups(self) -> list[dict]:
        params = [p for _, p in self.net.named_parameters() if p.requires_grad]
        return [
            {"params": [p for p in params if p.dim() >= 2], "weight_decay": 0.5},
            {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
        ]

    def logits(self, tokens):
        return self.head(self.fc(self.norm(self.wte(tokens))))


@pytest.mark.oracle
def test_weights_decay_and_biases_do_not_with_a_tied_weight_counted_once() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    mine, other = Tied(nn), Tied(torch.nn)
    state = other.net.state_dict()
    assert list(mine.net.state_dict()) == list(state)
    mine.net.load_state_dict(state)
    ours = optim.AdamW(mine.groups(), lr=0.01, betas=(0.9, 0.95))
    theirs = torch.optim.AdamW(other.groups(), lr=0.01, betas=(0.9, 0.95))
    assert [len(g["params"]) for g in ours.param_groups] == [2, 3]
    tokens, targets = np.arange(20) % 7, (np.arange(20) * 3) % 7

    @tinyc.jit
    def take(x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(mine.logits(x), y)
        ours.zero_grad()
        loss.backward()
        ours.step()
        return loss

    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(
            other.logits(torch.tensor(tokens)), torch.tensor(targets)
        )
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        found = take(Tensor(tokens), Tensor(targets))
        assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    for a, b in zip(mine.net.parameters(), other.net.parameters(), strict=True):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert mine.head.weight is mine.wte.weight


def test_the_learning_rate_is_state_and_compiles_nothing() -> None:
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    before, epoch = weights(net), config.epoch()
    optimizer.lr = 0.0
    optimizer.param_groups[0]["lr"] = 0.25
    assert optimizer.lr == 0.25 and config.epoch() == epoch
    step(net, optimizer)
    grads = [param.grad.numpy() for param in net.parameters()]
    for old, grad, new in zip(before, grads, weights(net)):
        np.testing.assert_allclose(new, old - np.float32(0.25) * grad, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="lr must be at least 0, not -1"):
        optimizer.lr = -1
    with pytest.raises(TypeError, match="lr is a number, not str"):
        optimizer.lr = "1e-3"


def test_the_learning_rate_is_state_under_jit() -> None:
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    compiled = tinyc.jit(lambda: step(net, optimizer))
    compiled().item()
    compiled().item()
    before = weights(net)
    optimizer.lr = 0.0
    compiled().item()
    for old, new in zip(before, weights(net)):
        np.testing.assert_array_equal(old, new)


def test_other_options_are_part_of_the_program() -> None:
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    compiled = tinyc.jit(lambda: step(net, optimizer))
    for _ in range(2):
        compiled().item()
    epoch = config.epoch()
    optimizer.param_groups[0]["momentum"] = 0.9
    assert config.epoch() != epoch
    for _ in range(2):
        compiled().item()
    assert optimizer.state_dict()["state"][0]["momentum_buffer"].numpy().any()
    with pytest.raises(ValueError, match="momentum must be at least 0"):
        optimizer.param_groups[0]["momentum"] = -1
    with pytest.raises(KeyError, match="SGD has no option 'beta'"):
        optimizer.param_groups[0]["beta"] = 1


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_jit_takes_the_steps_that_eager_takes(kind: str) -> None:
    results = []
    for jit in (lambda f: f, tinyc.jit):
        net = model()
        optimizer = getattr(optim, kind)(net.parameters(), lr=0.05)
        take = jit(lambda: step(net, optimizer))  # noqa: B023
        losses = [take().item() for _ in range(5)]
        results.append((losses, weights(net)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    for a, b in zip(results[0][1], results[1][1]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_missing_gradient_splits_the_update_with_a_remark() -> None:
    net = model()
    optimizer = optim.Adam(net.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(net(Tensor(X)), Tensor(Y))
    loss.backward()
    net[0].bias.grad = None
    before = weights(net)
    with collect() as remarks:
        optimizer.step()
    moved = [not np.array_equal(a, b) for a, b in zip(before, weights(net))]
    assert moved == [True, False, True, True]
    (remark,) = [remark for remark in remarks if remark.pass_name == "optim"]
    assert "split into runs: 1 of 4 parameters have no gradient (shapes (5,))" in str(remark)
    steps = [row["step"].item() for row in optimizer.state_dict()["state"].values()]
    assert steps == [1, 0, 1, 1]


def test_alternating_optimizer_steps_under_jit_keep_their_own_counts() -> None:
    net = model()
    optimizer = optim.Adam(net.parameters(), lr=0.1)

    def part(which: int) -> Tensor:
        optimizer.zero_grad()
        loss = sum((p * p).sum() for p in net[which].parameters())
        loss.backward()
        optimizer.step()
        return loss

    first, second = tinyc.jit(lambda: part(0)), tinyc.jit(lambda: part(2))
    for _ in range(3):
        first().item()
    second().item()
    first().item()
    steps = [row["step"].item() for row in optimizer.state_dict()["state"].values()]
    assert steps == [4, 4, 1, 1]


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_resuming_is_bit_exact(kind: str, tmp_path) -> None:
    def make(seed: int):
        net = model(seed)
        options = {"momentum": 0.9} if kind == "SGD" else {"weight_decay": 0.1}
        return net, getattr(optim, kind)(net.parameters(), lr=0.05, **options)

    net, optimizer = make(0)
    for _ in range(3):
        step(net, optimizer)
    optimizer.lr = 0.02
    path = tmp_path / "checkpoint"
    tinyc.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, path)
    for _ in range(3):
        step(net, optimizer)
    resumed, other = make(7)
    state = tinyc.load(path)
    resumed.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    assert other.lr == 0.02
    for _ in range(3):
        step(resumed, other)
    for a, b in zip(weights(net), weights(resumed)):
        np.testing.assert_array_equal(a, b)


def test_a_jitted_step_with_dropout_resumes_bit_for_bit(tmp_path) -> None:
    def make(seed: int):
        tinyc.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 2))
        optimizer = optim.AdamW(net.parameters(), lr=0.05)
        return net, optimizer, tinyc.jit(lambda: step(net, optimizer))

    net, optimizer, take = make(0)
    for _ in range(3):
        take().item()
    path = tmp_path / "checkpoint"
    parts = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
    tinyc.save({**parts, "rng": tinyc.get_rng_state(), "step": 3}, path)
    losses = [take().item() for _ in range(3)]
    resumed, other, again = make(7)
    again().item()
    saved = tinyc.load(path)
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    tinyc.set_rng_state(saved["rng"])
    assert saved["step"] == 3
    assert [again().item() for _ in range(3)] == losses
    for a, b in zip(weights(net), weights(resumed)):
        np.testing.assert_array_equal(a, b)


def test_state_dict_is_a_snapshot() -> None:
    net = model()
    optimizer = optim.Adam(net.parameters())
    step(net, optimizer)
    state = optimizer.state_dict()
    before = state["state"][0]["exp_avg"].numpy().copy()
    step(net, optimizer)
    np.testing.assert_array_equal(state["state"][0]["exp_avg"].numpy(), before)
    assert optimizer.state_dict()["state"][0]["step"].item() == 2


@pytest.mark.oracle
def test_pytorch_s_state_is_taken_over() -> None:
    torch = pytest.importorskip("torch")
    net = model()
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    net.load_state_dict(theirs.state_dict())
    ours, other = optim.AdamW(net.parameters()), torch.optim.AdamW(theirs.parameters(), lr=0.01)

    def their_step() -> None:
        other.zero_grad()
        torch.nn.functional.cross_entropy(theirs(torch.tensor(X)), torch.tensor(Y)).backward()
        other.step()

    for _ in range(2):
        their_step()
    net.load_state_dict(theirs.state_dict())
    ours.load_state_dict(other.state_dict())
    their_step()
    step(net, ours)
    for a, b in zip(weights(net), theirs.parameters()):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_pytorch_takes_our_state_over(kind: str) -> None:
    torch = pytest.importorskip("torch")
    net = model()
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    options = {"momentum": 0.9} if kind == "SGD" else {}
    ours = getattr(optim, kind)(net.parameters(), lr=0.01, weight_decay=0.1, **options)
    other = getattr(torch.optim, kind)(theirs.parameters(), **options)
    for _ in range(3):
        step(net, ours)
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in net.state_dict().items()})
    state = ours.state_dict()
    rows = {
        number: {key: torch.tensor(value.numpy()) for key, value in row.items()}
        for number, row in state["state"].items()
    }
    other.load_state_dict({"state": rows, "param_groups": state["param_groups"]})
    for _ in range(3):
        step(net, ours)
        other.zero_grad()
        torch.nn.functional.cross_entropy(theirs(torch.tensor(X)), torch.tensor(Y)).backward()
        other.step()
    for a, b in zip(weights(net), theirs.parameters()):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_state_that_does_not_fit_changes_nothing() -> None:
    net = model()
    optimizer = optim.Adam(net.parameters())
    step(net, optimizer)
    state = optimizer.state_dict()
    state["state"][1]["exp_avg"] = Tensor([1.0])
    with pytest.raises(ValueError, match=r"exp_avg of parameter 1 has shape \(1,\), the param"):
        optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match=r"groups of \[1\] parameters, the optimizer has \[4\]"):
        optimizer.load_state_dict(optim.Adam([Tensor([1.0])]).state_dict())
    assert optimizer.state_dict()["state"][0]["step"].item() == 1


def test_two_optimizers_of_the_same_parameters_share_the_arena() -> None:
    net = model()
    first, second = optim.SGD(net.parameters(), lr=0.1), optim.SGD(net.parameters(), lr=0.2)
    bases = [optimizer.param_groups[0].segments[0].base for optimizer in (first, second)]
    assert bases[0] is bases[1]
    step(net, first)
    before = weights(net)
    step(net, second)
    for old, new, param in zip(before, weights(net), net.parameters()):
        np.testing.assert_allclose(new, old - np.float32(0.2) * param.grad.numpy(), atol=1e-6)


def test_misuse_is_explained() -> None:
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match=r"no parameter has a gradient; call loss.backward"):
        optimizer.step()
    with pytest.raises(ValueError, match="got no parameters"):
        optim.SGD([])
    with pytest.raises(TypeError, match="parameters are Tensors, not str"):
        optim.SGD(["weight"])
    with pytest.raises(TypeError, match="dtype i64 cannot be optimized"):
        optim.SGD([Tensor([1, 2])])
    with pytest.raises(ValueError, match=r"betas are two numbers in 0..1"):
        optim.Adam(net.parameters(), betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="nesterov needs a momentum"):
        optim.SGD(net.parameters(), nesterov=True)
    step(net, optimizer)
    net.to(tinyc.float64)
    for param in net.parameters():
        param.grad = Tensor(np.zeros(param.shape))
    with pytest.raises(RuntimeError, match=r"make the optimizer after model.to"):
        optimizer.step()


def test_repr_lists_groups() -> None:
    text = repr(optim.SGD([Tensor([1.0])], lr=0.5))
    assert text.startswith("SGD (\nParameter Group 0\n") and "    lr: 0.5\n" in text
