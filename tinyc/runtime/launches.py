"""Devices that start kernels one by one, with a memory of their own: what OpenCL and CUDA share.

A driver is what one library can do: allocate, copy, compile, start. A `LaunchDevice` makes of it
what the compiler knows as a device. A program's kernels are started in order with nothing waited
for in between; its intermediate values lie in one arena, and each chunk has a slice of the scratch
memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tinyc.diagnostics import CompileError
from tinyc.ir.dtype import DType, converted_array, from_numpy, i64, u8
from tinyc.ir.program import ARENA
from tinyc.runtime import recorder
from tinyc.runtime.buffer import ALLOCATOR, Buffer, DeviceBuffer, Lease
from tinyc.runtime.cache import disk_cache, make_key

if TYPE_CHECKING:
    from pathlib import Path

    from tinyc.ir.program import Program, Target
    from tinyc.runtime.toolchain import Unit

BINARY = "program.bin"
# Words of a program's status: site and value of the first bad index, and how many kernels may have
# changed arguments before.
STATUS = 3
# The slot of scratch memory, beside ARENA.
SCRATCH = -2
SHARED = {
    ARENA: "a program's intermediate values",
    SCRATCH: "the scratch memory of a program's chunks",
}


class Steps(Protocol):
    """A program's kernels, ready to be started in order."""

    def place(self, slot: int, memory: Any) -> None:
        """Let a slot of the launches' arguments, or ARENA or SCRATCH, be this memory from now on.

        It is called for those that have changed; slots that no kernel uses may be among them.
        """

    def start(self) -> None:
        """Start all kernels, and wait for none."""

    def time(self, times: np.ndarray) -> None:
        """Run all kernels; `times`, i64[kernels + 1], receives the start and the end of each."""


class Driver(Protocol):
    """What a library for devices does for one of them. Memory is whatever it makes of it.

    `error` is the class of what it raises.
    """

    error: type[Exception]

    @property
    def key(self) -> Sequence[str]:
        """What decides, beside the source, what a source is compiled to."""

    def machine(self) -> Target:
        """Return what schedules need to know of the device."""

    def allocate(self, nbytes: int) -> Any:
        """Return memory of one or more bytes, which lives as long as somebody holds it."""

    def address(self, memory: Any) -> int:
        """Return a number that tells memories apart."""

    def held_bytes(self) -> int:
        """Return the bytes of all memory that is held."""

    def write(self, memory: Any, values: np.ndarray) -> None:
        """Copy from the host, whose array may be changed when this returns."""

    def read(self, values: np.ndarray, memory: Any) -> None:
        """Copy to the host, after what was started has finished."""

    def copy(self, memory: Any, source: Any, first: int, nbytes: int) -> None:
        """Copy bytes of one memory, from the byte `first` on, to the start of another."""

    def finish(self) -> None:
        """Wait until everything that was started has finished."""

    def compile(self, source: str) -> bytes:
        """Return a binary."""

    def load(self, binary: bytes) -> Any:
        """Return what has a binary's functions."""

    def steps(self, program: Program, loaded: Any, status: Any) -> Steps:
        """Return a program's kernels; `status` is the memory of their status words."""


class LaunchDevice:
    """A device whose kernels a driver starts: `opencl`, or `opencl:1` for the second one."""

    def __init__(self, name: str, driver: Driver) -> None:
        self.name = name
        self.driver = driver
        self.lock = threading.Lock()
        # What programs share: the arena, and the scratch memory.
        self._shared: dict[int, DeviceBuffer] = {}
        self.status = self._buffer(i64, (STATUS,), "the status of a program")
        self.clear_status()

    def machine(self) -> Target:
        """Return what schedules need to know of it."""
        return self.driver.machine()

    # -- memory ----------------------------------------------------------------------------------

    def alloc(self, dtype: DType, shape: tuple[int, ...]) -> DeviceBuffer:
        """Return an uninitialised buffer; MemoryError tells the shape and the bytes asked for."""
        wanted = f"{dtype}[{','.join(map(str, shape))}]"
        return self._buffer(dtype, shape, wanted, ALLOCATOR.counted(dtype, shape))

    def _buffer(
        self, dtype: DType, shape: tuple[int, ...], what: str, lease: Lease | None = None
    ) -> DeviceBuffer:
        nbytes = prod(shape) * dtype.itemsize
        try:
            memory = self.driver.allocate(max(nbytes, 1))
        except (self.driver.error, MemoryError) as error:
            raise MemoryError(
                f"no memory on device {self.name} for {what}: {nbytes:,} bytes asked for, "
                f"{self.driver.held_bytes():,} bytes are held by live tensors ({last_line(error)})"
            ) from None
        return DeviceBuffer(self, dtype, shape, memory, self.driver.address(memory), lease)

    def copy_in(self, buffer: Buffer, array: np.ndarray) -> None:
        """Fill a buffer with the values of an array that broadcasts to its shape."""
        assert isinstance(buffer, DeviceBuffer)
        values = np.empty(buffer.shape, buffer.dtype.np)
        values[...] = array
        if values.nbytes:
            self.driver.write(buffer.handle, values)

    def copy_out(self, buffer: Buffer) -> np.ndarray:
        """Return a copy of the buffer's values."""
        assert isinstance(buffer, DeviceBuffer)
        values = np.empty(buffer.shape, buffer.dtype.np)
        if values.nbytes:
            self.driver.read(values, buffer.handle)
        return values

    def upload(self, array: np.ndarray, copy: bool = True) -> Buffer:
        """Return a buffer with the array's values; its memory is never the array's."""
        array = np.asarray(array)
        dtype = from_numpy(array.dtype)
        array = converted_array(array, dtype)
        buffer = self.alloc(dtype, array.shape)
        self.copy_in(buffer, array)
        return buffer

    def copied(self, buffer: Buffer) -> Buffer:
        """Return another buffer with the values of one."""
        return self.part(buffer, 0, buffer.shape)

    def part(self, buffer: Buffer, first: int, shape: tuple[int, ...]) -> Buffer:
        """Return a copy of neighbouring elements of a buffer, as a buffer of its own."""
        assert isinstance(buffer, DeviceBuffer)
        made = self.alloc(buffer.dtype, shape)
        if made.nbytes:
            at = first * buffer.dtype.itemsize
            self.driver.copy(made.handle, buffer.handle, at, made.nbytes)
        return made

    def synchronize(self) -> None:
        """Wait until everything that was started has finished."""
        self.driver.finish()

    # -- programs --------------------------------------------------------------------------------

    def prepare(self, *units: Unit) -> None:
        """Return at once: a program needs only its own kernels."""

    def load(self, program: Program, library: Path | None = None) -> LaunchExecutable:
        """Return what runs a program, compiled now unless the cache has its binary."""
        return LaunchExecutable(self, program, self._built(program.source))

    def _built(self, source: str) -> Any:
        driver = self.driver
        key = make_key(*driver.key, source)
        entry = disk_cache().get(key)
        if entry is not None:
            try:
                return driver.load((entry / BINARY).read_bytes())
            except (driver.error, OSError):  # a driver may refuse what it wrote itself
                disk_cache().discard(key)
        disk_cache().stats.compiles += 1
        try:
            binary = driver.compile(source)
            built = driver.load(binary)
        except driver.error as error:
            raise CompileError(f"device {self.name} refuses a program:\n{error}") from None
        disk_cache().put(key, {BINARY: binary})
        return built

    def clear_status(self) -> None:
        """Forget a bad index."""
        self.driver.write(self.status.handle, np.zeros(STATUS, np.int64))

    def reserved(self, slot: int, nbytes: int) -> DeviceBuffer:
        """Return the arena or the scratch memory, of these many bytes or more.

        The caller has the lock.
        """
        found = self._shared.get(slot)
        if found is None or found.nbytes < nbytes:
            self._shared.pop(slot, None)
            found = self._shared[slot] = self._buffer(u8, (nbytes,), SHARED[slot])
        return found


class LaunchExecutable:
    """A program whose kernels are started one by one; takes buffers as a compiled program does."""

    library: Path | None = None

    def __init__(self, device: LaunchDevice, program: Program, loaded: Any) -> None:
        self.device = device
        self.program = program
        self.steps = device.driver.steps(program, loaded, device.status.handle)
        # Which buffer each slot was at the last run: its number, which keeps no memory.
        self._known: dict[int, int] = {}
        scratch = max((x.items // x.threads * x.scratch for x in program.launches), default=0)
        self._shared = {ARENA: program.arena_size, SCRATCH: scratch}

    def run(self, buffers: Sequence[Buffer], times: np.ndarray | None = None) -> None:
        """Run on one buffer for each leaf, then one for each fresh output.

        `times`, i64[kernels + 1], receives nanoseconds: the start, then the end of each kernel.
        BoundsError when an index found in the data is out of range.
        """
        device = self.device
        with device.lock:
            shared = [(slot, device.reserved(slot, size)) for slot, size in self._shared.items()]
            try:
                self._set_memory([*shared, *enumerate(buffers)])
                if recorder.active is not None and times is None:
                    times = np.zeros(len(self.program.kernels) + 1, np.int64)
                if times is None:
                    self.steps.start()
                else:
                    self.steps.time(times)
                if self.program.sites:
                    self._check(buffers)
            except device.driver.error as error:
                raise CompileError(f"device {device.name} fails to run: {error}") from None
            if recorder.active is not None and times is not None:
                self._record(times, recorder.active)

    def _set_memory(self, slots: Sequence[tuple[int, Buffer]]) -> None:
        """Hand on the memories that are others than at the last run."""
        known = self._known
        for slot, buffer in slots:
            if known.get(slot) != buffer.uid:
                self.steps.place(slot, buffer.handle)  # type: ignore[attr-defined]
                known[slot] = buffer.uid

    def _record(self, times: np.ndarray, active: recorder.Recorder) -> None:
        """Hand a recorder the times of a run, moved from the device's clock to that of the host."""
        times += time.monotonic_ns() - times[-1]
        active.is_first(self.program)
        active.add_run(self.program, times, np.zeros((0, 4), np.int64))

    def _check(self, buffers: Sequence[Buffer]) -> None:
        """Wait, and raise the error of an index that was out of range."""
        status = np.empty(STATUS, np.int64)
        self.device.driver.read(status, self.device.status.handle)
        if status[0]:
            self.device.clear_status()
            site, value, ran = map(int, status)
            raise self.program.bounds_error(site, value, ran, [b.ptr for b in buffers])


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text, which says most of what drivers report."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
