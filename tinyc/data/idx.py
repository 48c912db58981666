"""The IDX file format of MNIST and its relatives, read with every size checked."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from tinyc.diagnostics import TinycError

_GZIP = b"\x1f\x8b"
_LFS = b"version https://git-lfs"
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class DataError(TinycError, ValueError):
    """A data file that is truncated, damaged, or not of the expected kind."""


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the array of an IDX file, plain or gzipped (told by its content, not its name).

    The format is: two zero bytes, a byte for the dtype, a byte for the number of dimensions, the
    dimensions as big-endian 32-bit numbers, the values. Raises DataError, naming the file and
    what is wrong, for a file that is of another kind, too short, too long or damaged.
    """
    path = Path(path)
    with open(path, "rb") as raw:
        start = raw.read(len(_LFS))
        raw.seek(0)
        _refuse_pointer(path, start)
        stream = gzip.GzipFile(fileobj=raw) if start.startswith(_GZIP) else raw
        return _read_array(path, stream)


def _refuse_pointer(path: Path, start: bytes) -> None:
    if start == _LFS:
        raise DataError(f"{path}: a Git LFS pointer, not the data; `git lfs pull` fetches the file")
    if not start:
        raise DataError(f"{path}: the file is empty")


def _read_array(path: Path, stream: io.BufferedIOBase | gzip.GzipFile) -> np.ndarray:
    magic = _read(path, stream, 4, "header")
    if magic[:2] != b"\0\0" or magic[2] not in _DTYPES or magic[3] == 0:
        raise DataError(
            f"{path}: not an IDX file: it starts with the bytes {magic.hex(' ')}, where IDX has "
            "00 00, a dtype (08 for bytes), the number of dimensions"
        )
    rank = magic[3]
    shape = struct.unpack(f">{rank}I", _read(path, stream, 4 * rank, "dimensions"))
    dtype = np.dtype(_DTYPES[magic[2]])
    size = math.prod(shape) * dtype.itemsize
    data = _read(path, stream, size, f"values of shape {shape}")
    if _read_some(path, stream, 1):
        raise DataError(f"{path}: data goes on after the {size} bytes that shape {shape} takes")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read(path: Path, stream: io.BufferedIOBase | gzip.GzipFile, size: int, what: str) -> bytes:
    data = _read_some(path, stream, size)
    if len(data) < size:
        raise DataError(f"{path}: truncated: {len(data)} of the {size} bytes of its {what}")
    return data


def _read_some(path: Path, stream: io.BufferedIOBase | gzip.GzipFile, size: int) -> bytes:
    """Read up to ``size`` bytes, in pieces: a false header must not allocate what it claims."""
    pieces: list[bytes] = []
    left = size
    try:
        while left and (piece := stream.read(min(left, 1 << 24))):
            pieces.append(piece)
            left -= len(piece)
    except EOFError:
        got = sum(map(len, pieces))
        raise DataError(f"{path}: truncated: the gzip stream ends after {got} bytes") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip stream: {error}") from None
    return b"".join(pieces)
