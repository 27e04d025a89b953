"""What a run will take: the arithmetic of its budget, and how fast this machine is, measured in seconds."""

import gzip
import io
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.hub import HUB_STORIES, SPLITS, load_hub
from tinystories_lab.model import GPTConfig, count_parameters
from tinystories_lab.recipe import TrainConfig
from tinystories_lab.review import BOOK_RESULTS
from tinystories_lab.sources import TOYLAND_STORIES, find_files
from tinystories_lab.state import TrainState
from tinystories_lab.step import take_step
from tinystories_lab.stories import load_stories
from tinystories_lab.tokenizer import train_tokenizer, write_bin

if TYPE_CHECKING:
    from datasets import Dataset

_CPU_TOKENS = 2_048  # a step of so many tells a CPU's speed as well as one of more
_WARM_UP, _TRIAL = 100, 4_000  # stories: to get going, and to be timed


def budget(
    model_config: GPTConfig, tokens: int, tokens_per_step: int, powers: Mapping[str, float]
) -> dict[str, object]:
    """What a run takes, line by line: parameters, tokens, steps, and a time for each machine in `powers`.

    A power is parameters x tokens a second: training multiplies and adds about six times for each parameter and token, so
    a model twice as large takes twice as long.
    """
    parameters = count_parameters(model_config)
    return {
        "parameters": parameters,
        "tokens": tokens,
        "tokens a parameter": tokens / parameters,
        "tokens a step": tokens_per_step,
        "steps": tokens // tokens_per_step,
    } | {f"time on {machine}": duration(parameters * tokens / power) for machine, power in powers.items()}


def powers(model_config: GPTConfig, config: TrainConfig) -> dict[str, float]:
    """Parameters x tokens a second of T4 and A100, as the chapter reports them, and of this machine, measured now."""
    chapter = {
        machine: result["tokens_per_second"] * count_parameters(GPTConfig())
        for machine, result in BOOK_RESULTS["machines"].items()
        if machine.startswith("Colab")
    }
    return chapter | {"this machine": measure_speed(model_config, config) * count_parameters(model_config)}


def measure_speed(model_config: GPTConfig, config: TrainConfig, seconds: float = 2.0) -> float:
    """Tokens a second of training on this machine: real steps on random ids for about `seconds`, not compiled.

    A run long enough to be compiled goes faster than that. Nothing is written, and no random state is touched.
    """
    device, _ = choose_device()
    dtype, _ = choose_dtype(device)
    most = _CPU_TOKENS if device.type == "cpu" else config.tokens_per_step
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


def seconds_to_prepare(source: str | Path, max_stories: int | None = None) -> float:
    """How long `load_stories` will take here, from cleaning a few thousand stories; a download is not counted.

    TinyStories is not here yet: built-in stories stand in for it. Raises as `load_stories` does for other sources.
    """
    trial = "toyland" if source == "tinystories" else source
    return _seconds_for_all(lambda count: load_stories(trial, max_stories=count), count_stories(source, max_stories))


def count_stories(source: str | Path, max_stories: int | None = None) -> int:
    """About how many rows a source gives: known for the built-in and the Hub's, which are fetched first, judged by size for files."""
    if source == "toyland":
        return max_stories or TOYLAND_STORIES
    if source == "tinystories":
        rows = HUB_STORIES
    elif files := find_files(source):
        with redirect_stderr(io.StringIO()):
            stories, report = load_stories(source, max_stories=_TRIAL)
        texts = "\n".join(text for part in stories.values() for text in part["text"]).encode()
        stored = len(texts if files[0].suffix in (".txt", ".jsonl") else gzip.compress(texts))
        rows = round(sum(file.stat().st_size for file in files) * (report.train + report.validation) / stored)
    else:
        rows = sum(len(part) for split, part in load_hub(source)[0].items() if split in SPLITS)
    return min(rows, max_stories or rows)


def seconds_to_learn(stories: "Dataset", count: int, vocab_size: int) -> float:
    """How long `train_tokenizer` will take here for the first `count` stories, from learning on a few thousand."""
    return _seconds_for_all(
        lambda first: train_tokenizer(islice(stories["text"], first), vocab_size), min(count, len(stories))
    )


def seconds_to_write(stories: "Dataset", tokenizer: Tokenizer, max_tokens: int | None = None) -> float:
    """How long `write_bin` will take here for all stories, or those that fit into `max_tokens`, on one core."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        path = Path(folder) / "trial.bin"
        info = write_bin(path, islice(stories["text"], _TRIAL), tokenizer)
        count = min(len(stories), (max_tokens or info.tokens * len(stories)) * info.stories // info.tokens)
        return _seconds_for_all(lambda first: write_bin(path, islice(stories["text"], first), tokenizer), count)


def _seconds_for_all(work: Callable[[int], object], count: int) -> float:
    """Scale the time that `work` takes for few stories to `count`; what it needs to get going is left out."""
    with redirect_stderr(io.StringIO()):  # no bars for a trial
        work(_WARM_UP)
        started = time.perf_counter()
        work(_TRIAL)
        return count * (time.perf_counter() - started) / min(_TRIAL, count)


def duration(seconds: float) -> str:
    """A time as people say it: "a second", "40 seconds", "3 minutes", "2.8 hours", "3.2 days"."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if (many := seconds / size) >= 1.95:
            return f"{many:.2g} {unit}" if many < 10 else f"{many:,.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
