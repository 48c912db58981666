"""TINYC_DUMP: what each compilation went through, in files with stable names that can be diffed.

Two dumps of one program are the same bytes: no time, address or temporary name is in them. Crash
files are here as well: the graph before a pass that failed, and the command that repeats it.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tinyc import config
from tinyc.diagnostics import Origin, format_origin, warn_once
from tinyc.ir.dtype import bf16
from tinyc.ir.node import Node
from tinyc.ir.program import CPU, LANGUAGES, KernelInfo, Program, Target
from tinyc.ir.program_text import count, fusion_texts, places
from tinyc.ir.steps import Step
from tinyc.version import __version__

GRAPH, META, INPUTS = "00-graph.ir", "meta.json", "inputs.safetensors"
# The switches that change what is compiled.
SWITCHES = ("fuse", "bounds")
# What may be left from another dump into the same folder.
_OURS = ("[0-9][0-9]-*.ir", "[0-9][0-9]-*.txt", "kernels/k*.c", INPUTS)
_numbers = itertools.count()

README = """\
# {place}: {nodes} became {kernels}

What tinyc made of one program, in the order in which it was made. `diff` two files, or two dumps;
two dumps of the same program are the same bytes.

| file | is |
|---|---|
{files}

`tinyc opt {graph} -p all --print-after-change` runs the passes on the graph again, and
`tinyc repro KERNEL --from FOLDER` writes a kernel as a program of its own. In graphs, `(in0)` marks
argument 0 of the program; a version below zero in `buffer(...)` means memory that is nobody's.
"""
_DESCRIPTIONS = {
    "graph": "graph IR as it was built, one node a line; `tinyc opt` reads it",
    "simplify": "after constants, views and identities were folded",
    "lift": "after sums of products became contractions; convolutions, too",
    "reuse": "after gradients were made to read what is stored anyway",
    "stage": "stages: what is stored, each an expression over its axes",
    "fuse": "loop trees: which stages share loops; one tree is one kernel",
    "arrays": "after arrays lost the dimensions that only shared loops need",
    "lower": "loops of each kernel, before scheduling",
    "schedule": "loops of each kernel, tiled, unrolled, made vectors",
    "memory": "the same with places in memory; the memory plan at its end",
}


def write(folder: str, origin: Origin, steps: Sequence[Step], program: Program,
          target: Target) -> Path | None:
    """Write one compilation below a folder and return its own folder.

    ``steps`` are the passes with the program's text after each. A folder that can't be written is
    no reason to stop the program: None is returned, after one warning.
    """
    line = re.sub(r"[^\w-]", "", f"{Path(origin[0]).stem}-{origin[1]}")
    home = Path(folder).expanduser() / f"{next(_numbers):03d}-{line}"
    files = contents(origin, steps, program, target)
    try:
        (home / "kernels").mkdir(parents=True, exist_ok=True)
        for pattern in _OURS:
            for path in home.glob(pattern):
                path.unlink()
        for name, (text, _) in files.items():
            (home / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        warn_once("dump", f"TINYC_DUMP={folder}: nothing is written: {error}")
        return None
    return home


def contents(origin: Origin, steps: Sequence[Step], program: Program,
             target: Target) -> dict[str, tuple[str, str]]:
    """Return the files of a dump: name -> text, and what it is."""
    files: dict[str, tuple[str, str]] = {}
    for i, step in enumerate(steps):
        kind = "ir" if step.form == "graph" else "txt"
        described = _DESCRIPTIONS.get(step.name, f"{step.form} after the pass {step.name}")
        files[f"{i:02d}-{step.name}.{kind}"] = (step.text, described)
    fused = "\n\n".join(fusion_texts(program).values()) + "\n"
    remarks = json.dumps(program.remarks, indent=1) + "\n"
    meta = json.dumps(metadata(origin, program, target), indent=1) + "\n"
    files |= {
        "applied.txt": (applied(steps), "each rewrite rule that fired, each step of scheduling"),
        "fusion.txt": (fused, "each kernel's members: why they are together, or apart"),
        "program.c": (program.source, "the whole program, as it is compiled"),
    }
    for kernel in program.kernels:
        files[f"kernels/{kernel.name}.c"] = (kernel.source + "\n", f"`{kernel.name}` alone")
    files["remarks.json"] = (remarks, "every decision as data: what, where, why, numbers")
    files[META] = (meta, "version, command, switches and target")
    rows = "\n".join(f"| `{name}` | {what} |" for name, (_, what) in files.items())
    rows += f"\n| `{INPUTS}` | with `TINYC_DUMP_INPUTS=1`: what the first run was given |"
    nodes = count(len(steps[0].text.splitlines()) - 1, "node")
    kernels = count(len(program.kernels), "kernel")
    place = format_origin(origin)
    files["README.md"] = (README.format(place=place, nodes=nodes, kernels=kernels, files=rows,
                                        graph=GRAPH), "")
    return files


def applied(steps: Sequence[Step]) -> str:
    """Return what each pass applied: rules on a line each, scheduling as a diff of the loops."""
    return "".join(f"{step.name}\n" + "".join(f"  {fired.text()}\n" for fired in step.fired)
                   for step in steps if step.fired)


def metadata(origin: Origin, program: Program, target: Target) -> dict:
    """Return what is needed to compile a program in the same way again, as plain data."""
    switches = config.current()
    return {
        "tinyc": __version__,
        "program": format_origin(origin),
        "command": sys.argv,
        "switches": {name: getattr(switches, name) for name in SWITCHES},
        "target": asdict(target),
        "kernels": labels(program.kernels),
        "arena_bytes": program.arena_size,
    }


def labels(kernels: Sequence[KernelInfo]) -> list[str]:
    """Return the names of kernels, each with the lines that it comes from."""
    return [f"{kernel.name} {places(kernel.origins, 99)}" for kernel in kernels]


def write_inputs(home: Path, arrays: Sequence[np.ndarray]) -> None:
    """Keep what a program is given beside its dump, as in0, in1 and so on."""
    from safetensors.numpy import save_file

    found = {f"in{i}": np.array(array, order="C") for i, array in enumerate(arrays)}
    # Files have no name for bf16 that numpy knows: its bits are kept, see `read_inputs`.
    found = {k: a.view(np.uint16) if a.dtype == bf16.np else a for k, a in found.items()}
    try:
        save_file(found, str(home / INPUTS))
    except OSError as error:
        warn_once("dump", f"TINYC_DUMP_INPUTS: {home / INPUTS} is not written: {error}")


def read_inputs(home: Path, leaves: Sequence[Node]) -> list[np.ndarray] | None:
    """Return what a dump's program was given, for each of its leaves; None where it is not kept."""
    from safetensors.numpy import load_file

    path = home / INPUTS
    if not path.is_file():
        return None
    kept = load_file(str(path))
    return [kept[f"in{i}"].view(leaf.dtype.np) for i, leaf in enumerate(leaves)]


# Targets as text ---------------------------------------------------------------------------------


def target_text(target: Target) -> str:
    """Return ``lanes=16,tile_rows=8``: the lanes of a target, and how else it is not usual."""
    usual = asdict(CPU)
    shown = {k: v for k, v in asdict(target).items() if k == "lanes" or v != usual[k]}
    return ",".join(f"{name}={value}" for name, value in shown.items())


def target_from(values: Mapping[str, object]) -> Target:
    """Return the usual CPU with some values others. ValueError says what is not one of them."""
    usual = asdict(CPU)
    for name, value in values.items():
        right = type(value) is type(usual.get(name))
        if type(value) is int:
            right = right and value >= min(1, usual[name])
        if not right or (name == "language" and value not in LANGUAGES):
            known = ", ".join(name for name, value in usual.items() if type(value) is int)
            raise ValueError(f"{name}={value}: expected a positive integer for one of {known}, or "
                             f"language={' or '.join(LANGUAGES)}")
    return Target(**{**usual, **values})


# Crash files -------------------------------------------------------------------------------------


def write_crash(origin: Origin, failed: str, passes: Sequence[str], graph: str, target: Target,
                error: BaseException) -> str:
    """Write the graph before a pass that failed, and return where, and how to repeat it.

    ``passes`` are those to run on the graph, the one that failed last. The file is in the dump's
    folder, or else a temporary one.
    """
    folder = config.current().dump
    name = f"crash-{failed}-{next(_numbers):03d}.ir"
    try:
        home = Path(folder).expanduser() if folder else Path(tempfile.mkdtemp(prefix="tinyc-"))
        home.mkdir(parents=True, exist_ok=True)
        path = home / name
        command = repeat(path, passes, target)
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        head = [f"tinyc {__version__}: {failed} failed on {format_origin(origin)}", what,
                f"repeat it: {command}"]  # fmt: skip
        path.write_text("".join(f"# {line}\n" for line in head) + graph, encoding="utf-8")
    except OSError as problem:
        return f"the graph before it could not be kept: {problem}"
    return f"the graph before it is in {path}; repeat it with: {command}"


def repeat(path: Path, passes: Sequence[str], target: Target) -> str:
    """Return the command that runs passes on a graph in a file as they ran here."""
    switches = [f"{config.environment_name(name)}=0" for name in SWITCHES
                if not getattr(config.current(), name)]  # fmt: skip
    words = ["tinyc", "opt", str(path), "-p", ",".join(passes), "--target"]
    return " ".join([*switches, shlex.join([*words, target_text(target)])])
