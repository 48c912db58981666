"""GPU recipes, run by the interpreter of blocks of threads, against the evaluator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_graphs import Graph, assert_same, grow, outputs_of, tolerance
from running import BLOCKS, Compiled, buffers, floats, interpreted, plan_of

from tinyc.codegen.interpret import run_kernels
from tinyc.codegen.rebase import accesses
from tinyc.codegen.threads import RaceError
from tinyc.composites.normalization import layer_norm
from tinyc.composites.reductions import softmax
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.dtype import f32
from tinyc.ir.evaluate import evaluate
from tinyc.ir.index import Affine
from tinyc.ir.loop import (
    Barrier,
    Combine,
    For,
    LoopKernel,
    Storage,
    Store,
    loads_of,
    statements,
    transform,
)
from tinyc.ir.node import Node
from tinyc.ir.program import GPU, Target
from tinyc.ir.verify_loops import shared_storages
from tinyc.schedule.memory import kernel_accesses

GRAPHS = 40


def random_graph(seed: int) -> tuple[Graph, list[Node]]:
    r = np.random.default_rng(seed)
    g = Graph(lambda n: int(r.integers(0, n)))
    g.special = seed % 4 == 0
    grow(g, 6 + seed % 10)
    return g, outputs_of(g, 1 + seed % 4)


@pytest.mark.parametrize("seed", [*range(GRAPHS), 189])
def test_random_graphs_agree_with_the_evaluator(seed):
    g, outputs = random_graph(seed)
    want = evaluate(outputs, g.memory)
    near = tolerance(g, outputs, want)
    for fuse in (True, False):
        got = interpreted(outputs, g.memory, fuse, target=BLOCKS)
        for i, (mine, theirs) in enumerate(zip(got, want, strict=True)):
            assert_same(mine, theirs, near, f"output {i} of graph {seed}")


def gpu_kernels(outputs: list[Node]) -> list[LoopKernel]:
    return plan_of(outputs, target=GPU).kernels


def kernel_storages(kernel: LoopKernel) -> set[Storage]:
    reads, writes = kernel_accesses(kernel)
    return {*reads, *writes}


def kinds(kernel: LoopKernel) -> set[str]:
    return {s.kind for s in statements(kernel.body) if isinstance(s, For)}


def check(outputs: list[Node], memory: dict[int, np.ndarray], target: Target = BLOCKS) -> None:
    want = evaluate(outputs, memory)
    for mine, theirs in zip(interpreted(outputs, memory, target=target), want, strict=True):
        np.testing.assert_allclose(mine, theirs, 1e-4, 1e-5)


def test_a_map_gives_each_thread_a_vector():
    (x, y), memory = buffers(floats(12, 20), floats(12, 20))
    outputs = [b.mul(b.exp(x), b.add(y, x))]
    check(outputs, memory)
    (large,), _ = buffers(floats(512, 1024))
    (kernel,) = gpu_kernels([b.exp(large)])
    assert (kernel.chunks, kernel.threads) == (512, 256)
    assert kinds(kernel) == {"chunk", "thread", "vector"}


def test_a_map_whose_rows_are_no_vectors_has_none():
    (x,), memory = buffers(floats(13, 7))
    outputs = [b.exp(b.slice_(x, (0, 1), (13, 6), (1, 1)))]
    check(outputs, memory)
    assert "vector" not in kinds(gpu_kernels(outputs)[0])


@pytest.mark.parametrize("shape", [(5, 32), (3, 1000), (300, 6), (1, 7), (40, 1)], ids=str)
def test_softmax_and_its_gradient_are_one_launch_each(shape):
    (x, g), memory = buffers(floats(*shape), floats(*shape, seed=1))
    y = softmax(x, -1)
    outputs = [y, *vjp([y], [g], [x])]
    check(outputs, memory)
    for kernel in gpu_kernels([y]):
        assert not kernel.finish
    assert len(gpu_kernels([y])) == 1


def test_the_threads_of_a_row_wait_only_where_others_read_what_they_wrote():
    (x,), _ = buffers(floats(64, 1024))
    (kernel,) = gpu_kernels([softmax(x, -1)])
    found = list(statements(kernel.body))
    assert sum(isinstance(s, Combine) for s in found) == 2
    assert not any(isinstance(s, Barrier) for s in found)


@pytest.mark.parametrize("columns", [1024, 4096, 1000, 24])
def test_a_row_is_read_once_and_stays_in_registers(columns):
    """As many threads as have 16 numbers each, if there may be as many."""
    (kernel,) = gpu_kernels([softmax(b.buffer(1, 0, (1 << 14, columns), f32, "cpu"), -1)])
    loads = [x.storage.role for s in statements(kernel.body) for x in loads_of(s)]
    assert loads.count("slot") == 1 and "shared" not in loads
    assert kernel.threads == max(32, 1 << (columns // 16 - 1).bit_length())


def test_a_row_that_registers_do_not_hold_stays_in_memory():
    (x,), memory = buffers(floats(3, 300))
    outputs = [softmax(x, -1)]
    check(outputs, memory)
    (kernel,) = plan_of(outputs, target=BLOCKS).kernels
    loads = [x.storage.role for s in statements(kernel.body) for x in loads_of(s)]
    assert loads.count("slot") == 2 and "shared" in loads


@pytest.mark.parametrize("rows, columns", [(5, 200), (4, 90), (6, 7)])
def test_rows_in_registers_agree_on_every_backend(backend, rows, columns):
    """Rounds of vectors, rounds that are not full, one round."""
    (x, g), memory = buffers(floats(rows, columns), floats(rows, columns, seed=1))
    y = softmax(x, -1)
    outputs = [y, *vjp([y], [g], [x])]
    for mine, theirs in zip(Compiled(outputs, device=backend)(memory), evaluate(outputs, memory)):
        np.testing.assert_allclose(mine, theirs, 1e-4, 1e-5)


@pytest.mark.parametrize("shape", [(9, 16), (70, 24), (33, 5)], ids=str)
def test_layer_norm_and_its_gradients(shape):
    memory_of = floats(*shape), floats(shape[1], seed=1), floats(shape[1], seed=2)
    (x, w, c, g), memory = buffers(*memory_of, floats(*shape, seed=3))
    y = layer_norm(x, (shape[1],), w, c)
    check([y, *vjp([y], [g], [x, w, c])], memory)


def test_numbers_of_a_row_do_not_go_through_memory():
    (x, w, c), _ = buffers(floats(64, 1024), floats(1024), floats(1024))
    (kernel,) = gpu_kernels([layer_norm(x, (1024,), w, c)])
    assert not any(isinstance(s, Barrier) for s in statements(kernel.body))
    assert sum(isinstance(s, Combine) for s in statements(kernel.body)) == 2


@pytest.mark.parametrize("shape, axes", [
    ((500,), (0,)), ((4, 300), (0, 1)), ((90, 12), (0,)), ((7, 5, 30), (0, 2)), ((2, 2000), (1,)),
    ((3000, 3), (0,))], ids=str)
def test_sums_over_all_blocks(shape, axes):
    (x,), memory = buffers(floats(*shape))
    check([b.sum_(x, axes), b.max_(x, axes)], memory)


def test_columns_are_summed_in_registers_and_in_the_end_by_a_block_each():
    (x,), _ = buffers(floats(4096, 96))
    (kernel,) = gpu_kernels([b.sum_(x, (0,))])
    assert kernel.chunks > 50 and kernel.last.extent == 96
    (row,) = [s for s in statements(kernel.body) if isinstance(s, For) and s.var.name == "share"]
    assert all(s.storage.role == "register" for s in row.body if isinstance(s, Store))


@pytest.mark.parametrize("shape, order", [
    ((40, 70), (1, 0)), ((64, 32), (1, 0)), ((3, 33, 17), (0, 2, 1)), ((9, 3, 40), (2, 1, 0))],
    ids=str)
def test_transposes_go_through_tiles(shape, order):
    (x,), memory = buffers(floats(*shape))
    outputs = [b.add(b.permute(x, order), 1)]
    check(outputs, memory, replace(BLOCKS, shared=16 << 10))
    (kernel,) = gpu_kernels(outputs)
    assert any(isinstance(s, Barrier) for s in statements(kernel.body))
    for loop in statements(kernel.body):
        if isinstance(loop, For) and loop.kind == "thread":
            for storage, index in (place for s in statements(loop.body) for place in accesses(s)):
                first, second = (index.substitute({loop.var: Affine.const_of(k)}) for k in (0, 1))
                assert storage.role == "shared" or second - first == Affine.const_of(1)


@pytest.mark.parametrize("rows, columns, updates", [
    (6, 5, 40), (50, 3, 7), (4, 300, 9), (9, 1, 33)])
def test_a_scatter_has_blocks_that_own_rows_and_is_exact(rows, columns, updates):
    index = np.random.default_rng(0).integers(0, rows, updates)
    (u, i), memory = buffers(floats(updates, columns), index)
    outputs = [b.scatter_add(u, i, 0, rows)]
    check(outputs, memory)
    (kernel,) = gpu_kernels(outputs)
    assert kernel.threads == GPU.warp
    assert not any(s.atomic for s in statements(kernel.body) if isinstance(s, Store))


ANY_ORDER = replace(BLOCKS, atomics=True)


@pytest.mark.parametrize(
    "shape, axis", [((300, 5), 0), ((4, 400), 1), ((900,), 0), ((2, 150, 8), 1)], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u4", "i8", "u1"])
def test_updates_are_added_atomically_where_that_is_allowed(shape, axis, dtype):
    index = np.random.default_rng(0).integers(0, 7, shape[axis])
    (u, i), memory = buffers((10 * floats(*shape)).astype("i8").astype(dtype), index)
    outputs = [b.scatter_add(u, i, axis, 7)]
    known = dtype in ("f4", "i4", "u4")
    for target, atomic in ((ANY_ORDER, known), (BLOCKS, False), (
            replace(ANY_ORDER, language="cuda"), dtype != "u1")):
        (kernel,) = plan_of(outputs, target=target).kernels
        adds = [s for s in statements(kernel.body + kernel.finish)
                if isinstance(s, Store) and s.accumulate]
        assert adds and all(s.atomic == atomic for s in adds)
        (want,) = evaluate(outputs, memory)
        (found,) = interpreted(outputs, memory, target=target)
        np.testing.assert_allclose(found, want, 1e-5, 1e-4)


def test_a_remark_says_how_updates_are_added_and_why():
    def told(updates: int, dtype: str, target: Target) -> tuple[str, str]:
        (u, i), _ = buffers(np.ones((updates, 4), dtype), np.zeros(updates, np.int64))
        found = plan_of([b.scatter_add(u, i, 0, 9)], target=target).remarks
        (remark,) = [r for r in found if r.pass_name == "lower"]
        return remark.kind, remark.message

    assert told(500, "f4", ANY_ORDER) == (
        "applied", "updates are added atomically, in any order: TINYC_DETERMINISTIC=0")
    owned = "updates are added in order, by the block that owns the row, "
    assert told(500, "f4", BLOCKS) == ("analysis", owned + (
        "so that results are the same bits on every run; TINYC_DETERMINISTIC=0 allows others"))
    assert told(500, "f8", ANY_ORDER)[1] == owned + "since opencl adds no f64 atomically"
    assert told(20, "f4", ANY_ORDER)[1] == owned + (
        "since there are 20, which are soon looked through")


def test_atomic_additions_that_meet_other_accesses_are_races():
    (u, i), memory = buffers(floats(300, 4), np.zeros(300, np.int64))
    (kernel,) = plan_of([b.scatter_add(u, i, 0, 9)], target=ANY_ORDER).kernels
    slots = {s: memory.get(k, np.zeros((9, 4), np.float32)).reshape(-1)
             for k, s in enumerate(sorted(kernel_storages(kernel), key=lambda s: s.name), 1)}
    run_kernels([kernel], slots, None)
    plain = replace(kernel, finish=transform(kernel.finish, lambda s: (
        replace(s, atomic=False) if isinstance(s, Store) else s,)))
    with pytest.raises(RaceError, match="meet"):
        run_kernels([plain], slots, None)


def test_a_kernel_never_needs_more_memory_on_the_chip_than_there_is():
    (x,), memory = buffers(floats(6, 90))
    outputs = [softmax(x, -1)]
    for shared in (64, 256, 512, 4096):
        target = replace(BLOCKS, shared=shared)
        check(outputs, memory, target)
        for kernel in plan_of(outputs, target=target).kernels:
            assert sum(s.nbytes for s in shared_storages(kernel.body)) <= shared


def test_blocks_do_not_depend_on_what_runs_and_results_are_the_same_bits():
    (x,), memory = buffers(floats(70, 50))
    outputs = [b.sum_(b.exp(x), (0,)), b.sum_(x, (0, 1))]
    first = interpreted(outputs, memory, target=BLOCKS)
    for mine, theirs in zip(first, interpreted(outputs, memory, target=BLOCKS), strict=True):
        np.testing.assert_array_equal(mine, theirs)
