"""Checkpoints: everything that a run needs to continue, in one file that is written whole and verified when read."""

import math
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from tinystories_lab.device import rank
from tinystories_lab.files import atomic_write
from tinystories_lab.model import GPTConfig, GPTMini, new_model

MODEL_KEYS = {"step", "model", "model_config", "tokenizer_sha256"}
RESUME_KEYS = MODEL_KEYS | {"optimizer", "scaler", "torch_rng", "train_config", "data_sha256", "saved_at"}
RESUME_KEYS |= {"seconds", "skipped_updates", "row"}
_KEPT_STEP_CHECKPOINTS = 2


def save_checkpoint(path: str | Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint (see `TrainState.checkpoint`) whole or not at all.

    Raises OSError if the disk refuses it, and FloatingPointError if weights or optimizer state are not finite.
    """
    if broken := _find_not_finite(checkpoint):
        raise FloatingPointError(f"{broken} has values that are not finite: {path} was left as it was")
    buffer = BytesIO()  # torch.save reports a full disk as an error of its own, so it writes to memory first
    torch.save(checkpoint, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path: str | Path, keys: set[str] = RESUME_KEYS) -> dict[str, Any]:
    """Return a checkpoint, on the CPU and verified: checksums, the expected `keys`, finite weights, no code.

    Raises FileNotFoundError if there is no file, and ValueError if it fails verification.
    """
    path, advice = Path(path), "use an older checkpoint"
    try:
        path.stat()  # a disk that fails raises another OSError here: its checkpoints are neither missing nor damaged
    except FileNotFoundError as error:
        message = f"there is no checkpoint {path}: run 03_train (or `train` in the shell) first"
        raise FileNotFoundError(message) from error
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch's file format is a zip archive
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} fails its checksum")
            # One flipped bit can turn a record into a folder. PyTorch would then return uninitialized memory.
            if any(entry.external_attr & 0x10 for entry in archive.infolist()):
                raise zipfile.BadZipFile("a record is marked as a folder")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = f"{path} contains more than tensors and plain values: do not trust it (no code in it was run)"
        raise ValueError(message) from error
    except Exception as error:  # zipfile, zlib and PyTorch raise different errors
        raise ValueError(f"{path} is damaged ({error}): {advice}") from error
    if missing := keys - checkpoint.keys() if isinstance(checkpoint, dict) else keys:
        purpose = "resume from" if keys == RESUME_KEYS else "load"
        raise ValueError(f"{path} is not a checkpoint to {purpose}: it lacks {sorted(missing)}")
    try:
        broken = _find_not_finite(checkpoint) if "model" in keys else None
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint of this project ({error}): {advice}") from error
    if broken:
        raise ValueError(f"{path} has values that are not finite ({broken}): {advice}")
    return checkpoint


def _find_not_finite(checkpoint: dict[str, Any]) -> str | None:
    """Return the name of a weight or optimizer tensor that contains infinity or NaN; None if there is none."""
    tensors = {} | checkpoint["model"]
    for i, state in checkpoint.get("optimizer", {"state": {}})["state"].items():
        tensors |= {f"{key} of weight {i} in the optimizer": value for key, value in state.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():  # six times as fast as checking each value
            return name
    return None


def run_checkpoints(run_dir: str | Path) -> list[Path]:
    """Return the paths that a run may resume from: last.pt, then each step_NNNNN.pt, newest first."""
    return [Path(run_dir) / "last.pt", *_step_checkpoints(run_dir)]


def _step_checkpoints(run_dir: str | Path) -> list[Path]:
    numbered = [path for path in Path(run_dir).glob("step_*.pt") if path.stem.removeprefix("step_").isdecimal()]
    return sorted(numbered, key=lambda path: int(path.stem.removeprefix("step_")), reverse=True)


def latest_checkpoint(candidates: Iterable[Path]) -> tuple[Path, dict[str, Any]] | None:
    """Return path and content of the valid candidate with the highest step, or None if no file exists.

    Candidates are verified from the highest step down, with a warning for each that fails. Raises ValueError if files
    exist but all of them fail: to start again from nothing would hide that.
    """
    steps = {path: step for path in candidates if (step := read_step(path)) is not None}
    for path in sorted(steps, key=lambda path: steps[path] if steps[path] >= 0 else math.inf, reverse=True):
        try:
            return path, load_checkpoint(path)
        except (OSError, ValueError) as error:  # OSError: the disk may disappear
            warnings.warn(f"skipped: {error}", stacklevel=2)
    if steps:
        found, advice = ", ".join(map(str, steps)), "to start again, move them away or use `--fresh`"
        raise ValueError(f"none of the run's checkpoints can be read ({found}): {advice}")
    return None


def read_step(path: str | Path) -> int | None:
    """Return the step of a checkpoint without reading its tensors; None if there is no file, -1 if it is damaged."""
    for mmap in (True, False):  # some disks do not support memory mapping
        try:
            Path(path).stat()
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)["step"]
        except FileNotFoundError:
            return None
        except Exception:  # `load_checkpoint` says what is wrong
            continue
    return -1


def load_model(path: str | Path, device: str | torch.device = "cpu") -> GPTMini:
    """Return the model of a checkpoint (last.pt, step_NNNNN.pt, final.pt) on `device`, in evaluation mode."""
    return model_from_checkpoint(load_checkpoint(path, MODEL_KEYS), device)


def model_from_checkpoint(checkpoint: dict[str, Any], device: str | torch.device = "cpu") -> GPTMini:
    """Return the model of a loaded checkpoint on `device`, in evaluation mode. No random state changes."""
    model = new_model(GPTConfig.from_dict(checkpoint["model_config"]))
    model.load_state_dict(checkpoint["model"])
    if torch.device(device).type == "cpu":  # column-major weights speed up single-token decoding on CPUs
        for weight in model.parameters():
            weight.data = weight.data.t().contiguous().t()
    return model.to(device).eval()


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, on rank 0 only. A failed save is a warning, and training continues.

    With `background`, a thread writes a copy of the checkpoint while training continues. `after_save` is called after
    each successful save of last.pt. `saved_step` is the step of the newest last.pt.
    """

    def __init__(
        self, run_dir: str | Path, step: int, background: bool = False, after_save: Callable[[], None] = lambda: None
    ) -> None:
        self.run_dir, self.saved_step, self._after_save = Path(run_dir), step, after_save
        self._pool = ThreadPoolExecutor(1, "checkpoint writer") if background else None
        self._pending: tuple[str, Future] | None = None

    def save(self, name: str, checkpoint: dict[str, Any]) -> None:
        """Write a checkpoint to a file with this name in the run folder, after the previous save has finished."""
        self.wait()
        if rank() != 0:
            return
        try:
            if self._pool is None:
                self._write(name, checkpoint)
            else:  # a copy, because training changes the tensors while the thread writes
                self._pending = name, self._pool.submit(self._write, name, deepcopy(checkpoint))
        except Exception as error:  # a full disk, weights that are not finite, no memory for the copy, ...
            self._warn(name, error)

    def wait(self) -> None:
        """Wait until the current save has finished, and warn if it failed."""
        if self._pending is not None:
            (name, future), self._pending = self._pending, None
            if error := future.exception():
                self._warn(name, error)

    def finish(self, checkpoint: dict[str, Any]) -> None:
        """Write final.pt if it is missing, damaged or of an earlier step. Raises OSError if the disk refuses it."""
        self.wait()
        if rank() == 0 and read_step(self.run_dir / "final.pt") != checkpoint["step"]:
            save_checkpoint(self.run_dir / "final.pt", checkpoint)

    def _write(self, name: str, checkpoint: dict[str, Any]) -> None:
        save_checkpoint(self.run_dir / name, checkpoint)
        if name == "last.pt":
            self.saved_step = checkpoint["step"]
            self._after_save()
        elif name != "final.pt":
            for old in _step_checkpoints(self.run_dir)[_KEPT_STEP_CHECKPOINTS:]:
                old.unlink(missing_ok=True)

    def _warn(self, name: str, error: BaseException) -> None:
        warnings.warn(f"saving {self.run_dir / name} failed ({error}): training continues", stacklevel=4)
