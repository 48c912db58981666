"""Threefry against published vectors and a plain Python version, and what is made of its bits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tinyc.composites import randomness as rnd
from tinyc.ir import build as b
from tinyc.ir.dtype import f32, f64, i32, u8, u32
from tinyc.ir.evaluate import evaluate
from tinyc.ir.node import toposort

MASK = 0xFFFFFFFF

# Counter, key and result, from the test vectors of Random123 for threefry2x32 with 20 rounds.
VECTORS = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((MASK, MASK), (MASK, MASK), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


def run(*nodes):
    found = evaluate(nodes, {})
    return found[0] if len(nodes) == 1 else found


def threefry(key, counter):
    """The same in Python's integers."""
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = ((c + k) & MASK for c, k in zip(counter, keys))
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = (x + y) & MASK
            y = ((y << turn | y >> (32 - turn)) & MASK) ^ x
        x = (x + keys[(group + 1) % 3]) & MASK
        y = (y + keys[(group + 2) % 3] + group + 1) & MASK
    return x, y


@pytest.mark.parametrize("counter, key, expected", VECTORS)
def test_known_answers(counter, key, expected):
    words = tuple(b.const(c, u32) for c in counter)
    assert tuple(int(w) for w in run(*rnd.threefry2x32(key, words))) == expected
    assert threefry(key, counter) == expected
    keys = tuple(b.const(k, u32) for k in key)
    assert tuple(int(w) for w in run(*rnd.threefry2x32(keys, words))) == expected


def test_bits_are_those_of_jax():
    """What `jax.random.bits` gives for `wrap_key_data([7, 0x9E3779B9])` and `key(42)`."""
    expected = [0xB85C933D, 0x4F50FE90, 0xDA7C3043, 0x2759645A]
    assert run(rnd.bits((7, 0x9E3779B9), 0, (4,))).tolist() == expected
    expected = [0x7D1C13A2, 0xAE0730D9, 0x9DC3F9F9, 0x8F9EC1D7]
    assert run(rnd.bits((0, 42), 0, (2, 2))).ravel().tolist() == expected


@pytest.mark.parametrize("start", [0, 5, 2**32 - 3, 2**40 + 2**32 - 1, 2**64 - 2])
def test_elements_count_in_64_bits(start):
    key = (7, 0x9E3779B9)
    got = run(rnd.bits(key, start, (2, 3)))
    assert got.dtype == np.uint32 and got.shape == (2, 3)
    expected = []
    for i in range(6):
        count = (start + i) % 2**64
        x, y = threefry(key, (count >> 32, count & MASK))
        expected.append(x ^ y)
    assert got.ravel().tolist() == expected
    if start < 2**63:
        np.testing.assert_array_equal(run(rnd.bits(key, b.const(start), (2, 3))), got)


def test_draws_continue_each_other():
    whole = run(rnd.bits((1, 2), 100, (10,)))
    parts = [run(rnd.bits((1, 2), 100 + s, (5,))) for s in (0, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(run(rnd.bits((1, 3), 100, (10,))), whole)


@pytest.mark.parametrize("dtype", [f32, f64])
def test_uniform(dtype):
    x = run(rnd.uniform((0, 1), 0, (200, 500), dtype))
    assert x.dtype == dtype.np and x.min() >= 0 and x.max() < 1
    assert abs(x.mean() - 0.5) < 0.005 and abs(x.var() - 1 / 12) < 0.002
    counts, _ = np.histogram(x, 50, (0, 1))
    assert (abs(counts - 2000) < 250).all()
    assert abs(np.corrcoef(x.ravel()[:-1], x.ravel()[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("dtype", [f32, f64])
def test_normal(dtype):
    x = run(rnd.normal((0, 2), 0, (100_000,), dtype))
    assert x.dtype == dtype.np and np.isfinite(x).all()
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    assert abs((x**3).mean()) < 0.05 and abs((x**4).mean() - 3) < 0.1
    inside = (abs(x) < 1).mean()
    assert abs(inside - math.erf(math.sqrt(0.5))) < 0.005


@pytest.mark.parametrize("low, high", [(0, 1), (0, 10), (-7, 6), (-(2**31), 2**31)])
def test_randint(low, high):
    x = run(rnd.randint((3, 4), 0, (50_000,), low, high))
    assert x.dtype == np.int64 and x.min() >= low and x.max() < high
    span = high - low
    assert abs((x.mean() - (low + high - 1) / 2) / span) < 0.01
    if span < 20:
        counts = np.bincount(x - low, minlength=span)
        assert (abs(counts - 50_000 / span) < 6 * math.sqrt(50_000 / span)).all()


def test_randint_of_wide_spans_and_other_dtypes():
    x = run(rnd.randint((3, 4), 0, (1000,), 0, 2**40))
    assert x.min() >= 0 and 2**36 < x.max() < 2**40
    assert run(rnd.randint((3, 4), 0, (9,), 0, 256, u8)).dtype == np.uint8
    assert run(rnd.randint((3, 4), 0, (9,), -5, 5, i32)).dtype == np.int32
    with pytest.raises(ValueError, match="randint"):
        rnd.randint((3, 4), 0, (9,), 5, 5)


def test_bernoulli():
    for p in (0.0, 0.1, 0.9, 1.0):
        x = run(rnd.bernoulli((5, 6), 0, p, (50_000,)))
        assert x.dtype == np.bool_ and abs(x.mean() - p) < 0.01
    chances = b.cat([b.full((1,), p, f32) for p in (0.0, 1.0)])
    np.testing.assert_array_equal(
        run(rnd.bernoulli((5, 6), 0, chances, (3, 2))), [[False, True]] * 3
    )


def test_draws_are_elementwise_and_small():
    """Nothing but elementwise operations of one shape, so a draw fuses into its reader."""
    made = toposort([rnd.uniform((1, 2), 3, (64, 64))])
    assert {n.op.value for n in made} <= {
        "const", "iota", "reshape", "expand", "add", "xor", "or", "shl", "shr", "lt", "cast", "mul",
    }  # fmt: skip
    assert len(made) < 320
    assert run(rnd.bits((1, 2), 0, (0, 3))).shape == (0, 3)
    assert run(rnd.bits((1, 2), 0, ())).shape == ()
