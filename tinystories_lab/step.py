"""One step: how one batch moves the weights, in the precision and the memory that there is."""

import warnings
from dataclasses import replace

import torch

from tinystories_lab.recipe import lr_at
from tinystories_lab.state import TrainState

SMALLEST_SCALE = 1.0  # fp16 gradients that overflow without any scaling: no smaller scale will help


def take_step(
    state: TrainState, batch: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move the weights by one batch and `state.step` by one; returns the batch's mean loss and the gradient norm before clipping.

    Under float16 an overflow makes the scaler skip the update and halve its scale: the same step is tried again, so that
    neither schedule nor data moves without the weights. Raises FloatingPointError when the scale collapses.
    """
    model, optimizer, scaler, config = state.model, state.optimizer, state.scaler, state.config
    device = model.tok_emb.weight.device
    x, y = (part.to(device, non_blocking=True) for part in batch)
    for group in optimizer.param_groups:
        group["lr"] = lr_at(state.step, config)
    moved = False
    while not moved:
        mean_loss = torch.zeros((), device=device)
        for micro_x, micro_y in zip(x.chunk(config.micro_batches), y.chunk(config.micro_batches), strict=True):
            with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
                loss = model(micro_x, micro_y)[1] / config.micro_batches
            scaler.scale(loss).backward()
            mean_loss += loss.detach()
        scaler.unscale_(optimizer)  # before clipping, or the limit would apply to scaled gradients
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        scale = scaler.get_scale()
        state.whole = False
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved = scaler.get_scale() >= scale  # a smaller scale is the only sign of a skipped update
        if not moved:
            state.skipped_updates += 1
            if scaler.get_scale() < SMALLEST_SCALE:
                raise FloatingPointError(
                    f"step {state.step + 1}: the gradients overflow float16 at every loss scale down to {scale:g} (loss "
                    f"{mean_loss.item():g}, {state.skipped_updates:,} updates skipped in all): lower peak_lr, or go on "
                    "where there is bfloat16 (A100, L4) or in float32"
                )
    state.step += 1
    state.whole = True
    return mean_loss, grad_norm


def take_step_that_fits(
    state: TrainState, batch: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype, may_split: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """`take_step`; when the GPU's memory does not suffice and `may_split`, in micro-batches of half the size, and again.

    The global batch and its data stay. Raises torch.OutOfMemoryError with what to do when it cannot be split (further).
    """
    while True:
        try:
            return take_step(state, batch, dtype)
        except torch.OutOfMemoryError as error:
            state.optimizer.zero_grad()
            sequences = state.config.batch_size // state.config.micro_batches
            if not (may_split and state.whole and sequences % 2 == 0):
                raise torch.OutOfMemoryError(
                    f"step {state.step + 1}: the GPU's memory does not hold {sequences} sequences of {batch[0].shape[1]} "
                    "tokens at once; what was trained is kept: restart the session, or raise micro_batches "
                    f"(now {state.config.micro_batches}), which changes memory and not the result"
                ) from error
        # Out of the except block: the error's traceback would keep the memory that is missing.
        state.config = replace(state.config, micro_batches=2 * state.config.micro_batches)
        torch.cuda.empty_cache()
        warnings.warn(
            f"the GPU's memory does not hold {sequences} sequences at once: going on with {state.config.micro_batches} "
            f"micro-batches of {sequences // 2}; the global batch and its data stay the same",
            stacklevel=2,
        )


def divergence_sentence(state: TrainState, loss: torch.Tensor, grad_norm: torch.Tensor) -> str:
    """What became of the loss since the last row, and what to do."""
    before = f" (at step {state.row['step']:,} it was {state.row['train_loss']:.3f})" if state.row else ""
    return (
        f"at step {state.step:,} the loss is {loss.item():g} and the gradient norm {grad_norm.item():g}{before}: the run "
        f"diverged. last.pt is left as it was; start another run with a lower peak_lr"
    )
