"""Products whose operands come to the chip by asynchronous stores, and where these meet banks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import emulated_cuda
import numpy as np
import pytest
from running import SPLITTING, Compiled, buffers, floats, interpreted, plan_of

from tinyc.codegen import gpu_contract
from tinyc.codegen.gpu_shape import PIPELINED, PIPELINED_MATRICES, WARP, Shape
from tinyc.codegen.interpret import run_kernels
from tinyc.codegen.threads import RaceError
from tinyc.composites import convolution, linear
from tinyc.ir import build as b
from tinyc.ir.dtype import DType, bf16, f16, f32, numbers, stored
from tinyc.ir.evaluate import evaluate
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Await,
    For,
    Load,
    LoopKernel,
    MicroMma,
    Stmt,
    Store,
    statements,
    transform,
)
from tinyc.ir.node import Node
from tinyc.runtime.device import get_device

TARGET = replace(SPLITTING, language="cuda", arch="sm_80", threads=256, shared=100 << 10, chunks=64,
                 tf32=True)
NEAR = {f16: 2e-3, bf16: 1e-2, f32: 2e-5}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch) -> None:
    """Tiles of 16 x 32 that have three stretches on the chip, so that small operands have edges."""
    monkeypatch.setattr(gpu_contract, "PIPELINED", (Shape(16, 32, 8, 4, 4, "", 3),))
    monkeypatch.setattr(gpu_contract, "PIPELINED_MATRICES", (Shape(16, 32, 16, 16, 16, "", 3),))


def product(m: int, n: int, k: int, dtype: DType, kind: str) -> tuple[list[Node], dict]:
    """max(a @ b, 0); a t in `kind` marks an operand that is stored transposed."""
    nodes, memory = buffers(*(stored(np.ascontiguousarray(x.T) if t == "t" else x, dtype)
                              for x, t in zip((floats(m, k), floats(k, n, seed=1)), kind)))
    x, y = (b.permute(v, (1, 0)) if t == "t" else v for v, t in zip(nodes, kind))
    return [b.maximum(linear.matmul(x, y), 0)], memory


def asks(kernel: LoopKernel) -> list[Store]:
    """The asynchronous stores of a kernel."""
    return [s for s in statements(kernel.body) if isinstance(s, Store) and s.asynchronous]


def check(graph: list[Node], memory: dict, near: float, target=TARGET) -> LoopKernel:
    """Compare the interpreted kernel of a graph with the evaluator; returns it."""
    dtype = graph[0].dtype
    for mine, theirs in zip(interpreted(graph, memory, target=target), evaluate(graph, memory)):
        np.testing.assert_allclose(numbers(mine, dtype), numbers(theirs, dtype), near, near)
    (kernel,) = [k for k in plan_of(graph, target=target).kernels if asks(k)]
    return kernel


@pytest.mark.parametrize("kind", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("m,n,k", [(20, 36, 43), (16, 32, 16), (17, 33, 7)])
def test_products_of_f32_in_any_layout(kind, m, n, k):
    check(*product(m, n, k, f32, kind), 2e-5, replace(TARGET, tf32=False))


@pytest.mark.parametrize("kind", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("dtype", [bf16, f32], ids=str)
def test_matrix_instructions_in_any_layout(dtype, kind):
    near = 5e-3 if dtype is f32 else NEAR[dtype]
    kernel = check(*product(20, 36, 54, dtype, kind), near)
    assert {s.kind for s in statements(kernel.body) if isinstance(s, MicroMma)} == {
        "tf32" if dtype is f32 else "bf16"}


def test_halves_that_do_not_lie_in_pairs_go_through_registers():
    graph, memory = product(17, 33, 21, bf16, "nn")
    (kernel,) = plan_of(graph, target=TARGET).kernels
    assert not asks(kernel)
    (mine,), (theirs,) = interpreted(graph, memory, target=TARGET), evaluate(graph, memory)
    np.testing.assert_allclose(numbers(mine, bf16), numbers(theirs, bf16), 1e-2, 1e-2)


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 1}])
def test_what_padding_adds_is_stored_as_zeros(options):
    nodes, memory = buffers(floats(2, 4, 7, 6), floats(18, 4, 3, 3, seed=1))
    check([convolution.conv(*nodes, **options)], memory, 1e-4, replace(TARGET, tf32=False))


def test_parts_of_the_depth_are_shorter_than_what_is_on_its_way(monkeypatch):
    monkeypatch.setattr(gpu_contract, "LEAST_DEPTH", 8)
    monkeypatch.setattr(gpu_contract, "LAUNCH", 0)
    for k in (16, 30, 70):
        kernel = check(*product(17, 20, k, f32, "nt"), 2e-5, replace(TARGET, tf32=False))
        assert kernel.finish


def test_who_does_not_wait_long_enough_meets_what_is_on_its_way():
    """Of three stretches two may be on their way while one is multiplied, not all."""
    graph, memory = product(16, 32, 40, f32, "nn")
    plan = plan_of(graph, target=replace(TARGET, tf32=False))
    (kernel,) = plan.kernels
    assert [s.pending for s in statements(kernel.body) if isinstance(s, Await)] == [1, 1, 1]
    slots = dict(zip(plan.slots, [*(x.reshape(-1) for x in memory.values()),
                                  np.zeros(16 * 32, np.float32)], strict=True))
    run_kernels([kernel], dict(slots))
    late = transform(kernel.body, lambda s: (Await(2) if isinstance(s, Await) else s,))
    with pytest.raises(RaceError, match="which is on its way"):
        run_kernels([replace(kernel, body=late)], dict(slots))


# -- emulated ------------------------------------------------------------------------------------


@pytest.fixture
def ampere(cuda, monkeypatch) -> str:
    """An emulated device with the instructions of sm_80."""
    device = get_device(cuda)
    target = replace(device.machine(), arch="sm_80")
    monkeypatch.setattr(device.driver, "machine", lambda: target)
    return cuda


@pytest.mark.parametrize("kind", ["nt", "tn"])
@pytest.mark.parametrize("dtype", [f16, bf16, f32], ids=str)
def test_generated_copies_compile_and_agree(ampere, monkeypatch, dtype, kind):
    monkeypatch.setattr(gpu_contract, "PIPELINED", (Shape(32, 64, 16, 4, 4, "", 3),))
    monkeypatch.setattr(gpu_contract, "PIPELINED_MATRICES", (Shape(32, 64, 32, 16, 32, "", 3),))
    for m, n, k in ((40, 72, 136), (33, 65, 50)):
        graph, memory = product(m, n, k, dtype, kind)
        compiled = Compiled(graph, device=ampere)
        nbytes = 4 if dtype is f32 and kind == "nt" else 16
        assert f"tc_copy<{nbytes}>" in compiled.program.source or m % 8
        (mine,), (theirs,) = compiled(memory), evaluate(graph, memory)
        near = NEAR[dtype]
        np.testing.assert_allclose(numbers(mine, dtype), numbers(theirs, dtype), near, 4 * near)


def test_the_emulator_shows_what_is_used_too_early(ampere, monkeypatch):
    graph, memory = product(16, 32, 40, f32, "nn")
    good = emulated_cuda.compiled
    monkeypatch.setattr(emulated_cuda, "compiled", lambda source, flags: good(
        source.replace("tc_await<1>()", "tc_await<2>()"), flags))
    (mine,), (theirs,) = Compiled(graph, device=ampere)(memory), evaluate(graph, memory)
    assert not np.allclose(mine, theirs, 1e-3)


# -- banks ---------------------------------------------------------------------------------------


def waves(addresses: Sequence[int], width: int) -> int:
    """Cycles in which shared memory serves one access of `width` bytes of each thread of a warp:
    threads that ask for 128 bytes at a time, a number of each of 32 banks in a cycle."""
    at_once = 128 // width
    total = 0
    for first in range(0, len(addresses), at_once):
        words = {a // 4 + i for a in addresses[first:first + at_once] for i in range(width // 4)}
        banks = [w % 32 for w in words]
        total += max(banks.count(bank) for bank in set(banks))
    return total


def evaluated(index: Affine, threads: Iterable[int], loop: Var) -> list[int]:
    """An index of several threads, where all other variables are 0."""
    return [index.evaluate({**dict.fromkeys(index.free_vars(), 0), loop: t}) for t in threads]


def in_loops(body: tuple[Stmt, ...], loops: tuple[For, ...],
             visit: Callable[[Store, tuple[For, ...]], None]) -> None:
    """Visit stores with the loops around them."""
    for s in body:
        if isinstance(s, Store):
            visit(s, loops)
        elif hasattr(s, "body"):
            in_loops(s.body, (*loops, s) if isinstance(s, For) else loops, visit)


def shared_access(s: Store) -> tuple[Affine, DType] | None:
    """Where one store touches shared memory, if it does."""
    if s.storage.role == "shared":
        return s.index, s.storage.dtype
    if isinstance(s.value, Load) and s.value.storage.role == "shared":
        return s.value.index, s.value.dtype
    return None


@pytest.mark.parametrize("kind", ["nn", "tt"])
@pytest.mark.parametrize("dtype", [bf16, f32, "tf32"], ids=str)
@pytest.mark.parametrize("number", range(8))
def test_threads_of_a_warp_do_not_wait_for_banks(monkeypatch, number, dtype, kind):
    shape = (PIPELINED if dtype is f32 else PIPELINED_MATRICES)[number]
    monkeypatch.setattr(gpu_contract, "PIPELINED", (shape,))
    monkeypatch.setattr(gpu_contract, "PIPELINED_MATRICES", (shape,))
    graph, _ = product(512, 512, 512, f32 if dtype == "tf32" else dtype, kind)
    target = replace(TARGET, tf32=dtype == "tf32", shared=500 << 10)
    (kernel,) = plan_of(graph, target=target).kernels
    seen: set[str] = set()

    def visit(s: Store, loops: tuple[For, ...]) -> None:
        lanes = loops[-1].var.extent if loops[-1].kind == "vector" else 1
        found = shared_access(s)
        if found is None:
            return
        (thread,) = (x.var for x in loops if x.kind == "thread")
        size = found[1].itemsize
        for first in {0, kernel.threads - WARP}:
            at = [i * size for i in evaluated(found[0], range(first, first + WARP), thread)]
            least = max(1, lanes * size // 4)
            narrow = s.asynchronous and min(shape.rows, shape.cols) * size < 128
            assert waves(at, lanes * size) <= least * (2 if narrow else 1), (s.storage, lanes)
            if not s.asynchronous:
                assert any(all(at[t] == at[t ^ step] for t in range(WARP)) for step in (1, 2)), (
                    "shared memory gives the same vector to two threads at once")
        seen.add("copies" if s.asynchronous else "reads")

    in_loops(kernel.body, (), visit)
    assert seen == ({"copies", "reads"} if dtype is f32 else {"copies"})
    for s in statements(kernel.body):
        if isinstance(s, MicroMma):
            check_fragments(s)


def check_fragments(s: MicroMma) -> None:
    """A matrix's lines of 16 bytes, or the numbers that a warp reads at once, have banks of their
    own."""
    for load, (own, deep) in ((s.a, s.a_steps), (s.b, s.b_steps)):
        size = load.dtype.itemsize
        if size == 2:
            line = own if deep == 1 else deep
            assert 1 in (own, deep) and line * size % 16 == 0
            assert waves([line * size * i for i in range(8)], 16) == 1
        else:
            lanes = [(lane // 4 * own + lane % 4 * deep) * size for lane in range(WARP)]
            assert waves(lanes, 4) == 1
