"""Memorization: the longest passage of each story that also occurs in the training stories."""

import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from tinystories_lab.checkpoint import load_model
from tinystories_lab.config import TrainConfig
from tinystories_lab.data.text import WORD, prompt_of, real_stories_like
from tinystories_lab.files import Row
from tinystories_lab.generate import generate_samples
from tinystories_lab.loader import open_tokens
from tinystories_lab.model import GPTConfig
from tinystories_lab.progress import progress
from tinystories_lab.tokenizer import load_tokenizer, read_bin, save_tokenizer, write_bin
from tinystories_lab.trainer import train

_CHUNK = 2**20  # tokens of the file searched at a time: about 40 MB of memory, whatever the file's size
_TABLE_BITS = 20


class Overlap(NamedTuple):
    """A passage of whole words that also occurs in the training file, and its number of words."""

    words: int
    passage: str


def memorization_overlaps(
    generated: Sequence[Mapping[str, Any]], data_dir: str | Path, tokenizer: Tokenizer
) -> dict[str, list[Overlap]]:
    """Return the overlaps of the stories with the training file, longest first, under the keys "generated" and "real".

    `generated` are rows of samples.jsonl. The same number of validation stories shows how much overlap real stories
    have. Raises FileNotFoundError if a token file is missing.
    """
    real = real_stories_like(generated, Path(data_dir, "val.bin"), tokenizer)
    found = _longest_overlaps([row["story"] for row in [*generated, *real]], Path(data_dir, "train.bin"), tokenizer)
    kinds = {"generated": found[: len(generated)], "real": found[len(generated) :]}
    return {kind: sorted(overlaps, key=lambda overlap: -overlap.words) for kind, overlaps in kinds.items()}


def overlap_rows(overlaps: Mapping[str, Sequence[Overlap]]) -> list[dict[str, Any]]:
    """Return a table row for each kind of story: the mean and the maximum number of words in its overlaps."""
    words = {kind: [overlap.words for overlap in found] for kind, found in overlaps.items()}
    return [{"stories": kind, "words copied, mean": fmean(of), "most": max(of)} for kind, of in words.items()]


def train_on_few(
    data_dir: str | Path, model_config: GPTConfig, seq_len: int, count: int = 12
) -> tuple[Row, dict[str, list[Overlap]]]:
    """Train a model on the first `count` training stories for 100 steps, and let it continue their first words.

    Returns the last log row, and the `memorization_overlaps` of ten continuations with these `count` stories.
    """
    data_dir, tokenizer = Path(data_dir), load_tokenizer(Path(data_dir, "tokenizer.json"))
    stories = list(islice(read_bin(data_dir / "train.bin", tokenizer), count))
    prompts = [prompt_of(story, tokenizer) for story in stories]
    fast = {"optimizer": "muon", "muon_lr": 0.01, "peak_lr": 6e-3}
    config = TrainConfig(8, seq_len, total_steps=100, warmup_steps=10, sampling="stories", **fast)
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder, "tokenizer.json"))
        write_bin(Path(folder, "train.bin"), stories, tokenizer)
        write_bin(Path(folder, "val.bin"), islice(read_bin(data_dir / "val.bin", tokenizer), 50), tokenizer)
        *_, row = train(folder, folder, model_config, config)
        generated = generate_samples(load_model(Path(folder, "final.pt")), tokenizer, 120, prompts)
        return row, memorization_overlaps(generated, folder, tokenizer)


def _longest_overlaps(stories: Sequence[str], train_bin: Path, tokenizer: Tokenizer) -> list[Overlap]:
    """Return each story's longest run of four or more tokens that the training file has too, cut to whole words."""
    tokens = open_tokens(train_bin)
    # Stories are encoded again, because a model may sample other ids than the tokenizer gives for the same text.
    encoded = [tokenizer.encode(story) for story in stories]
    runs = _longest_runs([np.array(story.ids, np.uint16) for story in encoded], tokens)
    overlaps = []
    for text, story, (length, start, place) in zip(stories, encoded, runs, strict=True):
        first, last = (story.offsets[start][0], story.offsets[start + length - 1][1]) if length else (0, 0)
        # A few tokens on both sides show whether the first and last words are whole in the training file, too.
        sides = tokens[max(0, place - 4) : place], tokens[place + length : place + length + 4]
        before, after = (tokenizer.decode(ids.tolist(), skip_special_tokens=False) for ids in sides)
        in_story = _whole_words(text[:first], text[first:last], text[last:])
        in_training = _whole_words(before, text[first:last], after)
        both = sorted(in_story & in_training)
        overlaps.append(Overlap(len(both), text[first + both[0][0] : first + both[-1][1]] if both else ""))
    return overlaps


def _whole_words(before: str, passage: str, after: str) -> set[tuple[int, int]]:
    """Return the (start, end) of each word in the passage that does not begin before it or end after it."""
    found = (match.span() for match in WORD.finditer(before + passage + after))
    spans = ((start - len(before), end - len(before)) for start, end in found)
    return {(start, end) for start, end in spans if start >= 0 and end <= len(passage)}


def _longest_runs(stories: Sequence[np.ndarray], tokens: np.ndarray) -> list[tuple[int, int, int]]:
    """Return each story's longest run of ids that also occurs in `tokens`: (length, start in story, start in `tokens`).

    Stories are uint16 ids. Without a run of at least four ids, the result is (0, 0, 0). Every four ids form one 64-bit
    number. The numbers of the stories are looked up at every place of `tokens`, and each match is extended id by id.
    This takes seconds for 200M tokens.
    """
    best = np.zeros((len(stories), 3), np.int64)
    sizes = [len(story) + 1 for story in stories]
    begins, story_of = np.cumsum([0, *sizes]), np.repeat(np.arange(len(stories)), sizes)
    joined = np.concatenate([np.zeros(0, np.int32), *(np.append(story.astype(np.int32), -1) for story in stories)])
    places = np.concatenate([np.zeros(0, np.int64), *map(np.arange, begins, begins[1:] - 4)])
    fours = _fours(joined.astype(np.uint16))[places]
    order = np.argsort(fours, kind="stable")
    fours, places = fours[order], places[order]
    table = np.zeros(2**_TABLE_BITS, bool)  # rules out most numbers, much faster than a search
    table[_hash(fours)] = True
    longest = max(sizes, default=0)
    for offset in progress(range(0, len(tokens), _CHUNK), desc="look for copied passages", unit="M tokens"):
        chunk = tokens[offset : offset + _CHUNK + longest]  # contains all of every run that begins in its first part
        window = _fours(chunk)
        hits = np.flatnonzero(table[_hash(window)])
        # A run of n ids gives n - 3 hits in a row, so a short row of hits cannot improve any story's best run.
        in_a_row = np.diff(np.flatnonzero(np.diff(hits, prepend=-2, append=len(chunk) + 1) != 1))
        hits = hits[np.repeat(in_a_row, in_a_row) + 3 > best[:, 0].min(initial=2**16)]
        # A number may occur several times in the stories: make one pair (here, there) for each of them.
        first, last = (np.searchsorted(fours, window[hits], side) for side in ("left", "right"))
        count = last - first
        nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        here, there = places[np.repeat(first, count) + nth], np.repeat(hits, count)
        ids, length = np.append(chunk.astype(np.int32), -2), 4  # -1 and -2 end every run
        while len(here):
            story = story_of[here]
            new = best[story, 0] < length
            story, start, place = story[new], here[new], there[new]
            best[story] = np.stack([np.full_like(story, length), start - begins[story], offset + place], axis=1)
            longer = joined[here + length] == ids[there + length]
            here, there, length = here[longer], there[longer], length + 1
    return list(map(tuple, best.tolist()))


def _fours(ids: np.ndarray) -> np.ndarray:
    """Return every four neighbouring uint16 ids as one uint64, without a copy. The shape is (len(ids) - 3,)."""
    return np.ndarray(max(0, len(ids) - 3), np.uint64, np.ascontiguousarray(ids), strides=(2,))


def _hash(fours: np.ndarray) -> np.ndarray:
    """Return the place of each number in the table (multiplicative hashing)."""
    return (fours * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)
