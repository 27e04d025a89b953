"""A story that is told while one watches: beat by beat, stopped, walked through. The browser is played by the test."""

import re
import time
from dataclasses import replace

import ipywidgets
import pytest
import torch
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from tinystories_lab.checkpoint import load_model
from tinystories_lab.generate import tell
from tinystories_lab.model import GPTMini
from tinystories_lab.notebook import playground, show
from tinystories_lab.notebook.playground import story_playground
from tinystories_lab.notebook.telling import Told, begin, odds_html, story_html, tell_in_beats
from tinystories_lab.odds import likely_next
from tinystories_lab.sources import END_OF_TEXT
from tinystories_lab.tokenizer import text_of
from tinystories_lab.words import PROMPTS

SETTINGS = {"temperature": 0.8, "top_k": 50, "top_p": None, "seed": 0}  # as the sliders stand at first


@pytest.fixture
def model(model_config):
    torch.manual_seed(0)
    return GPTMini(model_config).eval()


def whole(model, tokenizer, prompt=PROMPTS[0], length=120, chosen=1, **settings):
    """What a page shows when it is told to the end, which is what `generate` tells (the first test below)."""
    *_, told = tell_in_beats(model, tokenizer, prompt, length, 60, **SETTINGS | settings)
    return story_html(tokenizer, told, chosen)


class Page:
    """A playground as a browser has it: parts by their class, and a link that copies `pulse` to `echo` when it gets to it."""

    def __init__(self, *model_and_tokenizer, is_open=True):
        self.box = story_playground(*model_and_tokenizer)
        self.parts, self.hidden, boxes = {}, [], [self.box]
        while boxes:
            box = boxes.pop()
            boxes += getattr(box, "children", ())
            for name in box._dom_classes:
                self.parts[name.removeprefix("playground-")] = box
            if box.layout.display == "none":
                self.hidden.append(box)
        self.echo, self.pulse = self.hidden if self.hidden[0].value < self.hidden[1].value else self.hidden[::-1]
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
    monkeypatch.setattr(playground, "_BEAT", 0)  # every token is a beat
    return Page(model, tokenizer)


prompts = st.sampled_from([*PROMPTS, "", "Ben 🐉", END_OF_TEXT])


@given(prompts, st.integers(0, 30), st.sampled_from([0, 0.8]), st.sampled_from([None, 5]), st.integers(0, 9))
@given_settings(max_examples=25)
def test_told_in_beats_a_story_only_grows_to_what_generate_tells(run_model, prompt, length, temperature, top_k, seed):
    settings = {"temperature": temperature, "top_k": top_k, "top_p": 0.9, "seed": seed}
    *before, last = beats = list(tell_in_beats(*run_model, prompt, length, 0, **settings))
    told = tell(*run_model, prompt, length, **settings)
    new = last.ids[last.start :]
    assert prompt + text_of(run_model[1], new) == told["story"]  # <|endoftext|> decodes to nothing
    assert told["ended"] == (new[-1:] == (run_model[1].token_to_id(END_OF_TEXT),))
    assert all(not beat.ended for beat in before) and last.ended
    assert [beat.ids for beat in before] == [last.ids[: last.start + count] for count in range(1, len(beats))]


@pytest.fixture(scope="module")
def run_model(uninterrupted, tokenizer):
    return load_model(uninterrupted() / "final.pt"), tokenizer


def test_a_story_that_ends_by_itself_shows_how_likely_its_end_was(page, model, tokenizer, monkeypatch):
    end_id, forward, calls = tokenizer.token_to_id(END_OF_TEXT), model.forward, []

    def ends_after_five(ids, **cache):
        calls.append(ids)
        logits, _ = forward(ids, **cache)
        logits[..., end_id] += 100 * (len(calls) > 5)
        return logits, None

    page.prompt.value = "Ben"
    monkeypatch.setattr(model, "forward", ends_after_five)
    *_, told = tell_in_beats(model, tokenizer, "Ben", 20, 60, **SETTINGS)
    assert told.ids[-1] == end_id and told.count == 6 and told.ended == "It ended by itself."
    calls.clear()  # the first call from here on is that of the bars
    page.tell.click()
    page.to_the_end()
    assert "5 tokens. It ended by itself." in page.said.value and "&lt;|endoftext|&gt;" in page.story.value
    page.token.value = 5
    assert "→ &#x27;&lt;|endoftext|&gt;&#x27;" in page.odds.value


def test_a_fast_model_tells_at_a_pace_one_can_watch_however_slowly_the_browser_comes_back(model, tokenizer):
    beats = tell_in_beats(model, tokenizer, "Lily", 30, 60, temperature=0)
    assert [next(beats).count for _ in range(3)] == [2, 4, 6]
    time.sleep(0.3)
    assert 6 + 12 <= next(beats).count <= 6 + 20, "40 tokens a second are due"


def test_a_slow_model_is_shown_whenever_a_beat_is_over(model, tokenizer):
    assert [beat.count for beat in tell_in_beats(model, tokenizer, "Lily", 3, 0, temperature=0)] == [1, 2, 3, 3]


def test_without_a_browser_a_story_with_its_odds_is_there_at_once_and_tell_tells_to_the_end(model, tokenizer):
    page = Page(model, tokenizer, is_open=False)
    assert page.story.value == whole(model, tokenizer)
    assert "What may follow “Once upon a time”" in page.odds.value and page.odds.value.count("%</span>") in (12, 13)
    page.seed.value = 5
    page.tell.click()
    assert page.story.value == whole(model, tokenizer, seed=5)
    assert not page.tell.disabled and page.stop.disabled


def test_in_a_browser_the_story_grows_with_each_beat_to_what_generate_tells(page, model, tokenizer):
    page.length.value, page.seed.value, page.prompt.value = 30, 3, "Lily found a big"
    page.tell.click()
    assert page.tell.disabled and page.token.disabled and not page.stop.disabled
    grown = [page.story.value]
    while not page.stop.disabled:
        page.copy()
        grown.append(page.story.value)
    beats = list(tell_in_beats(model, tokenizer, "Lily found a big", 30, 0, **SETTINGS | {"seed": 3}))
    assert grown == [story_html(tokenizer, beat, bool(beat.ended)) for beat in beats] and len(grown) == 31
    assert grown[-1] == whole(model, tokenizer, "Lily found a big", 30, seed=3)
    assert not page.tell.disabled and not page.token.disabled and page.stop.disabled


def test_stop_is_heard_between_two_beats_and_tell_begins_anew(page, model, tokenizer):
    page.tell.click()
    page.copy()
    page.stop.click()
    stopped = page.story.value
    assert "2 tokens. You stopped it." in page.said.value
    assert stopped == whole(model, tokenizer, length=2)
    page.to_the_end()
    assert page.story.value == stopped, "a beat that was on its way is not told any more"
    page.tell.click()
    page.to_the_end()
    assert page.story.value == whole(model, tokenizer)


def test_two_quick_tells_are_one_story_from_its_beginning(page, model, tokenizer):
    page.tell.click()
    page.copy()
    page.tell.click()
    page.tell.click()
    page.to_the_end()
    assert page.story.value == whole(model, tokenizer)


def test_a_second_window_does_not_tell_twice(page):
    page.tell.click()
    page.copy()
    page.copy()
    before, story = page.pulse.value, page.story.value
    page.echo.value = before - 2  # the other window, late
    assert page.story.value == story and page.pulse.value == before


def test_sliders_move_the_odds_while_it_tells_and_leave_the_story_as_it_was_asked_for(page, model, tokenizer):
    page.tell.click()
    odds = page.odds.value
    page.temperature.value = 1.5
    hot = page.odds.value
    page.top_k.value = 3
    assert len({odds, hot, page.odds.value}) == 3
    page.to_the_end()
    assert page.story.value == whole(model, tokenizer)


def test_the_sliders_mean_what_generate_means(page, model, tokenizer):
    page.temperature.value, page.top_k.value, page.top_p.value, page.length.value = 1.2, 300, 0.5, 20
    assert page.top_k.label == "all"
    page.tell.click()
    page.to_the_end()
    assert page.story.value == whole(model, tokenizer, length=20, temperature=1.2, top_k=None, top_p=0.5)
    assert "temperature 1.20, top_k all, top_p 0.50, seed 0: 20 tokens" in page.said.value


def test_walking_through_a_story_frames_a_token_and_shows_what_else_was_likely_there(page, model, tokenizer):
    page.length.value = 20
    page.tell.click()
    page.to_the_end()
    *_, told = tell_in_beats(model, tokenizer, PROMPTS[0], 20, 60, **SETTINGS)
    start = told.start
    assert page.token.value == 1 and page.token.max == told.count
    page.token.value = 7
    assert page.story.value == story_html(tokenizer, told, 7)
    spans = page.story.value.split("<span")[1:]
    assert [show._CHOSEN in span for span in spans].index(True) == start + 6 and len(spans) == len(told.ids)
    rows = likely_next(model, tokenizer, told.ids[: start + 6], 0.8, 50, None, told=told.ids[start + 6])
    assert show.bars(rows).data in page.odds.value and page.odds.value.count("→ &#x27;") == 1
    page.token.value = 0
    assert show._CHOSEN not in page.story.value and "→" not in page.odds.value


def test_a_new_prompt_ends_the_telling_and_shows_what_may_follow_it(page, model, tokenizer):
    page.tell.click()
    page.prompt.value = "<b>Lily</b>"
    told = begin(tokenizer, "<b>Lily</b>")
    shown = story_html(tokenizer, replace(told, ended="not told"))
    assert page.story.value == shown and "&lt;b&gt;" in "".join(re.findall(">([^<]*)<", shown)), "shown, not run"
    assert "press Tell" in page.said.value and page.token.disabled and not page.tell.disabled
    assert page.odds.value == odds_html(model, tokenizer, told, temperature=0.8, top_k=50, top_p=None)
    page.to_the_end()
    assert page.story.value == shown


@pytest.mark.parametrize("prompt", ["", " ", "Ωμέγα 🐉\u200b", END_OF_TEXT, "long " * 100])
def test_any_prompt_can_be_told_from(page, model, tokenizer, prompt):
    page.prompt.value, page.length.value = prompt, 10
    page.tell.click()
    page.to_the_end()
    assert "10 tokens" in page.said.value or "It ended by itself." in page.said.value


def test_what_is_wrong_is_said_in_the_widget_and_tell_works_again_when_it_is_mended(
    page, model, tokenizer, monkeypatch
):
    def fails(*_, **__):
        raise RuntimeError("CUDA out of memory\nand forty lines more")

    page.length.value = 10
    page.tell.click()
    with monkeypatch.context() as broken:
        broken.setattr(model, "forward", fails)
        page.copy()
        assert "CUDA out of memory" in page.said.value and "forty" not in page.said.value
        assert not page.tell.disabled and page.stop.disabled
    page.tell.click()
    page.to_the_end()
    assert page.story.value == whole(model, tokenizer, length=10)


def test_a_tokenizer_of_another_model_is_named_in_the_widget(model, tokenizer):
    other = type(tokenizer).from_str(tokenizer.to_str())
    other.add_tokens(["dragon"])
    page = Page(model, other)
    page.prompt.value = "dragon"
    assert "is this the model" in page.said.value


def test_controls_are_named_wait_for_the_mouse_and_are_of_ipywidgets_core(page):
    controls = ("prompt", "temperature", "top_k", "top_p", "length", "seed", "token")
    assert page.parts.keys() == {*controls, "tell", "stop", "said", "story", "odds"}
    assert [page.parts[name].description for name in controls] == list(controls)
    assert not any(page.parts[name].continuous_update for name in controls)
    boxes = [page.box]
    while boxes:
        box = boxes.pop()
        assert type(box).__module__.startswith("ipywidgets.") and isinstance(box, ipywidgets.Widget)
        boxes += getattr(box, "children", ())


def test_while_a_story_is_told_no_part_of_a_letter_is_shown(tokenizer, model):
    ids = tokenizer.encode("Ben 从前🦊").ids
    for count in range(1, len(ids)):
        told = Told("Ben", tuple(ids[: count + 1]), 1)
        assert "\ufffd" not in story_html(tokenizer, told) + odds_html(model, tokenizer, told, count)
