"""What changes from step to step, how it is kept, and how a run is found again."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tinystories_lab.checkpoint import load_checkpoint
from tinystories_lab.model import GPTConfig, GPTMini
from tinystories_lab.recipe import MAY_CHANGE, TrainConfig, lr_at, make_optimizer
from tinystories_lab.runlog import Row


@dataclass
class TrainState:
    """What changes from step to step, and so what a checkpoint holds; `step` is the next one to run.

    `forward` is how the model is called in training: itself, or compiled, or with its gradients averaged over processes.
    """

    model: GPTMini
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    tokenizer_sha256: str
    data_sha256: str  # of train.bin
    config: TrainConfig
    step: int = 0
    seconds: float = 0.0
    skipped_updates: int = 0
    row: Row | None = None  # the last one made; its evaluation comes after the save, so it may lack val_loss
    forward: Callable[..., Any] = field(init=False)
    whole: bool = True  # False while weights move: model, optimizer and step do not belong together

    def __post_init__(self) -> None:
        self.forward = self.model

    @classmethod
    def new(
        cls,
        model_config: GPTConfig,
        config: TrainConfig,
        tokenizer_sha256: str,
        data_sha256: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "TrainState":
        """The state before the first step; weights are drawn from config.seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = GPTMini(model_config).to(device)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        return cls(model, make_optimizer(model, config), scaler, tokenizer_sha256, data_sha256, config)

    def new_row(self, train_loss: float, grad_norm: float, seconds_per_step: float) -> Row:
        """The log row of the step just finished (see `train`), before its evaluation."""
        return {
            "step": self.step,
            "train_loss": train_loss,
            "lr": lr_at(self.step - 1, self.config),
            "grad_norm": grad_norm,
            "tokens": self.step * self.config.tokens_per_step,
            "tokens_per_second": round(self.config.tokens_per_step / seconds_per_step),
            "seconds": round(self.seconds, 2),
            "eta_seconds": round((self.config.total_steps - self.step) * seconds_per_step, 1),
            "skipped_updates": self.skipped_updates,
            "loss_scale": self.scaler.get_scale(),
        }

    def model_checkpoint(self) -> dict[str, Any]:
        """The model alone; the tensors are its own, not copies.

        `step` is the next one to run, counted from 0: as many are finished. Learning rate and batches follow from it, so
        neither is kept.
        """
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "model_config": asdict(self.model.config),
            "tokenizer_sha256": self.tokenizer_sha256,
        }

    def checkpoint(self, orderly: bool = False) -> dict[str, Any]:
        """What to resume from, the model too; `orderly` says that the session ends with it."""
        plain = {name: getattr(self, name) for name in ("data_sha256", "seconds", "skipped_updates", "row")}
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "train_config": asdict(self.config),
            "saved_at": time.time(),
            "orderly": orderly,
        }
        return self.model_checkpoint() | plain | state

    def load_same_run(self, path: Path) -> dict[str, Any]:
        """Read a checkpoint of this run. Raises ValueError when it is of another one, saying what differs."""
        checkpoint = load_checkpoint(path)
        # A choice that there was not yet when it was saved had the value that is now the default.
        there = asdict(GPTConfig()) | checkpoint["model_config"] | asdict(TrainConfig()) | checkpoint["train_config"]
        now = asdict(self.model.config) | asdict(self.config)
        for what, name in (("tokenizer", "tokenizer_sha256"), ("data", "data_sha256")):
            there[what], now[what] = checkpoint[name][:12], getattr(self, name)[:12]
        differing = [key for key in now if key not in MAY_CHANGE and there.get(key) != now[key]]
        if differing:
            values = "; ".join(f"{key} {there.get(key)} there, {now[key]} now" for key in differing)
            raise ValueError(
                f"{path} is of another run ({values}): take another run name, or move the old run aside (`--fresh` in "
                "the shell, `move_aside(lab)` in a notebook)"
            )
        return checkpoint

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint that `load_same_run` has read."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if checkpoint["scaler"]:  # empty when the last session needed no loss scaling: an A100 then, a T4 now
            self.scaler.load_state_dict(checkpoint["scaler"])
        torch.set_rng_state(checkpoint["torch_rng"])
        for name in ("step", "seconds", "skipped_updates", "row"):
            setattr(self, name, checkpoint[name])


def resume_sentence(checkpoint: dict[str, Any], config: TrainConfig, logged_step: int, behind: bool) -> str:
    """Where a run goes on, how old that is, and how many steps have to be run again at most.

    `behind` says that the save or copy of a later step may have been under way.
    """
    step, seconds = checkpoint["step"], time.time() - checkpoint["saved_at"]
    ago = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    if seconds >= 7_200:
        ago = f"{seconds / 3_600:.0f} hours"
    next_save = config.next_save(step)
    if behind:
        next_save = config.next_save(next_save)
    lost = 0 if checkpoint["orderly"] else max(next_save, logged_step) - step
    return f"resumed at step {step:,}, saved {ago} ago, {lost:,} steps lost at most"
