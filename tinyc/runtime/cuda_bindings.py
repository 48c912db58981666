"""The CUDA driver by NVIDIA's own package, where PyCUDA is not installed. Alone imports it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from tinyc.runtime.cuda import no_such_device
from tinyc.runtime.cuda_calls import Arguments, CapturedGraph, Card, DriverError, begin_capture
from tinyc.runtime.device import DeviceError


class Bindings:
    """The driver by `cuda.bindings`, in the context that other libraries of the process use, too.
    """

    def __init__(self, name: str, number: int) -> None:
        """ImportError without the package or a driver; DeviceError without such a device."""
        from cuda.bindings import driver

        self.cu = driver
        try:
            self.library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise ImportError(str(error)) from None
        try:
            self._done("cuInit", 0)
            cards = [self._name(i) for i in range(self._done("cuDeviceGetCount"))]
        except DriverError as error:
            raise DeviceError(f"device {name}: the CUDA driver does not start: {error}") from None
        if number >= len(cards):
            raise no_such_device(name, cards)
        device = self._done("cuDeviceGet", number)
        self.card = Card(
            cards[number],
            f"sm_{self._fact('COMPUTE_CAPABILITY_MAJOR', device)}"
            f"{self._fact('COMPUTE_CAPABILITY_MINOR', device)}",
            self._done("cuDeviceTotalMem", device),
            self._fact("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", device),
            self._fact("MULTIPROCESSOR_COUNT", device),
        )
        self.context = self._done("cuDevicePrimaryCtxRetain", device)
        with self.active():
            # Not one that waits for the default stream of others.
            self.stream = self._done("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING)

    def _done(self, name: str, *arguments: Any) -> Any:
        """Call a function of the driver and return what it gives."""
        code, *found = getattr(self.cu, name)(*arguments)
        if code != self.cu.CUresult.CUDA_SUCCESS:
            _, words = self.cu.cuGetErrorString(code)
            memory = code == self.cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY
            raise DriverError(f"{name}: {(words or b'an unknown error').decode()}", memory)
        return found[0] if found else None

    def _name(self, number: int) -> str:
        return self._done("cuDeviceGetName", 256, self._done("cuDeviceGet", number)).split(
            b"\0")[0].decode()

    def _fact(self, name: str, device: Any) -> int:
        attribute = getattr(self.cu.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return self._done("cuDeviceGetAttribute", attribute, device)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Let this thread use the GPU in a block."""
        self._done("cuCtxPushCurrent", self.context)
        try:
            yield
        finally:
            self._done("cuCtxPopCurrent")

    def allocate(self, nbytes: int) -> int:
        """Return the address of new memory."""
        return int(self._done("cuMemAlloc", nbytes))

    def free(self, address: int) -> None:
        """Give memory back."""
        self._done("cuMemFree", address)

    def pinned(self, nbytes: int) -> np.ndarray:
        """Return bytes of the host's memory that the GPU reads and writes by itself.

        They are the device's for good: its staging memory never shrinks.
        """
        address = self._done("cuMemHostAlloc", nbytes, 0)
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(address)))

    def copy_in(self, address: int, values: np.ndarray) -> None:
        """Start copying pinned bytes to the GPU."""
        self._done("cuMemcpyHtoDAsync", address, values.ctypes.data, values.nbytes, self.stream)

    def copy_out(self, values: np.ndarray, address: int) -> None:
        """Start copying from the GPU to pinned bytes."""
        self._done("cuMemcpyDtoHAsync", values.ctypes.data, address, values.nbytes, self.stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Start copying on the GPU."""
        self._done("cuMemcpyDtoDAsync", target, source, nbytes, self.stream)

    def load(self, binary: bytes) -> Any:
        """Return the module that machine code is."""
        return self._done("cuModuleLoadData", binary)

    def function(self, module: Any, name: str, shared: int) -> Any:
        """Return a kernel of a module that takes so many bytes of shared memory at its launch."""
        function = self._done("cuModuleGetFunction", module, name.encode())
        if shared:
            limit = self.cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._done("cuFuncSetAttribute", function, limit, shared)
        return function

    def launch(
        self, function: Any, grid: int, threads: int, shared: int, arguments: Arguments
    ) -> None:
        """Start a kernel, or add it to the graph that is being recorded."""
        places = ctypes.addressof(arguments.places)
        size = (grid, 1, 1, threads, 1, 1, shared)
        self._done("cuLaunchKernel", function, *size, self.stream, places, 0)

    def mark(self) -> Any:
        """Return an event at this place of the stream."""
        event = Event(self)
        self._done("cuEventRecord", event.handle, self.stream)
        return event

    def wait(self, event: Any) -> None:
        """Wait until everything before an event has finished."""
        self._done("cuEventSynchronize", event.handle)

    def elapsed(self, first: Any, second: Any) -> float:
        """Return the nanoseconds between two events that have happened."""
        return self._done("cuEventElapsedTime", first.handle, second.handle) * 1e6

    def synchronize(self) -> None:
        """Wait until everything that was started has finished."""
        self._done("cuStreamSynchronize", self.stream)

    def begin(self) -> None:
        """Record launches from here on in place of starting them."""
        begin_capture(self.library, int(self.stream))

    def end(self) -> CapturedGraph:
        """Return the graph of what was recorded."""
        return CapturedGraph(self.library, int(self.stream))


class Event:
    """A place of the stream, which the driver forgets with this object."""

    def __init__(self, calls: Bindings) -> None:
        self._cu = calls.cu
        self.handle = calls._done("cuEventCreate", 0)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self._cu.cuEventDestroy(self.handle)
