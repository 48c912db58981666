"""TINYC_TUNE: a handful of ways to make each kernel, timed on this machine; the best one is kept.

Each way computes the same but for the order of sums. The rules of the recipes are kept unless
another way is faster by more than noise, twice. What was found is kept in the disk cache, by the
text of the kernel as the rules make it, tinyc's sources, the machine and the compiler. The number
of threads is no part of that, so that results do not depend on it.
"""
from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from tinyc import checking
from tinyc.codegen import c, cpu
from tinyc.codegen.alternatives import MOST, alternatives, offered, together
from tinyc.codegen.count import kernel_info
from tinyc.codegen.lines import Far, far_stores
from tinyc.codegen.lower import lower_nest
from tinyc.diagnostics import (
    CompileError,
    CompilerNotFound,
    Remark,
    ScheduleError,
    debug_line,
    format_origin,
    warn_once,
)
from tinyc.ir.choices import RULES, Choices
from tinyc.ir.cost import elements
from tinyc.ir.dtype import stored
from tinyc.ir.loop import LoopKernel, Storage, Store, replace_storage, statements
from tinyc.ir.plan import Nest, Plan
from tinyc.ir.plan_text import kernel_name
from tinyc.ir.program import Program, Target
from tinyc.ir.program_text import count, with_figures
from tinyc.runtime import recorder
from tinyc.runtime.buffer import Buffer
from tinyc.runtime.cache import disk_cache, make_key
from tinyc.runtime.device import get_device
from tinyc.runtime.sources import source_digest
from tinyc.runtime.toolchain import (
    Unit,
    compile_libraries,
    cpu_features,
    find_compiler,
    without_comments,
)
from tinyc.schedule.memory import kernel_accesses
from tinyc.version import __version__

FILE = "choices.json"
# Seconds for the trials of one kernel, rounds in which each way runs once, and how much faster than
# the rules' a way must be.
SECONDS, ROUNDS, FEWEST = 0.3, 60, 5
GAIN = 1.03
# A way this much slower than the best is tried no further.
HOPELESS = 1.3
# Kernels of less arithmetic and traffic than this take no time that could be saved.
SMALL = 1 << 17
# Floats that kernels are tried on. Positive, so that roots and logarithms are numbers and sums do
# not cancel; zeros, given to all other types, are right for every index.
LOW, HIGH, VALUES = 0.5, 1.5, 1 << 16


@dataclass(frozen=True)
class Trial:
    """One way to make a kernel: microseconds of a run, or why there are none."""

    choices: Choices
    microseconds: float = 0.0
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.choices} {self.problem or f'{self.microseconds:.1f} us'}"


@dataclass(frozen=True)
class Found:
    """What the trials of a kernel have shown; those of the rules come first."""

    choices: Choices
    trials: tuple[Trial, ...]


def tune(plan: Plan, target: Target) -> None:
    """Fill in the choices of a plan's kernels; each that was tried has a remark."""
    known: dict[str, Found] = {}
    try:
        compiler = find_compiler().version
    except CompilerNotFound:
        return  # the kernels are for Python
    sources = source_digest()
    lowered = [lower_nest(replace(plan, storages=[]), nest, target) for nest in plan.nests]
    for nest, far in zip(plan.nests, far_stores(lowered, target)):
        usual = way(plan, nest, target, RULES, far)
        if usual is None or not worth_it(usual):
            continue
        key = make_key("tuned", __version__, sources or "", repr(target), cpu_features(), compiler,
                       usual.text())
        found = known.get(key) or (load(key, target) if sources else None)
        if found is None:
            with recorder.span("tune", "compile", kernel=kernel_name(nest)), \
                    recorder.recording(None):
                found = tried(plan, nest, target, usual, far)
            if sources:
                store(key, found)
        known[key] = found
        plan.choices[nest] = found.choices
        tell(plan, nest, found)


def worth_it(usual: Way) -> bool:
    """True for kernels that take time, and that do not store where data say."""
    (info,) = usual.program.kernels
    scattered = any(isinstance(s, Store) and any(True for _ in s.index.data())
                    for s in statements(usual.kernel.body))
    return not scattered and info.flops + info.bytes_moved >= SMALL


# -- ways ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Way:
    """A kernel made by some choices, as a program of its own.

    `slots` are its arguments, `results` those of them that it is there to write, and `updated` what
    it reads and writes. What is wrong with it, if anything, is its `problem`.
    """

    choices: Choices
    kernel: LoopKernel
    program: Program
    slots: list[Storage]
    results: list[Storage]
    updated: list[Storage]
    run: Callable[[Sequence[Buffer], np.ndarray], None] | None = None
    problem: str = ""

    def text(self) -> str:
        """What it does, without the user's lines."""
        return without_comments(self.program.source)

    def unit(self) -> Unit:
        return Unit(self.program.source, self.program.libm, parts=self.program.parts)


def way(plan: Plan, nest: Nest, target: Target, choices: Choices, far: Far) -> Way | None:
    """One kernel made by some choices, None where they can't be followed.

    It stores to `far` past the caches.
    """
    try:
        lowered = lower_nest(replace(plan, storages=[]), nest, target, choices)
        kernel = cpu.schedule(lowered, target, choices, far)
    except ScheduleError:
        return None
    reads, writes = kernel_accesses(kernel)
    slots = [s for s in dict.fromkeys([*reads, *writes]) if s.role in ("slot", "arena")]
    own = {s: replace(s, role="slot") for s in slots}
    alone = replace(kernel, name="kernel", body=replace_storage(kernel.body, own),
                    finish=replace_storage(kernel.finish, own))
    source = c.program([alone], list(own.values()))
    program = Program(source.text, source.libm, len(slots), (), 0, source.scratch_size,
                      (kernel_info(alone, nest, target),), tuple(plan.sites), parts=source.parts)
    stored = {stage.buf.storage for stage in nest.stages()}
    return Way(choices, kernel, program, slots, [s for s in slots if s in writes and s in stored],
               [s for s in slots if s in writes and s in reads])


def other_ways(plan: Plan, nest: Nest, target: Target, usual: Way, far: Far) -> list[Way]:
    """The kernel by other choices, each text once."""
    texts = {usual.text()}
    found: list[Way] = []
    for choices in alternatives(lower_nest(replace(plan, storages=[]), nest, target), target):
        other = way(plan, nest, target, choices, far)
        if other is not None and other.text() not in texts and len(found) < MOST:
            texts.add(other.text())
            found.append(other)
    return found


# -- trials ----------------------------------------------------------------------------------------


def tried(plan: Plan, nest: Nest, target: Target, usual: Way, far: Far) -> Found:
    """Time a kernel made by the rules and by other choices, and choose."""
    ways = [usual, *other_ways(plan, nest, target, usual, far)]
    terms = max((elements(stage.red) for stage in nest.stages()), default=1)
    bench = Bench(ways, max(terms, 1))
    times = bench.race(bench.hopeful(ways), SECONDS)
    better = faster(times, usual)
    if len(better) > 1:
        both = way(plan, nest, target, together([w.choices for w in better]), far)
        if both is not None and both.text() not in {w.text() for w in ways}:
            ways.append(both)
            bench.add([both])
            better.insert(0, both)
    final = bench.race([usual, *(w for w in better[:2] if not w.problem)], SECONDS / 2)
    times.update(final)
    best = next(iter(faster(final, usual)), usual)
    trials = [Trial(w.choices, times.get(w, 0.0), w.problem) for w in ways]
    return Found(best.choices, tuple(trials))


def faster(times: Mapping[Way, float], usual: Way) -> list[Way]:
    """The ways that were faster than the usual one by more than noise, the fastest first."""
    found = [w for w in times if w is not usual and times[w] * GAIN <= times[usual]]
    return sorted(found, key=lambda w: times[w])


class Bench:
    """Memory for the ways of a kernel to run in, which all of them share; the first is the usual.

    A way that the compiler refuses, or that computes something else, gets a problem.
    """

    def __init__(self, ways: Sequence[Way], terms: int) -> None:
        self.buffers: dict[Storage, Buffer] = {}
        self.before: dict[Storage, np.ndarray] = {}
        self.wanted: dict[Storage, np.ndarray] = {}
        self.terms = terms
        self.add(ways)

    def add(self, ways: Sequence[Way]) -> None:
        """Compile ways, and compare what they compute with what the first one did."""
        with contextlib.suppress(CompileError):  # which one it was is found out below
            compile_libraries([w.unit() for w in ways])
        for w in ways:
            for s in w.slots:
                if s not in self.buffers:
                    self.buffers[s] = Buffer.from_numpy(values(s), "cpu")
            try:
                w.run = get_device("cpu").load(w.program).run
            except CompileError as error:
                w.problem = "does not compile: " + str(error).splitlines()[1].strip()
            else:
                self.check(w)

    def check(self, w: Way) -> None:
        """Run a way on fresh values and look at its results."""
        for s in {**dict.fromkeys(w.results), **dict.fromkeys(w.updated)}:
            self.buffers[s].array[...] = values(s)
        self.nanoseconds(w)
        if not self.wanted:
            self.wanted = {s: np.array(self.buffers[s].array) for s in w.results}
        for s, wanted in self.wanted.items():
            tolerance = checking.TOLERANCE.get(s.dtype.name, 0.0) * self.terms ** 0.5
            problem = checking.difference(wanted, self.buffers[s].array, tolerance)
            if problem:
                w.problem = f"computes something else: {problem}"

    def nanoseconds(self, w: Way) -> int:
        """Run a way once and return how long its kernel took."""
        return run_time(w, [self.buffers[s] for s in w.slots])

    def hopeful(self, ways: Sequence[Way]) -> list[Way]:
        """The ways that may become the fastest, judged by a few runs; the first is always one."""
        sound = [w for w in ways if not w.problem]
        times = self.race(sound, 0.0)
        best = min(times.values())
        return [w for w in sound if w is ways[0] or times[w] <= best * HOPELESS]

    def race(self, ways: Sequence[Way], seconds: float) -> dict[Way, float]:
        """The median microseconds of ways that run in turns."""
        times: dict[Way, list[int]] = {w: [] for w in ways}
        end = time.perf_counter() + seconds
        for number in range(ROUNDS):
            for s in dict.fromkeys(s for w in ways for s in w.updated):
                self.buffers[s].array[...] = values(s)
            for w in ways if number % 2 else ways[::-1]:
                times[w].append(self.nanoseconds(w))
            if number + 1 >= FEWEST and time.perf_counter() > end:
                break
        return {w: median(found) / 1e3 for w, found in times.items()}


def run_time(w: Way, buffers: Sequence[Buffer]) -> int:
    """Run a way; return the nanoseconds that its kernel took."""
    assert w.run is not None
    times = np.zeros(2, np.int64)
    w.run(buffers, times)
    return int(times[1] - times[0])


def values(s: Storage) -> np.ndarray:
    """What kernels are tried on."""
    if not s.dtype.is_float:
        return np.zeros(s.size, s.dtype.np)
    few = np.random.default_rng(0).uniform(LOW, HIGH, min(s.size, VALUES))
    return np.resize(stored(few, s.dtype), s.size)


# -- what is kept and told -------------------------------------------------------------------------


def store(key: str, found: Found) -> None:
    """Keep what was found; a disk that refuses is no error."""
    with contextlib.suppress(OSError):
        disk_cache().put(key, {FILE: json.dumps(asdict(found)).encode()})


def load(key: str, target: Target) -> Found | None:
    """What was found before; None, and the entry is removed, where it is not of this form."""
    cache = disk_cache()
    entry = cache.get(key)
    if entry is None:
        return None
    try:
        data = json.loads((entry / FILE).read_bytes())
        trials = [Trial(choices_from(t["choices"]), float(t["microseconds"]), str(t["problem"]))
                  for t in data["trials"]]
        found = Found(choices_from(data["choices"]), tuple(trials))
        tried_ones = [t.choices for t in trials]
        if tried_ones[0] == RULES and found.choices in tried_ones and (
                offered(found.choices, target)):
            return found
        problem = f"{found.choices} is no choice"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    warn_once("cache entry", f"rebuilding a damaged entry of the cache: {entry}: {problem}")
    cache.discard(key)
    return None


def choices_from(data: Mapping[str, Any]) -> Choices:
    """The choices that were written as JSON; TypeError for others' data."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                              for name, value in data.items()}
    return Choices(**values)


def tell(plan: Plan, nest: Nest, found: Found) -> None:
    """Leave a remark of what was tried, and print it at DEBUG=1."""
    name = kernel_name(nest)
    usual = found.trials[0].microseconds
    best = next(t.microseconds for t in found.trials if t.choices == found.choices)
    kept = found.choices == RULES
    text = "the rules are kept" if kept else f"{found.choices} in place of the rules"
    origin = next((s.node.origin for s in nest.stages() if s.node.origin), None)
    plan.remarks.append(Remark(
        "analysis" if kept else "applied", "tune", name,
        f"{text}; tried were {'; '.join(map(str, found.trials))}", origin,
        {"rules_us": usual, "chosen_us": best}))
    debug_line(1, with_figures(f"tuned {name} [{format_origin(origin)}] {text}",
                               f"{usual:.1f} us -> {best:.1f} us, "
                               f"{count(len(found.trials), 'way')} tried"), colour="green")
