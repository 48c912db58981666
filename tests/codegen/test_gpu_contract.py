"""Contractions on GPUs, run by the interpreter of blocks of threads, against the evaluator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from running import SPLITTING, buffers, floats, interpreted, plan_of

from tinyc.codegen import gpu_block, gpu_contract
from tinyc.codegen.gpu_tile import Shape, Sums
from tinyc.composites import attention, convolution, linear, reductions
from tinyc.ir import build as b
from tinyc.ir.autograd import vjp
from tinyc.ir.dtype import f32
from tinyc.ir.evaluate import evaluate
from tinyc.ir.index import Var
from tinyc.ir.loop import Combine, For, LoopKernel, Storage, Store, statements
from tinyc.ir.node import Node

SMALL = replace(SPLITTING, language="opencl", threads=64, warp=8, shared=40 << 10, chunks=64)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch) -> None:
    """Tiles of 16 x 32, so that small operands have several and edges."""
    one = (Shape(16, 32, 8, 4, 4),)
    monkeypatch.setattr(gpu_contract, "SHAPES", one)
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
    shape = Shape(64, 64, 8, 8, 4)
    seen = set()
    sums = Sums(shape, Storage("sums", 32, f32, "register"), f32)
    t = Var("t", shape.threads)
    places = []
    sums.each(t, "x", lambda r, c, at: places.append((r, c, at)) or ())
    r, c, _ = places[0]
    variables = sorted((r.free_vars() | c.free_vars()) - {t}, key=lambda v: v.name)
    for thread in range(shape.threads):
        for i in range(shape.high):
            for j in range(shape.wide):
                env = dict(zip(variables, (i, j))) | {t: thread}
                seen.add((r.evaluate(env), c.evaluate(env)))
    assert seen == {(i, j) for i in range(64) for j in range(64)}


@pytest.mark.parametrize("kind", ["nn", "tt"])
def test_the_depth_is_divided_where_there_are_few_tiles(monkeypatch, kind):
    monkeypatch.setattr(gpu_contract, "LEAST_DEPTH", 8)
    monkeypatch.setattr(gpu_contract, "TILE_COST", 0)
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
    assert vectors(kernel) == {"register", "shared"}
    (kernel,) = plan_of(product(32, 64, 16, "nt")[0], target=SMALL).kernels
    assert vectors(kernel) == {"register"}, "what runs along the depth is turned on its way"
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
