"""The command line with a preset of twelve steps, for tests that start it with torchrun: stops after $STOP_AFTER steps."""

import os
import sys

import micro
import torch

from tinystories_lab import stages, trainer
from tinystories_lab.__main__ import main
from tinystories_lab.presets import PRESETS, Preset
from tinystories_lab.recipe import TrainConfig

CONFIG = TrainConfig(
    batch_size=4,
    seq_len=16,
    total_steps=12,
    warmup_steps=2,
    peak_lr=1e-2,
    log_every=1,
    eval_every=6,
    eval_batches=2,
    save_every=4,
    keep_every=5,
)
PRESET = Preset("micro", "stories.txt", None, 1_000, None, 20, micro.MODEL, CONFIG)


def train(*arguments, **settings):
    rows = trainer.train(*arguments, **settings, dtype=torch.float32)
    for row in rows:
        yield row
        if row["step"] == int(os.environ.get("STOP_AFTER", 0)):
            rows.close()
            raise KeyboardInterrupt


if __name__ == "__main__":
    torch.set_num_threads(1)
    PRESETS["micro"], stages.train = PRESET, train
    sys.exit(main([*sys.argv[1:], "--preset", "micro"]))
