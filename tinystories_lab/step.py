"""One step: how one batch moves the weights, in the precision and the memory that there is."""

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from tinystories_lab.loader import BinLoader
from tinystories_lab.model import GPTMini
from tinystories_lab.ranks import mean_over_ranks, my_rows
from tinystories_lab.recipe import lr_at
from tinystories_lab.state import TrainState

_SMALLEST_SCALE = 1.0  # fp16 gradients that overflow without any scaling: no smaller scale will help


def take_step(
    state: TrainState, batch: tuple[Tensor, Tensor], dtype: torch.dtype, may_split: bool = False
) -> tuple[Tensor, Tensor]:
    """Move the weights by one batch and `state.step` by one; returns the batch's mean loss and the gradient norm before clipping.

    When the GPU's memory does not suffice and `may_split`, in micro-batches of half the size, and again; the global batch
    and its data stay. Raises, with what to do, torch.OutOfMemoryError when it cannot be split (further), and
    FloatingPointError when gradients overflow float16 at every loss scale.
    """
    while True:
        try:
            return _take_once(state, batch, dtype)
        except torch.OutOfMemoryError as error:
            state.optimizer.zero_grad()
            sequences = len(batch[0]) // state.config.micro_batches
            in_half = state.config.batch_size % (2 * state.config.micro_batches) == 0
            if not (may_split and state.whole and in_half):
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


def _take_once(state: TrainState, batch: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`take_step` in the memory that there is. Raises FloatingPointError when the scale collapses.

    Under float16 an overflow makes the scaler skip the update and halve its scale: the same step is tried again, so that
    neither schedule nor data moves without the weights.
    """
    model, optimizer, scaler, config = state.model, state.optimizer, state.scaler, state.config
    device = model.tok_emb.weight.device
    micro_batches = _split(batch, device, config.micro_batches)
    for group in optimizer.param_groups:
        group["lr"] = lr_at(state.step, config) * group.get("lr_ratio", 1.0)
    moved = False
    while not moved:
        mean_loss = torch.zeros((), device=device)
        for number, (x, y) in enumerate(micro_batches, 1):
            # Several processes average their gradients once a step, in its last backward pass.
            alone = nullcontext if number == len(micro_batches) else getattr(state.forward, "no_sync", nullcontext)
            with alone():
                mean_loss += pass_over(state, x, y, dtype)
        mean_loss = mean_over_ranks(mean_loss)
        scaler.unscale_(optimizer)  # before clipping, or the limit would apply to scaled gradients
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        scale = scaler.get_scale()  # waits for the device in float16, which must know; in other dtypes it is a constant
        state.whole = False
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved = scaler.get_scale() >= scale  # a smaller scale is the only sign of a skipped update
        if not moved:
            state.skipped_updates += 1
            if scaler.get_scale() < _SMALLEST_SCALE:
                raise FloatingPointError(
                    f"step {state.step + 1}: the gradients overflow float16 at every loss scale down to {scale:g} (loss "
                    f"{mean_loss.item():g}, {state.skipped_updates:,} updates skipped in all): lower peak_lr, or go on "
                    "where there is bfloat16 (A100, L4) or in float32"
                )
    state.step += 1
    state.whole = True
    return mean_loss, grad_norm


def pass_over(state: TrainState, x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """One forward and backward pass over a micro-batch; returns its share of the loss."""
    loss = _share_of_loss(state.forward, x, y, dtype, state.config.micro_batches)
    state.scaler.scale(loss).backward()
    return loss.detach()


@torch.inference_mode()
def evaluate(
    model: GPTMini, loader: BinLoader, batches: int, dtype: torch.dtype = torch.float32, micro_batches: int = 1
) -> float:
    """Mean loss in nats a token over the loader's first `batches` batches: the same windows at every call."""
    device = model.tok_emb.weight.device
    total = torch.zeros((), device=device)
    for step in range(batches):
        for x, y in _split(my_rows(loader.batch(step)), device, micro_batches):
            total += _share_of_loss(model, x, y, dtype, micro_batches)
    return mean_over_ranks(total).item() / batches


def _share_of_loss(
    forward: Callable[..., tuple], x: Tensor, y: Tensor, dtype: torch.dtype, micro_batches: int
) -> Tensor:
    """What one micro-batch adds to the mean loss of its batch."""
    with torch.autocast(x.device.type, dtype, enabled=dtype is not torch.float32):
        return forward(x, y)[1] / micro_batches


def _split(batch: tuple[Tensor, Tensor], device: torch.device, micro_batches: int) -> list[tuple[Tensor, ...]]:
    """A batch on the device, in so many parts of x and y."""
    return list(zip(*(part.to(device).chunk(micro_batches) for part in batch), strict=True))


def check_loss(state: TrainState, loss: Tensor, grad_norm: Tensor) -> None:
    """Raise FloatingPointError, with what to do, when the run has diverged. Waits for the device.

    Outside of float16, whose scaler keeps it out, a gradient that is not finite is in the weights by now: going on would
    not mend them, and they are not worth saving.
    """
    if math.isfinite(loss.item() + grad_norm.item()):
        return
    state.whole = False
    before = f" (at step {state.row['step']:,} it was {state.row['train_loss']:.3f})" if state.row else ""
    raise FloatingPointError(
        f"at step {state.step:,} the loss is {loss.item():g} and the gradient norm {grad_norm.item():g}{before}: the run "
        f"diverged. last.pt is left as it was; start another run with a lower peak_lr"
    )
