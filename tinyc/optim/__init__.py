"""Optimizers, each parameter group updated by one flat elementwise program, and schedules."""

from __future__ import annotations

from tinyc.optim import lr_scheduler
from tinyc.optim.adam import Adam, AdamW
from tinyc.optim.optimizer import Optimizer
from tinyc.optim.scaler import GradScaler
from tinyc.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "GradScaler", "Optimizer", "lr_scheduler"]
