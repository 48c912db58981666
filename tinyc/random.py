"""Generators of random numbers: a seed and a counter, both in memory, and draws as graph nodes.

A draw is a pure function of (seed, counter), so it is the same on every device and may be computed
again in a backward. Within a capture the counter is state that each run advances once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyc import config, state
from tinyc.composites import randomness
from tinyc.diagnostics import TracingError, caller_origin
from tinyc.ir import build as b
from tinyc.ir.dtype import DType, f32, i64, u32
from tinyc.ir.node import Node
from tinyc.runtime.device import default_device, get_device
from tinyc.state import Slot

_WORD = (1 << 32) - 1
_WORDS = (1 << 64) - 1


def _number(value: int, device: str) -> Slot:
    """Return new memory that holds one i64."""
    return Slot(get_device(device).upload(np.array(value, np.int64)), caller_origin(2))


def _set(slot: Slot, value: int) -> None:
    """Overwrite memory that holds one i64."""
    get_device(slot.buffer.device).copy_in(slot.buffer, np.array(value, np.int64))


def _signed(word: int) -> int:
    """Return the number of i64 that has the bits of a number below 2**64."""
    return word - (1 << 64) if word >> 63 else word


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
        return self._go_to(seed & _WORDS, 0, None)

    def initial_seed(self) -> int:
        """Return the seed of the stream."""
        return int(self._seed.buffer.array) & _WORDS

    def get_state(self) -> np.ndarray:
        """Return i64[8], which a checkpoint can hold: where in which stream the generator is.

        Seed and counter come first, then the state of the numpy generator of the seed.
        """
        made = self.numpy_generator().bit_generator.state
        numbers = [self.initial_seed(), int(self._counter.buffer.array)]
        for wide in (made["state"]["state"], made["state"]["inc"]):
            numbers += [wide & _WORDS, wide >> 64]
        numbers += [made["has_uint32"], made["uinteger"]]
        return np.array(numbers, np.uint64).view(np.int64)

    def set_state(self, where: Any) -> Generator:
        """Go to where a generator was at its ``get_state``: an array or a tensor of that form.

        Raises ValueError for anything else.
        """
        numbers = np.asarray(where)
        if numbers.dtype != np.int64 or numbers.shape != (8,):
            raise ValueError(
                f"set_state: got {numbers.dtype}{list(numbers.shape)}; a generator's state is the "
                "int64[8] of get_state()"
            )
        seed, counter, low, high, inc_low, inc_high, has, left = map(int, numbers.view(np.uint64))
        host = np.random.Generator(np.random.PCG64())
        host.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": high << 64 | low, "inc": inc_high << 64 | inc_low},
            "has_uint32": has,
            "uinteger": left,
        }
        return self._go_to(seed, counter, host)

    def _go_to(self, seed: int, counter: int, host: np.random.Generator | None) -> Generator:
        """Go to a place, both numbers below 2**64; numpy's stream begins anew without `host`."""
        if state.capturing.trace is not None:
            raise TracingError("a generator's state is set outside functions that jit captures")
        device = self._seed.buffer.device
        _set(self._seed, _signed(seed))
        _set(self._counter, _signed(counter))
        self._key = _number(_signed(seed), device)
        self._numpy = host
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
        place = int(self._counter.buffer.array)
        now = _number(place, self._counter.buffer.device)
        _set(self._counter, place + count)
        return _words(self._key.leaf()), now.leaf()

    def _move(self, device: str) -> None:
        """Keep the state where tensors are computed."""
        if self._seed.buffer.device != device:
            seed, counter = int(self._seed.buffer.array), int(self._counter.buffer.array)
            self._seed, self._counter = _number(seed, device), _number(counter, device)
            self._key = _number(seed, device)

    def advance(self, count: int) -> None:
        """Leave it pending, within a capture, that each run goes on by `count` numbers."""
        slot = self._counter
        slot.pending = b.assign(slot.leaf(), b.add(slot.leaf(), count))
        state.pending[id(slot)] = slot


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Begin the default generator's stream of a seed and return the generator."""
    return default_generator.manual_seed(seed)


def get_rng_state() -> np.ndarray:
    """Return where the default generator is, as i64[8] that a checkpoint can hold."""
    return default_generator.get_state()


def set_rng_state(new_state: Any) -> None:
    """Go to where the default generator was at ``get_rng_state()``."""
    default_generator.set_state(new_state)


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
