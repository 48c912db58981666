"""The data files of a checkout are real data, and what is written about them is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinyc.data import CharTokenizer, mnist, shakespeare, split_windows

DATA = Path(__file__).parents[2] / "examples" / "data"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="not a checkout: no examples/data")


def test_mnist_has_its_documented_counts() -> None:
    train, test = mnist()
    assert train.images.shape == (60000, 1, 28, 28)
    assert test.images.shape == (10000, 1, 28, 28)
    assert np.bincount(train.labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert np.bincount(test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert round(train.images.mean() / 255, 4) == 0.1307
    assert round(train.images.std() / 255, 4) == 0.3081


def test_files_have_the_sizes_that_the_readme_states() -> None:
    files = list((DATA / "mnist").glob("*.gz"))
    assert len(files) == 4
    assert round(sum(file.stat().st_size for file in files) / 1e6) == 11
    assert round((DATA / "shakespeare.txt").stat().st_size / 1e6, 1) == 1.2


def test_shakespeare_is_plain_text_of_nine_plays() -> None:
    text = (DATA / "shakespeare.txt").read_bytes().decode("ascii")
    assert text.count("by William Shakespeare\n") == 9
    assert "ROMEO AND JULIET" in text and "THE TEMPEST" in text
    assert text == shakespeare()


def test_a_tenth_of_every_hundredth_of_the_plays_is_for_validation() -> None:
    tokenizer = CharTokenizer(shakespeare())
    assert len(tokenizer) == 80
    tokens = tokenizer.encode(shakespeare())
    for length, windows in ((64, 1800), (256, 400)):
        train, validation = split_windows(tokens, length)
        assert len(train) + 100 * length == pytest.approx(0.9 * len(tokens), abs=100)
        assert len(validation) == windows
