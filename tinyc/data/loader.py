"""Batches of a data set: in order or shuffled, the same for the same seed, read ahead if asked."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tinyc import random
from tinyc.tensor import Tensor

Collate = Callable[[list[Any]], Any]


class DataLoader:
    """Iterate over batches of a data set; each ``for`` over the loader is one epoch.

    Batches are what the samples are (tuples, dictionaries, arrays, numbers) with Tensors of one
    more dimension in front. ``collate_fn`` (list of samples -> batch) replaces that.

    Args:
        dataset: anything with ``len`` and ``[i]``.
        batch_size: samples in a batch; the last one has what is left, or is left out with
            ``drop_last``.
        shuffle: visit the samples in another order each epoch. The order is a function of
            ``seed`` and ``epoch`` alone; without a seed one is drawn from ``manual_seed``'s
            generator when the loader is made. A numpy ``generator`` may be given instead.
        num_workers: 0 reads batches when they are asked for; any other number reads
            ``prefetch_factor`` batches for each ahead, in one background thread.

    The attribute ``epoch`` counts the epochs begun; set it to resume at one.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        num_workers: int = 0,
        collate_fn: Collate | None = None,
        drop_last: bool = False,
        seed: int | None = None,
        generator: np.random.Generator | None = None,
        prefetch_factor: int = 2,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"DataLoader: batch_size must be at least 1, not {batch_size}")
        if seed is not None and generator is not None:
            raise ValueError("DataLoader: give a seed or a generator, not both")
        if seed is None and generator is None and shuffle:
            seed = int(random.numpy_generator().integers(2**63))
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.collate_fn = collate_fn
        self.drop_last = drop_last
        self.seed = seed
        self.generator = generator
        self.prefetch_factor = prefetch_factor
        self.epoch = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        order = self._order()
        self.epoch += 1
        batches: Iterator[Any] = (
            self._fetch(order[i * self.batch_size : (i + 1) * self.batch_size])
            for i in range(len(self))
        )
        if self.num_workers:
            batches = _read_ahead(batches, self.num_workers * self.prefetch_factor)
        # Tensors are made in the caller's thread: graphs are built in one thread only.
        return (_to_tensors(batch) for batch in batches)

    def _order(self) -> np.ndarray:
        size = len(self.dataset)
        if not self.shuffle:
            return np.arange(size)
        if self.generator is not None:
            return self.generator.permutation(size)
        return np.random.default_rng((self.seed or 0, self.epoch)).permutation(size)

    def _fetch(self, indices: np.ndarray) -> Any:
        read = getattr(self.dataset, "batch", None)
        if read is not None and self.collate_fn is None:
            return read(indices)
        samples = [self.dataset[int(index)] for index in indices]
        return (self.collate_fn or _stack)(samples)


def default_collate(samples: Sequence[Any]) -> Any:
    """Return one batch of Tensors from a list of samples, by the rules of PyTorch.

    Arrays and tensors are stacked, ints become i64 and floats f64, tuples and dictionaries are
    collated by element, other values come as a list. ValueError says which shapes differ.
    """
    return _to_tensors(_stack(list(samples)))


def _stack(samples: list[Any]) -> Any:
    """Collate samples into numpy arrays."""
    first = samples[0]
    if isinstance(first, Mapping):
        return {key: _stack([sample[key] for sample in samples]) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*map(_stack, map(list, zip(*samples))))
    if isinstance(first, (tuple, list)):
        if any(len(sample) != len(first) for sample in samples):
            raise ValueError("default_collate: samples of one batch differ in length")
        return tuple(_stack(list(column)) for column in zip(*samples))
    if isinstance(first, (str, bytes)) or not _is_numeric(first):
        return samples
    arrays = [np.asarray(sample) for sample in samples]
    if any(array.shape != arrays[0].shape for array in arrays):
        shapes = ", ".join(sorted({str(array.shape) for array in arrays}))
        raise ValueError(f"default_collate: samples of one batch have different shapes: {shapes}")
    return np.stack(arrays)


def _is_numeric(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.generic)) or hasattr(value, "__array__")


def _to_tensors(batch: Any) -> Any:
    if isinstance(batch, np.ndarray):
        return Tensor(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(_to_tensors, batch))
    if isinstance(batch, tuple):
        return tuple(map(_to_tensors, batch))
    if isinstance(batch, dict):
        return {key: _to_tensors(value) for key, value in batch.items()}
    return batch


class _Failure:
    """An exception on its way from the reading thread to the caller."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def _read_ahead(batches: Iterator[Any], depth: int) -> Iterator[Any]:
    """Yield what ``batches`` yields, computed by a background thread up to ``depth`` ahead."""
    ready: queue.Queue[Any] = queue.Queue(max(depth, 1))
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
            put(_END)
        except BaseException as error:
            put(_Failure(error))

    thread = threading.Thread(target=read, name="tinyc-loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()
