"""A text in words, whatever its script, and how stories open.

A word is a run of letters and digits with their marks. Scripts that put no space between words (Chinese, Japanese, Thai,
Lao, Khmer, Burmese) have a word for each letter, which asks no dictionary; Unicode's UAX #29 is the same idea, with more
rules.
"""

import re
import unicodedata
from itertools import cycle, islice
from pathlib import Path

from tokenizers import Tokenizer

from tinystories_lab.tokenizer import read_bin

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Vowel signs, accents and joiners, to Python's \w no part of a word. Up to U+FFFF only: beyond, `re` is four times as slow.
MARKS = "\u200c\u200d" + "".join(
    filter(lambda char: unicodedata.category(char)[0] == "M", map(chr, range(0x300, 0x10000)))
)
SPACED = rf"[^\W{UNSPACED}]+(?:[{MARKS}]+[^\W{UNSPACED}]*)*"
WORD = re.compile(rf"{SPACED}(?:['’]{SPACED})*|[{UNSPACED}][{MARKS}]*")
PIECE = re.compile(rf"[{UNSPACED}][^\w\s]*|[^\s{UNSPACED}]+")  # a word with the punctuation around it

PROMPTS = ("Once upon a time", "Lily found a big", "The little dog wanted", "On a sunny day,", "There was a kind")
STORIES_READ = 1_000  # for prompts: reading all would take minutes


def words_of(text: str) -> list[str]:
    """Lower-case words of a text; an apostrophe inside a word belongs to it."""
    return WORD.findall(text.lower())


def opening(story: str, words: int = 4) -> str:
    """The first words, as the story has them, with one space for any white space between them."""
    ends = [piece.end() for piece in islice(PIECE.finditer(story), words)]
    return " ".join(story[: ends[-1]].split()) if ends else ""


def without_last_word(story: str) -> str:
    """The text up to its last word, which may be half a word where the story was cut off."""
    *_, last = 0, *(piece.start() for piece in PIECE.finditer(story))
    return story[:last].strip()


def prompts_for(val_bin: str | Path, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Five texts to go on from: the chapter's, or, where the held-out stories are in another language, how five of them open.

    They are in the chapter's language if a quarter of its prompts' words occur in them. Where there is no token file
    `val_bin`, nothing is known of the stories, and the chapter's are taken.
    """
    if not Path(val_bin).exists():
        return PROMPTS
    stories = list(islice(read_bin(val_bin, tokenizer), STORIES_READ))
    asked, said = set(words_of(" ".join(PROMPTS))), set(words_of(" ".join(stories)))
    if len(asked & said) >= len(asked) / 4:
        return PROMPTS
    openings = dict.fromkeys(map(opening, stories))  # different ones first; few stories may have fewer than five
    return tuple(islice(cycle(openings), len(PROMPTS)))
