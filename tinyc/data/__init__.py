"""Data sets and their loading: batches in a fixed order per seed, and MNIST's file format."""

from __future__ import annotations

from tinyc.data.dataset import Dataset, Subset, TensorDataset
from tinyc.data.idx import DataError, read_idx
from tinyc.data.loader import DataLoader, default_collate
from tinyc.data.mnist import ImageDataset, mnist

__all__ = [
    "DataError",
    "DataLoader",
    "Dataset",
    "ImageDataset",
    "Subset",
    "TensorDataset",
    "default_collate",
    "mnist",
    "read_idx",
]
