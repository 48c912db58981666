"""How fast this machine is: peaks that generated code reaches, measured once and kept on disk."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyc.runtime.cache import disk_cache, make_key
from tinyc.runtime.device import get_device
from tinyc.runtime.isa import cpu_features, isa_in_force
from tinyc.runtime.toolchain import Unit, find_compiler, load_library

FILE = "machine.json"
# Working sets of all threads together: those that fit the caches of cores, and larger ones.
OWN, SHARED = (1 << 15, 1 << 17, 1 << 19, 1 << 21), (1 << 23, 1 << 24, 1 << 25, 1 << 27)
# Bytes that all threads read and then update.
UPDATED = 1 << 19
WHAT = ("nothing", "fma", "read", "copy", "update")
TYPICAL = ("nothing", "update")
# Each figure is the best of as many runs as fit this time, and of these at least.
SECONDS, ROUNDS = 0.04, 5
# Independent chains of multiply-adds: enough to hide their latency on every CPU of today.
CHAINS = 12
STEPS = 20_000


@dataclass(frozen=True)
class Machine:
    """Peaks of this machine with so many threads.

    ``peak_gflops`` is f32 multiply-adds in vector registers; ``read_gbs`` and ``copy_gbs`` are
    streams from and to memory, a copy counting what it reads and what it writes, and ``core_gbs``
    is a copy by one thread. At ``shared_gbs`` a core updates data that all cores have just read.
    ``levels`` are (bytes, GB/s) of copies within working sets of these sizes, and ``launch_us`` is
    an empty parallel loop.
    """

    cpu: str
    threads: int
    compiler: str
    peak_gflops: float
    read_gbs: float
    copy_gbs: float
    core_gbs: float
    shared_gbs: float
    launch_us: float
    levels: tuple[tuple[int, float], ...]

    def bandwidth(self, working_set: float) -> float:
        """Return the GB/s at which a working set of so many bytes can be streamed."""
        fits = [speed for size, speed in self.levels if working_set <= size]
        return fits[0] if fits else self.copy_gbs

    def roof(self, flops: float, moved: float) -> float:
        """Return the least microseconds that so much arithmetic and traffic can take."""
        return max(flops / self.peak_gflops, moved / self.bandwidth(moved)) / 1e3

    def bound(self, flops: float, moved: float, microseconds: float) -> str:
        """Return what a kernel waits for: "compute", "memory", or "latency" for a small one."""
        if self.roof(flops, moved) < self.launch_us and microseconds < 20 * self.launch_us:
            return "latency"
        compute = flops / self.peak_gflops
        return "compute" if compute > moved / self.bandwidth(moved) else "memory"


def machine() -> Machine:
    """Return the peaks of this machine, from the cache where they were measured before.

    Measuring takes a fraction of a second.
    """
    device: Any = get_device("cpu")
    compiler = find_compiler()
    threads = device.threads
    key = make_key(
        "machine", cpu_features(), compiler.version, *compiler.native, str(threads), SOURCE,
        str((OWN, SHARED)),
    )
    entry = disk_cache().get(key)
    if entry is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads((entry / FILE).read_bytes())
            levels = tuple((int(size), float(speed)) for size, speed in data.pop("levels"))
            return Machine(**data, levels=levels)
    found = measure(device, threads, compiler.version)
    with contextlib.suppress(OSError):
        disk_cache().put(key, {FILE: json.dumps(asdict(found)).encode()})
    return found


def measure(device: Any, threads: int, compiler: str) -> Machine:
    """Measure the peaks: of what cores share with all threads, of the rest with one.

    Arithmetic and small working sets are a core's own, so what one core reaches is multiplied. That
    is true also while other processes keep some of the cores busy.
    """
    # written to: pages that nobody wrote to are all one page, which the caches hold
    memory = np.ones(SHARED[-1] // 4, np.float32)
    everyone, alone = Probe(device, threads, memory), Probe(device, 1, memory)
    cores = min(threads, core_count())
    flops = 2 * CHAINS * alone.lanes * STEPS * cores
    small = [(size, cores * alone.rate("copy", size // cores)) for size in OWN]
    shared = [(size, everyone.rate("copy", size)) for size in SHARED]
    return Machine(
        cpu=cpu_name(),
        threads=threads,
        compiler=" ".join(compiler.split()[:4]),
        peak_gflops=flops / alone.nanoseconds("fma", 0),
        read_gbs=everyone.rate("read", SHARED[-1]),
        copy_gbs=shared[-1][1],
        core_gbs=alone.rate("copy", SHARED[-1]),
        shared_gbs=UPDATED / everyone.nanoseconds("update", UPDATED) / cores,
        launch_us=everyone.nanoseconds("nothing", 0) / 1e3,
        levels=(*small, *shared[:-1]),
    )


class Probe:
    """The measuring program, with so many threads, and memory for it to stream through."""

    def __init__(self, device: Any, threads: int, memory: np.ndarray) -> None:
        self.threads = threads
        self.lanes = isa_in_force().lanes
        source = SOURCE.format(bytes=4 * self.lanes, chains=CHAINS, steps=STEPS, lanes=self.lanes)
        self.library, _ = load_library(Unit(source))
        self.device = device
        with device.lock:
            device.load_pool()
        self.memory = memory
        self.library.tc_probe.restype = ctypes.c_long

    def rate(self, what: str, size: int) -> float:
        """Return GB/s of a stream through a working set; small ones are streamed repeatedly."""
        repeats = max(1, (1 << 22) // size)
        return size * repeats / self.nanoseconds(what, size, repeats)

    def nanoseconds(self, what: str, size: int, repeats: int = 1) -> float:
        """Return the shortest of a few runs on all threads, of what waits for others the median."""
        number = WHAT.index(what)
        arguments = (ctypes.c_long * 4)(self.memory.ctypes.data, size, repeats, self.threads)
        runtime = self.device.runtime
        pool = (ctypes.c_void_p(runtime.par), ctypes.c_void_p(runtime.now))
        times: list[int] = []
        with self.device.lock:
            while len(times) < ROUNDS or (sum(times) < 1e9 * SECONDS and len(times) < 1000):
                times.append(self.library.tc_probe(number, arguments, *pool))
        return max(1, sorted(times)[len(times) // 2 if what in TYPICAL else 0])


def core_count() -> int:
    """Return how many cores there are: threads of one core share its arithmetic."""
    pattern = "devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list"
    siblings = {path.read_text() for path in Path("/sys").glob(pattern)}
    return len(siblings) or os.cpu_count() or 1


def cpu_name() -> str:
    """Return the CPU's name as the system gives it."""
    words: Sequence[str] = cpu_features().split("model name=")
    if len(words) == 1:
        return " ".join(cpu_features().split()[:2])
    return words[1].partition(" model=")[0].strip()


SOURCE = """\
typedef void (*task_fn)(void *, long, long);
typedef float vec __attribute__((vector_size({bytes})));
typedef float loose __attribute__((vector_size({bytes}), aligned(4), may_alias));
typedef struct {{ float *memory; long bytes, repeats, threads; }} job;
static volatile float sink[4096];

static void nothing(void *p, long chunk, long worker) {{ (void)p; }}

static void fma(void *p, long chunk, long worker) {{
  vec sums[{chains}];
  float start = sink[64 * worker];
  vec x = start - (vec){{0}}, y = start + 0.5f - (vec){{0}};
  for (int i = 0; i < {chains}; i++) sums[i] = x + (float)i;
  for (long k = 0; k < {steps}; k++) {{
    #pragma GCC unroll {chains}
    for (int i = 0; i < {chains}; i++) sums[i] = sums[i] * y + x;
  }}
  float total = 0;
  for (int i = 0; i < {chains}; i++) total += sums[i][0];
  sink[64 * worker] = total * 0;
}}

static void read(void *p, long chunk, long worker) {{
  job *j = p;
  long n = j->bytes / 4 / j->threads / {lanes} / 4 * {lanes} * 4;
  const float *a = j->memory + chunk * n;
  vec s0 = {{0}}, s1 = {{0}}, s2 = {{0}}, s3 = {{0}};
  for (long r = 0; r < j->repeats; r++)
    for (long i = 0; i < n; i += 4 * {lanes}) {{
      s0 += *(loose *)(a + i);
      s1 += *(loose *)(a + i + {lanes});
      s2 += *(loose *)(a + i + 2 * {lanes});
      s3 += *(loose *)(a + i + 3 * {lanes});
    }}
  s0 += s1 + s2 + s3;
  sink[64 * worker] = s0[0] * 0;
}}

static void copy(void *p, long chunk, long worker) {{
  job *j = p;
  long n = j->bytes / 8 / j->threads / {lanes} * {lanes};
  const float *a = j->memory + 2 * chunk * n;
  float *b = j->memory + (2 * chunk + 1) * n;
  for (long r = 0; r < j->repeats; r++) {{
    for (long i = 0; i < n; i += {lanes}) *(loose *)(b + i) = *(loose *)(a + i);
    __asm__ volatile("" ::: "memory");
  }}
}}

static void everything(void *p, long chunk, long worker) {{
  job *j = p;
  vec s = {{0}};
  long n = j->bytes / 4 / {lanes} * {lanes};
  for (long i = 0; i < n; i += {lanes}) s += *(loose *)(j->memory + i);
  sink[64 * worker] = s[0] * 0;
}}

static void update(void *p, long chunk, long worker) {{
  job *j = p;
  long n = j->bytes / 4 / j->threads / {lanes} * {lanes};
  float *a = j->memory + chunk * n;
  for (long i = 0; i < n; i += {lanes}) *(loose *)(a + i) += 1.0f;
}}

long tc_probe(int what, job *j, void (*par)(task_fn, void *, long), long (*now)(void)) {{
  static const task_fn tasks[] = {{ nothing, fma, read, copy, update }};
  if (tasks[what] == update) par(everything, j, j->threads);
  par(nothing, j, j->threads);
  long start = now();
  par(tasks[what], j, j->threads);
  return now() - start;
}}
"""
