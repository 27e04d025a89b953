"""Steps: the training loop, as a generator of log rows that can stop anywhere and go on exactly there."""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch

from tinystories_lab.checkpoint import latest_checkpoint
from tinystories_lab.compiling import compile_where_it_pays
from tinystories_lab.copies import sha256_of
from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.keeper import Keeper, writes_beside
from tinystories_lab.loader import BinLoader
from tinystories_lab.mirror import Mirror
from tinystories_lab.model import GPTConfig
from tinystories_lab.ranks import average_gradients, from_first_rank, my_rows, rank, ranks
from tinystories_lab.recipe import TrainConfig, seq_len_at
from tinystories_lab.runlog import Row, read_log
from tinystories_lab.session import endings_raise, one_writer, signals_wait
from tinystories_lab.state import TrainState, resume_sentence
from tinystories_lab.step import check_loss, evaluate, take_step
from tinystories_lab.tokenizer import load_tokenizer, save_tokenizer, tokenizer_sha256


def train(
    run_dir: str | Path,
    data_dir: str | Path,
    model_config: GPTConfig,
    train_config: TrainConfig,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    mirror_root: str | Path | None = None,
) -> Iterator[Row]:
    """Train, or go on training, the run in `run_dir`; yields log rows and appends them to loss.jsonl.

    A row comes at step 1, every `log_every` steps, at each evaluation and at the end. It holds: step (finished so far),
    train_loss (nats a token on that step's batch, before its update), val_loss (when due, after it), lr, grad_norm,
    tokens (seen so far), tokens_per_second, seconds (of training, all sessions), eta_seconds, skipped_updates and
    loss_scale (of float16), resumed_from (first row of a session that went on), mirrored_step (with a mirror).
    `data_dir` holds train.bin, val.bin and tokenizer.json; the latter is copied beside the model. `mirror_root` is a
    folder on another disk that keeps a copy of run and data, and from which they come back (see `Mirror`).
    Under torchrun (see `ranks`) every process calls this; each takes its share of the same batches, the first one writes.

    last.pt is saved every `save_every` steps, before each evaluation, after `save_minutes`, and when the loop is left in
    any way: break, exception, Ctrl-C, SIGTERM. The next call goes on exactly there. A save that fails warns, and training
    goes on. At the end final.pt holds the model alone.

    Raises at the call, before anything is written: ValueError or FileNotFoundError when data, model and run do not fit
    together. Raises in the loop: BlockingIOError while another session trains this run; FloatingPointError when the loss
    is not finite, leaving last.pt as it was; torch.OutOfMemoryError with what to do; OSError when final.pt cannot be written.
    """
    run_dir, data_dir, config = Path(run_dir), Path(data_dir), train_config
    device = torch.device(device or choose_device()[0])
    dtype = dtype or choose_dtype(device)[0]
    if config.seq_len > model_config.max_len:
        raise ValueError(
            f"seq_len is {config.seq_len}, but the model's max_len is {model_config.max_len}: lower one or raise the other"
        )
    if config.batch_size % (ranks() * config.micro_batches):
        raise ValueError(
            f"batch_size {config.batch_size} must be a multiple of {ranks()} processes times micro_batches "
            f"{config.micro_batches}: take another number of processes"
        )
    tokenizer = load_tokenizer(data_dir / "tokenizer.json")
    fingerprint = tokenizer_sha256(tokenizer)
    fits = {"vocab_size": model_config.vocab_size, "tokenizer_sha256": fingerprint, "device": device}
    loader = BinLoader(data_dir / "train.bin", config.batch_size, config.seq_len, config.seed, config.sampling, **fits)
    held_out = BinLoader(data_dir / "val.bin", config.batch_size, config.seq_len, sampling="shuffle", **fits)
    state = TrainState.new(model_config, config, fingerprint, sha256_of(data_dir / "train.bin"), device, dtype)
    mirror = Mirror(run_dir, data_dir, mirror_root) if mirror_root and rank() == 0 else None
    if rank() == 0 and (newest := latest_checkpoint(run_dir, mirror and mirror.mirror_dir)):
        state.load_same_run(newest)

    def rows() -> Iterator[Row]:
        with one_writer(run_dir) if rank() == 0 else nullcontext(), endings_raise(), mirror or nullcontext():
            if mirror:
                mirror.fetch()
                mirror.update()
            if rank() == 0:
                save_tokenizer(tokenizer, run_dir / "tokenizer.json")
            yield from _run_steps(state, loader, held_out, dtype, run_dir, mirror)

    return rows()


def _run_steps(
    state: TrainState, loader: BinLoader, held_out: BinLoader, dtype: torch.dtype, run_dir: Path, mirror: Mirror | None
) -> Iterator[Row]:
    """The loop of `train`, once all is known to fit and nobody else writes to `run_dir`."""
    config = state.config
    eval_batches = max(1, min(config.eval_batches, held_out.windows // config.batch_size))

    def lacks_evaluation(row: Row) -> bool:
        return config.is_evaluated(row["step"]) and row["step"] == state.step and "val_loss" not in row

    def finish(row: Row) -> Row:
        if lacks_evaluation(row):
            row["val_loss"] = evaluate(state.model, held_out, eval_batches, dtype, state.config.micro_batches)
        keeper.log(row)
        return row

    newest = latest_checkpoint(run_dir) if rank() == 0 else None
    checkpoint, log = from_first_rank((newest and state.load_same_run(newest), read_log(run_dir / "loss.jsonl")))
    if checkpoint:
        state.restore(checkpoint)
    keeper = Keeper(run_dir, state, mirror.update if mirror else lambda: None)
    marks = {}  # of the session's first row
    if checkpoint:
        logged = {row["step"]: row for row in log}
        if state.step < config.total_steps:
            marks = {"resumed_from": state.step}
            behind = mirror is not None or writes_beside(loader.device)
            print(resume_sentence(checkpoint, config, max(logged, default=0), behind))
        # A row is evaluated and written after its step was saved: a crash between the two, or in the write, costs nothing.
        there = logged.get(state.row["step"], {})
        if not state.row.items() <= there.items() or lacks_evaluation(there):
            yield finish(state.row)

    first_step, saved_at = state.step, time.monotonic()
    row_step, row_seconds = state.step, state.seconds  # from where a row's tokens_per_second is measured
    plain, seq_len, told = average_gradients(state.model), None, None
    try:
        while state.step < config.total_steps:
            if seq_len != seq_len_at(state.step, config):
                seq_len = seq_len_at(state.step, config)
                compile_where_it_pays(state, plain, my_rows(loader.batch(state.step, seq_len)), dtype)
            with signals_wait():
                started = time.perf_counter()
                batch = my_rows(loader.batch(state.step, seq_len))
                loss, grad_norm = take_step(state, batch, dtype, may_split=state.step == first_step and ranks() == 1)
                row_due = config.is_logged(state.step)
                keep_due = state.step % config.keep_every == 0
                save_due = state.step == config.next_save(state.step - 1)
                save_due |= time.monotonic() - saved_at > 60 * config.save_minutes
                if row_due or save_due or keep_due:
                    check_loss(state, loss, grad_norm)
                state.seconds += time.perf_counter() - started
                if row_due:
                    seconds_per_step = (state.seconds - row_seconds) / (state.step - row_step)
                    mirrored = {"mirrored_step": mirror.step} if mirror else {}
                    state.row = state.new_row(loss.item(), grad_norm.item(), seconds_per_step) | marks | mirrored
                    row_step, row_seconds, marks = state.step, state.seconds, {}
                if state.step == config.total_steps:  # before last.pt says that all is done
                    keeper.save("final.pt")
                if save_due:
                    keeper.save("last.pt")
                    saved_at = time.monotonic()  # also after a failure: not every step should wait for a full disk
                if keep_due:
                    keeper.save(f"step_{state.step:05d}.pt")
            if row_due:
                yield finish(state.row)
            if mirror and mirror.trouble != told:
                told = mirror.trouble
                if told:
                    warnings.warn(f"{mirror}: training goes on, and the mirror is tried again", stacklevel=2)
    finally:
        keeper.settle()
        # The run may have diverged since the last look at a loss: that is not worth keeping.
        if state.whole and state.step > keeper.saved_step and math.isfinite(loss.item() + grad_norm.item()):
            with signals_wait():
                keeper.save("last.pt", orderly=True)
                keeper.settle()
    keeper.finish()
