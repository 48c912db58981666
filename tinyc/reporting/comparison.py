"""What a function computes run fused and unfused, in turns: compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinyc import compiler, config
from tinyc.compiler import NativeExecutable
from tinyc.ir.program import Program
from tinyc.ir.program_text import count
from tinyc.reporting.explanation import native_runs
from tinyc.reporting.text import origins_text, table
from tinyc.runtime.buffer import Buffer

REPEATS = 15


@dataclass(frozen=True)
class KernelTimes:
    """One fused kernel beside the kernels that do the same one operation at a time."""

    name: str
    members: tuple[str, ...]
    origins: tuple[tuple[str, int], ...]
    fused_us: float
    unfused_us: float
    unfused_kernels: int
    fused_bytes: int
    unfused_bytes: int


@dataclass(frozen=True)
class Comparison:
    """Fused against unfused, from interleaved runs: medians in microseconds, kernel by kernel."""

    kernels: tuple[KernelTimes, ...]
    fused_us: float
    unfused_us: float
    fused_flops: int
    unfused_flops: int
    repeats: int

    @property
    def speedup(self) -> float:
        """How many times the time of the fused run the unfused one takes."""
        return self.unfused_us / self.fused_us if self.fused_us else 1.0

    @property
    def fused_bytes(self) -> int:
        """Bytes that the fused kernels move."""
        return sum(kernel.fused_bytes for kernel in self.kernels)

    @property
    def unfused_bytes(self) -> int:
        """Bytes that the unfused kernels move."""
        return sum(kernel.unfused_bytes for kernel in self.kernels)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, such as JSON holds."""
        kernels = [asdict(kernel) for kernel in self.kernels]
        return {**vars(self), "kernels": kernels, "speedup": self.speedup}

    def __str__(self) -> str:
        header = ["kernel", "us", "unfused us", "ratio", "of kernels", "MB less", "lines"]
        rows = [_comparison_row(kernel) for kernel in self.kernels]
        unfused = sum(kernel.unfused_kernels for kernel in self.kernels)
        total = [
            count(len(self.kernels), "kernel"),
            f"{self.fused_us:.1f}",
            f"{self.unfused_us:.1f}",
            f"{self.speedup:.2f}x",
            str(unfused),
            f"{(self.unfused_bytes - self.fused_bytes) / 1e6:.2f}",
            "",
        ]
        arithmetic = self.fused_flops / self.unfused_flops if self.unfused_flops else 1.0
        note = (
            f"medians of {self.repeats} runs each, in turns; "
            f"fused runs execute {arithmetic:.2f} times the arithmetic of unfused ones"
        )
        return table(header, [*rows, total]) + "\n" + note

    def _repr_html_(self) -> str:
        from tinyc import markup

        lines = (
            (k.name, markup.time(k.fused_us), markup.time(k.unfused_us), k.unfused_kernels,
             markup.size(k.fused_bytes), markup.size(k.unfused_bytes))
            for k in self.kernels
        )  # fmt: skip
        header = ("kernel", "fused", "unfused", "of kernels", "moved", "unfused")
        figures = [f"{markup.time(self.fused_us)} fused, {markup.time(self.unfused_us)} unfused",
                   f"medians of {self.repeats} runs each, in turns"]  # fmt: skip
        return markup.card(f"{self.speedup:.2f} times as fast", figures, markup.rows(header, lines))


def compare(
    fn: Callable[..., Any], *args: Any, repeats: int = REPEATS, **kwargs: Any
) -> Comparison:
    """Time what a function computes fused and unfused, in turns; return medians for each kernel.

    The function is called once. What it computed is compiled both ways and run on copies of its
    inputs, so that nothing of the caller's changes further.
    """
    runs = native_runs(fn, args, kwargs)
    parts = [_compare_run(executable, buffers, repeats) for executable, buffers in runs]
    return Comparison(
        kernels=tuple(kernel for part in parts for kernel in part.kernels),
        fused_us=sum(part.fused_us for part in parts),
        unfused_us=sum(part.unfused_us for part in parts),
        fused_flops=sum(part.fused_flops for part in parts),
        unfused_flops=sum(part.unfused_flops for part in parts),
        repeats=repeats,
    )


def _compare_run(
    executable: NativeExecutable, buffers: Sequence[Buffer], repeats: int
) -> Comparison:
    ways: dict[bool, NativeExecutable] = {}
    for fuse in (True, False):
        with config.configure(fuse=fuse):
            found = compiler.compile_graph(executable.outputs)
        assert isinstance(found, NativeExecutable)
        ways[fuse] = found
    samples: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for repeat in range(repeats + 1):
        for fuse in (True, False) if repeat % 2 else (False, True):
            times = _kernel_times(ways[fuse], buffers)
            if repeat:  # the first round warms up
                samples[fuse].append(times)
    medians = {fuse: np.median(samples[fuse], axis=0) / 1e3 for fuse in samples}
    fused, unfused = ways[True].program, ways[False].program
    return Comparison(
        kernels=tuple(_pair(fused, medians[True], unfused, medians[False])),
        fused_us=float(medians[True].sum()),
        unfused_us=float(medians[False].sum()),
        fused_flops=fused.flops,
        unfused_flops=unfused.flops,
        repeats=repeats,
    )


def _kernel_times(executable: NativeExecutable, buffers: Sequence[Buffer]) -> np.ndarray:
    """Run once; return the nanoseconds of each kernel."""
    times = np.zeros(len(executable.program.kernels) + 1, np.int64)
    executable.run(buffers, times)
    return np.diff(times)


def _pair(
    fused: Program, fused_us: np.ndarray, unfused: Program, unfused_us: np.ndarray
) -> list[KernelTimes]:
    """Put each unfused kernel beside the fused one that does its work."""
    home: dict[int, int] = {}
    for i, kernel in enumerate(fused.kernels):
        for number in kernel.computes:
            home.setdefault(number, i)
    beside: list[list[int]] = [[] for _ in fused.kernels]
    for j, kernel in enumerate(unfused.kernels):
        # what a kernel stores comes first; what it has inlined may be elsewhere too
        place = next((home[number] for number in kernel.computes if number in home), None)
        if place is not None:
            beside[place].append(j)
    return [
        KernelTimes(
            name=kernel.name,
            members=kernel.members,
            origins=kernel.origins,
            fused_us=float(fused_us[i]),
            unfused_us=float(sum(unfused_us[j] for j in beside[i])),
            unfused_kernels=len(beside[i]),
            fused_bytes=kernel.bytes_moved,
            unfused_bytes=sum(unfused.kernels[j].bytes_moved for j in beside[i]),
        )
        for i, kernel in enumerate(fused.kernels)
    ]


def _comparison_row(kernel: KernelTimes) -> list[str]:
    ratio = kernel.unfused_us / kernel.fused_us if kernel.fused_us else 1.0
    return [
        kernel.name,
        f"{kernel.fused_us:.1f}",
        f"{kernel.unfused_us:.1f}",
        f"{ratio:.2f}x",
        str(kernel.unfused_kernels),
        f"{(kernel.unfused_bytes - kernel.fused_bytes) / 1e6:.2f}",
        origins_text(kernel.origins),
    ]
