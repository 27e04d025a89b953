"""A deck that gives nothing away, and what its ratings come to."""

import re
from collections import Counter
from statistics import mean, pstdev

import pytest
import torch

from tinystories_lab import ratings
from tinystories_lab.model import GPTMini
from tinystories_lab.ratings import RATED, _cut, average_ratings, blind_deck, save_rating, unrated
from tinystories_lab.runlog import append_row, read_rows
from tinystories_lab.tokenizer import write_bin
from tinystories_lab.words import opening

MARKS = {"grammar": 4, "coherence": 0, "fun": 5}


@pytest.fixture
def model(model_config):
    torch.manual_seed(0)
    return GPTMini(model_config).eval()


def test_a_deck_is_five_told_and_three_real_stories_that_the_model_was_not_given(model, tokenizer, data_dir, stories):
    deck = blind_deck(model, tokenizer, data_dir / "val.bin", new_tokens=60)
    assert Counter(card["by"] for card in deck) == {"model": 5, "real": 3}
    assert all(card.keys() == {"story", "by"} for card in deck)
    held_out = stories[120:]
    for card in deck:
        if card["by"] == "real":
            assert card["story"] in held_out
        else:
            assert any(card["story"].startswith(opening(story)) for story in held_out)
            assert card["story"] not in held_out


def test_the_model_goes_on_from_other_stories_than_the_real_ones_of_the_deck(model, tokenizer, tmp_path):
    write_bin(tmp_path / "val.bin", [f"{letter} was a letter of some kind." for letter in "ABCDEFGHIJ"], tokenizer)
    deck = blind_deck(model, tokenizer, tmp_path / "val.bin", new_tokens=60)
    assert len({card["story"][0] for card in deck}) == len(deck)


def test_real_and_told_stories_are_cut_alike(model, tokenizer, data_dir, stories):
    deck = blind_deck(model, tokenizer, data_dir / "val.bin", new_tokens=6)
    assert all(card["story"].endswith(" ...") for card in deck)
    for card in deck:
        whole = card["story"].removesuffix(" ...")
        if card["by"] == "real":
            assert any(story.startswith(whole + " ") for story in stories[120:]), "after a whole word"
        assert len(tokenizer.encode(whole).ids) <= len(tokenizer.encode(opening(whole)).ids) + 6


def test_the_same_seed_gives_the_same_deck_and_another_seed_another(model, tokenizer, data_dir):
    decks = [blind_deck(model, tokenizer, data_dir / "val.bin", new_tokens=6, seed=seed) for seed in (0, 0, 1)]
    assert decks[0] == decks[1] != decks[2]


def test_the_order_gives_nothing_away(model, tokenizer, data_dir):
    orders = {
        "".join(card["by"][0] for card in blind_deck(model, tokenizer, data_dir / "val.bin", 2, seed))
        for seed in range(8)
    }
    assert len(orders) >= 4


def test_too_few_held_out_stories_are_refused(model, tokenizer, tmp_path):
    write_bin(tmp_path / "val.bin", ["Lily was happy."] * 7, tokenizer)
    with pytest.raises(ValueError, match="holds 7 stories; 8 are needed"):
        blind_deck(model, tokenizer, tmp_path / "val.bin")


def test_a_story_that_ended_is_whole_and_another_ends_after_a_whole_word():
    assert _cut(" The end.\n", ended=True) == "The end."
    assert _cut("The dog ran ho", ended=False) == "The dog ran ..."
    assert opening("  Once upon\na time there") == "Once upon a time" and opening("Hi.") == "Hi."


def test_a_rating_is_one_row_with_all_that_is_needed(tmp_path):
    path = tmp_path / "run" / "ratings.jsonl"
    save_rating(path, {"story": "“A”\n", "by": "real"}, MARKS, "Ada")
    (row,) = read_rows(path)
    assert row == {"story": "“A”\n", "by": "real", **MARKS, "rater": "Ada", "when": row["when"]}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["when"])


@pytest.mark.parametrize("wrong", [{"fun": 6}, {"fun": -1}, {"fun": 2.5}, {"fun": None}])
def test_a_mark_out_of_range_is_refused_and_nothing_is_written(tmp_path, wrong):
    with pytest.raises(ValueError, match="fun is"):
        save_rating(tmp_path / "ratings.jsonl", {"story": "A", "by": "model"}, MARKS | wrong, "Ada")
    assert not list(tmp_path.iterdir())


def test_what_one_rater_has_rated_is_not_asked_again_of_that_one(tmp_path):
    deck = [{"story": story, "by": "model"} for story in "ABC"]
    path = tmp_path / "ratings.jsonl"
    assert unrated(deck, path, "Ada") == deck
    save_rating(path, deck[1], MARKS, "Ada")
    assert unrated(deck, path, "Ada") == [deck[0], deck[2]] and unrated(deck, path, "Ben") == deck


def test_averages_are_mean_and_spread_of_each_question_and_author(tmp_path):
    path = tmp_path / "ratings.jsonl"
    assert average_ratings(path) == []
    told, real = [(5, 3, 0), (4, 2, 1), (3, 4, 5)], [(5, 5, 4)]
    append_row(path, {"story": "x", **dict(zip(RATED, told[0], strict=True))})  # as rows were before they said by whom
    for by, marks in [("model", told[1]), ("real", real[0]), ("model", told[2])]:
        save_rating(path, {"story": "x", "by": by}, dict(zip(RATED, marks, strict=True)), "Ada")
    rows = average_ratings(path)
    assert [(row["question"], row["stories by"]) for row in rows] == [
        (question, by) for question in RATED for by in ("model", "real")
    ]
    for row in rows:
        of = [marks[RATED.index(row["question"])] for marks in (told if row["stories by"] == "model" else real)]
        assert (row["mean"], row["spread"], row["ratings"]) == (mean(of), pstdev(of), len(of))


def test_a_deck_reads_no_more_held_out_stories_than_it_chooses_from(model, tokenizer, data_dir, monkeypatch):
    monkeypatch.setattr(ratings, "_CHOSEN_FROM", 8)
    deck = blind_deck(model, tokenizer, data_dir / "val.bin", new_tokens=60)
    assert all("Mia found a green" in card["story"] or card["by"] == "model" for card in deck)
