"""Metrics of stories that can be worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinystories_lab.analysis.metrics import compare_metrics, longest_repetition, story_metrics, training_words
from tinystories_lab.data.text import real_stories_like, words_of


def rows(*stories, ended=True):
    return [{"story": story, "ended": ended} for story in stories]


def test_the_longest_repetition_is_given_as_it_is_written_the_first_time():
    assert (
        longest_repetition('"Where is it?" said Ben. Then he said: where is IT, said ben!') == 'Where is it?" said Ben'
    )
    assert longest_repetition("once upon a time") == longest_repetition("") == ""
    assert longest_repetition("no no no no no") == "no no", "the two do not overlap"


@given(st.text("abc", max_size=14))
def test_no_longer_passage_occurs_twice(words):
    passages = {words[start:end] for start in range(len(words)) for end in range(start, len(words) + 1)}
    found = longest_repetition(" ".join(words)).replace(" ", "")
    assert len(found) == max((len(passage) for passage in passages if words.count(passage) > 1), default=0)
    assert words.count(found) > 1 or not found


def test_story_metrics_of_stories_made_by_hand():
    # 9 words: the x3, cat x2, sat x2, dog, ran; pairs: tc, cs, st, tc, cs and td, dr; triples: tcs, cst, stc, tcs and tdr
    stories = [*rows("The cat sat. The cat sat."), *rows("The dog ran!", ended=False)]
    distinct = {"distinct_words": 5 / 9, "distinct_bigrams": 5 / 7, "distinct_trigrams": 4 / 5}
    expected = {"words": 4.5, "ended": 0.5, "known_words": 7 / 9} | distinct
    assert story_metrics(stories, {"a", "the", "cat", "sat", "end"}) == pytest.approx(expected)


def test_no_pair_or_triple_of_words_runs_across_stories():
    metrics = story_metrics(rows("one two", "three four"), set())
    assert metrics["distinct_bigrams"] == 1 and metrics["distinct_trigrams"] == 0 and metrics["known_words"] == 0
    assert story_metrics(rows("a b", "b a"), set())["distinct_bigrams"] == 1


def test_a_story_without_words_counts_as_no_words_and_fractions_of_no_words_are_undefined():
    assert story_metrics(rows("a b c d", "..."), {"a"})["words"] == 2
    for stories in ([""], ["...", "!"]):
        undefined = dict.fromkeys(("known_words", "distinct_words", "distinct_bigrams", "distinct_trigrams"), math.nan)
        expected = {"words": 0, "ended": 1} | undefined
        assert story_metrics(rows(*stories), {"a"}) == pytest.approx(expected, nan_ok=True)
    with pytest.raises(ValueError, match=r"there are no stories to measure: generate some first \(04_generate\)"):
        story_metrics([], {"a"})


def test_training_words_are_those_of_the_first_stories(data_dir, tokenizer, stories):
    known = training_words(data_dir / "train.bin", tokenizer)
    assert known == {word for story in stories[:120] for word in words_of(story)}
    assert training_words(data_dir / "train.bin", tokenizer, stories=1) == set(words_of(stories[0])) < known


def test_samples_have_columns_beside_real_stories_with_the_words_that_training_lacks(data_dir, tokenizer):
    known, val_bin = training_words(data_dir / "train.bin", tokenizer), data_dir / "val.bin"
    settings = {"prompt": "Lily", "max_new_tokens": 40, "ended": True}
    before = [{"when": "before", "story": "Lily bo fizzle.", **settings}]
    after = [{"when": "after", "story": "Lily was happy.", **settings}] * 2
    *metrics, unknown = compare_metrics(before + after, known, val_bin, tokenizer)
    for kind, stories in (("before", before), ("after", after), ("real", real_stories_like(after, val_bin, tokenizer))):
        assert [row[kind] for row in metrics] == list(story_metrics(stories, known).values())
    assert [row["metric"] for row in metrics][1:3] == ["ended", "known words"]
    assert unknown == {"metric": "unknown words", "before": "bo, fizzle", "after": "none", "real": "none"}
    early = compare_metrics(before, known, val_bin, tokenizer)
    assert all(row.keys() == {"metric", "before", "real"} for row in early), "no samples, no column"
