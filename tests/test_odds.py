"""What may come next, and what the settings make of it."""

import math
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinystories_lab.generate import window
from tinystories_lab.model import GPTConfig, GPTMini
from tinystories_lab.odds import _logits_after, likely_next, odds_of_text, token_text
from tinystories_lab.sampling import next_token_probabilities
from tinystories_lab.sources import END_OF_TEXT


@pytest.fixture(scope="module")
def model(model_config):
    torch.manual_seed(0)
    return GPTMini(model_config).eval()


token_ids = st.integers(0, 299)
texts_of_ids = st.integers(1, 40).flatmap(lambda length: st.lists(token_ids, min_size=length, max_size=length))
shaped = st.tuples(st.sampled_from([0.0, 0.5, 1.2]), st.none() | st.integers(1, 300), st.none() | st.floats(0.05, 1))


@given(texts_of_ids, shaped)
def test_the_odds_are_those_of_drawing_from_what_the_model_sees(model, tokenizer, ids, settings):
    with torch.no_grad():
        logits = model(torch.tensor([window(ids, model.config.max_len)]))[0][0, -1]
    torch.testing.assert_close(_logits_after(model, ids), logits)
    own, odds = next_token_probabilities(logits, 1.0, None), next_token_probabilities(logits, *settings)
    rows = likely_next(model, tokenizer, ids, *settings)
    likeliest = own.argsort(descending=True)[:12]
    assert [row[2] for row in rows] == pytest.approx(own[likeliest].tolist(), rel=1e-4)
    assert sum(row[1] for row in rows) <= 1 + 1e-5
    assert max(row[1] for row in rows) == pytest.approx(odds.max().item(), rel=1e-4)


@given(texts_of_ids, shaped)
def test_the_settings_change_the_odds_and_not_which_tokens_are_shown_nor_their_order(model, tokenizer, ids, settings):
    plain = likely_next(model, tokenizer, ids, 1.0, None, None)
    assert [(text, own) for text, _, own in likely_next(model, tokenizer, ids, *settings)] == [
        (text, own) for text, _, own in plain
    ]
    assert all(odds == own for _, odds, own in plain)


def test_what_was_told_has_an_arrow_and_is_added_when_it_is_not_among_the_likeliest(model, tokenizer):
    order = _logits_after(model, [5]).argsort(descending=True, stable=True).tolist()
    rows = likely_next(model, tokenizer, [5], told=order[3])
    assert [text.startswith("→ '") for text, *_ in rows] == [place == 3 for place in range(12)]
    rows = likely_next(model, tokenizer, [5], top_k=10, told=order[40])
    assert (
        len(rows) == 13 and rows[12][0] == f"→ '{token_text(tokenizer, order[40])}'" and rows[12][1] == 0 < rows[12][2]
    )
    assert len(likely_next(model, tokenizer, [5], count=3)) == 3


def test_a_tokens_text_is_what_it_adds_to_a_story(tokenizer):
    text = "Lily found a big red ball.\nMia was “happy” 🐉"
    ids = tokenizer.encode(text).ids
    whole = "".join(token_text(tokenizer, token) for token in ids)
    assert whole.startswith("Lily found a big red ball.\nMia was ")
    assert "happy" in whole and whole.endswith(r"\xf0\x9f\x90\x89"), (
        "bytes that are a part of a character are told apart"
    )
    assert token_text(tokenizer, tokenizer.token_to_id(END_OF_TEXT)) == END_OF_TEXT
    for token in range(2, tokenizer.get_vocab_size()):
        if "\ufffd" not in tokenizer.decode([token]):
            assert token_text(tokenizer, token) == tokenizer.decode([token])


def test_a_space_and_a_new_line_can_be_seen(model, tokenizer):
    small = GPTMini(GPTConfig(vocab_size=300, n_layer=1, n_head=2, d_model=32, max_len=16)).eval()
    shown = {text for text, *_ in likely_next(small, tokenizer, [5], count=300)}
    assert "' Lily'" in shown and r"'\n'" in shown and "' '" in shown


def test_a_tokenizer_of_another_model_is_named_as_such(tokenizer):
    larger = GPTMini(GPTConfig(vocab_size=400, n_layer=1, n_head=2, d_model=32, max_len=16)).eval()
    with pytest.raises(ValueError, match="not among this tokenizer's 300: is it the model's"):
        likely_next(larger, tokenizer, [5], count=400)
    with pytest.raises(ValueError, match="is this the model's tokenizer"):
        likely_next(larger, tokenizer, [400])


def test_the_odds_of_a_text_are_those_of_each_token_after_those_before_it(model, tokenizer):
    text = "Lily found a red ball."
    ids = tokenizer.encode(text).ids
    drawn = odds_of_text(model, tokenizer, text)
    assert "".join(token for token, _ in drawn) == text
    for place, (_, share) in enumerate(drawn):
        before = [tokenizer.token_to_id(END_OF_TEXT), *ids[:place]]
        alone = likely_next(model, tokenizer, before, 1.0, None, told=ids[place], count=0)
        assert share == pytest.approx(alone[0][1], rel=1e-4)


def test_the_mean_surprise_at_a_storys_tokens_is_the_models_loss_on_it(model, tokenizer):
    text = "Lily found a ball."
    ids = torch.tensor([[tokenizer.token_to_id(END_OF_TEXT), *tokenizer.encode(text).ids]])
    surprises = [-math.log(share) for _, share in odds_of_text(model, tokenizer, text)]
    assert fmean(surprises) == pytest.approx(model(ids[:, :-1], ids[:, 1:])[1].item(), rel=1e-4)


def test_of_a_text_over_max_len_the_end_counts(model, tokenizer):
    drawn = odds_of_text(model, tokenizer, "Lily found a red ball. " * 20)
    assert len(drawn) == model.config.max_len
    with pytest.raises(ValueError, match="at least one id"):
        odds_of_text(model, tokenizer, "")
