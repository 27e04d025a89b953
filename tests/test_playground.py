"""The playground: a story grows while you watch, can be stopped and examined. The tests play the part of the browser."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import ipywidgets
import pytest

from tinystories_lab.analysis.next_token import top_next_tokens
from tinystories_lab.data.text import PROMPTS
from tinystories_lab.generate import generate_batch
from tinystories_lab.model import new_model
from tinystories_lab.notebook import html, playground
from tinystories_lab.notebook.playground import _new_story, _probabilities_html, _story_html, _stream_story
from tinystories_lab.tokenizer import END_OF_TEXT, eos_id

SETTINGS = {"temperature": 0.8, "top_k": 50, "top_p": None}  # where the sliders start
LENGTH = 20


@pytest.fixture(scope="module")
def model(model_config):
    return new_model(model_config)


@pytest.fixture
def finished(model, tokenizer):
    """`finished()` is the story that a page shows in the end. By the first test it is the one that `generate` returns."""
    return lambda prompt=PROMPTS[0], length=LENGTH, seed=0, **settings: list(
        _stream_story(model, tokenizer, prompt, length, 60, seed=seed, **SETTINGS | settings)
    )[-1]


class Page:
    """A playground as a browser shows it: parts by CSS class, and a link that copies `pulse` to `echo` some time later."""

    def __init__(self, *model_and_tokenizer, is_open=True):
        self.parts, self.boxes, hidden = {}, [playground.story_playground(*model_and_tokenizer)], []
        for box in self.boxes:
            self.boxes += getattr(box, "children", ())
            self.parts |= {name.removeprefix("playground-"): box for name in box._dom_classes}
            hidden += [box] if box.layout.display == "none" else []
        self.echo, self.pulse = sorted(hidden, key=lambda box: box.value)
        if is_open:
            self.copy()

    def __getattr__(self, name):
        return self.parts[name]

    def copy(self):
        self.echo.value = self.pulse.value

    def to_the_end(self):
        while self.echo.value != self.pulse.value:
            self.copy()

    def generate_to_the_end(self):
        self.generate.click()
        self.to_the_end()
        return self.story.value


@pytest.fixture
def page(model, tokenizer, monkeypatch):
    monkeypatch.setattr(playground, "_SECONDS", 0)  # a heartbeat for every token
    monkeypatch.setattr(playground, "NEW_TOKENS", LENGTH)
    return Page(model, tokenizer)


def test_a_story_only_grows_and_becomes_the_one_that_generate_returns(model, tokenizer):
    for prompt, length, seed, settings in (
        (PROMPTS[0], 30, 0, SETTINGS),
        ("Ben 🐉", 10, 0, {"temperature": 0, "top_k": None, "top_p": None}),
        ("", 5, 3, {"temperature": 0.8, "top_k": 5, "top_p": 0.9}),
        (END_OF_TEXT, 1, 0, SETTINGS),
    ):
        *growing, last = stories = list(_stream_story(model, tokenizer, prompt, length, 0, seed=seed, **settings))
        (row,) = generate_batch(model, tokenizer, [prompt], length, seeds=[seed], **settings)
        assert prompt + tokenizer.decode(last.ids[last.start :]).rstrip("\ufffd") == row["story"]
        assert all(not story.ended for story in growing) and last.ended
        assert row["ended"] == (last.ids[last.start :][-1:] == (eos_id(tokenizer),))
        assert [story.ids for story in growing] == [last.ids[: last.start + n] for n in range(1, len(stories))]


def test_a_story_grows_by_the_tokens_that_are_due_or_at_every_heartbeat_of_a_slow_model(model, tokenizer, monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(playground, "time", clock)
    fast = _stream_story(model, tokenizer, "Lily", 30, seconds=60, temperature=0)
    assert [next(fast).count for _ in range(3)] == [2, 4, 6]
    clock.now += 0.3
    assert next(fast).count == 6 + 12, "40 tokens per second"
    slow = _stream_story(model, tokenizer, "Lily", 3, seconds=0, temperature=0)
    assert [story.count for story in slow] == [1, 2, 3, 3]


def test_a_story_that_ends_by_itself_shows_the_probability_of_its_end(page, model, tokenizer, finished, monkeypatch):
    forward, calls = model.forward, []

    def ends_after_five(ids, **cache):
        calls.append(ids)
        logits, _ = forward(ids, **cache)
        logits[..., eos_id(tokenizer)] += 100 * (len(calls) > 5)
        return logits, None

    page.prompt.value = "Ben"
    monkeypatch.setattr(model, "forward", ends_after_five)
    story = finished("Ben")
    assert story.ids[-1] == eos_id(tokenizer) and story.count == 6 and story.ended == "It ended by itself."
    calls.clear()  # the first call from here on is the one for the bars
    assert "&lt;|endoftext|&gt;" in page.generate_to_the_end()
    assert "5 tokens. It ended by itself." in page.status.value
    page.token.value = 5
    assert "→ &#x27;&lt;|endoftext|&gt;&#x27;" in page.probabilities.value


def test_without_a_browser_the_whole_story_is_generated_at_once(model, tokenizer, finished):
    page = Page(model, tokenizer, is_open=False)
    assert page.story.value == _story_html(tokenizer, finished(length=120), 1)
    assert "What may follow “Once upon a time”" in page.probabilities.value
    assert page.probabilities.value.count("%</span>") in (12, 13)
    page.seed.value = 5
    page.generate.click()
    assert page.story.value == _story_html(tokenizer, finished(length=120, seed=5), 1)
    assert not page.generate.disabled and page.stop.disabled


def test_in_a_browser_the_story_grows_with_each_heartbeat(page, model, tokenizer):
    page.seed.value, page.prompt.value = 3, "Lily found a big"
    page.generate.click()
    assert page.generate.disabled and page.token.disabled and not page.stop.disabled
    grown = [page.story.value]
    while not page.stop.disabled:
        page.copy()
        grown.append(page.story.value)
    stories = _stream_story(model, tokenizer, "Lily found a big", LENGTH, 0, seed=3, **SETTINGS)
    assert grown == [_story_html(tokenizer, story, bool(story.ended)) for story in stories]
    assert not page.generate.disabled and not page.token.disabled and page.stop.disabled


def test_stop_works_between_two_heartbeats_and_generate_starts_again(page, tokenizer, finished):
    page.generate.click()
    page.copy()
    page.stop.click()
    stopped = page.story.value
    assert "2 tokens. You stopped it." in page.status.value and stopped == _story_html(tokenizer, finished(length=2), 1)
    page.to_the_end()
    assert page.story.value == stopped, "a heartbeat that was on its way adds nothing"
    page.generate.click()
    page.copy()
    page.generate.click()
    assert page.generate_to_the_end() == _story_html(tokenizer, finished(), 1), "quick clicks are one story"


def test_a_second_window_does_not_generate_twice(page):
    page.generate.click()
    page.copy()
    page.copy()
    before, story = page.pulse.value, page.story.value
    page.echo.value = before - 2  # the other window, late
    assert page.story.value == story and page.pulse.value == before


def test_sliders_change_the_probabilities_at_once_and_the_story_only_when_it_is_generated(page, tokenizer, finished):
    page.generate.click()
    seen = [page.probabilities.value]
    for slider, value in ((page.temperature, 1.2), (page.top_k, 300), (page.top_p, 0.5)):
        slider.value = value
        seen.append(page.probabilities.value)
    assert len(set(seen)) == 4 and page.top_k.label == "all"
    page.to_the_end()
    assert page.story.value == _story_html(tokenizer, finished(), 1)
    story = finished(temperature=1.2, top_k=None, top_p=0.5)
    assert page.generate_to_the_end() == _story_html(tokenizer, story, 1)
    assert "temperature 1.20, top_k all, top_p 0.50, seed 0: 20 tokens" in page.status.value


def test_the_token_slider_frames_a_token_and_shows_what_else_was_likely_there(page, model, tokenizer, finished):
    page.generate_to_the_end()
    story = finished()
    assert page.token.value == 1 and page.token.max == story.count
    page.token.value = 7
    spans = page.story.value.split("<span")[1:]
    assert [html._CHOSEN in span for span in spans].index(True) == story.start + 6 and len(spans) == len(story.ids)
    before, token = story.ids[: story.start + 6], story.ids[story.start + 6]
    rows = top_next_tokens(model, tokenizer, before, **SETTINGS, sampled=token)
    assert html.bars(rows).data in page.probabilities.value and page.probabilities.value.count("→ &#x27;") == 1
    page.token.value = 0
    assert html._CHOSEN not in page.story.value and "→" not in page.probabilities.value


def test_a_new_prompt_ends_the_story_and_shows_what_may_follow_it(page, model, tokenizer):
    page.generate.click()
    page.prompt.value = "<b>Lily</b>"
    story = _new_story(tokenizer, "<b>Lily</b>")
    shown = _story_html(tokenizer, replace(story, ended="not generated"))
    assert page.story.value == shown and "<b>" not in shown, "shown, not run"
    assert "press Generate" in page.status.value and page.token.disabled and not page.generate.disabled
    assert page.probabilities.value == _probabilities_html(model, tokenizer, story, **SETTINGS)
    page.to_the_end()
    assert page.story.value == shown


def test_a_prompt_with_spaces_at_its_end_gives_the_page_of_the_prompt_without_them(page):
    shown = []
    for prompt in ("Lily found", "Lily found  "):
        page.prompt.value = prompt
        shown.append((page.story.value, page.probabilities.value, page.generate_to_the_end(), page.probabilities.value))
    assert shown[0] == shown[1]


def test_any_prompt_can_be_continued(page):
    page.length.value = 10
    for prompt in ("", " ", "Ωμέγα 🐉\u200b", END_OF_TEXT, "long " * 100):
        page.prompt.value = prompt
        page.generate_to_the_end()
        assert "10 tokens" in page.status.value or "It ended by itself." in page.status.value, prompt


def test_errors_are_shown_in_the_widget_and_generate_works_again_afterwards(
    page, model, tokenizer, finished, monkeypatch
):
    error = RuntimeError("CUDA out of memory\nand forty lines more")
    page.generate.click()
    with monkeypatch.context() as broken:
        broken.setattr(model, "forward", Mock(side_effect=error))
        page.copy()
        assert "CUDA out of memory" in page.status.value and "forty" not in page.status.value
        assert not page.generate.disabled and page.stop.disabled
    assert page.generate_to_the_end() == _story_html(tokenizer, finished(), 1)

    other = type(tokenizer).from_str(tokenizer.to_str())
    other.add_tokens(["dragon"])
    page = Page(model, other)
    page.prompt.value = "dragon"
    assert "is this the model" in page.status.value


def test_controls_have_names_wait_for_the_mouse_and_are_core_widgets(page):
    controls = ("prompt", "temperature", "top_k", "top_p", "length", "seed", "token")
    assert page.parts.keys() == {*controls, "generate", "stop", "status", "story", "probabilities"}
    assert [page.parts[name].description for name in controls] == list(controls)
    assert not any(page.parts[name].continuous_update for name in controls)
    for box in page.boxes:
        assert type(box).__module__.startswith("ipywidgets.") and isinstance(box, ipywidgets.Widget)


def test_no_part_of_a_letter_is_shown_while_a_story_grows(model, tokenizer):
    story = _new_story(tokenizer, "Ben 从前🦊")
    for count in range(1, len(story.ids)):
        growing = replace(story, prompt="Ben", ids=story.ids[: count + 1], start=1)
        assert "\ufffd" not in _story_html(tokenizer, growing) + _probabilities_html(model, tokenizer, growing, count)
