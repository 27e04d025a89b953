"""The longest overlap of a story with the training file, against the plainest search."""

import tracemalloc
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinystories_lab.analysis import memorization
from tinystories_lab.analysis.memorization import Overlap, _longest_runs, memorization_overlaps, overlap_rows
from tinystories_lab.data.text import words_of
from tinystories_lab.tokenizer import write_bin


def overlap_of(story, data_dir, tokenizer):
    return memorization_overlaps([{"story": story, "prompt": "A", "max_new_tokens": 1}], data_dir, tokenizer)[
        "generated"
    ][0]


def longest_by_hand(story, tokens):
    story, tokens = ("".join(map(chr, ids)) for ids in (story, tokens))
    spans = ((start, end) for start in range(len(story)) for end in range(start + 4, len(story) + 1))
    return max((end - start for start, end in spans if story[start:end] in tokens), default=0)


few_ids = st.lists(st.sampled_from([0, 65_535]), max_size=40)  # so that much repeats


@given(st.lists(few_ids, max_size=4), few_ids, st.integers(1, 9), st.integers(1, 4))
@example([[1, 1, 1, 1], [1, 1, 1]], [1, 1, 1, 1], 1, 1)
@example([[1, 2, 3, 4, 5, 6]], [1, 2, 3, 4, 5, 0, 0, 0, 1, 2, 3, 4, 5, 6], 1, 16)  # one more, later
@example([[1, 2, 3, 4, 9, 5, 6, 7, 8]], [1, 2, 3, 4, 5, 6, 7, 8], 9, 1)  # side by side in one, apart in the other
def test_the_longest_run_is_that_of_a_search_by_hand(stories, tokens, chunk, bits):
    tokens = np.array(tokens, np.uint16)
    stories = [np.array(story, np.uint16) for story in stories]
    with patch.object(memorization, "_CHUNK", chunk), patch.object(memorization, "_TABLE_BITS", bits):
        found = _longest_runs(stories, tokens)
    assert [length for length, *_ in found] == [longest_by_hand(story, tokens) for story in stories]
    for story, (length, start, place) in zip(stories, found, strict=True):
        assert np.array_equal(story[start : start + length], tokens[place : place + length])


@pytest.mark.parametrize(
    ("trained", "story", "passage"),
    [
        (
            "Lily found a red ball in the park.",
            "Lily found a red ball in the parking lot.",
            "Lily found a red ball in the",
        ),
        ("Lily found a red ball.", "Quite, 77 other: things?", ""),
        ("Lily found a red ball.", "", ""),
        ("Unhappy red kites", "happy red kites", "red kites"),
        ("Unhappy red kites", "Unhappy red kite", "Unhappy red"),
        ("Unhappy red kites", "Unhappy red", "Unhappy red"),
        ("a big cat", "xa big cats", "big"),
        ("I don't know", "I don", "I"),
    ],
)
def test_an_overlap_consists_of_words_that_are_whole_in_the_story_and_in_training(
    tmp_path, tokenizer, trained, story, passage
):
    for name in ("train.bin", "val.bin"):
        write_bin(tmp_path / name, [trained, "Mia"], tokenizer)
    assert overlap_of(story, tmp_path, tokenizer) == Overlap(len(passage.split()), passage)


def test_a_training_story_is_found_whole_and_the_longest_overlap_comes_first(data_dir, tokenizer, stories):
    samples = [{"story": stories[at], "prompt": "Lily", "max_new_tokens": 100} for at in (130, 7)]
    found = memorization_overlaps(samples, data_dir, tokenizer)
    whole, part = found["generated"]
    assert whole == Overlap(len(words_of(stories[7])), stories[7].rstrip("."))
    assert 0 < part.words < len(words_of(stories[130])) and part.passage in stories[130]
    first, second = found["real"]
    assert first.words >= second.words
    assert {overlap_of(story, data_dir, tokenizer) for story in stories[120:122]} == {first, second}
    assert overlap_rows({"generated": [whole, part], "real": [second]}) == [
        {"stories": "generated", "words copied, mean": (whole.words + part.words) / 2, "most": whole.words},
        {"stories": "real", "words copied, mean": second.words, "most": second.words},
    ]


def test_memory_does_not_grow_with_the_file():
    tokens = np.random.default_rng(0).integers(0, 50, 6_000_000).astype(np.uint16)
    stories = [tokens[start : start + 200].copy() for start in range(0, 6_000_000, 600_000)]
    tracemalloc.start()
    found = _longest_runs(stories, tokens)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [length for length, *_ in found] == [200] * 10
    assert peak < 60e6, f"{peak / 1e6:.0f} MB"


def test_a_missing_token_file_is_named(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="02_tokenizer"):
        overlap_of("A.", tmp_path, tokenizer)
