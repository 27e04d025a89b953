"""Byte-pair encoding (BPE) step by step: the merges of a tokenizer, and the effect of each one on a text.

Merges are learned one after another, so every smaller vocabulary is the beginning of a larger one.
"""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from tinystories_lab.loader import open_tokens
from tinystories_lab.tokenizer import check_vocab_size

# Byte-level BPE (GPT-2) writes each byte as one character: the byte itself if it is printable, else one from 256 on.
_ALPHABET = ByteLevel.alphabet()
_NOT_PRINTABLE = sorted(set(range(256)) - set(map(ord, _ALPHABET)))
_BYTE_OF = {char: ord(char) if ord(char) < 256 else _NOT_PRINTABLE[ord(char) - 256] for char in _ALPHABET}


class MergeStep(NamedTuple):
    """A sentence after the first `number` merges. The last merge joined `pair` to `made`; both are empty in step 0."""

    number: int
    pair: tuple[str, ...]
    made: str
    pieces: list[str]


def merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return the merged pairs in the order they were learned, as the tokenizer writes them (Ġ is a space)."""
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def truncate_vocab(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return the tokenizer that training on the same texts gives for a smaller `vocab_size`.

    If the vocabulary never had that size, the tokenizer is returned as it is. Raises ValueError as `check_vocab_size`.
    """
    check_vocab_size(vocab_size)
    settings = json.loads(tokenizer.to_str())
    model = settings["model"]
    made = ["".join(pair) for pair in model["merges"]]
    distinct = list(dict.fromkeys(made))  # because two merges may make the same token
    kept = vocab_size - (tokenizer.get_vocab_size() - len(distinct))
    if not 0 <= kept < len(distinct):
        return tokenizer
    count = made.index(distinct[kept - 1]) + 1 if kept else 0
    model["merges"] = model["merges"][:count]
    for token in distinct[kept:]:
        del model["vocab"][token]
    return Tokenizer.from_str(json.dumps(settings))


def token_to_text(token: str) -> str:
    r"""Return the text of a vocabulary entry. Bytes that are only part of a character appear as `\xc3`."""
    return bytes(_BYTE_OF[char] for char in token).decode(errors="backslashreplace")


def token_texts(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the text of each token. Joined, these are `text`, unless a character is split between tokens."""
    return [token_to_text(token) for token in tokenizer.encode(text, add_special_tokens=False).tokens]


def quote(text: str) -> str:
    r"""Return a token's text in quotes, which make spaces visible, with line breaks written as `\n`."""
    return f"'{text}'".replace("\n", r"\n")


def merge_history(tokenizer: Tokenizer, sentence: str) -> list[MergeStep]:
    """Return the steps that encode a sentence as plain text: its bytes, then each merge that changes it."""
    learned = [(), *merges(tokenizer)]  # step 0 joins nothing
    rank = {pair: number for number, pair in enumerate(learned)}
    words = tokenizer.pre_tokenizer.pre_tokenize_str(sentence)
    text = "\n".join(" ".join(word) for word, _ in words)  # a word per line, a space between tokens (Sennrich et al.)
    history = {0: text}
    while pairs := {pair for line in text.split("\n") for pair in pairwise(line.split(" "))} & rank.keys():
        first, second = pair = min(pairs, key=rank.__getitem__)
        occurrence = rf"(?<!\S){re.escape(first)} {re.escape(second)}(?!\S)"
        text = (first + second).join(re.split(occurrence, text))
        history[max(rank[pair], *history)] = text  # this merge may make a token that an earlier merge joins again
    steps = []
    for number, text in history.items():
        pair, pieces = learned[number], [token_to_text(token) for token in text.split()]
        steps.append(MergeStep(number, tuple(map(token_to_text, pair)), token_to_text("".join(pair)), pieces))
    return steps


def inspect_bin(bin_path: str | Path, tokenizer: Tokenizer, start: int, count: int) -> list[dict[str, object]]:
    """Return a table row for each of `count` tokens of a token file. Raises ValueError if `start` is outside."""
    tokens = open_tokens(bin_path)
    if not 0 <= start < len(tokens):
        raise ValueError(f"start is {start}; {bin_path} holds the tokens 0 to {len(tokens) - 1:,}")
    rows = []
    for place, token in enumerate(tokens[start : start + count], start):
        row = {"token": place, "at byte": 2 * place, "bytes": token.tobytes().hex(" "), "id": int(token)}
        rows.append(row | {"text": quote(token_to_text(tokenizer.id_to_token(int(token))))})
    return rows
