"""The longest copied passage, against the plainest search there is."""

import tracemalloc
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinystories_lab import reciting
from tinystories_lab.metrics import words_of
from tinystories_lab.reciting import Copied, _longest_copies, _longest_runs, _whole_words
from tinystories_lab.tokenizer import load_tokenizer, write_bin


def longest_by_hand(story, tokens):
    """The length of the longest run of four ids or more that both have."""
    text, best = ",".join(map(str, ["", *tokens, ""])), 0
    for start in range(len(story)):
        while f",{','.join(map(str, story[start : start + best + 1]))}," in text and start + best < len(story):
            best += 1
    return best if best >= 4 else 0


few_ids = st.lists(st.sampled_from([0, 65_535]), max_size=40)  # so that much repeats


@settings(max_examples=300)
@given(st.lists(few_ids, max_size=4), few_ids, st.integers(1, 9), st.integers(1, 4))
@example([[1, 1, 1, 1], [1, 1, 1]], [1, 1, 1, 1], 1, 1)
@example([[1, 2, 3, 4, 5, 6]], [1, 2, 3, 4, 5, 0, 0, 0, 1, 2, 3, 4, 5, 6], 1, 1)  # one more, later
@example([[1, 2, 3, 4, 9, 5, 6, 7, 8]], [1, 2, 3, 4, 5, 6, 7, 8], 9, 1)  # side by side in one, apart in the other
def test_the_longest_run_is_that_of_a_search_by_hand(stories, tokens, at_once, bits):
    tokens = np.array(tokens, np.uint16)
    stories = [np.array(story, np.uint16) for story in stories]
    with patch.object(reciting, "_TOKENS_AT_ONCE", at_once), patch.object(reciting, "_TABLE_BITS", bits):
        found = _longest_runs(stories, tokens)
    assert [length for length, *_ in found] == [longest_by_hand(story.tolist(), tokens.tolist()) for story in stories]
    for story, (length, start, place) in zip(stories, found, strict=True):
        assert np.array_equal(story[start : start + length], tokens[place : place + length])


def test_a_passage_is_copied_from_its_first_whole_word_to_its_last(data_dir):
    tokenizer = load_tokenizer(
        data_dir / "tokenizer.json"
    )  # of stories such as "Lily found a red ball in the park. ..."
    told = ["Lily found a red ball in the parking lot.", "Quite, 77 other: things?", ""]
    assert _longest_copies(told, data_dir / "train.bin", tokenizer) == [
        Copied(7, "Lily found a red ball in the"),
        Copied(0, ""),
        Copied(0, ""),
    ]


def test_a_word_that_goes_on_in_training_alone_is_not_copied(tmp_path, data_dir):
    tokenizer = load_tokenizer(data_dir / "tokenizer.json")
    write_bin(tmp_path / "train.bin", ["Unhappy red kites"], tokenizer)
    for told, passage in (
        ("happy red kites", "red kites"),
        ("Unhappy red kite", "Unhappy red"),
        ("Unhappy red", "Unhappy red"),
    ):
        (copied,) = _longest_copies([told], tmp_path / "train.bin", tokenizer)
        assert copied == Copied(2, passage), told


def test_a_story_of_the_training_file_is_found_whole_and_one_it_never_had_is_not(data_dir, stories):
    tokenizer = load_tokenizer(data_dir / "tokenizer.json")
    copies = _longest_copies([stories[7], stories[130]], data_dir / "train.bin", tokenizer)
    assert copies[0].words == len(words_of(stories[7])) and copies[0].passage == stories[7].rstrip(".")
    assert 0 < copies[1].words < len(words_of(stories[130])) and copies[1].passage in stories[130]


def test_words_are_whole_within_their_surroundings():
    assert _whole_words("", "a cat", "") == {(0, 1), (2, 5)}
    assert _whole_words("x", "a cat", "s") == set()
    assert _whole_words(" ", "a don", "'t") == {(0, 1)}


def test_memory_does_not_grow_with_the_file(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 50, 6_000_000).astype(np.uint16)
    tokens.tofile(tmp_path / "train.bin")
    stories = [tokens[start : start + 200].copy() for start in range(0, 6_000_000, 600_000)]
    mapped = np.memmap(tmp_path / "train.bin", np.uint16, mode="r")
    tracemalloc.start()
    found = _longest_runs(stories, mapped)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [length for length, *_ in found] == [200] * 10
    assert peak < 60e6, f"{peak / 1e6:.0f} MB"


def test_a_file_that_is_not_there_is_named(tmp_path, data_dir):
    with pytest.raises(FileNotFoundError, match="02_tokenizer"):
        _longest_copies(["A."], tmp_path / "train.bin", load_tokenizer(data_dir / "tokenizer.json"))
