"""The layers with one weight matrix, and those that only change shape or drop values."""

from __future__ import annotations

import math

from tinyc import functional as F
from tinyc.nn import init
from tinyc.nn.module import Module
from tinyc.nn.parameter import Parameter, empty
from tinyc.tensor import Tensor


class Linear(Module):
    """``y = x @ weight.T + bias``: [..., in_features] to [..., out_features].

    Attributes ``weight`` [out_features, in_features] and ``bias`` [out_features], or None; both
    start uniform in +-1/sqrt(in_features).
    """

    bias: Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = empty(out_features, in_features)
        self.bias = empty(out_features) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        init.fan_in_uniform_(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return the affine map of [..., in_features]."""
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the features, as PyTorch has it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class Embedding(Module):
    """Rows of a table: integers [...] to [..., embedding_dim].

    ``weight`` [num_embeddings, embedding_dim] starts standard normal, with zeros in row
    ``padding_idx``. A number out of range is an IndexError.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ValueError(
                    f"Embedding: padding_idx {padding_idx} is no row of {num_embeddings}"
                )
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        self.weight = empty(num_embeddings, embedding_dim)
        self.reset_parameters()

    @classmethod
    def from_pretrained(
        cls, embeddings: Tensor, freeze: bool = True, padding_idx: int | None = None
    ) -> Embedding:
        """Return a layer whose table begins as ``embeddings`` [rows, width], not trained if frozen.

        Raises ValueError for a tensor of other than two axes.
        """
        if embeddings.ndim != 2:
            raise ValueError(
                f"Embedding.from_pretrained: a table has two axes, not {embeddings.ndim}"
            )
        made = cls(embeddings.shape[0], embeddings.shape[1], padding_idx)
        made.weight = Parameter(embeddings.numpy(), requires_grad=not freeze)
        return made

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        init.normal_(self.weight, zero_row=self.padding_idx)

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the given numbers."""
        return F.embedding(input, self.weight, padding_idx=self.padding_idx)

    def extra_repr(self) -> str:
        """Return the sizes, as PyTorch has it."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class Dropout(Module):
    """In training zero each value with probability ``p`` and scale the rest by 1/(1-p).

    ``inplace`` is taken as in PyTorch and changes no value: memory is reused by plan anyway.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p must be in 0..1, not {p}")
        self.p = p
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """Return the input, with values dropped when training."""
        return F.dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        """Return the arguments, as PyTorch has it."""
        return f"p={self.p}, inplace={self.inplace}"


class Flatten(Module):
    """Join the axes ``start_dim`` to ``end_dim`` into one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with those axes joined."""
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """Return the axes."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Split axis ``dim`` into the axes of ``unflattened_size``."""

    def __init__(self, dim: int, unflattened_size: tuple[int, ...]) -> None:
        super().__init__()
        self.dim = dim
        self.unflattened_size = tuple(unflattened_size)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with that axis split."""
        dim = range(input.ndim)[self.dim]
        size = self.unflattened_size
        if math.prod(size) != input.shape[dim]:
            raise ValueError(f"Unflatten: axis {dim} of {tuple(input.shape)} is no {size}")
        return input.reshape(*input.shape[:dim], *size, *input.shape[dim + 1 :])

    def extra_repr(self) -> str:
        """Return the axis and its sizes."""
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"


class Identity(Module):
    """Return the input; constructor arguments are ignored."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        """Return the input."""
        return input
