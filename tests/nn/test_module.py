"""Module: what is registered, named, counted, frozen, copied and printed."""

from __future__ import annotations

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, config, nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4)])
        self.scale = nn.Parameter(np.ones(1, np.float32))
        self.register_buffer("seen", Tensor(np.zeros(2, np.float32)))
        self.register_buffer("scratch", Tensor(np.zeros(2, np.float32)), persistent=False)
        self.width = 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x * self.scale


KEYS = [
    "scale", "seen", "first.weight", "first.bias", "blocks.0.weight", "blocks.0.bias",
    "blocks.1.weight", "blocks.1.bias", "blocks.1.running_mean", "blocks.1.running_var",
    "blocks.1.num_batches_tracked",
]  # fmt: skip


def test_attributes_are_registered_by_what_they_are() -> None:
    net = Net()
    assert list(net.state_dict()) == KEYS
    assert [name for name, _ in net.named_parameters()] == [
        "scale", "first.weight", "first.bias", "blocks.0.weight", "blocks.0.bias",
        "blocks.1.weight", "blocks.1.bias",
    ]  # fmt: skip
    assert [name for name, _ in net.named_buffers()] == [
        "seen", "scratch", "blocks.1.running_mean", "blocks.1.running_var",
        "blocks.1.num_batches_tracked",
    ]  # fmt: skip
    assert [name for name, _ in net.named_modules()] == [
        "", "first", "blocks", "blocks.0", "blocks.1",
    ]  # fmt: skip
    assert list(net.children()) == [net.first, net.blocks]
    assert sum(p.numel() for p in net.parameters()) == 1 + 16 + 20 + 8


def test_shared_parts_are_yielded_once_and_saved_under_each_name() -> None:
    layer = nn.Linear(2, 2)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    assert [name for name, _ in twice.named_parameters()] == ["0.weight", "0.bias"]
    assert list(twice.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert len(list(tied.parameters())) == 3


def test_attributes_can_be_replaced_and_deleted() -> None:
    net = Net()
    net.first = nn.Linear(3, 4, bias=False)
    assert "first.bias" not in net.state_dict()
    net.scale = None
    assert net.scale is None and "scale" not in net.state_dict()
    del net.blocks
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'blocks'"):
        net.blocks  # noqa: B018
    with pytest.raises(TypeError, match=r"weight is a Parameter; assign an nn.Parameter or None"):
        net.first.weight = Tensor([1.0])
    assert "first" in dir(net)


def test_names_are_checked() -> None:
    net = Net()
    with pytest.raises(KeyError, match="has a dot"):
        net.add_module("a.b", nn.ReLU())
    with pytest.raises(KeyError, match="already has an attribute 'width'"):
        net.register_buffer("width", None)

    class Hasty(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.ReLU()

    with pytest.raises(AttributeError, match=r"call super\(\).__init__\(\) before"):
        Hasty()


def test_modes_recurse_and_freezing_reaches_all_parameters() -> None:
    net = Net()
    assert net.eval() is net
    assert not any(module.training for module in net.modules())
    assert all(module.training for module in net.train().modules())
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())


def test_a_change_moves_the_structure_epoch_and_no_change_does_not() -> None:
    net = Net()

    def moved(change) -> bool:
        before = config.epoch()
        change()
        return config.epoch() != before

    assert moved(net.eval)
    assert not moved(net.eval)
    assert moved(lambda: setattr(net, "width", 5))
    assert not moved(lambda: setattr(net, "width", 5))
    assert moved(lambda: setattr(net, "first", nn.Linear(3, 4)))
    assert not moved(lambda: setattr(net, "first", net.first))
    assert moved(lambda: delattr(net, "width"))


def test_apply_goes_from_the_leaves_up() -> None:
    seen: list[str] = []
    net = Net()
    assert net.apply(lambda module: seen.append(type(module).__name__)) is net
    assert seen == ["Linear", "Linear", "BatchNorm1d", "ModuleList", "Net"]


def test_zero_grad_forgets_or_zeroes() -> None:
    layer = nn.Linear(2, 1)
    layer(Tensor(np.ones((3, 2), np.float32))).sum().backward()
    assert layer.weight.grad.tolist() == [[3.0, 3.0]]
    layer.zero_grad(set_to_none=False)
    assert layer.weight.grad.tolist() == [[0.0, 0.0]]
    layer.zero_grad()
    assert layer.weight.grad is None


def test_loading_a_state_dict_gives_equal_outputs() -> None:
    tinyc.manual_seed(0)
    source, target = Net(), Net()
    x = Tensor(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32))
    source(x).numpy()
    assert not np.array_equal(source.first.weight.numpy(), target.first.weight.numpy())
    result = target.load_state_dict(source.state_dict())
    assert result.missing_keys == [] and result.unexpected_keys == []
    source.eval(), target.eval()
    np.testing.assert_array_equal(source(x).numpy(), target(x).numpy())
    np.testing.assert_array_equal(
        source.blocks[1].running_mean.numpy(), target.blocks[1].running_mean.numpy()
    )
    assert target.blocks[1].num_batches_tracked.item() == 1


def test_loading_names_every_key_that_does_not_fit_and_changes_nothing() -> None:
    net = Net()
    before = net.first.bias.numpy().copy()
    state = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    state["first.bias"] = state["first.bias"] + 1
    del state["scale"]
    state["other"] = np.zeros(1)
    state["first.weight"] = np.zeros((3, 4))
    with pytest.raises(nn.StateDictError) as caught:
        net.load_state_dict(state)
    message = str(caught.value)
    assert "missing: scale" in message
    assert "unexpected: other" in message
    assert "first.weight has shape (3, 4) in the state dict but (4, 3) in the module" in message
    np.testing.assert_array_equal(net.first.bias.numpy(), before)
    del state["first.weight"]
    result = net.load_state_dict(state, strict=False)
    assert result == (["scale", "first.weight"], ["other"])
    np.testing.assert_array_equal(net.first.bias.numpy(), before + 1)


def test_state_dict_follows_training() -> None:
    layer = nn.Linear(2, 2)
    state = layer.state_dict()
    nn.init.ones_(layer.weight)
    assert state["weight"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert not state["weight"].requires_grad


def test_sequential_is_a_list() -> None:
    row = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    assert len(row) == 3
    assert row[-1].out_features == 1
    assert isinstance(row[:2], nn.Sequential) and len(row[:2]) == 2
    row.append(nn.Sigmoid())
    row[1] = nn.Tanh()
    assert [type(module).__name__ for module in row] == ["Linear", "Tanh", "Linear", "Sigmoid"]
    del row[1]
    assert list(row.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    named = nn.Sequential({"in": nn.Linear(1, 1), "act": nn.ReLU()})
    assert list(named.state_dict()) == ["in.weight", "in.bias"]
    with pytest.raises(IndexError):
        row[7]


def test_repr_is_a_tree() -> None:
    row = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Sequential(nn.Linear(2, 3)))
    assert repr(row) == (
        "Sequential(\n"
        "  (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))\n"
        "  (1): ReLU()\n"
        "  (2): Sequential(\n"
        "    (0): Linear(in_features=2, out_features=3, bias=True)\n"
        "  )\n"
        ")"
    )


def test_to_changes_floating_parameters_and_buffers_in_place() -> None:
    net = Net()
    weight = net.first.weight
    assert net.to(tinyc.float64) is net
    assert net.first.weight is weight and weight.dtype == tinyc.float64
    assert net.blocks[1].running_mean.dtype == tinyc.float64
    assert net.blocks[1].num_batches_tracked.dtype == tinyc.int64
    assert net(Tensor(np.ones((4, 3)))).dtype == tinyc.float64


def test_forward_must_be_defined() -> None:
    with pytest.raises(NotImplementedError, match="Module must define forward"):
        nn.Module()(1)
