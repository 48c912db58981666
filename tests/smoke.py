"""Run outside pytest, with nothing but an installed tinyc: import it and take one training step."""

from __future__ import annotations

import sys

import numpy as np

import tinyc
from tinyc import Tensor, nn, optim


def main() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    x = Tensor(np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32))
    y = Tensor(np.arange(16) % 3)

    @tinyc.jit
    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    losses = [step(x, y).item() for _ in range(20)]
    assert losses[-1] < losses[0], losses
    add = tinyc.jit(lambda x, y: x + y)
    total = x
    for _ in range(200):  # so often that C code takes the calls where Python's headers are
        total = add(total, x)
    assert np.allclose(total.numpy(), 201 * x.numpy(), rtol=1e-4)
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"Python {version}, numpy {np.__version__}: loss {losses[0]:.3f} to {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
