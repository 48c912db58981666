"""jit: a function of tensors runs once in Python, and from then on as one native program."""

from __future__ import annotations

from tinyc.capture.jitted import Jitted, jit
from tinyc.capture.together import fuse

__all__ = ["Jitted", "fuse", "jit"]
