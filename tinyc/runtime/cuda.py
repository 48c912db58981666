"""CUDA devices: the driver of `launches` for NVIDIA's GPUs. The only file that imports PyCUDA.

Everything happens on one stream, in order, and nothing waits for it but copies to the host.
`cuda_calls.Calls` is what a library does: PyCUDA here or, where that is not installed, NVIDIA's own
package (`cuda_bindings.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyc import config
from tinyc.ir.program import GPU, Target
from tinyc.runtime import cuda_compiler
from tinyc.runtime.cuda_calls import Arguments, CapturedGraph, Card, DriverError, begin_capture
from tinyc.runtime.cuda_steps import CudaSteps
from tinyc.runtime.device import DeviceError
from tinyc.runtime.device_memory import Block, Pool, Staging
from tinyc.runtime.launches import LaunchDevice

if TYPE_CHECKING:
    from tinyc.ir.program import Program
    from tinyc.runtime.cuda_calls import Calls

INSTALL = (
    "pip install 'tinyc[cuda]' brings PyCUDA (`pip install cuda-bindings` does as well), the GPU's "
    "driver comes from NVIDIA"
)
NON_BLOCKING = 1
# Blocks for each multiprocessor, where a kernel can have any number of them.
BLOCKS = 2


def open_device(name: str) -> LaunchDevice:
    """Return `cuda`, or `cuda:1` for the second GPU; DeviceError says what is missing."""
    return LaunchDevice(name, CudaDriver(name, open_calls(name)))


class CudaDriver:
    """What the compiler's devices need, by the calls of a library."""

    def __init__(self, name: str, calls: Calls) -> None:
        self.name = name
        self.calls = calls
        self.card = calls.card
        self.error: type[Exception] = DriverError
        self.lock = threading.RLock()
        # Why nothing works any more, once that is so.
        self.lost = ""
        self.memory = Pool(calls)
        self.staging = Staging(calls)

    @property
    def key(self) -> Sequence[str]:
        """What decides what a source is compiled to."""
        return cuda_compiler.key(self.card.arch)

    def machine(self) -> Target:
        """Return what schedules need to know of the GPU."""
        card = self.card
        chunks = BLOCKS * card.processors
        settings = config.current()
        return replace(GPU, chunks=chunks, language="cuda", shared=card.shared, arch=card.arch,
                       tf32=settings.float32_matmul_precision == "high",
                       atomics=not settings.deterministic)

    @contextlib.contextmanager
    def using(self, what: str) -> Iterator[Calls]:
        """Have the GPU to oneself in a block.

        DeviceError where it is lost: all that its memory held is gone, and the driver refuses to do
        anything more in this process.
        """
        with self.lock:
            if self.lost:
                raise DeviceError(self.lost)
            with self.calls.active():
                try:
                    yield self.calls
                except DriverError as error:
                    if not error.memory:
                        self._examine(what, error)
                    raise

    def _examine(self, what: str, error: DriverError) -> None:
        """Find out whether anything works after an error: one that stays is repeated."""
        try:
            self.calls.synchronize()
        except DriverError as again:
            self.lost = (
                f"device {self.name} ({self.card.name}) is lost: to {what} failed with {error}, "
                f"and everything since with {again}; its memory is gone, and the process must be "
                "started again to use it"
            )
            raise DeviceError(self.lost) from None

    # -- memory ----------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> Block:
        """Return memory of the pool."""
        with self.using("allocate"):
            return self.memory.take(nbytes)

    def address(self, memory: Block) -> int:
        """Return where it is."""
        return memory.address

    def held_bytes(self) -> int:
        """Return the bytes of all memory that is held."""
        with self.lock:
            self.memory.collect()
            return self.memory.active_bytes

    def write(self, memory: Block, values: np.ndarray) -> None:
        """Start copying from the host, whose array may be changed when this returns."""
        with self.using("copy to it"):
            self.staging.copy_in(memory.address, values.reshape(-1).view(np.uint8))

    def read(self, values: np.ndarray, memory: Block) -> None:
        """Copy to the host, after what was started has finished."""
        with self.using("copy from it"):
            self.staging.copy_out(values.reshape(-1).view(np.uint8), memory.address)

    def copy(self, memory: Block, source: Block, first: int, nbytes: int) -> None:
        """Start copying bytes of one memory, from the byte `first` on, to the start of another."""
        with self.using("copy on it") as calls:
            calls.copy(memory.address, source.address + first, nbytes)

    def finish(self) -> None:
        """Wait until everything that was started has finished."""
        with self.using("finish") as calls:
            calls.synchronize()

    # -- programs --------------------------------------------------------------------------------

    def compile(self, source: str) -> bytes:
        """Return machine code; CompileError shows what the compiler refuses."""
        return cuda_compiler.compiled(source, self.card.arch)

    def load(self, binary: bytes) -> Any:
        """Return the module that machine code is."""
        with self.using("load a program") as calls:
            return calls.load(binary)

    def steps(self, program: Program, loaded: Any, status: Block) -> CudaSteps:
        """Return a program's kernels."""
        return CudaSteps(self, program, loaded, status)


def open_calls(name: str) -> Calls:
    """Return the driver of the device of a name; DeviceError says what is missing."""
    number = int(name.partition(":")[2] or 0)
    missing: list[str] = []
    libraries: tuple[Callable[[str, int], Calls], ...] = (PyCuda, _bindings)
    for opened in libraries:
        try:
            return opened(name, number)
        except ImportError as error:
            missing.append(str(error))
    why = "; ".join(missing)
    raise DeviceError(f"device {name}: no driver can be used here ({why}); {INSTALL}")


def _bindings(name: str, number: int) -> Calls:
    from tinyc.runtime.cuda_bindings import Bindings

    return Bindings(name, number)


def no_such_device(name: str, cards: list[str]) -> DeviceError:
    """The error for a number that no GPU has."""
    if not cards:
        return DeviceError(f"device {name}: the CUDA driver finds no GPU; {INSTALL}")
    names = ", ".join(f"cuda:{i} is {card}" for i, card in enumerate(cards))
    return DeviceError(f"device {name}: there is no such device; {names}")


class PyCuda:
    """The driver by PyCUDA, in the context that other libraries of the process use, too."""

    def __init__(self, name: str, number: int) -> None:
        """ImportError without PyCUDA or a driver; DeviceError without such a device."""
        import pycuda.driver as cuda

        self.cuda = cuda
        # Graphs are not PyCUDA's.
        self.library = ctypes.CDLL("libcuda.so.1")
        try:
            cuda.init()
            cards = [cuda.Device(i).name() for i in range(cuda.Device.count())]
        except cuda.Error as error:
            raise DeviceError(f"device {name}: the CUDA driver does not start: {error}") from None
        if number >= len(cards):
            raise no_such_device(name, cards)
        device, fact = cuda.Device(number), cuda.device_attribute
        major, minor = device.compute_capability()
        self.card = Card(
            cards[number],
            f"sm_{major}{minor}",
            device.total_memory(),
            device.get_attribute(fact.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            device.get_attribute(fact.MULTIPROCESSOR_COUNT),
        )
        self.context = device.retain_primary_context()
        self._held: dict[int, Any] = {}
        with self.active():
            # Not one that waits for the default stream of others.
            self.stream = self._done(cuda.Stream, NON_BLOCKING)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Let this thread use the GPU in a block."""
        self.context.push()
        try:
            yield
        finally:
            self.cuda.Context.pop()

    def _done(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call; PyCUDA's errors become the interface's."""
        try:
            return call(*arguments, **named)
        except self.cuda.Error as error:
            raise DriverError(str(error), isinstance(error, self.cuda.MemoryError)) from None

    def allocate(self, nbytes: int) -> int:
        """Return the address of new memory."""
        held = self._done(self.cuda.mem_alloc, nbytes)
        self._held[int(held)] = held
        return int(held)

    def free(self, address: int) -> None:
        """Give memory back."""
        self._done(self._held.pop(address).free)

    def pinned(self, nbytes: int) -> np.ndarray:
        """Return bytes of the host's memory that the GPU reads and writes by itself."""
        return self._done(self.cuda.pagelocked_empty, nbytes, np.uint8)

    def copy_in(self, address: int, values: np.ndarray) -> None:
        """Start copying pinned bytes to the GPU."""
        self._done(self.cuda.memcpy_htod_async, address, values, self.stream)

    def copy_out(self, values: np.ndarray, address: int) -> None:
        """Start copying from the GPU to pinned bytes."""
        self._done(self.cuda.memcpy_dtoh_async, values, address, self.stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Start copying on the GPU."""
        self._done(self.cuda.memcpy_dtod_async, target, source, nbytes, self.stream)

    def load(self, binary: bytes) -> Any:
        """Return the module that machine code is."""
        return self._done(self.cuda.module_from_buffer, binary)

    def function(self, module: Any, name: str, shared: int) -> Any:
        """Return a kernel of a module that takes so many bytes of shared memory at its launch."""
        function = self._done(module.get_function, name)
        if shared:
            limit = self.cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._done(function.set_attribute, limit, shared)
        return function

    def launch(
        self, function: Any, grid: int, threads: int, shared: int, arguments: Arguments
    ) -> None:
        """Start a kernel, or add it to the graph that is being recorded."""
        if not hasattr(function, "arg_format"):
            function.prepare("P" * len(arguments.values))
        self._done(
            function.prepared_async_call,
            (grid, 1),
            (threads, 1, 1),
            self.stream,
            *arguments.values,
            shared_size=shared,
        )

    def mark(self) -> Any:
        """Return an event at this place of the stream."""
        event = self._done(self.cuda.Event)
        self._done(event.record, self.stream)
        return event

    def wait(self, event: Any) -> None:
        """Wait until everything before an event has finished."""
        self._done(event.synchronize)

    def elapsed(self, first: Any, second: Any) -> float:
        """Return the nanoseconds between two events that have happened."""
        return self._done(first.time_till, second) * 1e6

    def synchronize(self) -> None:
        """Wait until everything that was started has finished."""
        self._done(self.stream.synchronize)

    def begin(self) -> None:
        """Record launches from here on in place of starting them."""
        begin_capture(self.library, self.stream.handle)

    def end(self) -> CapturedGraph:
        """Return the graph of what was recorded."""
        return CapturedGraph(self.library, self.stream.handle)
