"""Sampling from a model token by token: a cache of keys and values, and how a token is chosen.

Place, cache and the random numbers' counter are state in memory, so that one compiled program
serves every token: it overwrites its own state, and the token it returns is its next argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

import tinyc
from tinyc import nn, random
from tinyc.composites import sampling
from tinyc.ir.dtype import DType
from tinyc.random import Generator
from tinyc.tensor import Tensor, apply


class LayerCache:
    """The keys and values f32[b, heads, length, width] that one attention has seen."""

    def __init__(self, shape: tuple[int, ...], dtype: DType, place: Tensor) -> None:
        self.keys = tinyc.zeros(*shape, dtype=dtype).realize()
        self.values = tinyc.zeros(*shape, dtype=dtype).realize()
        self.place = place

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store f32[b, heads, 1, width] at the cache's place.

        Return all keys, all values, and bool[length] of the places that are filled.
        """
        places = tinyc.arange(self.keys.shape[2])
        here = (places == self.place).reshape(-1, 1)
        self.keys.assign(tinyc.where(here, key, self.keys))
        self.values.assign(tinyc.where(here, value, self.values))
        return self.keys, self.values, places <= self.place


class Cache:
    """What the layers of a model have seen of some sequences; ``place`` counts their tokens."""

    def __init__(self, layers: int, shape: tuple[int, ...], dtype: DType) -> None:
        self.place = Tensor(np.zeros(1, np.int64))
        self.layers = [LayerCache(shape, dtype, self.place) for _ in range(layers)]

    def advance(self) -> None:
        """Go to the next place."""
        self.place += 1

    def clear(self) -> None:
        """Begin new sequences; nothing of the old is read."""
        self.place.load(np.zeros(1, np.int64))


class Decoding(Protocol):
    """A model that goes on by one token, and has a cache for that."""

    config: Any

    def new_cache(self, batch: int) -> Cache: ...
    def decode(self, idx: Tensor, cache: Cache) -> Tensor: ...


class Sampler:
    """One token i64[b] to the next, all in one program; state is kept between calls."""

    def __init__(
        self, model: Decoding, batch: int, temperature: float, top_k: int | None, seed: int
    ) -> None:
        self.model, self.top_k = model, top_k
        self.cache = model.new_cache(batch)
        self.generator = Generator(seed)
        self.greedy = temperature == 0
        # A tensor, so that another temperature finds the same program.
        self.temperature = Tensor(np.float32(temperature))
        self.step = tinyc.jit(self._step, frozen=model)  # for several rows weights are packed

    def _step(self, token: Tensor) -> Tensor:
        logits = self.model.decode(token, self.cache)
        if self.greedy:
            return logits.argmax(-1)
        draws = Tensor.from_node(random.uniform(logits.shape, generator=self.generator))
        return apply(sampling.sample, logits / self.temperature, draws, self.top_k)


def generate(
    model: Any, idx: Tensor, count: int, temperature: float, top_k: int | None, seed: int | None
) -> Tensor:
    """Return ``idx`` i64[b, t] with `count` more tokens; see ``GPT.generate``."""
    _check(model, idx, count, temperature, top_k)
    seed = int(random.numpy_generator().integers(2**63)) if seed is None else seed
    with _evaluating(model), tinyc.no_grad():
        sampler = Sampler(model, idx.shape[0], temperature, top_k, seed)
        columns = _tokens(sampler, idx.numpy(), count)
    return Tensor(np.stack(columns, 1))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each module back into its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _tokens(sampler: Sampler, prompt: np.ndarray, count: int) -> list[np.ndarray]:
    """Return the columns of the prompt and `count` more."""
    columns = [np.ascontiguousarray(column) for column in prompt.T]
    size = sampler.model.config.block_size
    first, end = max(0, len(columns) - size), len(columns) + count
    # What the model has seen of the columns, and what it says comes after them.
    seen, following = first, None
    while len(columns) < end:
        if seen - first == size:
            first = seen = len(columns) - max(1, size // 2)
            sampler.cache.clear()
        following = sampler.step(Tensor(columns[seen]))
        seen += 1
        if seen == len(columns):
            columns.append(following.numpy())
    return columns


def _check(
    model: nn.Module, idx: Tensor, count: int, temperature: float, top_k: int | None
) -> None:
    if idx.ndim != 2 or 0 in idx.shape or not idx.dtype.is_int:
        raise ValueError(
            f"generate: idx is {idx.dtype}{list(idx.shape)}; it is i64[b, t] with at least one "
            "token to begin with"
        )
    if count < 0:
        raise ValueError(f"generate: max_new_tokens is {count}; it is at least 0")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"generate: temperature is {temperature}; it is finite and at least 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: top_k is {top_k}; it is at least 1, or None for all")
