"""Demonstrate each of the five patterns of `diagnosis` by training a small model for a few seconds."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from tinystories_lab.config import TrainConfig
from tinystories_lab.files import Row
from tinystories_lab.loader import open_tokens
from tinystories_lab.model import GPTConfig
from tinystories_lab.tokenizer import load_tokenizer
from tinystories_lab.trainer import train

_TOKENS, _SEQ_LEN = 100_000, 128
_HEALTHY = {"batch_size": 2, "seq_len": _SEQ_LEN, "total_steps": 120, "warmup_steps": 10, "peak_lr": 1e-2}
_HEALTHY |= {"optimizer": "muon", "muon_lr": 1e-2, "log_every": 1, "eval_every": 20, "eval_batches": 8}
_HEALTHY |= {"save_every": 1_000, "keep_every": 1_000}
# For each pattern: what is changed, in words, and the changes of the TrainConfig.
FAILURE_MODES = {
    "healthy": ("nothing", {}),
    "diverging": ("learning rates that rise to the last step", {"peak_lr": 3.0, "muon_lr": 3.0, "warmup_steps": 119}),
    "stuck": ("learning rates 10,000 times smaller", {"peak_lr": 1e-6, "muon_lr": 1e-6}),
    "spiking": ("random tokens in the data", {}),
    "overfitting": ("training data of about a dozen stories", {}),
}


def demonstrate(pattern: str, data_dir: str | Path) -> list[Row]:
    """Return the log rows of a small model, trained on the first stories of `data_dir` so that they show `pattern`."""
    _, changes = FAILURE_MODES[pattern]
    data_dir = Path(data_dir)
    ids = np.array(open_tokens(data_dir / "train.bin")[:_TOKENS])
    vocab_size = load_tokenizer(data_dir / "tokenizer.json").get_vocab_size()
    if pattern == "spiking":
        rng = np.random.default_rng(0)
        for start in range(len(ids) // 10, len(ids), len(ids) // 10):
            noise = ids[start : start + 3 * _SEQ_LEN]  # so long that some windows contain only noise
            noise[:] = rng.integers(2, vocab_size, len(noise))
    if pattern == "overfitting":
        ids = ids[: 16 * _SEQ_LEN]
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder, "data"), Path(folder, "run")
        data.mkdir()
        ids.tofile(data / "train.bin")
        for name in ("val.bin", "tokenizer.json"):
            shutil.copy(data_dir / name, data)
        model = GPTConfig(vocab_size, n_layer=2, n_head=2, d_model=64, max_len=_SEQ_LEN)
        rows, config = [], TrainConfig(**_HEALTHY | changes)
        with suppress(FloatingPointError):  # a diverging run may end like this; by then, its rows show the pattern
            rows.extend(train(run, data, model, config, dtype=torch.float32))  # the same on every machine
        return rows
