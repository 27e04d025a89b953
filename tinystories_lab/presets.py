"""What a run is: every choice in one place, and the three sets of choices that come ready-made."""

import os
from dataclasses import dataclass, replace

from tinystories_lab.device import choose_device
from tinystories_lab.model import GPTConfig
from tinystories_lab.recipe import TrainConfig

PRESET_VARIABLE = "TINYSTORIES_LAB_PRESET"


@dataclass(frozen=True)
class Preset:
    """Every choice of a run. `model.vocab_size` is the most the tokenizer may learn; a small corpus gives fewer."""

    name: str
    source: str
    max_stories: int | None  # read at most so many; None is all
    tokenizer_stories: int  # learn the tokenizer on so many
    max_tokens: int | None  # write at most so many to train.bin; None is all
    sample_tokens: int  # the most new tokens in a kept sample: the chapter's 120, or a whole story
    model: GPTConfig
    train: TrainConfig


BOOK = Preset(  # the chapter's run
    name="book",
    source="tinystories",
    max_stories=None,
    tokenizer_stories=100_000,
    max_tokens=200_000_000,
    sample_tokens=120,
    model=GPTConfig(),
    train=TrainConfig(),
)
FAST = replace(  # its data, tokens and size with a better recipe: tests/benchmarks/RECIPE.md has what each part gave
    BOOK,
    name="fast",
    model=replace(BOOK.model, n_head=5),  # of 64 values each
    train=replace(BOOK.train, optimizer="muon", peak_lr=6e-3, warmup_steps=250, first_seq_len=64),
)
TINY = Preset(  # built-in stories in about a minute on 2 cores
    name="tiny",
    source="toyland",
    max_stories=20_000,
    tokenizer_stories=20_000,
    max_tokens=None,
    sample_tokens=200,
    model=GPTConfig(vocab_size=2_048, n_layer=2, n_head=4, d_model=128, max_len=128),
    train=TrainConfig(
        batch_size=8,  # many small steps: at so few tokens they teach more than few large ones
        seq_len=128,
        total_steps=800,
        warmup_steps=50,
        peak_lr=5e-3,
        beta2=0.99,  # small batches: average the squares for longer
        log_every=10,
        eval_every=100,
        eval_batches=12,
        save_every=100,
        keep_every=400,
    ),
)
PRESETS = {preset.name: preset for preset in (TINY, BOOK, FAST)}


def choose_preset(name: str = "auto") -> Preset:
    """The preset of that name; "auto" chooses one.

    That is what the environment variable TINYSTORIES_LAB_PRESET says, else `book` where there is a GPU (MPS too) and
    `tiny` where there is none. Raises ValueError for a name that is not known.
    """
    if name == "auto":
        name = os.environ.get(PRESET_VARIABLE) or ("tiny" if choose_device()[0].type == "cpu" else "book")
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: take one of {', '.join(PRESETS)}, or auto")
    return PRESETS[name]
