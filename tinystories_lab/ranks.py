"""One run by several processes, as torchrun starts them: which of them this is, and what they do together."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """Which of the processes this is, from 0; the first alone writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Within the block, be one of the processes that torchrun started, each with a GPU of its own or all on CPUs."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def my_rows(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """This process's share of a global batch, which is the same whatever their number: x and y, each (B / ranks, T)."""
    x, y = (part.chunk(ranks())[rank()] for part in batch)
    return x, y


def average_gradients(model: nn.Module) -> nn.Module:
    """The model, called so that a backward pass leaves every process with the mean of their gradients."""
    return DistributedDataParallel(model) if ranks() > 1 else model


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a value that each process holds; nobody waits for it before it is read."""
    if ranks() > 1:
        dist.all_reduce(value)
        value /= ranks()
    return value


def from_first_rank(value: Any) -> Any:
    """The first process's value, plain or with tensors on the CPU, in all of them."""
    box = [value]
    if ranks() > 1:
        dist.broadcast_object_list(box)
    return box[0]
