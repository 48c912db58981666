"""Memory of a GPU: a pool of blocks, and pinned memory through which values come and go."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyc.runtime.cuda_calls import DriverError

if TYPE_CHECKING:
    from tinyc.runtime.cuda_calls import Calls

# Blocks are multiples of these: small ones, and large ones.
STEP, LARGE_STEP, LARGE = 512, 2 << 20, 8 << 20
# Sizes and numbers of the pieces of pinned memory: for few bytes, and for many.
SMALL_PIECE, SMALL_PIECES = 64 << 10, 16
LARGE_PIECE, LARGE_PIECES = 8 << 20, 3


class Block:
    """A piece of the GPU's memory, which goes back to its pool when nobody has it any more."""

    __slots__ = ("_pool", "address", "nbytes", "size")

    def __init__(self, pool: Pool, address: int, nbytes: int, size: int) -> None:
        self._pool = pool
        self.address = address
        self.nbytes = nbytes
        self.size = size

    def __del__(self) -> None:
        # The garbage collector may come here inside `Pool.take`, so take no lock.
        self._pool.returned.append((self.address, self.nbytes, self.size))


class Pool:
    """Hands out blocks, and keeps what they leave behind for the next ones.

    Everything happens on one stream, so a block may be handed out again while what used it before
    still runs. Callers hold the device's lock and have the GPU active. `active_bytes` counts what
    was asked for and is alive, `held_bytes` what is taken from the driver.
    """

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.held_bytes = 0
        self.active_bytes = 0
        self.returned: deque[tuple[int, int, int]] = deque()
        self._free: dict[int, list[int]] = {}

    def take(self, nbytes: int) -> Block:
        """Return a block; DriverError where the GPU has no memory for it, whatever is given back.
        """
        self.collect()
        size = rounded(nbytes)
        free = self._free.get(size)
        address = free.pop() if free else self._fresh(size)
        self.active_bytes += nbytes
        return Block(self, address, nbytes, size)

    def _fresh(self, size: int) -> int:
        try:
            address = self.calls.allocate(size)
        except DriverError as error:
            if not error.memory or not self.trim():
                raise
            address = self.calls.allocate(size)
        self.held_bytes += size
        return address

    def collect(self) -> None:
        """Take back what has died."""
        while self.returned:
            address, nbytes, size = self.returned.popleft()
            self.active_bytes -= nbytes
            self._free.setdefault(size, []).append(address)

    def trim(self) -> int:
        """Give everything that nobody has back to the driver, and return how many bytes it was."""
        self.collect()
        before = self.held_bytes
        if any(self._free.values()):
            self.calls.synchronize()
        for size, addresses in self._free.items():
            while addresses:
                self.calls.free(addresses.pop())
                self.held_bytes -= size
        return before - self.held_bytes


def rounded(nbytes: int) -> int:
    """The size of the block for so many bytes."""
    step = STEP if nbytes < LARGE else LARGE_STEP
    return max(-(-nbytes // step), 1) * step


class Staging:
    """Pinned memory in pieces that take turns: values are put there, and copied from there."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self._small = Turns(calls, SMALL_PIECE, SMALL_PIECES)
        self._large = Turns(calls, LARGE_PIECE, LARGE_PIECES)

    def copy_in(self, address: int, values: np.ndarray) -> None:
        """Start copying bytes to the GPU; they may change as soon as this returns."""
        turns = self._small if values.nbytes <= SMALL_PIECE else self._large
        for start in range(0, values.nbytes, turns.size):
            part = values[start : start + turns.size]
            number, piece = turns.next()
            piece[: part.nbytes] = part
            self.calls.copy_in(address + start, piece[: part.nbytes])
            turns.used(number)

    def copy_out(self, values: np.ndarray, address: int) -> None:
        """Fill bytes from the GPU; while one piece is emptied the next ones are on their way."""
        turns = self._small if values.nbytes <= SMALL_PIECE else self._large
        waiting: deque[tuple[int, np.ndarray, int]] = deque()
        for start in range(0, values.nbytes, turns.size):
            if len(waiting) == turns.count:
                self._emptied(turns, *waiting.popleft(), values)
            number, piece = turns.next()
            part = piece[: min(turns.size, values.nbytes - start)]
            self.calls.copy_out(part, address + start)
            turns.used(number)
            waiting.append((number, part, start))
        for piece_of in waiting:
            self._emptied(turns, *piece_of, values)

    def _emptied(self, turns: Turns, number: int, part: np.ndarray, start: int,
                 values: np.ndarray) -> None:
        turns.wait(number)
        values[start : start + part.nbytes] = part


class Turns:
    """Pieces of pinned memory of one size, made when they are first needed."""

    def __init__(self, calls: Calls, size: int, count: int) -> None:
        self.calls = calls
        self.size = size
        self.count = count
        self._pieces: list[np.ndarray] = []
        self._events: dict[int, Any] = {}
        self._turn = 0

    def next(self) -> tuple[int, np.ndarray]:
        """Return the number of a piece that no copy uses any more, and the piece."""
        number = self._turn
        if number == len(self._pieces):
            self._pieces.append(self.calls.pinned(self.size))
        self._turn = (number + 1) % self.count
        self.wait(number)
        return number, self._pieces[number]

    def used(self, number: int) -> None:
        """Note that a copy of the piece was started."""
        self._events[number] = self.calls.mark()

    def wait(self, number: int) -> None:
        """Wait for the copy that uses a piece."""
        event = self._events.pop(number, None)
        if event is not None:
            self.calls.wait(event)
