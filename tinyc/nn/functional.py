"""The functions of ``tinyc.functional``, where PyTorch's users look for them."""

from __future__ import annotations

from tinyc.functional import *  # noqa: F403
