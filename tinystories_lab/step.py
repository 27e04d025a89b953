"""One step: how one batch moves the weights, in the precision and the memory that there is."""

import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from tinystories_lab.device import choose_compile
from tinystories_lab.loader import BinLoader
from tinystories_lab.model import GPTMini
from tinystories_lab.ranks import mean_over_ranks, my_rows
from tinystories_lab.recipe import lr_at
from tinystories_lab.state import TrainState

_SMALLEST_SCALE = 1.0  # fp16 gradients that overflow without any scaling: no smaller scale will help


def take_step(state: TrainState, batch: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Move the weights by one batch and `state.step` by one; returns the batch's mean loss and the gradient norm before clipping.

    Under float16 an overflow makes the scaler skip the update and halve its scale: the same step is tried again, so that
    neither schedule nor data moves without the weights. Raises FloatingPointError when the scale collapses.
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
                mean_loss += _pass_over(state, x, y, dtype)
        mean_loss = mean_over_ranks(mean_loss)
        scaler.unscale_(optimizer)  # before clipping, or the limit would apply to scaled gradients
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
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


def _split(batch: tuple[Tensor, Tensor], device: torch.device, micro_batches: int) -> list[tuple[Tensor, ...]]:
    """A batch on the device, in so many parts of x and y."""
    return list(zip(*(part.to(device).chunk(micro_batches) for part in batch), strict=True))


def _share_of_loss(
    forward: Callable[..., tuple], x: Tensor, y: Tensor, dtype: torch.dtype, micro_batches: int
) -> Tensor:
    """What one micro-batch adds to the mean loss of its batch."""
    with torch.autocast(x.device.type, dtype, enabled=dtype is not torch.float32):
        return forward(x, y)[1] / micro_batches


def _pass_over(state: TrainState, x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """One forward and backward pass over a micro-batch; returns its share of the loss."""
    loss = _share_of_loss(state.forward, x, y, dtype, state.config.micro_batches)
    state.scaler.scale(loss).backward()
    return loss.detach()


def compile_where_it_pays(
    state: TrainState, plain: nn.Module, batch: tuple[Tensor, Tensor], dtype: torch.dtype
) -> None:
    """Have PyTorch compile the passes of a run that earns it back, and run them once, so that no step is slow for it.

    `plain` is the model as it is called without; it is called so where compiling does not pay, or cannot be done, which a
    warning then tells. The weights stay as they are. What was compiled serves batches of the shape of `batch` alone.
    """
    state.forward = plain
    device, config = batch[0].device, state.config
    pays, why = choose_compile(device, 6 * state.model.count_parameters() * config.total_steps * config.tokens_per_step)
    if not pays:
        return
    print(f"compiling the model ({why}): this takes a minute or so ...")
    started = time.perf_counter()
    state.forward = torch.compile(plain, dynamic=False)
    try:
        _pass_over(state, *(part.chunk(config.micro_batches)[0] for part in batch), dtype)
        print(f"compiled in {time.perf_counter() - started:.0f} s, which tokens_per_second does not count")
    except torch.OutOfMemoryError:
        pass  # the first step finds out too, and mends it
    except Exception as error:  # a missing compiler, an unknown GPU, PyTorch's own: each raises something else
        state.forward = plain
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"the model could not be compiled ({reason}): training goes on without, more slowly", stacklevel=2
        )
    state.optimizer.zero_grad()


def take_step_that_fits(
    state: TrainState, batch: tuple[Tensor, Tensor], dtype: torch.dtype, may_split: bool
) -> tuple[Tensor, Tensor]:
    """`take_step`; when the GPU's memory does not suffice and `may_split`, in micro-batches of half the size, and again.

    The global batch and its data stay. Raises torch.OutOfMemoryError with what to do when it cannot be split (further).
    """
    while True:
        try:
            return take_step(state, batch, dtype)
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
