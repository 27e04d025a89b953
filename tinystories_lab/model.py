"""The network: a decoder-only transformer with RMSNorm, RoPE and SwiGLU, small enough to read in one sitting.

Shapes below: B sequences, T tokens, C = d_model, H heads of D = C / H, V = vocab_size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinystories_lab.attention import KVCache, apply_rope, causal_attention, rope_tables

INIT_STD = 0.02
# In the loss, whose logits are all that is held: 33 and 262 MB for 8,000 tokens in float32. A GPU wants large products.
_TOKENS_AT_ONCE = {"cpu": 1_024, "gpu": 8_192}


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPTMini; the defaults are the chapter's, 9,952,320 parameters."""

    vocab_size: int = 8_000
    n_layer: int = 6
    n_head: int = 8
    d_model: int = 320
    max_len: int = 512
    hidden: int | None = None  # width of the SwiGLU, where it is not the usual: see d_hidden
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0
    tied: bool = True  # the embedding is also the output head

    def __post_init__(self) -> None:
        if min(value for value in vars(self).values() if type(value) is int) < 1:
            raise ValueError(f"every size in {self} must be at least 1")
        if self.d_model % self.n_head or self.d_model // self.n_head % 2:
            raise ValueError(f"d_model {self.d_model} over n_head {self.n_head} must be even: RoPE turns pairs")

    @property
    def d_hidden(self) -> int:
        """Width of the SwiGLU; the usual is 8/3 of d_model, up to a multiple of 8: three matrices as large as two of four times d_model."""
        return self.hidden or math.ceil(8 * self.d_model / 3 / 8) * 8


class _Attention(nn.Module):
    """Causal self-attention; positions enter as rotations of queries and keys."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        # The tables are float32; under autocast the products would be too, and attention wants one dtype.
        q, k = apply_rope(q, cos, sin).type_as(v), apply_rope(k, cos, sin).type_as(v)
        return self.out(attend(q, k, v).transpose(1, 2).reshape(B, T, C))


class _SwiGLU(nn.Module):
    """The feed-forward part: a gated hidden layer (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_hidden, bias=False)
        self.up = nn.Linear(config.d_model, config.d_hidden, bias=False)
        self.down = nn.Linear(config.d_hidden, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class _Block(nn.Module):
    """One layer; pre-norm, so the residual stream runs through untouched."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = _Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = _SwiGLU(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, attend)
        return x + self.feed_forward(self.feed_forward_norm(x))


def _summed_loss(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies of tokens: x (N, C), head (V, C), targets (N)."""
    return F.cross_entropy(F.linear(x, head).float(), targets, reduction="sum")


class GPTMini(nn.Module):
    """The language model: ids in, logits over the next token out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.d_model)
        self.head = None if config.tied else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        cos, sin = rope_tables(config.max_len, config.d_model // config.n_head, config.rope_base)
        # Not persistent: they follow from the config, so a checkpoint need not hold them.
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._draw_weights()

    @torch.no_grad()
    def _draw_weights(self) -> None:
        # The head shares the embedding's matrix: torch's default N(0, 1) there would start the loss near 300.
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue  # norms start at 1
            # Every layer adds two terms to the residual stream; scaled so, their sum does not grow with depth (GPT-2).
            adds_to_residual = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            terms = 2 * self.config.n_layer if adds_to_residual else 1
            nn.init.normal_(parameter, std=INIT_STD / math.sqrt(terms))

    def forward(
        self, ids: Tensor, targets: Tensor | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits (B, T, V) for ids (B, T) int64, and no loss.

        With targets (B, T) the mean cross-entropy in nats a token, and no logits: they would be most of the memory. With
        a cache, ids are the prompts or each row's next token, and the logits (B, 1, V) those after each row's last one.
        Raises ValueError when T is over max_len.
        """
        T = ids.shape[1]
        if self.config.max_len < T:
            raise ValueError(f"{T} tokens in a row; this model was built for at most max_len={self.config.max_len}")
        x = self.tok_emb(ids)  # (B, T, C)
        positions = slice(T) if cache is None else cache.positions(T)
        cos, sin = self.cos[positions], self.sin[positions]
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, causal_attention if cache is None else partial(cache.attend, layer))
        x = self.norm(x if cache is None else cache.last(x))
        head = (self.tok_emb if self.head is None else self.head).weight  # (V, C)
        if targets is None:
            return F.linear(x, head), None
        at_once = _TOKENS_AT_ONCE["cpu" if x.device.type == "cpu" else "gpu"]
        parts = zip(x.flatten(0, 1).split(at_once), targets.flatten().split(at_once), strict=True)
        total = torch.zeros((), device=x.device)
        for part, wanted in parts:  # each part's logits are made again for the gradient, and not kept till then
            total = total + checkpoint(_summed_loss, part, head, wanted, use_reentrant=False, preserve_rng_state=False)
        return None, total / targets.numel()

    def new_cache(self, lengths: Sequence[int]) -> KVCache:
        """An empty cache for rows with prompts of so many tokens."""
        config = self.config
        shape = (len(lengths), config.n_head, config.max_len, config.d_model // config.n_head)
        return KVCache(config.n_layer, shape, lengths, self.tok_emb.weight.device)

    def count_parameters(self) -> int:
        """Number of trainable values; the shared embedding counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


def count_parameters(config: GPTConfig) -> int:
    """How many values a model of this shape learns, counted on the real network without memory for its weights."""
    with torch.device("meta"):
        return GPTMini(config).count_parameters()
