"""One step: what changes from step to step, and how one batch moves it."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tinystories_lab.checkpoint import load_checkpoint, save_checkpoint
from tinystories_lab.model import GPTConfig, GPTMini
from tinystories_lab.recipe import TrainConfig, lr_at, make_optimizer

MAX_SKIPPED_IN_A_ROW = 20  # the fp16 scale halves at each: a million times below where it began, none will help


@dataclass
class TrainState:
    """What changes from step to step, and so what a checkpoint holds; `step` is the next one to run."""

    model: GPTMini
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    tokenizer_sha256: str
    config: TrainConfig
    step: int = 0
    seconds: float = 0.0
    skipped_updates: int = 0

    @classmethod
    def new(
        cls, model_config: GPTConfig, config: TrainConfig, fingerprint: str, device: torch.device, dtype: torch.dtype
    ) -> "TrainState":
        """The state before the first step; weights are drawn from config.seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = GPTMini(model_config).to(device)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        return cls(model, make_optimizer(model, config), scaler, fingerprint, config)

    def save(self, path: Path) -> None:
        plain = {"seconds": self.seconds, "skipped_updates": self.skipped_updates, "train_config": asdict(self.config)}
        state = (self.model, self.optimizer, self.scaler)
        save_checkpoint(path, *state, step=self.step, tokenizer_sha256=self.tokenizer_sha256, **plain)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint. Raises ValueError when it is of another model or tokenizer."""
        checkpoint = load_checkpoint(path)
        there = checkpoint["model_config"] | {"tokenizer": checkpoint["tokenizer_sha256"][:12]}
        now = asdict(self.model.config) | {"tokenizer": self.tokenizer_sha256[:12]}
        if differing := [f"{key} {there[key]} there, {now[key]} now" for key in now if there[key] != now[key]]:
            raise ValueError(
                f"{path} is of another run ({'; '.join(differing)}): take another run name, or move that folder away"
            )
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if checkpoint["scaler"]:  # empty when the last session needed no loss scaling: an A100 then, a T4 now
            self.scaler.load_state_dict(checkpoint["scaler"])
        torch.set_rng_state(checkpoint["torch_rng"])
        self.step, self.seconds, self.skipped_updates = (
            checkpoint[key] for key in ("step", "seconds", "skipped_updates")
        )


def take_step(
    state: TrainState, batch: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Move the weights by one batch; returns its mean loss, the gradient norm before clipping, and the updates skipped.

    Under float16 an overflow makes the scaler skip the update and halve its scale: the same step is tried again, so that
    neither schedule nor data moves without the weights. Raises FloatingPointError when no scale helps.
    """
    model, optimizer, scaler, config = state.model, state.optimizer, state.scaler, state.config
    device = model.tok_emb.weight.device
    x, y = (part.to(device, non_blocking=True) for part in batch)
    for group in optimizer.param_groups:
        group["lr"] = lr_at(state.step, config)
    for skipped in range(MAX_SKIPPED_IN_A_ROW):
        mean_loss = torch.zeros((), device=device)
        for micro_x, micro_y in zip(x.chunk(config.micro_batches), y.chunk(config.micro_batches), strict=True):
            with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
                loss = model(micro_x, micro_y)[1] / config.micro_batches
            scaler.scale(loss).backward()
            mean_loss += loss.detach()
        scaler.unscale_(optimizer)  # before clipping, or the limit would apply to scaled gradients
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if scaler.get_scale() >= scale:  # a smaller scale is the only sign of a skipped update
            return mean_loss, grad_norm, skipped
    raise FloatingPointError(
        f"step {state.step + 1}: the gradients overflow float16 at every loss scale down to {scaler.get_scale():g}: lower peak_lr, or use bfloat16"
    )
