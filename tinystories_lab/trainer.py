"""Steps: the training loop, as a generator of log rows that can stop anywhere and go on exactly there."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tinystories_lab.checkpoint import interrupts_wait, latest_checkpoint, save_checkpoint, step_checkpoints
from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.loader import BinLoader
from tinystories_lab.model import GPTConfig, GPTMini
from tinystories_lab.recipe import TrainConfig, lr_at
from tinystories_lab.runlog import Row, append_row
from tinystories_lab.step import TrainState, take_step
from tinystories_lab.tokenizer import load_tokenizer, save_tokenizer, tokenizer_sha256

KEPT_STEP_CHECKPOINTS = 2


@torch.inference_mode()
def evaluate(model: GPTMini, loader: BinLoader, batches: int, dtype: torch.dtype = torch.float32) -> float:
    """Mean loss in nats a token over the loader's first `batches` batches: the same windows at every call."""
    device = model.tok_emb.weight.device
    total = 0.0
    for step in range(batches):
        x, y = (part.to(device) for part in loader.batch(step))
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            total += model(x, y)[1].item()
    return total / batches


def train(
    run_dir: str | Path,
    data_dir: str | Path,
    model_config: GPTConfig,
    train_config: TrainConfig,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[Row]:
    """Train, or go on training, the run in `run_dir`; yields log rows and appends them to loss.jsonl.

    A row comes at step 1, every `log_every` steps, at each evaluation and at the end. It holds: step (finished so far),
    train_loss (nats a token on that step's batch, before its update), val_loss (when due, after it), lr, grad_norm,
    tokens (seen so far), tokens_per_second, seconds (of training, all sessions), eta_seconds, skipped_updates.
    `data_dir` holds train.bin, val.bin and tokenizer.json; the latter is copied beside the model.

    Leaving the loop in any way (break, exception, Ctrl-C) saves last.pt first, and the next call goes on exactly there.
    At the end final.pt holds the model alone. Raises ValueError or FileNotFoundError before the first step when data,
    model and run do not fit together; FloatingPointError when the loss is not finite, leaving last.pt as it was.
    """
    run_dir, data_dir, config = Path(run_dir), Path(data_dir), train_config
    device = torch.device(device) if device is not None else choose_device()[0]
    dtype = dtype if dtype is not None else choose_dtype(device)[0]
    if config.seq_len > model_config.max_len:
        raise ValueError(
            f"seq_len is {config.seq_len}, but the model's max_len is {model_config.max_len}: lower one or raise the other"
        )
    tokenizer = load_tokenizer(data_dir / "tokenizer.json")
    fingerprint = tokenizer_sha256(tokenizer)
    fits = {"vocab_size": model_config.vocab_size, "tokenizer_sha256": fingerprint}
    loader = BinLoader(data_dir / "train.bin", config.batch_size, config.seq_len, config.seed, config.sampling, **fits)
    held_out = BinLoader(data_dir / "val.bin", config.batch_size, config.seq_len, sampling="shuffle", **fits)
    eval_batches = max(1, min(config.eval_batches, held_out.windows // config.batch_size))

    state = TrainState.new(model_config, config, fingerprint, device, dtype)
    if resumed := latest_checkpoint(run_dir):
        state.restore(resumed)
    save_tokenizer(tokenizer, run_dir / "tokenizer.json")

    saved_step = state.step
    whole = True  # model, optimizer, step and log belong together
    steps_timed, seconds_timed = 0, 0.0
    try:
        while state.step < config.total_steps:
            with interrupts_wait():
                whole = False
                started = time.perf_counter()
                loss, grad_norm, skipped = take_step(state, loader.batch(state.step), dtype)
                state.step += 1
                last = state.step == config.total_steps
                eval_due = last or state.step % config.eval_every == 0
                save_due = state.step % config.save_every == 0
                keep_due = state.step % config.keep_every == 0
                row_due = eval_due or state.step == 1 or state.step % config.log_every == 0
                # Reading a value waits for the device, so only when it is needed.
                if (row_due or save_due or keep_due) and not math.isfinite(loss.item() + grad_norm.item()):
                    raise FloatingPointError(
                        f"at step {state.step} the loss is {loss.item()} and the gradient norm {grad_norm.item()}: the run "
                        f"diverged. last.pt still holds step {saved_step}; start another run with a lower peak_lr"
                    )
                steps_timed, seconds_timed = steps_timed + 1, seconds_timed + time.perf_counter() - started
                state.seconds += time.perf_counter() - started
                state.skipped_updates += skipped
                if row_due:
                    row = {
                        "step": state.step,
                        "train_loss": loss.item(),
                        "lr": lr_at(state.step - 1, config),
                        "grad_norm": grad_norm.item(),
                        "tokens": state.step * config.tokens_per_step,
                        "tokens_per_second": round(steps_timed * config.tokens_per_step / seconds_timed),
                        "seconds": round(state.seconds, 2),
                        "eta_seconds": round((config.total_steps - state.step) * seconds_timed / steps_timed, 1),
                        "skipped_updates": state.skipped_updates,
                    }
                    if eval_due:
                        row["val_loss"] = evaluate(state.model, held_out, eval_batches, dtype)
                    append_row(run_dir / "loss.jsonl", row)
                    steps_timed, seconds_timed = 0, 0.0
                if last:  # before last.pt says that all is done, and before the caller can leave at the last row
                    save_checkpoint(run_dir / "final.pt", state.model, step=state.step, tokenizer_sha256=fingerprint)
                if save_due:
                    state.save(run_dir / "last.pt")
                    saved_step = state.step
                if keep_due:
                    state.save(run_dir / f"step_{state.step:05d}.pt")
                    for old in step_checkpoints(run_dir)[KEPT_STEP_CHECKPOINTS:]:
                        old.unlink()
                whole = True
            if row_due:
                yield row
    finally:
        # The run may have diverged since the last look at a loss: that is not worth keeping.
        if whole and state.step > saved_step and math.isfinite(loss.item() + grad_norm.item()):
            state.save(run_dir / "last.pt")
    if not (run_dir / "final.pt").exists():  # lost since, or total_steps is now fewer than were run
        save_checkpoint(run_dir / "final.pt", state.model, step=state.step, tokenizer_sha256=fingerprint)
