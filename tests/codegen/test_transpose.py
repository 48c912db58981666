"""Maps that read across their rows: in tiles that registers transpose, and equal to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from running import Compiled, Memory, buffers, interpreted, plan_of

from tinyc.ir import build as b
from tinyc.ir.evaluate import evaluate
from tinyc.ir.loop import Prefetch, statements
from tinyc.ir.node import Node
from tinyc.ir.program import CPU

ORDERS = [
    ((70, 133), (1, 0)),
    ((17, 8), (1, 0)),
    ((16, 300), (1, 0)),
    ((300, 16), (1, 0)),
    ((5, 33, 6, 7), (0, 2, 3, 1)),
    ((5, 6, 7, 33), (0, 3, 1, 2)),
    ((70, 14, 67), (2, 1, 0)),
    ((30, 40, 23), (1, 2, 0)),
    ((5, 65, 4, 9), (3, 2, 1, 0)),
]
DTYPES = [np.float32, np.float64, np.uint8, np.bool_, np.int16, np.int64]


def numbers(shape: tuple[int, ...], dtype: type, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def packs(compiled: Compiled) -> int:
    """How often the program calls a transposing copy."""
    return sum(k.source.count(" tc_pack_") for k in compiled.program.kernels)


def check(out: Node, memory: Memory, split: bool = True) -> Compiled:
    """The compiled program, whose results are those of the evaluator, exactly."""
    compiled = Compiled([out], split=split)
    (got,), (want,) = compiled(memory), evaluate([out], memory)
    np.testing.assert_array_equal(got, want)
    return compiled


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize(("shape", "order"), ORDERS, ids=str)
def test_permutations_are_copied_in_tiles(shape: tuple, order: tuple, dtype: type) -> None:
    (x,), memory = buffers(numbers(shape, dtype))
    assert packs(check(b.materialize(b.permute(x, order)), memory)) >= 1


@pytest.mark.parametrize("split", [False, True])
def test_the_interpreter_agrees(split: bool) -> None:
    (x,), memory = buffers(numbers((35, 21), np.float32))
    out = b.materialize(b.permute(x, (1, 0)))
    (got,) = interpreted([out], memory)
    np.testing.assert_array_equal(got, memory[1].T)
    check(out, memory, split)


def test_what_is_computed_before_and_after_is_in_the_same_kernel() -> None:
    arrays = [numbers(s, np.float32, i) for i, s in enumerate([(70, 90), (70, 90), (90, 70)])]
    (x, y, z), memory = buffers(*arrays)
    compiled = check(b.add(b.permute(b.mul(x, y), (1, 0)), z), memory)
    assert len(compiled.program.kernels) == 1
    assert compiled.program.bytes_moved == 4 * 4 * 70 * 90
    assert packs(compiled) % 2 == 0


def test_a_part_of_a_matrix() -> None:
    (x,), memory = buffers(numbers((90, 120), np.float32))
    part = b.slice_(x, (3, 7), (80, 101))
    assert packs(check(b.add(b.permute(part, (1, 0)), 1), memory)) >= 1


def test_rows_that_stay_rows_are_not_turned() -> None:
    (x,), memory = buffers(numbers((4, 20, 6, 32), np.float32))
    assert packs(check(b.materialize(b.permute(x, (0, 2, 1, 3))), memory)) == 0


def test_what_pads_reads_its_own_way() -> None:
    (x,), memory = buffers(numbers((40, 50), np.float32))
    padded = b.pad(b.permute(x, (1, 0)), (1, 2), (1, 0))
    assert packs(check(b.materialize(padded), memory)) == 0


def test_a_tile_asks_for_the_rows_of_the_next() -> None:
    (x,), memory = buffers(numbers((200, 300), np.float32))
    out = b.materialize(b.permute(x, (1, 0)))

    def asked(l2: int) -> list[Prefetch]:
        (kernel,) = plan_of([out], target=replace(CPU, l2=l2)).kernels
        return [s for s in statements(kernel.body) if isinstance(s, Prefetch)]

    assert len(asked(200 * 300 * 4 - 1)) == 64 * 4 // 64, "each line of a row of a whole tile"
    assert not asked(200 * 300 * 4)
    np.testing.assert_array_equal(Compiled([out], l2=1)(memory)[0], memory[1].T)


def test_every_thread_has_tiles() -> None:
    """Chunks divide the longer side where the outer one has too few tiles for all."""
    (x,), memory = buffers(numbers((4000, 16), np.float32))
    compiled = check(b.materialize(b.permute(x, (1, 0))), memory)
    (kernel,) = compiled.program.kernels
    assert kernel.chunks > 1
    assert f"62L / {kernel.chunks}" in kernel.source
