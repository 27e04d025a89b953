"""The five ways a run goes, each provoked on purpose: real training of a small model, in seconds."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from tinystories_lab.model import GPTConfig
from tinystories_lab.recipe import TrainConfig
from tinystories_lab.runlog import Row
from tinystories_lab.tokenizer import BinInfo
from tinystories_lab.trainer import train

_SEQ_LEN = 128
_RECIPE = {"batch_size": 2, "seq_len": _SEQ_LEN, "total_steps": 120, "warmup_steps": 10, "peak_lr": 1e-2}
_RECIPE |= {"optimizer": "muon", "matrix_lr": 1e-2}
_RECIPE |= {"log_every": 1, "eval_every": 20, "eval_batches": 8, "save_every": 1_000, "keep_every": 1_000}
# What is done to the run, in words, and which choices that changes.
PATTERNS = {
    "healthy": ("nothing", {}),
    "diverging": ("learning rates that never stop rising", {"peak_lr": 3.0, "matrix_lr": 3.0, "warmup_steps": 119}),
    "stuck": ("learning rates a ten-thousandth", {"peak_lr": 1e-6, "matrix_lr": 1e-6}),
    "spiking": ("data with rubbish in it", {}),
    "overfitting": ("data of a dozen stories' length", {}),
}


def provoke(pattern: str, data_dir: str | Path) -> list[Row]:
    """Train a small model on the beginning of `data_dir`'s stories so that its curve shows `pattern`; returns its log rows.

    Works in a folder of its own, which goes afterwards. Raises KeyError for a name that is not in PATTERNS,
    FileNotFoundError where there is no data.
    """
    _, changes = PATTERNS[pattern]
    data_dir = Path(data_dir)
    info = BinInfo.of(data_dir / "train.bin")
    if info is None:
        raise FileNotFoundError(f"there is no data in {data_dir}: run 02_tokenizer (or `tokenizer` in the shell) first")
    ids = np.fromfile(data_dir / "train.bin", np.uint16, count=100_000)
    if pattern == "spiking":
        random = np.random.default_rng(0)
        for start in range(len(ids) // 10, len(ids), len(ids) // 10):  # too long for a window to escape
            part = ids[start : start + 3 * _SEQ_LEN]
            part[:] = random.integers(2, info.vocab_size, len(part))
    if pattern == "overfitting":
        ids = ids[: 16 * _SEQ_LEN]
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder, "data"), Path(folder, "run")
        data.mkdir()
        ids.tofile(data / "train.bin")
        for name in ("val.bin", "tokenizer.json"):
            shutil.copy(data_dir / name, data)
        model = GPTConfig(info.vocab_size, n_layer=2, n_head=2, d_model=64, max_len=_SEQ_LEN)
        rows, config = [], TrainConfig(**_RECIPE | changes)
        with suppress(FloatingPointError):  # what diverging may come to, after rows enough to see it
            rows.extend(train(run, data, model, config, dtype=torch.float32))  # on every machine
        return rows
