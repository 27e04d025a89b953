"""A vocabulary's history: merge was learned after merge, so every smaller vocabulary is the beginning of a larger one.

Tokens are shown as the text they stand for; bytes that are only a part of a character as `\\xc3`.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer

from tinystories_lab.loader import open_tokens
from tinystories_lab.tokenizer import check_vocab_size

# A byte-level BPE writes each byte as one printable character: its own where it has one, else one from 256 up (GPT-2).
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + place): byte for place, byte in enumerate(_OTHERS)}


@dataclass(frozen=True)
class Step:
    """A sentence after the first `number` merges, the last of which joined `pair` to `made`; both are empty before the first."""

    number: int
    pair: tuple[str, ...]
    made: str
    pieces: list[str]


def merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The pairs that were joined, in the order in which they were learned, as the tokenizer writes them (Ġ is a space)."""
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _first_merges(tokenizer: Tokenizer, count: int) -> Tokenizer:
    """The tokenizer as it was after `count` merges; after none it knows bytes only. Raises ValueError out of range."""
    learned = merges(tokenizer)
    if not 0 <= count <= len(learned):
        raise ValueError(f"count is {count}; this tokenizer was made by {len(learned):,} merges: take 0 to that many")
    settings = json.loads(tokenizer.to_str())
    later = {"".join(pair) for pair in learned[count:]} - {"".join(pair) for pair in learned[:count]}
    settings["model"]["merges"] = learned[:count]
    settings["model"]["vocab"] = {token: id for token, id in settings["model"]["vocab"].items() if token not in later}
    return Tokenizer.from_str(json.dumps(settings))


def of_size(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The tokenizer as it was when it had `vocab_size` tokens: what training on the same texts gives for that size.

    A vocabulary that never had so many comes back whole, as `train_tokenizer` may give fewer than asked. Raises as
    `check_vocab_size`.
    """
    check_vocab_size(vocab_size)
    learned = merges(tokenizer)
    made: set[str] = set()  # two merges may make the same token
    before = tokenizer.get_vocab_size() - len({"".join(pair) for pair in learned})
    for count, pair in enumerate(learned):
        if before + len(made) == vocab_size:
            return _first_merges(tokenizer, count)
        made.add("".join(pair))
    return tokenizer


def shown(token: str) -> str:
    """The text that a token of the vocabulary stands for; bytes that are only a part of a character as `\\xc3`."""
    return bytes(_BYTE_OF[char] for char in token).decode(errors="backslashreplace")


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """What each token of a text stands for. Joined they are the text, where no character is cut between two tokens."""
    return [shown(token) for token in tokenizer.encode(text, add_special_tokens=False).tokens]


def merge_history(tokenizer: Tokenizer, sentence: str) -> list[Step]:
    """How a sentence was put together: its bytes, then its pieces after each merge that changed them, in order.

    The last step is what the tokenizer makes of it today; a special token in it is taken for plain text.
    """
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(sentence)]
    learned = merges(tokenizer)
    rank = {pair: number for number, pair in enumerate(learned)}
    cut = [list(word) for word in words]
    steps = [Step(0, (), "", [shown(token) for word in cut for token in word])]
    for number, pair in enumerate(learned, start=1):
        made = "".join(pair)
        if any(made in word for word in words):  # else it cannot have done anything
            before, cut = cut, [_cut_word(word, rank, number) for word in words]
            if cut != before:
                now = [shown(token) for word in cut for token in word]
                steps.append(Step(number, tuple(map(shown, pair)), shown(made), now))
    return steps


def _cut_word(word: str, rank: dict[tuple[str, str], int], count: int) -> list[str]:
    """A word's tokens after the first `count` merges: of all neighbours, the pair that was learned first is joined first."""
    tokens = list(word)
    while (first := min((rank.get(pair, count) for pair in pairwise(tokens)), default=count)) < count:
        place = 0
        while place < len(tokens) - 1:
            if rank.get((tokens[place], tokens[place + 1])) == first:
                tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]
            place += 1
    return tokens


def look_into(bin_path: str | Path, tokenizer: Tokenizer, start: int, count: int) -> list[dict[str, object]]:
    """A row a token of a token file, from `start` on: where it stands, its two bytes, its id, and its text.

    Raises FileNotFoundError as the loader does, and ValueError for a place that is not in the file.
    """
    tokens = open_tokens(Path(bin_path))
    if not 0 <= start < len(tokens):
        raise ValueError(f"start is {start}; {bin_path} holds the tokens 0 to {len(tokens) - 1:,}")
    return [
        {
            "token": place,
            "at byte": 2 * place,
            "bytes": tokens[place : place + 1].tobytes().hex(" "),
            "id": int(tokens[place]),
            "stands for": f"'{shown(tokenizer.id_to_token(int(tokens[place])))}'".replace("\n", r"\n"),
        }
        for place in range(start, min(start + count, len(tokens)))
    ]
