"""A story while it is told: how it stands from moment to moment, and what is shown of it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer

from tinystories_lab.generate import stream
from tinystories_lab.model import GPTMini
from tinystories_lab.notebook.show import bars, prose, tokens
from tinystories_lab.odds import likely_next, token_text
from tinystories_lab.tokenizer import end_id, first_ids, text_of

_TOKENS_A_SECOND = 40  # at most: a small model is faster than one can watch, and nothing would be left to stop
_TOKENS_A_BEAT = 2  # at least, where the browser comes back sooner than they are due
_TAIL = 30  # letters of what stands before a token, to say where it is


@dataclass(frozen=True)
class Told:
    """A story so far: token ids, of which the first `start` are the prompt's; `ended` says why it goes no further."""

    prompt: str
    ids: tuple[int, ...]
    start: int
    ended: str = ""

    @property
    def count(self) -> int:
        """How many tokens were told, `<|endoftext|>` included."""
        return len(self.ids) - self.start


def begin(tokenizer: Tokenizer, prompt: str) -> Told:
    """A story of which nothing is told yet; as every story does, an empty prompt begins after `<|endoftext|>`."""
    ids = first_ids(tokenizer, prompt)
    return Told(prompt, tuple(ids), len(ids))


def tell_in_beats(
    model: GPTMini, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, beat: float, **settings: Any
) -> Iterator[Told]:
    """The story that `generate` tells with the same settings, as it stands after every beat and at its end.

    A beat is over after `beat` seconds, or when as much is told as is due for the time since the last one was taken. A
    story that ended by itself has `<|endoftext|>` as its last token. Raises ValueError as `stream`.
    """
    told, end = begin(tokenizer, prompt), end_id(tokenizer)
    since, due = time.monotonic(), _TOKENS_A_BEAT
    for token in stream(model, told.ids, max_new_tokens, stop_id=end, **settings):
        told = replace(told, ids=(*told.ids, token))
        if time.monotonic() - since >= beat or told.count >= due:
            taken = time.monotonic()
            yield told
            since = time.monotonic()
            due = told.count + max(_TOKENS_A_BEAT, _TOKENS_A_SECOND * (since - taken))
    if told.count < max_new_tokens:
        yield replace(told, ids=(*told.ids, end), ended="It ended by itself.")
    else:
        yield replace(told, ended="It reached its length.")


def story_html(tokenizer: Tokenizer, told: Told, chosen: int = 0) -> str:
    """While it is told: its text. Once it has ended: its tokens, the prompt's too, number `chosen` of the told ones framed."""
    if not told.ended:
        return prose(told.prompt + text_of(tokenizer, told.ids, told.start) + " ...").data
    pieces = [token_text(tokenizer, token) for token in told.ids]
    return tokens(pieces, chosen=told.start + chosen - 1 if chosen else None).data


def odds_html(model: GPTMini, tokenizer: Tokenizer, told: Told, chosen: int = 0, **settings: Any) -> str:
    """The odds at token number `chosen` of the told ones, an arrow at the one that was drawn; 0: of what follows the prompt."""
    place = told.start + max(0, chosen - 1)
    before = told.ids[:place]
    rows = likely_next(model, tokenizer, before, told=told.ids[place] if chosen else None, **settings)
    text = tokenizer.decode(before, skip_special_tokens=False).rstrip("\ufffd")
    tail = text if len(text) <= _TAIL else "..." + text[-_TAIL:]
    heading = f"What may follow “{tail}”{' (→ was drawn)' if chosen else ''}"
    return (
        prose(heading).data
        + bars(rows).data
        + prose("Filled: as the sliders have it. Outline: the model’s own odds.").data
    )
