"""Text for language models: characters as numbers, windows of tokens, and Shakespeare's plays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyc.data.dataset import Dataset
from tinyc.data.idx import DataError

_NAME = "shakespeare.txt"


class CharTokenizer:
    """Characters to their numbers in ``vocabulary``, the sorted characters of a text, and back."""

    def __init__(self, text: Iterable[str]) -> None:
        self.vocabulary = "".join(sorted(set(text)))
        if not self.vocabulary:
            raise ValueError("CharTokenizer: the text is empty; its characters are the vocabulary")
        self._numbers = {char: number for number, char in enumerate(self.vocabulary)}

    def __len__(self) -> int:
        """Return the number of different characters."""
        return len(self.vocabulary)

    def encode(self, text: str) -> np.ndarray:
        """Return i64[n], the number of each character; ValueError names one that has none."""
        try:
            return np.fromiter((self._numbers[char] for char in text), np.int64, len(text))
        except KeyError as error:
            char = error.args[0]
            raise ValueError(
                f"CharTokenizer: {char!r}, character {text.index(char)} of the text, is not in "
                f"the vocabulary of {len(self)} characters: {self.vocabulary!r}"
            ) from None

    def decode(self, tokens: Any) -> str:
        """Return the text of integers, a tensor, an array or a sequence of one axis.

        IndexError for a number that no character has.
        """
        numbers = np.asarray(tokens)
        wrong = numbers[(numbers < 0) | (numbers >= len(self))]
        if wrong.size:
            raise IndexError(f"CharTokenizer: {wrong[0]} is no number in 0..{len(self) - 1}")
        return "".join(self.vocabulary[number] for number in numbers)


class TokenWindows(Dataset):
    """Windows of one length in a sequence of tokens; a sample is (i64[length], i64[length]).

    The second array is the first one token later: what a language model has to say. ``starts``
    says where windows begin, each ``length`` + 1 tokens from the end at least.
    """

    def __init__(self, tokens: np.ndarray, starts: Sequence[int] | np.ndarray, length: int) -> None:
        self.tokens = np.asarray(tokens, np.int64)
        self.starts = np.asarray(starts, np.int64)
        self.length = length
        if length < 1:
            raise ValueError(f"TokenWindows: length is {length}; it is at least 1")
        last = len(self.tokens) - length - 1
        if self.starts.size and not 0 <= self.starts.min() <= self.starts.max() <= last:
            raise ValueError(
                f"TokenWindows: starts from {self.starts.min()} to {self.starts.max()}; windows of "
                f"{length} + 1 in {len(self.tokens)} tokens start at 0 to {last}"
            )

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.batch(np.array([range(len(self))[index]]))
        return x[0], y[0]

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (i64[b, length], i64[b, length]) of the windows at the indices."""
        found = self.tokens[self.starts[indices, None] + np.arange(self.length + 1)]
        return np.ascontiguousarray(found[:, :-1]), np.ascontiguousarray(found[:, 1:])


def split_windows(
    tokens: np.ndarray, length: int, blocks: int = 100, held_out: int = 10
) -> tuple[TokenWindows, TokenWindows]:
    """Return (training, validation) windows of a sequence cut into ``blocks`` equal ones.

    The last of ``held_out`` equal parts of each block is for validation, so that both come from
    everywhere. No window crosses from one into the other. Those of training start at every token,
    those of validation lie end to end. ValueError where a part is too short for a window.
    """
    tokens = np.asarray(tokens, np.int64)
    train, validation = [], []
    for block in range(blocks):
        first, last = block * len(tokens) // blocks, (block + 1) * len(tokens) // blocks
        border = last - (last - first) // held_out
        train.append(np.arange(first, border - length))
        validation.append(np.arange(border, last - length, length))
    if not all(map(len, train + validation)):
        raise ValueError(
            f"split_windows: {len(tokens)} tokens in {blocks} blocks leave parts of "
            f"{len(tokens) // blocks // held_out} for validation, too short for {length} + 1 "
            "tokens; take shorter windows or fewer blocks"
        )
    return (
        TokenWindows(tokens, np.concatenate(train), length),
        TokenWindows(tokens, np.concatenate(validation), length),
    )


def shakespeare(path: str | os.PathLike[str] | None = None) -> str:
    """Return the text of nine plays, or of the file ``path``.

    Without it, ``examples/data/shakespeare.txt`` of a checkout is read; nothing is downloaded.
    Raises FileNotFoundError naming the places searched, and DataError for what is no text.
    """
    here = Path(__file__).resolve().parents[2] / "examples" / "data" / _NAME
    there = Path.cwd() / "examples" / "data" / _NAME
    candidates = [here, there] if path is None else [Path(path)]
    for candidate in candidates:
        if candidate.is_file():
            return _read(candidate)
    searched = ", ".join(map(str, candidates))
    raise FileNotFoundError(
        f"shakespeare: no file {searched}; a text file is given as shakespeare(path)"
    )


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text in UTF-8: {error}") from None
    if not text:
        raise DataError(f"{path}: the file is empty")
    return text
