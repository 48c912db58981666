"""Optimizers: each parameter group is updated by one flat elementwise program."""

from __future__ import annotations

from tinyc.optim.adam import Adam, AdamW
from tinyc.optim.optimizer import Optimizer
from tinyc.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer"]
