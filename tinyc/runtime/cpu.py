"""The CPU: loads generated C, and runs it with one native call on a preallocated argument block.

A program exports `long tinyc_step(void **buffers, char *arena, const tinyc_rt *rt)`. Its
intermediate values lie in the arena, the temporaries of its threads in slices of the scratch
memory; the device has one of each, grown to the largest program, so runs take turns.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyc import config
from tinyc.diagnostics import CompileError, CompilerNotFound
from tinyc.ir.dtype import DType
from tinyc.runtime import footprint, recorder
from tinyc.runtime.buffer import ALIGNMENT, Block, Buffer, system_block
from tinyc.runtime.host import HostDevice
from tinyc.runtime.toolchain import Unit, compile_libraries, compile_meanwhile, load_library

if TYPE_CHECKING:
    from tinyc.ir.program import Program, Target


class Runtime(ctypes.Structure):
    """What a program gets from its device: `tinyc_rt` in its source.

    `status` is {site, value}: the first data-dependent index out of range, counted from 1, or 0.
    `times` is null, or receives the time of the start and of the end of each kernel.
    """

    _fields_ = (
        ("par", ctypes.c_void_p),
        ("now", ctypes.c_void_p),
        ("nthreads", ctypes.c_long),
        ("scratch", ctypes.c_void_p),
        ("scratch_stride", ctypes.c_long),
        ("status", ctypes.c_void_p),
        ("times", ctypes.c_void_p),
    )


class CpuDevice:
    """This machine's processor. `arena_bytes` and `scratch_bytes` say what programs share."""

    name = "cpu"

    def __init__(self) -> None:
        self._host = HostDevice(self.name)
        self._pool: ctypes.CDLL | None = None
        self._arena_block: Block | None = None
        self._scratch_block: Block | None = None
        self._scratch_size = 0
        self.lock = threading.Lock()
        self.epoch = -1
        self.status = (ctypes.c_long * 2)()
        self.arena = ctypes.c_void_p(0)
        self.runtime = Runtime(status=ctypes.addressof(self.status))
        self.runtime_argument = ctypes.byref(self.runtime)
        # A thread that ran a program during a fork is not there to release the lock.
        os.register_at_fork(after_in_child=self._renew_lock)

    def machine(self) -> Target:
        """Return what schedules need to know of this machine."""
        return self._host.machine()

    def alloc(self, dtype: DType, shape: tuple[int, ...]) -> Buffer:
        """Return an uninitialised buffer."""
        return Buffer(self.name, dtype, shape)

    def copy_in(self, buffer: Buffer, array: np.ndarray) -> None:
        """Fill a buffer with the values of an array that broadcasts to its shape."""
        self._host.copy_in(buffer, array)

    def copy_out(self, buffer: Buffer) -> np.ndarray:
        """Return a copy of the buffer's values."""
        return self._host.copy_out(buffer)

    def upload(self, array: np.ndarray, copy: bool = True) -> Buffer:
        """Return a buffer with the array's values; see `Buffer.from_numpy`."""
        return self._host.upload(array, copy)

    def copied(self, buffer: Buffer) -> Buffer:
        """Return another buffer with the values of one."""
        return self._host.copied(buffer)

    def part(self, buffer: Buffer, first: int, shape: tuple[int, ...]) -> Buffer:
        """Return neighbouring elements of a buffer as a buffer that shares their memory."""
        return self._host.part(buffer, first, shape)

    def synchronize(self) -> None:
        """Return at once: a run has finished when its call returns."""

    def prepare(self, *units: Unit) -> None:
        """Have the thread pool, and what is known of a program, compiled while the rest of the
        program is being made."""
        pool = [] if self._pool else [pool_unit()]
        with contextlib.suppress(CompilerNotFound):
            compile_meanwhile([*pool, *units])

    def load(self, program: Program, library: Path | None = None) -> CpuExecutable:
        """Return what runs a program, compiled now unless its library is given."""
        if library is None:
            origins = {kernel.name: kernel.origins for kernel in program.kernels}
            lines = config.current().lines
            unit = Unit(program.source, program.libm, origins, program.parts, lines=lines)
            if self._pool is None:  # both are compiled side by side where neither is in the cache
                compile_libraries([unit, pool_unit()])
            loaded, library = load_library(unit)
        else:
            try:
                loaded = ctypes.CDLL(str(library))
            except OSError as error:
                raise CompileError(f"a compiled program can't be loaded: {error}") from None
        with self.lock:
            self.load_pool()
            self._reserve(program.arena_size, program.scratch_size)
        return CpuExecutable(self, program, loaded, library)

    @property
    def threads(self) -> int:
        """How many threads share a parallel loop."""
        return config.current().threads or cpu_count()

    @property
    def arena_bytes(self) -> int:
        """Bytes of the arena."""
        return self._arena_block.size if self._arena_block else 0

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the scratch memory of all threads."""
        return self._scratch_block.size if self._scratch_block else 0

    def refresh(self) -> None:
        """Follow the switches: how many threads there are. The caller holds the lock."""
        assert self._pool is not None
        self.epoch = config.epoch()
        self.runtime.nthreads = self._pool.tc_set_threads(ctypes.c_long(self.threads))
        self._reserve(0, self._scratch_size)

    def ranges(self, program: Program) -> list[tuple[int, int]]:
        """Return where a program's intermediate values lie: the arena, and each thread's scratch.

        A thread that takes no part has no scratch.
        """
        runtime = self.runtime
        threads = min(runtime.nthreads, max((k.chunks for k in program.kernels), default=1))
        scratch = [
            ((runtime.scratch or 0) + thread * runtime.scratch_stride, program.scratch_size)
            for thread in range(threads)
        ]
        ranges = [(self.arena.value or 0, program.arena_size), *scratch]
        return [(address, size) for address, size in ranges if size]

    def record_shares(self, rows: np.ndarray | None) -> int:
        """Let threads note their shares of loops, i64[n, 4]; return how many were noted before."""
        assert self._pool is not None
        if rows is None:
            return self._pool.tc_record(None, ctypes.c_long(0))
        return self._pool.tc_record(ctypes.c_void_p(rows.ctypes.data), ctypes.c_long(len(rows)))

    def load_pool(self) -> None:
        """Have the threads that parallel loops run on. The caller holds the lock."""
        if self._pool is None:
            pool, _ = load_library(pool_unit())
            pool.tc_set_threads.restype = ctypes.c_long
            pool.tc_record.restype = ctypes.c_long
            self.runtime.par = ctypes.cast(pool.tc_par, ctypes.c_void_p)
            self.runtime.now = ctypes.cast(pool.tc_now, ctypes.c_void_p)
            self._pool = pool
            self.refresh()

    def _reserve(self, arena: int, scratch: int) -> None:
        """Grow the shared memory to what a program needs: `scratch` bytes for each thread."""
        if arena > self.arena_bytes:
            self._arena_block = system_block(arena)
            self.arena = ctypes.c_void_p(self._arena_block.address)
        self._scratch_size = max(scratch, self._scratch_size)
        stride = -(-self._scratch_size // ALIGNMENT) * ALIGNMENT
        if stride * self.runtime.nthreads > self.scratch_bytes:
            self._scratch_block = system_block(stride * self.runtime.nthreads)
            self.runtime.scratch = self._scratch_block.address
        self.runtime.scratch_stride = stride

    def _renew_lock(self) -> None:
        self.lock = threading.Lock()


def pool_unit() -> Unit:
    """Return the source of the thread pool."""
    return Unit(Path(__file__).with_name("pool.c").read_text())


class CpuExecutable:
    """A compiled program, and where its library is. Many threads may run it; they take turns."""

    def __init__(
        self, device: CpuDevice, program: Program, loaded: ctypes.CDLL, library: Path
    ) -> None:
        self.device = device
        self.program = program
        self.library: Path | None = library
        self._loaded = loaded
        self.step = loaded.tinyc_step
        self.step.restype = ctypes.c_long
        self._layout = struct.Struct(f"{program.n_buffers}P")
        self._slots = (ctypes.c_void_p * program.n_buffers)()

    def run(self, buffers: Sequence[Buffer], times: np.ndarray | None = None) -> None:
        """Run on one buffer for each leaf, then one for each fresh output.

        `times`, i64[kernels + 1], receives nanoseconds: the start, then the end of each kernel.
        BoundsError when an index found in the data is out of range.
        """
        with self.device.lock:
            self._fill(buffers)
            self.call(self._slots, times)

    def _fill(self, buffers: Sequence[Buffer]) -> None:
        try:
            self._layout.pack_into(self._slots, 0, *[buffer.ptr for buffer in buffers])
        except struct.error:
            wanted = self.program.n_buffers
            raise ValueError(f"a program of {wanted} buffers got {len(buffers)}") from None

    def call(self, slots: ctypes.Array, times: np.ndarray | None = None) -> None:
        """Run on the pointers in `slots`. The caller holds the device's lock."""
        device = self.device
        status = device.status
        if device.epoch != config.epoch():
            device.refresh()
        status[0] = 0
        if recorder.active is not None:
            ran = self._recorded(slots, times, recorder.active)
        elif times is None:
            ran = self.step(slots, device.arena, device.runtime_argument)
        else:
            ran = self._timed(slots, times)
        if status[0]:
            raise self.program.bounds_error(status[0], status[1], ran, list(slots))

    def _recorded(
        self, slots: ctypes.Array, times: np.ndarray | None, active: recorder.Recorder
    ) -> int:
        """Run with times of kernels and threads for a recorder, and its memory the first time."""
        device, program = self.device, self.program
        if times is None:
            times = np.zeros(len(program.kernels) + 1, np.int64)
        first = active.is_first(program)
        own = device.ranges(program)
        if first:
            footprint.forget(own)
        rows = np.zeros((len(program.kernels) * device.runtime.nthreads, 4), np.int64)
        device.record_shares(rows)
        try:
            ran = self._timed(slots, times)
        finally:
            rows = rows[: device.record_shares(None)]
        if first:
            sizes = [storage.nbytes for storage in program.storages]
            given = [(address or 0, size) for address, size in zip(slots, sizes)]
            active.resident[id(program)] = footprint.resident([*own, *given])
            footprint.recover(own)
        if not device.status[0]:  # else it has ended early
            active.add_run(program, times, rows)
        return ran

    def _timed(self, slots: ctypes.Array, times: np.ndarray) -> int:
        wanted = len(self.program.kernels) + 1
        if times.dtype != np.int64 or times.shape != (wanted,) or not times.flags.c_contiguous:
            raise ValueError(f"times must be i64[{wanted}], not {times.dtype}{list(times.shape)}")
        device = self.device
        device.runtime.times = times.ctypes.data
        try:
            return self.step(slots, device.arena, device.runtime_argument)
        finally:
            device.runtime.times = None


# How many threads ---------------------------------------------------------------------------


def cpu_count() -> int:
    """Return how many CPUs this process may use: its affinity, within its cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    return max(1, min(available, cgroup_cpus()))


def cgroup_cpus(root: str = "/sys/fs/cgroup", member: str = "/proc/self/cgroup") -> int:
    """Return the CPUs that cgroup quotas pay for, rounded up; a large number if unlimited.

    `member` lists the process's groups, one for each controller of version 1; each group between
    the root and the process may have a quota. In a container the root of the mount is its group.
    """
    groups = [("", ""), ("cpu", "")]
    with contextlib.suppress(OSError):
        for line in Path(member).read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                groups.append(("cpu" if controllers else "", path.strip("/")))
    quotas = [
        quota
        for mount, path in groups
        for folder in (path, *map(str, Path(path).parents))
        if (quota := _quota(Path(root, mount, folder))) is not None
    ]
    return min(quotas, default=1 << 30)


def _quota(folder: Path) -> int | None:
    """Return the CPUs that one group's quota pays for, if it has one."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join(Path(folder, name).read_text() for name in names).split()
            if int(quota) > 0:
                return math.ceil(int(quota) / int(period))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None
