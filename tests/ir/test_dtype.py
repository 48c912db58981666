"""Element types: the promotion lattice, weak scalars, bit patterns."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import pytest

from tinyc.diagnostics import DTypeError
from tinyc.ir import dtype as dt
from tinyc.ir.dtype import (
    DTYPES,
    WIDER,
    bf16,
    decode,
    dtype_named,
    encode,
    f16,
    f32,
    f64,
    from_numpy,
    i8,
    i16,
    i32,
    i64,
    limits,
    promote,
    u8,
    u16,
    u32,
    u64,
    weak_promote,
)

bool_ = dt.bool_
ALL = list(DTYPES.values())


def test_names_and_sizes_agree_with_numpy():
    for name, d in DTYPES.items():
        assert repr(d) == d.name == name
        assert d.itemsize == d.np.itemsize
        assert from_numpy(d.np) is d
        assert from_numpy(d.np.newbyteorder(">")) is d
        assert dtype_named(name) is d


def test_there_is_one_object_per_type():
    for d in ALL:
        assert pickle.loads(pickle.dumps(d)) is d
        assert copy.deepcopy(d) is d
        assert copy.copy(d) is d


def test_unknown_types_say_what_there_is():
    with pytest.raises(DTypeError, match=r"numpy's complex64 has no counterpart; there are"):
        from_numpy(np.dtype(np.complex64))
    with pytest.raises(DTypeError, match="no type is called 'f8'"):
        dtype_named("f8")


def test_promotion_is_a_lattice():
    nx = pytest.importorskip("networkx")
    graph = nx.DiGraph((d, w) for d in WIDER for w in WIDER[d])
    assert set(graph) == set(ALL)
    assert nx.is_directed_acyclic_graph(graph)
    assert set(nx.transitive_reduction(graph).edges) == set(graph.edges)  # covering edges only
    above = {d: nx.descendants(graph, d) | {d} for d in graph}
    for a, b in itertools.product(ALL, ALL):
        bounds = above[a] & above[b]
        least = [x for x in bounds if bounds <= above[x]]
        assert least == [promote(a, b)]


def test_promotion_laws():
    for a, b, c in itertools.product(ALL, ALL, ALL):
        assert promote(a, a) is a
        assert promote(a, b) is promote(b, a)
        assert promote(promote(a, b), c) is promote(a, promote(b, c))


@pytest.mark.parametrize(
    ("a", "b", "joined"),
    [
        (bool_, u8, u8),
        (bool_, f32, f32),
        (u8, i8, i16),
        (u16, i16, i32),
        (u8, i16, i16),
        (u32, i32, i64),
        (u32, u64, u64),
        (u64, i64, f32),
        (u64, f16, f32),
        (i64, f16, f16),
        (bool_, bf16, bf16),
        (f16, bf16, f32),
        (bf16, f32, f32),
        (i64, f32, f32),
        (i32, f64, f64),
        (f32, f64, f64),
    ],
)
def test_promotion_examples(a, b, joined):
    assert promote(a, b) is joined


def test_integers_promote_as_in_numpy():
    integers = [d for d in ALL if d.kind in "bui"]
    for a, b in itertools.product(integers, integers):
        if {a, b} & {u64} and {a.kind, b.kind} == {"u", "i"}:
            continue  # numpy leaves the integers for f64 here, we for f32
        assert promote(a, b).np == np.promote_types(a.np, b.np), (a, b)


@pytest.mark.oracle
def test_promotion_agrees_with_torch():
    torch = pytest.importorskip("torch")
    theirs = {
        bool_: torch.bool, u8: torch.uint8, i8: torch.int8, i16: torch.int16,
        i32: torch.int32, i64: torch.int64, f32: torch.float32, f64: torch.float64,
        f16: torch.float16, bf16: torch.bfloat16,
    }
    for a, b in itertools.product(theirs, theirs):
        assert torch.promote_types(theirs[a], theirs[b]) is theirs[promote(a, b)]


@pytest.mark.parametrize(
    ("dtype", "value", "result"),
    [
        (i64, 1.5, f32),
        (f16, 1.5, f16),
        (bf16, 2, bf16),
        (f32, 2, f32),
        (f64, 2.5, f64),
        (bool_, 1, i64),
        (bool_, 1.0, f32),
        (bool_, True, bool_),
        (u8, 3, u8),
        (u8, True, u8),
    ],
)
def test_python_numbers_are_weak(dtype, value, result):
    assert weak_promote(dtype, value) is result


def test_bit_patterns_tell_apart_what_equality_does_not():
    assert encode(0.0, f32) != encode(-0.0, f32)
    assert math.copysign(1, decode(encode(-0.0, f64), f64)) == -1
    assert encode(math.nan, f32) == encode(math.nan, f32)
    assert math.isnan(decode(encode(math.nan, f32), f32))
    assert decode(encode(1e300, f32), f32) == math.inf
    assert decode(encode(-1e300, f32), f32) == -math.inf


@pytest.mark.parametrize("d", ALL, ids=repr)
def test_encode_is_numpys_bits_and_decode_its_inverse(d):
    values = [0, 1] if d.kind == "b" else [0, 1, 100]
    if d.kind in "ui":
        values += [*limits(d)]
    if d.kind == "f":
        values += [0.5, -1.25, math.inf, -math.inf]
    for v in values:
        stored = dt.stored(np.array(v), d)
        little = stored.astype(d.np.newbyteorder("<")).tobytes()
        assert encode(v, d) == int.from_bytes(little, "little")
        back = decode(encode(v, d), d)
        assert back == v
        assert type(back) is type(dt.numbers(stored, d).item())


@pytest.mark.parametrize(
    ("value", "d"), [(256, u8), (-1, u8), (128, i8), (1.5, i32), (math.nan, i64), (math.inf, u32)]
)
def test_integers_hold_only_their_values(value, d):
    with pytest.raises(DTypeError, match="is no value of"):
        encode(value, d)


def test_limits_are_numpys():
    for d in (u8, i8, u16, i16, u32, i32, u64, i64):
        assert limits(d) == (np.iinfo(d.np).min, np.iinfo(d.np).max)


# Halves -------------------------------------------------------------------------------------

ALL_BITS = np.arange(1 << 16, dtype=np.uint16)


def edges_of(d: dt.DType) -> np.ndarray:
    """f32 at and around the middles between neighbours, and what is special."""
    finite = dt.numbers(ALL_BITS.view(d.np), d)
    finite = np.sort(finite[np.isfinite(finite)]).astype(np.float64)
    middles = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    near = [np.nextafter(middles, np.float32(x)) for x in (np.inf, -np.inf)]
    top = dt.finfo(d).max * (1 + dt.finfo(d).eps / 4)
    special = np.array([top, -top, 1e38, -1e38, 3.4e38, 1e-45, -1e-45, 1e-40, 6e-8, 2.9e-8, 3e-8,
                        math.inf, -math.inf, math.nan, 0.0, -0.0, 65519.9, 65520.0], np.float32)
    odd = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], np.uint32).view(np.float32)
    return np.concatenate([middles, *near, special, odd])


def same_halves(a: np.ndarray, b: np.ndarray, d: dt.DType) -> None:
    """Equal bits, but for which NaN it is."""
    x, y = dt.numbers(a, d), dt.numbers(b, d)
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(np.signbit(x)[~np.isnan(x)], np.signbit(y)[~np.isnan(y)])


def test_f16_is_numpys():
    halves = ALL_BITS.view(np.float16)
    same_halves(dt.stored(halves.astype(np.float32), f16), halves, f16)
    with np.errstate(all="ignore"):
        same_halves(dt.stored(edges_of(f16), f16), edges_of(f16).astype(np.float16), f16)


def test_bf16_is_that_of_ml_dtypes():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    theirs = ALL_BITS.view(bfloat16)
    np.testing.assert_array_equal(dt.numbers(ALL_BITS.view(bf16.np), bf16), theirs.astype("f"))
    with np.errstate(all="ignore"):
        wanted = edges_of(bf16).astype(bfloat16)
    same_halves(dt.stored(edges_of(bf16), bf16), wanted.view(bf16.np), bf16)
    assert from_numpy(np.dtype(bfloat16)) is bf16
    same_halves(dt.converted_array(wanted, bf16), wanted.view(bf16.np), bf16)


@pytest.mark.parametrize("d", [f16, bf16], ids=repr)
def test_halves_survive_the_way_by_f32(d):
    halves = ALL_BITS.view(d.np)
    same_halves(dt.stored(dt.numbers(halves, d), d), halves, d)
    for value in (0.1, -65504.0, 1e-7, math.inf):
        assert decode(encode(value, d), d) == dt.numbers(dt.stored(np.array(value), d), d)


@pytest.mark.parametrize("d", [f16, f32, f64], ids=repr)
def test_finfo_is_numpys(d):
    ours, theirs = dt.finfo(d), np.finfo(d.np)
    for name in ("bits", "eps", "tiny", "smallest_normal", "max", "min"):
        assert getattr(ours, name) == float(getattr(theirs, name)), name
    assert ours.resolution == pytest.approx(float(theirs.resolution), rel=0.05)


def test_finfo_of_bf16():
    found = dt.finfo(bf16)
    bits = dt.numbers(np.array([0x7F7F, 0x0080, 0x3F81], np.uint16).view(bf16.np), bf16)
    assert (found.max, found.tiny, 1 + found.eps) == tuple(map(float, bits))
    with pytest.raises(DTypeError, match="i32 is no float type"):
        dt.finfo(i32)
