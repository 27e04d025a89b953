"""What only a reader can say: stories told and real, blind, rated from 0 to 5, and what the ratings come to."""

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from tokenizers import Tokenizer

from tinystories_lab.generate import tell_many
from tinystories_lab.model import GPTMini
from tinystories_lab.runlog import Row, append_row, read_rows
from tinystories_lab.tokenizer import read_bin
from tinystories_lab.words import prompt_of, without_last_word

RATED = ("grammar", "coherence", "fun")  # each 0 to 5
BEST = 5
_TOLD, _REAL = 5, 3  # of the model and of people, in a deck
ROOM = 250  # new tokens: most stories have ended by then, theirs and the model's
_CHOSEN_FROM = 1_000  # held-out stories; reading all would take minutes


def blind_deck(
    model: GPTMini, tokenizer: Tokenizer, val_bin: str | Path, new_tokens: int = ROOM, seed: int = 0
) -> list[dict[str, str]]:
    """Five stories of the model and three real ones, shuffled: rows with story, and by ("model" or "real").

    The model goes on from the first words of held-out stories; the real ones are others, whole or cut after as many
    tokens. What is cut ends in " ...", so that nothing but the telling gives a story away. The same seed, the same deck.
    Raises ValueError when val_bin has too few stories.
    """
    stories = list(islice(read_bin(val_bin, tokenizer), _CHOSEN_FROM))
    if len(stories) < _TOLD + _REAL:
        raise ValueError(
            f"{val_bin} holds {len(stories)} stories; {_TOLD + _REAL} are needed: keep more for validation"
        )
    order = random.Random(seed)
    chosen = order.sample(stories, _TOLD + _REAL)
    told = tell_many(
        model, tokenizer, [prompt_of(story, tokenizer) for story in chosen[:_TOLD]], new_tokens, seeds=range(_TOLD)
    )
    deck = [{"story": _cut(row["story"], row["ended"]), "by": "model"} for row in told]
    for story in chosen[_TOLD:]:
        most = len(tokenizer.encode(prompt_of(story, tokenizer)).ids) + new_tokens
        ids = tokenizer.encode(story).ids
        deck.append({"story": _cut(tokenizer.decode(ids[:most]), len(ids) < most), "by": "real"})
    order.shuffle(deck)
    return deck


def _cut(story: str, ended: bool) -> str:
    """A story as it is shown: whole, or without its last word, which may be half a word, and with " ..."."""
    return story.strip() if ended else without_last_word(story) + " ..."


def save_rating(path: str | Path, card: Mapping[str, str], marks: Mapping[str, int], rater: str) -> None:
    """Append one story's marks to ratings.jsonl: grammar, coherence, fun, by whom the story is, who rated it and when.

    Raises ValueError for a mark that is missing or not from 0 to 5, OSError when the row cannot be written.
    """
    if missing := [question for question in RATED if question not in marks]:
        raise ValueError(f"no mark for {', '.join(missing)}: give each question one from 0 to {BEST}")
    for question in RATED:
        if marks[question] not in range(BEST + 1):
            raise ValueError(
                f"the mark for {question} is {marks[question]}; it must be a whole number from 0 to {BEST}"
            )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    about = {"rater": rater, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    append_row(path, {**card, **{question: marks[question] for question in RATED}, **about})


def unrated(deck: Sequence[Mapping[str, str]], path: str | Path, rater: str) -> list[Mapping[str, str]]:
    """The cards of a deck that this rater has not rated yet, in order."""
    rated = {row["story"] for row in read_rows(path) if row.get("rater") == rater}
    return [card for card in deck if card["story"] not in rated]


def average_ratings(path: str | Path) -> list[Row]:
    """What ratings.jsonl comes to: for each question, of the model's stories and of real ones, mean, spread and how many.

    The spread is the standard deviation of those ratings. Rows without "by", of before the rating was blind, are the
    model's. No ratings are no rows.
    """
    marks: dict[tuple[str, str], list[Any]] = {}
    for row in read_rows(path):
        for question in RATED:
            marks.setdefault((question, row.get("by", "model")), []).append(row[question])
    return [
        {"question": question, "stories by": by, "mean": fmean(of), "spread": pstdev(of), "ratings": len(of)}
        for question in RATED
        for by in ("model", "real")
        if (of := marks.get((question, by)))
    ]
