"""Generators of random numbers: a seed and a counter, both in memory, and draws as graph nodes.

A draw is a pure function of (seed, counter), so it is the same on every device and may be computed
again in a backward. Within a capture the counter is state that each run advances once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tinyc import config, state
from tinyc.composites import randomness
from tinyc.diagnostics import TracingError, caller_origin
from tinyc.ir import build as b
from tinyc.ir.dtype import DType, f32, i64, u32
from tinyc.ir.node import Node
from tinyc.runtime.buffer import Buffer
from tinyc.runtime.device import default_device
from tinyc.state import Slot

_WORD = (1 << 32) - 1
_WORDS = (1 << 64) - 1


def _number(value: int, device: str) -> Slot:
    """Return new memory that holds one i64."""
    buffer = Buffer(device, i64, ())
    buffer.array[...] = value
    return Slot(buffer, caller_origin(2))


def _words(seed: Node) -> tuple[Node, Node]:
    """Return the upper and the lower half of a seed."""
    high = b.and_(b.shr(seed, 32), _WORD)
    return b.cast(high, u32), b.cast(b.and_(seed, _WORD), u32)


class Generator:
    """A stream of random numbers: the same seed gives the same numbers on every device."""

    def __init__(self, seed: int = 0) -> None:
        self._numpy: np.random.Generator | None = None
        # Memory of whatever device: a draw moves it to where tensors are computed.
        device = config.current().device
        # The state of captured programs, which read and advance it in place.
        self._seed = _number(0, device)
        self._counter = _number(0, device)
        # What draws read that are not captured: never overwritten.
        self._key = _number(0, device)
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Generator:
        """Begin the stream of a seed, an integer of up to 64 bits."""
        seed = int(seed)
        if not -(1 << 63) <= seed < 1 << 64:
            raise ValueError(f"manual_seed: {seed} does not fit in 64 bits")
        self._numpy = None
        return self.set_state(np.array([seed & _WORDS, 0], np.uint64).view(np.int64))

    def initial_seed(self) -> int:
        """Return the seed of the stream."""
        return int(self._seed.buffer.array) & _WORDS

    def get_state(self) -> np.ndarray:
        """Return seed and counter: where in which stream the generator is."""
        return np.array([self._seed.buffer.array, self._counter.buffer.array], np.int64)

    def set_state(self, where: np.ndarray) -> Generator:
        """Go to where another generator was at its ``get_state``."""
        if state.capturing.trace is not None:
            raise TracingError("a generator's state is set outside functions that jit captures")
        seed, counter = (int(number) for number in where)
        self._seed.buffer.array[...] = seed
        self._counter.buffer.array[...] = counter
        self._key = _number(seed, self._seed.buffer.device)
        return self

    def numpy_generator(self) -> np.random.Generator:
        """Return numpy's generator that belongs to the seed: for values made on the host."""
        if self._numpy is None:
            self._numpy = np.random.default_rng(self.initial_seed())
        return self._numpy

    def draw(self, count: int) -> tuple[tuple[Node, Node], Node]:
        """Return (key, counter) for `count` numbers, and go on behind them."""
        self._move(default_device())
        if state.capturing.trace is not None:
            counter = self._counter.leaf()
            offset = state.capturing.trace.skip(self, count)
            return _words(self._seed.leaf()), b.add(counter, offset) if offset else counter
        # A copy, so that the program of a draw takes the counter as an input.
        now = _number(int(self._counter.buffer.array), self._counter.buffer.device)
        self._counter.buffer.array[...] += count
        return _words(self._key.leaf()), now.leaf()

    def _move(self, device: str) -> None:
        """Keep the state where tensors are computed."""
        if self._seed.buffer.device != device:
            seed, counter = self.get_state()
            self._seed, self._counter = _number(int(seed), device), _number(int(counter), device)
            self._key = _number(int(seed), device)

    def advance(self, count: int) -> None:
        """Leave it pending, within a capture, that each run goes on by `count` numbers."""
        slot = self._counter
        slot.pending = b.assign(slot.leaf(), b.add(slot.leaf(), count))
        state.pending[id(slot)] = slot


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Begin the default generator's stream of a seed and return the generator."""
    return default_generator.manual_seed(seed)


def numpy_generator() -> np.random.Generator:
    """Return numpy's generator that belongs to the default generator's seed."""
    return default_generator.numpy_generator()


def uniform(shape: Sequence[int], dtype: DType = f32, generator: Generator | None = None) -> Node:
    """Return uniform floats in [0, 1)."""
    return randomness.uniform(*_draw(shape, generator), shape, dtype)


def normal(shape: Sequence[int], dtype: DType = f32, generator: Generator | None = None) -> Node:
    """Return standard normal floats."""
    return randomness.normal(*_draw(shape, generator), shape, dtype)


def randint(
    low: int,
    high: int,
    shape: Sequence[int],
    dtype: DType = i64,
    generator: Generator | None = None,
) -> Node:
    """Return integers low <= n < high."""
    return randomness.randint(*_draw(shape, generator), shape, low, high, dtype)


def bernoulli(p: Node | float, shape: Sequence[int], generator: Generator | None = None) -> Node:
    """Return bools that are True with probability p."""
    return randomness.bernoulli(*_draw(shape, generator), p, shape)


def bits(shape: Sequence[int], generator: Generator | None = None) -> Node:
    """Return uniform u32."""
    return randomness.bits(*_draw(shape, generator), shape)


def _draw(shape: Sequence[int], generator: Generator | None) -> tuple[tuple[Node, Node], Node]:
    return (generator or default_generator).draw(math.prod(shape))
