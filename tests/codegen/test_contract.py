"""How contractions are divided among chunks, and how their column operand is packed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from running import Compiled, buffers, floats, interpreted, plan_of

from tinyc.codegen import contract, deep, panel
from tinyc.codegen.interpret import run_kernels
from tinyc.composites import convolution, linear
from tinyc.ir import build as b
from tinyc.ir.evaluate import evaluate
from tinyc.ir.loop import For, MicroKernel, MicroPack, statements
from tinyc.ir.node import Node
from tinyc.ir.program import CPU
from tinyc.runtime import host
from tinyc.runtime.isa import isa_in_force


def product(m: int, n: int, k: int, kind: str) -> tuple[list[Node], dict, np.ndarray]:
    """(a @ b, its memory, its value); a t in `kind` marks an operand that is stored transposed."""
    a, c = floats(m, k), floats(k, n, seed=1)
    stored = [np.ascontiguousarray(x.T) if t == "t" else x for x, t in zip((a, c), kind)]
    (x, y), memory = buffers(*stored)
    x, y = (b.permute(v, (1, 0)) if t == "t" else v for v, t in zip((x, y), kind))
    return [linear.matmul(x, y)], memory, a @ c


@pytest.mark.parametrize("kind", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("m,n,k", [(50, 40, 20), (13, 33, 17), (100, 70, 9)])
def test_cells_of_panels_and_blocks_cover_the_product_once(
        monkeypatch: pytest.MonkeyPatch, kind: str, m: int, n: int, k: int) -> None:
    monkeypatch.setattr(contract, "FLOPS_PER_CHUNK", 1000)
    graph, memory, expected = product(m, n, k, kind)
    (kernel,) = plan_of(graph).kernels
    assert kernel.chunks == CPU.chunks
    np.testing.assert_allclose(interpreted(graph, memory)[0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(Compiled(graph)(memory, threads=2)[0], expected,
                               rtol=1e-5, atol=1e-5)


def test_a_grid_divides_both_sides_where_one_has_too_few_parts() -> None:
    assert panel.cells(8, panels=4, blocks=64) == (2, 4)
    assert panel.cells(8, panels=16, blocks=64) == (1, 8)
    assert panel.cells(8, panels=1, blocks=64) == (8, 1)
    assert panel.cells(8, panels=3, blocks=64) == (2, 3)
    assert panel.cells(8, panels=1, blocks=1) == (1, 1)
    graph, _, _ = product(768, 64, 512, "nn")
    loops = [s for s in statements(plan_of(graph).kernels[0].body) if isinstance(s, For)]
    assert [s.var.extent for s in loops if s.kind == "chunk"] == [8]
    assert [s.var.extent for s in loops if s.var.name.startswith("ib")] == [64]


def test_operands_that_run_along_the_depth_are_transposed_in_registers() -> None:
    def packs(kind: str, k: int = 64) -> int:
        body = plan_of(product(48, 64, k, kind)[0]).kernels[0].body
        return sum(isinstance(s, MicroPack) for s in statements(body))

    assert (packs("nn"), packs("nt"), packs("tn"), packs("tt")) == (0, 1, 0, 1)
    assert packs("nt", CPU.lanes - 1) == 0, "less than a square of lanes is left to plain loops"


@pytest.mark.parametrize("few", [1, 2, 3])
def test_few_vectors_times_a_matrix_read_its_rows(few: int) -> None:
    def tiled(m: int, n: int, kind: str) -> bool:
        graph, memory, expected = product(m, n, 30, kind)
        np.testing.assert_allclose(interpreted(graph, memory)[0], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(Compiled(graph)(memory)[0], expected, rtol=1e-5, atol=1e-5)
        body = plan_of(graph).kernels[0].body
        return any(isinstance(s, MicroKernel) for s in statements(body))

    assert (tiled(few, 50, "nn"), tiled(few, 50, "nt")) == (True, False)
    assert (tiled(50, few, "tn"), tiled(50, few, "nn")) == (True, False)
    assert not tiled(few, 3, "nn"), "too few to fill a vector"


def test_tiles_are_turned_where_the_result_runs_along_their_rows() -> None:
    """The result of a convolution runs along places, which are rows; its channels are columns."""
    def turned(places: int) -> list[int]:
        (x, w), memory = buffers(floats(9, 5, 1, places + 2), floats(20, 5, 1, 3, seed=1))
        graph = [convolution.conv(x, w)]
        expected = evaluate(graph, memory)[0]
        np.testing.assert_allclose(interpreted(graph, memory)[0], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(Compiled(graph)(memory)[0], expected, rtol=1e-5, atol=1e-5)
        body = plan_of(graph).kernels[-1].body
        return [s.width for s in statements(body) if isinstance(s, MicroPack)
                and s.b.storage.role == "tile"]

    assert turned(41) == [48, 44], "panels of 16 and 4 columns, filled up to whole vectors"
    assert turned(CPU.lanes - 1) == [], "less than a vector is stored as it comes"


def test_operands_stay_in_place_unless_their_rows_are_far_apart() -> None:
    def scratch(m: int, n: int) -> list[bool]:
        body = plan_of(product(m, n, 32, "nn")[0]).kernels[0].body
        kernels = [s for s in statements(body) if isinstance(s, MicroKernel)]
        return [kernel.b.storage.role == "scratch" for kernel in kernels]

    assert scratch(256, 512) == [False]
    assert scratch(256, 1024) == [True], "rows of 4 KiB fall on few sets of a cache"
    assert scratch(12, 1024) == [False], "what few rows use is not worth a copy"
    assert scratch(256, 500) == [False, False], "what is left fills a part of a vector"
    assert scratch(256, 501) == [False, True], "a part of a vector is filled up"


def test_tiles_are_as_high_as_rows_divide_evenly() -> None:
    wide = replace(CPU, lanes=16, tile_rows=12)
    heights = [panel.choose_tile(m, 64, 4, wide).rows for m in (1, 12, 13, 64, 100, 768, 1031)]
    assert heights == [1, 12, 7, 8, 10, 12, 12]
    heights = [panel.choose_tile(m, 64, 4, CPU).rows for m in (3, 6, 7, 64, 65, 768)]
    assert heights == [3, 6, 4, 5, 5, 6]


def test_whole_tiles_of_plain_sums_are_stored_where_they_belong() -> None:
    def tiles(m: int, n: int, relu: bool = False) -> list[tuple[str, int]]:
        graph, _, _ = product(m, n, 32, "nn")
        graph = [b.maximum(graph[0], 0)] if relu else graph
        body = plan_of(graph).kernels[0].body
        return [(s.tile.role, s.width) for s in statements(body) if isinstance(s, MicroKernel)]

    assert tiles(48, 64) == [("slot", 16)]
    assert tiles(48, 64, relu=True) == [("tile", 16)], "the epilogue reads the sums"
    assert tiles(47, 64) == [("tile", 16)], "nothing lies beyond the last row"
    assert tiles(48, 72) == [("slot", 16), ("slot", 8)], "what is left of columns has own tiles"
    assert tiles(48, 75) == [("slot", 16), ("tile", 16)]
    assert tiles(12, 72) == [("tile", 16)], "few rows are not worth a panel more"


@pytest.mark.parametrize("m,n,k", [(50, 40, 64), (97, 33, 48), (24, 100, 96)])
def test_deep_products_of_rows_that_lie_across_the_depth(
        monkeypatch: pytest.MonkeyPatch, m: int, n: int, k: int) -> None:
    """Blocks of the depth, cells that end early, panels in place and packed."""
    monkeypatch.setattr(contract, "FLOPS_PER_CHUNK", 1000)
    monkeypatch.setattr(deep, "SHORTEST", 8)
    monkeypatch.setattr(deep, "BLOCK", 16)
    small = replace(CPU, l2=512)
    for kind, cut in (("tn", True), ("tt", True), ("nn", False)):
        graph, memory, expected = product(m, n, k, kind)
        kernel = plan_of(graph, target=small).kernels[0]
        blocks = {s.var.extent for s in statements(kernel.body) if isinstance(s, For)
                  and s.var.name.startswith("kb")}
        assert blocks == ({k // 16} if cut else set())
        out = np.empty((m, n), np.float32)
        plan = plan_of(graph, target=small)
        slots = [*(memory[leaf.attrs[0]].reshape(-1) for leaf in plan.leaves), out.reshape(-1)]
        run_kernels(plan.kernels, dict(zip(plan.slots, slots)), plan.arena_size)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        with monkeypatch.context() as patch:
            patch.setattr(host, "host_target", lambda: replace(small, lanes=16, tile_rows=12)
                          if isa_in_force().lanes == 16 else small)
            np.testing.assert_allclose(Compiled(graph)(memory, threads=2)[0], expected,
                                       rtol=1e-5, atol=1e-5)


def test_only_rows_that_no_cache_holds_are_cut_along_the_depth() -> None:
    def is_deep(m: int, k: int, kind: str = "tn") -> bool:
        body = plan_of(product(m, 32, k, kind)[0]).kernels[0].body
        return any(isinstance(s, MicroKernel) and s.more.terms for s in statements(body))

    assert is_deep(768, 1024)
    assert not is_deep(256, 1024), "a MiB nearly stays in the second cache"
    assert not is_deep(768, 1024, "nn"), "rows along the depth are streamed"
    assert not is_deep(768, 1031), "a prime depth has no blocks"


def convolved(x: tuple[int, ...], w: tuple[int, ...], **options: int) -> tuple[list[Node], dict]:
    """The convolution of numbers of two shapes."""
    (a, c), memory = buffers(floats(*x), floats(*w, seed=1))
    return [convolution.conv(a, c, **options)], memory


def divided(graph: list[Node]) -> tuple[int, int]:
    """(what the chunks of the last kernel divide, elements that it packs for its register tiles)"""
    body = plan_of(graph).kernels[-1].body
    loops = [s for s in statements(body) if isinstance(s, For)]
    packed = {s.b.storage for s in statements(body) if isinstance(s, MicroKernel)}
    (chunked,) = [s.var.extent for s in loops if s.kind == "chunk"]
    return chunked, sum(s.size for s in packed if s.role == "scratch")


def test_chunks_divide_the_images_of_pointwise_convolutions_whatever_their_stride() -> None:
    """The weights are packed, the images read in place: places are rows of tiles."""
    for options in ({}, {"stride": 2}, {"groups": 2}):
        graph, memory = convolved((8, 16, 14, 12), (32, 16 // options.get("groups", 1), 1, 1),
                                  **options)
        assert divided(graph) == (8, 16 * 32 // options.get("groups", 1) ** 2), options
        expected = evaluate(graph, memory)[0]
        np.testing.assert_allclose(Compiled(graph)(memory)[0], expected, rtol=1e-5, atol=1e-5)


def test_chunks_divide_weights_that_are_larger_than_the_images() -> None:
    graph, memory = convolved((3, 32, 10, 10), (96, 32, 3, 3))
    panels = 96 // (2 * CPU.lanes)
    assert divided(graph) == (panels, 32 * 9 * 2 * CPU.lanes), "one panel at a time"
    np.testing.assert_allclose(Compiled(graph)(memory, threads=2)[0], evaluate(graph, memory)[0],
                               rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels,images", [(64, True), (192, False)])
def test_sums_over_images_that_no_cache_holds_are_divided(channels: int, images: bool) -> None:
    """Chunks of images keep sums of their own of a small gradient, and share out a large one."""
    (x, dy), memory = buffers(floats(4, channels, 6, 6), floats(4, channels, 4, 4, seed=1))
    windows = b.window(b.window(x, 2, 3, 1, 1), 3, 3, 1, 1)
    graph = [b.contract(dy, windows, (0, 1, 4, 5), (0, 2, 4, 5, 6, 7), (1, 2, 6, 7))]
    (kernel,) = plan_of(graph).kernels
    assert bool(kernel.finish) == images, "sums of chunks are added up at the end"
    chunks = [s.var.extent for s in statements(kernel.body) if isinstance(s, For)
              and s.kind == "chunk"]
    assert chunks == [4 if images else channels // (2 * CPU.lanes)]
    np.testing.assert_allclose(Compiled(graph)(memory, threads=2)[0], evaluate(graph, memory)[0],
                               rtol=1e-4, atol=1e-4)
