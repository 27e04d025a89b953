"""The chapter's way, written from its description alone. The project is measured against it."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn


def encode_to_bin(path: Path, stories: list[str], tokenizer: Tokenizer) -> None:
    """Encode story after story into one list of ids, which becomes an array at the end."""
    ids = []
    for story in stories:
        ids.extend(tokenizer.encode(story).ids)
        ids.append(0)
    np.array(ids, dtype=np.uint16).tofile(path)


class Loader:
    """A loader that copies and converts every sequence of a batch twice: once as x, once as y."""

    def __init__(self, path: Path, batch_size: int, seq_len: int) -> None:
        self.tokens = np.memmap(path, np.uint16, mode="r")
        self.batch_size, self.seq_len = batch_size, seq_len

    def batch(self) -> tuple[Tensor, Tensor]:
        starts, n = np.random.randint(0, len(self.tokens) - self.seq_len - 1, self.batch_size), self.seq_len
        x = [torch.from_numpy(self.tokens[i : i + n].astype(np.int64)) for i in starts]
        y = [torch.from_numpy(self.tokens[i + 1 : i + n + 1].astype(np.int64)) for i in starts]
        return torch.stack(x), torch.stack(y)


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of neighbours: (0, 1), (2, 3), ..."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Block(nn.Module):
    """Separate projections, rotary position embeddings, SwiGLU."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = Norm(width), Norm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x.shape
        h = self.norm_1(x)
        q, k, v = (part(h).view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(
            rotate(q, cos, sin).type_as(v), rotate(k, cos, sin).type_as(v), v, is_causal=True
        )
        x = x + self.o(y.transpose(1, 2).reshape(B, T, C))
        h = self.norm_2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    """Six layers with eight heads and a width of 320. llama2.c trains a model of this form."""

    def __init__(self, vocab_size=8_000, layers=6, heads=8, width=320, hidden=856, max_len=512) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm, self.max_len = Norm(width), max_len
        frequencies = 10_000 ** -(torch.arange(0, width // heads, 2) / (width // heads))
        angles = torch.outer(torch.arange(max_len).float(), frequencies)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x, T = self.embedding(ids), ids.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:T], self.sin[:T])
        logits = F.linear(self.norm(x), self.embedding.weight)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.reshape(-1))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    decayed = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in name)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), eps=1e-8)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, dtype: torch.dtype) -> float:
    """Forward, backward, clip, update. Reading the loss waits for the device at every step."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
        loss = model(x.to(device), y.to(device))[1]
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def generate(model: nn.Module, ids: list[int], count: int):
    """Yield token ids without a KV cache: each token needs a forward pass over the whole context."""
    for _ in range(count):
        logits = model(torch.tensor([ids[-model.max_len :]]))[0][0, -1] / 0.8
        kept = torch.topk(logits, 50)
        ids = [*ids, kept.indices[torch.multinomial(torch.softmax(kept.values, -1), 1)].item()]
        yield ids[-1]


class GPT2(nn.Module):
    """The form that nanoGPT trains: learned positions, LayerNorm, one projection for q, k and v, and a GELU MLP."""

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
            self.qkv, self.o = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
            self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            B, T, C = x.shape
            parts = self.qkv(self.norm_1(x)).split(C, dim=2)
            q, k, v = (part.view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in parts)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.o(y.transpose(1, 2).reshape(B, T, C))
            return x + self.down(F.gelu(self.up(self.norm_2(x))))

    def __init__(self, vocab_size=8_000, layers=6, heads=8, width=320, max_len=512) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(max_len, width)
        self.blocks = nn.ModuleList(self.Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(
                    parameter, std=0.02 / (math.sqrt(2 * layers) if name.endswith(("o.weight", "down.weight")) else 1)
                )

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return logits, F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))
