"""Small models and their training steps, for tests of what is said about them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyc import jit, manual_seed, nn, optim
from tinyc.tensor import Tensor


def mlp_step(rows: int = 40) -> tuple[Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]:
    """A captured step of a small classifier with AdamW, and a batch; always the same numbers."""
    manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 48), nn.LayerNorm(48), nn.ReLU(), nn.Linear(48, 7))
    optimizer = optim.AdamW(model.parameters())

    @jit
    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    r = np.random.default_rng(0)
    return step, (Tensor(r.random((rows, 24), np.float32)), Tensor(r.integers(0, 7, rows)))
