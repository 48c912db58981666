"""f16 and bf16 in generated code: every conversion, every operator, products, what is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from running import Compiled, buffers, floats, interpreted, native, plan_of, program_of

from tinyc import checking, config
from tinyc.composites import activation, attention, convolution, linear, normalization, reductions
from tinyc.ir import build as b
from tinyc.ir import dtype as d
from tinyc.ir.autograd import vjp
from tinyc.ir.evaluate import evaluate
from tinyc.ir.halves import widen
from tinyc.ir.node import Node, node, toposort
from tinyc.ir.ops import Op
from tinyc.runtime.device import DeviceError, get_device

HALVES = pytest.mark.parametrize("dtype", [d.f16, d.bf16], ids=repr)
MATH = (Op.EXP, Op.LOG, Op.SQRT, Op.SIN, Op.COS, Op.TANH, Op.ERF, Op.NEG, Op.FLOOR)
PAIRS = (Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MAX, Op.IDIV, Op.MOD, Op.LT, Op.EQ)


def devices() -> list[str]:
    found = ["cpu"] if config.current().device == "cpu" else []
    try:
        get_device("opencl")
        found.append("opencl")
    except DeviceError:
        pass
    return found


def halves(dtype: d.DType, *arrays: np.ndarray) -> tuple[list[Node], dict[int, np.ndarray]]:
    """Buffers of halves with these values."""
    return buffers(*[d.stored(a, dtype) for a in arrays])


def every(dtype: d.DType) -> np.ndarray:
    """Every half there is."""
    return np.arange(1 << 16, dtype=np.uint16).view(dtype.np)


def between(dtype: d.DType) -> np.ndarray:
    """f32 at, and to both sides of, the middles between neighbours, and what is special."""
    finite = d.numbers(every(dtype), dtype)
    finite = np.sort(finite[np.isfinite(finite)]).astype(np.float64)
    middles = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    sides = [np.nextafter(middles, np.float32(x)) for x in (np.inf, -np.inf)]
    bits = [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0, 0x80000000, 1,
            0x7F7FFFFF, 0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001, 0x7F7F7FFF, 0x7F7F8000]
    return np.concatenate([middles, *sides, np.array(bits, np.uint32).view(np.float32)])


def same_numbers(got: np.ndarray, want: np.ndarray) -> None:
    """The same numbers to the bit, signs of zeros included; NaN is NaN."""
    x, y = (d.numbers(a, d.from_numpy(a.dtype)) for a in (got, want))
    np.testing.assert_array_equal(x, y)
    known = ~np.isnan(y)
    np.testing.assert_array_equal(np.signbit(x)[known], np.signbit(y)[known])


def within_a_step(outputs: Sequence[Node], got: Sequence[np.ndarray],
                  memory: dict[int, np.ndarray]) -> None:
    """What is computed in f32 and rounded once differs by the last bit at most."""
    for out, mine, want in zip(outputs, got, evaluate(outputs, memory)):
        if not out.dtype.is_half:
            np.testing.assert_array_equal(mine, want, out.op.value)
            continue
        x, y = (d.numbers(a, out.dtype) for a in (mine, want))
        info = d.finfo(out.dtype)
        np.testing.assert_allclose(x, y, info.eps, info.tiny * info.eps, err_msg=out.op.value)


@HALVES
@pytest.mark.parametrize("device", devices())
def test_every_half_is_widened_and_every_middle_rounded(dtype: d.DType, device: str) -> None:
    memory = {1: every(dtype), 2: between(dtype)}
    x = b.buffer(1, 0, memory[1].shape, dtype, device)
    y = b.buffer(2, 0, memory[2].shape, d.f32, device)
    outputs = [b.cast(x, d.f32), b.cast(y, dtype), b.cast(b.cast(y, dtype), d.f32), b.neg(x)]
    with np.errstate(all="ignore"):
        for mine, want in zip(Compiled(outputs, device=device)(memory), evaluate(outputs, memory)):
            same_numbers(mine, want)


@HALVES
def test_interpreted_halves_are_rounded_alike(dtype: d.DType) -> None:
    few = np.random.default_rng(0).permutation(between(dtype))[:300]
    (x, y), memory = buffers(every(dtype)[::331].copy(), few)
    outputs = [b.cast(x, d.f32), b.cast(y, dtype), b.mul(x, 3.0)]
    for mine, want in zip(interpreted(outputs, memory), evaluate(outputs, memory)):
        same_numbers(mine, want)


@HALVES
@pytest.mark.parametrize("fuse", [True, False])
def test_operators(dtype: d.DType, fuse: bool) -> None:
    values = np.array([0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.0, 7.25, 1e-3, -40.0, 9.0, 1e4, 6e4,
                       -6e4, 1e-7, np.inf, -np.inf, np.nan], np.float32)
    x, y = (np.ascontiguousarray(v).ravel() for v in np.meshgrid(values, values))
    (a, c), memory = halves(dtype, x, y)
    outputs = [node(op, (a, c)) for op in PAIRS]
    outputs += [node(op, (a,)) for op in MATH]
    outputs += [b.where(b.lt(a, c), a, c), activation.relu(b.add(a, c)), b.pow(a, 3.0),
                b.cast(b.lt(a, c), dtype), b.cast(c, d.f64), b.cast(b.cast(c, d.bool_), d.i32)]
    with np.errstate(all="ignore"):
        within_a_step(outputs, native(outputs, memory, fuse), memory)


@HALVES
def test_a_chain_is_rounded_after_each_operator(dtype: d.DType) -> None:
    (x, y), memory = halves(dtype, floats(4096), floats(4096, seed=1))
    mixed = b.add(b.mul(activation.relu(b.sub(b.mul(x, y), x)), 0.3), y)
    same_numbers(native([mixed], memory)[0], evaluate([mixed], memory)[0])
    once = evaluate([b.cast(mixed_in_f32(x, y), dtype)], memory)[0]
    assert (d.numbers(once, dtype) != d.numbers(evaluate([mixed], memory)[0], dtype)).any()


def mixed_in_f32(x: Node, y: Node) -> Node:
    x, y = (b.cast(v, d.f32) for v in (x, y))
    return b.add(b.mul(activation.relu(b.sub(b.mul(x, y), x)), 0.3), y)


@HALVES
@pytest.mark.parametrize("sizes", [(37, 50, 41), (64, 96, 128), (1, 512, 300), (5, 700, 33),
                                   (200, 3, 17), (3, 4, 2)])
def test_products(dtype: d.DType, sizes: tuple[int, int, int]) -> None:
    m, k, n = sizes
    (x, y, z, w), memory = halves(dtype, floats(m, k), floats(k, n, seed=1), floats(n, k, seed=2),
                                  floats(m, n, seed=3))
    outputs = products(x, y, z, w)
    close(outputs, native(outputs, memory), memory)


def products(x: Node, y: Node, z: Node, w: Node) -> list[Node]:
    """Of operands in place, packed and transposed, and of what is computed."""
    return [linear.matmul(x, y), linear.linear(x, z), linear.matmul(b.permute(x, (1, 0)), w),
            linear.matmul(b.cast(x, d.f32), b.cast(y, d.f32)), b.sum_(b.mul(x, x), (1,)),
            linear.matmul(b.mul(x, 2.0), activation.relu(y))]


@HALVES
@pytest.mark.skipif("opencl" not in devices(), reason="needs an OpenCL driver")
def test_products_on_opencl(dtype: d.DType) -> None:
    arrays = floats(37, 50), floats(50, 64, seed=1), floats(64, 50, seed=2), floats(37, 64, seed=3)
    nodes, memory = halves(dtype, *arrays)
    nodes = [b.buffer(n.attrs[0], 0, n.shape, dtype, "opencl") for n in nodes]
    outputs = [*products(*nodes), reductions.softmax(nodes[0]), b.materialize(nodes[1])]
    close(outputs, Compiled(outputs, device="opencl")(memory), memory)


@HALVES
def test_products_interpreted(dtype: d.DType) -> None:
    nodes, memory = halves(dtype, floats(9, 20), floats(20, 16, seed=1), floats(16, 20, seed=2),
                           floats(9, 16, seed=3))
    outputs = products(*nodes)
    close(outputs, interpreted(outputs, memory), memory)


@HALVES
def test_other_contractions(dtype: d.DType) -> None:
    arrays = floats(3, 4, 13, 13), floats(10, 4, 3, 3, seed=1), floats(10, seed=2)
    (x, w, c), memory = halves(dtype, *arrays)
    y = convolution.conv(x, w, c, stride=2, padding=1)
    grads = vjp([y], [b.full(y.shape, 0.5, dtype)], [x, w, c])
    close([y, *(g for g in grads if g)], native([y, *(g for g in grads if g)], memory), memory)


@HALVES
def test_attention_both_ways(dtype: d.DType) -> None:
    (q, k, v, dy), memory = halves(dtype, *(floats(2, 33, 20, seed=i) for i in range(4)))
    y = attention.attention(q, k, v, causal=True)
    outputs = [y, *(g for g in vjp([y], [dy], [q, k, v]) if g)]
    close(outputs, native(outputs, memory), memory)


@HALVES
def test_moves_and_sums_by_index(dtype: d.DType) -> None:
    (x, i), memory = buffers(d.stored(floats(7, 40), dtype), np.array([3, 0, 3, 6]))
    outputs = [b.cat([x, b.mul(x, 2.0)], 0), b.pad(x, (1, 2), (0, 3)), b.gather(x, i, 0),
               b.scatter_add(b.gather(x, i, 0), i, 0, 7), b.materialize(b.permute(x, (1, 0))),
               b.max_(x, (1,)), b.sum_(x, (0,)), reductions.argmax(x, 1), b.iota(300, dtype),
               b.bitcast(x, d.u16), b.assign(x, b.add(x, 1.0))]
    close(outputs, native(outputs, memory), memory)


@HALVES
def test_composites_round_once(dtype: d.DType) -> None:
    (x, w), memory = halves(dtype, floats(9, 64), floats(64, seed=1))
    functions: list[Callable[[Node], Node]] = [
        reductions.softmax, reductions.log_softmax, activation.gelu, activation.silu,
        reductions.mean, lambda v: normalization.layer_norm(v, (64,), w)]
    single = [b.cast(v, d.f32) for v in (x, w)]
    wide = [*(f(single[0]) for f in functions[:-1]),
            normalization.layer_norm(single[0], (64,), single[1])]
    within_a_step([f(x) for f in functions], evaluate([b.cast(v, dtype) for v in wide], memory),
                  memory)


def close(outputs: Sequence[Node], got: Sequence[np.ndarray],
          memory: dict[int, np.ndarray]) -> None:
    """Agree with the evaluator by the contract on numbers."""
    for out, mine, want in zip(outputs, got, evaluate(outputs, memory)):
        assert mine.dtype == want.dtype and mine.shape == want.shape
        problem = checking.difference(want, mine, checking.tolerance(outputs, out.dtype))
        assert not problem, f"{out.op.value}: {problem}"


# What becomes of a graph ------------------------------------------------------------------------


@HALVES
def test_after_the_pass_halves_are_only_moved_and_cast(dtype: d.DType) -> None:
    (x, w), _ = halves(dtype, floats(9, 64), floats(64, 64, seed=1))
    y = reductions.softmax(linear.linear(activation.gelu(x), w))
    grads = [g for g in vjp([y], [y], [x, w]) if g]
    moves = {Op.BUFFER, Op.CAST, Op.PERMUTE, Op.RESHAPE, Op.EXPAND, Op.WHERE, Op.CONST}
    for n in toposort(widen([y, *grads])):
        if n.dtype.is_half or any(s.dtype.is_half for s in n.src):
            assert n.op in moves, n.op
        if n.op is Op.CAST and n.src[0].dtype.is_half:
            assert n.dtype is d.f32


def test_graphs_without_halves_are_left_alone() -> None:
    (x,), _ = buffers(floats(4))
    out = (b.exp(x),)
    assert widen(out) == out


@HALVES
def test_kernels_are_those_of_f32_and_move_half_the_bytes(dtype: d.DType) -> None:
    def step(kind: d.DType) -> list[Node]:
        x, w, c = (b.buffer(i, 0, s, kind, "cpu")
                   for i, s in enumerate([(256, 128), (192, 128), (192,)], 1))
        hidden = activation.relu(linear.linear(x, w, c))
        return [reductions.softmax(hidden), b.mul(b.add(hidden, 1.0), hidden)]

    single, half = (program_of(step(kind)) for kind in (d.f32, dtype))
    assert len(half.kernels) == len(single.kernels)
    moved = [sum(k.bytes_moved for k in p.kernels) for p in (single, half)]
    assert moved[1] * 2 == moved[0]


@HALVES
def test_what_is_kept_for_the_backward_pass_is_kept_as_halves(dtype: d.DType) -> None:
    x, w, u = (b.buffer(i, 0, s, dtype, "cpu")
               for i, s in enumerate([(256, 128), (192, 128), (64, 192)], 1))
    y = linear.linear(activation.relu(linear.linear(x, w)), u)
    plan = plan_of([y, *(g for g in vjp([y], [y], [w, u]) if g)])
    kept = [s for s in plan.storages if s.role == "arena" and s.size >= 256 * 64]
    assert kept and all(s.dtype is dtype for s in kept), kept
