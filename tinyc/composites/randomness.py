"""Random numbers as pure functions of (key, counter): Threefry-2x32-20 in integer operations.

Being graphs of elementwise operations they fuse into what reads them, can be computed again in a
backward, and are the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinyc.ir import build as b
from tinyc.ir.dtype import DType, f16, f32, f64, i32, i64, u32, u64
from tinyc.ir.node import Node

Word = Node | int

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_MASK = 0xFFFFFFFF


def threefry2x32(key: tuple[Word, Word], counter: tuple[Node, Node]) -> tuple[Node, Node]:
    """Return the two u32 words that Threefry-2x32 with 20 rounds gives for a counter of two.

    Key words are u32, 0-d or of the counter's shape, or Python numbers.
    """
    k0, k1 = _word(key[0]), _word(key[1])
    keys = (k0, k1, b.xor(b.xor(k0, k1), _PARITY))
    x0, x1 = b.add(counter[0], k0), b.add(counter[1], k1)
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = b.add(x0, x1)
            x1 = b.or_(b.shl(x1, rotation), b.shr(x1, 32 - rotation))
            x1 = b.xor(x1, x0)
        x0 = b.add(x0, keys[(group + 1) % 3])
        x1 = b.add(x1, b.add(keys[(group + 2) % 3], group + 1))
    return x0, x1


def _word(value: Word) -> Node:
    return b.cast(value, u32) if isinstance(value, Node) else b.const(value & _MASK, u32)


def words(key: tuple[Word, Word], counter: Word, shape: Sequence[int]) -> tuple[Node, Node]:
    """Return two independent u32 for each element of `shape`.

    Element i, in row-major order, belongs to the 64-bit count `counter + i`, so draws whose
    counters are at least as many apart as they have elements do not overlap.
    """
    n = math.prod(shape)
    place = b.reshape(b.iota(n, u32), shape)
    if isinstance(counter, Node):
        wide = b.cast(counter, u64)
        low, high = b.cast(b.and_(wide, _MASK), u32), b.cast(b.shr(wide, 32), u32)
    else:
        low, high = b.const(counter & _MASK, u32), b.const((counter >> 32) & _MASK, u32)
    low = b.add(place, low)
    carry = b.cast(b.lt(low, place), u32)
    return threefry2x32(key, (b.add(carry, high), low))


def bits(key: tuple[Word, Word], counter: Word, shape: Sequence[int]) -> Node:
    """Return uniform u32; at counter 0 those of `jax.random.bits` for the same key."""
    return b.xor(*words(key, counter, shape))


def uniform(
    key: tuple[Word, Word], counter: Word, shape: Sequence[int], dtype: DType = f32
) -> Node:
    """Return uniform floats in [0, 1): 24 random bits for f32, 53 for f64, 11 and 8 for halves."""
    if dtype is f64:
        high, low = words(key, counter, shape)
        wide = b.or_(b.shl(b.cast(high, u64), 32), b.cast(low, u64))
        return b.mul(b.cast(b.shr(wide, 11), f64), 2.0**-53)
    if dtype.is_half:
        digits = 11 if dtype is f16 else 8
        drawn = b.cast(b.shr(bits(key, counter, shape), 32 - digits), i32)
        return b.cast(b.mul(b.cast(drawn, f32), 2.0**-digits), dtype)
    return _unit(bits(key, counter, shape))


def _unit(x: Node) -> Node:
    """Return the upper 24 bits of u32 as an f32 in [0, 1); by i32, which converts faster."""
    return b.mul(b.cast(b.cast(b.shr(x, 8), i32), f32), 2.0**-24)


def normal(key: tuple[Word, Word], counter: Word, shape: Sequence[int], dtype: DType = f32) -> Node:
    """Return standard normal floats by Box and Muller's method, one from two words."""
    first, second = words(key, counter, shape)
    if dtype is f64:
        radius, turn = (b.mul(b.cast(w, f64), 2.0**-32) for w in (first, second))
        smallest = 2.0**-32
    else:
        radius, turn = _unit(first), _unit(second)
        smallest = 2.0**-24
    # In (0, 1], for the logarithm.
    radius = b.add(radius, smallest)
    found = b.mul(b.sqrt(b.mul(b.log(radius), -2.0)), b.cos(b.mul(turn, 2 * math.pi)))
    return b.cast(found, dtype)


def randint(
    key: tuple[Word, Word],
    counter: Word,
    shape: Sequence[int],
    low: int,
    high: int,
    dtype: DType = i64,
) -> Node:
    """Return integers low <= n < high; ValueError where there are none."""
    span = high - low
    if span <= 0:
        raise ValueError(f"randint: no integer is >= {low} and < {high}")
    first, second = words(key, counter, shape)
    if span <= 1 << 32:
        # The upper half of bits * span: as even as a remainder, and cheaper.
        drawn = b.shr(b.mul(b.cast(b.xor(first, second), u64), span), 32)
    else:
        wide = b.or_(b.shl(b.cast(first, u64), 32), b.cast(second, u64))
        drawn = b.mod(wide, span)
    return b.cast(b.add(b.cast(drawn, i64), low), dtype)


def bernoulli(key: tuple[Word, Word], counter: Word, p: Node | float, shape: Sequence[int]) -> Node:
    """Return bool that are True with probability p (a number, or a node that broadcasts)."""
    return b.lt(uniform(key, counter, shape), p)
