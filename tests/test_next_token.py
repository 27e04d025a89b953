"""Probabilities of the next token, with and without sampling settings, and of the tokens of a text."""

import math
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystories_lab.analysis.next_token import text_bits_per_byte, token_probabilities, token_text, top_next_tokens
from tinystories_lab.generate import context_window, next_token_probabilities
from tinystories_lab.model import GPTConfig, new_model
from tinystories_lab.tokenizer import END_OF_TEXT

TEXT = "Lily found a red ball."
prompts = st.lists(st.integers(0, 299), min_size=1, max_size=40)
sampling = st.tuples(st.sampled_from([0.0, 0.5, 1.2]), st.none() | st.integers(1, 300), st.none() | st.floats(0.05, 1))


@pytest.fixture(scope="module")
def model(model_config):
    """In float64, so that no rounding comes near a tie or a tolerance."""
    return new_model(model_config, seed=0).double().eval()


@torch.no_grad()
def logits_after(model, ids):
    return model(torch.tensor([context_window(ids, model.config.max_len)]))[0][0, -1]


@settings(max_examples=40)
@given(prompts, sampling)
def test_settings_change_the_probabilities_but_not_which_tokens_are_shown_nor_their_order(
    model, tokenizer, ids, chosen
):
    logits = logits_after(model, ids)
    order = logits.argsort(descending=True)[:12]  # the model sees the context window only
    texts, shaped, own = zip(*top_next_tokens(model, tokenizer, ids, *chosen), strict=True)
    assert [text[1:-1].replace(r"\n", "\n") for text in texts] == [token_text(tokenizer, token) for token in order]
    assert own == pytest.approx(next_token_probabilities(logits, 1.0, None)[order].tolist(), rel=1e-4)
    assert shaped == pytest.approx(next_token_probabilities(logits, *chosen)[order].tolist(), rel=1e-4)


def test_the_sampled_token_has_an_arrow_and_is_added_if_it_is_not_among_the_likeliest(model, tokenizer):
    order = logits_after(model, [5]).argsort(descending=True).tolist()
    rows = top_next_tokens(model, tokenizer, [5], sampled=order[3])
    assert [text.startswith("→ '") for text, *_ in rows] == [place == 3 for place in range(12)]
    *_, (text, shaped, own) = rows = top_next_tokens(model, tokenizer, [5], top_k=10, sampled=order[40])
    assert len(rows) == 13 and text == f"→ '{token_text(tokenizer, order[40])}'" and shaped == 0 < own
    assert len(top_next_tokens(model, tokenizer, [5], count=3)) == 3


def test_a_tokens_text_is_what_it_adds_to_a_story(tokenizer):
    text = "Lily found a big red ball.\nMia was “happy” 🐉"
    whole = "".join(token_text(tokenizer, token) for token in tokenizer.encode(text).ids)
    assert whole.startswith("Lily found a big red ball.\nMia was ") and "happy" in whole
    assert whole.endswith(r"\xf0\x9f\x90\x89"), "bytes that are a part of a character can be told apart"
    assert token_text(tokenizer, tokenizer.token_to_id(END_OF_TEXT)) == END_OF_TEXT
    for token in range(2, tokenizer.get_vocab_size()):
        assert tokenizer.decode([token]) in (token_text(tokenizer, token), "\ufffd")


def test_a_space_and_a_line_break_can_be_seen(model, tokenizer):
    assert {"' Lily'", r"'\n'", "' '"} <= {text for text, *_ in top_next_tokens(model, tokenizer, [5], count=300)}


def test_the_tokenizer_of_another_model_is_reported(tokenizer):
    larger = new_model(GPTConfig(vocab_size=400, n_layer=1, n_head=2, d_model=32, max_len=16)).eval()
    with pytest.raises(ValueError, match="not among the tokenizer's 300: use the model's own tokenizer"):
        top_next_tokens(larger, tokenizer, [5], count=400)
    with pytest.raises(ValueError, match="is this the model's tokenizer"):
        top_next_tokens(larger, tokenizer, [400])


def test_each_token_of_a_text_has_its_probability_after_those_before_it_and_their_mean_surprise_is_the_loss(
    model, tokenizer
):
    ids = [tokenizer.token_to_id(END_OF_TEXT), *tokenizer.encode(TEXT).ids]
    texts, probabilities = zip(*token_probabilities(model, tokenizer, TEXT), strict=True)
    assert "".join(texts) == TEXT
    for place, probability in enumerate(probabilities, start=1):
        ((_, alone, _),) = top_next_tokens(model, tokenizer, ids[:place], 1.0, None, sampled=ids[place], count=0)
        assert probability == pytest.approx(alone, rel=1e-4)
    surprises = [-math.log(probability) for probability in probabilities]
    loss = F.cross_entropy(model(torch.tensor([ids[:-1]]))[0][0], torch.tensor(ids[1:])).item()
    assert fmean(surprises) == pytest.approx(loss, rel=1e-4)
    bits = sum(surprises) / math.log(2) / len(TEXT)
    assert text_bits_per_byte(model, tokenizer, [TEXT, TEXT]) == pytest.approx(bits, rel=1e-4)


def test_of_a_text_over_max_len_the_last_tokens_count_and_an_empty_text_is_refused(model, tokenizer):
    assert len(token_probabilities(model, tokenizer, TEXT * 20)) == model.config.max_len
    with pytest.raises(ValueError, match="at least one id"):
        token_probabilities(model, tokenizer, "")


def test_no_probability_of_a_token_is_zero_so_every_surprisal_is_finite(model_config, tokenizer):
    sharp = new_model(model_config, seed=0).eval()
    sharp.norm.weight.data *= 1e4  # logits so far apart that exp() of the smaller ones is 0
    probabilities = [probability for _, probability in token_probabilities(sharp, tokenizer, TEXT)]
    assert min(probabilities) == 1e-38 and text_bits_per_byte(sharp, tokenizer, [TEXT]) < 200
