"""Whole models, each on one page."""

from __future__ import annotations

from tinyc.models.gpt import GPT, GPTConfig
from tinyc.models.lenet import LeNet, SmallCNN

__all__ = ["GPT", "GPTConfig", "LeNet", "SmallCNN"]
