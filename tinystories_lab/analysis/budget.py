"""The cost of a run in parameters, tokens, steps and time, and the speed of this machine."""

import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from tinystories_lab.analysis.evaluation import CHAPTER_RESULTS
from tinystories_lab.config import TrainConfig
from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.model import GPTConfig, count_parameters, new_model
from tinystories_lab.trainer import TrainState, train_step

_CPU_TOKENS = 2_048  # per measured step on a CPU: larger batches are no faster there


def budget(config: GPTConfig, tokens: int, tokens_per_step: int, speeds: Mapping[str, float]) -> dict[str, object]:
    """Return the parameters, tokens and steps of a run, and its time on each machine in `speeds`.

    A speed is parameters times tokens per second (see `machine_speeds`). Training takes about six floating-point
    operations per parameter and token, so a model twice as large takes twice as long.
    """
    parameters = count_parameters(config)
    costs = {"parameters": parameters, "tokens": tokens, "tokens per parameter": tokens / parameters}
    costs |= {"tokens per step": tokens_per_step, "steps": tokens // tokens_per_step}
    return costs | {f"time on {name}": format_duration(parameters * tokens / speed) for name, speed in speeds.items()}


def machine_speeds(model_config: GPTConfig, config: TrainConfig) -> dict[str, float]:
    """Return parameters times tokens per second: the chapter's values for T4 and A100, and a measurement here."""
    speeds = {}
    for machine, result in CHAPTER_RESULTS["machines"].items():
        if machine.startswith("Colab"):
            speeds[machine] = result["tokens_per_second"] * CHAPTER_RESULTS["parameters"]
    return speeds | {"this machine": _measure_speed(model_config, config) * count_parameters(model_config)}


def _measure_speed(model_config: GPTConfig, config: TrainConfig, seconds: float = 2.0) -> float:
    """Return the tokens per second of training on this machine, measured on random ids for about `seconds`.

    The model is not compiled, so a run that compiles its model is faster. Global random state does not change.
    """
    device, _ = choose_device()
    dtype, _ = choose_dtype(device)
    tokens = _CPU_TOKENS if device.type == "cpu" else config.tokens_per_step
    seq_len = min(config.seq_len, tokens)
    batch_size = max(1, tokens // seq_len)
    config = replace(config, batch_size=batch_size, seq_len=seq_len, seq_len_start=None, grad_accum_steps=1)
    state = TrainState.new(new_model(model_config).to(device), config, dtype)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model_config.vocab_size, (batch_size, seq_len + 1), generator=generator).to(device)
    times = []
    while len(times) < 2 or sum(times[1:]) < seconds:
        started = time.perf_counter()
        loss, _ = train_step(state, (ids[:, :-1], ids[:, 1:]))
        loss.item()  # waits for the device
        times.append(time.perf_counter() - started)
    del times[0]  # the first step also allocates memory and selects kernels
    return config.tokens_per_step * len(times) / sum(times)


def format_duration(seconds: float) -> str:
    """Return a time in a suitable unit: "a second", "40 seconds", "3 minutes", "2.8 hours", "3.2 days"."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if (number := seconds / size) >= 1.95:
            return f"{number:.2g} {unit}" if number < 10 else f"{number:,.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
