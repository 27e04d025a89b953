"""The views of attention and surprisal show the figures of the functions behind them, for any text."""

import math
from dataclasses import replace
from statistics import fmean

import ipywidgets
import pytest

from tinystories_lab.analysis.attention import attention_weights, strongest_attention
from tinystories_lab.analysis.bpe import quote
from tinystories_lab.analysis.evaluation import format_value
from tinystories_lab.analysis.next_token import token_probabilities, token_text
from tinystories_lab.model import new_model
from tinystories_lab.notebook import html
from tinystories_lab.notebook.widgets import attention_view, surprisal_view
from tinystories_lab.tokenizer import eos_id, train_tokenizer

STORY = "She saw the fox. Then Zoë saw <b>Lily</b>, and she saw the big fox again."


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Zoë saw a <b>big</b> fox.", "Zoë saw the fox again. The fox saw Zoë."] * 3, 300)


@pytest.fixture(scope="module")
def model(model_config):
    return new_model(replace(model_config, max_len=80)).eval()


def test_the_attention_view_shows_the_weights_of_the_chosen_head_for_every_token(model, tokenizer, caplog):
    view = attention_view(model, tokenizer, STORY)
    token, layer, head, _ = view.children
    ids = [eos_id(tokenizer), *tokenizer.encode(STORY).ids]
    texts, weights = [token_text(tokenizer, each) for each in ids], attention_weights(model, ids)
    assert (token.min, token.max) == (1, len(ids) - 1)
    for place in (1, 2, 9, token.max):
        for which in ((2, 1), (1, 2), (1, 0)):
            token.value, (layer.value, head.value) = place, which
            its = weights[layer.value - 1, :, place - 1, :place]
            its = its[head.value - 1] if head.value else its.mean(0)
            page = view.result.data
            read = [(texts[i], share / its.max().item(), f"{share:.1%}") for i, share in enumerate(its.tolist())]
            unread = [(text, 0, "not read yet") for text in texts[place:]]
            assert html.shaded(read + unread, place).data in page
            top = its.argsort(descending=True, stable=True)[:5].tolist()
            assert html.bars([(quote(texts[i]), its[i].item(), its[i].item()) for i in top]).data in page
            for at_layer, at_head, word, share in strongest_attention(model, tokenizer, ids, place, None):
                arrow = "→ " * (at_layer == layer.value and head.value in (0, at_head))
                assert html.escape(f"{arrow}{quote(word)}\n{share:.0%}") in page
            assert page.count("→ ") == 1 + (place > 1) * (1 if head.value else 2)
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "pronoun"),
    [
        (STORY, "she"),
        ("One day, Lily found it. Her fox saw him.", "Her"),
        ("The fox saw the big cat, and he saw her.", None),  # no name
        ("Then Zoë saw the other sheep.", None),  # no pronoun
        ("Zoë saw 中文 and Lily. 狗 saw his fox.", "his"),  # several tokens for one character
    ],
)
def test_the_attention_view_starts_at_the_first_pronoun_after_a_name_or_at_the_end(model, tokenizer, text, pronoun):
    view = attention_view(model, tokenizer, text)
    token, layer, head, _ = view.children
    ids = [eos_id(tokenizer), *tokenizer.encode(text).ids]
    before = tokenizer.decode(ids[: token.value])
    assert text.startswith(before), "no half of a character"
    assert text[len(before) :].lstrip().startswith(pronoun) if pronoun else token.value == len(ids) - 1
    assert (layer.value, head.value) == strongest_attention(model, tokenizer, ids, token.value)[0][:2]


def test_the_attention_view_shows_the_first_max_len_tokens_of_a_long_text_and_refuses_an_empty_one(model, tokenizer):
    view = attention_view(model, tokenizer, "Zoë saw 狗 again. " * 40 + "Then Lily saw her fox.")
    token = view.children[0]
    assert token.value == token.max == 79 and "not read yet" in view.result.data
    assert r"\xe7" in view.result.data, "a part of a character"
    with pytest.raises(ValueError, match="the text has no tokens"):
        attention_view(model, tokenizer, "")


def test_the_surprisal_view_shows_each_text_in_colours_with_its_loss_and_perplexity(model, tokenizer, caplog):
    long = "Zoë saw 狗. " * 40
    view = surprisal_view(model, tokenizer, [("a story", STORY), ("a <long> text", long)], "A fox.")
    sentence, _ = view.children
    for text, says in (
        ("A fox.", "your sentence ("),
        (STORY, "a story ("),
        (long, "a &lt;long&gt; text (the last 80"),
    ):
        rows = token_probabilities(model, tokenizer, text)
        loss = fmean(-math.log(probability) for _, probability in rows)
        figures = f" tokens): loss {loss:.2f} nats per token, perplexity {format_value(math.exp(loss))}<"
        assert says in view.result.data and figures in view.result.data
        assert html.surprisal(rows, legend=False).data in view.result.data
    before = view.result.data
    assert before.count("surprisal in nats: ") == 1, "one legend for all"
    sentence.value = "<i>saw</i>"
    assert html.surprisal(token_probabilities(model, tokenizer, "<i>saw</i>"), legend=False).data in view.result.data
    assert view.result.data.endswith(before.partition("surprisal in nats")[2]), "the texts stay as they are"
    assert not caplog.records


def test_a_sentence_without_tokens_or_with_half_a_character_gets_one_sentence(model, tokenizer, caplog):
    view = surprisal_view(model, tokenizer, [("a story", STORY)])
    sentence, _ = view.children
    for text, says in (
        ("", ">Type a sentence.<"),
        ("\ud83d", ">Type other characters: the tokenizer cannot read these.<"),
    ):
        sentence.value = text
        assert says in view.result.data and "your sentence" not in view.result.data and "a story (" in view.result.data
    assert not caplog.records, "ipywidgets logs errors of what it calls"
    with pytest.raises(ValueError, match="at least one id"):
        surprisal_view(model, tokenizer, [("nothing", "")])


def test_controls_have_names_wait_for_the_mouse_and_are_core_widgets(model, tokenizer):
    for view in (attention_view(model, tokenizer, STORY), surprisal_view(model, tokenizer, [])):
        assert all(type(part).__module__.startswith("ipywidgets.") for part in (view, *view.children))
        *controls, _ = view.children
        assert controls and all(control.description for control in controls)
        assert not any(
            control.continuous_update for control in controls if not isinstance(control, ipywidgets.Dropdown)
        )
