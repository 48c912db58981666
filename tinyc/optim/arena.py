"""Flat arenas: parameters side by side in one tensor, and their state in others laid out alike.

One elementwise update of an arena is one kernel, whatever the number of parameters. There are no
gaps, which would have to be written in every step: parameters that fill whole cache lines come
first, so that all of these are aligned, and the others, most of them biases, follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tinyc.realization import array_of
from tinyc.runtime.buffer import ALLOCATOR
from tinyc.state import categorize
from tinyc.tensor import Tensor

CACHE_LINE = 64  # bytes


class Arena(Tensor):
    """A flat tensor that parameters are stretches of."""


def state_tensor(values: np.ndarray, device: str | None) -> Tensor:
    """Return memory of an optimizer's own: reports count it as such."""
    made = Tensor(values, device=device)
    categorize(made, "optimizer")
    return made


class Piece:
    """A parameter's place in a segment: elements ``start`` to ``stop``, and its group index."""

    def __init__(self, param: Tensor, index: int, start: int) -> None:
        self.param = param
        self.index = index
        self.start = start
        self.stop = start + param.numel()


class Segment:
    """Parameters that lie side by side in one stretch of a flat tensor.

    ``base`` is the flat tensor, ``begin`` the element of it where the segment begins, ``size`` its
    length. A state tensor of the segment is flat with this length.
    """

    def __init__(self, base: Tensor, begin: int) -> None:
        self.base = base
        self.begin = begin
        self.pieces: list[Piece] = []
        self.state: dict[str, Tensor] = {}

    @property
    def size(self) -> int:
        """Elements from the first piece's start to the last one's end."""
        return self.pieces[-1].stop

    def add(self, param: Tensor, index: int, begin: int) -> None:
        """Append a parameter that lies at element ``begin`` of the base."""
        self.pieces.append(Piece(param, index, begin - self.begin))

    def add_state(self, name: str) -> None:
        """Make a state of zeros with the segment's layout; of halves in f32."""
        dtype = self.base.dtype.wide.np
        self.state[name] = state_tensor(np.zeros(self.size, dtype), self.base.device)


def arrange(params: Sequence[Tensor]) -> list[Segment]:
    """Return segments that hold the parameters, moving those that lie in no arena into new ones.

    There is one new arena for each dtype and device. A parameter of an older optimizer stays
    where it is; neighbours there share a segment.
    """
    loose: dict[tuple[object, object], list[Tensor]] = {}
    for param in params:
        if _place(param) is None:
            loose.setdefault((param.dtype, param.device), []).append(param)
    for together in loose.values():
        _move(together)
    segments: list[Segment] = []
    index_of = {id(param): index for index, param in enumerate(params)}
    places = [(*place, param) for param in params if (place := _place(param)) is not None]
    for base, begin, param in sorted(places, key=lambda place: (place[0].uid, place[1])):
        if not segments or not _continues(segments[-1], base, begin):
            segments.append(Segment(base, begin))
        segments[-1].add(param, index_of[id(param)], begin)
    return segments


def _place(param: Tensor) -> tuple[Tensor, int] | None:
    """Return the arena that a parameter lies in and where it begins, None for a loose one."""
    alias = param.alias
    return alias if alias is not None and isinstance(alias[0], Arena) else None


def _continues(segment: Segment, base: Tensor, begin: int) -> bool:
    return segment.base is base and begin == segment.begin + segment.size


def _is_ragged(param: Tensor) -> bool:
    """Tell whether a parameter ends within a cache line."""
    return param.nbytes % CACHE_LINE != 0


def _move(params: list[Tensor]) -> None:
    """Move parameters into one new flat tensor; their handles become views of it."""
    params = sorted(params, key=_is_ragged)
    values = np.concatenate([array_of(param).ravel() for param in params])
    base = Arena(values, device=params[0].device)
    begin = 0
    for param in params:
        param.become_alias(base, begin)
        begin += param.numel()
    ALLOCATOR.trim()  # nothing is likely to want what so many parameters have left behind


class Run:
    """Neighbouring pieces of a segment that are updated together: elements ``start:stop``."""

    def __init__(self, segment: Segment, pieces: list[Piece]) -> None:
        self.segment = segment
        self.pieces = pieces
        self.start = pieces[0].start
        self.stop = pieces[-1].stop

    def gradient(self) -> Tensor:
        """Return the gradients as one flat tensor, of which ``.grad`` become views."""
        dtype = self.segment.base.dtype
        grads = [piece.param.grad for piece in self.pieces]
        flat = Tensor.cat([grad.reshape(-1).to(dtype) for grad in grads if grad is not None])
        for piece in self.pieces:
            part = flat[piece.start - self.start : piece.stop - self.start]
            piece.param.grad = part.reshape(piece.param.shape)
        return flat

    def read(self, name: str) -> Tensor:
        """Return the run's part of a state."""
        return _region(self.segment.state[name], self.start, self.stop)

    def write(self, name: str, value: Tensor) -> None:
        """Assign to the run's part of a state."""
        _assign(self.segment.state[name], self.start, self.stop, value)

    def read_params(self) -> Tensor:
        """Return the parameters of the run as one flat tensor."""
        begin = self.segment.begin
        return _region(self.segment.base, begin + self.start, begin + self.stop)

    def write_params(self, value: Tensor) -> None:
        """Assign to all parameters of the run."""
        begin = self.segment.begin
        _assign(self.segment.base, begin + self.start, begin + self.stop, value)


def _region(flat: Tensor, start: int, stop: int) -> Tensor:
    return flat if (start, stop) == (0, flat.numel()) else flat[start:stop]


def _assign(flat: Tensor, start: int, stop: int, value: Tensor) -> None:
    if (start, stop) == (0, flat.numel()):
        flat.assign(value)
    else:
        flat[start:stop] = value


def runs(segment: Segment, classes: Sequence[int]) -> Iterator[Run]:
    """Yield the longest runs of pieces that have gradients and one update history.

    ``classes[index]`` tells histories apart. Raises RuntimeError for a parameter that was moved
    since the arena was made.
    """
    together: list[Piece] = []
    for piece in segment.pieces:
        alias = piece.param.alias
        if alias is None or alias[0] is not segment.base:
            raise RuntimeError(
                f"optimizer: the parameter of shape {tuple(piece.param.shape)} was moved to other "
                "memory or another dtype after the optimizer was made; make the optimizer after "
                "model.to(...)"
            )
        fits = together and classes[together[-1].index] == classes[piece.index]
        if together and (piece.param.grad is None or not fits):
            yield Run(segment, together)
            together = []
        if piece.param.grad is not None:
            together.append(piece)
    if together:
        yield Run(segment, together)
