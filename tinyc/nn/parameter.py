"""Parameter: a tensor that is trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyc.tensor import Tensor


class Parameter(Tensor):
    """A Tensor that a Module registers when it becomes an attribute, and that wants a gradient."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad=requires_grad)


def empty(*shape: int) -> Parameter:
    """Return a f32 parameter that an initialiser is about to fill."""
    return Parameter(np.zeros(shape, np.float32))
