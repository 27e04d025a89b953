"""Attention weights: they are the model's own, and the strongest earlier word of each head is found in them."""

from dataclasses import replace

import pytest
import torch

from tinystories_lab.analysis.attention import attention_weights, strongest_attention
from tinystories_lab.analysis.next_token import token_text
from tinystories_lab.model import new_model
from tinystories_lab.tokenizer import eos_id

TEXT = "Lily found a red ball. Mia was very happy."


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, model_config):
    """A model with large queries and keys: the attention of new weights is nearly uniform, which hides errors."""
    model = new_model(replace(model_config, max_len=40, tie_embeddings=request.param), seed=0).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight *= 20
    return model


@pytest.fixture(scope="module")
def ids(tokenizer):
    return [eos_id(tokenizer), *tokenizer.encode(TEXT).ids]


@torch.no_grad()
def test_the_weights_with_values_and_output_projection_give_the_models_logits(model):
    ids = torch.arange(40)[None] * 7 % 300
    weights = attention_weights(model, ids[0].tolist())
    x = model.tok_emb(ids)
    for block, layer in zip(model.blocks, weights, strict=True):
        x = block(x, model.cos, model.sin, lambda q, k, v, layer=layer: layer @ v)
    head = model.tok_emb if model.head is None else model.head
    torch.testing.assert_close(model.norm(x) @ head.weight.T, model(ids)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 40])
def test_each_row_sums_to_one_and_nothing_attends_to_the_future(model, length):
    weights = attention_weights(model, range(length))
    assert weights.shape == (2, 2, length, length) and weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, length))
    assert not weights.triu(1).any() and (weights >= 0).all()
    assert length == 1 or weights[:, :, -1].max() > 1.5 / length, "these weights are not uniform"


def test_ids_that_the_model_cannot_read_are_refused(model):
    for ids, message in (([], "at least one id"), ([300], "from 0 to 299"), (range(41), "at most max_len=40")):
        with pytest.raises(ValueError, match=message):
            attention_weights(model, ids)


def test_the_strongest_earlier_word_of_each_head_is_neither_a_marker_nor_punctuation(model, tokenizer, ids):
    texts, weights = [token_text(tokenizer, token) for token in ids], attention_weights(model, ids)
    assert any(not text.strip(" .") for text in texts[1:-1])
    for position in range(2, len(ids) + 1):
        rows = strongest_attention(model, tokenizer, ids, position, count=None)
        assert sorted(row[:2] for row in rows) == [(1, 1), (1, 2), (2, 1), (2, 2)]
        for layer, head, text, weight in rows:
            its = weights[layer - 1, head - 1, position - 1, :position].tolist()
            words = {place: its[place] for place in range(1, position) if texts[place].strip(" .")}
            assert weight == pytest.approx(max(words.values()), abs=1e-6)
            assert text in {texts[place] for place in words if its[place] == pytest.approx(weight, abs=1e-6)}
        assert [row[3] for row in rows] == sorted((row[3] for row in rows), reverse=True)
        assert strongest_attention(model, tokenizer, ids, position, count=1) == rows[:1]
    assert strongest_attention(model, tokenizer, ids, position=1) == [], "before the first word is only the marker"


def test_a_position_without_an_earlier_token_or_after_the_next_is_refused(model, tokenizer, ids):
    for position in (-1, 0, len(ids) + 1):
        with pytest.raises(ValueError, match=f"position is {position}; {len(ids)} tokens have the positions 1 to"):
            strongest_attention(model, tokenizer, ids, position)
