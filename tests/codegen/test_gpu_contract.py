"""Contractions on GPUs, run by the interpreter of blocks of threads, against the evaluator."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import product as every
from pathlib import Path

import numpy as np
import pytest
from running import SPLITTING, Compiled, buffers, floats, interpreted, plan_of

from tinyc.codegen import gpu_block, gpu_contract, gpu_parts
from tinyc.codegen.cuda import program as cuda_program
from tinyc.codegen.gpu_shape import Shape
from tinyc.codegen.gpu_sums import Sums
from tinyc.composites import attention, convolution, linear, reductions
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.dtype import DType, bf16, f16, f32, numbers, stored
from tinyc.ir.evaluate import evaluate
from tinyc.ir.index import Affine, Var
from tinyc.ir.loop import (
    Combine,
    Const,
    Contraction,
    For,
    Load,
    LoopKernel,
    MicroMma,
    Stmt,
    Storage,
    Store,
    loads_of,
    statements,
)
from tinyc.ir.node import Node
from tinyc.ir.program import GPU
from tinyc.ir.verify_loops import shared_storages
from tinyc.runtime.device import get_device
from tinyc.schedule import block, online

SMALL = replace(SPLITTING, language="opencl", threads=64, warp=8, shared=40 << 10, chunks=64)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch) -> None:
    """Tiles of 16 x 32, so that small operands have several and edges."""
    one = (Shape(16, 32, 8, 4, 4),)
    monkeypatch.setattr(gpu_contract, "PLAIN", one)
    monkeypatch.setattr(gpu_block, "SHAPES", one)


def check(graph: list[Node], memory: dict, near: float = 2e-5, target=SMALL) -> list[LoopKernel]:
    """Compare a graph's values with the evaluator's; returns its kernels."""
    for mine, theirs in zip(interpreted(graph, memory, target=target), evaluate(graph, memory)):
        np.testing.assert_allclose(mine, theirs, rtol=near, atol=near)
    return plan_of(graph, target=target).kernels


def product(m: int, n: int, k: int, kind: str = "nn") -> tuple[list[Node], dict]:
    """max(a @ b, 0); a t in `kind` marks an operand that is stored transposed."""
    arrays = (floats(m, k), floats(k, n, seed=1))
    nodes, memory = buffers(*(np.ascontiguousarray(x.T) if t == "t" else x
                              for x, t in zip(arrays, kind)))
    x, y = (b.permute(v, (1, 0)) if t == "t" else v for v, t in zip(nodes, kind))
    return [b.maximum(linear.matmul(x, y), 0)], memory


def vectors(kernel: LoopKernel) -> set[str]:
    """The roles of what a kernel moves whole vectors to and from."""
    found = set()
    for s in statements(kernel.body):
        if isinstance(s, For) and s.kind == "vector":
            found |= {x.storage.role for x in s.body if isinstance(x, Store)}
    return found


@pytest.mark.parametrize("kind", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("m,n,k", [(20, 36, 19), (32, 64, 16), (17, 33, 7)])
def test_tiles_cover_the_product_once(kind, m, n, k):
    (kernel,) = check(*product(m, n, k, kind))
    assert kernel.chunks == -(-m // 16) * -(-n // 32)
    assert kernel.threads == 32


def test_a_thread_has_each_sum_of_its_tile_once():
    shape = Shape(64, 128, 8, 8, 8)
    seen = set()
    sums = Sums(shape, Storage("sums", 64, f32, "register"), f32)
    t = Var("t", shape.threads)
    places = []
    sums.each(t, "x", lambda *place: places.append(place) or ())
    r, c, _, lane = places[0]
    i, j = (next(iter(x.free_vars() - {t})) for x in (r, c))
    for thread in range(shape.threads):
        for values in every(range(shape.high), range(shape.wide // 4), range(4)):
            env = dict(zip((i, j, lane), values)) | {t: thread}
            seen.add((r.evaluate(env), c.evaluate(env) + values[2]))
    assert shape.threads * shape.high * shape.wide == 64 * 128
    assert seen == {(i, j) for i in range(64) for j in range(128)}


@pytest.mark.parametrize("kind", ["nn", "tt"])
def test_the_depth_is_divided_where_there_are_few_tiles(monkeypatch, kind):
    monkeypatch.setattr(gpu_contract, "LEAST_DEPTH", 8)
    monkeypatch.setattr(gpu_contract, "LAUNCH", 0)
    graph, memory = product(17, 20, 30, kind)
    (kernel,) = check(graph, memory)
    assert kernel.chunks == 2 * 2, "parts of 16 points"
    assert kernel.last.extent == 2, "17 * 20 sums in blocks of 256"
    (few,) = plan_of(graph, target=replace(SMALL, chunks=2)).kernels
    assert few.chunks == 2 and not few.finish


@pytest.mark.parametrize("m,n,k", [(1, 36, 80), (3, 150, 20), (50, 2, 71)])
@pytest.mark.parametrize("kind", ["nn", "tn"])
def test_a_few_rows_or_columns(kind, m, n, k):
    check(*product(m, n, k, kind))


def test_numbers_move_as_vectors_where_they_lie_side_by_side():
    (kernel,) = plan_of(product(32, 64, 16)[0], target=SMALL).kernels
    assert vectors(kernel) == {"register", "shared", "slot"}
    (kernel,) = plan_of(product(32, 64, 16, "nt")[0], target=SMALL).kernels
    assert vectors(kernel) == {"register", "slot"}, "what runs along the depth is turned on its way"
    body = plan_of(product(31, 63, 15)[0], target=SMALL).kernels[0].body
    loads = {s.body[0].value.storage.role for s in statements(body)
             if isinstance(s, For) and s.kind == "vector"}
    assert loads == {"shared"}


def test_batches_are_divided_among_blocks():
    nodes, memory = buffers(floats(2, 3, 20, 9), floats(2, 3, 24, 9, seed=1))
    y = linear.matmul(nodes[0], b.permute(nodes[1], (0, 1, 3, 2)))
    (kernel,) = check([y], memory)
    assert kernel.chunks == 2 * 3 * 2


CONVOLUTIONS = [
    ((2, 2, 5, 6), (9, 2, 3, 3), {}),
    ((2, 2, 7, 6), (9, 2, 3, 3), {"stride": 2, "padding": 1}),
    ((1, 4, 5, 4), (18, 2, 3, 3), {"groups": 2, "padding": 1}),
    ((1, 1, 8, 7), (9, 1, 2, 2), {"dilation": 2, "padding": 1}),
]


@pytest.mark.parametrize("x,w,options", CONVOLUTIONS)
def test_convolutions_and_their_gradients(x, w, options):
    nodes, memory = buffers(floats(*x), floats(*w, seed=1))
    y = convolution.conv(*nodes, **options)
    check([y], memory)
    (a, c, d), memory = buffers(floats(*x), floats(*w, seed=1), floats(*y.shape, seed=2))
    y = convolution.conv(a, c, **options)
    check(list(vjp([y], [d], [a, c])), memory, 1e-4)


def attended(causal: bool, length: int, width: int) -> tuple[Node, list[Node], dict]:
    """(attention, the nodes it is made from and its cotangent, their memory)"""
    nodes, memory = buffers(*(floats(2, length, width, seed=i) for i in range(4)))
    return attention.attention(*nodes[:3], causal=causal), nodes, memory


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("l2", [1 << 20, 4 << 10])
def test_attention_is_one_kernel(causal, l2):
    y, _, memory = attended(causal, 64, 4)
    (kernel,) = check([y], {u: memory[u] for u in (1, 2, 3)}, target=replace(SMALL, l2=l2))
    (width,) = {s.width for s in statements(kernel.body) if isinstance(s, Combine) and s.width}
    assert width == 32, "a row for a group of threads"


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_attention(causal):
    y, (q, k, v, d), memory = attended(causal, 32, 4)
    check(list(vjp([y], [d], [q, k, v])), memory)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunks, parts", [(3, 2), (16, 4)])
def test_rows_of_attention_are_divided_where_heads_are_few(monkeypatch, chunks, parts, causal):
    """Two heads of four blocks of rows: as many parts as fill the machine."""
    monkeypatch.setattr(block, "MIN_ROWS", 4)
    monkeypatch.setattr(block, "EDGE_ROWS", 4)
    few = replace(SMALL, chunks=chunks, l2=1 << 10)
    y, (q, k, v, d), memory = attended(causal, 16, 4)
    (kernel,) = check([y], {u: memory[u] for u in (1, 2, 3)}, target=few)
    assert kernel.chunks == 2 * (parts if causal else 4) and not kernel.finish
    few = replace(few, chunks=2 * chunks)
    (kernel,) = check([y, *vjp([y], [d], [q, k, v])], memory, target=few)
    assert kernel.chunks == 2 * parts
    assert kernel.finish, "gradients of keys and values have a place for each part"


def test_enough_heads_are_not_divided(monkeypatch):
    monkeypatch.setattr(block, "MIN_ROWS", 4)
    monkeypatch.setattr(block, "EDGE_ROWS", 4)
    y, (q, k, v, d), memory = attended(True, 16, 4)
    (kernel,) = check([y, *vjp([y], [d], [q, k, v])], memory, target=replace(
        SMALL, chunks=2, l2=1 << 10))
    assert kernel.chunks == 2 and not kernel.finish


def test_parts_of_attention_agree_on_every_backend(monkeypatch, backend):
    monkeypatch.setattr(block, "MIN_ROWS", 8)
    monkeypatch.setattr(block, "EDGE_ROWS", 8)
    y, (q, k, v, d), memory = attended(True, 32, 8)
    graph = [y, *vjp([y], [d], [q, k, v])]
    compiled = Compiled(graph, device=backend)
    if get_device(backend).machine().threads > 1:
        first = compiled.program.launches[0]
        assert first.items >= 2 * 2 * first.threads, "heads x parts"
    for mine, theirs in zip(compiled(memory), evaluate(graph, memory)):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)


@pytest.fixture
def long_rows(monkeypatch):
    """Tiles of four rows and columns, as if no row fitted the chip."""
    monkeypatch.setattr(online, "MIN_TILE", 4)
    monkeypatch.setattr(block, "MIN_ROWS", 4)
    monkeypatch.setattr(online, "WIDER", 0)
    monkeypatch.setattr(online, "SHARE", 1 << 30)
    monkeypatch.setattr(online, "is_long", lambda *_: True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_long_attention_runs_in_tiles(long_rows, batch, causal):
    nodes, memory = buffers(*(floats(*batch, 16, 4, seed=i) for i in range(4)))
    y = attention.attention(*nodes[:3], causal=causal)
    kernels = check([y], {u: memory[u] for u in (1, 2, 3)})
    assert kernels[-1].chunks == 4 * (batch or (1,))[0], "heads x blocks of rows"
    kernels = check([y, *vjp([y], [nodes[3]], nodes[:3])], memory)
    assert kernels[-1].chunks == 4 * (batch or (1,))[0] and kernels[-1].finish


@pytest.mark.parametrize("which, odd", [(0, np.nan), (1, np.inf), (2, 3e38)])
def test_odd_numbers_in_tiles_stay_where_they_are(long_rows, odd, which):
    nodes, memory = buffers(*(floats(16, 4, seed=i) for i in range(4)))
    memory[1 + which][9, 1] = odd
    y = attention.attention(*nodes[:3], causal=True)
    with np.errstate(all="ignore"):
        check([y, *vjp([y], [nodes[3]], nodes[:3])], memory)


@pytest.mark.parametrize("heads", [1, 8])
@pytest.mark.parametrize("causal", [False, True])
def test_no_scores_of_long_sequences_are_kept(monkeypatch, heads, causal):
    monkeypatch.undo()
    nodes = [b.buffer(uid, 0, (1, heads, 16384, 64), f32, "cpu") for uid in range(1, 5)]
    y = attention.attention(*nodes[:3], causal=causal)
    plan = plan_of([y], target=LARGE)
    assert plan.arena_size < 1 << 16 and plan.kernels[-1].chunks >= 256
    plan = plan_of([y, *vjp([y], [nodes[3]], nodes[:3])], target=LARGE)
    assert plan.arena_size < (512 << 20) + (1 << 26)
    assert plan.kernels[-1].chunks == 64


def test_tiles_of_attention_agree_on_every_backend(long_rows, backend):
    nodes, memory = buffers(*(floats(24, 8, seed=i) for i in range(4)))
    y = attention.attention(*nodes[:3], causal=True)
    graph = [y, *vjp([y], [nodes[3]], nodes[:3])]
    for mine, theirs in zip(Compiled(graph, device=backend)(memory), evaluate(graph, memory)):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("carried", [False, True])
def test_rows_that_carry_something_on_are_not_divided(carried):
    """for r: sums[0] (+)= x[r] * x[r] + ...; y[r] = sums[0]: a prefix sum has one order."""
    x, y = Storage("x", 8, f32, "slot"), Storage("y", 8, f32, "slot")
    sums, tile = Storage("sums", 1, f32, "scratch"), Storage("tile", 1, f32, "tile")
    r, k, one, zero = Var("r", 8), Var("k", 1), Var("one", 1), Affine.const_of(0)
    load = Load(x, Affine.of(r) + Affine.of(k))
    add = Store(sums, zero, Load(tile, zero), "sum" if carried else None)
    product = Contraction((one,), (), (k,), load, load, tile, (add,))
    body = (Store(Storage("n", 1, f32, "register"), zero, Const(0.0, f32)),
            For(r, (product, Store(y, Affine.of(r), Load(sums, zero)))))
    kernel = LoopKernel("k", body, (), Var("chunk", 1))
    assert (gpu_parts.in_parts(kernel, SMALL) is kernel) == carried


def test_odd_numbers_stay_where_they_are_in_parts(monkeypatch):
    """A huge value of V makes all columns count, in every part."""
    monkeypatch.setattr(block, "MIN_ROWS", 4)
    monkeypatch.setattr(block, "EDGE_ROWS", 4)
    y, (q, k, v, d), memory = attended(True, 16, 4)
    memory[3][0, 13, 0], memory[1][1, 6, 2] = np.inf, np.nan
    with np.errstate(all="ignore"):
        check([y, *vjp([y], [d], [q, k, v])], memory, target=replace(SMALL, l2=1 << 10))


def test_rows_of_a_product_are_summed_in_its_kernel():
    """Sums, maxima and maps beside products: one loop over a batch holds all."""
    nodes, memory = buffers(floats(3, 18, 10), floats(3, 10, 20, seed=1))
    y = reductions.softmax(linear.matmul(*nodes), 2)
    kernels = check([y, reductions.max_(y, (1, 2))], memory)
    assert len(kernels) == 1


def test_numbers_that_are_not_finite_stay_where_they_are():
    graph, memory = product(20, 36, 19)
    memory[1][3, 5], memory[1][18, 18], memory[2][0, 35] = np.nan, np.inf, -np.inf
    check(graph, memory)


# -- matrix instructions -------------------------------------------------------------------------

MATRICES = replace(SMALL, language="cuda", arch="sm_90", threads=256)


def product_of(m: int, n: int, k: int, dtype: DType, kind: str = "nn") -> tuple[list[Node], dict]:
    """a @ b of numbers of a dtype; a t in `kind` marks an operand that is stored transposed."""
    arrays = (floats(m, k), floats(k, n, seed=1))
    nodes, memory = buffers(*(stored(np.ascontiguousarray(x.T) if t == "t" else x, dtype)
                              for x, t in zip(arrays, kind)))
    x, y = (b.permute(v, (1, 0)) if t == "t" else v for v, t in zip(nodes, kind))
    return [linear.matmul(x, y)], memory


def kinds(kernel: LoopKernel) -> set[str]:
    """What a kernel's matrix instructions multiply."""
    return {s.kind for s in statements(kernel.body) if isinstance(s, MicroMma)}


@pytest.mark.parametrize("kind", ["nt", "tn"])
@pytest.mark.parametrize("dtype", [f16, bf16, f32], ids=str)
def test_warps_multiply_by_matrix_instructions(monkeypatch, dtype, kind):
    monkeypatch.setattr(gpu_contract, "MATRICES", (Shape(16, 32, 16, 16, 16),))
    graph, memory = product_of(18, 20, 9, dtype, kind)
    target = replace(MATRICES, tf32=True)
    (kernel,) = plan_of(graph, target=target).kernels
    assert kinds(kernel) == {"tf32" if dtype is f32 else dtype.name}
    (mine,), (theirs,) = interpreted(graph, memory, target=target), evaluate(graph, memory)
    near = {f16: 2e-3, bf16: 1e-2, f32: 5e-3}[dtype]
    np.testing.assert_allclose(numbers(mine, dtype), numbers(theirs, dtype), rtol=near, atol=near)


def test_matrix_instructions_are_for_halves_and_where_f32_may_be_rounded():
    def used(dtype: DType, **options) -> set[str]:
        graph, _ = product_of(64, 64, 64, dtype)
        return kinds(plan_of(graph, target=replace(MATRICES, **options)).kernels[0])

    assert used(bf16) == {"bf16"} and used(f16) == {"f16"}
    assert used(f32) == set(), "by default nothing is rounded"
    assert used(f32, tf32=True) == {"tf32"}
    assert used(bf16, arch="sm_75") == set()
    assert used(bf16, language="opencl") == set()


@pytest.mark.parametrize("kind", ["nn", "tt"])
@pytest.mark.parametrize("dtype", [f16, bf16, f32], ids=str)
def test_generated_matrix_instructions_compile_and_agree(cuda, monkeypatch, dtype, kind):
    """The emulator has functions of its own for what instructions do; nvcc compiles ours."""
    device = get_device(cuda)
    target = replace(device.machine(), arch="sm_80", tf32=True)
    monkeypatch.setattr(device.driver, "machine", lambda: target)
    graph, memory = product_of(70, 100, 50, dtype, kind)
    compiled = Compiled(graph, device=cuda)
    assert f"tc_mma_{'tf32' if dtype is f32 else dtype.name}<" in compiled.program.source
    (mine,), (theirs,) = compiled(memory), evaluate(graph, memory)
    near = {f16: 2e-3, bf16: 1e-2, f32: 5e-3}[dtype]
    np.testing.assert_allclose(numbers(mine, dtype), numbers(theirs, dtype), rtol=near, atol=4*near)


# -- what compilers make of it -------------------------------------------------------------------

LARGE = replace(GPU, language="cuda", shared=227 << 10, arch="sm_90")


def resources(graph: list[Node], folder: Path, target=LARGE) -> list[tuple[int, int]]:
    """(registers of a thread, bytes that do not fit them) of each function of a graph's program."""
    plan = plan_of(graph, target=target)
    source, _ = cuda_program(plan.kernels, plan.slots)
    (folder / "program.cu").write_text(source.text)
    line = ["nvcc", "-cubin", "-arch=sm_90", "-std=c++17", "-w", "-Xptxas", "-v", "program.cu"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True)
    text = done.stdout + done.stderr
    spilled = map(int, re.findall(r"(\d+) bytes spill stores", text))
    return list(zip(map(int, re.findall(r"Used (\d+) registers", text)), spilled, strict=True))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("dtype", [f32, bf16, "tf32"], ids=str)
def test_the_sums_of_large_tiles_stay_in_registers(monkeypatch, tmp_path, dtype):
    """Blocks that are to share a multiprocessor have room there."""
    monkeypatch.undo()
    kind, target = ("nt", replace(LARGE, tf32=True)) if dtype == "tf32" else ("nn", LARGE)
    a, c = (b.buffer(uid, 0, (4096, 4096), f32 if dtype == "tf32" else dtype, "cpu")
            for uid in (1, 2))
    c = b.permute(c, (1, 0)) if kind == "nt" else c
    graph = [linear.matmul(a, c)]
    (kernel,) = plan_of(graph, target=target).kernels
    assert kernel.threads * kernel.resident >= 256
    assert kernel.resident * sum(s.nbytes + 1024 for s in shared_storages(kernel.body)) <= 228 << 10
    ((registers, spilled),) = resources(graph, tmp_path, target)
    assert registers <= 65536 // (kernel.threads * kernel.resident) and spilled == 0


def test_a_thread_loads_a_quarter_of_a_number_from_the_chip_for_each_product(monkeypatch):
    monkeypatch.undo()
    a, c = (b.buffer(uid, 0, (4096, 4096), f32, "cpu") for uid in (1, 2))
    (kernel,) = plan_of([linear.matmul(a, c)], target=LARGE).kernels
    (step,) = [s for s in statements(kernel.body) if isinstance(s, For)
               and s.kind == "unroll" and s.var.name.startswith("k_")]
    read = times(step.body, lambda s: any(x.storage.role == "shared" for x in loads_of(s)))
    products = times(step.body, lambda s: isinstance(s, Store) and s.accumulate == "sum")
    assert (read, products) == (16, 64)
    assert all(s.kind == "vector" for s in statements(step.body) if isinstance(s, For)
               and any(x.storage.role == "shared" for t in s.body for x in loads_of(t)))


def times(body: tuple[Stmt, ...], counts: Callable[[Stmt], bool]) -> int:
    """How often statements run that are to be counted."""
    return sum(s.var.extent * times(s.body, counts) if isinstance(s, For) else int(counts(s))
               for s in body)
