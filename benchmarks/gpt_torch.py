"""The recipe of ``examples/train_gpt.py`` in PyTorch eager: the loss that tinyc has to reach.

    benchmarks/.venvs/torch/bin/python benchmarks/gpt_torch.py     # 4,000 steps, minutes

The same text, split, batches, model, distribution of first weights, learning rates, decay groups,
clipping and validation windows. It prints the loss over all validation windows now and then.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import weights
from adapters import torch_
from torch.nn import functional as F

TEXT = Path(__file__).resolve().parents[1] / "examples" / "data" / "shakespeare.txt"
CONFIGS = {
    "small": {"L": 4, "H": 4, "C": 128, "T": 64, "B": 12},
    "medium": {"L": 6, "H": 6, "C": 384, "T": 256, "B": 8},
}
BLOCKS = 100


def arguments() -> argparse.Namespace:
    """Return the options; the defaults are those of the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=CONFIGS, default="small")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def tokens_and_split(text: str, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the tokens, the starts of training windows, and those of validation windows.

    The last tenth of each of 100 equal blocks is for validation. Windows are `length` + 1 tokens
    and cross no border; those of training start anywhere, those of validation end to end.
    """
    vocabulary = sorted(set(text))
    number = {c: i for i, c in enumerate(vocabulary)}
    tokens = np.array([number[c] for c in text])
    train, held_out = [], []
    for block in range(BLOCKS):
        first, last = block * len(tokens) // BLOCKS, (block + 1) * len(tokens) // BLOCKS
        border = last - (last - first) // 10
        train.append(np.arange(first, border - length))
        held_out.append(np.arange(border, last - length, length))
    return tokens, np.concatenate(train), np.concatenate(held_out)


def windows(tokens: np.ndarray, starts: np.ndarray, length: int) -> tuple[Any, Any]:
    """Return the windows that begin at `starts` and the tokens that follow each of theirs."""
    found = tokens[starts[:, None] + np.arange(length + 1)]
    return torch.from_numpy(found[:, :-1].copy()), torch.from_numpy(found[:, 1:].copy())


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Return a warm-up of 100 steps, then half a cosine down to a tenth."""
    if step < 100:
        return highest * (step + 1) / 100
    done = (step - 100) / max(1, steps - 100)
    return highest * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


class Training:
    """The model's parameters, its optimizer, and one step of training."""

    def __init__(self, config: dict, vocabulary: int, options: argparse.Namespace) -> None:
        self.config, self.options = config, options
        arrays = weights.gpt(config["L"], config["C"], config["T"], 1, options.seed, vocabulary)[0]
        self.params = {k: torch.from_numpy(v).requires_grad_() for k, v in arrays.items()}
        adamw = {"name": "adamw", "lr": options.lr, "b1": 0.9, "b2": 0.99, "eps": 1e-8, "wd": 0.1}
        self.optimizer = torch_.optimizer(adamw, list(self.params.values()))

    def loss(self, x: Any, y: Any) -> Any:
        """Return the mean cross entropy."""
        logits = torch_.gpt(self.params, x, self.config["L"], self.config["H"])
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.reshape(-1))

    def step(self, number: int, x: Any, y: Any) -> float:
        """Update the parameters and return the loss before."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, self.options.steps, self.options.lr)
        self.optimizer.zero_grad()
        loss = self.loss(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params.values(), 1.0)
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def validate(self, tokens: np.ndarray, starts: np.ndarray) -> float:
        """Return the mean loss over all windows."""
        total, length = 0.0, self.config["T"]
        for i in range(0, len(starts), 50):
            some = starts[i : i + 50]
            total += self.loss(*windows(tokens, some, length)).item() * len(some)
        return total / len(starts)


def main() -> None:
    """Train, and print losses and times."""
    options = arguments()
    torch_.init("eager", options.threads)
    config = CONFIGS[options.config]
    text = TEXT.read_text()
    tokens, starts, held_out = tokens_and_split(text, config["T"])
    training = Training(config, len(set(text)), options)
    begun, losses = time.perf_counter(), []
    for number in range(options.steps):
        random = np.random.default_rng([options.seed, number])
        chosen = starts[random.integers(len(starts), size=config["B"])]
        losses.append(training.step(number, *windows(tokens, chosen, config["T"])))
        if (number + 1) % options.evaluate_every == 0 or number + 1 == options.steps:
            held = training.validate(tokens, held_out)
            recent = sum(losses[-100:]) / len(losses[-100:])
            seconds = time.perf_counter() - begun
            print(f"step {number + 1}: training loss {recent:.4f}, validation {held:.4f}, "
                  f"{seconds:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
