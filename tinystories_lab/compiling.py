"""The model compiled by PyTorch, where a run is long enough to earn it back."""

import time
import warnings

import torch
from torch import Tensor, nn

from tinystories_lab.device import choose_compile
from tinystories_lab.state import TrainState
from tinystories_lab.step import pass_over


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
        pass_over(state, *(part.chunk(config.micro_batches)[0] for part in batch), dtype)
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
