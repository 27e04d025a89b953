"""Stories to ids, fast: each distinct word goes through the tokenizer once, and large corpora through several processes."""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:  # half a second to import, and who only tells stories does not need it
    from datasets import Dataset

_STORIES_PER_SLICE = 50_000  # for several processes: some 40 MB, whose ids lie on disk until they are read
_STORIES_PER_BATCH = 1_000
_MOST_WORDS = 200_000  # remembered at once, some 40 MB
# How a byte-level BPE cuts text into words (Radford et al. 2019, GPT-2), for ASCII, where Python's classes are the same.
_ASCII_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


class _StoryEncoder:
    """Encodes one story after another, as uint16 bytes; the ids are those of `tokenizer.encode`.

    A byte-level BPE never merges across words, and stories have few different ones. What is not plain ASCII, what holds a
    special token, and what another kind of tokenizer is to encode go to the tokenizer whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._words = tokenizer, {}
        settings = json.loads(tokenizer.to_str())
        self._by_word = settings["pre_tokenizer"] == _BYTE_LEVEL and settings["normalizer"] is None
        self._specials = [token["content"] for token in settings["added_tokens"]]

    def __call__(self, story: str) -> bytes:
        if not (self._by_word and story.isascii()) or any(special in story for special in self._specials):
            return self._encode(story)
        words = self._words
        try:
            return b"".join([words[word] for word in _ASCII_WORD.findall(story)])
        except KeyError:
            if len(words) > _MOST_WORDS:
                words.clear()
            found = _ASCII_WORD.findall(story)
            words.update((word, self._encode(word)) for word in found if word not in words)
            return b"".join([words[word] for word in found])

    def batch(self, rows: dict[str, list[str]]) -> dict[str, list[Any]]:
        """Columns "ids" (bytes) and "size" (UTF-8 bytes of text) for a column "text"."""
        return {"ids": [self(text) for text in rows["text"]], "size": [len(text.encode()) for text in rows["text"]]}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_words": {}}  # each process remembers its own

    def _encode(self, text: str) -> bytes:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.uint16).tobytes()


def encode_stories(
    stories: "Iterable[str] | Dataset", tokenizer: Tokenizer, processes: int | None = None
) -> Iterator[tuple[bytes, int]]:
    """Yield each story's ids, as uint16 bytes, and its size in UTF-8 bytes, in order.

    Texts are encoded as they come. A Dataset with a column "text" of over 50,000 rows is encoded by `processes`, one a
    core unless told otherwise, slice by slice: memory and the temporary files on disk stay the same for any size.
    """
    encoder = _StoryEncoder(tokenizer)
    if not hasattr(stories, "select_columns"):
        yield from ((encoder(story), len(story.encode())) for story in stories)
        return
    processes = processes or os.cpu_count() or 1
    if len(stories) <= _STORIES_PER_SLICE or processes == 1:
        for batch in stories.select_columns("text").iter(_STORIES_PER_BATCH):
            yield from zip(*encoder.batch(batch).values(), strict=True)
        return
    for start in range(0, len(stories), _STORIES_PER_SLICE):
        part = stories.select(range(start, min(start + _STORIES_PER_SLICE, len(stories))))
        with tempfile.TemporaryDirectory() as folder:
            with _without_bars():
                encoded = part.map(
                    encoder.batch,
                    batched=True,
                    num_proc=processes,
                    remove_columns=part.column_names,
                    cache_file_name=f"{folder}/ids.arrow",
                    new_fingerprint=f"slice-{start}",  # nothing is to be found again, so nothing need be hashed
                )
            for batch in encoded.iter(_STORIES_PER_BATCH):
                yield from zip(batch["ids"], batch["size"], strict=True)
            del encoded, batch


@contextmanager
def _without_bars() -> Iterator[None]:
    """Within the block `datasets` shows no bars of its own."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
