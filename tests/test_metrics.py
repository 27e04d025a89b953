"""Figures of stories that can be worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinystories_lab.metrics import (
    metrics_beside_real,
    real_stories_like,
    said_twice,
    story_metrics,
    training_words,
    words_of,
)
from tinystories_lab.tokenizer import load_tokenizer, write_bin


def rows(*stories, ended=True):
    return [{"story": story, "ended": ended} for story in stories]


def test_words_are_lower_case_and_keep_an_apostrophe_within():
    assert words_of("Tom's dog said: 'Don’t run, Zoë!' It's 3 o'clock.") == [
        *("tom's", "dog", "said", "don’t", "run", "zoë", "it's", "3", "o'clock")
    ]


def test_what_a_text_says_twice_is_given_as_it_stands_there_first():
    assert said_twice('"Where is it?" said Ben. Then he said: where is IT, said ben!') == 'Where is it?" said Ben'
    assert said_twice("once upon a time") == said_twice("") == ""
    assert said_twice("no no no no no") == "no no", "the two do not overlap"


@given(st.lists(st.sampled_from("abc"), max_size=14))
def test_no_longer_passage_is_said_twice(words):
    runs = [
        words[first : first + length]
        for first in range(len(words))
        for length in range(1, len(words) - first + 1)
        if any(
            words[again : again + length] == words[first : first + length]
            for again in range(first + length, len(words))
        )
    ]
    found = said_twice(" ".join(words)).split()
    assert len(found) == max(map(len, runs), default=0) and (found in runs or not found)


def test_story_metrics_of_stories_made_by_hand():
    # 9 words: the x3, cat x2, sat x2, dog, ran; pairs: tc, cs, st, tc, cs and td, dr; triples: tcs, cst, stc, tcs and tdr
    told = [*rows("The cat sat. The cat sat."), *rows("The dog ran!", ended=False)]
    assert story_metrics(told, {"a", "the", "cat", "sat", "end"}) == {
        "words": 4.5,
        "ended": 0.5,
        "known_words": 7 / 9,
        "distinct_words": 5 / 9,
        "distinct_bigrams": 5 / 7,
        "distinct_trigrams": 4 / 5,
    }


def test_nothing_runs_across_stories():
    metrics = story_metrics(rows("one two", "three four"), set())
    assert metrics["distinct_bigrams"] == 1 and metrics["distinct_trigrams"] == 0 and metrics["known_words"] == 0
    assert story_metrics(rows("a b", "b a"), set())["distinct_bigrams"] == 1


@given(st.lists(st.text("ab c'.", max_size=20), min_size=1).filter(lambda stories: any(map(words_of, stories))))
def test_every_share_lies_between_0_and_1(stories):
    metrics = story_metrics(rows(*stories), set(words_of(stories[0])))
    words, *shares = metrics.values()
    assert words >= 0 and all(0 <= share <= 1 for share in shares)


def test_an_empty_story_counts_as_no_words_and_only_such_are_refused():
    assert story_metrics(rows("a b c d", ""), {"a"})["words"] == 2
    for stories in ([], [""], ["...", "!"]):
        with pytest.raises(ValueError, match=r"no words in these stories: generate some first \(04_generate\)"):
            story_metrics(rows(*stories), {"a"})


def test_training_words_are_those_of_the_first_stories(data_dir, stories):
    tokenizer = load_tokenizer(data_dir / "tokenizer.json")
    known = training_words(data_dir / "train.bin", tokenizer)
    assert known == {word for story in stories[:120] for word in words_of(story)}
    assert training_words(data_dir / "train.bin", tokenizer, stories=1) == set(words_of(stories[0])) < known


def test_a_real_story_beside_each_told_one_is_cut_to_what_that_one_could_have(data_dir, stories):
    tokenizer = load_tokenizer(data_dir / "tokenizer.json")
    told = [{"prompt": "Lily found", "max_new_tokens": most} for most in (4, 10, 100)]
    beside = real_stories_like(told, data_dir / "val.bin", tokenizer)
    prompt = len(tokenizer.encode("Lily found").ids)
    for row, real, whole in zip(told, beside, stories[120:], strict=False):
        assert whole.startswith(real["story"])
        assert len(tokenizer.encode(real["story"]).ids) <= prompt + row["max_new_tokens"]
        assert real["ended"] == (real["story"] == whole)
    assert [row["ended"] for row in beside] == [False, False, True]


def test_a_story_that_fills_its_room_to_the_last_token_counts_as_cut_as_a_told_one_does(tmp_path, data_dir):
    tokenizer = load_tokenizer(data_dir / "tokenizer.json")
    write_bin(tmp_path / "val.bin", ["Lily was happy."], tokenizer)
    length = len(tokenizer.encode("Lily was happy.").ids)
    for room, ended in ((length, False), (length + 1, True)):
        (real,) = real_stories_like([{"prompt": "", "max_new_tokens": room}] * 2, tmp_path / "val.bin", tokenizer)
        assert real == {"story": "Lily was happy.", "ended": ended}, "and one real story is all there is"


def test_told_stories_stand_in_rows_beside_real_ones_with_words_that_training_lacks(data_dir):
    tokenizer = load_tokenizer(data_dir / "tokenizer.json")
    known = training_words(data_dir / "train.bin", tokenizer)
    settings = {"prompt": "Lily", "max_new_tokens": 40, "ended": True}
    samples = [
        {"when": "before", "story": "Lily bo fizzle.", **settings},
        *[{"when": "after", "story": "Lily was happy.", **settings}] * 2,
    ]
    rows = metrics_beside_real(samples, known, data_dir / "val.bin", tokenizer)
    assert [row["stories"] for row in rows] == ["before", "after", "real"]
    assert [row["unknown, such as"] for row in rows] == ["fizzle, bo", "none", "none"]
    assert rows[0].items() >= story_metrics(samples[:1], known).items()
    assert (
        rows[2].items() >= story_metrics(real_stories_like(samples[1:], data_dir / "val.bin", tokenizer), known).items()
    )
    (only,) = metrics_beside_real(samples[:1], known, data_dir / "val.bin", tokenizer)[:-1]
    assert only == rows[0], "what was not told is left out"
