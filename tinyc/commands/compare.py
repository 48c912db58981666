"""`tinyc compare`: one function, built in or of a file, timed fused and unfused."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any


def run(options: argparse.Namespace) -> int:
    """Time one function fused and unfused and print the table."""
    import tinyc

    if options.what == "list":
        print("\n".join(f"{name:15} {make.__doc__}" for name, make in builtins().items()))
        return 0
    found = find_function(options.what)
    if isinstance(found, str):
        print(f"tinyc compare: {found}", file=sys.stderr)
        return 1
    function, *args = found
    if options.explain:
        print(tinyc.explain(function, *args), end="\n\n")
    print(tinyc.compare(function, *args, repeats=options.repeats))
    return 0


def find_function(what: str) -> tuple | str:
    """Return (function, *args) for a built-in or FILE.py:FUNCTION, or what is wrong with it.

    FUNCTION takes no argument and returns that tuple.
    """
    if what in builtins():
        return builtins()[what]()
    path, _, name = what.rpartition(":")
    if not path:
        return f"no built-in {what!r}; there are: {', '.join(builtins())}"
    if not os.path.isfile(path):
        return f"no file {path!r}"
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec = importlib.util.spec_from_file_location("compared", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, name, None)
    if not callable(make):
        return f"{path} has no function {name!r}"
    made = make()
    if not isinstance(made, tuple) or not made or not callable(made[0]):
        return f"{name}() of {path} must return (function, *args)"
    return made


def builtins() -> dict[str, Callable[[], tuple]]:
    """Return the functions that need no file: name -> a maker of (function, *args)."""
    return {
        "chain": _chain,
        "softmax": _softmax,
        "layernorm": _layer_norm,
        "linear": _linear,
        "lenet": _lenet,
    }


def _chain() -> tuple:
    """element-wise operations on four million numbers"""
    import tinyc

    a, b, c = (tinyc.randn(4 << 20) for _ in range(3))
    return (lambda a, b, c: (a * b + c).tanh() * a.sigmoid() - b.relu() * 0.5), a, b, c


def _softmax() -> tuple:
    """softmax of 2048 rows of 1024"""
    import tinyc

    return (lambda x: x.softmax(-1)), tinyc.randn(2048, 1024)


def _layer_norm() -> tuple:
    """normalised rows, 2048 of 1024"""
    import tinyc

    def layer_norm(x: Any) -> Any:
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()

    return layer_norm, tinyc.randn(2048, 1024)


def _linear() -> tuple:
    """a linear layer with bias and relu, batch 256, 512 to 512"""
    import tinyc

    layer = tinyc.nn.Linear(512, 512)
    return (lambda x: layer(x).relu()), tinyc.randn(256, 512)


def _lenet() -> tuple:
    """one training step of LeNet on 64 images"""
    import tinyc
    from tinyc import nn

    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    optimizer = tinyc.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    @tinyc.jit
    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step, tinyc.randn(64, 1, 28, 28), tinyc.randint(0, 10, (64,))
