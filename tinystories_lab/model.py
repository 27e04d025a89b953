"""GPTMini: a decoder-only transformer with RMSNorm, RoPE, SwiGLU and a KV cache.

Shapes: B sequences, T tokens, C = d_model, H heads of D = C / H values, V = vocab_size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinystories_lab.config import check_ranges, from_stored

INIT_STD = 0.02
_QUERY_BLOCK = 128  # queries per block of attention on a CPU
_OLD_NAMES = {"tied": "tie_embeddings"}  # up to version 1.0
_RANGES = {"vocab_size": (1, 2**20), "n_layer": (1, 1_024), "n_head": (1, 1_024), "d_model": (2, 2**16)}
_RANGES |= {"max_len": (1, 2**20), "hidden": (1, 2**20), "norm_eps": (1e-12, 1.0), "rope_base": (1.0, 1e12)}


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPTMini. The defaults are the chapter's: 9,952,320 parameters."""

    vocab_size: int = 8_000
    n_layer: int = 6
    n_head: int = 8
    d_model: int = 320
    max_len: int = 512  # longest sequence, in tokens
    hidden: int | None = None  # width of the SwiGLU; None means the usual width, see d_hidden
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0
    tie_embeddings: bool = True  # the output head shares the embedding's matrix

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.d_model % self.n_head or self.d_model // self.n_head % 2:
            raise ValueError(f"d_model is {self.d_model}; RoPE needs an even multiple of n_head {self.n_head}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GPTConfig":
        """Return the config with these stored values. They may have older names, and missing ones get the default."""
        return from_stored(cls, values, _OLD_NAMES)

    @property
    def d_hidden(self) -> int:
        """Width of the SwiGLU: 8/3 of d_model, so that its three matrices are as large as two of width 4 * d_model."""
        return self.hidden or math.ceil(8 * self.d_model / 3 / 8) * 8


def rope_tables(max_len: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of each position's rotation angles, each (max_len, head_dim) (Su et al. 2021)."""
    frequencies = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(max_len, dtype=torch.float64), frequencies).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + D/2) of x (..., T, D) by its position's angle, in the layout of transformers' Llama."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention of each token over itself and all earlier tokens. Every tensor is (B, H, T, D)."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # PyTorch's CPU kernel also computes the masked half: its two passes took 2.7 times as long as these blocks.
    blocks = []
    for start in range(0, q.shape[-2], _QUERY_BLOCK):
        queries = q[..., start : start + _QUERY_BLOCK, :]
        end = start + queries.shape[-2]
        scores = queries @ k[..., :end, :].transpose(-1, -2) / math.sqrt(q.shape[-1])
        future = torch.ones(end - start, end, dtype=torch.bool).triu(start + 1)
        blocks.append(scores.float().masked_fill(future, -torch.inf).softmax(-1).type_as(v) @ v[..., :end, :])
    return torch.cat(blocks, dim=-2)


class KVCache:
    """Cached keys and values: each new token needs a forward pass over that token only.

    The model's first call with a cache reads the prompts (B, T). They have `lengths` tokens and are padded at the end.
    Each later call reads one token per row (B, 1). Each row counts its own positions, without the padding. If the cache
    `is_static`, all later calls run the same kernels on the same memory, as a CUDA graph needs.
    """

    def __init__(self, model: "GPTMini", lengths: Sequence[int], is_static: bool = False) -> None:
        config, weight = model.config, model.tok_emb.weight
        shape = (config.n_layer, len(lengths), config.n_head, config.max_len, config.d_model // config.n_head)
        # Zeros, not empty memory: masked values are multiplied by 0, and 0 times a leftover NaN would be NaN.
        self.keys, self.values = torch.zeros(2, *shape, dtype=weight.dtype, device=weight.device)
        self._is_static = is_static
        self._span = config.max_len if is_static else max(lengths)  # positions that attention reads
        self._lengths = torch.tensor(lengths, device=weight.device)
        self._rows = torch.arange(len(lengths), device=weight.device)
        self._is_first_call, self._mask = True, None

    def positions(self, T: int) -> slice | Tensor:
        """Return the positions of the tokens about to be read, as an index into the tables of `rope_tables`."""
        if self._is_first_call:
            return slice(T)
        self._span += not self._is_static
        if self._is_static or len(self._rows) > 1:  # (B, 1, 1, span)
            self._mask = (torch.arange(self._span, device=self._rows.device) <= self._lengths[:, None])[:, None, None]
        return self._lengths[:, None, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store a layer's new keys and values. Return the attention of the new tokens over all tokens of their row."""
        keys, values = self.keys[layer], self.values[layer]
        if self._is_first_call:
            keys[:, :, : k.shape[2]], values[:, :, : k.shape[2]] = k, v
            return causal_attention(q, k, v)
        keys[self._rows, :, self._lengths], values[self._rows, :, self._lengths] = k[:, :, 0], v[:, :, 0]
        keys, values = keys[:, :, : self._span], values[:, :, : self._span]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self._mask)

    def last(self, x: Tensor) -> Tensor:
        """Return the vectors (B, 1, C) of each row's last token in x (B, T, C). The model calls it after its layers."""
        if self._is_first_call:
            self._is_first_call = False
            return x[self._rows, self._lengths - 1][:, None]
        self._lengths += 1
        return x


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T, as F.linear does. One token on a CPU takes two cores, if the weight is column-major."""
    out, width = weight.shape
    if weight.stride(0) != 1 or x.numel() != width or width % 2:
        return F.linear(x, weight)
    # PyTorch reads the matrix of a single product with one core. Two products, of halves, take two.
    first, second = torch.bmm(x.view(2, 1, -1), weight.t().view(2, -1, out))
    return (first + second).view(*x.shape[:-1], out)


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight)


class _RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cpu or torch.is_grad_enabled() or x.dtype not in (torch.float32, torch.float64):
            return super().forward(x)
        # The same in fewer operations, which counts when a CPU reads one token at a time.
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


class _Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = _Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = _Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        qk, v = heads.permute(2, 0, 3, 1, 4).split((2, 1))  # (2, B, H, T, D) and (1, B, H, T, D)
        # The tables are float32, so under autocast the rotated vectors are too; attention needs one dtype.
        (q, k), v = apply_rope(qk, cos, sin).type_as(v), v.squeeze(0)
        return self.out(attend(q, k, v).transpose(1, 2).reshape(B, T, C))


class _SwiGLU(nn.Module):
    """The feed-forward network, with a gated hidden layer (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate = _Linear(config.d_model, config.d_hidden, bias=False)
        self.up = _Linear(config.d_model, config.d_hidden, bias=False)
        self.down = _Linear(config.d_hidden, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class _Block(nn.Module):
    """One layer. Its norms come before attention and feed-forward network, so the residual stream has no norm in it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = _RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = _Attention(config)
        self.feed_forward_norm = _RMSNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = _SwiGLU(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, attend)
        return x + self.feed_forward(self.feed_forward_norm(x))


class GPTMini(nn.Module):
    """The language model: token ids in, logits for the next token out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.d_model)
        self.head = None if config.tie_embeddings else _Linear(config.d_model, config.vocab_size, bias=False)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layer))
        self.norm = _RMSNorm(config.d_model, eps=config.norm_eps)
        cos, sin = rope_tables(config.max_len, config.d_model // config.n_head, config.rope_base)
        self.register_buffer("cos", cos, persistent=False)  # rebuilt from the config, so not in checkpoints
        self.register_buffer("sin", sin, persistent=False)
        # The head shares the embedding's matrix: with torch's default N(0, 1), the first loss would be near 300.
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # norms start at 1
                # Each layer adds two terms to the residual stream. This scale keeps their sum equal at any depth.
                adds_to_residual = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
                terms = 2 * config.n_layer if adds_to_residual else 1
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(terms))

    def forward(self, ids: Tensor, targets: Tensor | None = None, cache: KVCache | None = None) -> tuple:
        """Return (logits, None) for ids (B, T) int64, or (None, loss) if targets (B, T) are given.

        Logits are (B, T, V). The loss is the mean cross-entropy in nats per token. With a cache, ids are the prompts or
        each row's next token; the logits (B, 1, V) are for the token after it. Raises ValueError if T exceeds max_len.
        """
        T = ids.shape[1]
        if self.config.max_len < T:
            raise ValueError(f"the sequence has {T} tokens; this model accepts at most max_len={self.config.max_len}")
        x = self.tok_emb(ids)  # (B, T, C)
        positions = slice(T) if cache is None else cache.positions(T)
        cos, sin = self.cos[positions], self.sin[positions]
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, causal_attention if cache is None else partial(cache.attend, layer))
        x = self.norm(x if cache is None else cache.last(x))
        head = (self.tok_emb if self.head is None else self.head).weight  # (V, C)
        if targets is None:
            return _linear(x, head), None
        # All logits at once: computing some at a time saves memory, but a compiled model could not be cached on disk.
        return None, F.cross_entropy(F.linear(x, head).float().flatten(0, 1), targets.flatten())

    def count_parameters(self) -> int:
        """Return the number of trainable values. A shared embedding counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


def new_model(config: GPTConfig, seed: int = 0) -> GPTMini:
    """Return an untrained model. Its weights depend on `seed` only, and the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTMini(config)


def count_parameters(config: GPTConfig) -> int:
    """Return how many parameters a model of this shape has, without allocating memory for them."""
    with torch.device("meta"):
        return GPTMini(config).count_parameters()
