"""Training by several processes: the command line for torchrun, and a session for processes that a test starts itself."""

import atexit
import os
import sys
from dataclasses import replace

import micro
import torch

from tinystories_lab import trainer
from tinystories_lab.device import init_distributed

CONFIG = replace(micro.TRAIN, log_every=1)


def train(run_dir, data_dir, stop=None, optimizer=CONFIG.optimizer):
    """Train the micro run in float64, so that no difference can come from rounding; leave the loop after step `stop`."""
    torch.set_default_dtype(torch.float64)
    try:
        config = replace(CONFIG, optimizer=optimizer)
        rows = trainer.train(run_dir, data_dir, micro.MODEL, config, "cpu", torch.float32)
        next((row for row in rows if row["step"] == stop), None)
        rows.close()
    finally:
        torch.set_default_dtype(torch.float32)


def join(rank, processes, port, *arguments):
    """`train` as one of several processes that torchrun might have started."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    with init_distributed():
        train(*arguments)


if __name__ == "__main__":
    from tinystories_lab.__main__ import main
    from tinystories_lab.run import PRESETS

    atexit.register(print, "Python was shut down", file=sys.stderr)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    trainer.choose_dtype = lambda device: (torch.float32, "for the test")
    PRESETS["micro"] = replace(micro.PRESET, train=CONFIG)
    sys.exit(main([*sys.argv[1:], "--preset", "micro"]))
