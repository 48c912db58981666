"""Instruction sets: how wide the vectors are for which code is made, and how compilers are told.

`TINYC_ISA` chooses one; by default it is the widest that this CPU runs, and the compiler is told to
use all that the CPU has.
"""

from __future__ import annotations

import functools
import platform
import subprocess
from dataclasses import dataclass

from tinyc import config
from tinyc.diagnostics import CompileError

NATIVE = "native"
X86 = ("x86_64", "amd64")
ARM = ("aarch64", "arm64")


@dataclass(frozen=True)
class Isa:
    """An instruction set of some kinds of machine: vectors of `lanes` f32 numbers.

    Its registers hold `tile_rows` rows of two vectors of sums, with what they are made from.
    `needs` are the features without which a CPU does not run it, `flags` the compiler's words.
    """

    name: str
    lanes: int
    tile_rows: int
    machines: tuple[str, ...]
    needs: tuple[str, ...]
    flags: tuple[str, ...]


# The widest first. AVX-512 and NEON have 32 registers, the others 16. Plain C has no vector types.
ISAS = {
    isa.name: isa
    for isa in (
        Isa("avx512", 16, 12, X86, ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
            ("-march=skylake-avx512", "-mprefer-vector-width=512")),
        Isa("avx2", 8, 6, X86, ("avx2", "fma"), ("-march=haswell",)),
        Isa("sse2", 4, 6, X86, (), ("-march=x86-64",)),
        Isa("neon", 4, 12, ARM, (), ("-march=armv8-a",)),
        Isa("scalar", 1, 6, (), (), ()),
    )
}  # fmt: skip


def runs_here(isa: Isa) -> bool:
    """Tell whether this CPU has an instruction set."""
    words = set(cpu_features().lower().replace("=", " ").split())
    machine = platform.machine().lower()
    return (not isa.machines or machine in isa.machines) and words.issuperset(isa.needs)


@functools.lru_cache(maxsize=1)
def widest() -> Isa:
    """Return the first of the instruction sets that this CPU runs."""
    return next(isa for isa in ISAS.values() if runs_here(isa))


def isa_in_force() -> Isa:
    """Return the instruction set that code is made for; CompileError if this CPU lacks it."""
    name = config.current().isa
    if name == NATIVE:
        return widest()
    isa = ISAS[name]
    if not runs_here(isa):
        able = ", ".join(i.name for i in ISAS.values() if runs_here(i))
        raise CompileError(f"isa={name!r}: this CPU can't run it; it can run {able}")
    return isa


@functools.lru_cache(maxsize=1)
def cpu_features() -> str:
    """Return what native code depends on: the machine, its model and its features.

    Code for another CPU dies of an illegal instruction, so this is part of every key.
    """
    return " ".join([platform.system(), platform.machine(), *_cpu_lines()])


def _cpu_lines() -> list[str]:
    wanted = ("flags", "Features", "model", "model name", "cpu family", "CPU part", "isa")
    try:
        with open("/proc/cpuinfo", "rb", buffering=0) as file:
            first = file.read(1 << 14).decode(errors="replace").split("\n\n")[0]
    except OSError:
        return _sysctl_lines()
    pairs = (line.partition(":") for line in first.splitlines())
    return sorted(f"{a.strip()}={b.strip()}" for a, _, b in pairs if a.strip() in wanted)


def _sysctl_lines() -> list[str]:
    names = ["machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features"]
    names += ["hw.optional"]
    try:
        done = subprocess.run(["sysctl", *names], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted(done.stdout.splitlines())
