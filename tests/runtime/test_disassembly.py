"""DEBUG=7: the compiler's command and the machine code of loops."""

from __future__ import annotations

import shutil

import pytest

from tinyc import config
from tinyc.runtime import disassembly
from tinyc.runtime.disassembly import Instruction, innermost_loops
from tinyc.runtime.toolchain import Unit, load_library

SOURCE = """
void k0_scale(float *restrict x, long n) {
  for (long i = 0; i < n; i++) x[i] = x[i] * 3.0f + 1.0f;
}
"""


def listing(*lines: str) -> list[Instruction]:
    return [Instruction(int(line.split(":")[0], 16), line.split(":")[1]) for line in lines]


def test_only_loops_without_a_loop_inside_are_shown():
    text = listing("10:mov a,b", "14:add a,1", "18:jne 14 <k+4>", "1c:jmp 10 <k>", "20:ret")
    assert [[i.address for i in loop] for loop in innermost_loops(text)] == [[0x14, 0x18]]


def test_forward_jumps_are_no_loops():
    assert list(innermost_loops(listing("10:je 18 <k+8>", "14:nop", "18:ret"))) == []


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
def test_a_kernel_is_shown_with_its_command_and_loop(capsys):
    unit = Unit(SOURCE)
    _, path = load_library(unit)
    with config.debug(7):
        disassembly.show(unit, path, ["k0_scale"])
    shown = capsys.readouterr().err
    assert "compiled by: " in shown and " -O2 " in shown
    assert "k0_scale: loop of" in shown
