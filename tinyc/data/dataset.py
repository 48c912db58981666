"""What a data set is: a length and samples by number, and for speed many samples at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Dataset:
    """A data set by number: ``len(dataset)`` samples, ``dataset[i]`` one of them.

    Any object with these two methods will do, PyTorch's data sets among them. One that also has
    ``batch(indices)``, which returns a tuple of numpy arrays with one row for each index, is read
    a batch at a time.
    """

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__")


class TensorDataset(Dataset):
    """Arrays or Tensors of equal first dimension; sample i is the tuple of their rows i."""

    def __init__(self, *tensors: Any) -> None:
        if not tensors:
            raise ValueError("TensorDataset: at least one tensor is needed")
        self.tensors = tensors
        self.arrays = tuple(np.asarray(tensor) for tensor in tensors)
        lengths = [array.shape[0] if array.ndim else None for array in self.arrays]
        if None in lengths or len(set(lengths)) != 1:
            shapes = ", ".join(str(array.shape) for array in self.arrays)
            raise ValueError(f"TensorDataset: first dimensions differ: shapes {shapes}")

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(array[index] for array in self.arrays)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the rows of each array at the indices, as new arrays."""
        return tuple(array[indices] for array in self.arrays)


class Subset(Dataset):
    """The samples of another data set at the given indices, in that order."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = np.asarray(indices, dtype=np.int64)
        if hasattr(dataset, "batch"):
            self.batch = lambda positions: dataset.batch(self.indices[positions])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]
