"""The recipe: every choice about training, what each step's learning rate and sequences are, and what moves which weights."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from tinystories_lab.model import GPTMini

# What a resumed run may change: when to look and to save, how to split a batch, and how long the schedule is.
MAY_CHANGE = {"micro_batches", "total_steps", "log_every", "eval_every", "eval_batches", "save_every"}
MAY_CHANGE |= {"save_minutes", "keep_every"}
_OPTIMIZERS = ("adamw", "muon")


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
    optimizer: str = "adamw"  # or "muon": that for the layers' matrices, AdamW for the rest
    matrix_lr: float = 0.01  # Muon's peak
    first_seq_len: int | None = None  # begin with sequences so short, as many tokens a step, and double them
    seq_warmup: float = 0.6  # until so much of the run is over
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
        if self.optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer is {self.optimizer!r}; it must be one of {_OPTIMIZERS}")
        if self.first_seq_len is not None and self.seq_len not in (self.first_seq_len << n for n in range(16)):
            raise ValueError(f"seq_len {self.seq_len} must be first_seq_len {self.first_seq_len} doubled some times")
        for what in ("log_every", "eval_every", "save_every", "keep_every"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} is {getattr(self, what)}; it must be at least 1 step")
        if not self.save_minutes > 0:
            raise ValueError(f"save_minutes is {self.save_minutes}; it must be above 0")

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch."""
        return self.batch_size * self.seq_len

    def is_evaluated(self, step: int) -> bool:
        """Whether validation loss is due after so many steps."""
        return step % self.eval_every == 0 or step == self.total_steps

    def is_logged(self, step: int) -> bool:
        """Whether a log row is due after so many steps."""
        return step == 1 or step % self.log_every == 0 or self.is_evaluated(step)

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


def seq_len_at(step: int, config: TrainConfig) -> int:
    """Tokens in a sequence of `step`: first_seq_len, doubled at even distances, and seq_len after `seq_warmup` of the run."""
    first = config.first_seq_len or config.seq_len
    doublings = (config.seq_len // first).bit_length() - 1
    share = step / (config.total_steps * config.seq_warmup) if doublings else 1
    return min(config.seq_len, first << int(share * doublings))


class _MuonWithAdamW(torch.optim.Optimizer):
    """PyTorch's Muon (Jordan et al. 2024) and its AdamW as one: one state to save, one step to skip or take."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._parts = muon, adamw
        self._share()

    def _share(self) -> None:
        muon, adamw = self._parts
        muon.param_groups, adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        muon.state = adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # which makes new groups and a new state
        self._share()

    def step(self) -> None:
        for part in self._parts:
            part.step()


def make_optimizer(model: GPTMini, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW in two groups: the layers' matrices with weight decay, norms and the tied embedding without; or Muon for the first.

    A group's `lr_ratio` is its learning rate over `lr_at`.
    """
    # By place, not by name: the chapter's `'embed' in name` misses a parameter called tok_emb.
    matrices = [p for p in model.blocks.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    betas, eps = (config.beta1, config.beta2), config.eps
    if config.optimizer == "muon":
        ratio = config.matrix_lr / config.peak_lr
        muon = torch.optim.Muon(
            [{"params": matrices, "lr_ratio": ratio}],
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",  # scaled to move a matrix of any shape as much as AdamW does
        )
        return _MuonWithAdamW(muon, torch.optim.AdamW(others, betas=betas, eps=eps, weight_decay=0.0, fused=True))
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)
