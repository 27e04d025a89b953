"""Sliders and the rating form: they show what the functions behind them return, and save what a reader says."""

from unittest.mock import Mock

import ipywidgets
import pytest

from tinystories_lab.analysis import ratings
from tinystories_lab.analysis.bpe import merge_history, merges
from tinystories_lab.analysis.ratings import QUESTIONS
from tinystories_lab.files import read_rows
from tinystories_lab.model import GPTConfig, count_parameters
from tinystories_lab.notebook import html
from tinystories_lab.notebook.widgets import _NO_MARK, budget_sliders, merge_slider, rating_form
from tinystories_lab.run import PRESETS
from tinystories_lab.tokenizer import train_tokenizer

SENTENCE = "Zoë saw a <b>big</b> fox."
DECK = [{"story": f"Story <{letter}>.", "by": by} for letter, by in zip("ABC", ("model", "real", "model"), strict=True)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([SENTENCE, "Zoë saw the fox again. The fox saw Zoë."] * 3, 300)


def test_every_place_of_the_merge_slider_shows_its_step(tokenizer):
    widget = merge_slider(tokenizer, SENTENCE)
    _, slider, _ = widget.children
    steps = merge_history(tokenizer, SENTENCE)
    assert (slider.value, slider.min, slider.max) == (0, 0, len(steps) - 1)
    assert "no merge yet" in widget.result.data and f"{len(SENTENCE.encode())} tokens" in widget.result.data
    for place, step in enumerate(steps[1:], start=1):
        slider.value = place
        assert f"merge {step.number} of {len(merges(tokenizer))}: " in widget.result.data
        assert f"{len(step.pieces)} tokens for " in widget.result.data
        framed = html.tokens(step.pieces, step.pieces.index(step.made)).data
        assert framed in widget.result.data and html._CHOSEN in framed


def test_another_sentence_is_shown_as_far_as_the_slider_stands(tokenizer, caplog):
    widget = merge_slider(tokenizer, SENTENCE)
    text, slider, _ = widget.children
    slider.value = slider.max
    text.value = "Zoë saw."
    steps = merge_history(tokenizer, "Zoë saw.")
    assert slider.max == slider.value == len(steps) - 1
    assert html.tokens(steps[-1].pieces, steps[-1].pieces.index(steps[-1].made)).data in widget.result.data
    text.value = ""
    assert slider.max == 0 and "0 tokens for 0 bytes" in widget.result.data
    assert not caplog.records, "ipywidgets logs errors of what it calls"


def test_the_budget_is_that_of_the_sliders():
    book = PRESETS["book"]
    widget = budget_sliders(book.model, book.max_tokens, book.train, {"a calculator": 1e6})
    layers, width, tokens, _ = widget.children
    assert (layers.value, width.value, tokens.value) == (6, 320, 200)
    assert all(text in widget.result.data for text in ("9,952,320", "12,207", "time on a calculator"))
    layers.value, width.value, tokens.value = 8, 512, 500
    parameters = f"{count_parameters(GPTConfig(n_layer=8, d_model=512)):,}"
    assert all(text in widget.result.data for text in (parameters, "500,000,000", "30,517"))


def test_the_budget_starts_at_any_preset_and_every_width_is_a_model():
    for preset in PRESETS.values():
        widget = budget_sliders(preset.model, 1_000_000, preset.train, {})
        layers, width, *_ = widget.children
        assert (layers.value, width.value) == (preset.model.n_layer, preset.model.d_model)
        for value in (width.min, width.max):
            width.value = value
            model = GPTConfig(preset.model.vocab_size, layers.value, value // 64, value)
            assert f"{count_parameters(model):,}" in widget.result.data


def parts_of(form):
    """The parts of a rating form by their CSS class: progress, story, grammar, coherence, fun, next, status."""
    return {part._dom_classes[0].removeprefix("rating-"): part for part in form.children}


def rate(form, **marks):
    """Set the sliders, to 3 by default, and press Next."""
    parts = parts_of(form)
    for question in QUESTIONS:
        parts[question].value = str(marks.get(question, 3))
    parts["next"].click()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ratings.jsonl"


def test_controls_have_names_wait_for_the_mouse_and_are_core_widgets(tokenizer, path):
    budget = budget_sliders(GPTConfig(), 10**8, PRESETS["book"].train, {})
    for box in (merge_slider(tokenizer, SENTENCE), budget, rating_form(DECK, path)):
        assert all(type(part).__module__.startswith("ipywidgets.") for part in (box, *box.children))
        controls = [part for part in box.children if not isinstance(part, ipywidgets.HTML | ipywidgets.Output)]
        assert controls and all(control.description for control in controls)
        computing = [control for control in controls if isinstance(control, ipywidgets.IntSlider | ipywidgets.Text)]
        assert not any(control.continuous_update for control in computing)
    sliders = [part for part in box.children if isinstance(part, ipywidgets.SelectionSlider)]
    assert [slider.description for slider in sliders] == list(QUESTIONS)
    assert all(slider.options == (_NO_MARK, *"012345") for slider in sliders)


def test_next_saves_one_row_at_once_and_shows_the_next_story_without_marks(path):
    form = rating_form(DECK, path, "Ada")
    parts = parts_of(form)
    assert "story 1 of 3" in parts["progress"].value and "Story &lt;A&gt;." in parts["story"].value
    rate(form, fun=5)
    (row,) = read_rows(path)
    assert row == {**DECK[0], "grammar": 3, "coherence": 3, "fun": 5, "rater": "Ada", "when": row["when"]}
    assert "story 2 of 3" in parts["progress"].value and "Story &lt;B&gt;." in parts["story"].value
    assert parts["fun"].value == _NO_MARK


def test_a_story_without_all_marks_is_not_saved_so_pressing_next_twice_is_harmless(path):
    form = rating_form(DECK, path)
    rate(form, fun=0)
    parts = parts_of(form)
    parts["next"].click()
    assert len(read_rows(path)) == 1 and "story 2 of 3" in parts["progress"].value
    assert "not saved: no mark for grammar, coherence, fun" in parts["status"].value
    parts["grammar"].value = parts["fun"].value = "0"
    parts["next"].click()
    assert len(read_rows(path)) == 1 and "no mark for coherence:" in parts["status"].value


def test_who_wrote_a_story_is_shown_only_after_all_are_rated(path):
    form = rating_form(DECK, path)
    for _ in DECK:
        texts = [part.value for part in form.children if isinstance(getattr(part, "value", None), str)]
        assert not any("real" in text or "model" in text for text in texts)
        rate(form)
    parts = parts_of(form)
    assert parts.keys() == {"progress", "story"} and "All 3 stories are rated" in parts["progress"].value
    assert str(path) in parts["progress"].value
    assert parts["story"].value.count(">model<") == 2 + 3 and parts["story"].value.count(">real<") == 1 + 3


def test_a_new_form_continues_after_the_rated_stories_and_another_rater_starts_at_the_first(path):
    rate(rating_form(DECK, path, "Ada"))
    assert "story 2 of 3" in parts_of(rating_form(DECK, path, "Ada"))["progress"].value
    assert "story 1 of 3" in parts_of(rating_form(DECK, path, "Ben"))["progress"].value


def test_a_rating_that_cannot_be_saved_is_reported_in_the_form_and_kept(path, monkeypatch):
    form = rating_form(DECK, path)
    parts = parts_of(form)
    with monkeypatch.context() as disk:
        disk.setattr(ratings, "append_row", Mock(side_effect=OSError(28, "No space left on device")))
        rate(form, fun=1)
    assert "No space left on device" in parts["status"].value and "story 1 of 3" in parts["progress"].value
    parts["next"].click()
    assert read_rows(path)[0]["fun"] == 1 and parts["status"].value == ""
