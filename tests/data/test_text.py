"""Characters and numbers, and windows that keep training and validation apart."""

from __future__ import annotations

import numpy as np
import pytest

from tinyc.data import (
    CharTokenizer,
    DataError,
    DataLoader,
    TokenWindows,
    shakespeare,
    split_windows,
)


def test_text_survives_the_way_there_and_back():
    tokenizer = CharTokenizer("to be, or not")
    assert tokenizer.vocabulary == " ,benort" and len(tokenizer) == 8
    numbers = tokenizer.encode("not to be")
    assert numbers.dtype == np.int64 and numbers[0] == 4
    assert tokenizer.decode(numbers) == "not to be"
    assert tokenizer.decode(tokenizer.encode("")) == ""
    assert CharTokenizer(tokenizer.vocabulary).vocabulary == tokenizer.vocabulary


def test_what_is_not_in_the_vocabulary_is_named():
    tokenizer = CharTokenizer("abc")
    with pytest.raises(ValueError, match="'d', character 2 of the text.*3 characters: 'abc'"):
        tokenizer.encode("abd")
    with pytest.raises(IndexError, match=r"3 is no number in 0\.\.2"):
        tokenizer.decode([0, 3])
    with pytest.raises(IndexError, match="-1"):
        tokenizer.decode(np.array([-1]))
    with pytest.raises(ValueError, match="empty"):
        CharTokenizer("")


def test_a_window_and_what_follows_each_of_its_tokens():
    windows = TokenWindows(np.arange(10), [0, 3, 5], 4)
    assert len(windows) == 3
    x, y = windows[-1]
    assert x.tolist() == [5, 6, 7, 8] and y.tolist() == [6, 7, 8, 9]
    x, y = windows.batch(np.array([1, 0]))
    assert x.tolist() == [[3, 4, 5, 6], [0, 1, 2, 3]] and y.tolist() == [[4, 5, 6, 7], [1, 2, 3, 4]]
    (x, y), rest = DataLoader(windows, batch_size=2)
    assert x.shape == (2, 4) and rest[1].numpy().tolist() == [[6, 7, 8, 9]]
    with pytest.raises(IndexError):
        windows[3]


@pytest.mark.parametrize(("starts", "length"), [([6], 4), ([-1], 4), ([0], 10), ([0], 0)])
def test_windows_that_do_not_fit_are_refused(starts, length):
    with pytest.raises(ValueError, match="TokenWindows"):
        TokenWindows(np.arange(10), starts, length)


@pytest.mark.parametrize("count", [1000, 1037])
def test_training_and_validation_share_no_token(count):
    train, validation = split_windows(np.arange(count), 6, blocks=5)
    seen = [
        set(np.unique(windows.starts[:, None] + np.arange(7))) for windows in (train, validation)
    ]
    assert not seen[0] & seen[1]
    # All of the training parts, and of the others what whole windows take.
    sizes = [(block + 1) * count // 5 - block * count // 5 for block in range(5)]
    assert len(seen[0]) == count - sum(size // 10 for size in sizes)
    assert len(seen[1]) >= 0.6 * count / 10
    # Windows of validation lie end to end: each token is judged once.
    judged = (validation.starts[:, None] + 1 + np.arange(6)).ravel()
    assert len(set(judged)) == len(judged)
    assert validation.starts[0] == count // 5 - count // 5 // 10
    # Every block gives to both.
    for windows in (train, validation):
        assert set(windows.starts * 5 // count) == set(range(5))


def test_a_text_too_short_for_its_windows_is_refused():
    with pytest.raises(ValueError, match=r"1000 tokens in 100 blocks.*too short for 6 \+ 1"):
        split_windows(np.arange(1000), 6)


def test_a_text_of_ones_own_is_read_and_anything_else_named(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("words, words, words\n")
    assert shakespeare(path) == "words, words, words\n"
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt; a text file is given"):
        shakespeare(tmp_path / "nothing.txt")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"own\.txt: no text in UTF-8"):
        shakespeare(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        shakespeare(path)
