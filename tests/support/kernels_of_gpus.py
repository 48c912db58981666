"""Graphs that between them need every kind of kernel that GPUs have."""

from __future__ import annotations

import numpy as np
from running import Memory, buffers, floats

from tinyc.composites.normalization import layer_norm
from tinyc.composites.reductions import softmax
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.node import Node


def graphs() -> dict[str, tuple[list[Node], Memory]]:
    """Outputs and the memory of their buffers, by what is special about them."""
    found = {}
    (x, y), memory = buffers(floats(70, 68), floats(70, 68, seed=1))
    found["vectors"] = [b.mul(b.exp(x), b.add(y, x))], memory
    found["rest"] = [b.exp(b.slice_(x, (0, 1), (70, 67), (1, 1)))], memory
    found["tiles"] = [b.add(b.permute(x, (1, 0)), 1), b.mul(b.permute(y, (1, 0)), 2)], memory
    found["rows"] = [softmax(x, -1), *vjp([softmax(x, -1)], [y], [x])], memory
    found["columns"] = [b.sum_(x, (0,)), b.max_(y, (0,))], memory
    found["whole"] = [b.sum_(b.mul(x, y), (0, 1))], memory
    (x, w, c, g), memory = buffers(floats(90, 40), floats(40, seed=1), floats(40, seed=2),
                                   floats(90, 40, seed=3))
    y = layer_norm(x, (40,), w, c)
    found["norm"] = [y, *vjp([y], [g], [x, w, c])], memory
    index = np.random.default_rng(0).integers(0, 30, 100)
    (u, i), memory = buffers(floats(100, 140), index)
    found["scatter"] = [b.scatter_add(u, i, 0, 30)], memory
    found["gather"] = [b.gather(u, i, 0)], memory
    (x,), memory = buffers(floats(3, 5, 33, 18))
    found["planes"] = [b.permute(x, (0, 2, 3, 1)), b.sum_(x, (0, 2, 3))], memory
    return found
