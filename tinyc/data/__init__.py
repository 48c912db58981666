"""Data sets and their loading: batches in a fixed order per seed, MNIST's file format, text."""

from __future__ import annotations

from tinyc.data.dataset import Dataset, Subset, TensorDataset
from tinyc.data.idx import DataError, read_idx
from tinyc.data.loader import DataLoader, default_collate
from tinyc.data.mnist import ImageDataset, mnist
from tinyc.data.text import CharTokenizer, TokenWindows, shakespeare, split_windows

__all__ = [
    "CharTokenizer",
    "DataError",
    "DataLoader",
    "Dataset",
    "ImageDataset",
    "Subset",
    "TensorDataset",
    "TokenWindows",
    "default_collate",
    "mnist",
    "read_idx",
    "shakespeare",
    "split_windows",
]
