"""Sliders over pure functions: what they show is what the functions say, for every place of every slider."""

import ipywidgets
import pytest

from tinystories_lab.merges import merge_history, merges
from tinystories_lab.model import GPTConfig, count_parameters
from tinystories_lab.notebook import show
from tinystories_lab.notebook.sliders import budget_sliders, merge_slider
from tinystories_lab.presets import PRESETS
from tinystories_lab.tokenizer import train_tokenizer

SENTENCE = "Zoë saw a <b>big</b> fox."


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([SENTENCE, "Zoë saw the fox again. The fox saw Zoë."] * 3, 300)


def test_each_place_of_the_merge_slider_shows_its_step(tokenizer):
    _, slider, said, cut = merge_slider(tokenizer, SENTENCE).children
    steps = merge_history(tokenizer, SENTENCE)
    assert (slider.value, slider.min, slider.max) == (0, 0, len(steps) - 1)
    assert "no merge yet" in said.value and f"{len(SENTENCE.encode())} tokens" in said.value
    for place, step in enumerate(steps[1:], start=1):
        slider.value = place
        assert (
            f"merge {step.number} of {len(merges(tokenizer))}: " in said.value
            and f"{len(step.pieces)} tokens for " in said.value
        )
        assert cut.value == show.tokens(step.pieces, step.pieces.index(step.made)).data
        assert show._CHOSEN in cut.value, "the token just made is framed"


def test_another_sentence_is_cut_anew_as_far_as_the_slider_stands(tokenizer):
    text, slider, said, cut = merge_slider(tokenizer, SENTENCE).children
    slider.value = slider.max
    text.value = "Zoë saw."
    steps = merge_history(tokenizer, "Zoë saw.")
    assert slider.max == slider.value == len(steps) - 1
    assert cut.value == show.tokens(steps[-1].pieces, steps[-1].pieces.index(steps[-1].made)).data
    text.value = ""
    assert slider.max == 0 and "0 tokens for 0 bytes" in said.value


def test_the_budget_is_that_of_the_sliders():
    book = PRESETS["book"]
    *sliders, taken = budget_sliders(book.model, book.max_tokens, book.train, {"a calculator": 1e6}).children
    assert [slider.value for slider in sliders] == [6, 320, 200]
    assert "9,952,320" in taken.value and "12,207" in taken.value and "time on a calculator" in taken.value
    layers, width, tokens = sliders
    layers.value, width.value, tokens.value = 8, 512, 500
    assert (
        f"{count_parameters(GPTConfig(n_layer=8, d_model=512)):,}" in taken.value
        and "500,000,000" in taken.value
        and "30,517" in taken.value
    )


@pytest.mark.parametrize("name", PRESETS)
def test_the_budget_starts_from_any_preset_and_every_place_of_its_sliders_is_a_model(name):
    preset = PRESETS[name]
    *sliders, taken = budget_sliders(preset.model, 1_000_000, preset.train, {}).children
    assert sliders[0].value == preset.model.n_layer and sliders[1].value == preset.model.d_model
    for width in (sliders[1].min, sliders[1].max):
        sliders[1].value = width
        assert "parameters" in taken.value


def test_only_widgets_that_colab_has_are_used_and_what_computes_waits_for_the_mouse(tokenizer):
    for box in (merge_slider(tokenizer, SENTENCE), budget_sliders(GPTConfig(), 10**8, PRESETS["book"].train, {})):
        assert all(type(part).__module__.startswith("ipywidgets.") for part in (box, *box.children))
        controls = [part for part in box.children if not isinstance(part, ipywidgets.HTML)]
        assert controls and not any(control.continuous_update for control in controls)
        assert all(control.description for control in controls), "every control says what it is"
