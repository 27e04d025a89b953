"""The words of a text in any script, the openings of stories, and the prompts and real stories that results need.

A word is a run of letters and digits with their marks. In scripts without spaces between words (Chinese, Japanese,
Thai, Lao, Khmer, Burmese), every letter counts as a word, because only a dictionary could find the words. Unicode's
UAX #29 follows the same idea with more rules.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unicodedata import category

from tokenizers import Tokenizer

from tinystories_lab.tokenizer import decode_continuation, read_bin

PROMPTS = ("Once upon a time", "Lily found a big", "The little dog wanted", "On a sunny day,", "There was a kind")
_STORIES_READ = 1_000  # to choose prompts; reading all stories would take minutes
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"
# Vowel signs, accents and joiners, which Python's \w excludes; only up to U+FFFF, beyond which `re` is much slower.
_MARKS = "\u200c\u200d" + "".join(char for char in map(chr, range(0x300, 0x10000)) if category(char)[0] == "M")
_SPACED = rf"[^\W{_UNSPACED}]+(?:[{_MARKS}]+[^\W{_UNSPACED}]*)*"
_WITH_PUNCTUATION = re.compile(rf"[{_UNSPACED}][^\w\s]*|[^\s{_UNSPACED}]+")
WORD = re.compile(rf"{_SPACED}(?:['’]{_SPACED})*|[{_UNSPACED}][{_MARKS}]*")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case. An apostrophe inside a word is part of it."""
    return WORD.findall(text.lower())


def _end_of_opening(story: str, words: int) -> int:
    """Return the position after the first words of a story and their punctuation."""
    return max((match.end() for match in islice(_WITH_PUNCTUATION.finditer(story), words)), default=0)


def opening(story: str, words: int = 4) -> str:
    """Return the first words of a story with their punctuation. White space becomes single spaces."""
    return " ".join(story[: _end_of_opening(story, words)].split())


def prompt_of(story: str, tokenizer: Tokenizer) -> str:
    """Return the beginning of a story, up to the end of the token in which its fourth word ends."""
    # In a script without spaces, that word may end inside a token. A model never sees half a token in training.
    end = _end_of_opening(story, words=4)
    return story[: next((last for _, last in tokenizer.encode(story).offsets if last >= end), end)]


def without_last_word(story: str) -> str:
    """Return the text without its last word, which may be incomplete if the story was cut off."""
    *_, last = 0, *(match.start() for match in _WITH_PUNCTUATION.finditer(story))
    return story[:last].strip()


def prompts_for(val_bin: str | Path, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return five prompts: the chapter's for English or missing stories, otherwise openings of validation stories."""
    if not Path(val_bin).exists():
        return PROMPTS
    stories = list(islice(read_bin(val_bin, tokenizer), _STORIES_READ))
    if "the" in dict(Counter(words_of(" ".join(stories))).most_common(10)):  # the stories are English
        return PROMPTS
    openings = dict.fromkeys(prompt_of(story, tokenizer) for story in stories)  # without duplicates, in order
    return tuple(islice(cycle(openings), len(PROMPTS)))


def real_stories_like(
    samples: Sequence[Mapping[str, Any]], val_bin: str | Path, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Return a row (story, ended) with a validation story for each sample, cut to the sample's maximum length."""
    rows = []
    for sample, text in zip(samples, read_bin(val_bin, tokenizer), strict=False):  # there may be fewer stories
        ids = tokenizer.encode(text).ids
        limit = len(tokenizer.encode(sample["prompt"]).ids) + sample["max_new_tokens"]
        rows.append({"story": decode_continuation(tokenizer, ids[:limit]), "ended": len(ids) < limit})
    return rows
