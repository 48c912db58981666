"""DEBUG=1 and 3 to 7: what is printed of a compilation, from what passes and compiler left behind.

Times and other figures of a run stand after a bar at the end of a line, so that two outputs can be
compared without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tinyc import config
from tinyc.diagnostics import debug_line, format_origin, print_debug
from tinyc.ir.node import Node, toposort
from tinyc.ir.program import Program
from tinyc.ir.program_text import count, fusion_texts, quantity, with_figures
from tinyc.ir.steps import Step, changes


def show_start(outputs: Sequence[Node]) -> None:
    """DEBUG=5: a heading for the passes of a compilation."""
    place = format_origin(outputs[0].origin)
    debug_line(5, f"compiling [{place}] {count(len(toposort(outputs)), 'node')}", colour="blue")


def show_step(before: Step, after: Step) -> None:
    """DEBUG=5: what a pass changed; DEBUG=6: what it applied, one by one."""
    debug = config.current().debug
    changed = changes(before, after)
    texts = [t for kernel, t in changed.items() if debug.shows(5, kernel or None, after.name)]
    fired = [f for f in after.fired if debug.shows(6, f.kernel, after.name)]
    if texts or fired or debug.shows(5, None, after.name):
        print_debug(step_text(before, after), "blue")
        for text in [*(f.text() for f in fired), *texts]:
            print_debug(("\n" if text.startswith("---") else "") + text)


def step_text(before: Step, after: Step) -> str:
    """Return the line of a pass: what it changed, in numbers, and its time."""
    what = "unchanged" if before.blocks == after.blocks else f"{after.form} changed"
    if before.form != after.form:
        what = f"{before.form} -> {after.form}"
    if after.fired:
        what += f", {count(len(after.fired), 'step')} applied"
    return with_figures(f"pass {after.name}: {what}", f"{after.seconds * 1e3:.1f} ms")


def show_program(verb: str, outputs: Sequence[Node], program: Program, library: Path | None,
                 seconds: Mapping[str, float]) -> None:
    """DEBUG=1: a line for a program; 3: what was fused; 4: its source; 7: its machine code.

    ``seconds`` are those of the passes in groups, and of the compiler.
    """
    debug = config.current().debug
    figures = ", ".join(f"{name} {time * 1e3:.0f} ms" for name, time in seconds.items())
    nodes, kernels = len(toposort(outputs)), len(program.kernels)
    size = f"{quantity(program.flops)}FLOP, arena {quantity(program.arena_size)}B"
    text = f"{verb} [{format_origin(outputs[0].origin)}] {count(nodes, 'node')} -> "
    debug_line(1, with_figures(f"{text}{count(kernels, 'kernel')}, {size}", figures),
               colour="green")
    if debug.level < 3:
        return
    fused = fusion_texts(program)
    code: Mapping[str, str] = {}
    if debug.level >= 7 and library is not None:
        from tinyc.runtime import disassembly

        code = disassembly.texts(program, library)
        if any(debug.shows(7, kernel.name) for kernel in program.kernels):
            print_debug(code[""], "blue")
    for kernel in program.kernels:
        debug_line(3, fused[kernel.name], kernel=kernel.name, colour="blue")
        debug_line(4, f"source {kernel.name}\n{kernel.source}", kernel=kernel.name, colour="blue")
        if kernel.name in code:
            debug_line(7, code[kernel.name], kernel=kernel.name, colour="blue")
