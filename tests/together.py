"""The command line with a preset of twelve steps, for tests that start it with torchrun: stops after $STOP_AFTER steps."""

import atexit
import os
import sys
from dataclasses import replace

import micro
import torch

from tinystories_lab import stages, trainer
from tinystories_lab.__main__ import main
from tinystories_lab.presets import PRESETS, Preset

PRESET = Preset("micro", "stories.txt", None, 1_000, None, 20, micro.MODEL, replace(micro.TRAIN, log_every=1))


def train(*arguments, **settings):
    rows = trainer.train(*arguments, **settings, dtype=torch.float32)
    for row in rows:
        yield row
        if row["step"] == int(os.environ.get("STOP_AFTER", 0)):
            rows.close()
            raise KeyboardInterrupt


if __name__ == "__main__":
    atexit.register(print, "Python was taken down", file=sys.stderr)
    torch.set_num_threads(1)
    PRESETS["micro"], stages.train = PRESET, train
    sys.exit(main([*sys.argv[1:], "--preset", "micro"]))
