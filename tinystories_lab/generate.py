"""Ids to story: turn logits into the odds of the next token, draw one, go on."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from tinystories_lab.model import GPTMini
from tinystories_lab.sources import END_OF_TEXT

PROMPTS = ("Once upon a time", "Lily found a big", "The little dog wanted", "On a sunny day,", "There was a kind")
NEW_TOKENS, TEMPERATURE, TOP_K = 120, 0.8, 50  # the chapter's


def next_token_probabilities(
    logits: Tensor, temperature: float = TEMPERATURE, top_k: int | None = TOP_K, top_p: float | None = None
) -> Tensor:
    """Odds of the next token: logits (..., V) in, probabilities of the same shape out, on the CPU in float32.

    Temperature divides the logits (0 is greedy: all odds on the likeliest); then only the `top_k` likeliest stay; then
    the smallest set of tokens that holds at least `top_p` of what is left. None leaves a filter out. Raises ValueError
    for values out of range.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or more, 0.7 to 0.9 is a good start")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1, or None for all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1, or None")
    logits = logits.detach().float().cpu()
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    sorted_logits, order = torch.sort(logits, descending=True, stable=True)  # stable: of equals, the first, like argmax
    if top_k is not None:
        sorted_logits[..., top_k:] = -torch.inf
    odds = torch.softmax((sorted_logits - sorted_logits[..., :1]) / temperature, dim=-1)
    if top_p is not None:
        odds = odds.masked_fill(odds.cumsum(-1) - odds >= top_p, 0.0)  # the likeliest always stays
        odds /= odds.sum(-1, keepdim=True)
    return torch.zeros_like(logits).scatter(-1, order, odds)


@torch.inference_mode()
def stream(
    model: GPTMini,
    ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = TEMPERATURE,
    top_k: int | None = TOP_K,
    top_p: float | None = None,
    seed: int | None = None,
    stop_id: int | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids that go on from `ids`, ending before `stop_id`; the same seed, the same ids.

    The model sees the last max_len ids. Raises ValueError when `ids` is empty or holds an id over the vocabulary.
    """
    ids, config = list(ids), model.config
    if not ids or not 0 <= min(ids) <= max(ids) < config.vocab_size:
        raise ValueError(
            f"a prompt needs at least one id, each from 0 to {config.vocab_size - 1}; got {ids[:8]}: is this the model's tokenizer?"
        )
    random = torch.Generator().manual_seed(seed) if seed is not None else None
    device = model.tok_emb.weight.device
    for _ in range(max_new_tokens):
        logits, _ = model(torch.tensor([ids[-config.max_len :]], device=device))
        odds = next_token_probabilities(logits[0, -1], temperature, top_k, top_p)
        next_id = int(torch.multinomial(odds, 1, generator=random))
        if next_id == stop_id:
            return
        ids.append(next_id)
        yield next_id


def tell(
    model: GPTMini,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = NEW_TOKENS,
    temperature: float = TEMPERATURE,
    top_k: int | None = TOP_K,
    top_p: float | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Tell one story; returns it with its settings, as a row of samples.jsonl: story (with the prompt), ended (by itself).

    An empty prompt starts as every story does, after `<|endoftext|>`.
    """
    end_id = tokenizer.token_to_id(END_OF_TEXT)
    ids = tokenizer.encode(prompt).ids or [end_id]
    new = list(stream(model, ids, max_new_tokens, temperature, top_k, top_p, seed, stop_id=end_id))
    settings = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
    }
    return {"prompt": prompt, "story": prompt + tokenizer.decode(new), "ended": len(new) < max_new_tokens, **settings}


def generate(model: GPTMini, tokenizer: Tokenizer, prompt: str, *args: Any, **settings: Any) -> str:
    """Tell one story that begins with `prompt`; takes what `tell` takes and returns the text alone."""
    return tell(model, tokenizer, prompt, *args, **settings)["story"]


def tell_samples(
    model: GPTMini, tokenizer: Tokenizer, max_new_tokens: int = NEW_TOKENS, count: int = 10
) -> list[dict[str, Any]]:
    """Tell `count` stories, the chapter's prompts in turn, with the seeds 0, 1, 2, ...: the same at every call."""
    seeds = tqdm(range(count), desc="tell", unit=" stories")
    return [tell(model, tokenizer, PROMPTS[seed % len(PROMPTS)], max_new_tokens, seed=seed) for seed in seeds]
