"""IDX files: what is read, and what is said about files that are not right."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from tinyc.data import DataError, mnist, read_idx


def idx(array: np.ndarray, code: int = 8) -> bytes:
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, code, array.ndim]) + shape + array.tobytes()


IMAGES = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
LABELS = np.array([7, 0, 9], np.uint8)


def write_part(folder: Path, prefix: str, images: bytes, labels: bytes) -> None:
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_values_survive(tmp_path: Path, compress) -> None:
    path = tmp_path / "file"
    path.write_bytes(compress(idx(IMAGES)))
    assert read_idx(path).dtype == np.uint8
    np.testing.assert_array_equal(read_idx(path), IMAGES)


def test_big_endian_values_become_native(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(idx(np.array([1, -2, 70000], ">i4"), 0x0C))
    assert read_idx(path).dtype == np.int32
    assert read_idx(path).tolist() == [1, -2, 70000]


WHOLE = idx(IMAGES)
BAD = {
    "empty": (b"", "file is empty"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "not an IDX file.*89 50 4e 47"),
    "text": (b"label,pixel0,pixel1\n", "not an IDX file"),
    "header": (WHOLE[:3], "truncated: 3 of the 4 bytes of its header"),
    "dimensions": (WHOLE[:9], "truncated: 5 of the 12 bytes of its dimensions"),
    "values": (WHOLE[:-100], r"truncated: 2252 of the 2352 bytes of its values of shape \(3, 28"),
    "long": (WHOLE + b"x", "goes on after the 2352 bytes"),
    "dtype": (b"\0\0\x07\x03" + WHOLE[4:], "not an IDX file"),
    "scalar": (b"\0\0\x08\x00" + WHOLE[4:], "not an IDX file"),
    "claims": (b"\0\0\x08\x02" + b"\xff" * 8, "truncated: 0 of the 18446744065119617025 bytes"),
    "gzip cut": (gzip.compress(WHOLE)[:-40], "truncated: the gzip stream ends"),
    "gzip damaged": (gzip.compress(WHOLE)[:-8] + bytes(8), "damaged gzip stream"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_named_with_its_fault(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / "some-file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_mnist_reads_plain_files_of_a_folder(tmp_path: Path) -> None:
    write_part(tmp_path, "train", idx(IMAGES), idx(LABELS))
    write_part(tmp_path, "t10k", idx(IMAGES[:1]), idx(LABELS[:1]))
    train, test = mnist(tmp_path)
    assert (len(train), len(test)) == (3, 1)
    image, label = train[2]
    assert image.shape == (1, 28, 28) and image.dtype == np.float32 and label == 9
    np.testing.assert_array_equal(image[0], IMAGES[2] / np.float32(255))
    assert len(mnist(tmp_path, train=False)) == 1


def test_mnist_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no data in {tmp_path}; a folder with the files"):
        mnist(tmp_path)
    write_part(tmp_path, "train", idx(IMAGES), idx(LABELS))
    with pytest.raises(FileNotFoundError, match="neither t10k-images-idx3-ubyte nor"):
        mnist(tmp_path)


def test_mnist_checks_that_files_belong_together(tmp_path: Path) -> None:
    write_part(tmp_path, "train", idx(IMAGES), idx(LABELS[:2]))
    with pytest.raises(DataError, match=r"has 3 images but .* has 2 labels"):
        mnist(tmp_path, train=True)
    write_part(tmp_path, "train", idx(LABELS), idx(LABELS))
    with pytest.raises(DataError, match=r"holds uint8\[3\], expected images"):
        mnist(tmp_path, train=True)
