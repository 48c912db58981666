"""Element types: what a tensor's elements are, and which type two of them meet in."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from tinyc.diagnostics import DTypeError

Scalar = bool | int | float


@dataclass(frozen=True, eq=False)
class DType:
    """One element type; there is exactly one object for each, so `is` compares them.

    `kind` is 'b' (bool), 'u' (unsigned), 'i' (signed) or 'f' (floating); `np` the numpy dtype.
    """

    name: str
    kind: str
    itemsize: int
    np: np.dtype

    @property
    def bits(self) -> int:
        """Width in bits (8 for bool, which is stored in a byte)."""
        return 8 * self.itemsize

    @property
    def is_float(self) -> bool:
        """Floating point."""
        return self.kind == "f"

    @property
    def is_int(self) -> bool:
        """Signed or unsigned integer; bool is not one."""
        return self.kind in "iu"

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple:
        return dtype_named, (self.name,)

    def __copy__(self) -> DType:
        return self

    def __deepcopy__(self, memo: dict) -> DType:
        return self


bool_ = DType("bool", "b", 1, np.dtype(np.bool_))
u8 = DType("u8", "u", 1, np.dtype(np.uint8))
i8 = DType("i8", "i", 1, np.dtype(np.int8))
u16 = DType("u16", "u", 2, np.dtype(np.uint16))
i16 = DType("i16", "i", 2, np.dtype(np.int16))
u32 = DType("u32", "u", 4, np.dtype(np.uint32))
i32 = DType("i32", "i", 4, np.dtype(np.int32))
u64 = DType("u64", "u", 8, np.dtype(np.uint64))
i64 = DType("i64", "i", 8, np.dtype(np.int64))
f32 = DType("f32", "f", 4, np.dtype(np.float32))
f64 = DType("f64", "f", 8, np.dtype(np.float64))

DTYPES: dict[str, DType] = {
    d.name: d for d in (bool_, u8, i8, u16, i16, u32, i32, u64, i64, f32, f64)
}

# The promotion lattice by its covering edges: each type, and the next wider ones.
WIDER: dict[DType, tuple[DType, ...]] = {
    bool_: (u8, i8),
    u8: (u16, i16),
    i8: (i16,),
    u16: (u32, i32),
    i16: (i32,),
    u32: (u64, i64),
    i32: (i64,),
    u64: (f32,),
    i64: (f32,),
    f32: (f64,),
    f64: (),
}


def _joins() -> dict[tuple[DType, DType], DType]:
    """The least upper bound of every pair; a bound is least when it has the most bounds itself."""
    above: dict[DType, set[DType]] = {}
    for d in reversed(list(DTYPES.values())):
        above[d] = {d}.union(*(above[w] for w in WIDER[d]))
    return {
        (a, b): max(above[a] & above[b], key=lambda d: len(above[d]))
        for a in above
        for b in above
    }


_JOIN = _joins()
_BY_NUMPY = {d.np: d for d in DTYPES.values()}
_FLOAT_FORMAT = {f32: struct.Struct("<f"), f64: struct.Struct("<d")}


def dtype_named(name: str) -> DType:
    """The type of that name; DTypeError lists the names there are."""
    try:
        return DTYPES[name]
    except KeyError:
        known = ", ".join(DTYPES)
        raise DTypeError(f"dtype: no type is called {name!r}; there are {known}") from None


def from_numpy(dtype: np.dtype) -> DType:
    """The type with numpy's `dtype`; DTypeError when there is none (float16, complex, object)."""
    native = np.dtype(dtype).newbyteorder("=")
    try:
        return _BY_NUMPY[native]
    except KeyError:
        known = ", ".join(DTYPES)
        raise DTypeError(f"dtype: numpy's {native} has no counterpart; there are {known}") from None


def promote(a: DType, b: DType) -> DType:
    """The type that elements of `a` and `b` meet in: their least upper bound in the lattice."""
    return _JOIN[a, b]


def default_dtype(value: Scalar) -> DType:
    """The type of a Python number on its own: bool, i64 or f32."""
    if isinstance(value, bool):
        return bool_
    return i64 if isinstance(value, int) else f32


def weak_promote(dtype: DType, value: Scalar) -> DType:
    """The type of `dtype` beside a Python number, which changes the kind but never the width."""
    if isinstance(value, bool) or dtype.kind == "f":
        return dtype
    if isinstance(value, int):
        return i64 if dtype is bool_ else dtype
    return f32


def limits(dtype: DType) -> tuple[Scalar, Scalar]:
    """The smallest and largest value: -inf and inf for floats, False and True for bool."""
    if dtype.kind == "f":
        return -math.inf, math.inf
    if dtype.kind == "b":
        return False, True
    if dtype.kind == "u":
        return 0, (1 << dtype.bits) - 1
    return -(1 << dtype.bits - 1), (1 << dtype.bits - 1) - 1


def encode(value: Scalar, dtype: DType) -> int:
    """The bit pattern of `value` in `dtype`: unlike values it tells 0.0 from -0.0 and 1 from True.

    A float too large for f32 becomes infinite. DTypeError when an integer type does not hold it.
    """
    if dtype.kind == "f":
        form = _FLOAT_FORMAT[dtype]
        try:
            return int.from_bytes(form.pack(value), "little")
        except OverflowError:
            big = math.inf if value > 0 else -math.inf
            return int.from_bytes(form.pack(big), "little")
    if dtype.kind == "b":
        return int(bool(value))
    low, high = limits(dtype)
    if not low <= value <= high or value != int(value):
        raise DTypeError(
            f"const: {value!r} is no value of {dtype}; it holds the integers {low} to {high};"
            " cast the tensor to a wider type first"
        )
    return int(value) & ((1 << dtype.bits) - 1)


def decode(bits: int, dtype: DType) -> Scalar:
    """The Python number with that bit pattern: the inverse of `encode`."""
    if dtype.kind == "f":
        return _FLOAT_FORMAT[dtype].unpack(bits.to_bytes(dtype.itemsize, "little"))[0]
    if dtype.kind == "b":
        return bool(bits)
    if dtype.kind == "i" and bits >> (dtype.bits - 1):
        return bits - (1 << dtype.bits)
    return bits
