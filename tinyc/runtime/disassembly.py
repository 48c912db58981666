"""DEBUG=7: how a program was compiled, what was vectorised, and the machine code of its loops."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinyc.diagnostics import debug_line
from tinyc.runtime.toolchain import SOURCE, Compiler, Unit, find_compiler

LEVEL = 7
# What each family takes to say which loops it has made vector code of.
REMARKS = {
    "gcc": ("-fopt-info-vec-optimized",),
    "clang": ("-Rpass=loop-vectorize",),
    "zig": ("-Rpass=loop-vectorize",),
}

_FUNCTION = re.compile(r"^[0-9a-f]+ <(\w[\w.]*)>:$")
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(.*)$")
_JUMP = re.compile(r"^(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)\s.*?\b([0-9a-f]+) <")


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly."""

    address: int
    text: str


def show(unit: Unit, library: Path, kernels: list[str]) -> None:
    """Print command, vectoriser remarks and the innermost loops of the kernels asked for."""
    compiler = find_compiler()
    line = compiler.command_line(str(library.with_name(SOURCE)), str(library), unit.libm)
    debug_line(LEVEL, "compiled by: " + shlex.join(line))
    for remark in vectoriser_remarks(unit, compiler):
        debug_line(LEVEL, remark)
    functions = disassemble(library)
    if not functions:
        debug_line(LEVEL, "no disassembly: objdump (of binutils or LLVM) was not found")
    for name in kernels:
        for loop in innermost_loops(functions.get(name, [])):
            body = "\n".join(f"    {instruction.text}" for instruction in loop)
            debug_line(LEVEL, f"{name}: loop of {len(loop)} instructions\n{body}", kernel=name)


def vectoriser_remarks(unit: Unit, compiler: Compiler) -> list[str]:
    """Compile once more for what the vectoriser says; nothing where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SOURCE).write_text(unit.source)
        line = compiler.command_line(SOURCE, "program.so", unit.libm)
        done = subprocess.run(
            [*line, *REMARKS[compiler.family]],
            cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
    return [text for text in done.stderr.splitlines() if text.startswith(SOURCE)]


def disassemble(library: Path) -> dict[str, list[Instruction]]:
    """Return the instructions of each function; nothing without objdump."""
    tool = shutil.which("objdump") or shutil.which("llvm-objdump")
    if tool is None:
        return {}
    line = [tool, "--disassemble", "--no-show-raw-insn", str(library)]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    functions: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for text in done.stdout.splitlines():
        if match := _FUNCTION.match(text):
            current = functions[match[1].partition(".")[0]] = []
        elif match := _INSTRUCTION.match(text):
            current.append(Instruction(int(match[1], 16), match[2].strip()))
    return functions


def innermost_loops(instructions: list[Instruction]) -> Iterator[list[Instruction]]:
    """Yield the stretches from the target of a backward jump to the jump, with none inside."""
    place = {instruction.address: i for i, instruction in enumerate(instructions)}
    loops = []
    for i, instruction in enumerate(instructions):
        jump = _JUMP.match(instruction.text)
        if jump:
            target = place.get(int(jump[1], 16), i + 1)
            if target <= i:
                loops.append((target, i))
    for first, last in loops:
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in loops):
            yield instructions[first : last + 1]
