"""MNIST, and any data set in its four files: 28x28 grey images with labels 0 to 9."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinyc.data.dataset import Dataset
from tinyc.data.idx import DataError, read_idx

_FILES = {
    True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    False: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class ImageDataset(Dataset):
    """Grey images as bytes with labels; a sample is (f32[1, h, w] in 0..1, int).

    ``images`` is u8[n, 1, h, w], ``labels`` i64[n]; pixels become floats one batch at a time.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index] / np.float32(255), int(self.labels[index])

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (f32[b, 1, h, w] in 0..1, i64[b]) of the samples at the indices."""
        return self.images[indices] / np.float32(255), self.labels[indices]


def mnist(root: str | os.PathLike[str] | None = None, train: bool | None = None) -> Any:
    """Return MNIST's (training set, test set), or the one that ``train`` asks for.

    ``root`` is a folder with the four published files, gzipped or not; any data set in this form
    (Fashion-MNIST, KMNIST) will do. Without it, the copy in ``examples/data/mnist`` of a checkout
    is read; nothing is ever downloaded. Raises FileNotFoundError naming the folders searched, and
    DataError for a file that is truncated, damaged or foreign.
    """
    folder = _folder(root)
    if train is not None:
        return _read_part(folder, train)
    return _read_part(folder, True), _read_part(folder, False)


def _folder(root: str | os.PathLike[str] | None) -> Path:
    candidates = list(_default_folders()) if root is None else [Path(root)]
    for folder in candidates:
        if _find(folder, _FILES[True][0]) or _find(folder, _FILES[False][0]):
            return folder
    searched = ", ".join(map(str, candidates))
    names = ", ".join(name for pair in _FILES.values() for name in pair)
    raise FileNotFoundError(
        f"mnist: no data in {searched}; a folder with the files {names}, each plain or with .gz, "
        "is given as mnist(root)"
    )


def _default_folders() -> Iterator[Path]:
    yield Path(__file__).resolve().parents[2] / "examples" / "data" / "mnist"
    yield Path.cwd() / "examples" / "data" / "mnist"


def _find(folder: Path, name: str) -> Path | None:
    # Some mirrors write a dot before idx.
    for spelled in (name, name.replace("-idx", ".idx")):
        for path in (folder / f"{spelled}.gz", folder / spelled):
            if path.is_file():
                return path
    return None


def _read_part(folder: Path, train: bool) -> ImageDataset:
    paths = []
    for name in _FILES[train]:
        path = _find(folder, name)
        if path is None:
            raise FileNotFoundError(f"mnist: {folder} has neither {name} nor {name}.gz")
        paths.append(path)
    images, labels = _check(paths[0], paths[1], read_idx(paths[0]), read_idx(paths[1]))
    return ImageDataset(images, labels)


def _check(
    image_path: Path, label_path: Path, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    for path, array, rank, what in (
        (image_path, images, 3, "images: u8[n, height, width]"),
        (label_path, labels, 1, "labels: u8[n]"),
    ):
        if array.ndim != rank or array.dtype != np.uint8:
            shape = ", ".join(map(str, array.shape))
            raise DataError(f"{path}: holds {array.dtype.name}[{shape}], expected {what}")
    if len(images) != len(labels):
        raise DataError(
            f"{image_path} has {len(images)} images but {label_path} has {len(labels)} labels"
        )
    return images[:, None], labels.astype(np.int64)
