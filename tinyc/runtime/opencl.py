"""The driver of OpenCL devices by pyopencl, which no other file imports."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyc import config
from tinyc.ir.program import CPU, GPU, Target
from tinyc.runtime.device import DeviceError
from tinyc.runtime.launches import SCRATCH, LaunchDevice, last_line

if TYPE_CHECKING:
    from tinyc.ir.program import Launch, Program

NAME = "opencl"
# Contractions of products and sums are wanted, laxer arithmetic is not, and no advice on style.
OPTIONS = ("-cl-std=CL1.2", "-w")
CORRECT_DIVISION = "-cl-fp32-correctly-rounded-divide-sqrt"
# Intel's compiler for CPUs is Clang, and does not vectorise loops that call functions of OpenCL.
INTEL_PLATFORM, INTEL_OPTION = "Intel(R) OpenCL", "-DTC_CLANG"
# The platform that finds errors in kernels, and claims to be of every type.
SIMULATOR = "Oclgrind"
# A device is only of use if it compiles this.
PROBE = "__kernel void probe(__global float *x) { x[get_global_id(0)] *= 2.0f; }"
# Where drivers are registered for all users.
REGISTERED = Path("/etc/OpenCL/vendors")
# Intel's driver, and libraries that it needs and does not find.
INTEL = "libintelocl.so"
INTEL_NEEDS = ("libintlc.so.5", "libimf.so", "libirng.so", "libsvml.so")
INSTALL = (
    "pip install 'tinyc[opencl]' brings pyopencl and, on x86-64 Linux, drivers for CPUs; Debian's "
    "and Ubuntu's pocl-opencl-icd is one for others; a GPU has its vendor's driver"
)


def _pyopencl() -> Any:
    try:
        import pyopencl
    except ImportError as error:
        raise DeviceError(f"device opencl: no pyopencl here ({error}); {INSTALL}") from None
    return pyopencl


def devices() -> list[Any]:
    """Return the devices that drivers name, those to be preferred first; DeviceError for none.

    GPUs come first, then by name, simulators last; of two drivers of one platform for one device
    the newer counts.
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
    return sorted(
        newest.values(),
        key=lambda d: (d.platform.name == SIMULATOR, not d.type & gpu, d.platform.name, d.name),
    )


@contextlib.contextmanager
def _intel_registered() -> Iterator[None]:
    """Let drivers be looked for where Intel's is, too, if pip installed it.

    Its package registers it under a path of another machine, and does not name its own libraries.
    """
    library = None if "OCL_ICD_VENDORS" in os.environ else _intel_library()
    if library is None:
        yield
        return
    for name in INTEL_NEEDS:
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(library.with_name(name)), mode=ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory() as folder:
        for known in REGISTERED.glob("*.icd"):
            shutil.copy(known, folder)
        Path(folder, "intel.icd").write_text(f"{library}\n")
        os.environ["OCL_ICD_VENDORS"] = folder
        try:
            yield
        finally:
            del os.environ["OCL_ICD_VENDORS"]


def _intel_library() -> Path | None:
    """The file of Intel's driver, wherever pip put it."""
    try:
        files = importlib.metadata.files("intel-opencl-rt") or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())).resolve() for file in files if file.name == INTEL)
    return next(found, None)


def _devices_of(platform: Any) -> list[Any]:
    cl = _pyopencl()
    try:
        return platform.get_devices()
    except cl.Error:  # a driver without hardware
        return []


def _model(device: Any) -> str:
    """The hardware's name, without what a driver puts before it."""
    return device.name.split("-")[-1]


def drivers() -> Iterator[OpenClDriver | DeviceError]:
    """Open the devices in turn. In place of one that its driver can't compile for comes the reason.

    A driver that is older than its CPU names the CPU all the same, and fails at each kernel.
    """
    for device in devices():
        try:
            yield OpenClDriver(device)
        except _pyopencl().Error as error:
            yield DeviceError(
                f"{device.platform.version} can't compile for {device.name}: {_reason(error)}; "
                f"another driver may: {INSTALL}"
            )


def _reason(error: BaseException) -> str:
    """The line of a compiler's log that says what is wrong, else its last one."""
    wrong = (line for line in str(error).splitlines() if line.startswith("error: "))
    return next(wrong, last_line(error)).removeprefix("error: ")


def open_device(name: str) -> LaunchDevice:
    """Return the device `opencl`, or `opencl:1` for the second that works; DeviceError for none."""
    number = int(name.partition(":")[2] or 0)
    names: list[str] = []
    refused: list[DeviceError] = []
    for driver in drivers():
        if isinstance(driver, DeviceError):
            refused.append(driver)
        elif len(names) == number:
            return LaunchDevice(name, driver)
        else:
            names.append(f"opencl:{len(names)} is {driver.device.name}")
    if not names:
        raise DeviceError(f"device {name}: {refused[0]}")
    raise DeviceError(f"device {name}: there is no such device; {', '.join(names)}")


class OpenClDriver:
    """What pyopencl does for one device: kernels are started on one in-order queue."""

    def __init__(self, device: Any) -> None:
        cl = self.cl = _pyopencl()
        self.device = device
        self.context = cl.Context([device])
        self.queue = cl.CommandQueue(self.context)
        # Times of kernels are only taken on a queue that is made for it.
        profiling = cl.command_queue_properties.PROFILING_ENABLE
        self.timed = cl.CommandQueue(self.context, properties=profiling)
        self.options = list(OPTIONS)
        self._compiled(cl.Program(self.context, PROBE))
        if device.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT:
            self.options.append(CORRECT_DIVISION)
        if device.platform.name == INTEL_PLATFORM:
            self.options.append(INTEL_OPTION)
        version, name = device.platform.version, device.name
        self.key: Sequence[str] = (NAME, version, device.driver_version, name, *self.options)
        self.error: type[Exception] = cl.Error
        self.memory = cl.tools.MemoryPool(cl.tools.ImmediateAllocator(self.queue))

    def machine(self) -> Target:
        """Return what schedules need to know: a GPU's recipes, or a CPU's with its vectors.

        OpenCL has no stores that go past the caches, so the last one is as large as can be.
        """
        if self.device.type & self.cl.device_type.GPU:
            threads = min(256, self.device.max_work_group_size)
            return replace(GPU, threads=threads, shared=self.device.local_mem_size,
                           atomics=not config.current().deterministic)
        lanes = min(16, max(4, self.device.native_vector_width_float))
        rows = CPU.tile_rows * (2 if lanes == 16 else 1)
        return replace(CPU, lanes=lanes, tile_rows=rows, l3=1 << 62, language="opencl")

    # -- memory ----------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> Any:
        """Return a buffer of a pool."""
        return self.memory.allocate(nbytes)

    def address(self, memory: Any) -> int:
        """Return the number of its object."""
        return memory.int_ptr

    def held_bytes(self) -> int:
        """Return the bytes that the pool has given out."""
        return self.memory.active_bytes

    def write(self, memory: Any, values: np.ndarray) -> None:
        """Copy from the host."""
        self.cl.enqueue_copy(self.queue, memory, values)

    def read(self, values: np.ndarray, memory: Any) -> None:
        """Copy to the host, after what was started has finished."""
        self.cl.enqueue_copy(self.queue, values, memory)

    def copy(self, memory: Any, source: Any, first: int, nbytes: int) -> None:
        """Copy bytes of one buffer to the start of another."""
        self.cl.enqueue_copy(self.queue, memory, source, byte_count=nbytes, src_offset=first)

    def finish(self) -> None:
        """Wait until everything that was started has finished."""
        self.queue.finish()

    # -- programs --------------------------------------------------------------------------------

    def compile(self, source: str) -> bytes:
        """Return what the driver compiles a source to."""
        built = self._compiled(self.cl.Program(self.context, source))
        return built.get_info(self.cl.program_info.BINARIES)[0]

    def load(self, binary: bytes) -> Any:
        """Return the program of a binary."""
        return self._compiled(self.cl.Program(self.context, [self.device], [binary]))

    def _compiled(self, program: Any) -> Any:
        """Build without pyopencl's cache; what drivers say of programs that are right is noise."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.cl.CompilerWarning)
            return program.build(self.options, cache_dir=False)

    def steps(self, program: Program, loaded: Any, status: Any) -> OpenClSteps:
        """Return a program's kernels."""
        return OpenClSteps(self, program, loaded, status)


class OpenClSteps:
    """Kernel objects of a program. They keep their arguments, so there is one for each launch."""

    def __init__(self, driver: OpenClDriver, program: Program, loaded: Any, status: Any) -> None:
        self.driver = driver
        self.launches = program.launches
        self._kernels = [driver.cl.Kernel(loaded, launch.function) for launch in self.launches]
        # Where the memory of each slot is an argument.
        self._places: dict[int, list[tuple[Any, int]]] = {}
        for kernel, launch in zip(self._kernels, self.launches):
            self._prepare(kernel, launch, status)

    def _prepare(self, kernel: Any, launch: Launch, status: Any) -> None:
        """Set the arguments that never change, and note where the others go."""
        place = 0
        for slot, first in launch.arguments:
            self._places.setdefault(slot, []).append((kernel, place))
            kernel.set_arg(place + 1, np.int64(first))
            place += 2
        self._places.setdefault(SCRATCH, []).append((kernel, place))
        kernel.set_arg(place + 1, np.int64(launch.scratch))
        kernel.set_arg(place + 2, status)
        kernel.set_arg(place + 3, np.int64(launch.ran))

    def place(self, slot: int, memory: Any) -> None:
        """Let a slot be this memory."""
        for kernel, place in self._places.get(slot, ()):
            kernel.set_arg(place, memory)

    def start(self) -> None:
        """Start all kernels."""
        self._start(self.driver.queue)

    def time(self, times: np.ndarray) -> None:
        """Run all kernels, and fill in when the first one started and when each ended."""
        self.driver.queue.finish()
        events = self._start(self.driver.timed)
        self.driver.timed.finish()
        times[0] = events[0].profile.start
        for launch, event in zip(self.launches, events, strict=True):
            times[launch.kernel + 1] = event.profile.end

    def _start(self, queue: Any) -> list[Any]:
        start = self.driver.cl.enqueue_nd_range_kernel
        return [
            start(queue, kernel, (launch.items,), (launch.threads,))
            for kernel, launch in zip(self._kernels, self.launches)
        ]
