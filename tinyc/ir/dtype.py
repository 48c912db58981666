"""Element types: what a tensor's elements are, and which type two of them meet in."""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass

import numpy as np

from tinyc.diagnostics import DTypeError

Scalar = bool | int | float


@dataclass(frozen=True, eq=False)
class DType:
    """One element type; there is exactly one object for each, so `is` compares them.

    `kind` is 'b' (bool), 'u' (unsigned), 'i' (signed) or 'f' (floating); `np` the numpy dtype of
    arrays of it. That of bf16 is its bits under a name of their own: numpy cannot take them for
    numbers, see `numbers` and `stored`.
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

    @property
    def is_half(self) -> bool:
        """f16 or bf16, which are for memory: whatever is computed is computed in `wide`."""
        return self.kind == "f" and self.itemsize == 2

    @property
    def wide(self) -> DType:
        """The type that arithmetic on such elements is done in: f32 for halves, else itself."""
        return f32 if self.is_half else self

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
f16 = DType("f16", "f", 2, np.dtype(np.float16))
bf16 = DType("bf16", "f", 2, np.dtype([("bf16", np.uint16)]))
f32 = DType("f32", "f", 4, np.dtype(np.float32))
f64 = DType("f64", "f", 8, np.dtype(np.float64))

DTYPES: dict[str, DType] = {
    d.name: d for d in (bool_, u8, i8, u16, i16, u32, i32, u64, i64, f16, bf16, f32, f64)
}

# The promotion lattice by its covering edges: each type, and the next wider ones. (u64 is below no
# half, else it would meet i64 in one of them.)
WIDER: dict[DType, tuple[DType, ...]] = {
    bool_: (u8, i8),
    u8: (u16, i16),
    i8: (i16,),
    u16: (u32, i32),
    i16: (i32,),
    u32: (u64, i64),
    i32: (i64,),
    u64: (f32,),
    i64: (f16, bf16),
    f16: (f32,),
    bf16: (f32,),
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
    """The type with numpy's `dtype`; DTypeError when there is none (complex, object).

    The bfloat16 of the package ml_dtypes, which other libraries use, too, is bf16.
    """
    native = np.dtype(dtype).newbyteorder("=")
    if native.name == "bfloat16":
        return bf16
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


@dataclass(frozen=True)
class finfo:
    """What a float type can hold, as PyTorch has it: `eps` is the step from 1 to the next number,
    `tiny` the smallest normal number, `resolution` that of decimal digits. DTypeError for others.
    """

    dtype: DType

    def __post_init__(self) -> None:
        if not self.dtype.is_float:
            raise DTypeError(f"finfo: {self.dtype} is no float type")

    @property
    def bits(self) -> int:
        """The width in bits."""
        return self.dtype.bits

    @property
    def eps(self) -> float:
        """The step from 1 to the next number."""
        return 2.0 ** {"f16": -10, "bf16": -7, "f32": -23, "f64": -52}[self.dtype.name]

    @property
    def tiny(self) -> float:
        """The smallest positive normal number."""
        return 2.0 ** {"f16": -14, "f64": -1022}.get(self.dtype.name, -126)

    smallest_normal = tiny

    @property
    def max(self) -> float:
        """The largest finite number."""
        top = {"f16": 16, "f64": 1024}.get(self.dtype.name, 128)
        return math.ldexp(1.0 - self.eps / 2, top) if top < 1024 else sys.float_info.max

    @property
    def min(self) -> float:
        """The smallest finite number."""
        return -self.max

    @property
    def resolution(self) -> float:
        """The decimal resolution: 10 to minus the digits that always survive."""
        return float({"f16": 1e-3, "bf16": 1e-2, "f32": 1e-6, "f64": 1e-15}[self.dtype.name])


def encode(value: Scalar, dtype: DType) -> int:
    """The bit pattern of `value` in `dtype`: unlike values it tells 0.0 from -0.0 and 1 from True.

    A float too large for its type becomes infinite. DTypeError when an integer type does not hold
    it.
    """
    if dtype.is_half:
        return int(stored(np.array(value, np.float64), dtype).view(np.uint16))
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
    if dtype.is_half:
        return float(numbers(np.array(bits, np.uint16).view(dtype.np), dtype))
    if dtype.kind == "f":
        return _FLOAT_FORMAT[dtype].unpack(bits.to_bytes(dtype.itemsize, "little"))[0]
    if dtype.kind == "b":
        return bool(bits)
    if dtype.kind == "i" and bits >> (dtype.bits - 1):
        return bits - (1 << dtype.bits)
    return bits


# Arrays of halves ---------------------------------------------------------------------------


def numbers(array: np.ndarray, dtype: DType) -> np.ndarray:
    """An array of `dtype` as numpy calculates with it: halves as f32, which is exact."""
    if dtype is f16:
        return array.astype(np.float32)
    if dtype is bf16:
        bits = np.asarray(array.view(np.uint16), np.uint32)
        return np.asarray(bits << np.uint32(16), np.uint32).view(np.float32)
    return array


def stored(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Numbers as an array of `dtype`; halves by way of f32, rounded to nearest, ties to even.

    What is too large becomes infinite, NaN stays NaN.
    """
    if not dtype.is_half:
        return np.asarray(values).astype(dtype.np)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = np.asarray(values).astype(np.float32)
        if dtype is f16:
            return np.asarray(single.astype(np.float16))
    bits = single.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + (np.uint32(0x7FFF) + odd)) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(single), quiet, rounded).astype(np.uint16).view(dtype.np)


def converted_array(array: np.ndarray, dtype: DType) -> np.ndarray:
    """An array that has a type of ours in another; itself if it is of that type."""
    source = from_numpy(array.dtype)
    array = array if array.dtype.name != "bfloat16" else array.view(bf16.np)
    return array if source is dtype else stored(numbers(array, source), dtype)
