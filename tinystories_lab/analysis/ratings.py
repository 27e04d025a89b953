"""Stories rated by people: a blind deck of generated and real stories, the saved ratings, and their averages."""

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice, product
from pathlib import Path
from statistics import fmean, pstdev

from tokenizers import Tokenizer

from tinystories_lab.data.text import prompt_of, without_last_word
from tinystories_lab.files import Row, append_row, read_rows
from tinystories_lab.generate import generate_batch
from tinystories_lab.model import GPTMini
from tinystories_lab.tokenizer import read_bin

QUESTIONS = ("grammar", "coherence", "fun")  # each rated from 0 to MAX_RATING
MAX_RATING = 5
_GENERATED_STORIES, _REAL_STORIES = 5, 3  # in a deck
_NEW_TOKENS = 250  # most stories, generated and real, end earlier
_CANDIDATES = 1_000  # validation stories to choose from; reading all of them would take minutes


def blind_deck(
    model: GPTMini, tokenizer: Tokenizer, val_bin: str | Path, new_tokens: int = _NEW_TOKENS, seed: int = 0
) -> list[dict[str, str]]:
    """Return five stories of the model and three real stories, shuffled: rows with story and by ("model" or "real").

    The model continues the first words of five validation stories. The real stories are three others, cut at the same
    length. Every cut story ends in " ...", so that a cut does not reveal the author. The same seed gives the same deck.
    Raises ValueError if `val_bin` has too few stories.
    """
    stories = list(islice(read_bin(val_bin, tokenizer), _CANDIDATES))
    needed = _GENERATED_STORIES + _REAL_STORIES
    if len(stories) < needed:
        raise ValueError(f"{val_bin} holds {len(stories)} stories; {needed} are needed: use more stories")
    order = random.Random(seed)
    chosen = order.sample(stories, needed)
    prompts = [prompt_of(story, tokenizer) for story in chosen[:_GENERATED_STORIES]]
    generated = generate_batch(model, tokenizer, prompts, new_tokens, seeds=range(_GENERATED_STORIES))
    deck = [{"story": _cut(row["story"], row["ended"]), "by": "model"} for row in generated]
    for story in chosen[_GENERATED_STORIES:]:
        limit = len(tokenizer.encode(prompt_of(story, tokenizer)).ids) + new_tokens
        ids = tokenizer.encode(story).ids
        deck.append({"story": _cut(tokenizer.decode(ids[:limit]), len(ids) < limit), "by": "real"})
    order.shuffle(deck)
    return deck


def _cut(story: str, ended: bool) -> str:
    """Return a story as it is if it ended; otherwise replace its last word, which may be incomplete, by " ..."."""
    return story.strip() if ended else without_last_word(story) + " ..."


def save_rating(path: str | Path, card: Mapping[str, str], marks: Mapping[str, int], rater: str) -> None:
    """Append the marks of one story to ratings.jsonl. Raises ValueError for a mark that is missing or out of range."""
    if missing := [question for question in QUESTIONS if question not in marks]:
        raise ValueError(f"no mark for {', '.join(missing)}: give each question a mark from 0 to {MAX_RATING}")
    for question in QUESTIONS:
        if marks[question] not in range(MAX_RATING + 1):
            raise ValueError(f"the mark for {question} is {marks[question]}; use a whole number from 0 to {MAX_RATING}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    about = {"rater": rater, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    append_row(path, dict(card) | {question: marks[question] for question in QUESTIONS} | about)


def unrated(deck: Sequence[Mapping[str, str]], path: str | Path, rater: str) -> list[Mapping[str, str]]:
    """Return the cards of a deck that this rater has not rated yet, in order."""
    rated = {row["story"] for row in read_rows(path) if row.get("rater") == rater}
    return [card for card in deck if card["story"] not in rated]


def average_ratings(path: str | Path) -> list[Row]:
    """Return a row per question and author: the mean, the spread (standard deviation) and the number of ratings."""
    ratings, averages = read_rows(path), []
    for question, by in product(QUESTIONS, ("model", "real")):
        # Rows without "by" are older than the blind rating. They belong to the model.
        if marks := [row[question] for row in ratings if row.get("by", "model") == by]:
            figures = {"mean": fmean(marks), "spread": pstdev(marks), "ratings": len(marks)}
            averages.append({"question": question, "stories by": by} | figures)
    return averages
