"""What the compiler knows of devices: one protocol, and the devices by name."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tinyc import config
from tinyc.diagnostics import CompilerNotFound, TinycError, warn_once
from tinyc.ir.dtype import DType
from tinyc.runtime.buffer import Buffer
from tinyc.runtime.host import HostDevice

if TYPE_CHECKING:
    from pathlib import Path

    from tinyc.ir.program import Program, Target
    from tinyc.runtime.toolchain import Unit


class Executable(Protocol):
    """A loaded program. `library` is the file of its machine code, if it has one."""

    device: Any
    library: Path | None

    def run(self, buffers: Sequence[Buffer], times: np.ndarray | None = None) -> None:
        """Run on one buffer for each leaf, then one for each fresh output.

        `times`, i64[kernels + 1], receives nanoseconds: the start, then the end of each kernel.
        BoundsError when an index found in the data is out of range.
        """


class Device(Protocol):
    """Where tensors live and programs run."""

    name: str

    def machine(self) -> Target:
        """Return what schedules need to know of it, the language of its kernels among it."""

    def alloc(self, dtype: DType, shape: tuple[int, ...]) -> Buffer:
        """Return an uninitialised buffer."""

    def copy_in(self, buffer: Buffer, array: np.ndarray) -> None:
        """Fill a buffer with the values of an array that broadcasts to its shape."""

    def copy_out(self, buffer: Buffer) -> np.ndarray:
        """Return a copy of the buffer's values."""

    def upload(self, array: np.ndarray, copy: bool = True) -> Buffer:
        """Return a buffer with the array's values, which may share its memory without `copy`."""

    def copied(self, buffer: Buffer) -> Buffer:
        """Return another buffer with the values of one."""

    def part(self, buffer: Buffer, first: int, shape: tuple[int, ...]) -> Buffer:
        """Return neighbouring elements of a buffer as a buffer, which may share their memory."""

    def prepare(self, *units: Unit) -> None:
        """Begin what takes long of what a program needs that is being made; `units` are sources of
        it that are known."""

    def load(self, program: Program, library: Path | None = None) -> Executable:
        """Return what runs a program, compiled now unless its library is given."""

    def synchronize(self) -> None:
        """Wait until everything that was started has finished."""


@functools.cache
def get_device(name: str) -> Device:
    """Return the device of a name such as ``cpu``; ValueError lists the names there are."""
    if name == "cpu":
        from tinyc.runtime.cpu import CpuDevice

        return CpuDevice()
    if name in ("numpy", "interpret"):
        return HostDevice(name)
    if re.fullmatch(r"opencl(:\d+)?", name):
        from tinyc.runtime import opencl

        return opencl.open_device(name)
    if re.fullmatch(r"cuda(:\d+)?", name):
        from tinyc.runtime import cuda

        return cuda.open_device(name)
    known = ", ".join(config.DEVICES)
    raise DeviceError(f"device: no device is called {name!r}; there are {known}")


def copy_of(buffer: Buffer) -> Buffer:
    """Return another buffer with the values of one, on the same device."""
    return get_device(buffer.device).copied(buffer)


class DeviceError(TinycError, ValueError):
    """A device that this build of tinyc does not have."""


def device(name: str) -> config.configure:
    """Compute on a device from now on, or in a block: ``with tinyc.device("opencl"): ...``.

    ValueError for a name that is none; DeviceError, later, where the device is not there.
    """
    return config.configure(device=name)


def synchronize(name: str | None = None) -> None:
    """Wait until a device, the default one if none is named, has finished what was started."""
    get_device(name or default_device()).synchronize()


def default_device() -> str:
    """Return the device that new tensors get.

    Where nobody chose one and there is no C compiler this is ``numpy``, with one warning.
    """
    name = config.current().device
    if name != "cpu" or config.source("device") != "default":
        return name
    return _usable_default(config.epoch())


@functools.lru_cache(maxsize=1)
def _usable_default(epoch: int) -> str:
    from tinyc.runtime.toolchain import find_compiler

    try:
        find_compiler()
    except CompilerNotFound as error:
        warn_once("default device", f"computing with numpy, slowly: {error}")
        return "numpy"
    return "cpu"
