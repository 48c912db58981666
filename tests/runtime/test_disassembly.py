"""DEBUG=7: the compiler's command and the machine code of loops."""

from __future__ import annotations

import re
import shutil

import pytest
from running import Compiled, buffers, floats

from tinyc.composites import activation, linear
from tinyc.ir import build as b
from tinyc.runtime import disassembly
from tinyc.runtime.disassembly import Instruction, innermost_loops


def listing(*lines: str) -> list[Instruction]:
    return [Instruction(int(line.split(":")[0], 16), line.split(":")[1]) for line in lines]


def test_only_loops_without_a_loop_inside_are_shown():
    text = listing("10:mov a,b", "14:add a,1", "18:jne 14 <k+4>", "1c:jmp 10 <k>", "20:ret")
    assert [[i.address for i in loop] for loop in innermost_loops(text)] == [[0x14, 0x18]]


def test_forward_jumps_are_no_loops():
    assert list(innermost_loops(listing("10:je 18 <k+8>", "14:nop", "18:ret"))) == []


def test_code_that_jumps_back_from_behind_a_return_is_no_loop():
    text = listing("10:mov a,b", "14:jne 14 <k+4>", "18:ret", "1c:xor a,a", "20:jmp 10 <k>")
    assert [len(loop) for loop in innermost_loops(text)] == [1]


def test_the_longest_loop_of_a_line_is_shown_without_addresses():
    loop = [
        Instruction(16, "vmulps 0x10(%rip),%ymm1  # 2040 <x>", 7),
        Instruction(20, "je 99 <k+9>", 7),
        Instruction(24, "jne 10 <k+4>", 8),
    ]
    rest = [Instruction(40, "mulss", 7), Instruction(44, "jne 28 <k+4>", 7)]
    elsewhere = [Instruction(60, "nop", 9), Instruction(64, "jmp 3c <k+2c>", 9)]
    shown = disassembly.hot_loops([[*loop, *rest], elsewhere], {7: "k", 8: "k"})
    assert shown == {7: ["vmulps CONSTANT,%ymm1", "je out", "jne loop"]}


def test_a_function_has_an_extent():
    lines = ["static void k1(void *t);", "TC_KERNEL void k0(void *t) {", " x", "}", "}"]
    assert disassembly.extent(lines, "k0") == range(2, 5)
    assert not disassembly.extent(lines, "k1")


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
@pytest.mark.cpu("machine code of C")
def test_a_kernel_is_shown_with_its_command_and_loop():
    (x, w), _ = buffers(floats(64, 64), floats(64, 64))
    graph = [activation.relu(linear.linear(x, w)), b.mul(b.add(x, 1.0), x)]
    compiled = Compiled(graph)
    library = compiled.executable.native.library
    texts = disassembly.texts(compiled.program, library)
    assert " -O2 " in texts[""] and texts[""].endswith(str(library.parent))
    assert list(texts)[1:] == [kernel.name for kernel in compiled.program.kernels]
    for kernel in compiled.program.kernels:
        text = texts[kernel.name]
        assert text.startswith(f"machine code {kernel.name}\n")
        assert re.search(r"  loop of \d+ instructions in k?\w+: .*\w", text)
    assert any("tc_tile_f32" in text for text in texts.values())
    assert not re.search(r"\b[0-9a-f]+ <", "".join(texts.values()))


def test_lines_that_code_was_inlined_into_are_known():
    listing = """\
0000000000001a30 <k0_exp>:
k0_exp():
/tmp/x/program.c:40
    1a30:\tpush   %rbp
tc_exp_f32():
/tmp/x/program.c:7
inlined by /tmp/x/program.c:44 (k0_exp)
    1a34:\tvmovss 0x255a(%rip),%xmm4        # 4034 <_fini+0x5e8>
inlined by /tmp/x/program.c:44 (k0_exp)
    1a38:\tvaddss %xmm4,%xmm4,%xmm4
tc_low():
/tmp/x/program.c:3
inlined by /tmp/x/program.c:8 (tc_exp_f32)
inlined by /tmp/x/program.c:45 (k0_exp)
    1a40:\tnop
0000000000001a50 <other>:
    1a50:\tret
""".splitlines()
    code, other = disassembly.functions_of(listing)
    assert [i.line for i in code] == [40, 7, 7, 3]
    assert [i.callers for i in code] == [(), (44,), (44,), (8, 45)]
    assert [i.line_in(range(40, 50)) for i in code] == [40, 44, 44, 45]
    assert [i.line_in(range(1, 10)) for i in code] == [0, 7, 7, 8]
    assert [(i.address, i.line, i.line_in(range(40, 50))) for i in other] == [(0x1A50, 0, 0)]
