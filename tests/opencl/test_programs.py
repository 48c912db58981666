"""The text of OpenCL programs for CPUs."""

from __future__ import annotations

import re

from running import Compiled, buffers, floats

from tinyc.ir import build as b


def test_the_text_has_vectors_and_neither_barriers_nor_local_memory(opencl):
    (x, y), _ = buffers(floats(64, 64), floats(64, 64))
    program = Compiled([b.contract(x, y, (0, 1), (1, 2), (0, 2))], device=opencl).program
    assert re.search(r"\bfloat(4|8|16) c0_0", program.source)
    assert "barrier" not in program.source and "__local" not in program.source
    assert {launch.kernel for launch in program.launches} == set(range(len(program.kernels)))
