"""DEBUG=7: how a program was compiled, what was vectorised, and the machine code of its loops.

The program is compiled once more, with line numbers, which changes no instruction: so a loop is
shown under the line of C that it comes from.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyc.diagnostics import CompileError
from tinyc.ir.program import KernelInfo, Program
from tinyc.ir.program_text import with_figures
from tinyc.runtime.toolchain import (
    LIBRARY,
    SOURCE,
    Compiler,
    Unit,
    compile_libraries,
    find_compiler,
)

# What each family takes to say which loops it has made vector code of.
REMARKS = {
    "gcc": ("-fopt-info-vec-optimized",),
    "clang": ("-Rpass=loop-vectorize",),
    "zig": ("-Rpass=loop-vectorize",),
}

_FUNCTION = re.compile(r"^[0-9a-f]+ <.*>:$")
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(.*)$")
_JUMP = re.compile(r"^(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)\s.*?\b([0-9a-f]+) <")
_PLACE = re.compile(rf"^(?:.*/)?{re.escape(SOURCE)}:(\d+)")
_REMARK = re.compile(rf"^{re.escape(SOURCE)}:(\d+):\d+: (?:optimized|remark): (.*?)(?: \[-R.*)?$")
_LINE_DIRECTIVE = re.compile(r"^#line .*$", re.MULTILINE)
_NAME = re.compile(r"\bvoid (\w+)\(")
_CALLED = re.compile(r"\b(tc_tile_\w+)\(")


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly, and the line of the source that it comes from, 0 if unknown.

    `callers` are the lines into which that was inlined, the nearest first.
    """

    address: int
    text: str
    line: int = 0
    callers: tuple[int, ...] = ()

    def line_in(self, lines: Container[int]) -> int:
        """Return the outermost of its lines that is one of these, or 0."""
        return next((n for n in (*reversed(self.callers), self.line) if n in lines), 0)


def texts(program: Program, library: Path) -> dict[str, str]:
    """Return the text of each kernel by name, and under "" how the program was compiled."""
    line = find_compiler().command_line(SOURCE, LIBRARY, program.libm)
    head = with_figures("compiled by " + shlex.join(line), f"in {library.parent}")
    if find_tool() is None:
        head += "\nno machine code: objdump (of binutils or LLVM) was not found"
    return {"": head, **kernel_texts(program)}


def kernel_texts(program: Program) -> dict[str, str]:
    """Return what the compiler made of each kernel, by name: remarks, and its hot loops."""
    source = _LINE_DIRECTIVE.sub("", program.source)
    remarks, instructions = compile_again(source, find_compiler(), program.libm)
    found = {}
    lines = source.splitlines()
    for kernel in program.kernels:
        name = function_name(kernel)
        parts = [name, f"{name}_end", *dict.fromkeys(_CALLED.findall(kernel.source))]
        places = {line: name for name in parts for line in extent(lines, name)}
        loops = hot_loops(instructions, places)
        found[kernel.name] = kernel_text(kernel.name, loops, remarks, places, lines)
    return found


def function_name(kernel: KernelInfo) -> str:
    """Return the name of a kernel's function, which is another's if that one does the same."""
    match = _NAME.search(kernel.source)
    return match[1] if match else kernel.name


def kernel_text(name: str, loops: Mapping[int, Sequence[str]], remarks: Mapping[int, str],
                places: Mapping[int, str], source: Sequence[str]) -> str:
    """Return what the compiler made of a kernel: remarks by line of C, then its hot loops."""
    lines = [f"machine code {name}"]
    for number in sorted(remarks.keys() & places.keys()):
        lines.append(f"  {remarks[number]}: {source[number - 1].strip()}")
    for number, loop in sorted(loops.items()):
        lines.append(f"  loop of {len(loop)} instructions in {places[number]}: "
                     f"{source[number - 1].strip()}")
        lines += [f"    {instruction}" for instruction in loop]
    return "\n".join(lines)


def extent(source: Sequence[str], function: str) -> range:
    """Return the lines of a function, counted from 1; none where it is absent."""
    head = re.compile(rf"^(?:static|TC_KERNEL) .*\b{function}\((?!.*;$)")
    first = next((i for i, line in enumerate(source, 1) if head.match(line)), 0)
    if not first:
        return range(0)
    last = next(i for i, line in enumerate(source[first:], first + 1) if line == "}")
    return range(first, last + 1)


def compile_again(source: str, compiler: Compiler,
                  libm: bool) -> tuple[dict[int, str], list[list[Instruction]]]:
    """Return what the vectoriser says, by line, and the instructions of each function."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SOURCE).write_text(source)
        line = [*compiler.command_line(SOURCE, LIBRARY, libm), "-g1"]
        done = subprocess.run(
            [*line, *REMARKS[compiler.family]],
            cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise CompileError(f"{shlex.join(line)} failed:\n{done.stderr}")
        found = (_REMARK.match(text) for text in done.stderr.splitlines())
        remarks = {int(match[1]): match[2] for match in found if match}
        return remarks, disassemble(Path(folder) / LIBRARY)


def instructions(program: Program) -> list[list[Instruction]]:
    """Return the instructions of each function of a program, compiled with line numbers.

    Nothing without objdump. What was compiled so is kept in the cache.
    """
    source = _LINE_DIRECTIVE.sub("", program.source)
    unit = Unit(source, program.libm, parts=program.parts, line_numbers=True)
    return disassemble(compile_libraries([unit])[0])


def find_tool() -> str | None:
    """Return the disassembler of this machine."""
    return shutil.which("objdump") or shutil.which("llvm-objdump")


def disassemble(library: Path) -> list[list[Instruction]]:
    """Return the instructions of all functions; nothing without objdump."""
    tool = find_tool()
    if tool is None:
        return []
    line = [tool, "--disassemble", "--line-numbers", "--no-show-raw-insn", str(library)]
    done = subprocess.run(
        [*line, "--inlines"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:  # LLVM's has no such option
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return list(functions_of(done.stdout.splitlines()))


def functions_of(listing: Iterable[str]) -> Iterator[list[Instruction]]:
    """Yield the instructions of each function in what objdump printed.

    An instruction without a line before it has that of the last one; lines that it was inlined
    into stand below its own, or alone where its own is as before.
    """
    code: list[Instruction] = []
    callers: list[int] = []
    place, complete = 0, True
    for text in listing:
        if _FUNCTION.match(text):
            if code:
                yield code
            code, place, callers = [], 0, []
        elif match := _PLACE.match(text):
            if text.startswith(("inlined by", " (inlined by)")):
                callers = [*([] if complete else callers), int(match[1])]
            else:
                place, callers = int(match[1]), []
            complete = False
        elif match := _INSTRUCTION.match(text):
            code.append(Instruction(int(match[1], 16), match[2].strip(), place, tuple(callers)))
            complete = True
    if code:
        yield code


def hot_loops(functions: Sequence[Sequence[Instruction]],
              places: Container[int]) -> dict[int, list[str]]:
    """Return the longest innermost loop of each line of C among those given, without addresses.

    A loop's line is that of most of its instructions. The shorter loops of a line do what is left
    over after the unrolled one. Kernels that run in one piece are inlined, so that a loop's line,
    and not the function that it is in, says where it belongs.
    """
    longest: dict[int, list[str]] = {}
    for loop in (loop for code in functions for loop in innermost_loops(list(code))):
        lines = Counter(i.line for i in loop if i.line in places)
        if lines:
            line = lines.most_common(1)[0][0]
            if len(loop) > len(longest.get(line, [])):
                longest[line] = [plain(i.text, loop[0].address) for i in loop]
    return longest


def plain(text: str, start: int) -> str:
    """Return an instruction without the addresses that differ from one build to the next."""
    text = re.sub(r"\s*#.*$", "", text)
    if jump := _JUMP.match(text):
        target = "loop" if int(jump[1], 16) == start else "out"
        return re.sub(r"\b[0-9a-f]+ <[^>]*>", target, text)
    text = re.sub(r"\b[0-9a-f]+ <(\w+)[^>]*>", r"\1", text)  # a call
    return re.sub(r"(?:-?0x[0-9a-f]+)?\(%rip\)", "CONSTANT", text)


def innermost_loops(instructions: list[Instruction]) -> Iterator[list[Instruction]]:
    """Yield the stretches from the target of a backward jump to the jump, with none inside.

    A stretch with a return in it is no loop: code that seldom runs stands behind it and jumps back.
    """
    place = {instruction.address: i for i, instruction in enumerate(instructions)}
    loops = []
    for i, instruction in enumerate(instructions):
        jump = _JUMP.match(instruction.text)
        if jump:
            target = place.get(int(jump[1], 16), i + 1)
            if target <= i and not any(is_return(x) for x in instructions[target:i]):
                loops.append((target, i))
    for first, last in loops:
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in loops):
            yield instructions[first : last + 1]


def is_return(instruction: Instruction) -> bool:
    """Tell whether an instruction leaves its function."""
    return instruction.text.split(" ")[0] in ("ret", "retq")
