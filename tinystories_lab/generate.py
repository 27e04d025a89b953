"""Ids to story: read what there is, draw the next token, go on."""

import math
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from tokenizers import Tokenizer

from tinystories_lab.model import GPTMini
from tinystories_lab.sampling import TEMPERATURE, TOP_K, draw, next_token_probabilities
from tinystories_lab.tokenizer import end_id, first_ids, text_of

NEW_TOKENS = 120  # the chapter's, as its prompts


def window(ids: list[int], max_len: int) -> list[int]:
    """The last of `ids` that the model sees: all up to max_len; then half of them go at once whenever it is full.

    So each token is read twice at most, and the odds are those of an uncached model on the window.
    """
    half = max(1, max_len // 2)
    return ids[math.ceil(max(0, len(ids) - max_len) / half) * half :]


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise ValueError when there are no ids to go on from, or one is not in the vocabulary."""
    if not ids or not 0 <= min(ids) <= max(ids) < vocab_size:
        raise ValueError(
            f"a prompt needs at least one id, each from 0 to {vocab_size - 1}; got {ids[:8]}: is this the model's tokenizer?"
        )


@torch.inference_mode()
def stream_many(
    model: GPTMini,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = TEMPERATURE,
    top_k: int | None = TOP_K,
    top_p: float | None = None,
    *,
    seeds: Sequence[int | None],
    stop_id: int | None = None,
) -> Iterator[list[int | None]]:
    """Go on from several prompts at once: yields the next id of each, None for those that have ended before `stop_id`.

    Each goes on as it would alone (see `stream`), with its own of `seeds`.
    """
    config, device = model.config, model.tok_emb.weight.device
    stories = [list(prompt) for prompt in prompts]
    for ids in stories:
        check_ids(ids, config.vocab_size)
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
    settings = (temperature, top_k, top_p)
    for (next_id,) in stream_many(model, [ids], max_new_tokens, *settings, seeds=[seed], stop_id=stop_id):
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
    seeds = [None] * len(prompts) if seeds is None else seeds
    ids = [first_ids(tokenizer, prompt) for prompt in prompts]
    turns = list(
        stream_many(model, ids, max_new_tokens, temperature, top_k, top_p, seeds=seeds, stop_id=end_id(tokenizer))
    )
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    rows = []
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        new = [turn[row] for turn in turns if turn[row] is not None]
        told = {
            "prompt": prompt,
            "story": prompt + text_of(tokenizer, ids[row] + new, len(ids[row])),
            "ended": len(new) < max_new_tokens,
        }
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
    model: GPTMini, tokenizer: Tokenizer, max_new_tokens: int, prompts: Sequence[str]
) -> list[dict[str, Any]]:
    """Tell the ten stories that a run keeps: the prompts in turn, with the seeds 0 to 9, the same at every call."""
    return tell_many(model, tokenizer, list(islice(cycle(prompts), 10)), max_new_tokens, seeds=range(10))
