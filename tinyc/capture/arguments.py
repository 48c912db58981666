"""Arguments and results of captured functions: which parts are tensors, and what the rest is.

Tuples, lists and dictionaries are looked into, to any depth. numpy arrays count as tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinyc.tensor import Tensor

PLAIN = (bool, int, str, bytes, type(None))


def flatten(value: Any, tensors: list[Tensor]) -> Any:
    """Append the tensors in `value` to a list; return a hashable key of everything else.

    Numbers and strings count by value and type, other objects by identity.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return Tensor
    kind = type(value)
    if kind in PLAIN:
        return kind, value
    if kind is float:
        return kind, value.hex()
    if isinstance(value, np.ndarray):
        tensors.append(Tensor(value))
        return Tensor
    if isinstance(value, (tuple, list)):
        return kind, tuple([flatten(part, tensors) for part in value])
    if isinstance(value, dict):
        return kind, tuple([(key, flatten(part, tensors)) for key, part in value.items()])
    if isinstance(value, np.generic):
        return kind, value.tobytes()
    return kind, id(value)


def rebuild(value: Any, tensors: Iterator[Any]) -> Any:
    """Return `value` with its tensors replaced, in the order of `flatten`."""
    return replace(value, lambda part: next(tensors))


def replace(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return `value` with function(part) in place of each tensor or array in it."""
    if isinstance(value, (Tensor, np.ndarray)):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[replace(part, function) for part in value])
    if isinstance(value, (tuple, list)):
        return type(value)([replace(part, function) for part in value])
    if isinstance(value, dict):
        made = {key: replace(part, function) for key, part in value.items()}
        return made if type(value) is dict else type(value)(made)
    return value


def objects(value: Any) -> list[Any]:
    """Return what `flatten` counts by identity: it must live as long as the key is used."""
    if isinstance(value, (Tensor, np.ndarray)):
        return []
    if isinstance(value, (tuple, list)):
        return [found for part in value for found in objects(part)]
    if isinstance(value, dict):
        return [found for part in value.values() for found in objects(part)]
    return [value]


def describe_change(before: Any, after: Any) -> str:
    """Return in words how two keys of `flatten` differ."""
    if not (isinstance(before, tuple) and isinstance(after, tuple)):
        return "its kind"
    if before[0] is not after[0]:
        return f"from {before[0].__name__} to {after[0].__name__}"
    if before[0] in (tuple, list, dict):
        if len(before[1]) != len(after[1]):
            return f"from {len(before[1])} to {len(after[1])} elements"
        return "in its elements"
    if before[0] in (*PLAIN, float):
        texts = [float.fromhex(k[1]) if k[0] is float else k[1] for k in (before, after)]
        return f"from {texts[0]!r} to {texts[1]!r}"
    return "to another object"
