"""Errors of shapes, types and axes: the operation, the user's lines, all operands, the rule."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

import tinyc
import tinyc.nn.functional as F
from tinyc import Tensor, nn
from tinyc.diagnostics import AxisError, DTypeError, ShapeError

A = Tensor(np.ones((2, 3), np.float32))
W = Tensor(np.ones((4, 5), np.float32))
IMAGE = Tensor(np.ones((1, 1, 2, 3), np.float32))

# name -> error, all operands, words of the rule, the call
CASES: dict[str, tuple[type[Exception], str, str, Callable[[], object]]] = {
    "add": (ShapeError, "f32[2,3] f32[4,5]", "sizes are equal or 1", lambda: A + W),
    "where": (ShapeError, "bool[2,3] f32[4,5]", "equal or 1", lambda: tinyc.where(A > 0, A, W)),
    "matmul": (ShapeError, "f32[2,3] f32[4,5]", "axis 1 is 3, axis 0 is 4", lambda: A @ W),
    "einsum": (ShapeError, "f32[2,3] f32[4,5]", "sizes", lambda: tinyc.einsum("ij,jk", A, W)),
    "linear": (ShapeError, "f32[2,3] f32[4,5]", "the last axis", lambda: F.linear(A, W)),
    "linear layer": (ShapeError, "f32[2,3] f32[2,5]", "the last axis", lambda: nn.Linear(5, 2)(A)),
    "conv2d": (ShapeError, "f32[4,5]", "it has 4 axes", lambda: F.conv2d(IMAGE, W)),
    "a large kernel": (
        ShapeError, "f32[1,1,2,3]", "a window spans 4",
        lambda: F.conv2d(IMAGE, tinyc.ones(1, 1, 4, 4)),
    ),
    "a large stride": (
        ShapeError, "f32[1,1,2,3]", "a window spans 4",
        lambda: F.conv2d(IMAGE, tinyc.ones(1, 1, 4, 4), stride=4),
    ),
    "max_pool2d": (
        ShapeError, "f32[1,1,2,3]", "smaller window", lambda: F.max_pool2d(IMAGE, 4)
    ),
    "avg_pool2d": (
        ShapeError, "f32[1,1,2,3]", "smaller window", lambda: F.avg_pool2d(IMAGE, 4)
    ),
    "batch norm": (ShapeError, "f32[2,3]", "4 axes", lambda: nn.BatchNorm2d(3)(A)),
    "layer_norm": (ShapeError, "f32[2,3]", "the end of the input", lambda: F.layer_norm(A, (4,))),
    "mse_loss": (ShapeError, "f32[2,3] f32[4,5]", "one shape", lambda: F.mse_loss(A, W)),
    "cross_entropy": (
        ShapeError, "f32[2,3] i64[3]", "without its axis",
        lambda: F.cross_entropy(A, Tensor([1] * 3)),
    ),
    "cat": (ShapeError, "f32[2,3] f32[4,5]", "other axes", lambda: tinyc.cat([A, W])),
    "stack": (ShapeError, "f32[2,3] f32[4,5]", "equal", lambda: tinyc.stack([A, W])),
    "reshape": (ShapeError, "f32[2,3]", "stays 6, not 7", lambda: A.reshape(7)),
    "expand": (ShapeError, "f32[2,3]", "grows from 1", lambda: A.expand(3, 3, 3)),
    "sum": (AxisError, "f32[2,3]", "axes run from -2 to 1", lambda: A.sum(4)),
    "softmax": (AxisError, "f32[2,3]", "axes run from -2 to 1", lambda: A.softmax(2)),
    "permute": (AxisError, "f32[2,3]", "axes run from", lambda: A.permute(0, 3)),
    "and": (DTypeError, "f32[2,3]", "bool or integer", lambda: A & A),
    "shl": (DTypeError, "f32[2,3]", "integer", lambda: A << 1),
    "index": (DTypeError, "f32[2,3]", "cast it to i64", lambda: W[A]),
    "embedding": (DTypeError, "f32[2,3] f32[4,5]", "an integer", lambda: F.embedding(A, W)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_messages(name):
    error, operands, rule, call = CASES[name]
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    head = re.match(r"(\w+) \(at test_messages\.py:(\d+)\): ", text)
    assert head, text
    first = call.__code__.co_firstlineno
    assert first <= int(head[2]) <= first + 3
    for operand in operands.split():
        assert operand in text
    assert rule in text
    assert text.count("test_messages.py:") >= 1 + len(operands.split())
    assert "\n" not in text and "/tinyc/" not in text
