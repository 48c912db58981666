"""How much of a stretch of memory is there: pages that the system has given to it.

Where the system can't tell (it is not Linux), the answer is None.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Iterable

from tinyc.runtime.buffer import LARGE

# (address, bytes)
Range = tuple[int, int]
PAGE = mmap.PAGESIZE
HUGE, NO_HUGE, DONT_NEED = 14, 15, 4


@functools.cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _advise(range_: Range, advice: int) -> None:
    """Give the system advice on the pages that lie wholly inside."""
    first = -(-range_[0] // PAGE) * PAGE
    size = (range_[0] + range_[1]) // PAGE * PAGE - first
    libc = _libc()
    if libc is not None and size > 0:
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), advice)


def forget(ranges: Iterable[Range]) -> None:
    """Give pages back, so that only those that are touched from now on are there.

    What they hold is lost. Huge pages, which would be there whole, are off until `recover`.
    """
    for range_ in ranges:
        if range_[1] >= LARGE:
            _advise(range_, NO_HUGE)
        _advise(range_, DONT_NEED)


def recover(ranges: Iterable[Range]) -> None:
    """Give pages back once more, so that huge ones may take the place of small ones."""
    for range_ in ranges:
        if range_[1] >= LARGE:
            _advise(range_, HUGE)
            _advise(range_, DONT_NEED)


def resident(ranges: Iterable[Range]) -> int | None:
    """Return the bytes of the ranges that lie in pages which are there; what overlaps counts once.

    None where the system does not tell.
    """
    libc = _libc()
    if libc is None:
        return None
    total = done = 0
    for address, size in sorted(set(ranges)):
        end = address + size
        start = max(address, done)
        done = max(done, end)
        if start >= end:
            continue
        first = start // PAGE * PAGE
        pages = (ctypes.c_ubyte * (-(-end // PAGE) - first // PAGE))()
        if libc.mincore(ctypes.c_void_p(first), ctypes.c_size_t(end - first), pages):
            return None
        for number, page in enumerate(bytes(pages)):
            if page & 1:
                low = first + number * PAGE
                total += min(end, low + PAGE) - max(start, low)
    return total
