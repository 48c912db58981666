"""The device `interpret`: the scheduled loops of compiled kernels, run by Python, one by one.

It computes what the cpu device computes, in the same kernels, and a breakpoint works in it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinyc.codegen import watch
from tinyc.codegen.c import overwrites
from tinyc.codegen.interpret import new_arena, run_kernel

if TYPE_CHECKING:
    from tinyc.ir.plan import Plan
    from tinyc.ir.program import Program
    from tinyc.runtime.buffer import Buffer


class Interpreted:
    """A program whose kernels are loop IR; takes buffers as a compiled program does."""

    def __init__(self, program: Program, plan: Plan) -> None:
        self.program = program
        self.kernels = plan.kernels
        self.slots = plan.slots

    def run(self, buffers: Sequence[Buffer], times: np.ndarray | None = None) -> None:
        """Run on one buffer for each leaf, then one for each fresh output.

        `times`, i64[kernels + 1], receives nanoseconds: the start, then the end of each kernel.
        BoundsError when an index found in the data is out of range.
        """
        memory = {slot: b.array.reshape(-1) for slot, b in zip(self.slots, buffers, strict=True)}
        arena = new_arena(self.program.arena_size)
        ends = [time.perf_counter_ns()]
        for number, kernel in enumerate(self.kernels):
            bad = run_kernel(kernel, memory, arena, watch.watchers() if watch.wanted() else ())
            if bad is not None:
                ran = number + overwrites(kernel.body)
                raise self.program.bounds_error(*bad, ran, [b.ptr for b in buffers])
            ends.append(time.perf_counter_ns())
        if times is not None:
            times[...] = ends
