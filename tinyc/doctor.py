"""Examines what tinyc needs and could use on this machine, and says what would mend the rest."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from dataclasses import dataclass, fields
from typing import Literal

from tinyc import config
from tinyc.diagnostics import CompileError, paint
from tinyc.version import __version__

State = Literal["good", "absent", "bad"]

SIGNS: dict[str, tuple[str, str]] = {
    "good": ("ok", "green"),
    "absent": ("--", "grey"),
    "bad": ("!!", "red"),
}
# Vector extensions worth a word, as Linux and macOS spell them.
FEATURES = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "asimd", "sve", "AVX2", "NEON")


@dataclass(frozen=True)
class Finding:
    """One line of the examination; ``fix`` is the command that mends it."""

    section: str
    name: str
    state: State
    text: str
    fix: str = ""


def examine() -> list[Finding]:
    """Return what was found, section by section."""
    found: list[Finding] = []
    for section in (software, compiler, processor, devices, cache, extras, switches):
        with warnings.catch_warnings():  # what would be warned about is a finding
            warnings.simplefilter("ignore")
            found += section()
    return found


def render(findings: list[Finding]) -> str:
    """Return the findings as text, coloured on a terminal."""
    lines: list[str] = []
    width = max(len(f.name) for f in findings)
    section = ""
    for f in findings:
        if f.section != section:
            section = f.section
            lines += ["", section]
        sign, colour = SIGNS[f.state]
        lines.append(f"  {paint(sign, colour, sys.stdout)} {f.name.ljust(width)}  {f.text}")
        if f.fix:
            lines.append(f"     {' ' * width}  fix: {f.fix}")
    bad = sum(f.state == "bad" for f in findings)
    lines += ["", f"problems: {bad}" if bad else "everything that training needs is here"]
    return "\n".join(lines).lstrip("\n")


def pip_install(package: str) -> str:
    """Return the command that installs a package into this interpreter's environment."""
    return f"{sys.executable} -m pip install '{package}'"


def version_of(module: str) -> str | None:
    """Return the version of an installed distribution, None where it is absent."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(module)
    except PackageNotFoundError:
        return None


def software() -> list[Finding]:
    """Return the versions of tinyc, Python and what tinyc requires."""
    section = "software"
    python = f"{platform.python_version()} ({sys.executable})"
    found = [
        Finding(section, "tinyc", "good", __version__),
        Finding(section, "python", "good", python),
        Finding(section, "system", "good", f"{platform.system()} {platform.machine()}"),
    ]
    for name in ("numpy", "networkx", "safetensors"):
        version = version_of(name)
        fix = "" if version else pip_install(name)
        found.append(
            Finding(section, name, "good" if version else "bad", version or "absent", fix)
        )
    return found


def compiler() -> list[Finding]:
    """Return which C compiler is used and whether what it makes can be loaded and is right."""
    from tinyc.runtime.toolchain import Unit, find_compiler, load_library

    section = "C compiler"
    try:
        found = find_compiler()
    except CompileError as error:
        tried = "; ".join(line.strip() for line in str(error).splitlines()[1:-2])
        text = f"none works ({tried or error})"
        return [Finding(section, "compiler", "bad", text, pip_install("ziglang"))]
    lines = [
        Finding(section, "compiler", "good", " ".join(found.command)),
        Finding(section, "version", "good", found.version.partition(" Copyright")[0]),
        Finding(section, "flags", "good", " ".join(found.flags())),
    ]
    try:
        library, _ = load_library(Unit("double tinyc_half(double x) { return x / 2; }\n"))
        half = library.tinyc_half
        half.restype, half.argtypes = ctypes.c_double, [ctypes.c_double]
        right = half(5e-324 * 4) == 5e-324 * 2
    except CompileError as error:
        text = str(error).splitlines()[0]
        return [*lines, Finding(section, "result", "bad", text, "TINYC_CACHE_DIR=another/folder")]
    text = "compiles, loads, keeps denormal numbers" if right else "loses denormal numbers"
    fix = "" if right else "CC=another-compiler"
    lines.append(Finding(section, "result", "good" if right else "bad", text, fix))
    return [*lines, replay()]


def replay() -> Finding:
    """Return whether short captured programs are called by C or by Python."""
    from tinyc.runtime import accelerator

    problem = accelerator.problem()
    if problem:
        fix = "install Python's headers, such as python3-dev, to call short programs by C"
        return Finding("C compiler", "jit calls", "absent", f"by Python, since {problem}", fix)
    return Finding("C compiler", "jit calls", "good", "by C, in less than a microsecond")


def processor() -> list[Finding]:
    """Return what the code generator knows of the CPU."""
    from tinyc.runtime.cpu import cpu_count
    from tinyc.runtime.isa import cpu_features, isa_in_force

    section = "processor"
    words = set(cpu_features().replace("=", " ").split())
    known = [name for name in FEATURES if name in words]
    threads = config.current().threads or cpu_count()
    try:
        isa = isa_in_force()
        text = f"{isa.name}, {isa.lanes} f32 numbers ({', '.join(known) or 'no extension known'})"
        vectors = Finding(section, "vectors", "good", text)
    except CompileError as error:
        vectors = Finding(section, "vectors", "bad", str(error), "TINYC_ISA=native")
    return [
        Finding(section, "cores", "good", f"{cpu_count()} usable of {os.cpu_count()}"),
        Finding(section, "threads", "good", str(threads)),
        vectors,
    ]


def devices() -> list[Finding]:
    """Return which devices can be chosen."""
    from tinyc.runtime.device import default_device
    from tinyc.runtime.toolchain import find_compiler

    section = "devices"
    found = [
        Finding(section, "numpy", "good", "computes every graph, slowly, without a compiler"),
        Finding(section, "interpret", "good", "the cpu's kernels, run by Python: breakpoints work"),
    ]
    try:
        find_compiler()
        found.append(Finding(section, "cpu", "good", "generated C on a pool of threads"))
    except CompileError:
        found.append(Finding(section, "cpu", "bad", "needs a C compiler", pip_install("ziglang")))
    found += opencl_devices()
    found += cuda_devices()
    return [*found, Finding(section, "in use", "good", default_device())]


def opencl_devices() -> list[Finding]:
    """Return the OpenCL devices with their numbers, or what would bring one."""
    from tinyc.runtime.device import DeviceError

    section, package = "devices", "pyopencl"
    if version_of(package) is None:
        fix = pip_install("tinyc[opencl]")
        return [Finding(section, "opencl", "absent", f"{package} is not installed", fix)]
    try:
        from tinyc.runtime.opencl import drivers

        opened = list(drivers())
    except DeviceError as error:
        return [Finding(section, "opencl", "bad", str(error))]
    works = [driver.device for driver in opened if not isinstance(driver, DeviceError)]
    found = []
    for place, device in enumerate(works):
        name = f"opencl:{place}" if place else "opencl"
        found.append(
            Finding(section, name, "good", f"{device.name}, {device.platform.version}")
        )
    # What is left out is only missed where nothing else works.
    state: State = "absent" if works else "bad"
    refused = [str(error) for error in opened if isinstance(error, DeviceError)]
    return found + [Finding(section, "opencl", state, text) for text in refused]


def cuda_devices() -> list[Finding]:
    """Return the CUDA devices with their numbers, and the compiler for them, or what would help."""
    from tinyc.runtime import cuda, cuda_compiler
    from tinyc.runtime.device import DeviceError

    section, fix = "devices", pip_install("tinyc[cuda]")
    found: list[Finding] = []
    try:
        while True:
            name = f"cuda:{len(found)}" if found else "cuda"
            card = cuda.open_calls(name).card
            text = f"{card.name}, {card.arch}, {card.memory / 2**30:.0f} GiB"
            found.append(Finding(section, name, "good", text))
    except DeviceError as error:
        if not found:
            return [Finding(section, "cuda", "absent", str(error).partition("; pip")[0], fix)]
    try:
        found.append(Finding(section, "CUDA C++", "good", cuda_compiler.cuda_compiler().version))
    except CompileError as error:
        found.append(Finding(section, "CUDA C++", "bad", str(error), fix))
    return found


def cache() -> list[Finding]:
    """Return where compiled programs are kept and whether that works."""
    from tinyc.runtime.cache import configured_root, disk_cache

    section = "cache"
    summary = disk_cache().summary()
    wanted, used = str(configured_root().absolute()), str(summary["root"])
    size = f"{summary['entries']} programs, {int(summary['bytes']) / 2**20:.1f} MiB"
    found = []
    if used == wanted:
        found.append(Finding(section, "folder", "good", used))
    else:
        fix = f"mkdir -p {wanted} && chmod 700 {wanted}, or TINYC_CACHE_DIR=another/folder"
        text = f"{wanted} can't be used, so programs are compiled again in each process"
        found.append(Finding(section, "folder", "bad", text, fix))
    return [*found, Finding(section, "content", "good", f"{size} (`tinyc cache --clear` empties)")]


def extras() -> list[Finding]:
    """Return which optional packages are here, and what they would add."""
    uses = {
        "tqdm": ("progress bars of the examples", "tinyc[examples]"),
        "matplotlib": ("pictures of loss curves", "tinyc[examples]"),
        "pygments": ("the HTML report", "tinyc[report]"),
        "fast_sugiyama": ("better graphs in the HTML report", "tinyc[report]"),
        "torch": ("the tests that compare with PyTorch", "tinyc[oracle]"),
        "ziglang": ("a C compiler where there is none", "tinyc[cc]"),
    }
    found = []
    for name, (use, extra) in uses.items():
        version = version_of(name)
        text = f"{version or 'absent'}: {use}"
        fix = "" if version else pip_install(extra)
        found.append(Finding("extras", name, "good" if version else "absent", text, fix))
    return found


def switches() -> list[Finding]:
    """Return the value of every switch and where it comes from."""
    found = []
    for spec in fields(config.Settings):
        value = getattr(config.current(), spec.name)
        if spec.name == "debug":
            value = value.level
        elif isinstance(value, bool):
            value = int(value)
        name = config.environment_name(spec.name)
        text = f"{value!s:8} ({config.source(spec.name)}) {spec.metadata['doc']}"
        found.append(Finding("switches", name, "good", text))
    return found
