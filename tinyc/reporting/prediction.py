"""What a kernel should take on a machine: the longer of its arithmetic and its traffic.

Where its data come from is told by how much the program touches between two uses of them, as if it
ran again and again. A prediction that is wrong by more than 2x says that the model or the kernel is
to be mended; `benchmarks/cost.py` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinyc.ir.program import KernelInfo, Program
from tinyc.runtime.isa import isa_in_force
from tinyc.runtime.machine import Machine

# Microseconds to call a kernel, and to hand a chunk to a thread.
CALL_US, CHUNK_US = 0.1, 0.05
# GB/s at which a core reads lines that another has written, as two cores did; and how long ago data
# were used that another core may still have.
TAKEN_GBS, NEAR = 40.0, 4 << 20


@dataclass(frozen=True)
class Prediction:
    """Microseconds of a kernel: its arithmetic, its traffic, lines that it takes from the caches of
    other cores, and what it takes to run it at all.

    Cores compute while they wait for memory, so that the longer of the two counts.
    """

    compute: float
    memory: float
    sharing: float
    overhead: float

    @property
    def total(self) -> float:
        """Return what the kernel should take."""
        return self.overhead + self.sharing + max(self.compute, self.memory)


def predict(kernel: KernelInfo, reuse: Reuse, peaks: Machine) -> Prediction:
    """Return what a kernel should take whose data were used as `reuse` says."""
    return Prediction(
        compute(kernel, peaks),
        memory(kernel, reuse, peaks),
        sharing(kernel, reuse, peaks),
        overhead(kernel, peaks),
    )


def compute(kernel: KernelInfo, peaks: Machine) -> float:
    """Return the microseconds of a kernel's arithmetic."""
    unit = 2 * isa_in_force().lanes * peaks.threads / peaks.peak_gflops / 1e3
    done = kernel.work
    busiest = -(-kernel.chunks // taking_part(kernel, peaks)) / kernel.chunks
    return unit * ((done.tile + done.vector + done.scalar) * busiest + done.finish)


def memory(kernel: KernelInfo, reuse: Reuse, peaks: Machine) -> float:
    """Return the microseconds of a kernel's traffic."""
    threads = taking_part(kernel, peaks)
    read = sum(n / rate(d, threads, peaks, False) for n, d in zip(kernel.read_bytes, reuse.reads))
    pairs = zip(kernel.written_bytes, reuse.writes)
    return (read + sum(n / rate(d, threads, peaks, True) for n, d in pairs)) / 1e3


def sharing(kernel: KernelInfo, reuse: Reuse, peaks: Machine) -> float:
    """Return the microseconds that lines take to come from the caches of other cores.

    A kernel on one thread finds half of what was used just now there. One on all threads updates
    what all of them may have read; for the rest, its threads have the parts that they had before.
    """
    read = recent(kernel.reads, kernel.read_bytes, reuse.reads)
    written = recent(kernel.writes, kernel.written_bytes, reuse.writes)
    if kernel.chunks == 1:
        away = 1 - 1 / peaks.threads
        taken, shared = away * sum(read.values()), away * sum(written.values())
        return (taken / TAKEN_GBS + shared / peaks.shared_gbs) / 1e3
    updated = sum(n for name, n in written.items() if name in read) if peaks.threads > 1 else 0
    return updated / (peaks.shared_gbs * taking_part(kernel, peaks)) / 1e3


def recent(names: Sequence[str], sizes: Sequence[int], ages: Sequence[int]) -> dict[str, int]:
    """Return the bytes of the storages that were used just now."""
    return {name: n for name, n, age in zip(names, sizes, ages) if age <= NEAR}


def overhead(kernel: KernelInfo, peaks: Machine) -> float:
    """Return the microseconds of calling a kernel and of handing its chunks to threads."""
    parallel = peaks.launch_us + kernel.chunks * CHUNK_US if kernel.chunks > 1 else 0.0
    return CALL_US + parallel


def taking_part(kernel: KernelInfo, peaks: Machine) -> int:
    """Return how many threads have a share of a kernel."""
    return max(1, min(kernel.chunks, peaks.threads))


def rate(distance: float, threads: int, peaks: Machine, writes: bool) -> float:
    """Return GB/s of data that were used so many bytes ago; caches are those of all cores."""
    fits = [speed for size, speed in peaks.levels if distance <= size]
    if fits:
        return fits[0] * threads / peaks.threads
    most = peaks.copy_gbs if threads > 1 else min(peaks.core_gbs, peaks.copy_gbs)
    # A copy reads a line, and before it writes one it reads that, too.
    return most * 3 / 4 if writes else most * 3 / 2


# -- reuse -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reuse:
    """How many bytes a program touches before a kernel uses each of its storages again."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]


def reuses(program: Program) -> Iterator[Reuse]:
    """Yield the reuse of each kernel's data in a program's second run."""
    near = neighbours(program)
    most = sum(s.nbytes for s in program.storages if s.offset is None) + program.arena_size
    recent: dict[str, int] = {}  # bytes of each storage, the one used longest ago first
    for lap in range(2):
        for kernel in program.kernels:
            sizes = dict(zip(kernel.reads, kernel.read_bytes))
            for name, n in zip(kernel.writes, kernel.written_bytes):
                sizes[name] = max(n, sizes.get(name, 0))
            if lap:
                own = sum(sizes.values())
                found = {n: min(most, own + distance(near.get(n, {n}), recent)) for n in sizes}
                yield Reuse(
                    tuple(found[name] for name in kernel.reads),
                    tuple(found[name] for name in kernel.writes),
                )
            for name, size in sizes.items():
                recent.pop(name, None)
                recent[name] = size


def distance(names: set[str], recent: dict[str, int]) -> int:
    """Return the bytes of what was used since any of some storages was."""
    total = 0
    for name in reversed(recent):
        if name in names:
            break
        total += recent[name]
    return total


def neighbours(program: Program) -> dict[str, set[str]]:
    """Return for each storage those that share memory with it, itself included."""
    placed = [(s.name, s.within, s.offset, s.offset + s.nbytes) for s in program.storages
              if s.offset is not None]  # fmt: skip
    return {
        name: {other for other, place, begin, end in placed
               if place == home and begin < last and first < end}
        for name, home, first, last in placed
    }  # fmt: skip
