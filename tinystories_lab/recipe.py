"""The recipe: every choice about training, the learning rate of each step, and which weights decay."""

import math
from dataclasses import dataclass

import torch

from tinystories_lab.model import GPTMini

# What a resumed run may change: when to look and to save, how to split a batch, and how long the schedule is.
MAY_CHANGE = {"micro_batches", "total_steps", "log_every", "eval_every", "eval_batches", "save_every"}
MAY_CHANGE |= {"save_minutes", "keep_every"}


@dataclass(frozen=True)
class TrainConfig:
    """Every choice about training; the defaults are the chapter's."""

    batch_size: int = 32  # sequences a step, over all micro-batches
    seq_len: int = 512
    micro_batches: int = 1  # forward and backward passes a step: memory goes down, the result stays
    total_steps: int = 12_207  # 200M tokens at 16,384 a step
    warmup_steps: int = 200
    peak_lr: float = 6e-4
    final_lr_ratio: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 1.0
    sampling: str = "random"
    seed: int = 0
    log_every: int = 50
    eval_every: int = 500
    eval_batches: int = 20
    save_every: int = 500  # last.pt, and before every evaluation
    save_minutes: float = 5.0  # or when so long has passed since the last save: what a lost machine costs at most
    keep_every: int = 1_000  # step_NNNNN.pt

    def __post_init__(self) -> None:
        if self.micro_batches < 1 or self.batch_size % self.micro_batches:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of micro_batches {self.micro_batches}")
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must lie below total_steps {self.total_steps}")

        for what in ("log_every", "eval_every", "save_every", "keep_every"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} is {getattr(self, what)}; it must be at least 1 step")
        if not self.save_minutes > 0:
            raise ValueError(f"save_minutes is {self.save_minutes}; it must be above 0")

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    def next_save(self, step: int) -> int:
        """The first step after `step` at which last.pt is saved, if minutes do not come before it."""
        every = (self.save_every, self.eval_every)
        return min(self.total_steps, *((step // steps + 1) * steps for steps in every))


def lr_at(step: int, config: TrainConfig) -> float:
    """Learning rate of `step` (from 0): linear warm-up to the peak, then a cosine to `final_lr_ratio` of it.

    Step 0 already moves by peak_lr / (warmup_steps + 1); step `warmup_steps` is the peak; `total_steps` is the floor.
    """
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / (config.warmup_steps + 1)
    progress = min(1.0, (step - config.warmup_steps) / (config.total_steps - config.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.peak_lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine)


def make_optimizer(model: GPTMini, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in two groups: the layers' matrices with weight decay; norms and the tied embedding without."""
    # By identity, not by name: the chapter's `'embed' in name` misses a parameter called tok_emb.
    matrices = [p for p in model.parameters() if p.ndim >= 2 and p is not model.tok_emb.weight]
    others = [p for p in model.parameters() if p.ndim < 2 or p is model.tok_emb.weight]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=(config.beta1, config.beta2), eps=config.eps)
