"""What may come next: the likeliest tokens after a text, and what temperature, top_k and top_p make of their odds."""

import math
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from torch import Tensor

from tinystories_lab.generate import check_ids, window
from tinystories_lab.merges import shown
from tinystories_lab.model import GPTMini
from tinystories_lab.sampling import TEMPERATURE, TOP_K, next_token_probabilities
from tinystories_lab.tokenizer import first_ids


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What a token stands for; bytes that are only a part of a character as `\\xc3`. Raises ValueError for one that is not there."""
    name = tokenizer.id_to_token(token)
    if name is None:
        raise ValueError(
            f"token {token} is not among this tokenizer's {tokenizer.get_vocab_size()}: is it the model's?"
        )
    # Others that are not byte-level write a space as this block, and letters as they are.
    return shown(name) if isinstance(tokenizer.decoder, ByteLevel) else name.replace("▁", " ")


@torch.inference_mode()
def _logits_after(model: GPTMini, ids: Sequence[int]) -> Tensor:
    """The model's logits (V) for what follows `ids`, of which it sees the `window`. Raises ValueError as `stream`."""
    check_ids(ids, model.config.vocab_size)
    seen = torch.tensor([window(list(ids), model.config.max_len)], device=model.tok_emb.weight.device)
    return model(seen, cache=model.new_cache([seen.shape[1]]))[0][0, -1]


def likely_next(
    model: GPTMini,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    temperature: float = TEMPERATURE,
    top_k: int | None = TOP_K,
    top_p: float | None = None,
    count: int = 12,
    told: int | None = None,
) -> list[tuple[str, float, float]]:
    """The `count` likeliest tokens after `ids`: (text in quotes, odds with these settings, the model's own odds).

    The model's own odds (temperature 1, no filter) say which they are and in which order, so that they stay where they
    are while the settings change. The token `told` has an arrow, and is added where it is not among them.
    """
    logits = _logits_after(model, ids)
    own = next_token_probabilities(logits, 1.0, None)
    odds = next_token_probabilities(logits, temperature, top_k, top_p)
    likeliest = own.argsort(descending=True, stable=True)[:count].tolist()
    if told is not None and told not in likeliest:
        likeliest.append(told)
    return [(_label(tokenizer, token, told), odds[token].item(), own[token].item()) for token in likeliest]


def _label(tokenizer: Tokenizer, token: int, told: int | None) -> str:
    """A token's text in quotes, with an arrow before the one `told`."""
    quoted = f"'{token_text(tokenizer, token)}'".replace("\n", r"\n")
    return f"→ {quoted}" if token == told else quoted


@torch.inference_mode()
def odds_of_text(model: GPTMini, tokenizer: Tokenizer, text: str) -> list[tuple[str, float]]:
    """Each token of a text that begins a story, with the model's own odds for it there; over max_len the last ones only.

    The mean of -ln of the odds is the loss on that text. Raises ValueError for an empty text and another model's tokenizer.
    """
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    check_ids(ids, model.config.vocab_size)
    ids = [*first_ids(tokenizer, ""), *ids][-model.config.max_len - 1 :]
    logits, _ = model(torch.tensor([ids[:-1]], device=model.tok_emb.weight.device))
    odds = next_token_probabilities(logits[0], 1.0, None).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    return list(zip([token_text(tokenizer, token) for token in ids[1:]], odds.tolist(), strict=True))


def bits_per_byte_on(model: GPTMini, tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """Bits a byte that the model needs for texts that begin stories, each as far as it sees at once.

    The same texts compare any two models, whatever their tokenizers. Raises ValueError as `odds_of_text`.
    """
    nats, size = 0.0, 0
    for text in texts:
        seen = tokenizer.encode(text, add_special_tokens=False).ids[: model.config.max_len]
        text = tokenizer.decode(seen)
        nats -= sum(math.log(max(share, 1e-38)) for _, share in odds_of_text(model, tokenizer, text))
        size += len(text.encode())
    return nats / math.log(2) / size
