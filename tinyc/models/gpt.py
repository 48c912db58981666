"""GPT: the decoder-only transformer of "Language Models are Unsupervised Multitask Learners".

Radford et al., 2019, on a page: pre-norm blocks, learned positions, embedding and head tied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tinyc
from tinyc import nn, optim
from tinyc.models import generation
from tinyc.models.generation import Cache, LayerCache
from tinyc.nn import functional as F
from tinyc.nn import init
from tinyc.tensor import Tensor


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT; the defaults are those of the smallest GPT-2.

    ``bias`` gives linear layers and layer norms their biases; ``dropout`` is that of embeddings,
    attention and residuals. ValueError for sizes that do not fit together.
    """

    block_size: int = 1024
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        sizes = (self.block_size, self.vocab_size, self.n_layer, self.n_head, self.n_embd)
        if min(sizes) < 1:
            raise ValueError(f"GPTConfig: every size is at least 1, not {min(sizes)}")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"GPTConfig: n_embd={self.n_embd} is no multiple of n_head={self.n_head}; the "
                "heads share the width equally"
            )


class CausalSelfAttention(nn.Module):
    """Attention of several heads in which each place sees itself and those before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Return f32[b, t, c] of the same; with a cache t is 1 and follows what is in it."""
        b, t, c = x.shape
        q, k, v = (
            part.reshape(b, t, self.n_head, c // self.n_head).transpose(1, 2)
            for part in self.c_attn(x).split(c, 2)
        )
        if cache is None:
            p = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        else:
            keys, values, filled = cache.append(k, v)
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=filled)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(b, t, c)))


class MLP(nn.Module):
    """Two linear layers, four times as wide between them, with GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return f32[..., c] of the same."""
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and added to its input."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Return f32[b, t, c] of the same."""
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Token numbers i64[b, t] to logits f32[b, t, vocab_size] of the token that follows each."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight  # tied: one parameter under two names
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: normal of 0.02, less where they add to the residual."""
        residual = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                init.zeros_(p)
            elif p.ndim >= 2:
                init.normal_(p, std=residual if name.endswith("c_proj.weight") else 0.02)
            else:
                init.ones_(p)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return logits, and the mean cross entropy where i64[b, t] ``targets`` are given.

        ValueError for more than ``block_size`` tokens, IndexError for one out of the vocabulary.
        """
        t = idx.shape[-1]
        if idx.ndim != 2 or t > self.config.block_size:
            raise ValueError(
                f"GPT: idx is i64[b, t] with t up to block_size={self.config.block_size}, not of "
                f"shape {list(idx.shape)}"
            )
        logits = self._logits(idx, tinyc.arange(t))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))

    def decode(self, idx: Tensor, cache: Cache) -> Tensor:
        """Return logits f32[b, vocab_size] after one more token i64[b], and move the cache on."""
        logits = self._logits(idx.reshape(-1, 1), cache.place, cache)
        cache.advance()
        return logits[:, 0]

    def _logits(self, idx: Tensor, places: Tensor, cache: Cache | None = None) -> Tensor:
        x = self.drop(self.wte(idx) + self.wpe(places))
        for i, block in enumerate(self.h):
            x = block(x, None if cache is None else cache.layers[i])
        return self.lm_head(self.ln_f(x))

    def new_cache(self, batch: int) -> Cache:
        """Return an empty cache for `batch` sequences of up to ``block_size`` tokens."""
        c = self.config
        shape = (batch, c.n_head, c.block_size, c.n_embd // c.n_head)
        return Cache(c.n_layer, shape, self.wte.weight.dtype)

    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Return i64[b, t + max_new_tokens]: the tokens of ``idx`` and those sampled after them.

        Logits are divided by ``temperature``; 0 takes the largest. With ``top_k`` only the k
        likeliest tokens are drawn from. The same seed draws the same tokens; without one it comes
        from ``manual_seed``'s generator. One program serves all places. Where the context is full,
        its second half becomes the beginning of a new one. Dropout is off meanwhile.
        """
        return generation.generate(self, idx, max_new_tokens, temperature, top_k, seed)

    def configure_optimizer(
        self,
        weight_decay: float = 0.1,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> optim.AdamW:
        """Return AdamW that decays matrices and embeddings, but not biases and norms."""
        params = list(self.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
        ]
        return optim.AdamW(groups, lr=lr, betas=betas)
