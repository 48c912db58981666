"""What users are told: the operation, their line, the shapes, the rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, config, nn, optim
from tinyc.diagnostics import TinycError


@pytest.fixture(autouse=True)
def _on_numpy() -> Iterator[None]:
    with config.configure(device="numpy"):
        yield


def ones(*shape: int) -> Tensor:
    return Tensor(np.ones(shape, np.float32))


CASES: list[tuple[str, type[Exception], str, Callable[[], object]]] = [
    ("add", ValueError, r"f32\[2,3\].*f32\[4\].*axis -1 is 3", lambda: ones(2, 3) + ones(4)),
    (
        "matmul",
        ValueError,
        r"inner dimensions differ.*axis 1 is 3, axis 0 is 4",
        lambda: ones(2, 3) @ ones(4, 5),
    ),
    ("reshape", ValueError, r"f32\[2,3\]", lambda: ones(2, 3).reshape(4)),
    ("view", ValueError, r"product divides 6", lambda: ones(2, 3).view(-1, 4)),
    ("sum", IndexError, "there is no axis 2", lambda: ones(2, 3).sum(2)),
    ("softmax", IndexError, "there is no axis -3", lambda: ones(2, 3).softmax(-3)),
    ("transpose", IndexError, "there is no axis 5", lambda: ones(2, 3).transpose(0, 5)),
    ("permute", ValueError, "is no order of the axes", lambda: ones(2, 3).permute(0, 0)),
    ("cat", ValueError, r"f32\[2,3\].*f32\[2,4\]", lambda: tinyc.cat([ones(2, 3), ones(2, 4)])),
    ("stack", ValueError, "shapes differ", lambda: tinyc.stack([ones(2), ones(3)])),
    ("empty cat", ValueError, "nothing to join", lambda: tinyc.cat([])),
    ("expand", ValueError, r"f32\[2,3\]", lambda: ones(2, 3).expand(5, 3)),
    (
        "item",
        ValueError,
        r"there are 6 elements: f32\[2,3\].*takes a tensor of one element",
        lambda: ones(2, 3).item(),
    ),
    ("bool", ValueError, r"ambiguous; use .any\(\) or .all\(\)", lambda: bool(ones(2))),
    ("len", TypeError, "without axes", lambda: len(ones())),
    ("iter", TypeError, "without axes", lambda: iter(ones())),
    ("index", TypeError, "is no integer", lambda: [1, 2][ones()]),
    ("index out of range", IndexError, "index 5 is out of bounds on axis 0", lambda: ones(2, 3)[5]),
    ("too many indices", IndexError, "3 indices for 2 axes", lambda: ones(2, 3)[0, 0, 0]),
    ("float index", TypeError, "index arrays hold integers", lambda: ones(2)[ones(2)]),
    ("assign", ValueError, r"shapes differ: f32\[3\].*f32\[2\]", lambda: ones(3).assign(ones(2))),
    ("setitem", ValueError, "expand", lambda: ones(3).__setitem__(slice(0, 2), ones(3))),
    ("in place", ValueError, "the value does not fit", lambda: ones(3).add_(ones(2, 3))),
    ("in place dtype", TypeError, "f32 does not fit into i64", lambda: Tensor([1, 2]).add_(0.5)),
    ("load", ValueError, r"an array of shape \(2,\)", lambda: ones(3).load(np.zeros(2))),
    ("write to expanded", TinycError, "stands for several", lambda: ones(1).expand(3).add_(1)),
    ("dtype", TypeError, "no type is called 'f8'", lambda: tinyc.zeros(2, dtype="f8")),
    ("both names", TypeError, "both dim and axis", lambda: ones(2).sum(0, axis=0)),
    ("device", ValueError, "no device is called 'gpu'", lambda: ones(2).to("gpu")),
    ("new device", ValueError, "no device is called 'gpu'", lambda: Tensor([1.0], device="gpu")),
    ("clip", TypeError, "neither min nor max", lambda: ones(2).clip()),
    ("operand", TypeError, "unsupported operand", lambda: ones(2) + "text"),
    ("ragged", ValueError, "different lengths", lambda: Tensor([[1, 2], [3]])),
    ("grad's shape", ValueError, "has not the shape", lambda: setattr(ones(2), "grad", ones(3))),
    (
        "no gradient",
        RuntimeError,
        "no parameter has a gradient",
        lambda: optim.SGD([Tensor([1.0], requires_grad=True)]).step(),
    ),
    (
        "label",
        IndexError,
        "7",
        lambda: nn.functional.cross_entropy(ones(2, 3), Tensor([0, 7])).item(),
    ),
    ("embedding", IndexError, "9", lambda: nn.Embedding(4, 2)(Tensor([9])).realize()),
    ("gather", IndexError, "7", lambda: tinyc.arange(3)[Tensor([7])].numpy()),
]


@pytest.mark.parametrize(
    ("error", "message", "call"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_errors(error, message, call) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("message", "call"), [c[2:] for c in CASES[-3:]], ids=[c[0] for c in CASES[-3:]]
)
@pytest.mark.parametrize("device", ["cpu", "interpret"])
def test_indices_are_checked_in_compiled_programs(device, message, call) -> None:
    with config.configure(device=device), pytest.raises(IndexError, match=message):
        call()


def test_errors_name_the_lines_of_operands_and_operation() -> None:
    a = ones(2, 3)
    b = ones(4, 5)
    with pytest.raises(ValueError) as caught:
        a @ b
    first = test_errors_name_the_lines_of_operands_and_operation.__code__.co_firstlineno
    lines = [f"test_errors.py:{first + number}" for number in (1, 2, 4)]
    assert f"matmul (at {lines[2]})" in str(caught.value)


def test_a_diverged_network_looks_diverged() -> None:
    x = Tensor([[math.nan, 1.0, 2.0]])
    assert math.isnan(nn.functional.cross_entropy(x, Tensor([1])).item())
    assert math.isnan(nn.functional.relu(x).sum().item())
