"""The settings of a training run with their ranges; learning rate and sequence length as functions of the step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args

# A resumed run may change when it logs, evaluates and saves, how it splits a batch, and how long its schedule is.
RESUMABLE_CHANGES = {"grad_accum_steps", "total_steps", "log_every", "eval_every", "eval_batches", "save_every"}
RESUMABLE_CHANGES |= {"save_minutes", "keep_every"}
_OLD_NAMES = {  # up to version 1.0: old checkpoints and config.yaml files have them
    "micro_batches": "grad_accum_steps",
    "clip_norm": "grad_clip",
    "matrix_lr": "muon_lr",
    "first_seq_len": "seq_len_start",
    "seq_warmup": "seq_len_warmup_fraction",
}
_RANGES = dict.fromkeys(("batch_size", "seq_len", "grad_accum_steps", "seq_len_start"), (1, 2**20))
_RANGES |= dict.fromkeys(
    ("total_steps", "log_every", "eval_every", "eval_batches", "save_every", "keep_every"), (1, 10**9)
)
_RANGES |= dict.fromkeys(("peak_lr", "muon_lr"), (1e-9, 10.0)) | dict.fromkeys(("beta1", "beta2"), (0.0, 0.99999))
_RANGES |= {"warmup_steps": (0, 10**9), "seed": (0, 2**63 - 1), "grad_clip": (1e-6, 1e6), "save_minutes": (1e-6, 1e6)}
_RANGES |= {"final_lr_ratio": (0.0, 1.0), "weight_decay": (0.0, 1.0), "seq_len_warmup_fraction": (1e-6, 1.0)}
_RANGES |= {"eps": (1e-15, 1.0)}


def check_ranges(config: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise ValueError for a setting of a dataclass that is not of its type, or that is out of its range.

    Each number needs a range (smallest, largest). `None` is allowed where the annotation says so.
    """
    for setting in fields(config):
        name, value, types = setting.name, getattr(config, setting.name), get_args(setting.type) or (setting.type,)
        needed = {str: "a string", bool: "true or false"}.get(types[0])
        is_valid = isinstance(value, types)
        if types[0] in (int, float):
            low, high = ranges[name]
            kind, numbers = ("an integer", Integral) if types[0] is int else ("a number", Real)
            is_valid = isinstance(value, numbers) and not isinstance(value, bool) and low <= value <= high
            needed = f"{kind} from {low:,} to {high:,}"
        if not is_valid and not (value is None and NoneType in types):
            raise ValueError(f"{name} is {value!r}; it must be {needed or types[0].__name__}")


def check_seq_len(seq_len: int, max_len: int) -> None:
    """Raise ValueError if the model cannot read such long sequences."""
    if seq_len > max_len:
        found = f"seq_len is {seq_len}, but the model's max_len is {max_len}"
        raise ValueError(f"{found}: use a smaller seq_len or a larger max_len")


def from_stored(cls: type, values: Mapping[str, Any], old_names: Mapping[str, str]) -> Any:
    """Return a config with stored values, which may have old names. Raises ValueError for what it does not know."""
    current = {old_names.get(name, name): value for name, value in values.items()}
    if unknown := current.keys() - {setting.name for setting in fields(cls)}:
        raise ValueError(f"{cls.__name__} has no setting {', '.join(sorted(map(str, unknown)))}")
    return cls(**current)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. The defaults are the chapter's. Raises ValueError for a value out of range."""

    batch_size: int = 32  # sequences per step, over all micro-batches and processes
    seq_len: int = 512  # tokens per sequence
    grad_accum_steps: int = 1  # micro-batches per step: more of them need less memory and give the same result
    total_steps: int = 12_207  # 200M tokens at 16,384 per step
    warmup_steps: int = 200
    peak_lr: float = 6e-4
    final_lr_ratio: float = 0.1  # learning rate at the end, as a fraction of the peak
    weight_decay: float = 0.1  # on the layers' matrices only
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    grad_clip: float = 1.0  # largest norm of the gradient
    optimizer: str = "adamw"  # or for the layers' matrices "muon" or "normuon", and AdamW for everything else
    muon_lr: float = 0.01  # peak learning rate of Muon or NorMuon
    seq_len_start: int | None = None  # starting sequence length: it doubles in warm-up; tokens per step stay constant
    seq_len_warmup_fraction: float = 0.6  # fraction of the run after which sequences have their full length
    sampling: str = "random"  # windows at random places; "stories": each starts a story; "shuffle": each once per epoch
    seed: int = 0
    log_every: int = 50  # in steps
    eval_every: int = 500
    eval_batches: int = 20
    save_every: int = 500  # steps between two saves of last.pt; each evaluation saves it, too
    save_minutes: float = 5.0  # last.pt is also saved if this many minutes have passed since the last save
    keep_every: int = 1_000  # steps between two kept checkpoints, step_NNNNN.pt

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        for name, choices in (
            ("optimizer", ("adamw", "muon", "normuon")),
            ("sampling", ("random", "shuffle", "stories")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        if self.warmup_steps >= self.total_steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be below total_steps {self.total_steps}")
        if self.batch_size % self.grad_accum_steps:
            needed = f"a multiple of grad_accum_steps {self.grad_accum_steps}"
            raise ValueError(f"batch_size is {self.batch_size}; it must be {needed}")
        start = self.seq_len_start
        if start is not None and self.seq_len not in (start << doublings for doublings in range(16)):
            raise ValueError(f"seq_len_start is {start}; doubled a few times, it must give seq_len {self.seq_len}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Return the config with these stored values. They may have older names, and missing ones get the default."""
        return from_stored(cls, values, _OLD_NAMES)

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one step's batch, over all micro-batches and processes."""
        return self.batch_size * self.seq_len

    def is_evaluated(self, step: int) -> bool:
        """Return whether the validation loss is due after `step` steps."""
        return step % self.eval_every == 0 or step == self.total_steps

    def is_logged(self, step: int) -> bool:
        """Return whether a log row is due after `step` steps."""
        return step == 1 or step % self.log_every == 0 or self.is_evaluated(step)

    def is_saved(self, step: int) -> bool:
        """Return whether last.pt is due after `step` steps. The minutes since the last save do not matter here."""
        return step % self.save_every == 0 or self.is_evaluated(step)


def lr_at(step: int, config: TrainConfig) -> float:
    """Return the learning rate of `step` (from 0): a linear warm-up to peak_lr, then a cosine to its final fraction."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / (config.warmup_steps + 1)
    progress = min(1.0, (step - config.warmup_steps) / (config.total_steps - config.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.peak_lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine)


def seq_len_at(step: int, config: TrainConfig) -> int:
    """Return the sequence length of `step` (from 0): seq_len_start, which doubles at even intervals up to seq_len."""
    start = config.seq_len_start or config.seq_len
    doublings = (config.seq_len // start).bit_length() - 1
    progress = min(1.0, step / (config.total_steps * config.seq_len_warmup_fraction))
    return start << int(progress * doublings)
