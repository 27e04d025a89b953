"""What can be said of stories without a reader: how long, of which words, how repetitive, ended or cut off."""

from collections.abc import Mapping, Sequence, Set
from itertools import chain, islice
from pathlib import Path
from statistics import fmean
from typing import Any

from tokenizers import Tokenizer

from tinystories_lab.tokenizer import read_bin, text_of
from tinystories_lab.words import WORD, words_of

STORIES_READ = 50_000  # for the words of the training stories: seconds, where all of the chapter's would take a minute


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
        rows.append({"story": text_of(tokenizer, ids[:most]), "ended": len(ids) < most})
    return rows


def story_metrics(rows: Sequence[Mapping[str, Any]], known: Set[str]) -> dict[str, float]:
    """Figures over all the stories of `rows` (with story and ended); `known` are the words of the training stories.

    words: mean a story. ended: share that ended by themselves. known_words: share of the words that are known.
    distinct_words, distinct_bigrams, distinct_trigrams: of all the words (two, three words in a row), the share that is
    different; near 0 is repetition, and longer texts repeat more: compare equally many of equal length. Words are those of
    `words_of`, letters where a script has no spaces. Raises ValueError for no words.
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


def _unknown_words(rows: Sequence[Mapping[str, Any]], known: Set[str]) -> list[str]:
    """The different words that are not known, in the order in which the stories have them."""
    words = chain.from_iterable(words_of(row["story"]) for row in rows)
    return [word for word in dict.fromkeys(words) if word not in known]


def metrics_beside_real(
    samples: Sequence[Mapping[str, Any]], known: Set[str], val_bin: str | Path, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The `story_metrics` as rows of a table, with columns for samples.jsonl before and after training, and as many real stories.

    What was not told has no column. The last row names some words that are not known.
    """
    told = {when: [row for row in samples if row["when"] == when] for when in ("before", "after")}
    told["real"] = real_stories_like(told["after"] or samples, val_bin, tokenizer)
    columns = {kind: story_metrics(rows, known) for kind, rows in told.items() if rows}
    names = next(iter(columns.values()))
    rows = [
        {"figure": name.replace("_", " ")} | {kind: figures[name] for kind, figures in columns.items()}
        for name in names
    ]
    unknown = {kind: [word[:16] for word in _unknown_words(told[kind], known)[:3]] for kind in columns}
    return [*rows, {"figure": "not known"} | {kind: ", ".join(words) or "none" for kind, words in unknown.items()}]
