"""Stories rated by people: a blind deck of generated and real stories, the saved ratings and their averages."""

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from tokenizers import Tokenizer

from tinystories_lab.data.text import prompt_of, without_last_word
from tinystories_lab.files import Row, append_row, read_rows
from tinystories_lab.generate import generate_batch
from tinystories_lab.model import GPTMini
from tinystories_lab.tokenizer import read_bin

QUESTIONS = ("grammar", "coherence", "fun")  # each rated from 0 to MAX_RATING
MAX_RATING = 5
GENERATED_STORIES, REAL_STORIES = 5, 3  # in a deck
_NEW_TOKENS = 250  # most stories have ended by then, generated and real
_CANDIDATES = 1_000  # validation stories to choose from; reading all of them would take minutes


def blind_deck(
    model: GPTMini, tokenizer: Tokenizer, val_bin: str | Path, new_tokens: int = _NEW_TOKENS, seed: int = 0
) -> list[dict[str, str]]:
    """Return five stories of the model and three real ones, shuffled: rows with story, and by ("model" or "real").

    The model continues the first words of five validation stories. The real stories are three others, cut after as many
    tokens. Every cut story ends in " ...", so that a cut does not reveal its author. The same seed gives the same deck.
    Raises ValueError if val_bin has too few stories.
    """
    stories = list(islice(read_bin(val_bin, tokenizer), _CANDIDATES))
    needed = GENERATED_STORIES + REAL_STORIES
    if len(stories) < needed:
        raise ValueError(f"{val_bin} holds {len(stories)} stories; {needed} are needed: keep more for validation")
    order = random.Random(seed)
    chosen = order.sample(stories, needed)
    prompts = [prompt_of(story, tokenizer) for story in chosen[:GENERATED_STORIES]]
    generated = generate_batch(model, tokenizer, prompts, new_tokens, seeds=range(GENERATED_STORIES))
    deck = [{"story": _cut(row["story"], row["ended"]), "by": "model"} for row in generated]
    for story in chosen[GENERATED_STORIES:]:
        limit = len(tokenizer.encode(prompt_of(story, tokenizer)).ids) + new_tokens
        ids = tokenizer.encode(story).ids
        deck.append({"story": _cut(tokenizer.decode(ids[:limit]), len(ids) < limit), "by": "real"})
    order.shuffle(deck)
    return deck


def _cut(story: str, ended: bool) -> str:
    """Return a story that ended as it is; otherwise replace its last word, which may be incomplete, by " ..."."""
    return story.strip() if ended else without_last_word(story) + " ..."


def save_rating(path: str | Path, card: Mapping[str, str], marks: Mapping[str, int], rater: str) -> None:
    """Append one story's marks to ratings.jsonl, with the story, its author, the rater and the time.

    Raises ValueError for a mark that is missing or not from 0 to 5, and OSError if the row cannot be written.
    """
    if missing := [question for question in QUESTIONS if question not in marks]:
        raise ValueError(f"no mark for {', '.join(missing)}: give each question a mark from 0 to {MAX_RATING}")
    for question in QUESTIONS:
        if marks[question] not in range(MAX_RATING + 1):
            raise ValueError(f"the mark for {question} is {marks[question]}; use a whole number from 0 to {MAX_RATING}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    about = {"rater": rater, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    append_row(path, {**card, **{question: marks[question] for question in QUESTIONS}, **about})


def unrated(deck: Sequence[Mapping[str, str]], path: str | Path, rater: str) -> list[Mapping[str, str]]:
    """Return the cards of a deck that this rater has not rated yet, in order."""
    rated = {row["story"] for row in read_rows(path) if row.get("rater") == rater}
    return [card for card in deck if card["story"] not in rated]


def average_ratings(path: str | Path) -> list[Row]:
    """Return the mean, the spread and the number of ratings for each question, of the model's and of real stories.

    The spread is the standard deviation. Rows without "by" are older than the blind rating and belong to the model.
    Without ratings there are no rows.
    """
    marks: dict[tuple[str, str], list[Any]] = {}
    for row in read_rows(path):
        for question in QUESTIONS:
            marks.setdefault((question, row.get("by", "model")), []).append(row[question])
    return [
        {"question": question, "stories by": by, "mean": fmean(of), "spread": pstdev(of), "ratings": len(of)}
        for question in QUESTIONS
        for by in ("model", "real")
        if (of := marks.get((question, by)))
    ]
