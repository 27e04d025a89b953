"""What a token sees of the tokens before it: their positions as rotations, the causal mask, and a memory of what was read.

Shapes: B sequences, H heads, T tokens of D values.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_QUERIES_AT_ONCE = 128  # on a CPU


def rope_tables(max_len: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every (position, pair) angle, each (max_len, head_dim)."""
    frequencies = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(max_len, dtype=torch.float64), frequencies).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + D/2) of x (..., T, D) by its position's angle; the layout is that of Llama in transformers."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention in which a token sees itself and what came before; all (B, H, T, D)."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # PyTorch's kernel for CPUs computes the masked half as well: with its backward pass it took 2.7 times as long as this.
    parts = []
    for start in range(0, q.shape[-2], _QUERIES_AT_ONCE):
        queries = q[..., start : start + _QUERIES_AT_ONCE, :]
        end = start + queries.shape[-2]
        scores = queries @ k[..., :end, :].transpose(-1, -2) / math.sqrt(q.shape[-1])
        later = torch.ones(end - start, end, dtype=torch.bool).triu(start + 1)
        parts.append(scores.float().masked_fill(later, -torch.inf).softmax(-1).type_as(v) @ v[..., :end, :])
    return torch.cat(parts, dim=-2)


class KVCache:
    """Keys and values of all that was read, with which a next token costs one pass over one token.

    The model's first call with it reads prompts of `lengths` tokens, (B, T) and padded at the end to the longest; every
    further call reads one token a row, (B, 1), up to max_len in all. Each row stands at its own position: what other rows
    or the padding hold does not count.
    """

    def __init__(
        self, n_layer: int, shape: tuple[int, int, int, int], lengths: Sequence[int], device: torch.device
    ) -> None:
        """Room for `n_layer` layers of (B, H, max_len, D)."""
        # Zeros, not empty: what is masked counts 0 times, and 0 times a leftover NaN would be NaN.
        self.keys, self.values = torch.zeros(2, n_layer, *shape, device=device)
        self.longest = max(lengths)  # tokens read by the row that has read most
        self._lengths = torch.tensor(lengths, device=device)
        self._rows = torch.arange(len(lengths), device=device)
        self._prompts, self._seen = True, None

    def positions(self, T: int) -> slice | Tensor:
        """Where the tokens stand that are now to be read: an index into the tables of `rope_tables`."""
        if self._prompts:
            return slice(T)
        self.longest += 1
        if len(self._rows) > 1:  # (B, 1, 1, longest)
            self._seen = (torch.arange(self.longest, device=self._rows.device) <= self._lengths[:, None])[:, None, None]
        return self._lengths[:, None, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the tokens that are read over all that their rows have read; keeps their keys and values."""
        keys, values = self.keys[layer], self.values[layer]
        if self._prompts:
            keys[:, :, : k.shape[2]], values[:, :, : k.shape[2]] = k, v
            return causal_attention(q, k, v)
        keys[self._rows, :, self._lengths], values[self._rows, :, self._lengths] = k[:, :, 0], v[:, :, 0]
        keys, values = keys[:, :, : self.longest], values[:, :, : self.longest]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self._seen)

    def last(self, x: Tensor) -> Tensor:
        """The values (B, 1, C) of each row's last token in x (B, T, C), once all layers have read it."""
        if self._prompts:
            self._prompts = False
            return x[self._rows, self._lengths - 1][:, None]
        self._lengths += 1
        return x
