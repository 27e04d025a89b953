"""Attention weights: how much each token attends to itself and to the tokens before it."""

import math
from collections.abc import Sequence
from operator import itemgetter
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tinystories_lab.analysis.next_token import token_text
from tinystories_lab.generate import check_ids
from tinystories_lab.model import GPTMini, causal_attention
from tinystories_lab.tokenizer import eos_id


@torch.inference_mode()
def attention_weights(model: GPTMini, ids: Sequence[int]) -> Tensor:
    """Return the attention weights of T ids, (n_layer, n_head, T, T) in float32 on the CPU.

    Row i has the weights with which token i attends to tokens 0 to i. Their sum is 1. The model uses row i to predict
    token i + 1. Raises ValueError for ids that are not in the vocabulary, and for more than max_len ids.
    """
    check_ids(ids, model.config.vocab_size)
    future, weights = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1), []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2)).float().cpu() / math.sqrt(q.shape[-1])
        weights.append(scores[0].masked_fill(future, -torch.inf).softmax(-1))
        return causal_attention(q, k, v)

    # The model calls the methods of a KVCache. This one stores the weights, which the kernels of PyTorch do not return.
    recorder = SimpleNamespace(positions=slice, attend=attend, last=lambda x: x[:, -1:])
    model(torch.tensor([ids], device=model.tok_emb.weight.device), cache=recorder)
    return torch.stack(weights)


def strongest_attention(
    model: GPTMini, tokenizer: Tokenizer, ids: Sequence[int], position: int, count: int | None = 5
) -> list[tuple[int, int, str, float]]:
    """Return the `count` strongest heads (all for None) when the model is about to generate the token at `position`.

    Each row is (layer, head, text, weight): the earlier token that gets most of the head's attention, among those with
    a letter or a digit. Layers and heads count from 1. Raises ValueError as `attention_weights` does.
    """
    if not 0 < position <= len(ids):
        raise ValueError(f"position is {position}; {len(ids)} tokens have the positions 1 to {len(ids)}")
    # Many heads attend to `<|endoftext|>` or to a comma when they have nothing to do. Neither is a word.
    end, rows = eos_id(tokenizer), []
    texts = ["" if token == end else token_text(tokenizer, token) for token in ids[:position]]
    words = [place for place, text in enumerate(texts) if any(map(str.isalnum, text))]
    for layer, heads in enumerate(attention_weights(model, ids[:position])[:, :, -1].tolist(), start=1):
        for head, weights in enumerate(heads, start=1):
            found = [(layer, head, texts[place], weights[place]) for place in words]
            rows += sorted(found, key=itemgetter(3))[-1:]
    return sorted(rows, key=itemgetter(3), reverse=True)[:count]
