"""The training loop: a generator of log rows that can stop at any step and resume exactly there."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinystories_lab.checkpoint import CheckpointWriter, latest_checkpoint, run_checkpoints
from tinystories_lab.config import RESUMABLE_CHANGES, TrainConfig, lr_at, seq_len_at
from tinystories_lab.device import (
    all_reduce_mean,
    any_rank,
    broadcast,
    choose_device,
    choose_dtype,
    compile_model,
    local_batch,
    rank,
    world_size,
    wrap_ddp,
)
from tinystories_lab.files import Row, append_row, read_log, sha256_of
from tinystories_lab.loader import BinLoader
from tinystories_lab.model import GPTConfig, GPTMini, new_model
from tinystories_lab.optim import make_optimizer, set_lr
from tinystories_lab.tokenizer import load_tokenizer, save_tokenizer, tokenizer_sha256

_MIN_LOSS_SCALE = 1.0  # float16 gradients that overflow even without scaling: a smaller scale will not help


@dataclass
class TrainState:
    """Everything that changes from step to step, which is what a checkpoint contains. `step` is the next one to run."""

    model: GPTMini
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # active in float16 only
    config: TrainConfig
    dtype: torch.dtype  # of the computation; weights are float32
    tokenizer_sha256: str = ""
    data_sha256: str = ""  # of train.bin
    step: int = 0
    seconds: float = 0.0  # of training, over all sessions
    skipped_updates: int = 0  # float16 updates that overflowed and were tried again
    row: Row | None = None  # the newest log row
    updating: bool = False  # true while the optimizer changes weights; after an error they may be half changed
    forward: Callable[..., Any] | None = None  # the model, possibly compiled and averaging gradients over ranks

    @classmethod
    def new(cls, model: GPTMini, config: TrainConfig, dtype: torch.dtype, **sha256: str) -> "TrainState":
        """Return the state before the first step. The model must be on its device already."""
        scaler = torch.amp.GradScaler(model.tok_emb.weight.device.type, enabled=dtype is torch.float16)
        return cls(model, make_optimizer(model, config), scaler, config, dtype, **sha256, forward=model)

    def model_checkpoint(self) -> dict[str, Any]:
        """Return the model alone, as in final.pt. The tensors are not copied."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "model_config": asdict(self.model.config),
            "tokenizer_sha256": self.tokenizer_sha256,
        }

    def checkpoint(self) -> dict[str, Any]:
        """Return everything needed to resume. Learning rate and batches follow from the step, so neither is stored."""
        return self.model_checkpoint() | {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "train_config": asdict(self.config),
            "data_sha256": self.data_sha256,
            "saved_at": time.time(),
            "seconds": self.seconds,
            "skipped_updates": self.skipped_updates,
            "row": self.row,
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Continue from a loaded checkpoint. Raises ValueError if it belongs to another run, saying what differs."""
        stored_model = GPTConfig.from_dict(checkpoint["model_config"])
        stored_config = TrainConfig.from_dict(checkpoint["train_config"])
        there, here = asdict(stored_model) | asdict(stored_config), asdict(self.model.config) | asdict(self.config)
        for name, key in (("tokenizer", "tokenizer_sha256"), ("data", "data_sha256")):
            there[name], here[name] = checkpoint[key][:12], getattr(self, key)[:12]
        differing = [name for name in here if name not in RESUMABLE_CHANGES and there[name] != here[name]]
        if differing:
            values = "; ".join(f"{name} {there[name]} there, {here[name]} here" for name in differing)
            advice = "or move the old run aside (`--fresh` in the shell, `move_aside(lab)` in a notebook)"
            raise ValueError(f"the checkpoint belongs to another run ({values}): use another run name, {advice}")
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if checkpoint["scaler"]:  # empty if the last session needed no loss scaling: an A100 then, a T4 now
            self.scaler.load_state_dict(checkpoint["scaler"])
        torch.set_rng_state(checkpoint["torch_rng"])
        for name in ("step", "seconds", "skipped_updates", "row"):
            setattr(self, name, checkpoint[name])


def train_step(state: TrainState, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """One optimizer step: update the weights with one batch and increase `state.step`.

    Returns the batch's mean loss and the gradient norm before clipping, as tensors on the device. If the GPU runs out of
    memory, the batch is split into twice as many micro-batches and tried again. Raises torch.OutOfMemoryError if that is
    not possible, and FloatingPointError if float16 gradients overflow at every loss scale.
    """
    while True:
        try:
            return _forward_backward_update(state, batch)
        except torch.OutOfMemoryError as error:
            state.optimizer.zero_grad()
            parts = state.config.grad_accum_steps
            size = f"{len(batch[0]) // parts} sequences of {batch[0].shape[1]} tokens"
            if world_size() > 1 or state.updating or state.config.batch_size % (2 * parts):
                raise torch.OutOfMemoryError(
                    f"step {state.step + 1}: the GPU has too little memory for {size}: restart the session, or raise "
                    f"grad_accum_steps (now {parts}), which needs less memory; the run resumes from its last save"
                ) from error
        # Outside the except block, because the error's traceback keeps tensors alive.
        state.config = replace(state.config, grad_accum_steps=2 * parts)
        torch.cuda.empty_cache()
        sentence = f"continuing with {2 * parts} micro-batches per step; the result stays the same"
        warnings.warn(f"the GPU has too little memory for {size}: {sentence}", stacklevel=2)


def _forward_backward_update(state: TrainState, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """One optimizer step, without out-of-memory handling.

    If float16 gradients overflow, the scaler skips the update and halves its scale. The same step is then tried again,
    so that schedule and data never advance without the weights.
    """
    model, optimizer, scaler = state.model, state.optimizer, state.scaler
    micro_batches = _split(batch, model, state.config.grad_accum_steps)
    updated = False
    while not updated:
        # forward and backward, once per micro-batch; ranks average their gradients in the last backward pass
        loss = torch.zeros((), device=model.tok_emb.weight.device)
        for number, (x, y) in enumerate(micro_batches, start=1):
            is_last = number == len(micro_batches)
            with nullcontext() if is_last else getattr(state.forward, "no_sync", nullcontext)():
                part = _loss(state.forward, x, y, state.dtype) / len(micro_batches)
                scaler.scale(part).backward()
                loss += part.detach()
        loss = all_reduce_mean(loss)
        # clip
        scaler.unscale_(optimizer)  # first: the limit applies to unscaled gradients
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), state.config.grad_clip)
        # step
        scale = scaler.get_scale()  # in float16 this waits for the device; otherwise it is a constant
        state.updating = True
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        updated = scaler.get_scale() >= scale  # a smaller scale is the only sign of a skipped update
        if not updated:
            state.skipped_updates += 1
            if scaler.get_scale() < _MIN_LOSS_SCALE:
                raise FloatingPointError(
                    f"step {state.step + 1}: the gradients overflow float16 at every loss scale (loss {loss.item():g}, "
                    f"{state.skipped_updates:,} skipped updates): lower peak_lr, or use a GPU with bfloat16 (A100, L4)"
                )
    state.step += 1
    state.updating = False
    return loss, grad_norm


def _loss(forward: Callable[..., tuple], x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast(x.device.type, dtype, enabled=dtype is not torch.float32):
        return forward(x, y)[1]


def _split(batch: tuple[Tensor, Tensor], model: GPTMini, parts: int) -> list[tuple[Tensor, ...]]:
    """Move a batch to the model's device and split it into micro-batches of x and y."""
    return list(zip(*(part.to(model.tok_emb.weight.device).chunk(parts) for part in batch), strict=True))


@torch.inference_mode()
def evaluate(
    model: GPTMini, loader: BinLoader, batches: int, dtype: torch.dtype = torch.float32, grad_accum_steps: int = 1
) -> float:
    """Return the mean loss in nats per token over the loader's first `batches` batches: the same windows every time."""
    total = torch.zeros((), device=model.tok_emb.weight.device)
    for step in range(batches):
        for x, y in _split(local_batch(loader.batch(step)), model, grad_accum_steps):
            total += _loss(model, x, y, dtype) / grad_accum_steps
    return all_reduce_mean(total).item() / batches


def train(
    run_dir: str | Path,
    data_dir: str | Path,
    model_config: GPTConfig,
    train_config: TrainConfig,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    after_save: Callable[[], None] = lambda: None,
    checkpoint: dict[str, Any] | None = None,
) -> Iterator[Row]:
    """Train the run in `run_dir`, or resume it; yield log rows and append them to loss.jsonl.

    `data_dir` has train.bin, val.bin and tokenizer.json, which is copied into the run folder. There is a row at step 1,
    every `log_every` steps, at each evaluation and at the end, with: step (steps finished), train_loss (nats per token
    on that step's batch, before its update), val_loss (at evaluations, after the update), lr, grad_norm, tokens (read so
    far), tokens_per_second, seconds (of training, over all sessions), eta_seconds, skipped_updates and loss_scale (both
    of float16), and resumed_from (in the first row after a resume).

    last.pt is saved every `save_every` steps, at each evaluation, after `save_minutes`, when `should_stop()` returns true
    (it is called once per step), and when the caller leaves the loop. The next call continues exactly there, or from
    `checkpoint` if it is given, a loaded one. A failed save is a warning, and training continues. An exception inside a
    step is not followed by a save. `after_save` is called after each save of last.pt. At the end final.pt has the model
    alone. Under torchrun every process calls this and trains on its part of each batch; rank 0 writes the files.

    Raises at the call, before anything is written: ValueError or FileNotFoundError if data, model and run do not fit
    together. Raises in the loop: FloatingPointError if the loss is not finite, leaving last.pt as it was;
    torch.OutOfMemoryError with advice; OSError if final.pt cannot be written.
    """
    run_dir, data_dir, config = Path(run_dir), Path(data_dir), train_config
    device = torch.device(device or choose_device()[0])
    dtype = dtype or choose_dtype(device)[0]
    if config.seq_len > model_config.max_len:
        raise ValueError(f"seq_len is {config.seq_len}; it must be at most the model's max_len {model_config.max_len}")
    if config.batch_size % (world_size() * config.grad_accum_steps):
        needed = f"a multiple of {world_size()} processes times grad_accum_steps {config.grad_accum_steps}"
        raise ValueError(f"batch_size is {config.batch_size}; it must be {needed}")
    tokenizer = load_tokenizer(data_dir / "tokenizer.json")
    sha256 = tokenizer_sha256(tokenizer)
    expected = {"vocab_size": model_config.vocab_size, "tokenizer_sha256": sha256, "device": device}
    loader = BinLoader(
        data_dir / "train.bin", config.batch_size, config.seq_len, config.seed, config.sampling, **expected
    )
    val_loader = BinLoader(data_dir / "val.bin", config.batch_size, config.seq_len, sampling="shuffle", **expected)
    model, data_sha256 = new_model(model_config, config.seed).to(device), sha256_of(data_dir / "train.bin")
    state = TrainState.new(model, config, dtype, tokenizer_sha256=sha256, data_sha256=data_sha256)
    if checkpoint is None and rank() == 0:
        _, checkpoint = latest_checkpoint(run_checkpoints(run_dir)) or (None, None)
    checkpoint = broadcast(checkpoint)
    if checkpoint:
        state.restore(checkpoint)
        minutes = max(0, time.time() - checkpoint["saved_at"]) / 60  # a clock may have been set back
        if state.step < config.total_steps:
            print(f"resumed at step {state.step:,}, saved {minutes:.0f} minutes ago")
    return _train_loop(state, loader, val_loader, tokenizer, run_dir, should_stop, after_save)


def _train_loop(state, loader, val_loader, tokenizer, run_dir, should_stop, after_save) -> Iterator[Row]:
    """The loop of `train`: learning rate, batch, forward, backward, clip, step, log, evaluate, save."""
    config, log, plain = state.config, _Log(run_dir / "loss.jsonl"), wrap_ddp(state.model)
    # Half a second per save is long for a GPU, whose checkpoints a thread writes, and short for a CPU.
    writer = CheckpointWriter(run_dir, state.step, loader.device.type == "cuda", after_save)
    if rank() == 0:
        save_tokenizer(tokenizer, run_dir / "tokenizer.json")
    first_step, seq_len, saved_at = state.step, None, time.monotonic()
    row_step, row_seconds = state.step, state.seconds  # of the newest row: the next tokens_per_second counts from it
    eval_batches = max(1, min(config.eval_batches, val_loader.windows // config.batch_size))
    flops = 6 * state.model.count_parameters() * config.total_steps * config.tokens_per_step

    def warm_up(forward: Callable[..., Any]) -> None:
        x, y = (part.chunk(config.grad_accum_steps)[0] for part in local_batch(loader.batch(state.step, seq_len)))
        _loss(forward, x, y, state.dtype).backward()
        state.optimizer.zero_grad()

    def finish_row(row: Row) -> Row:
        """Add the validation loss if it is due, and append the row to the log."""
        if config.is_evaluated(row["step"]) and row["step"] == state.step and "val_loss" not in row:
            row["val_loss"] = evaluate(
                state.model, val_loader, eval_batches, state.dtype, state.config.grad_accum_steps
            )
        log.append(row)
        return row

    try:
        # The last session was stopped before it evaluated, or a crash cut the row off the log.
        if state.row and log.lacks(state.row, evaluated=config.is_evaluated(state.step)):
            yield finish_row(state.row)

        while state.step < config.total_steps:
            started = time.perf_counter()

            # Learning rate, sequence length and batch are functions of the step.
            set_lr(state.optimizer, lr_at(state.step, config))
            if seq_len != seq_len_at(state.step, config):
                seq_len = seq_len_at(state.step, config)
                state.forward, seconds = compile_model(plain, loader.device, flops, warm_up)
                started += seconds
            batch = local_batch(loader.batch(state.step, seq_len))

            # Forward, backward, clip, step
            loss, grad_norm = train_step(state, batch)

            is_logged, is_kept = config.is_logged(state.step), state.step % config.keep_every == 0
            # Several ranks agree to stop at log steps, where they wait for the device in any case.
            stop = any_rank(should_stop()) if is_logged or world_size() == 1 else False
            is_saved = stop or config.is_saved(state.step) or time.monotonic() - saved_at > 60 * config.save_minutes
            if is_logged or is_kept or is_saved:
                _check_finite(state, loss, grad_norm)  # waits for the device
            state.seconds += time.perf_counter() - started

            # Log and evaluate. If a stop is requested, the next session does both.
            if is_logged:
                seconds_per_step = (state.seconds - row_seconds) / (state.step - row_step)
                state.row = _new_row(state, loss.item(), grad_norm.item(), seconds_per_step)
                state.row |= {"resumed_from": first_step} if first_step and row_step == first_step else {}
                row_step, row_seconds = state.step, state.seconds
                if not stop:
                    finish_row(state.row)

            # Save
            if state.step == config.total_steps:  # before last.pt says that the run is finished
                writer.save("final.pt", state.model_checkpoint())
            if is_saved:
                writer.save("last.pt", state.checkpoint())
                saved_at = time.monotonic()  # after a failure too: a full disk should not slow down every step
            if is_kept:
                writer.save(f"step_{state.step:05d}.pt", state.checkpoint())

            if stop:
                return
            if is_logged:
                yield state.row
    except GeneratorExit:  # the caller left the loop, which is always between two steps
        if writer.saved_step < state.step:
            writer.save("last.pt", state.checkpoint())
        raise
    finally:
        writer.wait()
    writer.finish(state.model_checkpoint())


def _check_finite(state: TrainState, loss: Tensor, grad_norm: Tensor) -> None:
    """Raise FloatingPointError if the run has diverged. Waits for the device.

    Except in float16, whose scaler skips such updates, the weights have become useless by now and are not saved.
    """
    if not math.isfinite(loss.item() + grad_norm.item()):
        before = f" (at step {state.row['step']:,} it was {state.row['train_loss']:.3f})" if state.row else ""
        raise FloatingPointError(
            f"at step {state.step:,} the loss is {loss.item():g} and the gradient norm {grad_norm.item():g}{before}: the run "
            "diverged. last.pt is left as it was; start another run with a lower peak_lr"
        )


def _new_row(state: TrainState, train_loss: float, grad_norm: float, seconds_per_step: float) -> Row:
    """Return the log row of the step that has just finished (see `train`), without its evaluation."""
    return {
        "step": state.step,
        "train_loss": train_loss,
        "lr": lr_at(state.step - 1, state.config),
        "grad_norm": grad_norm,
        "tokens": state.step * state.config.tokens_per_step,
        "tokens_per_second": round(state.config.tokens_per_step / seconds_per_step),
        "seconds": round(state.seconds, 2),
        "eta_seconds": round((state.config.total_steps - state.step) * seconds_per_step, 1),
        "skipped_updates": state.skipped_updates,
        "loss_scale": state.scaler.get_scale(),
    }


class _Log:
    """Appends rows to loss.jsonl. Rows that a full disk refuses are kept and written later. Only rank 0 writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._logged = {row["step"]: row for row in broadcast(read_log(path) if rank() == 0 else None)}
        self._waiting: list[Row] = []

    def lacks(self, row: Row, evaluated: bool) -> bool:
        """Whether the log of earlier sessions has no such row, or has it without the validation loss it should have."""
        logged = self._logged.get(row["step"], {})
        return not row.items() <= logged.items() or (evaluated and "val_loss" not in logged)

    def append(self, row: Row) -> None:
        if rank() != 0:
            return
        self._waiting.append(row)
        try:
            while self._waiting:
                append_row(self.path, self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            sentence = "its rows are kept for later, and training continues"
            warnings.warn(f"{self.path} could not be written ({error}): {sentence}", stacklevel=3)
