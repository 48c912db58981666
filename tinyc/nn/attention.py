"""Attention of several heads as a module."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from tinyc import functional as F
from tinyc.composites import attention
from tinyc.diagnostics import DTypeError, ShapeError
from tinyc.ir.dtype import DType, bool_
from tinyc.ir.ops import fail
from tinyc.nn import init
from tinyc.nn.layers import Linear
from tinyc.nn.module import Module
from tinyc.nn.parameter import Parameter, empty
from tinyc.tensor import Tensor, apply, where


class MultiheadAttention(Module):
    """Attention of ``num_heads`` heads, each on its part of projections of query, key and value.

    Query [L, N, embed_dim], key [S, N, kdim] and value [S, N, vdim], or with ``batch_first``
    [N, L, ...], or without the N of the batch, give [L, N, embed_dim] like the query. Attributes
    are those of PyTorch: ``in_proj_weight`` [3*embed_dim, embed_dim], or where ``kdim`` or
    ``vdim`` differ ``q_proj_weight``, ``k_proj_weight`` and ``v_proj_weight``; ``in_proj_bias``;
    ``out_proj``; ``bias_k`` and ``bias_v``, one more key and value, with ``add_bias_kv``.
    ``add_zero_attn`` adds a key and a value of zeros. ``dropout`` is that of the shares.
    Source: Vaswani et al., "Attention Is All You Need", 2017.
    """

    in_proj_weight: Parameter | None
    in_proj_bias: Parameter | None
    bias_k: Parameter | None
    bias_v: Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"MultiheadAttention: embed_dim {embed_dim} is no multiple of {num_heads} heads"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.add_zero_attn = add_zero_attn
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.batch_first = batch_first
        if self.kdim == self.vdim == embed_dim:
            self.in_proj_weight = empty(3 * embed_dim, embed_dim)
        else:
            self.in_proj_weight = None
            self.q_proj_weight = empty(embed_dim, embed_dim)
            self.k_proj_weight = empty(embed_dim, self.kdim)
            self.v_proj_weight = empty(embed_dim, self.vdim)
        self.in_proj_bias = empty(3 * embed_dim) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias)
        self.bias_k = empty(1, 1, embed_dim) if add_bias_kv else None
        self.bias_v = empty(1, 1, embed_dim) if add_bias_kv else None
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        if self.in_proj_weight is not None:
            init.xavier_uniform_(self.in_proj_weight)
        else:
            for weight in (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
                init.xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                init.zeros_(bias)
        for extra in (self.bias_k, self.bias_v):
            if extra is not None:
                init.xavier_normal_(extra)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values, and the shares or None.

        ``key_padding_mask`` [N, S] and ``attn_mask`` [L, S] or [N*num_heads, L, S] say by True
        what does not take part, or are added to the scores; a row in which nothing takes part
        gives zeros. ``is_causal`` says that the mask is the causal one, which then need not be
        given. The shares are [N, L, S], the mean over the heads, or [N, num_heads, L, S] without
        ``average_attn_weights``; leaving them out (``need_weights=False``) is faster.
        """
        self._check(query, key, value)
        batched = query.ndim == 3
        first = batched and self.batch_first
        q, k, v = (self._heads(x, first) for x in self._project(query, key, value))
        mask = self._mask(q, k, key_padding_mask, None if is_causal else attn_mask)
        k, v, mask, is_causal = self._extended(k, v, mask, is_causal, q.shape[2])
        p = self.dropout if self.training else 0.0
        shares = None
        if need_weights:
            shares = F.dropout(apply(attention.shares, q, k, mask, is_causal), p)
            y = shares @ v
            shares = shares.mean(1) if average_attn_weights else shares
            shares = shares if batched else shares[0]
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, p, is_causal)
        y = y.permute(*((0, 2, 1, 3) if first else (2, 0, 1, 3)))
        return self.out_proj(y.reshape(query.shape)), shares

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        shapes = [tuple(x.shape) for x in (query, key, value)]
        widths = (self.embed_dim, self.kdim, self.vdim)
        batch = 0 if self.batch_first else 1
        fits = (
            {len(shape) for shape in shapes} in ({2}, {3})
            and tuple(shape[-1] for shape in shapes) == widths
            and shapes[1][:-1] == shapes[2][:-1]
            and (query.ndim == 2 or shapes[0][batch] == shapes[1][batch])
        )
        if not fits:
            axes = "[N, L or S, width]" if self.batch_first else "[L or S, N, width]"
            _refuse(
                ShapeError, "the inputs do not fit", (query, key, value),
                f"each is {axes}, or has no N, with widths {widths}; keys are as many as values",
            )  # fmt: skip

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return the three projections, of last axis embed_dim; equal inputs in one product."""
        e, weight, bias = self.embed_dim, self.in_proj_weight, self.in_proj_bias
        if weight is not None and query is key and key is value:
            return list(F.linear(query, weight, bias).split(e, -1))
        weights: list[Tensor]
        if weight is None:
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        else:
            weights = [weight[:e], weight[e : 2 * e], weight[2 * e :]]
        biases = [None if bias is None else bias[k * e : (k + 1) * e] for k in range(3)]
        return [F.linear(*parts) for parts in zip((query, key, value), weights, biases)]

    def _heads(self, x: Tensor, batch_first: bool) -> Tensor:
        """Return [N, num_heads, length, head_dim] of a projection; no batch is a batch of one."""
        if x.ndim == 2:
            x = x.unsqueeze(1)
        parts = x.reshape(*x.shape[:2], self.num_heads, self.head_dim)
        return parts.permute(*((0, 2, 1, 3) if batch_first else (1, 2, 0, 3)))

    def _mask(
        self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> Tensor | None:
        """Return both masks as one that broadcasts to the scores: True takes part, or added."""
        n, heads, rows, _ = q.shape
        columns = k.shape[2]
        masks = []
        if attn_mask is not None:
            shapes = ((rows, columns), (n * heads, rows, columns))
            _check_mask("attn_mask", attn_mask, shapes, q)
            ndim3 = attn_mask.ndim == 3
            masks.append(attn_mask.reshape(n, heads, rows, columns) if ndim3 else attn_mask)
        if key_padding_mask is not None:
            _check_mask("key_padding_mask", key_padding_mask, ((n, columns), (columns,)), q)
            masks.append(key_padding_mask.reshape(n, 1, 1, columns))
        if all(mask.dtype is bool_ for mask in masks):
            masks = [~mask for mask in masks]
            return masks[0] & masks[1] if len(masks) == 2 else masks[0] if masks else None
        added = [_added(mask, q.dtype) for mask in masks]
        return added[0] + added[1] if len(added) == 2 else added[0]

    def _extended(
        self, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, rows: int
    ) -> tuple[Tensor, Tensor, Tensor | None, bool]:
        """Add the keys that everybody sees; make the causal mask where one is needed."""
        extra = (self.bias_k is not None) + self.add_zero_attn
        if is_causal and (mask is not None or extra):
            lower = Tensor(np.tri(rows, k.shape[2], dtype=np.bool_), device=k.device)
            if mask is None:
                mask = lower
            else:
                mask = mask & lower if mask.dtype is bool_ else mask + _added(~lower, mask.dtype)
            is_causal = False
        n, heads, _, width = k.shape
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                Tensor.cat([x, bias.reshape(1, heads, 1, width).expand(n, heads, 1, width)], 2)
                for x, bias in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            nothing = Tensor.zeros(n, heads, 1, width, dtype=k.dtype, device=k.device)
            k, v = Tensor.cat([k, nothing], 2), Tensor.cat([v, nothing], 2)
        if mask is not None and extra:
            fill = True if mask.dtype is bool_ else 0.0
            seen = Tensor.full((*mask.shape[:-1], extra), fill, dtype=mask.dtype, device=k.device)
            mask = Tensor.cat([mask, seen], -1)
        return k, v, mask, is_causal


def _added(mask: Tensor, dtype: DType) -> Tensor:
    """Return a mask to be added to scores; of a bool one True does not take part."""
    return where(mask, float("-inf"), 0.0).to(dtype) if mask.dtype is bool_ else mask


def _check_mask(
    name: str, mask: Tensor, shapes: tuple[tuple[int, ...], ...], query: Tensor
) -> None:
    if tuple(mask.shape) not in shapes:
        rule = f"its shape is {' or '.join(map(str, shapes))}"
        _refuse(ShapeError, f"{name} does not fit", (mask,), rule)
    if mask.dtype is not bool_ and mask.dtype is not query.dtype:
        rule = f"a mask is bool or {query.dtype}, as the query"
        _refuse(DTypeError, f"{name} does not fit", (mask,), rule)


def _refuse(
    error: type[Exception], what: str, tensors: tuple[Tensor, ...], rule: str
) -> NoReturn:
    fail(error, "MultiheadAttention", what, tuple(x.node for x in tensors), rule)
