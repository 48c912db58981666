"""What a compiler makes of a program's loops, in figures that do not depend on unrolling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tinyc import pipeline
from tinyc.ir.node import Node, canonical_key
from tinyc.ir.program import CPU, Program
from tinyc.runtime.disassembly import Instruction, compile_again, innermost_loops
from tinyc.runtime.isa import ISAS, Isa
from tinyc.runtime.toolchain import Compiler

REGISTERS = {16: "%zmm", 8: "%ymm"}
_STACK = re.compile(r"\(%r[sb]p[,)]")
_MEMORY = re.compile(r"\(%r(?!ip|sp|bp)\w+")
_FMA = re.compile(r"^vfn?m(?:add|sub)\w*ps\b")


@dataclass(frozen=True)
class Figures:
    """Of the innermost loops that compute with whole vectors: instructions, fused multiplications
    and additions, reads and writes of memory, and those of a vector in the stack.

    `best` is the share of fused operations in the loop that has most of them, `streamed` how many
    instructions anywhere write past the caches.
    """

    instructions: int
    accesses: int
    spills: int
    best: float
    streamed: int

    @property
    def per_access(self) -> float:
        """Instructions for each vector that is read or written; infinite without any."""
        return self.instructions / self.accesses if self.accesses else float("inf")


def program_for(outputs: Sequence[Node], isa: Isa, rows: int = 0) -> Program:
    """A graph's program for an instruction set, its tiles of another height if `rows` says so."""
    target = replace(CPU, lanes=isa.lanes, tile_rows=rows or isa.tile_rows)
    leaves = tuple(canonical_key(outputs)[1])
    return pipeline.build_program(tuple(outputs), leaves, target)[0]


def figures(program: Program, compiler: Compiler, name: str, *flags: str) -> Figures:
    """Compile a program for an instruction set, which need not be this CPU's, and count."""
    isa = ISAS[name]
    compiler = replace(compiler, native=(*isa.flags, *flags))
    _, functions = compile_again(program.source, compiler, program.libm)
    register = REGISTERS[isa.lanes]
    loops = [loop for code in functions for loop in innermost_loops(code)
             if any(register in i.text and _MEMORY.search(i.text) for i in loop)]
    return of_loops(loops, register, sum("movnt" in i.text for code in functions for i in code))


def of_loops(
    loops: Sequence[Sequence[Instruction]], register: str, streamed: int = 0
) -> Figures:
    """Count in loops whose vectors are in registers of that name."""
    texts = [i.text for loop in loops for i in loop]
    whole = [t for t in texts if register in t]
    shares = [(sum(bool(_FMA.match(i.text)) for i in loop), len(loop)) for loop in loops]
    fused, length = max(shares, default=(0, 1))
    return Figures(len(texts), sum(bool(_MEMORY.search(t)) for t in whole),
                   sum(bool(_STACK.search(t)) for t in whole), fused / length, streamed)
