"""The machine code of a program's kernels, each instruction with the line of C behind it."""

from __future__ import annotations

import re
from typing import Any

from tinyc.ir.program import Program
from tinyc.runtime.disassembly import Instruction, extent, function_name, instructions

_CALLED = re.compile(r"\b(tc_tile_\w+)\(")
# The text of an instruction, or of a place in memory, without comments of the disassembler.
_COMMENT = re.compile(r"\s*#.*$")

Code = list[list[Any]]


def kernel_code(program: Program) -> tuple[list[Code], list[dict[str, Any]]]:
    """Return [text, line of the kernel's source or None] for each instruction of each kernel.

    Then come the functions that several kernels call, the register tiles: name, source, asm. A
    kernel that runs in one piece may be inlined into the program's step, so an instruction belongs
    to the kernel whose line it comes from. Empty where there is no disassembler, and for languages
    whose drivers keep machine code to themselves.
    """
    if program.launches:
        return [[] for _ in program.kernels], []
    functions = instructions(program)
    source = program.source.splitlines()
    kernels = []
    for kernel in program.kernels:
        first = extent(source, function_name(kernel)).start
        count = len(kernel.source.splitlines())
        kernels.append(code_of(functions, range(first, first + count)) if first else [])
    shared = dict.fromkeys(name for k in program.kernels for name in _CALLED.findall(k.source))
    helpers = []
    for name in shared:
        lines = extent(source, name)
        text = "\n".join(source[line - 1] for line in lines)
        helpers.append({"name": name, "source": text, "asm": code_of(functions, lines)})
    return kernels, helpers


def code_of(functions: list[list[Instruction]], lines: range) -> Code:
    """Return the instructions that come from some lines, these counted from their first.

    An instruction of no line, in between, belongs to what is around it.
    """
    found: Code = []
    for function in functions:
        inside = [i for i, one in enumerate(function) if one.line_in(lines)]
        if not inside:
            continue
        # the program's step holds the code of many kernels, apart from each other
        for one in function[inside[0] : inside[-1] + 1]:
            line = one.line_in(lines)
            if line:
                found.append([shown(one), line - lines.start + 1])
            elif not one.line:
                found.append([shown(one), None])
    return found


def shown(instruction: Instruction) -> str:
    """Return an instruction with its address, to which jumps refer."""
    text = _COMMENT.sub("", instruction.text)
    return f"{instruction.address:x}: {text}"
