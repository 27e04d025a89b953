"""What can be said of stories without a reader: how long, of which words, how repetitive, ended or cut off."""

import re
from collections.abc import Mapping, Sequence, Set
from itertools import chain, islice
from pathlib import Path
from statistics import fmean
from typing import Any

from tokenizers import Tokenizer

from tinystories_lab.tokenizer import read_bin

WORD = re.compile(r"\w+(?:['’]\w+)*")
STORIES_READ = 50_000  # for the words of the training stories: seconds, where all of the chapter's would take a minute


def words_of(text: str) -> list[str]:
    """Lower-case words of a text, in any script; an apostrophe inside a word belongs to it."""
    return WORD.findall(text.lower())


def said_twice(text: str) -> str:
    """The longest passage of whole words that stands in a text twice; "" when no word does. Punctuation and case do not count."""
    places, words = [match.span() for match in WORD.finditer(text)], words_of(text)
    longest, end, ending = 0, 0, [0] * len(words)  # of each word before: how long a passage ends there and at this one
    for this, word in enumerate(words):
        for that in range(this - 1, -1, -1):
            same = 1 + (ending[that - 1] if that else 0) if words[that] == word else 0
            ending[that] = min(same, this - that)  # the two do not overlap
            if ending[that] > longest:
                longest, end = ending[that], that
    return text[places[end - longest + 1][0] : places[end][1]] if longest else ""


def training_words(train_bin: str | Path, tokenizer: Tokenizer, stories: int = STORIES_READ) -> frozenset[str]:
    """The different words of the first so many stories of a token file."""
    return frozenset(chain.from_iterable(map(words_of, islice(read_bin(train_bin, tokenizer), stories))))


def real_stories_like(
    told: Sequence[Mapping[str, Any]], val_bin: str | Path, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """A real story beside each told one (rows of samples.jsonl), cut to as many tokens as that one could have: a fair yardstick.

    Rows with story and ended; a file of fewer stories gives fewer.
    """
    rows = []
    for row, text in zip(told, read_bin(val_bin, tokenizer), strict=False):
        ids = tokenizer.encode(text).ids
        most = len(tokenizer.encode(row["prompt"]).ids) + row["max_new_tokens"]
        rows.append({"story": tokenizer.decode(ids[:most]), "ended": len(ids) < most})
    return rows


def story_metrics(rows: Sequence[Mapping[str, Any]], known: Set[str]) -> dict[str, float]:
    """Figures over all the stories of `rows` (with story and ended); `known` are the words of the training stories.

    words: mean a story. ended: share that ended by themselves. known_words: share of the words that are known.
    distinct_words, distinct_bigrams, distinct_trigrams: of all the words (two, three words in a row), the share that is
    different; near 0 is repetition, and longer texts repeat more: compare equally many of equal length. Raises ValueError
    for no words.
    """
    told = [words_of(row["story"]) for row in rows]
    words = list(chain.from_iterable(told))
    if not words:
        raise ValueError("no words in these stories: generate some first (04_generate)")

    def distinct(length: int) -> float:
        runs = [run for story in told for run in zip(*(story[start:] for start in range(length)), strict=False)]
        return len(set(runs)) / max(1, len(runs))

    return {
        "words": fmean(map(len, told)),
        "ended": fmean(bool(row["ended"]) for row in rows),
        "known_words": sum(word in known for word in words) / len(words),
        "distinct_words": distinct(1),
        "distinct_bigrams": distinct(2),
        "distinct_trigrams": distinct(3),
    }


def unknown_words(rows: Sequence[Mapping[str, Any]], known: Set[str]) -> list[str]:
    """The different words that are not known, the longest first."""
    words = {word for row in rows for word in words_of(row["story"])}
    return sorted(words - known, key=lambda word: (-len(word), word))


def metrics_beside_real(
    samples: Sequence[Mapping[str, Any]], known: Set[str], val_bin: str | Path, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The `story_metrics` of samples.jsonl from before and after training, and of as many real stories, as rows of a table.

    Each also names some words that training does not have.
    """
    kinds = {when: [row for row in samples if row["when"] == when] for when in ("before", "after")}
    kinds["real"] = real_stories_like(kinds["after"] or samples, val_bin, tokenizer)
    rows_of = {kind: rows for kind, rows in kinds.items() if rows}
    unknown = {kind: ", ".join(unknown_words(rows, known)[:4]) or "none" for kind, rows in rows_of.items()}
    return [
        {"stories": kind} | story_metrics(rows, known) | {"unknown, such as": unknown[kind]}
        for kind, rows in rows_of.items()
    ]
