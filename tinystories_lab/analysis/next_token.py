"""Probabilities of the next token, after a prompt and at every token of a text."""

import math
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from tinystories_lab.analysis.bpe import quote, token_to_text
from tinystories_lab.generate import TEMPERATURE, TOP_K, check_ids, context_window, next_token_probabilities
from tinystories_lab.model import GPTMini, KVCache
from tinystories_lab.tokenizer import encode_prompt


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    r"""Return the text of a token; part of a character appears as `\xc3`. Raises ValueError for an unknown id."""
    token = tokenizer.id_to_token(token_id)
    if token is None:
        size = tokenizer.get_vocab_size()
        raise ValueError(f"token {token_id} is not among the tokenizer's {size}: use the model's own tokenizer")
    # Tokenizers that are not byte-level write letters as they are, and a space as this block.
    return token_to_text(token) if isinstance(tokenizer.decoder, ByteLevel) else token.replace("▁", " ")


@torch.inference_mode()
def top_next_tokens(
    model: GPTMini,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    temperature: float = TEMPERATURE,
    top_k: int | None = TOP_K,
    top_p: float | None = None,
    count: int = 12,
    sampled: int | None = None,
) -> list[tuple[str, float, float]]:
    """Return the `count` most likely tokens after `ids`: (quoted text, probability, the model's own probability).

    The model's own probabilities (temperature 1, no filter) select and order the tokens, so that rows stay in place
    when the settings change. The token `sampled` gets an arrow and is added if it is missing. The model sees the
    `context_window` of the ids. Raises ValueError as `stream` does.
    """
    check_ids(ids, model.config.vocab_size)
    window = context_window(list(ids), model.config.max_len)
    inputs = torch.tensor([window], device=model.tok_emb.weight.device)
    logits = model(inputs, cache=KVCache(model, [len(window)]))[0][0, -1].cpu()  # (V,)
    own = next_token_probabilities(logits, 1.0, None)
    shaped = next_token_probabilities(logits, temperature, top_k, top_p)
    top = own.argsort(descending=True, stable=True)[:count].tolist()
    if sampled is not None and sampled not in top:
        top.append(sampled)
    texts = [("→ " if token == sampled else "") + quote(token_text(tokenizer, token)) for token in top]
    return list(zip(texts, shaped[top].tolist(), own[top].tolist(), strict=True))


@torch.inference_mode()
def token_probabilities(model: GPTMini, tokenizer: Tokenizer, text: str) -> list[tuple[str, float]]:
    """Return the tokens of a text that begins a story, each with the probability that the model gives it.

    If the text is longer than max_len, only its last tokens are returned. The mean of -ln(probability) is the loss on
    the text; a probability that is 0 in float32 is returned as 1e-38. Raises ValueError for an empty text, and for
    another model's tokenizer.
    """
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    check_ids(ids, model.config.vocab_size)
    ids = [*encode_prompt(tokenizer, ""), *ids][-model.config.max_len - 1 :]
    logits, _ = model(torch.tensor([ids[:-1]], device=model.tok_emb.weight.device))
    probabilities = next_token_probabilities(logits[0].cpu(), 1.0, None)[torch.arange(len(ids) - 1), ids[1:]]
    return [
        (token_text(tokenizer, token), max(p, 1e-38)) for token, p in zip(ids[1:], probabilities.tolist(), strict=True)
    ]


def text_bits_per_byte(model: GPTMini, tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """Return the bits per byte that the model needs for texts that begin stories, each cut to max_len tokens."""
    nats, size = 0.0, 0
    for text in texts:
        start = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids[: model.config.max_len])
        nats -= sum(math.log(p) for _, p in token_probabilities(model, tokenizer, start))
        size += len(start.encode())
    return nats / math.log(2) / size
