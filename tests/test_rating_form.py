"""The rating form, driven as fingers would."""

import ipywidgets
import pytest

from tinystories_lab import ratings
from tinystories_lab.notebook.rating import rating_form
from tinystories_lab.ratings import RATED
from tinystories_lab.runlog import read_rows

DECK = [{"story": f"Story <{letter}>.", "by": by} for letter, by in zip("ABC", ("model", "real", "model"), strict=True)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ratings.jsonl"


def parts(form):
    """The parts of a form by the class that names them: where, story, grammar, coherence, fun, next, said."""
    return {part._dom_classes[0].removeprefix("rating-"): part for part in form.children}


def test_next_saves_one_row_at_once_and_shows_the_next_story(path):
    form = rating_form(DECK, path, "Ada")
    here = parts(form)
    assert "story 1 of 3" in here["where"].value and "Story &lt;A&gt;." in here["story"].value
    here["fun"].value = 5
    here["next"].click()
    (row,) = read_rows(path)
    assert row == {**DECK[0], "grammar": 3, "coherence": 3, "fun": 5, "rater": "Ada", "when": row["when"]}
    assert "story 2 of 3" in here["where"].value and "Story &lt;B&gt;." in here["story"].value
    assert here["fun"].value == 3, "each story starts from the middle"


def test_nothing_says_who_told_a_story_before_all_are_rated(path):
    form = rating_form(DECK, path)
    for _ in DECK:
        assert not any(
            "real" in part.value or "model" in part.value
            for part in form.children
            if hasattr(part, "value") and isinstance(part.value, str)
        )
        parts(form)["next"].click()
    shown = parts(form)
    assert set(shown) == {"where", "story"} and "All 3 stories are rated" in shown["where"].value
    assert str(path) in shown["where"].value
    assert shown["story"].value.count(">model<") == 2 + 3 and shown["story"].value.count(">real<") == 1 + 3


def test_a_form_made_again_goes_on_after_the_rated_stories_and_another_rater_begins(path):
    parts(rating_form(DECK, path, "Ada"))["next"].click()
    assert "story 2 of 3" in parts(rating_form(DECK, path, "Ada"))["where"].value
    assert "story 1 of 3" in parts(rating_form(DECK, path, "Ben"))["where"].value


def test_a_rating_that_cannot_be_saved_is_said_in_the_form_and_not_lost(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    here = parts(rating_form(DECK, path))
    here["fun"].value = 1
    with monkeypatch.context() as disk:
        disk.setattr(ratings, "append_row", full)
        here["next"].click()
    assert "No space left on device" in here["said"].value and "story 1 of 3" in here["where"].value
    here["next"].click()
    assert read_rows(path)[0]["fun"] == 1 and here["said"].value == ""


def test_the_form_is_core_widgets_whose_sliders_are_labelled_from_0_to_5(path):
    form = rating_form(DECK, path)
    assert all(type(part).__module__.startswith("ipywidgets.") for part in (form, *form.children))
    sliders = [part for part in form.children if isinstance(part, ipywidgets.IntSlider)]
    assert [slider.description for slider in sliders] == list(RATED)
    assert all((slider.min, slider.max) == (0, 5) for slider in sliders)
