"""A text in words, whatever its script, and how stories open.

A word is a run of letters and digits with their marks. Scripts that put no space between words (Chinese, Japanese, Thai,
Lao, Khmer, Burmese) have a word for each letter, which asks no dictionary; Unicode's UAX #29 is the same idea, with more
rules.
"""

import re
import unicodedata
from collections import Counter
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
_PIECE = re.compile(rf"[{UNSPACED}][^\w\s]*|[^\s{UNSPACED}]+")  # a word with the punctuation around it

PROMPTS = ("Once upon a time", "Lily found a big", "The little dog wanted", "On a sunny day,", "There was a kind")
_STORIES_READ = 1_000  # for prompts: reading all would take minutes


def words_of(text: str) -> list[str]:
    """Lower-case words of a text; an apostrophe inside a word belongs to it."""
    return WORD.findall(text.lower())


def _end_of_opening(story: str, words: int) -> int:
    """Where the first words of a story end, the punctuation after them included."""
    return max((piece.end() for piece in islice(_PIECE.finditer(story), words)), default=0)


def opening(story: str, words: int = 4) -> str:
    """The first words of a story, with one space for any white space between them."""
    return " ".join(story[: _end_of_opening(story, words)].split())


def prompt_of(story: str, tokenizer: Tokenizer) -> str:
    """How a story begins, up to the end of the token that its fourth word ends in.

    A model has never seen a token cut short: without spaces, a prompt that ends inside one would be a riddle to it.
    """
    end = _end_of_opening(story, words=4)
    return story[: next((last for _, last in tokenizer.encode(story).offsets if last >= end), end)]


def without_last_word(story: str) -> str:
    """The text up to its last word, which may be half a word where the story was cut off."""
    *_, last = 0, *(piece.start() for piece in _PIECE.finditer(story))
    return story[:last].strip()


def prompts_for(val_bin: str | Path, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Five texts to go on from: the chapter's, or, where the held-out stories are not in English, how five of them open.

    They are in English if "the" is among their ten commonest words. Where there is no token file `val_bin`, nothing is
    known of the stories, and the chapter's are taken.
    """
    if not Path(val_bin).exists():
        return PROMPTS
    stories = list(islice(read_bin(val_bin, tokenizer), _STORIES_READ))
    if "the" in dict(Counter(words_of(" ".join(stories))).most_common(10)):
        return PROMPTS
    # Different ones first; few stories may have fewer than five.
    openings = dict.fromkeys(prompt_of(story, tokenizer) for story in stories)
    return tuple(islice(cycle(openings), len(PROMPTS)))
