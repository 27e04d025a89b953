"""Text to ids on disk and back: a byte-level BPE, and the token files that it writes and reads."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from tinystories_lab.encode import encode_stories
from tinystories_lab.files import replace_whole
from tinystories_lab.sources import END_OF_TEXT
from tinystories_lab.tokenfile import BinInfo, open_tokens

if TYPE_CHECKING:
    from datasets import Dataset

PAD = "<|pad|>"
_END_MARKS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")  # ours, and those of tokenizers that others made
SMALLEST_VOCABULARY = 256 + 2  # every byte, and the two special tokens
_LARGEST_VOCABULARY = 2**16  # ids are kept as uint16: two bytes a token


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE of at most `vocab_size` tokens from `texts`.

    `<|endoftext|>` has id 0 and `<|pad|>` id 1; the full byte alphabet is in, so any text encodes and decodes back; no
    space is put before the first word. A small corpus may give fewer tokens than asked. Raises ValueError for a
    vocabulary that cannot hold the bytes or does not fit uint16, and for an empty corpus.
    """
    check_vocab_size(vocab_size)
    stories = iter(tqdm(texts, desc="learn merges from", unit=" stories"))
    if (first := next(stories, None)) is None:
        raise ValueError("no texts to train the tokenizer on: run 01_prepare (or `prepare` in the shell) first")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,  # its bars do not survive a notebook; tqdm's do
    )
    tokenizer.train_from_iterator(chain([first], stories), trainer)
    return tokenizer


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Fingerprint of the vocabulary and its ids; the same whatever version of the library wrote tokenizer.json."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read tokenizer.json. Raises FileNotFoundError or ValueError, saying what makes the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no tokenizer {path}: run 02_tokenizer (or `tokenizer` in the shell) first")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer file ({error}): write it again (02_tokenizer)") from error


def end_id(tokenizer: Tokenizer) -> int:
    """The id of what stands between two stories. Raises ValueError for a tokenizer that has no mark for it."""
    ids = [tokenizer.token_to_id(mark) for mark in _END_MARKS]
    if all(number is None for number in ids):
        raise ValueError(f"the tokenizer has none of {', '.join(_END_MARKS)} to end a story with: take another one")
    return next(number for number in ids if number is not None)


def first_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids that a story goes on from; as every story does, one without a prompt begins after the mark between two."""
    return tokenizer.encode(prompt).ids or [end_id(tokenizer)]


def text_of(tokenizer: Tokenizer, ids: Sequence[int], start: int = 0) -> str:
    """What the ids of a story from `start` on say; a last character of which only some bytes are there is left out.

    All are decoded: some tokenizers, of others, leave out the space before what they take for the first word.
    """
    return tokenizer.decode(ids).rstrip("\ufffd")[len(tokenizer.decode(ids[:start])) :]


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write tokenizer.json, the library's own format."""
    with replace_whole(path, "w") as file:
        file.write(tokenizer.to_str(pretty=True))


def write_bin(
    path: str | Path,
    stories: "Iterable[str] | Dataset",
    tokenizer: Tokenizer,
    max_tokens: int | None = None,
    source: str = "",
) -> BinInfo:
    """Encode texts, or the "text" column of a Dataset, to a token file with its JSON sidecar beside it.

    It holds uint16 ids, `<|endoftext|>` after every story, and ends after the last whole story that fits into
    `max_tokens`. Streams: memory holds some stories at a time; a large Dataset is encoded by all cores. An
    interrupted call leaves what was there before. Raises ValueError for a vocabulary over 65,536 or no story at all.
    """
    path = Path(path)
    check_vocab_size(tokenizer.get_vocab_size(), smallest=1)  # not of our own making, perhaps
    end = np.uint16(end_id(tokenizer)).tobytes()
    tokens = told = size = 0
    digest = hashlib.sha256()
    total = max_tokens or (len(stories) if hasattr(stories, "__len__") else None)
    with (
        replace_whole(path) as file,
        tqdm(desc=path.name, total=total, unit=" tokens" if max_tokens else " stories") as bar,
    ):
        for ids, text_size in encode_stories(stories, tokenizer):
            story_tokens = len(ids) // 2 + 1
            if max_tokens is not None and tokens + story_tokens > max_tokens:
                break
            data = ids + end
            digest.update(data)
            file.write(data)
            tokens += story_tokens
            told += 1
            size += text_size
            bar.update(story_tokens if max_tokens else 1)
        if not told:
            raise ValueError(
                f"no story to write to {path}: the corpus is empty, or max_tokens={max_tokens} is too few for one"
            )
        file.flush()
        os.fsync(file.fileno())  # the slow part of what is left: interrupted here, the old file keeps its sidecar
        path.with_suffix(".json").unlink(missing_ok=True)  # an old sidecar must not vouch for the new file
    info = BinInfo(
        tokens=tokens,
        stories=told,
        bytes=size,
        vocab_size=tokenizer.get_vocab_size(),
        dtype="uint16",
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        sha256=digest.hexdigest(),
        source=source,
    )
    with replace_whole(path.with_suffix(".json"), "w") as file:
        json.dump(asdict(info), file, indent=1)
    return info


def read_bin(path: str | Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Decode a token file back to its stories, in order, one at a time."""
    tokens = open_tokens(Path(path))
    start = 0
    for end in np.flatnonzero(tokens == end_id(tokenizer)):
        yield tokenizer.decode(tokens[start:end].tolist(), skip_special_tokens=False)
        start = end + 1


def check_vocab_size(vocab_size: int, smallest: int = SMALLEST_VOCABULARY) -> None:
    """Raise ValueError for a vocabulary that cannot hold the bytes, or does not fit uint16."""
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}; {smallest} are needed for all bytes and two special tokens")
    if vocab_size > _LARGEST_VOCABULARY:
        raise ValueError(
            f"vocab_size is {vocab_size:,}; token files keep ids as uint16, so at most {_LARGEST_VOCABULARY:,} fit"
        )
