"""What a run will take: the arithmetic of its budget, and how fast this machine is, measured in seconds."""

import time
from dataclasses import replace

import torch

from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.model import GPTConfig
from tinystories_lab.recipe import TrainConfig
from tinystories_lab.state import TrainState
from tinystories_lab.step import take_step

CPU_TOKENS = 2_048  # a step of so many tells a CPU's speed as well as one of more


def measure_speed(model_config: GPTConfig, config: TrainConfig, seconds: float = 2.0) -> float:
    """Tokens a second of training on this machine: real steps on random ids for about `seconds`, not compiled.

    A run long enough to be compiled goes faster than that. Nothing is written, and no random state is touched.
    """
    device, _ = choose_device()
    dtype, _ = choose_dtype(device)
    most = CPU_TOKENS if device.type == "cpu" else config.tokens_per_step
    seq_len = min(config.seq_len, most)
    short = replace(config, batch_size=max(1, most // seq_len), seq_len=seq_len, first_seq_len=None, micro_batches=1)
    state = TrainState.new(model_config, short, "", "", device, dtype)
    random = torch.Generator().manual_seed(0)
    shape = (short.batch_size, seq_len + 1)
    ids = torch.randint(model_config.vocab_size, shape, generator=random).to(device)

    def timed_step() -> float:
        started = time.perf_counter()
        take_step(state, (ids[:, :-1], ids[:, 1:]), dtype)[0].item()  # reading it waits for the device
        return time.perf_counter() - started

    timed_step()  # the first one also makes room and chooses kernels
    times = [timed_step()]
    while sum(times) < seconds:
        times.append(timed_step())
    return short.tokens_per_step * len(times) / sum(times)


def duration(seconds: float) -> str:
    """A time as people say it: "a second", "40 seconds", "3 minutes", "2.8 hours"."""
    for unit, size in (("hours", 3_600), ("minutes", 60)):
        if seconds >= 1.95 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
