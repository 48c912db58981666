"""The GPT example and its twin in PyTorch: one recipe, and the same losses."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from training_steps import benchmarks

from tinyc import data

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_gpt.py"
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(not EXAMPLE.exists(), reason="not a checkout: no examples"),
]

# The names of benchmarks/weights.py for those of GPT's state dict.
NAMES = {
    "ln1": "ln_1", "qkv": "attn.c_attn", "proj": "attn.c_proj", "ln2": "ln_2", "fc": "mlp.c_fc",
    "fc2": "mlp.c_proj", "wte": "wte", "wpe": "wpe", "lnf": "ln_f",
}  # fmt: skip


@pytest.fixture
def recipes(tmp_path):
    """The example's module and PyTorch's."""
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("train_gpt", EXAMPLE)
    ours = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ours)
    with benchmarks(tmp_path):
        theirs = importlib.import_module("gpt_torch")
        theirs.torch_.init("eager", 1)  # threads that spin would wait for busy cores
        yield ours, theirs


def name_of(theirs: str) -> str:
    block, _, part = theirs.rpartition(".")
    return f"{'h.' + block[1:] + '.' if block else ''}{NAMES[part]}.weight"


def test_split_and_rates_are_the_same(recipes):
    ours, theirs = recipes
    text = data.shakespeare()
    tokens, starts, held_out = theirs.tokens_and_split(text, 64)
    mine = data.CharTokenizer(text).encode(text)
    np.testing.assert_array_equal(mine, tokens)
    train, validation = data.split_windows(mine, 64)
    np.testing.assert_array_equal(train.starts, starts)
    np.testing.assert_array_equal(validation.starts, held_out)
    for step in (0, 50, 99, 100, 101, 2000, 3999):
        assert ours.learning_rate(step, 4000, 1e-3) == theirs.learning_rate(step, 4000, 1e-3)
    for name, sizes in theirs.CONFIGS.items():
        own = ours.SIZES[name]
        wanted = (own["n_layer"], own["n_head"], own["n_embd"], own["block_size"], ours.BATCH[name])
        assert tuple(sizes.values()) == wanted


def test_losses_are_pytorch_s_clipped_and_scheduled(recipes):
    ours, theirs = recipes
    text = data.shakespeare()
    tokenizer = data.CharTokenizer(text)
    train, validation = data.split_windows(tokenizer.encode(text), 64)
    options = argparse.Namespace(
        config="small", steps=150, batch=12, lr=1e-2, dropout=0.0, seed=0
    )  # fmt: skip
    twin = theirs.Training(theirs.CONFIGS["small"], len(tokenizer), options)
    mine = ours.Training(options, tokenizer.vocabulary)
    params = dict(mine.model.named_parameters())
    assert {name_of(name) for name in twin.params} == set(params)
    for name, value in twin.params.items():
        params[name_of(name)].load(value.detach().numpy())
    found, expected = [], []
    for number in range(6):
        chosen = train.starts[np.random.default_rng([0, number]).integers(len(train), size=12)]
        expected.append(twin.step(number, *theirs.windows(train.tokens, chosen, 64)))
        found.append(mine.advance(train))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert mine.step.captures == 1
    some = data.TokenWindows(validation.tokens, validation.starts[:60], 64)
    held = twin.validate(validation.tokens, validation.starts[:60])
    assert mine.validate(some) == pytest.approx(held, rel=1e-4)
