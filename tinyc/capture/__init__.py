"""jit: a function of tensors runs once in Python, and from then on as one native program."""

from __future__ import annotations

from tinyc.capture.jitted import Jitted, jit

__all__ = ["Jitted", "jit"]
