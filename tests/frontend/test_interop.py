"""Exchange with numpy and with what speaks DLPack."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import tinyc
from tinyc import Tensor, config


@pytest.fixture(autouse=True)
def _on_numpy() -> Iterator[None]:
    with config.configure(device="numpy"):
        yield


def test_asarray() -> None:
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    found = np.asarray(x)
    assert found.dtype == np.float32
    assert found.tolist() == x.tolist()
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    assert np.asarray(x * 2).tolist() == [[2, 4], [6, 8]]
    assert np.array(x[0]).tolist() == [1, 2]
    assert np.stack([x, x]).shape == (2, 2, 2)
    assert np.float32(x[0, 0]) == 1


def test_numpy_gives_values_of_their_own() -> None:
    x = Tensor([1.0, 2.0])
    before = x.numpy()
    before[0] = 9
    assert x.tolist() == [1, 2]
    x += 1
    assert before.tolist() == [9, 2]


def test_no_copy_on_request() -> None:
    x = Tensor([1.0, 2.0]).realize()
    shared = x.__array__(copy=False)
    x.load(np.array([5.0, 6.0]))
    assert shared.tolist() == [5, 6]
    with pytest.raises(ValueError, match="only by a copy"):
        x.__array__(np.float64, copy=False)


def test_arrays_beside_tensors() -> None:
    a = np.array([1.0, 2.0], np.float32)
    x = Tensor([10.0, 20.0])
    for found in (a + x, x + a, a * x, np.float32(3) - x, a @ x, a < x):
        assert type(found) is Tensor
    assert (a - x).tolist() == [-9, -18]
    with pytest.raises(TypeError):
        np.exp(x)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u1", "u4", "?"])
def test_dlpack_both_ways(dtype) -> None:
    a = np.arange(16).reshape(4, 4).astype(dtype)
    if dtype != "?":
        np.testing.assert_array_equal(np.from_dlpack(Tensor(a)), a)
        np.testing.assert_array_equal(tinyc.from_dlpack(a).numpy(), a)
        np.testing.assert_array_equal(np.from_dlpack(Tensor(a) + Tensor(a)), a + a)
    assert Tensor(a).__dlpack_device__() == (1, 0)


def test_dlpack_shares_memory() -> None:
    x = Tensor(np.zeros(4, np.float32))
    seen = np.from_dlpack(x)
    x.load(np.ones(4))
    assert seen.tolist() == [1] * 4
    y = tinyc.from_dlpack(x)
    x.load(np.full(4, 2))
    assert y.tolist() == [2] * 4


def test_from_numpy_shares_aligned_memory() -> None:
    whole = np.zeros(64, np.float32)
    offset = -whole.ctypes.data % 64 // 4
    aligned = whole[offset : offset + 8]
    t = tinyc.from_numpy(aligned)
    aligned[0] = 7
    assert t[0].item() == 7


def test_unknown_dtypes_are_named() -> None:
    with pytest.raises(TypeError, match="complex128 has no counterpart"):
        Tensor(np.zeros(2, complex))
    with pytest.raises(TypeError, match="str is no number"):
        Tensor(["a", None])


@pytest.mark.oracle
def test_torch_reads_and_is_read() -> None:
    torch = pytest.importorskip("torch")
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(torch.from_dlpack(x), torch.tensor(x.tolist()))
    assert tinyc.from_dlpack(torch.arange(4)).tolist() == [0, 1, 2, 3]
    assert Tensor(torch.ones(2)).tolist() == [1, 1]
