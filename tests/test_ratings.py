"""A deck that does not reveal its authors, and the averages of its ratings."""

import re
from collections import Counter
from statistics import mean, pstdev

import pytest

from tinystories_lab.analysis import ratings
from tinystories_lab.analysis.ratings import QUESTIONS, average_ratings, blind_deck, save_rating, unrated
from tinystories_lab.data.text import opening
from tinystories_lab.files import append_row, read_rows
from tinystories_lab.model import new_model
from tinystories_lab.tokenizer import write_bin

MARKS = {"grammar": 4, "coherence": 0, "fun": 5}


@pytest.fixture(scope="module")
def deal(model_config, tokenizer, data_dir):
    """`deal(new_tokens, seed)` makes a deck of the shared stories with an untrained model."""
    model = new_model(model_config, seed=0).eval()
    return lambda *args, val_bin=data_dir / "val.bin": blind_deck(model, tokenizer, val_bin, *args)


def test_a_deck_is_five_generated_and_three_real_stories_that_the_model_was_not_given(deal, stories):
    deck = deal(60)
    assert Counter(card["by"] for card in deck) == {"model": 5, "real": 3}
    for card in deck:
        assert card.keys() == {"story", "by"} and (card["story"] in stories[120:]) == (card["by"] == "real")
        assert any(card["story"].startswith(opening(story)) for story in stories[120:])


def test_the_model_continues_other_stories_than_the_real_ones_which_are_shown_without_white_space_around_them(
    deal, tokenizer, tmp_path
):
    write_bin(tmp_path / "val.bin", [f"{letter} was a letter of some kind.\n" for letter in "ABCDEFGHIJ"], tokenizer)
    deck = deal(20, val_bin=tmp_path / "val.bin")
    assert len({card["story"][0] for card in deck}) == len(deck)
    assert all(card["story"].endswith(" kind.") for card in deck if card["by"] == "real")


def test_real_and_generated_stories_are_cut_alike_after_a_whole_word(deal, tokenizer, stories):
    for card in deal(6):
        whole, cut = card["story"].removesuffix(" ..."), card["story"].endswith(" ...")
        assert cut and (card["by"] == "model" or any(story.startswith(whole + " ") for story in stories[120:]))
        assert len(tokenizer.encode(whole).ids) <= len(tokenizer.encode(opening(whole)).ids) + 6


def test_the_seed_decides_the_deck_and_its_order_gives_nothing_away(deal):
    decks = [deal(2, seed) for seed in (0, *range(8))]
    assert decks[0] == decks[1] != decks[2]
    assert len({"".join(card["by"][0] for card in deck) for deck in decks}) >= 4


def test_too_few_validation_stories_are_refused_and_no_more_are_read_than_needed(
    deal, tokenizer, tmp_path, monkeypatch
):
    write_bin(tmp_path / "val.bin", ["Lily was happy."] * 7, tokenizer)
    with pytest.raises(ValueError, match="holds 7 stories; 8 are needed"):
        deal(val_bin=tmp_path / "val.bin")
    monkeypatch.setattr(ratings, "_CANDIDATES", 8)
    assert all("Mia found a green" in card["story"] or card["by"] == "model" for card in deal(60))


def test_a_rating_is_one_row_with_all_that_is_needed(tmp_path):
    path = tmp_path / "run" / "ratings.jsonl"
    save_rating(path, {"story": "“A”\n", "by": "real"}, MARKS, "Ada")
    (row,) = read_rows(path)
    assert row == {"story": "“A”\n", "by": "real", **MARKS, "rater": "Ada", "when": row["when"]}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["when"])


def test_a_mark_that_is_missing_or_out_of_range_is_refused_and_nothing_is_written(tmp_path):
    wrong = [MARKS | {"fun": mark} for mark in (6, -1, 2.5, None)]
    for marks in [*wrong, {"grammar": 4, "coherence": 0}]:
        with pytest.raises(ValueError, match=r"mark for fun( is|: give)"):
            save_rating(tmp_path / "ratings.jsonl", {"story": "A", "by": "model"}, marks, "Ada")
    assert not list(tmp_path.iterdir())


def test_what_one_rater_has_rated_is_not_asked_again_of_that_one(tmp_path):
    deck, path = [{"story": story, "by": "model"} for story in "ABC"], tmp_path / "ratings.jsonl"
    assert unrated(deck, path, "Ada") == deck
    save_rating(path, deck[1], MARKS, "Ada")
    assert unrated(deck, path, "Ada") == [deck[0], deck[2]] and unrated(deck, path, "Ben") == deck


def test_averages_are_mean_and_spread_of_each_question_and_author(tmp_path):
    path = tmp_path / "ratings.jsonl"
    assert average_ratings(path) == []
    old, *new = [dict(zip(QUESTIONS, marks, strict=True)) for marks in ((5, 3, 0), (4, 2, 1), (5, 5, 4), (3, 4, 5))]
    append_row(path, {"story": "x", **old})  # such rows did not say whose story it is
    for by, marks in zip(("model", "real", "model"), new, strict=True):
        save_rating(path, {"story": "x", "by": by}, marks, "Ada")
    expected = []
    for question in QUESTIONS:
        for by, rows in (("model", [old, new[0], new[2]]), ("real", [new[1]])):
            marks = [row[question] for row in rows]
            figures = {"mean": mean(marks), "spread": pytest.approx(pstdev(marks)), "ratings": len(marks)}
            expected.append({"question": question, "stories by": by} | figures)
    assert average_ratings(path) == expected
