"""The rating form, driven as fingers would."""

import ipywidgets
import pytest

from tinystories_lab import ratings
from tinystories_lab.notebook.rating import _UNMARKED, rating_form
from tinystories_lab.ratings import RATED
from tinystories_lab.runlog import read_rows

DECK = [{"story": f"Story <{letter}>.", "by": by} for letter, by in zip("ABC", ("model", "real", "model"), strict=True)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ratings.jsonl"


def parts(form):
    """The parts of a form by the class that names them: where, story, grammar, coherence, fun, next, said."""
    return {part._dom_classes[0].removeprefix("rating-"): part for part in form.children}


def rate(form, **marks):
    """Set the sliders, 3 where nothing is said, and press Next."""
    here = parts(form)
    for question in RATED:
        here[question].value = str(marks.get(question, 3))
    here["next"].click()


def test_next_saves_one_row_at_once_and_shows_the_next_story(path):
    form = rating_form(DECK, path, "Ada")
    here = parts(form)
    assert "story 1 of 3" in here["where"].value and "Story &lt;A&gt;." in here["story"].value
    rate(form, fun=5)
    (row,) = read_rows(path)
    assert row == {**DECK[0], "grammar": 3, "coherence": 3, "fun": 5, "rater": "Ada", "when": row["when"]}
    assert "story 2 of 3" in here["where"].value and "Story &lt;B&gt;." in here["story"].value
    assert here["fun"].value == _UNMARKED, "each story starts without marks"


def test_a_story_without_all_its_marks_is_not_saved_so_that_next_pressed_twice_does_no_harm(path):
    form = rating_form(DECK, path)
    rate(form, fun=0)
    here = parts(form)
    here["next"].click()
    assert len(read_rows(path)) == 1 and "story 2 of 3" in here["where"].value
    assert "not saved: no mark for grammar, coherence, fun" in here["said"].value
    here["grammar"].value = here["fun"].value = "0"
    here["next"].click()
    assert len(read_rows(path)) == 1 and "no mark for coherence:" in here["said"].value


def test_nothing_says_who_told_a_story_before_all_are_rated(path):
    form = rating_form(DECK, path)
    for _ in DECK:
        assert not any(
            "real" in part.value or "model" in part.value
            for part in form.children
            if hasattr(part, "value") and isinstance(part.value, str)
        )
        rate(form)
    shown = parts(form)
    assert set(shown) == {"where", "story"} and "All 3 stories are rated" in shown["where"].value
    assert str(path) in shown["where"].value
    assert shown["story"].value.count(">model<") == 2 + 3 and shown["story"].value.count(">real<") == 1 + 3


def test_a_form_made_again_goes_on_after_the_rated_stories_and_another_rater_begins(path):
    rate(rating_form(DECK, path, "Ada"))
    assert "story 2 of 3" in parts(rating_form(DECK, path, "Ada"))["where"].value
    assert "story 1 of 3" in parts(rating_form(DECK, path, "Ben"))["where"].value


def test_a_rating_that_cannot_be_saved_is_said_in_the_form_and_not_lost(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    form = rating_form(DECK, path)
    here = parts(form)
    with monkeypatch.context() as disk:
        disk.setattr(ratings, "append_row", full)
        rate(form, fun=1)
    assert "No space left on device" in here["said"].value and "story 1 of 3" in here["where"].value
    here["next"].click()
    assert read_rows(path)[0]["fun"] == 1 and here["said"].value == ""


def test_the_form_is_core_widgets_whose_sliders_are_labelled_from_0_to_5(path):
    form = rating_form(DECK, path)
    assert all(type(part).__module__.startswith("ipywidgets.") for part in (form, *form.children))
    sliders = [part for part in form.children if isinstance(part, ipywidgets.SelectionSlider)]
    assert [slider.description for slider in sliders] == list(RATED)
    assert all(slider.options == (_UNMARKED, *"012345") for slider in sliders)
