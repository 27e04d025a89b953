"""Automatic story metrics: length, vocabulary, repetition, and how many stories end."""

import math
from collections.abc import Mapping, Sequence, Set
from itertools import chain, islice
from pathlib import Path
from statistics import fmean
from typing import Any

from tokenizers import Tokenizer

from tinystories_lab.data.text import WORD, real_stories_like, words_of
from tinystories_lab.tokenizer import read_bin


def longest_repetition(text: str) -> str:
    """Return the longest passage of whole words that occurs twice in a text, ignoring case and punctuation."""
    spans, words = [match.span() for match in WORD.finditer(text)], words_of(text)
    longest, end = 0, 0
    lengths = [0] * len(words)  # for each earlier word: the length of the passage that ends both there and here
    for this, word in enumerate(words):
        for that in range(this - 1, -1, -1):
            length = 1 + (lengths[that - 1] if that else 0) if words[that] == word else 0
            lengths[that] = min(length, this - that)  # the two passages do not overlap
            if lengths[that] > longest:
                longest, end = lengths[that], that
    return text[spans[end - longest + 1][0] : spans[end][1]] if longest else ""


def training_words(train_bin: str | Path, tokenizer: Tokenizer, stories: int = 50_000) -> frozenset[str]:
    """Return the distinct words of the first stories of a token file. Reading all of them could take a minute."""
    return frozenset(chain.from_iterable(map(words_of, islice(read_bin(train_bin, tokenizer), stories))))


def story_metrics(rows: Sequence[Mapping[str, Any]], known: Set[str]) -> dict[str, float]:
    """Return metrics over the stories of `rows` (with story and ended); `known` are the words of the training stories.

    words: mean per story. ended: fraction of stories that ended by themselves. known_words: fraction of words that are
    known. distinct_words, distinct_bigrams, distinct_trigrams: distinct words (pairs, triples in a row) as a fraction
    of all; a value near 0 means repetition. Longer texts repeat more, so compare equally many stories of equal length.
    Fractions of no words are nan, as in stories of nothing but punctuation. Raises ValueError if there are no stories.
    """
    if not rows:
        raise ValueError("there are no stories to measure: generate some first (04_generate)")
    stories = [words_of(row["story"]) for row in rows]
    words = list(chain.from_iterable(stories))

    def distinct(n: int) -> float:
        n_grams = [gram for story in stories for gram in zip(*(story[start:] for start in range(n)), strict=False)]
        return len(set(n_grams)) / max(1, len(n_grams)) if words else math.nan

    return {
        "words": fmean(map(len, stories)),
        "ended": fmean(bool(row["ended"]) for row in rows),
        "known_words": sum(word in known for word in words) / len(words) if words else math.nan,
        "distinct_words": distinct(1),
        "distinct_bigrams": distinct(2),
        "distinct_trigrams": distinct(3),
    }


def compare_metrics(
    samples: Sequence[Mapping[str, Any]], known: Set[str], val_bin: str | Path, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Return the `story_metrics` of samples before and after training and of as many real stories, as table rows."""
    columns = {when: [row for row in samples if row["when"] == when] for when in ("before", "after")}
    columns["real"] = real_stories_like(columns["after"] or samples, val_bin, tokenizer)
    columns = {kind: rows for kind, rows in columns.items() if rows}  # no stories, no column
    metrics = {kind: story_metrics(rows, known) for kind, rows in columns.items()}
    names = next(iter(metrics.values()))
    rows = [{"metric": name.replace("_", " ")} | {kind: metrics[kind][name] for kind in columns} for name in names]
    unknown = {"metric": "unknown words"}
    for kind, stories in columns.items():
        words = dict.fromkeys(chain.from_iterable(words_of(row["story"]) for row in stories))
        unknown[kind] = ", ".join([word[:16] for word in words if word not in known][:3]) or "none"
    return [*rows, unknown]
