"""Ids to story: turn logits into the odds of the next token, draw one, go on."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

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
    values, ids = logits, None
    if top_k is not None and top_k < logits.shape[-1]:
        values, ids = logits.topk(top_k)
        least = values[..., -1:]
        if (logits == least).sum() > (values == least).sum():  # of equals the first are kept, as argmax has it
            values, ids = (part[..., :top_k] for part in logits.sort(descending=True, stable=True))
    odds = torch.softmax((values - values.amax(-1, keepdim=True)) / temperature, dim=-1)
    if ids is not None:
        odds = torch.zeros_like(logits).scatter_(-1, ids, odds)
    if top_p is not None:
        falling, order = odds.sort(descending=True, stable=True)
        dropped = falling.cumsum(-1) - falling >= top_p  # never the likeliest
        odds = odds.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), 0.0)
        odds /= odds.sum(-1, keepdim=True)
    return odds


def draw(odds: Tensor, randoms: Sequence[torch.Generator | None]) -> list[int]:
    """One id for each row of `odds` (B, V), with each row's own random numbers."""
    summed = odds.double().cumsum(-1)
    points = torch.stack([torch.rand(1, generator=random, dtype=torch.float64) for random in randoms]) * summed[:, -1:]
    # The first sum above the point: what has no odds adds nothing to the sum, and so is never the first.
    return torch.searchsorted(summed, points, right=True)[:, 0].tolist()


def window(ids: list[int], max_len: int) -> list[int]:
    """The last of `ids` that the model sees: all up to max_len; then half of them go at once whenever it is full.

    So each token is read twice at most, and the odds are those of an uncached model on the window.
    """
    half = max(1, max_len // 2)
    return ids[math.ceil(max(0, len(ids) - max_len) / half) * half :]


@torch.inference_mode()
def stream_many(
    model: GPTMini,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = TEMPERATURE,
    top_k: int | None = TOP_K,
    top_p: float | None = None,
    seeds: Sequence[int | None] | None = None,
    stop_id: int | None = None,
) -> Iterator[list[int | None]]:
    """Go on from several prompts at once: yields the next id of each, None for those that have ended before `stop_id`.

    Each goes on as it would alone (see `stream`), with its own of `seeds`.
    """
    config, device = model.config, model.tok_emb.weight.device
    stories = [list(prompt) for prompt in prompts]
    for ids in stories:
        if not ids or not 0 <= min(ids) <= max(ids) < config.vocab_size:
            raise ValueError(
                f"a prompt needs at least one id, each from 0 to {config.vocab_size - 1}; got {ids[:8]}: is this the model's tokenizer?"
            )
    seeds = [None] * len(stories) if seeds is None else seeds
    randoms = [None if seed is None else torch.Generator().manual_seed(seed) for seed in seeds]
    told = set(range(len(stories)))  # those that go on
    rows, cache = [], None
    for _ in range(max_new_tokens):
        if cache is None or cache.longest == config.max_len or len(told) <= len(rows) // 2:
            rows = sorted(told)
            windows = [window(stories[row], config.max_len) for row in rows]
            cache = model.new_cache([len(ids) for ids in windows])
            read = [ids + [0] * (cache.longest - len(ids)) for ids in windows]
        else:
            read = [stories[row][-1:] for row in rows]
        logits, _ = model(torch.tensor(read, device=device), cache=cache)
        odds = next_token_probabilities(logits[:, -1], temperature, top_k, top_p)
        new: list[int | None] = [None] * len(stories)
        for row, next_id in zip(rows, draw(odds, [randoms[row] for row in rows]), strict=True):
            if next_id == stop_id:
                told.discard(row)
            if row in told:
                stories[row].append(next_id)
                new[row] = next_id
        if not told:
            return
        yield new


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

    The model sees the `window` of them. Raises ValueError when `ids` is empty or holds an id over the vocabulary.
    """
    for (next_id,) in stream_many(model, [ids], max_new_tokens, temperature, top_k, top_p, [seed], stop_id):
        yield next_id


def tell_many(
    model: GPTMini,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int = NEW_TOKENS,
    temperature: float = TEMPERATURE,
    top_k: int | None = TOP_K,
    top_p: float | None = None,
    seeds: Sequence[int | None] | None = None,
) -> list[dict[str, Any]]:
    """Tell a story for each prompt, all at once: rows of samples.jsonl with story (the prompt too), ended (by itself), settings.

    An empty prompt starts as every story does, after `<|endoftext|>`.
    """
    end_id = tokenizer.token_to_id(END_OF_TEXT)
    seeds = [None] * len(prompts) if seeds is None else seeds
    ids = [tokenizer.encode(prompt).ids or [end_id] for prompt in prompts]
    turns = list(stream_many(model, ids, max_new_tokens, temperature, top_k, top_p, seeds, stop_id=end_id))
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    rows = []
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        new = [turn[row] for turn in turns if turn[row] is not None]
        told = {"prompt": prompt, "story": prompt + tokenizer.decode(new), "ended": len(new) < max_new_tokens}
        rows.append(told | settings | {"seed": seed, "max_new_tokens": max_new_tokens})
    return rows


def tell(
    model: GPTMini, tokenizer: Tokenizer, prompt: str, *args: Any, seed: int | None = None, **settings: Any
) -> dict[str, Any]:
    """Tell one story; takes what `tell_many` takes and returns its one row."""
    return tell_many(model, tokenizer, [prompt], *args, seeds=[seed], **settings)[0]


def generate(model: GPTMini, tokenizer: Tokenizer, prompt: str, *args: Any, **settings: Any) -> str:
    """Tell one story that begins with `prompt`; takes what `tell` takes and returns the text alone."""
    return tell(model, tokenizer, prompt, *args, **settings)["story"]


def tell_samples(
    model: GPTMini, tokenizer: Tokenizer, max_new_tokens: int = NEW_TOKENS, count: int = 10
) -> list[dict[str, Any]]:
    """Tell `count` stories, the chapter's prompts in turn, with the seeds 0, 1, 2, ...: the same at every call."""
    prompts = [PROMPTS[seed % len(PROMPTS)] for seed in range(count)]
    return tell_many(model, tokenizer, prompts, max_new_tokens, seeds=range(count))
