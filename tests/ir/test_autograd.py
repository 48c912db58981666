"""Every derivative rule against finite differences, and the walk against long and wide graphs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyc.diagnostics import DTypeError, ShapeError
from tinyc.ir import build as b
from tinyc.ir.autograd import VJP, NotDifferentiable, vjp
from tinyc.ir.dtype import bool_, f32, f64, i64
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import Node, node, toposort
from tinyc.ir.ops import Op


def buffer(uid, shape, dtype=f64, device="cpu"):
    return b.buffer(uid, 0, shape, dtype, device)


def run(nodes, arrays):
    memory = dict(enumerate(arrays))
    return [np.asarray(value) for value in evaluate(list(nodes), memory)]


def data(shapes, seed=0, low=-1.0, high=1.0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(low, high, shape) for shape in shapes]


def away(arrays, points=(0.0,), gap=0.05):
    """Move values away from where a function is not smooth."""
    for array in arrays:
        for point in points:
            close = abs(array - point) < gap
            array[close] = point + gap
    return arrays


INDEX = np.array([[2, 0, 2], [1, 1, 4]])


def index():
    rows = [b.cat([b.reshape(b.const(int(v), i64), (1,)) for v in row], 0) for row in INDEX]
    return b.cat([b.reshape(row, (1, 3)) for row in rows], 0)


def window2(x, size, stride, dilation):
    rows = b.window(x, 0, size, stride, dilation)
    return b.window(rows, 1, size, stride, dilation)


# op -> [(function of nodes, shapes of its inputs)]; values are drawn from 0.3 to 1.7.
SMOOTH = {
    Op.NEG: [(b.neg, [(3,)])],
    Op.EXP: [(b.exp, [(3, 2)])],
    Op.LOG: [(b.log, [(3,)])],
    Op.SQRT: [(b.sqrt, [(3,)])],
    Op.SIN: [(b.sin, [(3,)])],
    Op.COS: [(b.cos, [(3,)])],
    Op.TANH: [(b.tanh, [(3,)])],
    Op.ERF: [(b.erf, [(3,)])],
    Op.ADD: [(b.add, [(3,), (3,)]), (b.add, [(2, 3), (3,)]), (lambda x: b.add(x, x), [(3,)])],
    Op.SUB: [(b.sub, [(3,), (3,)])],
    Op.MUL: [(b.mul, [(3,), (3,)]), (lambda x: b.mul(x, x), [(3,)])],
    Op.DIV: [(b.div, [(3,), (3,)]), (b.div, [(2, 1), (3,)])],
    Op.MOD: [(lambda x, y: b.mod(b.mul(x, 5.3), y), [(4,), (4,)])],
    Op.POW: [
        (b.pow, [(4,), (4,)]),
        (lambda x: node(Op.POW, (x, b.full((4,), 2.0, f64))), [(4,)]),
        (lambda x: b.pow(x, -1.5), [(4,)]),
        (lambda x: b.pow(2.5, x), [(4,)]),
    ],
    Op.MAX: [(b.maximum, [(9,), (9,)])],
    Op.WHERE: [(lambda x, y: b.where(b.lt(x, y), b.mul(x, y), b.exp(x)), [(9,), (9,)])],
    Op.CAST: [(lambda x: node(Op.CAST, (x,), (f64,)), [(3,)])],
    Op.RESHAPE: [(lambda x: b.reshape(x, (3, 4)), [(2, 6)])],
    Op.PERMUTE: [(lambda x: b.permute(x, (2, 0, 1)), [(2, 3, 4)])],
    Op.EXPAND: [
        (lambda x: b.expand(x, (4, 2, 3)), [(2, 1)]),
        (lambda x: b.expand_axes(x, (2, 5, 3), (0, 2)), [(1, 3)]),
        (lambda x: b.expand(x, (2, 0)), [(2, 1)]),
        (lambda x: b.expand(x, (2, 3)), [()]),
    ],
    Op.SLICE: [
        (lambda x: b.slice_(x, (1, 0), (2, 4), (1, 1)), [(4, 4)]),
        (lambda x: b.slice_(x, (3, 0), (2, 2), (-2, 3)), [(4, 6)]),
        (lambda x: b.slice_(x, (2, 0), (0, 2), (1, 1)), [(4, 2)]),
    ],
    Op.PAD: [
        (lambda x: b.pad(x, (1, 0), (0, 2), (0, 0)), [(2, 3)]),
        (lambda x: b.pad(x, (1, 0), (2, 1), (2, 1)), [(2, 3)]),
    ],
    Op.WINDOW: [
        (lambda x: window2(x, 3, 1, 1), [(5, 4)]),
        (lambda x: window2(x, 2, 2, 1), [(5, 4)]),
        (lambda x: window2(x, 2, 2, 3), [(9, 8)]),
    ],
    Op.CAT: [(lambda x, y: b.cat([x, y, x], 1), [(2, 3), (2, 1)])],
    Op.REDUCE: [
        (lambda x: b.reduce_("sum", x, (0, 2)), [(2, 3, 4)]),
        (lambda x: b.reduce_("max", x, (1,)), [(3, 5)]),
        (lambda x: b.reduce_("max", x, (0, 1)), [(3, 5)]),
    ],
    Op.CONTRACT: [
        (lambda x, y: b.contract(x, y, (0, 1), (1, 2), (0, 2)), [(3, 4), (4, 2)]),
        (lambda x, y: b.contract(x, y, (9, 0, 1), (1, 9, 2), (2, 9, 0)), [(2, 3, 4), (4, 2, 5)]),
        (lambda x, y: b.contract(x, y, (0,), (0,), ()), [(4,), (4,)]),
        (lambda x: b.contract(x, x, (0, 1), (1, 2), (0, 2)), [(3, 3)]),
    ],
    Op.FOLD: [
        (lambda x: b.fold(x, 0, 7, 2, 1), [(3, 2, 3)]),
        (lambda x: b.fold(x, 1, 8, 1, 2), [(2, 4, 3)]),
    ],
    Op.SCATTER_ADD: [(lambda x: b.scatter_add(x, index(), 1, 5), [(2, 2, 3)])],
    Op.GATHER: [(lambda x: b.gather(x, index(), 1), [(2, 5, 2)])],
    Op.ASSIGN: [
        (lambda x, y: b.assign(x, y, (1, 0), (2, 3), (1, 1)), [(4, 3), (2, 3)]),
        (lambda x, y: b.assign(x, y, (3, 0), (2, 3), (-2, 1)), [(4, 3), (2, 3)]),
    ],
    Op.COPY: [(lambda x: b.copy(b.exp(x), "numpy"), [(3,)])],
    Op.MATERIALIZE: [(lambda x: b.mul(b.materialize(b.exp(x)), x), [(3,)])],
    Op.BOUNDARY: [(lambda x: b.mul(b.boundary(b.exp(x)), x), [(3,)])],
    Op.TOGETHER: [
        (lambda x: b.mul(*b.together([b.exp(x), b.mul(x, x)], [x])), [(3,)]),
        (lambda x: b.together([b.exp(x), x], [x])[1], [(3,)]),
    ],
}
CASES = [(op, *case) for op, cases in SMOOTH.items() for case in cases]
LINEAR = (
    Op.NEG, Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.SLICE, Op.PAD, Op.WINDOW, Op.CAT,
    Op.FOLD, Op.SCATTER_ADD, Op.GATHER, Op.ASSIGN,
)  # fmt: skip
IDS = [f"{op.name}-{k}" for k, (op, *_) in enumerate(CASES)]


def test_every_op_has_a_row_and_every_rule_a_case():
    assert set(VJP) == set(Op)
    differentiable = {op for op, row in VJP.items() if not isinstance(row, NotDifferentiable)}
    assert differentiable == set(SMOOTH)
    assert all(row.reason for row in VJP.values() if isinstance(row, NotDifferentiable))


def gradients(function, shapes, seed=0):
    """The output, a random cotangent of it, the gradients, the inputs and their values."""
    inputs = [buffer(k, shape) for k, shape in enumerate(shapes)]
    arrays = away(data(shapes, seed, 0.3, 1.7), (1.0,))
    out = function(*inputs)
    cotangent = np.random.default_rng(seed + 1).normal(size=out.shape)
    ct = buffer(len(inputs), out.shape, device=out.device)
    return out, ct, vjp([out], [ct], inputs), inputs, [*arrays, cotangent]


def check_direction(total, grads, inputs, arrays, tolerance=1e-6):
    """<gradient, d> against the central difference of the scalar ``total`` along d."""
    rng = np.random.default_rng(9)
    step = 1e-6
    directions = [rng.normal(size=n.shape) for n in inputs]
    moved = []
    for sign in (1, -1):
        shifted = [a + sign * step * d for a, d in zip(arrays, directions)]
        moved.append(run([total], [*shifted, *arrays[len(inputs) :]])[0])
    expected = (moved[0] - moved[1]) / (2 * step)
    known = [(g, d) for g, d in zip(grads, directions) if g is not None]
    values = run([g for g, _ in known], arrays)
    found = sum((value * d).sum() for value, (_, d) in zip(values, known))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def dot(x: Node, y: Node) -> Node:
    return b.reduce_("sum", b.mul(x, y), tuple(range(len(x.shape))))


@pytest.mark.parametrize(("op", "function", "shapes"), CASES, ids=IDS)
def test_gradient_equals_finite_difference(op, function, shapes):
    out, ct, grads, inputs, arrays = gradients(function, shapes)
    assert op in {n.op for n in toposort([out])}
    for grad, source in zip(grads, inputs):
        assert (grad.shape, grad.dtype) == (source.shape, source.dtype)
    check_direction(dot(out, ct), grads, inputs, arrays)


@pytest.mark.parametrize(("op", "function", "shapes"), CASES, ids=IDS)
def test_second_derivative_equals_finite_difference(op, function, shapes):
    _, _, grads, inputs, arrays = gradients(function, shapes)
    weights = [buffer(10 + k, n.shape) for k, n in enumerate(inputs)]
    total = b.const(0.0, f64)
    for k, grad in enumerate(grads):
        total = b.add(total, dot(b.mul(grad, grad), weights[k]))
    second = vjp([total], [b.const(1.0, f64)], inputs)
    fill = [np.zeros(())] * (10 - len(arrays))
    arrays = [*arrays, *fill, *data([w.shape for w in weights], 5)]
    check_direction(total, second, inputs, arrays, 1e-5)


@pytest.mark.parametrize(("function", "shapes"), [case[1:] for case in CASES if case[0] in LINEAR])
def test_adjoint_identity_of_linear_ops(function, shapes):
    out, ct, grads, _, arrays = gradients(function, shapes)
    forward, cotangent, *back = run([out, ct, *grads], arrays)
    left = (forward * cotangent).sum()
    right = sum((grad * array).sum() for grad, array in zip(back, arrays))
    np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_slices_and_pads_are_adjoint(draw):
    extents = draw.draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))
    triples = []
    for extent in extents:
        size = draw.draw(st.integers(0, extent))
        limit = (extent - 1) // (size - 1) if size > 1 else 3
        step = draw.draw(st.integers(1, max(limit, 1)))
        start = draw.draw(st.integers(0, max(extent - 1 - max(size - 1, 0) * step, 0)))
        if size and draw.draw(st.booleans()):
            start, step = start + (size - 1) * step, -step
        triples.append((start, size, step))
    starts, sizes, steps = zip(*triples)
    sliced = gradients(lambda x: b.slice_(x, starts, sizes, steps), [tuple(extents)])
    gaps = tuple(abs(step) - 1 for step in steps)
    padded = gradients(lambda x: b.pad(x, starts, sizes, gaps), [tuple(extents)])
    for out, ct, grads, _, arrays in (sliced, padded):
        forward, cotangent, back = run([out, ct, grads[0]], arrays)
        np.testing.assert_allclose((forward * cotangent).sum(), (back * arrays[0]).sum())


def test_ties_of_a_max_share_equally():
    x = buffer(0, (2, 3))
    grad = vjp([b.reduce_("max", x, (1,))], [b.full((2,), 6.0, f64)], [x])[0]
    values = run([grad], [np.array([[1.0, 2, 2], [5, 5, 5]])])[0]
    np.testing.assert_array_equal(values, [[0, 3, 3], [2, 2, 2]])


def test_ties_of_an_elementwise_max_share_half():
    x, y = buffer(0, (3,)), buffer(1, (3,))
    grads = vjp([b.maximum(x, y)], [b.full((3,), 1.0, f64)], [x, y])
    values = run(grads, [np.array([1.0, 2, 3]), np.array([2.0, 2, 2])])
    np.testing.assert_array_equal(values[0], [0, 0.5, 1])
    np.testing.assert_array_equal(values[1], [1, 0.5, 0])


def test_power_at_zero_has_finite_gradients():
    x, y = buffer(0, (4,)), buffer(1, (4,))
    grads = vjp([b.pow(x, y)], [b.full((4,), 1.0, f64)], [x, y])
    values = run(grads, [np.array([0.0, 0, 0, 2]), np.array([0.0, 1, 2, 0])])
    np.testing.assert_array_equal(values[0], [0, 1, 0, 0])
    np.testing.assert_allclose(values[1], [0, 0, 0, np.log(2)])
    (constant,) = vjp([b.pow(x, 0.0)], [b.full((4,), 1.0, f64)], [x])
    np.testing.assert_array_equal(run([constant], [np.zeros(4)])[0], np.zeros(4))


def test_where_masks_the_cotangent():
    x = buffer(0, (3,))
    (grad,) = vjp([b.where(b.lt(0.0, x), x, 0.0)], [b.full((3,), np.inf, f64)], [x])
    np.testing.assert_array_equal(run([grad], [np.array([-1.0, 0, 1])])[0], [0, 0, np.inf])


def test_casts_between_floats_cast_back_and_integers_get_nothing():
    x, k = buffer(0, (3,), f32), buffer(1, (3,), i64)
    out = b.mul(b.cast(x, f64), b.cast(k, f64))
    grads = vjp([out], [b.full((3,), 1.0, f64)], [x, k])
    assert grads[0].dtype is f32
    assert grads[1] is None
    assert vjp([b.cast(b.cast(x, i64), f32)], [b.full((3,), 1.0, f32)], [x]) == (None,)


def test_detach_and_flat_ops_stop_gradients():
    x = buffer(0, (3,))
    one = b.full((3,), 1.0, f64)
    assert vjp([b.detach(x)], [one], [x]) == (None,)
    assert vjp([b.floor(x)], [one], [x]) == (None,)
    (grad,) = vjp([b.mul(x, b.detach(x))], [one], [x])
    np.testing.assert_array_equal(run([grad], [np.array([1.0, 2, 3])])[0], [1, 2, 3])


def test_several_outputs_and_inner_nodes():
    x, z = buffer(0, (3,)), buffer(1, (3,))
    y = b.exp(x)
    one = b.full((3,), 1.0, f64)
    gx, gy, gz = vjp([b.mul(y, 2.0), b.mul(y, x)], [one, one], [x, y, z])
    values = run([gx, gy], [np.array([0.0, 1, 2])])
    array = np.array([0.0, 1, 2])
    np.testing.assert_allclose(values[1], 2 + array)
    np.testing.assert_allclose(values[0], np.exp(array) * (2 + array) + np.exp(array))
    assert gz is None


def test_an_output_that_is_asked_for_gets_its_cotangent():
    x = buffer(0, (3,))
    one = b.full((3,), 1.0, f64)
    assert vjp([x], [one], [x]) == (one,)


def test_only_the_path_is_walked():
    x, y = buffer(0, (3,)), buffer(1, (3,))
    out = b.add(b.mul(x, 2.0), b.exp(b.tanh(y)))
    (grad,) = vjp([out], [buffer(2, (3,))], [x])
    assert not {Op.EXP, Op.TANH} & {n.op for n in toposort([grad])}


def test_doubling_forty_times_is_linear():
    x = buffer(0, ())
    y = x
    for _ in range(40):
        y = b.add(y, y)
    (grad,) = vjp([y], [b.const(1.0, f64)], [x])
    assert len(toposort([grad])) <= 41
    assert run([grad], [np.array(1.0)])[0] == 2.0**40


def test_a_chain_of_ten_thousand():
    x = buffer(0, ())
    y = x
    for _ in range(10_000):
        y = b.sin(y)
    (grad,) = vjp([y], [b.const(1.0, f64)], [x])
    assert len(toposort([grad])) < 40_000


def test_errors_name_the_types():
    x = buffer(0, (3,))
    with pytest.raises(ShapeError, match=r"output and cotangent differ: f64\[3\] .* and f64\[2\]"):
        vjp([x], [b.full((2,), 1.0, f64)], [x])
    with pytest.raises(DTypeError, match=r"no gradient: bool\[3\]"):
        vjp([b.lt(x, x)], [b.full((3,), True, bool_)], [x])


def test_gradients_carry_the_line_that_they_differentiate():
    x = buffer(900, (3,))
    y = b.exp(b.sin(x))
    line = y.origin[1]
    (grad,) = vjp([y], [buffer(901, (3,))], [x])
    built = [n for n in toposort([grad]) if n.op in (Op.MUL, Op.COS)]
    assert [n.origin[1] for n in built] == [line] * 3
    assert b.cos(buffer(902, (3,))).origin[1] > line
