"""The training loop: a generator of log rows that can stop at any step and resume exactly there."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinystories_lab.checkpoint import (
    MODEL_KEYS,
    CheckpointWriter,
    latest_checkpoint,
    load_checkpoint,
    require_same_run,
    run_checkpoints,
    run_identity,
)
from tinystories_lab.config import TrainConfig, check_seq_len, lr_at, seq_len_at
from tinystories_lab.device import (
    GraphedCall,
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
from tinystories_lab.files import Row, append_row, aside, cached_sha256_of, read_log
from tinystories_lab.loader import BinLoader
from tinystories_lab.model import GPTConfig, GPTMini, new_model
from tinystories_lab.optim import make_optimizer, set_lr
from tinystories_lab.tokenizer import eos_id, load_tokenizer, save_tokenizer, tokenizer_sha256

_MIN_LOSS_SCALE = 1.0  # if float16 gradients overflow at this scale, a smaller scale will not help


@dataclass
class TrainState:
    """Everything that changes from step to step: the content of a checkpoint. `step` is the next step to run."""

    model: GPTMini
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # active in float16 only
    config: TrainConfig
    dtype: torch.dtype  # of the computation; weights are float32
    tokenizer_sha256: str = ""
    data_sha256: str = ""  # of train.bin
    step: int = 0
    seconds: float = 0.0  # of training, over all sessions
    skipped_updates: int = 0  # float16 updates that overflowed and were repeated
    row: Row | None = None  # the newest log row
    updating: bool = False  # whether the optimizer is changing weights: after an error, some may have changed
    forward: Callable[..., Any] | None = None  # the model, which may be compiled and may average gradients over ranks
    update: GraphedCall | None = None  # forward pass to update, if they may become a CUDA graph

    @classmethod
    def new(cls, model: GPTMini, config: TrainConfig, dtype: torch.dtype, **sha256: str) -> "TrainState":
        """Return the state before the first step. The model must already be on its device."""
        scaler = torch.amp.GradScaler(model.tok_emb.weight.device.type, enabled=dtype is torch.float16)
        return cls(model, make_optimizer(model, config, dtype), scaler, config, dtype, **sha256, forward=model)

    def model_checkpoint(self) -> dict[str, Any]:
        """Return the model alone, as in final.pt. Its tensors are not copies."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "model_config": asdict(self.model.config),
            "tokenizer_sha256": self.tokenizer_sha256,
            "train_config": asdict(self.config),
            "data_sha256": self.data_sha256,
        }

    def checkpoint(self) -> dict[str, Any]:
        """Return everything that a resume needs. Learning rate and batches follow from the step and are not stored."""
        return self.model_checkpoint() | {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "saved_at": time.time(),
            "seconds": self.seconds,
            "skipped_updates": self.skipped_updates,
            "row": self.row,
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Continue from a loaded checkpoint. Raises ValueError that says what differs if it belongs to another run."""
        require_same_run(run_identity(checkpoint), run_identity(self.model_checkpoint()), "the checkpoint")
        self.model.load_state_dict(checkpoint["model"])
        self.step = checkpoint["step"]
        if "optimizer" not in checkpoint:  # final.pt, from which nothing continues
            return
        try:
            self.optimizer.load_state_dict(self._with_own_settings(checkpoint["optimizer"]))
            if checkpoint["scaler"]:  # empty if the last session needed no loss scaling, as on an A100 before a T4
                self.scaler.load_state_dict(checkpoint["scaler"])
            torch.set_rng_state(checkpoint["torch_rng"])
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the checkpoint has no usable optimizer state ({error!r}): use an older one") from error
        for name in ("seconds", "skipped_updates", "row"):
            setattr(self, name, checkpoint[name])

    def _with_own_settings(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """Return a stored optimizer state with this session's settings, which depend on the device."""
        groups = zip(self.optimizer.state_dict()["param_groups"], optimizer["param_groups"], strict=True)
        return optimizer | {"param_groups": [here | {"params": there["params"]} for here, there in groups]}


def train_step(state: TrainState, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Update the weights with one batch: one optimizer step. Increase `state.step`.

    Returns the batch's mean loss and the gradient norm before clipping, as tensors on the device. If the GPU runs out
    of memory, the step is repeated with twice as many micro-batches. Raises torch.OutOfMemoryError if that is not
    possible, and FloatingPointError if float16 gradients overflow at every loss scale.
    """
    device = state.model.tok_emb.weight.device
    while True:
        try:
            if state.scaler.is_enabled() or world_size() > 1:  # they wait for the device
                results = _forward_backward_update(state, *batch)
            else:
                state.update = state.update or GraphedCall(partial(_forward_backward_update, state), device)
                results = state.update(*(part.to(device) for part in batch))
            state.step, state.updating = state.step + 1, False
            return results
        except torch.OutOfMemoryError as error:
            state.optimizer.zero_grad()
            parts, (rows, tokens) = state.config.grad_accum_steps, batch[0].shape
            found = f"the GPU has too little memory for {rows // parts} sequences of {tokens} tokens"
            if world_size() > 1 or state.updating or state.config.batch_size % (2 * parts):
                advice = f"restart the session, or raise grad_accum_steps (now {parts}), which needs less memory"
                message = f"step {state.step + 1}: {found}: {advice}; the run resumes from its last save"
                raise torch.OutOfMemoryError(message) from error
        # This is outside the except block, because the error's traceback keeps tensors alive.
        state.config, state.update = replace(state.config, grad_accum_steps=2 * parts), None
        torch.cuda.empty_cache()
        remedy = f"continuing with {2 * parts} micro-batches per step; the result stays the same"
        warnings.warn(f"{found}: {remedy}", stacklevel=2)


def _forward_backward_update(state: TrainState, *batch: Tensor) -> tuple[Tensor, Tensor]:
    """Do what `train_step` does, without out-of-memory handling. Without a scaler, it never waits for the device."""
    model, optimizer, scaler = state.model, state.optimizer, state.scaler
    micro_batches = _split(batch, model, state.config.grad_accum_steps)
    optimizer.zero_grad()  # a capture that failed may have left gradients, and said that weights were changing
    updated = state.updating = False
    # If float16 gradients overflow, the scaler skips the update and lowers its scale. Then the same step is repeated,
    # so schedule and data never advance without the weights.
    while not updated:
        # forward and backward: once per micro-batch; ranks average their gradients in the last backward pass
        loss = torch.zeros((), device=model.tok_emb.weight.device)
        for number, (x, y) in enumerate(micro_batches, start=1):
            is_last = number == len(micro_batches)
            with nullcontext() if is_last else getattr(state.forward, "no_sync", nullcontext)():
                part = _loss(state.forward, x, y, state.dtype) / len(micro_batches)
                scaler.scale(part).backward()
                loss += part.detach()
        loss = all_reduce_mean(loss)
        # clip
        scaler.unscale_(optimizer)  # because the limit applies to unscaled gradients
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), state.config.grad_clip)
        # step
        scale = scaler.get_scale()  # this waits for the device, but in float16 only
        state.updating = True
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        updated = scaler.get_scale() >= scale  # a smaller scale is the only sign of a skipped update
        if not updated:
            state.skipped_updates += 1
            if scaler.get_scale() < _MIN_LOSS_SCALE:
                details = f"loss {loss.item():g}, {state.skipped_updates:,} skipped updates"
                found = f"step {state.step + 1}: the gradients overflow float16 at every loss scale ({details})"
                raise FloatingPointError(f"{found}: lower peak_lr, or use a GPU with bfloat16 (A100, L4)")
    return loss, grad_norm


def _loss(forward: Callable[..., tuple], x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast(x.device.type, dtype, enabled=dtype is not torch.float32):
        return forward(x, y)[1]


def _split(batch: tuple[Tensor, ...], model: GPTMini, parts: int) -> list[tuple[Tensor, ...]]:
    """Return a batch as micro-batches (x, y) on the model's device."""
    return list(zip(*(part.to(model.tok_emb.weight.device).chunk(parts) for part in batch), strict=True))


@torch.inference_mode()
def evaluate(
    model: GPTMini, loader: BinLoader, batches: int, dtype: torch.dtype = torch.float32, grad_accum_steps: int = 1
) -> float:
    """Return the mean loss in nats per token over the loader's first `batches` batches, the same at each call."""
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
    after_row: Callable[[GPTMini, Row], None] = lambda model, row: None,
    checkpoint: dict[str, Any] | None = None,
) -> Iterator[Row]:
    """Train the run in `run_dir`, or resume it. Yield log rows and append them to loss.jsonl.

    `data_dir` has train.bin, val.bin and tokenizer.json, which is copied into the run folder. There is a row at step 1,
    every `log_every` steps and at each evaluation: step (steps finished), train_loss (nats per token of that step's
    batch, before the update), val_loss (at evaluations, after the update), lr, grad_norm, tokens (read so far),
    tokens_per_second, seconds (of training, over all sessions), eta_seconds, skipped_updates and loss_scale (both for
    float16), and resumed_from (in the first row after a resume). Then `after_row(model, row)` is called, also in a new
    run before step 1 with step 0 and 0 tokens. It must not change the model, and its time is not training time.

    last.pt is saved every `save_every` steps, at each evaluation, after `save_minutes`, if `should_stop()` returns true
    (it is called once per step), and if the caller leaves the loop. Then `after_save` is called. A failed save is a
    warning, and training continues. An error inside a step is not followed by a save. The next call continues from the
    newest checkpoint, or from `checkpoint`, a loaded one. At the end, final.pt has the model alone; best.pt has the one
    of the lowest validation loss, which nothing uses unasked. A log without a checkpoint is renamed. Under torchrun,
    every process calls `train` and trains on its part of each batch. Rank 0 writes the files.

    Before it writes anything, the call raises ValueError or FileNotFoundError if data, model and run do not match. The
    loop raises FloatingPointError if the loss is not finite, OutOfMemoryError, and OSError if it cannot write final.pt.
    """
    run_dir, data_dir, config = Path(run_dir), Path(data_dir), train_config
    device = torch.device(device or choose_device()[0])
    dtype = dtype or choose_dtype(device)[0]
    check_seq_len(config.seq_len, model_config.max_len)
    if config.batch_size % (world_size() * config.grad_accum_steps):
        needed = f"a multiple of {world_size()} processes times grad_accum_steps {config.grad_accum_steps}"
        raise ValueError(f"batch_size is {config.batch_size}; it must be {needed}")
    tokenizer = load_tokenizer(data_dir / "tokenizer.json")
    sha256 = tokenizer_sha256(tokenizer)
    shared = {"batch_size": config.batch_size, "seq_len": config.seq_len, "device": device}
    shared |= {"vocab_size": model_config.vocab_size, "tokenizer_sha256": sha256, "eos_id": eos_id(tokenizer)}
    loader = BinLoader(data_dir / "train.bin", seed=config.seed, sampling=config.sampling, **shared)
    val_sampling = "stories" if config.sampling == "stories" else "shuffle"  # a model is judged on what it has learned
    val_loader = BinLoader(data_dir / "val.bin", sampling=val_sampling, **shared)
    model, data_sha256 = new_model(model_config, config.seed).to(device), cached_sha256_of(data_dir / "train.bin")
    state = TrainState.new(model, config, dtype, tokenizer_sha256=sha256, data_sha256=data_sha256)
    if checkpoint is None and rank() == 0:
        _, checkpoint = latest_checkpoint(run_checkpoints(run_dir)) or (None, None)
        if checkpoint is None and (run_dir / "final.pt").exists():
            checkpoint = load_checkpoint(run_dir / "final.pt", MODEL_KEYS)
    if checkpoint := broadcast(checkpoint):
        state.restore(checkpoint)
        _report_resume(state, checkpoint)
    return _train_loop(state, loader, val_loader, tokenizer, run_dir, should_stop, after_save, after_row)


def _report_resume(state: TrainState, checkpoint: dict[str, Any]) -> None:
    """Print where a run resumes and what its new length changes. Raises ValueError if it cannot have that length."""
    step, total = state.step, state.config.total_steps
    if "optimizer" not in checkpoint:
        if step < total:
            found = f"final.pt has the model of step {step:,}, and total_steps is {total:,}"
            raise ValueError(f"{found}, but there is no last.pt to continue from: use another run name")
        print(f"the run was finished at step {step:,}; only its final.pt is left")
        return
    stored = TrainConfig.from_dict(checkpoint["train_config"])
    if total != stored.total_steps and total <= step < stored.total_steps:
        raise ValueError(f"total_steps is {total:,}, but the run has reached step {step:,}: set it above {step:,}")
    if step >= total:
        return
    minutes = max(0, time.time() - checkpoint["saved_at"]) / 60  # the clock may have been set back
    print(f"resumed at step {step:,}, saved {minutes:.0f} minutes ago")
    if total != stored.total_steps:
        rates = f"{lr_at(step, state.config):.2g} instead of {lr_at(step, stored):.2g}"
        changed = f"total_steps was {stored.total_steps:,} and is now {total:,}"
        print(f"{changed}, which changes the schedule: the next step's learning rate is {rates}")


def _train_loop(state, loader, val_loader, tokenizer, run_dir, should_stop, after_save, after_row) -> Iterator[Row]:
    """The loop of `train`: learning rate, batch, forward, backward, clip, step, log, evaluate, save."""
    config, model, plain = state.config, state.model, wrap_ddp(state.model)
    log, unwritten = run_dir / "loss.jsonl", []  # rows stay unwritten for a while if the disk is full
    # A save takes half a second. This is long for a GPU, so a thread writes its checkpoints, and short for a CPU.
    writer = CheckpointWriter(run_dir, state.step, loader.device.type == "cuda", after_save)
    if rank() == 0:
        save_tokenizer(tokenizer, run_dir / "tokenizer.json")
        if state.step == 0 and log.exists():  # its rows are those of a run whose checkpoints are gone
            log.rename(aside(log))
    validated = [row["val_loss"] for row in read_log(log) if "val_loss" in row and row["step"] <= state.step]
    lowest = min(validated, default=math.inf)
    first_step, seq_len, saved_at = state.step, None, time.monotonic()
    row_step, row_seconds = state.step, state.seconds  # of the newest row, from which tokens_per_second is counted
    eval_batches = max(1, min(config.eval_batches, val_loader.windows // config.batch_size))
    flops = 6 * model.count_parameters() * config.total_steps * config.tokens_per_step

    def warm_up(forward: Callable[..., Any]) -> None:
        x, y = (part.chunk(config.grad_accum_steps)[0] for part in local_batch(loader.batch(state.step, seq_len)))
        _loss(forward, x, y, state.dtype).backward()
        state.optimizer.zero_grad()

    def finish_row(row: Row) -> Row:
        """Add the validation loss if it is due, and append the row to the log."""
        if config.is_evaluated(row["step"]) and row["step"] == state.step and "val_loss" not in row:
            row["val_loss"] = evaluate(model, val_loader, eval_batches, state.dtype, state.config.grad_accum_steps)
        unwritten.append(row)
        _write_rows(unwritten, log)
        if row["step"] == state.step:
            after_row(model, row)
        return row

    def is_best(row: Row) -> bool:
        """Return whether the row has the lowest validation loss so far, of the present weights."""
        nonlocal lowest
        before, lowest = lowest, min(lowest, row.get("val_loss", math.inf))
        return lowest < before and row["step"] == state.step

    try:
        # The last session may have stopped before it evaluated, or a crash may have cut the row off the log.
        if state.row and not _is_in_log(state.row, log, evaluated=config.is_evaluated(state.step)):
            row = finish_row(state.row)
            if is_best(row):
                writer.save("best.pt", state.model_checkpoint())
            yield row

        if state.step == 0:
            after_row(model, {"step": 0, "tokens": 0})
        while state.step < config.total_steps:
            started = time.perf_counter()

            # Learning rate, sequence length and batch are functions of the step.
            set_lr(state.optimizer, lr_at(state.step, config))
            if seq_len != seq_len_at(state.step, config):
                seq_len = seq_len_at(state.step, config)
                state.update = None  # a graph is of one shape
                state.forward, seconds = compile_model(plain, loader.device, flops, warm_up)
                started += seconds
            batch = local_batch(loader.batch(state.step, seq_len))

            # Forward, backward, clip, step
            loss, grad_norm = train_step(state, batch)

            is_logged, is_kept = config.is_logged(state.step), state.step % config.keep_every == 0
            # Several ranks agree to stop at log steps only, because they wait for the device there in any case.
            stop = any_rank(should_stop()) if is_logged or world_size() == 1 else False
            is_saved = stop or config.is_saved(state.step) or time.monotonic() - saved_at > 60 * config.save_minutes
            if is_logged or is_kept or is_saved:
                _check_finite(state, loss, grad_norm)  # waits for the device
            state.seconds += time.perf_counter() - started

            # Log and evaluate. If this session must stop, the next one writes the row.
            if is_logged:
                seconds_per_step = (state.seconds - row_seconds) / (state.step - row_step)
                state.row = _new_row(state, loss.item(), grad_norm.item(), seconds_per_step)
                state.row |= {"resumed_from": first_step} if first_step and row_step == first_step else {}
                row_step, row_seconds = state.step, state.seconds
                if not stop:
                    finish_row(state.row)
            best = is_logged and is_best(state.row)

            # Save
            if state.step == config.total_steps:  # before last.pt says that the run is finished
                writer.save("final.pt", state.model_checkpoint())
            if is_saved:
                writer.save("last.pt", state.checkpoint(), best)
                saved_at = time.monotonic()  # after a failure too: a full disk should not slow down every step
            if is_kept:
                writer.save(f"step_{state.step:05d}.pt", state.checkpoint())

            if stop:
                return
            if is_logged:
                yield state.row
    except GeneratorExit:  # the caller has left the loop, always between two steps
        if writer.saved_step < state.step:
            writer.save("last.pt", state.checkpoint())
        raise
    finally:
        writer.wait()
    writer.finish(state.model_checkpoint())


def _check_finite(state: TrainState, loss: Tensor, grad_norm: Tensor) -> None:
    """Raise FloatingPointError if the run has diverged: its weights are useless and must not be saved."""
    if not math.isfinite(loss.item() + grad_norm.item()):
        before = f" (at step {state.row['step']:,} the loss was {state.row['train_loss']:.3f})" if state.row else ""
        found = f"at step {state.step:,} the loss is {loss.item():g} and the gradient norm {grad_norm.item():g}{before}"
        advice = "last.pt is left as it was; start another run with a lower peak_lr"
        raise FloatingPointError(f"{found}: the run diverged. {advice}")


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


def _is_in_log(row: Row, log: Path, evaluated: bool) -> bool:
    """Return whether the log of earlier sessions has this row, and its validation loss if it was `evaluated`."""
    logged = broadcast(read_log(log) if rank() == 0 else None)
    return any(row.items() <= other.items() and ("val_loss" in other or not evaluated) for other in logged)


def _write_rows(rows: list[Row], log: Path) -> None:
    """Move the rows to the log. Rows that a full disk refuses stay in the list. Only rank 0 writes."""
    try:
        while rows:
            if rank() == 0:
                append_row(log, rows[0])
            del rows[0]
    except OSError as error:
        remedy = "its rows are kept for later, and training continues"
        warnings.warn(f"{log} could not be written ({error}): {remedy}", stacklevel=3)
