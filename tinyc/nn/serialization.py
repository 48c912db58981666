"""Checkpoints: tensors in safetensors files, written so that a crash never leaves half a file."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from tinyc.diagnostics import TinycError
from tinyc.tensor import Tensor
from tinyc.tensor.core import numpy_bfloat16

# The metadata entry that says how the file's tensors nest.
_TREE = "tinyc"


class CheckpointError(TinycError, ValueError):
    """A file that is no checkpoint or is damaged, or a value that a checkpoint can't hold."""


def save(obj: Mapping[Any, Any], path: str | os.PathLike[str]) -> None:
    """Write a state dict, or dictionaries and lists of them and of plain values, to a file.

    A flat dictionary of tensors becomes a plain safetensors file with its keys, which any
    safetensors reader reads; how other dictionaries nest is kept in the file's metadata. Tensors
    and arrays, None, numbers, strings, tuples and lists can be held; CheckpointError names what
    can't. The file appears, or replaces the old one, in one step: whenever the process is killed,
    ``path`` holds what was there or all of what is new.
    """
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray] = {}
    tree = _flatten(obj, "", arrays)
    flat = all(isinstance(key, str) and _is_tensor(value) for key, value in obj.items())
    metadata = None if flat else {_TREE: json.dumps(tree)}
    with _replacing(Path(path)) as temporary:
        save_file(arrays, temporary, metadata)


def load(path: str | os.PathLike[str]) -> Any:
    """Return what ``save`` wrote, or the tensors by name of any other safetensors file.

    Raises FileNotFoundError, CheckpointError for a file that is damaged or of another kind, and
    DTypeError for bf16 where the package is missing that numpy needs for it.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"tinyc.load: no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            if any(file.get_slice(name).get_dtype() == "BF16" for name in names):
                numpy_bfloat16("tinyc.load")
            tensors = {name: Tensor(file.get_tensor(name)) for name in names}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(
            f"tinyc.load: {path} is damaged or no safetensors file: {error}"
        ) from None
    if _TREE not in metadata:
        return tensors
    try:
        return _unflatten(json.loads(metadata[_TREE]), tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"tinyc.load: the metadata of {path} is damaged: {error}") from None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray, np.generic))


def _flatten(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Put the tensors of a nest into ``arrays`` by dotted name; return the nest as JSON values."""
    if _is_tensor(value):
        while name in arrays:
            name += "_"
        arrays[name] = np.asarray(np.asarray(value), order="C")
        return {"tensor": name}
    if isinstance(value, Mapping):
        entries = [[key, _flatten(item, _join(name, key), arrays)] for key, item in value.items()]
        for key, _ in entries:
            if not isinstance(key, (str, int)):
                raise CheckpointError(f"tinyc.save: {name or 'the top'}: the key {key!r} is no str")
        return {"dict": entries}
    if isinstance(value, (list, tuple)):
        items = [_flatten(item, _join(name, i), arrays) for i, item in enumerate(value)]
        return {type(value).__name__ if type(value) in (list, tuple) else "tuple": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(
        f"tinyc.save: {name or 'the top'} is a {type(value).__name__}; a checkpoint holds tensors, "
        "arrays, numbers, strings, None, and dictionaries, lists and tuples of them"
    )


def _join(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def _unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    (kind, content), = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_unflatten(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    raise KeyError(kind)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``, which replaces it once it is safely on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        with suppress(OSError):  # not every system lets a folder be opened
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the system write a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
