"""Logits to a token: what temperature, top_k and top_p make of the odds, and a draw from them."""

from collections.abc import Sequence

import torch
from torch import Tensor

TEMPERATURE, TOP_K = 0.8, 50  # the chapter's


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
