"""OpenCL devices by pyopencl: memory, programs and their launches. The only file that imports it.

A program is started kernel by kernel on one in-order queue, with nothing waited for in between; its
intermediate values lie in one arena, and each chunk has a slice of the scratch memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyc.diagnostics import CompileError
from tinyc.ir.dtype import DType, from_numpy
from tinyc.ir.program import CPU, Target
from tinyc.runtime.buffer import Buffer, DeviceBuffer
from tinyc.runtime.cache import disk_cache, make_key
from tinyc.runtime.device import DeviceError

if TYPE_CHECKING:
    from tinyc.ir.program import Launch, Program

NAME = "opencl"
BINARY = "program.bin"
# Words of a program's status: site and value of the first bad index, and how many kernels may have
# changed arguments before.
STATUS = 3
# Contractions of products and sums are wanted, laxer arithmetic is not, and no advice on style.
OPTIONS = ("-cl-std=CL1.2", "-w")
CORRECT_DIVISION = "-cl-fp32-correctly-rounded-divide-sqrt"
# The slot of scratch memory, beside opencl.ARENA.
SCRATCH = -2
# A device is only of use if it compiles this.
PROBE = "__kernel void probe(__global float *x) { x[get_global_id(0)] *= 2.0f; }"
# Libraries that Intel's driver needs and does not find.
INTEL_NEEDS = ("libintlc.so.5", "libimf.so", "libirng.so", "libsvml.so")
INSTALL = (
    "pip install 'tinyc[opencl]' brings pyopencl with a driver for CPUs; a GPU has its vendor's "
    "driver"
)


def _pyopencl() -> Any:
    try:
        import pyopencl
    except ImportError as error:
        raise DeviceError(f"device opencl: no pyopencl here ({error}); {INSTALL}") from None
    return pyopencl


def devices() -> list[Any]:
    """Return the devices there are, in the order of their numbers; DeviceError if there is none.

    GPUs come first, then by name; of two drivers of one platform for one device the newer counts.
    """
    cl = _pyopencl()
    try:
        with _intel_registered():
            platforms = cl.get_platforms()
        found = [d for platform in platforms for d in _devices_of(platform)]
    except cl.Error as error:  # no driver is registered
        raise DeviceError(f"device opencl: no driver was found ({error}); {INSTALL}") from None
    if not found:
        raise DeviceError(f"device opencl: the OpenCL drivers have no device; {INSTALL}")
    newest: dict[tuple, Any] = {}
    for device in sorted(found, key=lambda d: d.platform.version):
        newest[device.platform.name, device.type, device.vendor_id, _model(device)] = device
    gpu = cl.device_type.GPU
    return sorted(newest.values(), key=lambda d: (not d.type & gpu, d.platform.name, d.name))


@contextlib.contextmanager
def _intel_registered() -> Iterator[None]:
    """Let drivers be looked for where Intel's is, too, if pip put it beside this Python.

    Its package registers it under a path of another machine, and does not name its own libraries.
    """
    library = Path(sys.prefix, "lib", "libintelocl.so")
    if "OCL_ICD_VENDORS" in os.environ or not library.exists():
        yield
        return
    for name in INTEL_NEEDS:
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(library.with_name(name)), mode=ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory() as folder:
        for known in Path("/etc/OpenCL/vendors").glob("*.icd"):
            shutil.copy(known, folder)
        Path(folder, "intel.icd").write_text(f"{library}\n")
        os.environ["OCL_ICD_VENDORS"] = folder
        try:
            yield
        finally:
            del os.environ["OCL_ICD_VENDORS"]


def _devices_of(platform: Any) -> list[Any]:
    cl = _pyopencl()
    try:
        return platform.get_devices()
    except cl.Error:  # a driver without hardware
        return []


def _model(device: Any) -> str:
    """The hardware's name, without what a driver puts before it."""
    return device.name.split("-")[-1]


class OpenClDevice:
    """An OpenCL device: `opencl`, or `opencl:1` for the second one."""

    target = "opencl"

    def __init__(self, name: str) -> None:
        cl = self.cl = _pyopencl()
        self.name = name
        self.device = self._choose(name)
        try:
            self.context = cl.Context([self.device])
            self.queue = cl.CommandQueue(self.context)
            # Times of kernels are only taken on a queue that is made for it.
            profiling = cl.command_queue_properties.PROFILING_ENABLE
            self.timed = cl.CommandQueue(self.context, properties=profiling)
            self._compiled(cl.Program(self.context, PROBE), OPTIONS)
        except cl.Error as error:
            raise DeviceError(
                f"device {name}: {self.device.platform.version} can't compile for "
                f"{self.device.name}: {_last_line(error)}; another driver may: the packages "
                "pocl-opencl-icd of Debian and Ubuntu, or `pip install 'tinyc[opencl-intel]'`"
            ) from None
        self.options = [*OPTIONS]
        if self.device.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT:
            self.options.append(CORRECT_DIVISION)
        self.memory = cl.tools.MemoryPool(cl.tools.ImmediateAllocator(self.queue))
        self.lock = threading.Lock()
        self.arena: Any = None
        self.scratch: Any = None
        self.status = self._taken(8 * STATUS, "the status of a program")
        self.clear_status()

    def _choose(self, name: str) -> Any:
        found = devices()
        number = int(name.partition(":")[2] or 0)
        if number >= len(found):
            names = ", ".join(f"opencl:{i} is {d.name}" for i, d in enumerate(found))
            raise DeviceError(f"device {name}: there is no such device; {names}")
        return found[number]

    def machine(self) -> Target:
        """Return what schedules need to know: the CPU's recipes, with this device's vectors.

        OpenCL has no stores that go past the caches, so its last one is as large as can be.
        """
        lanes = min(16, max(4, self.device.native_vector_width_float))
        rows = CPU.tile_rows * (2 if lanes == 16 else 1)
        return replace(CPU, lanes=lanes, tile_rows=rows, l3=1 << 62, language="opencl")

    # -- memory ----------------------------------------------------------------------------------

    def alloc(self, dtype: DType, shape: tuple[int, ...]) -> Buffer:
        """Return an uninitialised buffer; MemoryError tells the shape and the bytes asked for."""
        wanted = f"{dtype}[{','.join(map(str, shape))}]"
        nbytes = prod(shape) * dtype.itemsize
        return DeviceBuffer(self, dtype, shape, self._taken(nbytes, wanted))

    def _taken(self, nbytes: int, what: str) -> Any:
        try:
            return self.memory.allocate(max(nbytes, 1))
        except (self.cl.MemoryError, self.cl.RuntimeError, MemoryError) as error:
            held = self.memory.active_bytes
            raise MemoryError(
                f"no memory on device {self.name} for {what}: {nbytes:,} bytes asked for, "
                f"{held:,} bytes are held by live tensors ({_last_line(error)})"
            ) from None

    def copy_in(self, buffer: Buffer, array: np.ndarray) -> None:
        """Fill a buffer with the values of an array that broadcasts to its shape."""
        assert isinstance(buffer, DeviceBuffer)
        values = np.empty(buffer.shape, buffer.dtype.np)
        values[...] = array
        if values.nbytes:
            self.cl.enqueue_copy(self.queue, buffer.handle, values)

    def copy_out(self, buffer: Buffer) -> np.ndarray:
        """Return a copy of the buffer's values."""
        assert isinstance(buffer, DeviceBuffer)
        values = np.empty(buffer.shape, buffer.dtype.np)
        if values.nbytes:
            self.cl.enqueue_copy(self.queue, values, buffer.handle)
        return values

    def upload(self, array: np.ndarray, copy: bool = True) -> Buffer:
        """Return a buffer with the array's values; its memory is never the array's."""
        array = np.asarray(array)
        buffer = self.alloc(from_numpy(array.dtype), array.shape)
        self.copy_in(buffer, array)
        return buffer

    def part(self, buffer: Buffer, first: int, shape: tuple[int, ...]) -> Buffer:
        """Return a copy of neighbouring elements of a buffer, as a buffer of its own."""
        made = self.alloc(buffer.dtype, shape)
        if made.nbytes:
            assert isinstance(buffer, DeviceBuffer) and isinstance(made, DeviceBuffer)
            self.cl.enqueue_copy(
                self.queue,
                made.handle,
                buffer.handle,
                byte_count=made.nbytes,
                src_offset=first * buffer.dtype.itemsize,
            )
        return made

    def synchronize(self) -> None:
        """Wait until everything that was started has finished."""
        self.queue.finish()

    # -- programs --------------------------------------------------------------------------------

    def load(self, program: Program, library: Path | None = None) -> OpenClExecutable:
        """Return what runs a program, compiled now unless the cache has its binary."""
        return OpenClExecutable(self, program, self._built(program))

    def _built(self, program: Program) -> Any:
        driver = f"{self.device.platform.version} {self.device.driver_version} {self.device.name}"
        key = make_key(NAME, driver, " ".join(self.options), program.source)
        entry = disk_cache().get(key)
        if entry is not None:
            try:
                binary = (entry / BINARY).read_bytes()
                kept = self.cl.Program(self.context, [self.device], [binary])
                return self._compiled(kept, self.options)
            except (self.cl.Error, OSError):  # a driver may refuse what it wrote itself
                disk_cache().discard(key)
        disk_cache().stats.compiles += 1
        try:
            built = self._compiled(self.cl.Program(self.context, program.source), self.options)
        except self.cl.Error as error:
            raise CompileError(f"device {self.name} refuses a program:\n{error}") from None
        binary = built.get_info(self.cl.program_info.BINARIES)[0]
        disk_cache().put(key, {BINARY: binary})
        return built

    def _compiled(self, program: Any, options: Sequence[str]) -> Any:
        """Build without pyopencl's cache; what drivers say of programs that are right is noise."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.cl.CompilerWarning)
            return program.build(list(options), cache_dir=False)

    def clear_status(self) -> None:
        """Forget a bad index."""
        self.cl.enqueue_copy(self.queue, self.status, np.zeros(STATUS, np.int64))

    def reserve(self, arena: int, scratch: int) -> None:
        """Let arena and scratch memory have at least these many bytes; the caller has the lock."""
        if arena and (self.arena is None or self.arena.size < arena):
            self.arena = self._taken(arena, "a program's intermediate values")
        if self.scratch is None or self.scratch.size < scratch:
            self.scratch = self._taken(scratch, "the scratch memory of a program's chunks")


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


class OpenClExecutable:
    """A program whose kernels are started one by one; takes buffers as a compiled program does."""

    library: Path | None = None

    def __init__(self, device: OpenClDevice, program: Program, built: Any) -> None:
        self.device = device
        self.program = program
        # Kernel objects keep their arguments: one for each launch.
        self._kernels = [device.cl.Kernel(built, launch.function) for launch in program.launches]
        # By slot, those of the arena and of scratch memory included: what was set, and where.
        self._known: dict[int, Any] = {}
        self._places: dict[int, list[tuple[Any, int]]] = {}
        for kernel, launch in zip(self._kernels, program.launches):
            self._prepare(kernel, launch)
        self._chunks = max((launch.items for launch in program.launches), default=1)

    def _prepare(self, kernel: Any, launch: Launch) -> None:
        """Set the arguments that never change, and note where the others go."""
        place = 0
        for slot, first in launch.arguments:
            self._places.setdefault(slot, []).append((kernel, place))
            kernel.set_arg(place + 1, np.int64(first))
            place += 2
        self._places.setdefault(SCRATCH, []).append((kernel, place))
        kernel.set_arg(place + 1, np.int64(self.program.scratch_size))
        kernel.set_arg(place + 2, self.device.status)
        kernel.set_arg(place + 3, np.int64(launch.ran))

    def run(self, buffers: Sequence[Buffer], times: np.ndarray | None = None) -> None:
        """Run on one buffer for each leaf, then one for each fresh output.

        `times`, i64[kernels + 1], receives nanoseconds: the start, then the end of each kernel.
        BoundsError when an index found in the data is out of range.
        """
        device, cl = self.device, self.device.cl
        with device.lock:
            device.reserve(self.program.arena_size, self._chunks * self.program.scratch_size)
            try:
                self._set_memory(buffers)
                if times is None:
                    self._start(device.queue)
                else:
                    device.queue.finish()
                    self._time(self._start(device.timed), times)
                if self.program.sites:
                    self._check(buffers)
            except cl.Error as error:
                raise CompileError(f"device {device.name} fails to run: {error}") from None

    def _set_memory(self, buffers: Sequence[Buffer]) -> None:
        """Set the memory objects that are others than at the last run."""
        known = self._known
        for slot, places in self._places.items():
            if slot >= 0:
                memory = buffers[slot].handle  # type: ignore[attr-defined]
            else:
                memory = self.device.scratch if slot == SCRATCH else self.device.arena
            if known.get(slot) is not memory:
                known[slot] = memory
                for kernel, place in places:
                    kernel.set_arg(place, memory)

    def _start(self, queue: Any) -> list[Any]:
        start = self.device.cl.enqueue_nd_range_kernel
        return [
            start(queue, kernel, (launch.items,), (1,))
            for kernel, launch in zip(self._kernels, self.program.launches)
        ]

    def _time(self, events: Sequence[Any], times: np.ndarray) -> None:
        """Fill in when the first kernel started and when each ended."""
        self.device.timed.finish()
        times[0] = events[0].profile.start
        for launch, event in zip(self.program.launches, events, strict=True):
            times[launch.kernel + 1] = event.profile.end

    def _check(self, buffers: Sequence[Buffer]) -> None:
        """Wait, and raise the error of an index that was out of range."""
        status = np.empty(STATUS, np.int64)
        self.device.cl.enqueue_copy(self.device.queue, status, self.device.status)
        if status[0]:
            self.device.clear_status()
            site, value, ran = map(int, status)
            raise self.program.bounds_error(site, value, ran, [b.ptr for b in buffers])
