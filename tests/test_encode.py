"""Stories to ids, fast: nothing of how it is made fast may show in the ids."""

import tracemalloc

import datasets
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tinystories_lab.encode import _StoryEncoder, encode_stories
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tinystories_lab import encode

WORDS = st.sampled_from(
    ["the", " cat's", "  ", "\n\n", "I'll", "'S", " 42nd", "3.14", "_", "!!", "\t", "<|", "<|pad|>", "é", "½", "”"]
)
TEXT = st.lists(WORDS | st.text(st.characters(max_codepoint=127), max_size=4) | st.text(max_size=3)).map("".join)


def ids(data):
    return np.frombuffer(data, np.uint16).tolist()


@given(st.lists(TEXT, min_size=1, max_size=4))
@example(["a\x1cb \x1d c\x85d\x0be\r\n f"])  # what Python, but no tokenizer, calls space
@example(["don't DON'T we've 'tis 's", "a  b   c ", " ", ""])
@example(["Before <|endoftext|> after", "<|pad|><|pa d|>"])
def test_ids_are_those_of_the_tokenizer_for_any_text(tokenizer, texts):
    encoder = _StoryEncoder(tokenizer)
    for text in [*texts, *texts]:  # the second time every word is known
        assert ids(encoder(text)) == tokenizer.encode(text, add_special_tokens=False).ids


def test_every_ascii_pair_and_each_between_letters_is_cut_as_the_tokenizer_cuts_it(tokenizer):
    encoder = _StoryEncoder(tokenizer)
    for first in map(chr, range(128)):
        text = "".join(f"{first}{second}a{first}b{second} " for second in map(chr, range(128)))
        assert ids(encoder(text)) == tokenizer.encode(text).ids, repr(first)


def other_tokenizers():
    plain = Tokenizer(models.WordLevel({"a": 0, "b": 1, "ab": 2, "?": 3}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    lower = Tokenizer(models.BPE({"a": 0, "b": 1, "Ġ": 2, "ab": 3}, [("a", "b")]))
    lower.pre_tokenizer, lower.normalizer = pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Lowercase()
    prefixed = Tokenizer(models.BPE({"a": 0, "b": 1, "Ġ": 2, "ab": 3}, [("a", "b")]))
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return [plain, lower, prefixed]


@pytest.mark.parametrize("tokenizer", other_tokenizers(), ids=["words", "lower case", "prefix space"])
def test_other_kinds_of_tokenizers_encode_as_they_do(tokenizer):
    for text in ("ab a b", "AB ab", "a"):
        assert ids(_StoryEncoder(tokenizer)(text)) == tokenizer.encode(text).ids


def test_words_are_forgotten_before_they_are_too_many(tokenizer, monkeypatch):
    monkeypatch.setattr(encode, "_MOST_WORDS", 100)
    encoder = _StoryEncoder(tokenizer)
    for number in range(1_000):
        text = f"number {number} of {number * 7}"
        assert ids(encoder(text)) == tokenizer.encode(text).ids
        assert len(encoder._words) <= 110


def test_several_processes_give_what_one_gives_in_order(stories, tokenizer, monkeypatch):
    monkeypatch.setattr(encode, "_STORIES_PER_SLICE", 60)  # 144 stories: three slices, the last one smaller
    table = datasets.Dataset.from_dict({"number": range(len(stories)), "text": stories})
    alone = list(encode_stories(iter(stories), tokenizer))
    assert [size for _, size in alone] == [len(story) for story in stories]
    assert list(encode_stories(table, tokenizer, processes=1)) == alone
    assert list(encode_stories(table, tokenizer, processes=2)) == alone


def test_stories_that_are_not_asked_for_are_not_encoded(stories, tokenizer, monkeypatch):
    monkeypatch.setattr(encode, "_STORIES_PER_SLICE", 10)
    sliced = []
    monkeypatch.setattr(
        datasets.Dataset,
        "map",
        lambda self, function, **_: sliced.append(len(self)) or datasets.Dataset.from_dict(function(self[:])),
    )
    coming = encode_stories(datasets.Dataset.from_dict({"text": stories}), tokenizer, processes=2)
    for _ in range(11):
        next(coming)
    assert sliced == [10, 10]


def test_the_bars_of_datasets_stay_as_they_were():
    for shown in (False, True):
        (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
        with encode._without_bars():
            assert datasets.are_progress_bars_disabled()
        assert datasets.are_progress_bars_disabled() != shown


def test_memory_does_not_grow_with_the_corpus(tokenizer):
    def peak(count):
        tracemalloc.start()
        try:
            for _ in encode_stories((f"A fox ran {number % 50} miles." for number in range(count)), tokenizer):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)
    assert peak(4_000) < 1.2 * peak(400)
