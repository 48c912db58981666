"""Programs on a CUDA device: their launches, as one graph from the second run on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyc.diagnostics import CompileError, warn_once
from tinyc.runtime.cuda_calls import Arguments, DriverError
from tinyc.runtime.launches import SCRATCH

if TYPE_CHECKING:
    from tinyc.ir.program import Launch, Program
    from tinyc.runtime.cuda import CudaDriver
    from tinyc.runtime.cuda_calls import Calls, Graph
    from tinyc.runtime.device_memory import Block


@dataclass(frozen=True)
class Ready:
    """A launch with its kernel and its arguments."""

    launch: Launch
    function: Any
    arguments: Arguments


class CudaSteps:
    """A program's kernels, which are started in order.

    The first run starts them one by one. The second records them as a graph, which is one start
    from then on; where memory lies elsewhere than before, what uses it gets new arguments. Where
    the driver makes no graph they go on one by one.
    """

    def __init__(self, driver: CudaDriver, program: Program, module: Any, status: Block) -> None:
        self.driver = driver
        # Keeps the kernels.
        self.module = module
        # The launch and the number of the argument, wherever the address of a slot is one.
        self._places: dict[int, list[tuple[int, int]]] = {}
        with driver.using("load a program") as calls:
            self._launches = [
                self._ready(calls, number, launch, status.address)
                for number, launch in enumerate(program.launches)
            ]
        self._changed: set[int] = set()
        self._runs = 0
        self._graph: Graph | None = None

    def _ready(self, calls: Calls, number: int, launch: Launch, status: int) -> Ready:
        """Find the kernel of a launch, and note where addresses go."""
        limit = self.driver.card.shared
        if launch.shared > limit:
            raise CompileError(
                f"device {self.driver.name}: kernel {launch.function} needs {launch.shared:,} "
                f"bytes of shared memory for a block; there are {limit:,}"
            )
        values: list[int] = []
        for slot, first in launch.arguments:
            self._places.setdefault(slot, []).append((number, len(values)))
            values += (0, first)
        self._places.setdefault(SCRATCH, []).append((number, len(values)))
        function = calls.function(self.module, launch.function, launch.shared)
        return Ready(launch, function, Arguments([*values, 0, launch.scratch, status, launch.ran]))

    def place(self, slot: int, memory: Block) -> None:
        """Let a slot be this memory."""
        for number, place in self._places.get(slot, ()):
            self._launches[number].arguments.values[place] = memory.address
            self._changed.add(number)

    def start(self) -> None:
        """Start every kernel: as a graph if there is one, or should be one."""
        with self.driver.using("run a program") as calls:
            self._runs += 1
            if self._runs == 2 and len(self._launches) > 1:
                self._graph = self._recorded(calls)
            elif self._graph is not None:
                for number in self._changed:
                    self._graph.change(number, self._launches[number].arguments)
            self._changed.clear()
            if self._graph is not None:
                self._graph.launch()
            else:
                self._launch_all(calls)

    def _launch_all(self, calls: Calls) -> None:
        for ready in self._launches:
            self._launch(calls, ready)

    def _launch(self, calls: Calls, ready: Ready) -> None:
        launch = ready.launch
        blocks = launch.items // launch.threads
        calls.launch(ready.function, blocks, launch.threads, launch.shared, ready.arguments)

    def _recorded(self, calls: Calls) -> Graph | None:
        """The launches as a graph, unless the driver makes none."""
        try:
            calls.begin()
            self._launch_all(calls)
            return calls.end()
        except DriverError as error:
            calls.synchronize()  # whatever else is wrong is raised here
            name = self.driver.name
            warn_once("cuda graphs", f"device {name} starts kernels one by one: {error}")
            return None

    def time(self, times: np.ndarray) -> None:
        """Run kernel by kernel, and fill in when the first one started and when each ended."""
        with self.driver.using("run a program") as calls:
            calls.synchronize()
            times[0] = time.monotonic_ns()
            start = calls.mark()
            ends = {}
            for ready in self._launches:
                self._launch(calls, ready)
                ends[ready.launch.kernel] = calls.mark()
            calls.synchronize()
            for kernel, end in ends.items():
                times[kernel + 1] = times[0] + int(calls.elapsed(start, end))
