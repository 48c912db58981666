"""The same graphs on every kind of device: numbers of the evaluator, kernels and losses of C."""

from __future__ import annotations

import re

import numpy as np
import pytest
from kernels_of_gpus import graphs
from random_graphs import Graph, assert_same, grow, outputs_of, tolerance
from running import Compiled, buffers, floats
from training_steps import benchmarks, case_of

import tinyc
from tinyc import Tensor, compiler, config, nn
from tinyc.composites import linear, reductions
from tinyc.diagnostics import BoundsError
from tinyc.ir import build as b
from tinyc.ir import dtype as d
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node

GRAPHS = 40


def random_graph(seed: int) -> tuple[Graph, list[Node]]:
    r = np.random.default_rng(seed)
    g = Graph(lambda n: int(r.integers(0, n)))
    g.special = seed % 4 == 0
    grow(g, 6 + seed % 10)
    return g, outputs_of(g, 1 + seed % 4)


@pytest.mark.parametrize("seed", range(GRAPHS))
def test_random_graphs_agree_with_the_evaluator(backend, seed):
    g, outputs = random_graph(seed)
    want = evaluate(outputs, g.memory)
    near = tolerance(g, outputs, want)
    got = Compiled(outputs, split=seed % 2 == 1, device=backend)(g.memory)
    for i, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert_same(mine, theirs, near, f"output {i} of graph {seed}")


@pytest.mark.parametrize("name", graphs())
def test_every_kind_of_kernel_gives_the_same_bits_again(backend, name):
    outputs, memory = graphs()[name]
    compiled = Compiled(outputs, device=backend)
    found = zip(compiled(memory), compiled(memory), evaluate(outputs, memory), strict=True)
    for mine, again, theirs in found:
        np.testing.assert_allclose(mine, theirs, 1e-4, 1e-4)
        np.testing.assert_array_equal(mine, again)


@pytest.mark.parametrize("m,k,n", [(70, 50, 40), (3, 300, 65), (130, 17, 33)])
def test_products_of_all_layouts(backend, m, k, n):
    (x, u, y, v), memory = buffers(floats(m, k), floats(k, m), floats(k, n), floats(n, k))
    outputs = [b.contract(left, right, (0, 1), (1, 2), (0, 2)) for left, right in (
        (x, y), (b.permute(u, (1, 0)), y), (x, b.permute(v, (1, 0))))]
    found = Compiled(outputs, device=backend)(memory)
    wide = {uid: array.astype(float) for uid, array in memory.items()}
    wanted = [wide[1] @ wide[3], wide[2].T @ wide[3], wide[1] @ wide[4].T]
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [d.f16, d.bf16], ids=repr)
def test_halves_are_widened_and_rounded(backend, dtype):
    """Every half, f32 at and beside the middles of some, arithmetic, sums and products."""
    rng = np.random.default_rng(0)
    wide = (rng.integers(0, 1 << 32, 1 << 14, np.uint32) & 0xFFFF8001).astype(np.uint32)
    (x, y, a, w), memory = buffers(
        np.arange(1 << 16, dtype=np.uint16).view(dtype.np), wide.view(np.float32),
        *(d.stored(floats(*shape), dtype) for shape in ((140, 70), (70, 96))))
    exact = [b.cast(x, d.f32), b.cast(y, dtype), b.mul(b.cast(y, dtype), 3.0),
             b.materialize(b.permute(a, (1, 0)))]
    near = [linear.matmul(a, w), reductions.softmax(a), b.sum_(a, (0,))]
    found = Compiled((*exact, *near), device=backend)(memory)
    for out, mine, want in zip((*exact, *near), found, evaluate((*exact, *near), memory)):
        mine, want = (d.numbers(v, out.dtype) for v in (mine, want))
        step = d.finfo(dtype).eps if out in near else 0.0
        np.testing.assert_allclose(mine, want, step, step / 64, err_msg=out.op.value)


def test_matrices_of_small_numbers_are_transposed(backend):
    kinds = ("?", "u1", "i2", "u4")
    leaves, memory = buffers(*[(floats(35, 50) > 0).astype(kind) for kind in kinds])
    found = Compiled([b.materialize(b.permute(x, (1, 0))) for x in leaves], device=backend)(memory)
    for array, got in zip(memory.values(), found, strict=True):
        np.testing.assert_array_equal(got, array.T)


def test_after_a_bad_index_the_end_of_a_kernel_changes_nothing(backend):
    with tinyc.device(backend):
        table = Tensor(np.ones((3, 8), np.float32))
        count = Tensor(np.zeros(1, np.float32)).realize()
        index = np.arange(20_000) % 3
        with compiler.observe() as runs:
            count.assign(count + nn.functional.embedding(Tensor(index), table).sum())
            assert count.tolist() == [160_000.0]
        program = runs[-1].executable.program
        assert len(program.kernels) == 1 and len(program.launches) == (0 if backend == "cpu" else 2)
        index[777] = 3
        count.assign(count + nn.functional.embedding(Tensor(index), table).sum())
        with pytest.raises(BoundsError, match="index 3 is out of range"):
            count.realize()
        assert count._slot.buffer.array.tolist() == [160_000.0]


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u1"])
def test_sums_by_index_in_any_order(backend, dtype):
    """Numbers whose sums are exact, most of them for one row; a bad index is found all the same."""
    rng = np.random.default_rng(0)
    rows = np.where(rng.random(600) < 0.7, 3, rng.integers(0, 50, 600))
    (values, index), memory = buffers(rng.integers(0, 4, (600, 40)).astype(dtype), rows)
    outputs = [b.scatter_add(values, index, 0, 50)]
    atomic = {}
    for deterministic in (True, False):
        with config.configure(deterministic=deterministic):
            compiled = Compiled(outputs, device=backend)
        np.testing.assert_array_equal(compiled(memory)[0], evaluate(outputs, memory)[0])
        with pytest.raises(BoundsError, match="index 50 is out of range"):
            compiled({**memory, 2: np.where(np.arange(600) == 500, 50, rows)})
        text = compiled.program.source
        atomic[deterministic] = bool(re.search(r"(atomicAdd|tc_atomic_f32|atomic_add)\(.*&", text))
    known = {"cpu": "", "opencl": "", "opencl:0": "f4 i4"}.get(backend, "f4 f8 i4 i8")
    assert atomic == {True: False, False: dtype in known.split()}


def test_the_user_says_whether_sums_by_index_have_an_order(backend):
    with tinyc.device(backend):
        table = Tensor(np.zeros((9, 16), np.float32), requires_grad=True)
        step = tinyc.jit(lambda i: tinyc.grad(
            lambda t: nn.functional.embedding(i, t).sum())(table))
        index = Tensor(np.arange(900) % 9)
        launches = []
        for deterministic in (True, False, True):
            with config.configure(deterministic=deterministic), compiler.observe() as runs:
                assert step(index).numpy().tolist() == [[100.0] * 16] * 9
            launches.append(sum(len(run.executable.program.launches) for run in runs))
    more = 0 if backend in ("cpu", "opencl") else 1
    assert launches == [launches[0], launches[0] + more, launches[0]]


def test_values_go_there_and_back(backend):
    for dtype in ("f4", "f8", "i8", "u1", "i4", "u8", "?"):
        array = np.arange(12).reshape(3, 4).astype(dtype)
        there = Tensor(array, device=backend)
        assert there.device == backend
        np.testing.assert_array_equal(there.numpy(), array)
        np.testing.assert_array_equal(there[1:3].numpy(), array[1:3])
        np.testing.assert_array_equal(there.T.to("cpu").numpy(), array.T)
    assert Tensor(np.zeros((0, 3), np.float32), device=backend).sum().item() == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [
    "opencl", "blocks", "cuda", pytest.param("gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ["mlp", "lenet64", "gpt_small"])
def test_training_takes_the_kernels_and_has_the_losses_of_c(request, kind, name, tmp_path):
    found = []
    for device in ("cpu", request.getfixturevalue(kind)):
        with benchmarks(tmp_path), tinyc.device(device), compiler.observe() as runs:
            case = case_of(name, "tinyc", "jit")
            with tinyc.device(device):
                losses = [case.step(i) for i in range(10)]
        found.append((losses, max(len(run.executable.program.kernels) for run in runs)))
    (here, kernels), (there, kernels_there) = found
    assert kernels == kernels_there
    np.testing.assert_allclose(there, here, rtol=1e-4)
