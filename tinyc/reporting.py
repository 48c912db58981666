"""What the compiler decided and what it costs, as objects and as text: explain and compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyc import compiler, config
from tinyc.compiler import NativeExecutable
from tinyc.diagnostics import Remark, format_origin
from tinyc.ir.program import KernelInfo, Program
from tinyc.runtime.buffer import Buffer
from tinyc.tensor import Tensor

REPEATS = 15


# -- explain -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explanation:
    """What one call of a function compiled to: its programs, kernels and refusals.

    ``print`` shows all of it. Figures are sums over the programs: ``flops`` is the arithmetic that
    one run executes, ``bytes_moved`` what kernels read and write outside their own scratch.
    """

    programs: tuple[Program, ...]

    @property
    def kernels(self) -> tuple[KernelInfo, ...]:
        """The kernels in the order in which they run."""
        return tuple(kernel for program in self.programs for kernel in program.kernels)

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Every decision that was noted."""
        return tuple(Remark.from_dict(r) for program in self.programs for r in program.remarks)

    @property
    def missed(self) -> tuple[Remark, ...]:
        """What was not done, and why."""
        return tuple(remark for remark in self.remarks if remark.kind == "missed")

    @property
    def flops(self) -> int:
        """Arithmetic operations that one run executes."""
        return sum(program.flops for program in self.programs)

    @property
    def bytes_moved(self) -> int:
        """Bytes that the kernels of one run read and write."""
        return sum(program.bytes_moved for program in self.programs)

    @property
    def arena_bytes(self) -> int:
        """Memory for values between kernels, of the program that needs most."""
        return max((program.arena_size for program in self.programs), default=0)

    def source(self) -> str:
        """Return the generated source of all programs."""
        return "\n".join(program.source for program in self.programs)

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as plain values, such as JSON holds."""
        return {
            "kernels": [vars(kernel).copy() for kernel in self.kernels],
            "remarks": [remark.to_dict() for remark in self.remarks],
            "flops": self.flops,
            "bytes_moved": self.bytes_moved,
            "arena_bytes": self.arena_bytes,
        }

    def __str__(self) -> str:
        if not self.programs:
            return "nothing was compiled"
        counts = f"{_count(len(self.kernels), 'kernel')} in {_count(len(self.programs), 'program')}"
        lines = [
            f"{counts}: {quantity(self.flops)}FLOP, {quantity(self.bytes_moved)}B moved, "
            f"arena {quantity(self.arena_bytes)}B"
        ]
        for program in self.programs:
            for kernel in program.kernels:
                lines += ["", *describe_kernel(kernel, refusals(program))]
        return "\n".join(lines)


def refusals(program: Program) -> dict[str, list[str]]:
    """Return why members of kernels do not share more loops, by the member's name."""
    found: dict[str, list[str]] = {}
    for remark in map(Remark.from_dict, program.remarks):
        if remark.kind == "missed":
            found.setdefault(remark.subject, []).append(remark.reason())
    return found


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Call a function, compute what it returns, and return what that compiled to.

    The function is called once, so its effects (an optimizer's step, say) happen once. It may be
    jitted or not; without jit, each value that it looks at is a program of its own.
    """
    runs = native_runs(fn, args, kwargs)
    programs = {id(program): program for program in (e.program for e, _ in runs)}
    return Explanation(tuple(programs.values()))


def native_runs(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> list[tuple[NativeExecutable, Sequence[Buffer]]]:
    """Call a function, compute the tensors it returns, and return which programs ran on what.

    Arguments that are not computed yet are computed before: they are not the function's work.
    """
    _realize([*args, *kwargs.values()])
    with compiler.observe() as runs:
        _realize(fn(*args, **kwargs))
    found: list[tuple[NativeExecutable, Sequence[Buffer]]] = []
    for run in runs:
        if isinstance(run.executable, NativeExecutable):
            found.append((run.executable, run.buffers))
    return found


def _realize(value: Any) -> None:
    """Compute all tensors in nested containers, in one program."""
    tensors = _tensors(value)
    if tensors:
        Tensor.commit(tensors)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


# -- compare -------------------------------------------------------------------------------------


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

    def __str__(self) -> str:
        header = ["kernel", "us", "unfused us", "ratio", "of kernels", "MB less", "lines"]
        rows = [_comparison_row(kernel) for kernel in self.kernels]
        unfused = sum(kernel.unfused_kernels for kernel in self.kernels)
        total = [
            _count(len(self.kernels), "kernel"),
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


# -- text ----------------------------------------------------------------------------------------


def describe_kernel(kernel: KernelInfo, refused: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the lines that show a kernel: its cost, the user's lines, its members in order.

    Below each member stands why it is apart from loops before it, from ``refused`` by its name.
    """
    cost = f"{quantity(kernel.flops)}FLOP, {quantity(kernel.bytes_moved)}B moved"
    if kernel.scratch_bytes:
        cost += f", {quantity(kernel.scratch_bytes)}B of scratch"
    if kernel.chunks > 1:
        cost += f", {kernel.chunks} chunks"
    lines = [f"{kernel.name}: {cost}"]
    if kernel.origins:
        lines.append(f"  lines {origins_text(kernel.origins)}")
    for member in kernel.members:
        lines.append(f"  {member}")
        reasons = dict.fromkeys(refused.get(member.partition(" ")[0], ()))
        lines += [f"    apart: {reason}" for reason in reasons]
    return lines


def origins_text(origins: Sequence[tuple[str, int]], most: int = 4) -> str:
    """Return ``train.py:3, train.py:5 and 2 more``."""
    names = list(dict.fromkeys(format_origin(origin) for origin in origins))
    text = ", ".join(names[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")


def quantity(number: float) -> str:
    """Return a number with a decimal prefix: ``12.3 M``."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 1000 or prefix == "T":
            break
        number /= 1000
    return f"{number:.3g} {prefix}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns of text: the first and last to the left, figures to the right."""
    last = len(header) - 1
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        texts = [
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(texts).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
