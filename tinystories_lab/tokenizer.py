"""A byte-level BPE tokenizer, and the token files written and read with it."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice, takewhile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tinystories_lab.files import atomic_write
from tinystories_lab.loader import BinInfo, open_tokens
from tinystories_lab.progress import progress

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
_END_TOKENS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")  # ours first, then those of other projects
MIN_VOCAB_SIZE = 256 + 2  # every byte and two special tokens
_MAX_VOCAB_SIZE = 2**16  # ids are stored as uint16
_PIECE_CHARACTERS = 2**16
_SPACE_BETWEEN_WORDS = re.compile(r"(?<=\w) (?=\w)")
_BATCH_CHARACTERS = 2**20  # of text that all cores encode together: a larger corpus needs no more memory


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained on `texts`, with `vocab_size` tokens, or fewer if the corpus is small.

    `<|endoftext|>` has id 0 and `<|pad|>` id 1. Raises ValueError for an empty corpus, or as `check_vocab_size` does.
    """
    check_vocab_size(vocab_size)
    stories = iter(progress(texts, desc="train the tokenizer", unit=" stories"))
    if (first := next(stories, None)) is None:
        raise ValueError("there are no texts to train on: run 01_prepare (or `prepare` in the shell) first")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes, so any text can be encoded
        show_progress=False,  # its bars are garbled in notebooks, unlike tqdm's
    )
    _train_in_thread(tokenizer, _pieces(chain([first], stories)), trainer)
    return tokenizer


def _train_in_thread(tokenizer: Tokenizer, texts: Iterator[str], trainer: trainers.Trainer) -> None:
    """Train the tokenizer in a thread. The main thread only waits, because the library does not answer Ctrl-C."""
    stop, errors = threading.Event(), []

    def work() -> None:
        try:
            tokenizer.train_from_iterator(takewhile(lambda _: not stop.is_set(), texts), trainer)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
    finally:
        stop.set()
    if errors:
        raise errors[0]


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts, long ones in pieces: the library keeps 256 at a time. A piece ends before a space, as words do."""
    for text in texts:
        start = 0
        while space := _SPACE_BETWEEN_WORDS.search(text, start + _PIECE_CHARACTERS):
            yield text[start : space.start()]
            start = space.start()
        yield text[start:]


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Return a fingerprint of the vocabulary and its ids. It is the same in every version of the tokenizers library."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read tokenizer.json. Raises FileNotFoundError if there is none and ValueError if it is damaged."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no tokenizer {path}: run 02_tokenizer (or `tokenizer` in the shell) first")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"{path} is not a tokenizer file ({error}): run 02_tokenizer and 03_train again") from error
    tokenizer.no_padding()  # a tokenizer of another project may pad short stories of a batch, or cut long ones
    tokenizer.no_truncation()
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write tokenizer.json in the library's own format."""
    with atomic_write(path, "w") as file:
        file.write(tokenizer.to_str(pretty=True))


def eos_id(tokenizer: Tokenizer) -> int:
    """Return the id of the end-of-text token. Raises ValueError if the tokenizer has none."""
    for token in _END_TOKENS:
        if (token_id := tokenizer.token_to_id(token)) is not None:
            return token_id
    raise ValueError(f"the tokenizer has no end-of-text token ({', '.join(_END_TOKENS)}): use another tokenizer")


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the ids of a prompt without spaces at its end. An empty prompt becomes the end-of-text token."""
    # A space belongs to the token of the next word, so a model has never seen a word after a token of only a space.
    return tokenizer.encode(prompt.rstrip(" ")).ids or [eos_id(tokenizer)]


def decode_continuation(tokenizer: Tokenizer, ids: Sequence[int], start: int = 0) -> str:
    """Return the text of `ids[start:]` without an incomplete character at its end."""
    # All ids are decoded, because some tokenizers drop the space before the first word that they decode.
    return tokenizer.decode(ids).rstrip("\ufffd")[len(tokenizer.decode(ids[:start])) :]


def write_bin(
    path: str | Path,
    stories: Iterable[str],
    tokenizer: Tokenizer,
    max_tokens: int | None = None,
    source: str = "",
    made_from: str = "",
) -> BinInfo:
    """Encode stories to a token file and write its JSON sidecar. Return the content of the sidecar.

    The file contains uint16 ids, with `<|endoftext|>` after each story. It ends after the last whole story that fits
    into `max_tokens`. If the call is interrupted, an older file and its sidecar do not change. Raises ValueError if
    there is no story to write, or if the vocabulary has more than 65,536 tokens.
    """
    path, sidecar = Path(path), Path(path).with_suffix(".json")
    check_vocab_size(tokenizer.get_vocab_size(), smallest=1)  # it may be a tokenizer of another project
    eos, digest = eos_id(tokenizer), hashlib.sha256()
    tokens = written = size = 0
    # The bar counts tokens up to max_tokens; without that limit it counts stories, and `stories` may know their number.
    unit = {"unit": " tokens", "unit_scale": True} if max_tokens else {"unit": " stories"}
    with atomic_write(path) as file, progress(stories, path.name, max_tokens, **unit) as bar:
        for text, ids in _encode_batches(stories, tokenizer):
            if max_tokens is not None and tokens + len(ids) + 1 > max_tokens:
                break
            data = np.array([*ids, eos], np.uint16).tobytes()
            digest.update(data)
            file.write(data)
            tokens += len(ids) + 1
            written += 1
            size += len(text.encode())
            bar.update(len(ids) + 1 if max_tokens else 1)
        if not written:
            reason = f"the corpus is empty, or max_tokens={max_tokens} is too small for its first story"
            raise ValueError(f"there is no story to write to {path}: {reason}")
        file.flush()
        os.fsync(file.fileno())  # the slow part: if it is interrupted, the old file must keep its sidecar
        sidecar.unlink(missing_ok=True)  # an old sidecar must not describe the new file
    fingerprints = tokenizer_sha256(tokenizer), digest.hexdigest()
    info = BinInfo(tokens, written, size, tokenizer.get_vocab_size(), "uint16", *fingerprints, source, made_from)
    with atomic_write(sidecar, "w") as file:
        json.dump(asdict(info), file, indent=1)
    return info


def _encode_batches(stories: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    """Yield each story with its ids, in order. The library encodes a batch on all cores."""
    # It needs 500 bytes per character of a text. Pieces have the same ids if words are tokenized one by one, as here.
    by_words = isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel) and tokenizer.normalizer is None
    stories = iter(stories)
    for story in stories:
        batch, size = [story], len(story)
        while size < _BATCH_CHARACTERS and (story := next(stories, None)) is not None:
            batch.append(story)
            size += len(story)
        pieces = [list(_pieces([story])) if by_words else [story] for story in batch]
        encodings = iter(tokenizer.encode_batch_fast([*chain(*pieces)], add_special_tokens=False))
        for text, parts in zip(batch, pieces, strict=True):
            yield text, [token_id for encoding in islice(encodings, len(parts)) for token_id in encoding.ids]


def read_bin(path: str | Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the stories of a token file as text, in order. Raises ValueError if another tokenizer has written it."""
    tokens, start, info = open_tokens(path), 0, BinInfo.load(path)
    if info and info.tokenizer_sha256 != tokenizer_sha256(tokenizer):
        raise ValueError(f"{path} was written with another tokenizer: use the data and the run that belong together")
    for end in np.flatnonzero(tokens == eos_id(tokenizer)):
        yield tokenizer.decode(tokens[start:end].tolist(), skip_special_tokens=False)
        start = end + 1


def check_vocab_size(vocab_size: int, smallest: int = MIN_VOCAB_SIZE) -> None:
    """Raise ValueError for a vocabulary size that is too small for all bytes or too large for uint16."""
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}; all bytes and two special tokens need at least {smallest}")
    if vocab_size > _MAX_VOCAB_SIZE:
        raise ValueError(f"vocab_size is {vocab_size:,}; it must be at most {_MAX_VOCAB_SIZE:,} (ids are uint16)")
