"""A corpus and a run so small that training takes a second, for the tests and the fault harness."""

import warnings
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tinystories_lab.checkpoint import load_checkpoint
from tinystories_lab.config import TrainConfig
from tinystories_lab.files import Row, read_log
from tinystories_lab.model import GPTConfig
from tinystories_lab.run import Preset, Workspace
from tinystories_lab.tokenizer import save_tokenizer, train_tokenizer, write_bin

SESSION_FIELDS = {"tokens_per_second", "seconds", "eta_seconds", "resumed_from", "mirrored_step"}
MODEL = GPTConfig(vocab_size=300, n_layer=2, n_head=2, d_model=32, max_len=16)
TRAIN = TrainConfig(  # logging, evaluating, saving and keeping happen at different steps
    batch_size=4,
    seq_len=16,
    total_steps=12,
    warmup_steps=2,
    peak_lr=1e-2,
    log_every=3,
    eval_every=6,
    eval_batches=2,
    save_every=4,
    keep_every=5,
)


PRESET = Preset("micro", "stories.txt", None, 1_000, None, 20, MODEL, TRAIN)


def workspace(run_dir: Path, data_dir: Path, mirror_root: Path | None = None, **changes: Any) -> Workspace:
    """Return the workspace of a micro run with these changes to its TrainConfig."""
    return Workspace(PRESET, PRESET.source, data_dir, run_dir, mirror_root).with_train_config(**changes)


def make_stories() -> list[str]:
    """Return 144 different stories of about twenty tokens each."""
    names, things, places = ("Lily", "Ben", "Mia"), ("ball", "kite", "boat", "hat"), ("park", "garden", "pond")
    return [
        f"{name} found a {colour} {thing} in the {place}. {name} was very happy."
        for name, colour, thing, place in product(names, ("red", "blue", "green", "big"), things, places)
    ]


def make_data(folder: Path) -> None:
    """Write a real data folder with these stories and a vocabulary of 300."""
    stories = make_stories()
    tokenizer = train_tokenizer(stories, MODEL.vocab_size)
    save_tokenizer(tokenizer, folder / "tokenizer.json")
    write_bin(folder / "train.bin", stories[:120], tokenizer, source="made up")
    write_bin(folder / "val.bin", stories[120:], tokenizer, source="made up")


def same(one: Any, other: Any) -> bool:
    """Return whether two values, which may be nested dicts and lists, are equal bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def log_of(run_dir: Path) -> list[Row]:
    """Return the log rows of a run without the fields that depend on the clock or on where sessions ended."""
    with warnings.catch_warnings(action="ignore"):
        rows = read_log(run_dir / "loss.jsonl")
    return [{key: value for key, value in row.items() if key not in SESSION_FIELDS} for row in rows]


def differences(one: Path, other: Path) -> list[str]:
    """Return the parts of two finished runs that are not equal bit for bit."""
    found = [] if log_of(one) == log_of(other) else ["loss.jsonl"]
    kept = ("step", "model", "optimizer", "scaler", "skipped_updates", "tokenizer_sha256", "data_sha256")
    for name, keys in (("last.pt", kept), ("final.pt", ("step", "model"))):
        first, second = (load_checkpoint(folder / name, set(keys)) for folder in (one, other))
        found += [f"{key} in {name}" for key in keys if not same(first[key], second[key])]
    return found
