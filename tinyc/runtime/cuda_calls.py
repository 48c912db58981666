"""What the CUDA device asks of a library, and the graphs that all libraries have alike.

PyCUDA has no graphs, so these are asked of the driver's own library, by handles.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tinyc.diagnostics import TinycError


class DriverError(TinycError, RuntimeError):
    """A call of the driver failed. `memory` tells that there is not enough of it."""

    def __init__(self, text: str, memory: bool = False) -> None:
        super().__init__(text)
        self.memory = memory


@dataclass(frozen=True)
class Card:
    """What is known of a GPU: `arch` as in sm_90, `shared` bytes for a block at most."""

    name: str
    arch: str
    memory: int
    shared: int
    processors: int


class Calls(Protocol):
    """One GPU with one stream, on which everything happens in order.

    Whatever is called must be called below `active()`. Addresses are numbers. Every call may raise
    DriverError, for what it or an earlier asynchronous call did.
    """

    card: Card

    def active(self) -> AbstractContextManager[Any]:
        """Let this thread use the GPU in a block."""

    def allocate(self, nbytes: int) -> int:
        """Return the address of new memory."""

    def free(self, address: int) -> None:
        """Give memory back."""

    def pinned(self, nbytes: int) -> np.ndarray:
        """Return bytes of the host's memory that the GPU reads and writes by itself."""

    def copy_in(self, address: int, values: np.ndarray) -> None:
        """Start copying pinned bytes to the GPU."""

    def copy_out(self, values: np.ndarray, address: int) -> None:
        """Start copying from the GPU to pinned bytes."""

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Start copying on the GPU."""

    def load(self, binary: bytes) -> Any:
        """Return the module that machine code is."""

    def function(self, module: Any, name: str, shared: int) -> Any:
        """Return a kernel of a module that takes so many bytes of shared memory at its launch."""

    def launch(self, function: Any, grid: int, threads: int, shared: int,
               arguments: Arguments) -> None:
        """Start a kernel, or add it to the graph that is being recorded."""

    def mark(self) -> Any:
        """Return an event at this place of the stream."""

    def wait(self, event: Any) -> None:
        """Wait until everything before an event has finished."""

    def elapsed(self, first: Any, second: Any) -> float:
        """Return the nanoseconds between two events that have happened."""

    def synchronize(self) -> None:
        """Wait until everything that was started has finished."""

    def begin(self) -> None:
        """Record launches from here on in place of starting them."""

    def end(self) -> Graph:
        """Return the graph of what was recorded."""


class Graph(Protocol):
    """Launches that are started by one call."""

    def change(self, number: int, arguments: Arguments) -> None:
        """Let one of the launches have other arguments from now on."""

    def launch(self) -> None:
        """Start it."""


class Arguments:
    """The arguments of a launch, each of 8 bytes, and the addresses of them, as drivers want."""

    def __init__(self, values: Sequence[int]) -> None:
        count = len(values)
        self.values = (ctypes.c_uint64 * count)(*values)
        start = ctypes.addressof(self.values)
        self.places = (ctypes.c_void_p * count)(*range(start, start + 8 * count, 8))


class KernelNode(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS of the driver's library, in its first version."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        *((name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("extra", ctypes.c_void_p),
    )


class CapturedGraph:
    """A graph of launches that follow each other, recorded from a stream."""

    def __init__(self, library: ctypes.CDLL, stream: int) -> None:
        self.library = library
        self.stream = ctypes.c_void_p(stream)
        graph = ctypes.c_void_p()
        self._call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        self.graph = graph
        self.ready = ctypes.c_void_p()
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(self.ready), graph,
                       ctypes.c_ulonglong(0))
            self.nodes = self._in_order()
        except DriverError:
            self._destroy()
            raise
        self.kernels = [self._kernel(node) for node in self.nodes]

    def _call(self, name: str, *arguments: Any) -> None:
        called(self.library, name, *arguments)

    def _in_order(self) -> list[ctypes.c_void_p]:
        """The nodes from the first one on: each has one that follows it."""
        nodes: list[ctypes.c_void_p] = []
        found = self._those("cuGraphGetRootNodes", self.graph)
        while found:
            nodes += found
            found = self._those("cuGraphNodeGetDependentNodes", found[0])
        return nodes

    def _those(self, name: str, of: ctypes.c_void_p) -> list[ctypes.c_void_p]:
        node, count = ctypes.c_void_p(), ctypes.c_size_t(1)
        self._call(name, of, ctypes.byref(node), ctypes.byref(count))
        return [node] if count.value else []

    def _kernel(self, node: ctypes.c_void_p) -> KernelNode:
        found = KernelNode()
        self._call("cuGraphKernelNodeGetParams", node, ctypes.byref(found))
        found.extra = None
        return found

    def change(self, number: int, arguments: Arguments) -> None:
        """Let one of the launches have other arguments from now on."""
        kernel = self.kernels[number]
        kernel.arguments = ctypes.cast(arguments.places, ctypes.POINTER(ctypes.c_void_p))
        self._call("cuGraphExecKernelNodeSetParams", self.ready, self.nodes[number],
                   ctypes.byref(kernel))

    def launch(self) -> None:
        """Start it."""
        self._call("cuGraphLaunch", self.ready, self.stream)

    def _destroy(self) -> None:
        # Errors here would hide the one that matters, or come when the process ends.
        if self.ready:
            self.library.cuGraphExecDestroy(self.ready)
        self.library.cuGraphDestroy(self.graph)

    def __del__(self) -> None:
        if hasattr(self, "nodes"):
            self._destroy()


def begin_capture(library: ctypes.CDLL, stream: int) -> None:
    """Record what is started on a stream by this thread in place of starting it."""
    thread_local = 1
    called(library, "cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(thread_local))


def called(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    """Call a function of the driver's library; DriverError with its words for what went wrong."""
    result = getattr(library, name)(*arguments)
    if result:
        text = ctypes.c_char_p()
        library.cuGetErrorString(result, ctypes.byref(text))
        words = (text.value or b"an unknown error").decode()
        raise DriverError(f"{name}: {words}", memory=result == 2)
