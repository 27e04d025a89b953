"""The playground: a story that grows while you watch, can be stopped, and is explored token by token.

The tests play the part of the browser.
"""

import re
from dataclasses import replace
from types import SimpleNamespace

import ipywidgets
import pytest

from tinystories_lab.analysis.next_token import top_next_tokens
from tinystories_lab.data.text import PROMPTS
from tinystories_lab.generate import generate_batch
from tinystories_lab.model import new_model
from tinystories_lab.notebook import html, playground
from tinystories_lab.notebook.playground import (
    _new_story,
    _probabilities_html,
    _Story,
    _story_html,
    _stream_story,
    story_playground,
)
from tinystories_lab.tokenizer import END_OF_TEXT, decode_continuation, eos_id

SETTINGS = {"temperature": 0.8, "top_k": 50, "top_p": None, "seed": 0}  # where the sliders start
LENGTH = 20  # as in the playgrounds below


@pytest.fixture(scope="module")
def model(model_config):
    return new_model(model_config)


def finished(model, tokenizer, prompt=PROMPTS[0], length=LENGTH, **settings):
    """The finished story. The first test below shows that `generate_batch` returns the same one."""
    *_, story = _stream_story(model, tokenizer, prompt, length, 60, **SETTINGS | settings)
    return story


def page_of(model, tokenizer, *prompt_and_length, chosen=1, **settings):
    return _story_html(tokenizer, finished(model, tokenizer, *prompt_and_length, **settings), chosen)


class Page:
    """A playground as a browser shows it: parts by their CSS class, and a link that copies `pulse` to `echo` some time later."""

    def __init__(self, *model_and_tokenizer, is_open=True):
        self.box = story_playground(*model_and_tokenizer)
        self.parts, hidden, boxes = {}, [], [self.box]
        while boxes:
            box = boxes.pop()
            boxes += getattr(box, "children", ())
            for name in box._dom_classes:
                self.parts[name.removeprefix("playground-")] = box
            if box.layout.display == "none":
                hidden.append(box)
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


@pytest.fixture
def page(model, tokenizer, monkeypatch):
    monkeypatch.setattr(playground, "_SECONDS", 0)  # a heartbeat for every token
    monkeypatch.setattr(playground, "NEW_TOKENS", LENGTH)
    return Page(model, tokenizer)


def test_a_story_only_grows_and_becomes_the_one_that_generate_returns(model, tokenizer):
    for prompt, length, settings in (
        (PROMPTS[0], 30, SETTINGS),
        ("Ben 🐉", 10, SETTINGS | {"temperature": 0, "top_k": None}),
        ("", 5, SETTINGS | {"top_k": 5, "top_p": 0.9, "seed": 3}),
        (END_OF_TEXT, 0, SETTINGS),
    ):
        *growing, last = stories = list(_stream_story(model, tokenizer, prompt, length, 0, **settings))
        seeds = [settings["seed"]]
        settings = {key: value for key, value in settings.items() if key != "seed"}
        (row,) = generate_batch(model, tokenizer, [prompt], length, seeds=seeds, **settings)
        new = last.ids[last.start :]
        assert prompt + decode_continuation(tokenizer, new) == row["story"]  # <|endoftext|> decodes to nothing
        assert row["ended"] == (new[-1:] == (eos_id(tokenizer),))
        assert all(not story.ended for story in growing) and last.ended
        assert [story.ids for story in growing] == [last.ids[: last.start + n] for n in range(1, len(stories))]


def test_a_fast_model_generates_as_many_tokens_as_are_due_for_the_time_that_has_passed(model, tokenizer, monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(playground, "time", clock)
    stories = _stream_story(model, tokenizer, "Lily", 30, 60, temperature=0)
    assert [next(stories).count for _ in range(3)] == [2, 4, 6]
    clock.now += 0.3
    assert next(stories).count == 6 + 12, "40 tokens per second"


def test_a_slow_model_shows_its_story_at_every_heartbeat(model, tokenizer):
    counts = [story.count for story in _stream_story(model, tokenizer, "Lily", 3, 0, temperature=0)]
    assert counts == [1, 2, 3, 3]


def test_a_story_that_ends_by_itself_shows_the_probability_of_its_end(page, model, tokenizer, monkeypatch):
    forward, calls = model.forward, []

    def ends_after_five(ids, **cache):
        calls.append(ids)
        logits, _ = forward(ids, **cache)
        logits[..., eos_id(tokenizer)] += 100 * (len(calls) > 5)
        return logits, None

    page.prompt.value = "Ben"
    monkeypatch.setattr(model, "forward", ends_after_five)
    story = finished(model, tokenizer, "Ben")
    assert story.ids[-1] == eos_id(tokenizer) and story.count == 6 and story.ended == "It ended by itself."
    calls.clear()  # the first call from here on is the one for the bars
    page.generate.click()
    page.to_the_end()
    assert "5 tokens. It ended by itself." in page.status.value and "&lt;|endoftext|&gt;" in page.story.value
    page.token.value = 5
    assert "→ &#x27;&lt;|endoftext|&gt;&#x27;" in page.probabilities.value


def test_without_a_browser_the_whole_story_is_generated_at_once(model, tokenizer):
    page = Page(model, tokenizer, is_open=False)
    assert page.story.value == page_of(model, tokenizer, PROMPTS[0], 120)
    assert "What may follow “Once upon a time”" in page.probabilities.value
    assert page.probabilities.value.count("%</span>") in (12, 13)
    page.seed.value = 5
    page.generate.click()
    assert page.story.value == page_of(model, tokenizer, PROMPTS[0], 120, seed=5)
    assert not page.generate.disabled and page.stop.disabled


def test_in_a_browser_the_story_grows_with_each_heartbeat(page, model, tokenizer):
    page.seed.value, page.prompt.value = 3, "Lily found a big"
    page.generate.click()
    assert page.generate.disabled and page.token.disabled and not page.stop.disabled
    grown = [page.story.value]
    while not page.stop.disabled:
        page.copy()
        grown.append(page.story.value)
    stories = _stream_story(model, tokenizer, "Lily found a big", LENGTH, 0, **SETTINGS | {"seed": 3})
    assert grown == [_story_html(tokenizer, story, bool(story.ended)) for story in stories]
    assert not page.generate.disabled and not page.token.disabled and page.stop.disabled


def test_stop_works_between_two_heartbeats_and_generate_starts_again(page, model, tokenizer):
    page.generate.click()
    page.copy()
    page.stop.click()
    stopped = page.story.value
    assert "2 tokens. You stopped it." in page.status.value and stopped == page_of(model, tokenizer, PROMPTS[0], 2)
    page.to_the_end()
    assert page.story.value == stopped, "a heartbeat that was on its way adds nothing"
    page.generate.click()
    page.copy()
    page.generate.click()
    page.generate.click()
    page.to_the_end()
    assert page.story.value == page_of(model, tokenizer), "two quick clicks are one story from its beginning"


def test_a_second_window_does_not_generate_twice(page):
    page.generate.click()
    page.copy()
    page.copy()
    before, story = page.pulse.value, page.story.value
    page.echo.value = before - 2  # the other window, late
    assert page.story.value == story and page.pulse.value == before


def test_sliders_change_the_probabilities_at_once_and_the_story_only_when_it_is_generated(page, model, tokenizer):
    page.generate.click()
    seen = [page.probabilities.value]
    for slider, value in ((page.temperature, 1.2), (page.top_k, 300), (page.top_p, 0.5)):
        slider.value = value
        seen.append(page.probabilities.value)
    assert len(set(seen)) == 4 and page.top_k.label == "all"
    page.to_the_end()
    assert page.story.value == page_of(model, tokenizer)
    page.generate.click()
    page.to_the_end()
    assert page.story.value == page_of(model, tokenizer, temperature=1.2, top_k=None, top_p=0.5)
    assert "temperature 1.20, top_k all, top_p 0.50, seed 0: 20 tokens" in page.status.value


def test_the_token_slider_frames_a_token_and_shows_what_else_was_likely_there(page, model, tokenizer):
    page.generate.click()
    page.to_the_end()
    story = finished(model, tokenizer)
    assert page.token.value == 1 and page.token.max == story.count
    page.token.value = 7
    assert page.story.value == _story_html(tokenizer, story, 7)
    spans = page.story.value.split("<span")[1:]
    assert [html._CHOSEN in span for span in spans].index(True) == story.start + 6 and len(spans) == len(story.ids)
    before, token = story.ids[: story.start + 6], story.ids[story.start + 6]
    rows = top_next_tokens(model, tokenizer, before, 0.8, 50, None, sampled=token)
    assert html.bars(rows).data in page.probabilities.value and page.probabilities.value.count("→ &#x27;") == 1
    page.token.value = 0
    assert html._CHOSEN not in page.story.value and "→" not in page.probabilities.value


def test_a_new_prompt_ends_the_story_and_shows_what_may_follow_it(page, model, tokenizer):
    page.generate.click()
    page.prompt.value = "<b>Lily</b>"
    story = _new_story(tokenizer, "<b>Lily</b>")
    shown = _story_html(tokenizer, replace(story, ended="not generated"))
    assert page.story.value == shown and "&lt;b&gt;" in "".join(re.findall(">([^<]*)<", shown)), "shown, not run"
    assert "press Generate" in page.status.value and page.token.disabled and not page.generate.disabled
    expected = _probabilities_html(model, tokenizer, story, temperature=0.8, top_k=50, top_p=None)
    assert page.probabilities.value == expected
    page.to_the_end()
    assert page.story.value == shown


def test_any_prompt_can_be_continued(page):
    page.length.value = 10
    for prompt in ("", " ", "Ωμέγα 🐉\u200b", END_OF_TEXT, "long " * 100):
        page.prompt.value = prompt
        page.generate.click()
        page.to_the_end()
        assert "10 tokens" in page.status.value or "It ended by itself." in page.status.value, prompt


def test_errors_are_shown_in_the_widget_and_generate_works_again_afterwards(page, model, tokenizer, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("CUDA out of memory\nand forty lines more")

    page.generate.click()
    with monkeypatch.context() as broken:
        broken.setattr(model, "forward", fails)
        page.copy()
        assert "CUDA out of memory" in page.status.value and "forty" not in page.status.value
        assert not page.generate.disabled and page.stop.disabled
    page.generate.click()
    page.to_the_end()
    assert page.story.value == page_of(model, tokenizer)


def test_the_tokenizer_of_another_model_is_an_error_in_the_widget(model, tokenizer):
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
    boxes = [page.box]
    while boxes:
        box = boxes.pop()
        assert type(box).__module__.startswith("ipywidgets.") and isinstance(box, ipywidgets.Widget)
        boxes += getattr(box, "children", ())


def test_no_part_of_a_letter_is_shown_while_a_story_grows(model, tokenizer):
    ids = tokenizer.encode("Ben 从前🦊").ids
    for count in range(1, len(ids)):
        story = _Story("Ben", tuple(ids[: count + 1]), 1)
        assert "\ufffd" not in _story_html(tokenizer, story) + _probabilities_html(model, tokenizer, story, count)
