"""Generate text: read the prompt, sample the next token, and repeat."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from numbers import Integral, Real

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tinystories_lab.device import GraphedCall, has_cuda_graphs
from tinystories_lab.files import Row
from tinystories_lab.model import GPTMini, KVCache
from tinystories_lab.tokenizer import decode_continuation, encode_prompt, eos_id

TEMPERATURE, TOP_K, NEW_TOKENS = 0.8, 50, 120  # the chapter's settings
_POINTS = 1_024  # random numbers that are drawn at once for each row


def next_token_probabilities(
    logits: Tensor, temperature: float = TEMPERATURE, top_k: int | None = TOP_K, top_p: float | None = None
) -> Tensor:
    """Return the probability of each next token, as float32, in the shape of the logits (..., V).

    The logits are divided by the temperature; 0 is greedy and gives the most likely token all probability. Then `top_k`
    keeps the k most likely tokens, and `top_p` keeps the smallest set of tokens whose total probability is at least p.
    None turns a filter off. Raises ValueError for values out of range.
    """
    _check_sampling(temperature, top_k, top_p)
    logits = logits.detach().float()
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[..., -1:]
        kept = logits >= smallest
        # Of logits that equal the smallest, keep the first ones, as argmax does. A CUDA graph cannot ask if there are any.
        if has_cuda_graphs(logits.device) or kept.sum() > top_k * smallest.numel():
            room = top_k - (logits > smallest).sum(-1, keepdim=True)
            kept &= (logits > smallest) | ((logits == smallest).cumsum(-1) <= room)
        logits = logits.masked_fill(~kept, -torch.inf)
    tiny = torch.finfo(torch.float32).tiny  # a smaller temperature or top_p could become 0 in float32
    probabilities = torch.softmax((logits - logits.amax(-1, keepdim=True)) / max(float(temperature), tiny), dim=-1)
    if top_p is not None:
        descending, order = probabilities.sort(descending=True, stable=True)
        dropped = descending.cumsum(-1) - descending >= max(float(top_p), tiny)  # false for the most likely token
        probabilities = probabilities.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), 0.0)
        probabilities /= probabilities.sum(-1, keepdim=True)
    return probabilities


def _check_sampling(
    temperature: float, top_k: int | None, top_p: float | None, new: int = 1, seeds: Iterable[int | None] = ()
) -> None:
    """Raise ValueError for a setting that is not of its type, or that is out of its range."""
    all_tokens, whole = ", or None for all tokens", "an integer of at least 1"
    settings = [
        ("temperature", temperature, Real, 0, 100, "a number from 0 (greedy) to 100: 0.7 to 0.9 is a good start"),
        ("top_k", top_k, Integral, 1, math.inf, whole + all_tokens),
        ("top_p", top_p, Real, math.nextafter(0, 1), 1, "a number above 0 and at most 1" + all_tokens),
        ("max_new_tokens", new, Integral, 1, math.inf, f"{whole}, such as {NEW_TOKENS}"),
        *(("seed", seed, Integral, -(2**63), 2**64 - 1, "an integer of 64 bits, or None for chance") for seed in seeds),
    ]
    for name, value, kind, low, high, needed in settings:
        is_valid = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
        if not is_valid and not (value is None and "None" in needed):
            raise ValueError(f"{name} is {value!r}; it must be {needed}")


def sample(probabilities: Tensor, points: Tensor) -> Tensor:
    """Return one id (B,) per row of `probabilities` (B, V). `points` (B,) are random float64 numbers from 0 to 1."""
    cumulative = probabilities.double().cumsum(-1)
    # The first cumulative sum above the point. A token with probability 0 adds nothing, so it is never the first.
    return torch.searchsorted(cumulative, points[:, None] * cumulative[:, -1:], right=True)[:, 0]


def context_window(ids: list[int], max_len: int) -> list[int]:
    """Return the last ids, which the model reads: all of them up to max_len. After that, half are dropped at a time.

    So the model reads each token twice at most. The probabilities are those of the window, read without a cache.
    """
    half = max(1, max_len // 2)
    return ids[math.ceil(max(0, len(ids) - max_len) / half) * half :]


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise ValueError if there are no ids or if one of them is not in the vocabulary."""
    if not ids or not 0 <= min(ids) <= max(ids) < vocab_size:
        needed = f"at least one id, each from 0 to {vocab_size - 1}"
        raise ValueError(f"a prompt needs {needed}; got {ids[:8]}: is this the model's tokenizer?")


@torch.inference_mode()
def stream_batch(
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
    """Continue several prompts at once. Yield the next token id of each row, or None if the row has finished.

    Each row gets up to `max_new_tokens` ids and finishes before `stop_id`. With the same seed, it gets the same ids in
    every batch. The model reads the `context_window` of each row. Raises ValueError for settings out of range, and as
    `check_ids` does.
    """
    _check_sampling(temperature, top_k, top_p, max_new_tokens, seeds)
    if len(seeds) != len(prompts):
        raise ValueError(f"there are {len(seeds)} seeds for {len(prompts)} prompts; each prompt needs one, or None")
    config, device = model.config, model.tok_emb.weight.device
    sequences = [list(prompt) for prompt in prompts]
    for ids in sequences:
        check_ids(ids, config.vocab_size)
    generators = [None if seed is None else torch.Generator().manual_seed(int(seed)) for seed in seeds]
    active = set(range(len(sequences)))  # rows that have not finished
    rows, room = [], 0  # rows in the cache, and how many more tokens it can read
    for step in range(max_new_tokens):
        if step % _POINTS == 0:
            drawn = [torch.rand(_POINTS, generator=generator, dtype=torch.float64) for generator in generators]
            points = torch.stack(drawn, dim=1)
        if not room or len(active) <= len(rows) // 2:
            rows = sorted(active)
            windows = [context_window(sequences[row], config.max_len) for row in rows]
            longest = max(map(len, windows))
            cache = KVCache(model, [len(ids) for ids in windows], is_static=has_cuda_graphs(device))
            read_and_sample = partial(_read_and_sample, model, cache, (temperature, top_k, top_p))
            read, room = GraphedCall(read_and_sample, device), config.max_len - longest
            inputs = torch.tensor([ids + [0] * (longest - len(ids)) for ids in windows], device=device)
            (ids,) = read_and_sample(inputs, points[step % _POINTS, rows])
        else:
            (ids,) = read(ids[:, None], points[step % _POINTS, rows].to(ids.device))
            room -= 1
        new: list[int | None] = [None] * len(sequences)
        for row, next_id in zip(rows, ids.tolist(), strict=True):
            if next_id == stop_id:
                active.discard(row)
            if row in active:
                sequences[row].append(next_id)
                new[row] = next_id
        if not active:
            return
        yield new


def _read_and_sample(
    model: GPTMini, cache: KVCache, filters: tuple[float, int | None, float | None], ids: Tensor, points: Tensor
) -> tuple[Tensor]:
    """Read ids (B, T) and return the next id of each row, (B,), without waiting for a GPU."""
    logits, _ = model(ids.to(cache.keys.device), cache=cache)
    logits = logits[:, -1] if logits.is_cuda else logits[:, -1].cpu()  # Apple's GPU has no float64
    return (sample(next_token_probabilities(logits, *filters), points.to(logits.device)),)


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
    """Yield the ids that continue one prompt, as `stream_batch` does for several."""
    filters = (temperature, top_k, top_p)
    for (next_id,) in stream_batch(model, [ids], max_new_tokens, *filters, seeds=[seed], stop_id=stop_id):
        yield next_id


def generate_batch(
    model: GPTMini,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int = NEW_TOKENS,
    temperature: float = TEMPERATURE,
    top_k: int | None = TOP_K,
    top_p: float | None = None,
    seeds: Sequence[int | None] | None = None,
) -> list[Row]:
    """Generate one story for each prompt, all at once. Return rows as in samples.jsonl, in the order of the prompts.

    A row has the prompt, the story (prompt included), whether the model `ended` it, and the settings. An empty prompt
    starts like every story, after `<|endoftext|>`. Spaces at the end of a prompt are removed, see `encode_prompt`.
    """
    prompts = [prompt.rstrip(" ") for prompt in prompts]
    seeds = [None] * len(prompts) if seeds is None else seeds
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    steps = list(stream_batch(model, ids, max_new_tokens, **filters, seeds=seeds, stop_id=eos_id(tokenizer)))
    rows = []
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        new = [step[row] for step in steps if step[row] is not None]
        story = prompt + decode_continuation(tokenizer, ids[row] + new, len(ids[row]))
        generated = {"prompt": prompt, "story": story, "ended": len(new) < max_new_tokens}
        rows.append(generated | filters | {"seed": seed, "max_new_tokens": max_new_tokens})
    return rows


def generate(model: GPTMini, tokenizer: Tokenizer, prompt: str, *args, seed: int | None = None, **settings) -> str:
    """Generate one story with the settings of `generate_batch`. Return its text, prompt included."""
    return generate_batch(model, tokenizer, [prompt], *args, seeds=[seed], **settings)[0]["story"]


def generate_samples(model: GPTMini, tokenizer: Tokenizer, max_new_tokens: int, prompts: Sequence[str]) -> list[Row]:
    """Generate the ten stories that a run keeps. It takes the prompts in turn and the seeds 0 to 9."""
    return generate_batch(model, tokenizer, list(islice(cycle(prompts), 10)), max_new_tokens, seeds=range(10))
