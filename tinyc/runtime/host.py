"""Memory of the devices that run no source: numpy arrays, on which Python computes."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from tinyc.ir.dtype import DType
from tinyc.runtime.buffer import Buffer

if TYPE_CHECKING:
    from pathlib import Path

    from tinyc.ir.program import Program, Target
    from tinyc.runtime.toolchain import Unit


def host_target() -> Target:
    """Return the CPU that runs, or less of it where the switch `isa` says so: its vector registers
    decide the register tile."""
    from tinyc.ir.program import CPU
    from tinyc.runtime.isa import isa_in_force

    isa = isa_in_force()
    return replace(CPU, lanes=isa.lanes, tile_rows=isa.tile_rows)


class HostDevice:
    """A device whose memory is numpy's; the compiler runs its programs with an interpreter."""

    def __init__(self, name: str) -> None:
        self.name = name

    def machine(self) -> Target:
        """Return what schedules need to know: kernels that Python runs are the CPU's."""
        return host_target()

    def alloc(self, dtype: DType, shape: tuple[int, ...]) -> Buffer:
        """Return an uninitialised buffer."""
        return Buffer(self.name, dtype, shape)

    def copy_in(self, buffer: Buffer, array: np.ndarray) -> None:
        """Fill a buffer with the values of an array that broadcasts to its shape."""
        buffer.array[...] = array

    def copy_out(self, buffer: Buffer) -> np.ndarray:
        """Return a copy of the buffer's values."""
        return buffer.array.copy()

    def upload(self, array: np.ndarray, copy: bool = True) -> Buffer:
        """Return a buffer with the array's values; see `Buffer.from_numpy`."""
        return Buffer.from_numpy(array, self.name, copy)

    def copied(self, buffer: Buffer) -> Buffer:
        """Return another buffer with the values of one."""
        return self.upload(buffer.array)

    def part(self, buffer: Buffer, first: int, shape: tuple[int, ...]) -> Buffer:
        """Return neighbouring elements of a buffer as a buffer that shares their memory."""
        flat = buffer.array.reshape(-1)[first : first + prod(shape)]
        return Buffer.from_numpy(flat.reshape(shape), self.name, copy=False)

    def prepare(self, *units: Unit) -> None:
        """Return at once: programs need nothing."""

    def load(self, program: Program, library: Path | None = None) -> NoReturn:
        """Refuse: no source runs here."""
        raise TypeError(f"device {self.name} computes in Python and runs no source")

    def synchronize(self) -> None:
        """Wait for the device; a host has always finished."""
