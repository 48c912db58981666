"""Batches: how many, in which order, of what."""

from __future__ import annotations

import collections
import threading
import time

import numpy as np
import pytest

import tinyc
from tinyc.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

NUMBERS = TensorDataset(np.arange(10), np.arange(10) * 2.0)


def order(loader: DataLoader) -> list[int]:
    return [int(number) for batch in loader for number in batch[0].numpy()]


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 11])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_length_agrees_with_iteration(batch_size: int, drop_last: bool, num_workers: int) -> None:
    loader = DataLoader(NUMBERS, batch_size, drop_last=drop_last, num_workers=num_workers)
    batches = list(loader)
    assert len(batches) == len(loader)
    sizes = [len(batch[0]) for batch in batches]
    assert all(size == batch_size for size in sizes[:-1])
    assert sum(sizes) == (10 - 10 % batch_size if drop_last else 10)


def test_shuffle_permutes_by_seed_and_epoch() -> None:
    loader = DataLoader(NUMBERS, 4, shuffle=True, seed=3)
    first, second = order(loader), order(loader)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != list(range(10)) and first != second
    again = DataLoader(NUMBERS, 4, shuffle=True, seed=3, num_workers=1)
    assert [order(again), order(again)] == [first, second]
    again.epoch = 0
    assert order(again) == first
    assert order(DataLoader(NUMBERS, 4, shuffle=True, seed=4)) != first


def test_shuffle_follows_manual_seed_or_a_generator() -> None:
    orders = []
    for _ in range(2):
        tinyc.manual_seed(5)
        orders.append(order(DataLoader(NUMBERS, 2, shuffle=True)))
    assert orders[0] == orders[1]
    generators = [np.random.default_rng(1) for _ in range(2)]
    given = [order(DataLoader(NUMBERS, 2, shuffle=True, generator=g)) for g in generators]
    assert given[0] == given[1]


def test_order_without_shuffle_is_the_data_set_s() -> None:
    assert order(DataLoader(NUMBERS, 3)) == list(range(10))
    assert order(DataLoader(Subset(NUMBERS, [4, 1, 9]), 2)) == [4, 1, 9]


def test_batches_keep_dtypes_and_shapes() -> None:
    images = np.zeros((5, 1, 4, 4), np.float32)
    x, y = next(iter(DataLoader(TensorDataset(images, np.arange(5)), 2)))
    assert (tuple(x.shape), x.dtype) == ((2, 1, 4, 4), tinyc.float32)
    assert (tuple(y.shape), y.dtype) == ((2,), tinyc.int64)


class Point(collections.namedtuple("Point", "x y")):
    pass


class Samples(Dataset):
    """A data set in PyTorch's style: length and samples, nothing else."""

    def __init__(self, samples: list) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        return self.samples[index]


def test_samples_of_any_structure_are_collated() -> None:
    samples = [
        {"a": (i, float(i)), "b": np.ones(2, np.float32) * i, "name": str(i), "p": Point(i, 2)}
        for i in range(4)
    ]
    batch = next(iter(DataLoader(Samples(samples), 4)))
    assert batch["a"][0].tolist() == [0, 1, 2, 3] and batch["a"][0].dtype == tinyc.int64
    assert batch["a"][1].dtype == tinyc.float64
    assert tuple(batch["b"].shape) == (4, 2)
    assert batch["name"] == ["0", "1", "2", "3"]
    assert batch["p"].x.tolist() == [0, 1, 2, 3]


def test_tensors_as_samples_and_a_collate_function() -> None:
    samples = Samples([tinyc.Tensor([1.0, 2.0]), tinyc.Tensor([3.0, 4.0])])
    assert next(iter(DataLoader(samples, 2))).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    longest = DataLoader(Samples([[1], [1, 2]]), 2, collate_fn=lambda rows: max(map(len, rows)))
    assert list(longest) == [2]


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"different shapes: \(1,\), \(2,\)"):
        default_collate([np.zeros(1), np.zeros(2)])
    with pytest.raises(ValueError, match="differ in length"):
        default_collate([(1, 2), (1,)])
    with pytest.raises(ValueError, match=r"first dimensions differ: shapes \(2,\), \(3,\)"):
        TensorDataset(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="batch_size"):
        DataLoader(NUMBERS, 0)


class Failing(Samples):
    def __getitem__(self, index: int):
        if index == 3:
            raise KeyError("sample 3")
        return super().__getitem__(index)


def test_reading_ahead_passes_errors_on_and_ends_its_thread() -> None:
    with pytest.raises(KeyError, match="sample 3"):
        list(DataLoader(Failing(list(range(6))), 2, num_workers=1))
    batches = iter(DataLoader(NUMBERS, 1, num_workers=1))
    next(batches)
    del batches
    deadline = time.time() + 5
    while any(t.name == "tinyc-loader" for t in threading.enumerate()) and time.time() < deadline:
        time.sleep(0.01)
    assert not any(t.name == "tinyc-loader" for t in threading.enumerate())


@pytest.mark.oracle
def test_data_sets_of_pytorch_are_read() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.data import TensorDataset as Theirs

    theirs = Theirs(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 2]))
    x, y = next(iter(DataLoader(theirs, 3)))
    assert x.dtype == tinyc.float32 and y.dtype == tinyc.int64
    assert x.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
