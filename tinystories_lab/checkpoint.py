"""Stop and continue: everything a run needs to go on, in one file that is whole or absent and holds no code."""

import pickle
import signal
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tinystories_lab.files import replace_whole
from tinystories_lab.model import GPTConfig, GPTMini

MODEL_KEYS = {"step", "model", "model_config", "tokenizer_sha256"}
RESUME_KEYS = MODEL_KEYS | {"optimizer", "scaler", "torch_rng", "train_config", "seconds", "skipped_updates"}


def save_checkpoint(
    path: str | Path,
    model: GPTMini,
    optimizer: torch.optim.Optimizer | None = None,
    scaler: torch.amp.GradScaler | None = None,
    *,
    step: int,
    tokenizer_sha256: str | None = None,
    **plain: Any,
) -> None:
    """Write a checkpoint whole: written beside, synced, renamed.

    `step` is the next step to run, counted from 0: as many steps are finished. Learning rate and batches follow from
    it, so neither is kept. With optimizer and scaler the run can resume from the file; without, it only holds a
    model. `plain` takes further tensors and plain values.
    """
    checkpoint = {"step": step, "model": model.state_dict(), "model_config": asdict(model.config)}
    checkpoint |= {"tokenizer_sha256": tokenizer_sha256, **plain}
    if optimizer is not None and scaler is not None:
        checkpoint |= {
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
    with replace_whole(path) as file:
        torch.save(checkpoint, file)


def load_checkpoint(path: str | Path, keys: set[str] = RESUME_KEYS) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, tensors and plain values only, after checking it: CRCs, then `keys`.

    Raises FileNotFoundError, or ValueError when the file is damaged, holds code, or is not a checkpoint of this lab.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}: run 03_train (or `train` in the shell) first")
    try:
        with zipfile.ZipFile(path) as archive:  # torch's file is a zip
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} fails its checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values, and was not run: do not trust it"
        ) from error
    except Exception as error:  # zipfile, zlib and torch each raise their own
        raise ValueError(f"{path} is damaged ({error}): use an older checkpoint") from error
    missing = keys - checkpoint.keys() if isinstance(checkpoint, dict) else keys
    if missing:
        raise ValueError(
            f"{path} is not a checkpoint to {'resume' if keys == RESUME_KEYS else 'load'}: it lacks {sorted(missing)}"
        )
    return checkpoint


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run that verifies: last.pt, else the newest step_NNNNN.pt; None when there is none at all.

    Warns of each that it skips. Raises ValueError when checkpoints exist but none verifies: starting anew would hide that.
    """
    candidates = [path for path in [Path(run_dir) / "last.pt", *step_checkpoints(run_dir)] if path.exists()]
    for path in candidates:
        try:
            load_checkpoint(path)
            return path
        except ValueError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
    if candidates:
        names = ", ".join(path.name for path in candidates)
        raise ValueError(f"none of the checkpoints in {run_dir} can be read ({names}): move them away to start anew")
    return None


def step_checkpoints(run_dir: str | Path) -> list[Path]:
    """The step_NNNNN.pt of a run, newest first."""
    return sorted(Path(run_dir).glob("step_*.pt"), key=lambda path: int(path.stem.removeprefix("step_")), reverse=True)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> GPTMini:
    """The model of a checkpoint (last.pt, step_NNNNN.pt or final.pt), in evaluation mode on `device`."""
    checkpoint = load_checkpoint(path, MODEL_KEYS)
    model = GPTMini(GPTConfig(**checkpoint["model_config"]))
    model.load_state_dict(checkpoint["model"])
    return model.to(device).eval()


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C (a notebook's Stop) back until the block ends, so that a step is done whole; a second one breaks in."""
    pending = []

    def hold(signal_number: int, frame: object) -> None:
        if pending:
            raise KeyboardInterrupt
        pending.append(signal_number)

    try:
        previous = signal.signal(signal.SIGINT, hold)
    except ValueError:  # only the main thread gets signals; elsewhere there is nothing to hold back
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pending:
        raise KeyboardInterrupt
