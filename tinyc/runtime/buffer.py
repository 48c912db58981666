"""Memory of tensors: buffers, and the caching allocator that their storage comes from."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import threading
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Protocol

import numpy as np

from tinyc.diagnostics import Origin
from tinyc.ir.dtype import DType, converted_array, from_numpy

ALIGNMENT = 64
HUGE_PAGE = 2 << 20
LARGE = 4 << 20
# From here on blocks are mappings of their own, which nothing keeps from going back.
MAPPED = 128 << 10
# Freed memory beyond this, and beyond what is live, goes back to the system.
KEEP_FREE = 256 << 20


@dataclass(frozen=True, eq=False)
class Block:
    """A piece of memory from the system; `owner` frees it by dying."""

    address: int
    size: int
    owner: object


class Lease:
    """The base of a buffer's array: numpy views hold it, its death gives the block back.

    Without a block it stands for memory of a device, which is only counted.
    """

    __slots__ = (
        *("__weakref__", "_block", "_dtype", "_nbytes", "_returned", "_shape"),
        "category",
    )

    def __init__(
        self,
        block: Block | None,
        nbytes: int,
        dtype: DType,
        shape: tuple[int, ...],
        returned: deque[tuple[Block | None, int, str]],
    ):
        self.category = ""
        self._block = block
        self._nbytes = nbytes
        self._dtype = dtype
        self._shape = shape
        self._returned = returned

    @property
    def __array_interface__(self) -> dict:
        assert self._block is not None
        return {
            "shape": self._shape,
            "typestr": self._dtype.np.str,
            "descr": self._dtype.np.descr,
            "data": (self._block.address, False),
            "version": 3,
        }

    def __del__(self) -> None:
        # The garbage collector may come here inside `Allocator.lease`, so take no lock.
        self._returned.append((self._block, self._nbytes, self.category))


class Allocator:
    """Hands out 64-byte aligned arrays and keeps what they leave behind for the next ones.

    Fresh pages cost about ten times a warm write, so blocks are kept by size class. From 4 MiB
    on they are aligned to huge pages, and the system is asked for those.
    `live_bytes` and `peak_bytes` count what was asked for, `held_bytes` what is taken from the
    system, `allocations` the arrays and `system_allocations` the blocks made so far, and
    `categories` the live bytes of arrays that were given a category.
    """

    def __init__(self) -> None:
        self.allocations = 0
        self.system_allocations = 0
        self.held_bytes = 0
        self._live_bytes = 0
        self._peak_bytes = 0
        self._free_bytes = 0
        self._free: dict[int, list[Block]] = {}
        self._returned: deque[tuple[Block | None, int, str]] = deque()
        self._categories: dict[str, int] = {}
        self._lock = threading.RLock()

    @property
    def live_bytes(self) -> int:
        """Bytes of the arrays that are alive."""
        with self._lock:
            self._collect()
            return self._live_bytes

    @property
    def categories(self) -> dict[str, int]:
        """Bytes of the arrays that are alive, by category; "" is what was given none."""
        with self._lock:
            self._collect()
            rest = self._live_bytes - sum(self._categories.values())
            return {**self._categories, "": rest}

    def categorize(self, lease: Lease, category: str) -> None:
        """Count an array as one of a category from now on."""
        with self._lock:
            counts = self._categories
            if lease.category:
                counts[lease.category] -= lease._nbytes
            counts[category] = counts.get(category, 0) + lease._nbytes
            lease.category = category

    @property
    def peak_bytes(self) -> int:
        """The largest `live_bytes` since the start or `reset_peak`."""
        return self._peak_bytes

    def reset_peak(self) -> None:
        """Let `peak_bytes` start again from what is alive now."""
        self._peak_bytes = self.live_bytes

    def array(self, dtype: DType, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
        """Return an uninitialised C-contiguous array and its address.

        MemoryError tells the shape and the bytes asked for.
        """
        lease, address = self.lease(dtype, shape, prod(shape) * dtype.itemsize)
        return np.asarray(lease), address

    def lease(self, dtype: DType, shape: tuple[int, ...], nbytes: int) -> tuple[Lease, int]:
        """Return what `array` makes its array of, and the address."""
        size = size_class(nbytes)
        with self._lock:
            if self._returned:
                self._collect()
            free = self._free.get(size)
            if free:
                block = free.pop()
                self._free_bytes -= size
            else:
                block = self._new_block(size, dtype, shape)
            self._count(nbytes)
        return Lease(block, nbytes, dtype, shape, self._returned), block.address

    def counted(self, dtype: DType, shape: tuple[int, ...]) -> Lease:
        """Count an array on a device as one that is alive as long as what is returned."""
        nbytes = prod(shape) * dtype.itemsize
        with self._lock:
            self._collect()
            self._count(nbytes)
        return Lease(None, nbytes, dtype, shape, self._returned)

    def _count(self, nbytes: int) -> None:
        self.allocations += 1
        self._live_bytes += nbytes
        if self._live_bytes > self._peak_bytes:
            self._peak_bytes = self._live_bytes

    def trim(self, keep: int = 0) -> None:
        """Give free blocks back to the system, largest first, until `keep` bytes are left."""
        with self._lock:
            self._collect()
            self._trim(keep)

    def _collect(self) -> None:
        """Book the blocks whose arrays have died since the last call."""
        returned = self._returned
        while returned:
            block, nbytes, category = returned.popleft()
            self._live_bytes -= nbytes
            if category:
                self._categories[category] -= nbytes
            if block is not None:
                self._free.setdefault(block.size, []).append(block)
                self._free_bytes += block.size
        if self._free_bytes > KEEP_FREE and self._free_bytes > self._live_bytes:
            self._trim(max(KEEP_FREE, self._live_bytes) // 2)

    def _trim(self, keep: int) -> None:
        for size in sorted(self._free, reverse=True):
            blocks = self._free[size]
            while blocks and self._free_bytes > keep:
                blocks.pop()
                self._free_bytes -= size
                self.held_bytes -= size

    def _new_block(self, size: int, dtype: DType, shape: tuple[int, ...]) -> Block:
        try:
            block = system_block(size)
        except MemoryError:
            self._trim(0)
            try:
                block = system_block(size)
            except MemoryError:
                wanted = f"{dtype}[{','.join(map(str, shape))}]"
                raise MemoryError(
                    f"no memory for {wanted}: {prod(shape) * dtype.itemsize:,} bytes asked for,"
                    f" {self._live_bytes:,} bytes are held by live tensors"
                ) from None
        self.system_allocations += 1
        self.held_bytes += size
        return block


@lru_cache(maxsize=4096)
def size_class(nbytes: int) -> int:
    """Return the size of the block that holds `nbytes`: four classes to each power of two."""
    if nbytes <= 4 * ALIGNMENT:
        return max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT
    step = 1 << (nbytes - 1).bit_length() - 3
    if nbytes >= LARGE:
        step = HUGE_PAGE
    return -(-nbytes // step) * step


def system_block(size: int) -> Block:
    """Take a block from the system, aligned to a cache line or, from 4 MiB on, a huge page.

    Where its owner dies, the memory goes back at once if it is of 128 KiB or more.
    """
    if size < MAPPED:
        raw = np.empty(size + ALIGNMENT, np.uint8)
        address = raw.ctypes.data
        return Block(address + -address % ALIGNMENT, size, raw)
    slack = HUGE_PAGE if size >= LARGE else 0
    try:
        # Private: shared pages are never huge, and a forked child would write to its parent's.
        region = mmap.mmap(-1, size + slack, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(str(error)) from None
    address = np.frombuffer(region, np.uint8, 1).ctypes.data
    offset = -address % HUGE_PAGE if slack else 0
    if slack and hasattr(mmap, "MADV_HUGEPAGE"):
        # Without huge pages in the kernel the memory is as good, only slower.
        with contextlib.suppress(OSError):
            region.madvise(mmap.MADV_HUGEPAGE, offset, size)
    return Block(address + offset, size, region)


ALLOCATOR = Allocator()
# Stands for memory that numpy can't see.
NOWHERE = np.empty(16, np.uint8)

uids = itertools.count(1)


class Buffer:
    """The memory of one tensor: `array` is its uninitialised C-contiguous numpy array.

    `ptr` is the address, aligned to 64 bytes. The memory is given back when the buffer and all
    numpy views of `array` are gone. `uid` is unique in the process. `category` says what it is
    used for, where somebody told: "parameter", "gradient", "optimizer", "input" or "kept" (what
    is computed once, of frozen tensors); else it is "".
    `origin` is the user's line that made it, where that is known.
    """

    __slots__ = (
        *("__weakref__", "_memory", "category", "device", "dtype", "nbytes", "origin", "ptr"),
        *("shape", "uid"),
    )

    def __init__(self, device: str, dtype: DType, shape: tuple[int, ...]) -> None:
        nbytes = prod(shape) * dtype.itemsize
        self._set(device, dtype, shape, nbytes, *ALLOCATOR.lease(dtype, shape, nbytes))

    def _set(
        self,
        device: str,
        dtype: DType,
        shape: tuple[int, ...],
        nbytes: int,
        memory: Lease | np.ndarray,
        address: int,
    ) -> None:
        self.uid = next(uids)
        self.device = device
        self.dtype = dtype
        self.shape = shape
        self.nbytes = nbytes
        self._memory = memory
        self.ptr = address
        self.category = ""
        self.origin: Origin | None = None

    def categorize(self, category: str) -> None:
        """Say what the memory is used for; it is counted as that."""
        self.category = category
        memory: object = self._memory
        if isinstance(memory, np.ndarray):
            memory = memory.base
        if category and isinstance(memory, Lease):
            ALLOCATOR.categorize(memory, category)

    @property
    def array(self) -> np.ndarray:
        """The memory as numpy sees it, made when somebody looks: programs take the pointer."""
        memory = self._memory
        if isinstance(memory, Lease):
            memory = self._memory = np.asarray(memory)
        return memory

    @property
    def layout(self) -> np.ndarray:
        """An array of this shape that shows where elements lie, relative to the first."""
        return self.array

    @staticmethod
    def from_numpy(array: np.ndarray, device: str, copy: bool = True) -> Buffer:
        """Return a buffer with the array's values; DTypeError if its dtype has no counterpart.

        With `copy=False` the memory is shared where it can be: a writable, C-contiguous array in
        native byte order whose address is a multiple of 64.
        """
        dtype = from_numpy(array.dtype)
        array = converted_array(np.asarray(array), dtype)
        if not copy and shareable(array):
            buffer = Buffer.__new__(Buffer)
            address = address_of(array)
            buffer._set(device, dtype, array.shape, array.nbytes, array, address)
            return buffer
        buffer = Buffer(device, dtype, array.shape)
        buffer.array[...] = array
        return buffer

    def __repr__(self) -> str:
        return f"Buffer({self.uid}: {self.dtype}{list(self.shape)} on {self.device})"


class DeviceBuffer(Buffer):
    """The memory of a tensor on a device that is not the host.

    `handle` is what the device knows it by, `ptr` a number for it. `array` is a copy of the values
    that can't be written. `lease` counts it, where it is a tensor's.
    """

    __slots__ = ("handle", "owner")

    def __init__(
        self,
        owner: DeviceMemory,
        dtype: DType,
        shape: tuple[int, ...],
        handle: Any,
        address: int,
        lease: Lease | None = None,
    ) -> None:
        nbytes = prod(shape) * dtype.itemsize
        self._set(owner.name, dtype, shape, nbytes, NOWHERE if lease is None else lease, address)
        self.owner = owner
        self.handle = handle

    @property
    def array(self) -> np.ndarray:
        """A copy of the values."""
        values = self.owner.copy_out(self)
        values.flags.writeable = False
        return values

    @property
    def layout(self) -> np.ndarray:
        """An array of this shape without memory, whose elements must not be looked at."""
        steps = [self.dtype.itemsize * prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        return np.lib.stride_tricks.as_strided(NOWHERE.view(self.dtype.np), self.shape, steps)


class DeviceMemory(Protocol):
    """What a buffer asks of the device that it is on."""

    name: str

    def copy_out(self, buffer: Buffer) -> np.ndarray:
        """Return a copy of the buffer's values."""


def shareable(array: np.ndarray) -> bool:
    """Tell whether a buffer may use the array's memory as it is."""
    flags = array.flags
    aligned = address_of(array) % ALIGNMENT == 0
    return flags.c_contiguous and flags.writeable and array.dtype.isnative and aligned


def address_of(array: np.ndarray) -> int:
    """Return where an array's first element lies."""
    return array.__array_interface__["data"][0]
