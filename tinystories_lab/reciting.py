"""Is it writing or reciting? The longest passage that each story has in common with the training file, word for word."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from tinystories_lab.loader import open_tokens
from tinystories_lab.metrics import real_stories_like
from tinystories_lab.words import WORD

_TOKENS_AT_ONCE = 2**20  # some 40 MB of memory, whatever the file's size
_TABLE_BITS = 20


@dataclass(frozen=True)
class Copied:
    """A passage that stands in the training file too, from its first whole word to its last, and how many words that is."""

    words: int
    passage: str


def _longest_copies(stories: Sequence[str], train_bin: str | Path, tokenizer: Tokenizer) -> list[Copied]:
    """For each story the longest run of tokens that the training file has too, cut to whole words; none is 0 words.

    Exact, for runs of four tokens or more, in one pass over the file: seconds for 200M tokens. Raises as `open_tokens`.
    """
    tokens = open_tokens(Path(train_bin))
    # Encoded afresh: ids that were drawn need not be those that the tokenizer gives the same text.
    encoded = [tokenizer.encode(story) for story in stories]
    runs = _longest_runs([np.array(story.ids, np.uint16) for story in encoded], tokens)
    copies = []
    for text, story, (length, start, place) in zip(stories, encoded, runs, strict=True):
        first, last = (story.offsets[start][0], story.offsets[start + length - 1][1]) if length else (0, 0)
        around = [tokenizer.decode(tokens[max(0, at) : at + 1].tolist()) for at in (place - 1, place + length)]
        here = _whole_words(text[:first], text[first:last], text[last:])
        there = _whole_words(around[0] if place else "", text[first:last], around[1])
        both = sorted(here & there)
        copies.append(Copied(len(both), text[first + both[0][0] : first + both[-1][1]] if both else ""))
    return copies


def copies_beside_real(
    told: Sequence[Mapping[str, Any]], data_dir: str | Path, tokenizer: Tokenizer
) -> dict[str, list[Copied]]:
    """The `longest_copies` of told stories (rows of samples.jsonl), and, under "real", of as many held-out ones; the longest first."""
    data_dir = Path(data_dir)
    real = real_stories_like(told, data_dir / "val.bin", tokenizer)
    found = _longest_copies([row["story"] for row in [*told, *real]], data_dir / "train.bin", tokenizer)
    kinds = {"told": found[: len(told)], "real": found[len(told) :]}
    return {kind: sorted(copies, key=lambda copied: -copied.words) for kind, copies in kinds.items()}


def _whole_words(before: str, passage: str, after: str) -> set[tuple[int, int]]:
    """Where in the passage words stand that neither begin before it nor go on after it."""
    found = (match.span() for match in WORD.finditer(before + passage + after))
    spans = ((start - len(before), end - len(before)) for start, end in found)
    return {(start, end) for start, end in spans if start >= 0 and end <= len(passage)}


def _longest_runs(stories: Sequence[np.ndarray], tokens: np.ndarray) -> list[tuple[int, int, int]]:
    """For each story (uint16 ids) its longest run of at least four ids that `tokens` has too: length, start in the story, in `tokens`.

    (0, 0, 0) where there is none. Four ids in a row are one number of 64 bits; those of the stories are looked up at
    every place of `tokens`, and hits that follow each other in both are one run.
    """
    begins = np.cumsum([0, *map(len, stories)])  # of the stories, laid one after another
    joined = np.concatenate([*stories, np.zeros(4, np.uint16)])
    starts = [np.arange(begin, end - 3) for begin, end in pairwise(begins)]
    places = np.concatenate(starts) if starts else np.zeros(0, np.int64)
    fours = _four_in_a_row(joined)[places]
    order = np.argsort(fours, kind="stable")
    fours, places = fours[order], places[order]
    table = np.zeros(2**_TABLE_BITS, bool)  # a first look, many times as fast as a search
    table[_table_place(fours)] = True
    best = [(0, 0, 0)] * len(stories)
    longest = max(map(len, stories), default=0)
    with tqdm(desc="look for copied passages", total=len(tokens), unit=" tokens", unit_scale=True) as bar:
        for at in range(0, len(tokens), _TOKENS_AT_ONCE):
            part = tokens[at : at + _TOKENS_AT_ONCE + longest]  # a run that begins in this part is whole in it
            for story, length, start, place in _runs_in(part, fours, places, table, begins, best):
                if length > best[story][0]:
                    best[story] = (length, start - int(begins[story]), at + place)
            bar.update(min(_TOKENS_AT_ONCE, len(tokens) - at))
    return best


def _runs_in(
    part: np.ndarray,
    fours: np.ndarray,
    places: np.ndarray,
    table: np.ndarray,
    begins: np.ndarray,
    best: Sequence[tuple[int, int, int]],
) -> Iterator[tuple[int, int, int, int]]:
    """The longest run in `part` of each story that beats its best so far: story, length, start among the stories, in `part`."""
    if len(part) < 4 or not len(fours):
        return
    window = _four_in_a_row(part)
    hits = np.flatnonzero(table[_table_place(window)])
    first, last = (np.searchsorted(fours, window[hits], side) for side in ("left", "right"))
    real = first < last
    hits, first, count = hits[real], first[real], (last - first)[real]
    # Hits in a row are as long as a run can be: where that beats no story's best, there is nothing to compare.
    together = np.diff(np.flatnonzero(np.diff(hits, prepend=-2, append=len(part) + 1) != 1))
    promising = np.repeat(together, together) + 3 > min(length for length, *_ in best)
    hits, first, count = hits[promising], first[promising], count[promising]
    if not len(hits):
        return
    nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    there, here = np.repeat(hits, count), places[np.repeat(first, count) + nth]
    order = np.argsort(there - here, kind="stable")  # along a run the two places stay as far apart
    there, here = there[order], here[order]
    apart = there - here
    heads = np.flatnonzero((np.diff(there, prepend=-2) != 1) | (np.diff(apart, prepend=apart[0] - 1) != 0))
    lengths = np.diff(heads, append=len(there)) + 3
    of_story = np.searchsorted(begins, here[heads], "right") - 1
    for story in np.unique(of_story):
        run = np.flatnonzero(of_story == story)[lengths[of_story == story].argmax()]
        yield int(story), int(lengths[run]), int(here[heads[run]]), int(there[heads[run]])


def _four_in_a_row(ids: np.ndarray) -> np.ndarray:
    """Every four neighbouring uint16 as one uint64, (len(ids) - 3,), without copying them."""
    return np.ndarray(len(ids) - 3, np.uint64, np.ascontiguousarray(ids), strides=(2,))


def _table_place(fours: np.ndarray) -> np.ndarray:
    """Spread 64 bits over the places of the table (multiplicative hashing)."""
    return (fours * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)
