"""Checkpoints: everything that a run needs to continue, in one file that is written whole and verified when read."""

import errno
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinystories_lab.config import RESUMABLE_CHANGES, TrainConfig
from tinystories_lab.device import rank
from tinystories_lab.files import atomic_write, read_log
from tinystories_lab.model import GPTConfig, GPTMini, new_model

MODEL_KEYS = {"step", "model", "model_config", "tokenizer_sha256"}
FINAL_KEYS = MODEL_KEYS | {"train_config", "data_sha256"}  # of final.pt and best.pt; the last two since version 2.0
RESUME_KEYS = FINAL_KEYS | {"optimizer", "scaler", "torch_rng", "saved_at", "seconds", "skipped_updates", "row"}
_KEPT_STEP_CHECKPOINTS = 2
# A disk that answers with one of these has failed. Its files are neither missing nor damaged.
_DISK_ERRORS = {errno.EIO, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN}
_DISK_ERRORS |= {errno.ECONNABORTED, errno.EACCES, errno.EPERM}


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

    Raises FileNotFoundError if there is no file, ValueError if it fails verification, and OSError if the disk fails.
    """
    path = Path(path)
    advice = "run 03_train (or `train`) to write it again" if path.name == "final.pt" else "use an older checkpoint"
    try:
        path.stat()
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
    except Exception as error:  # zipfile, zlib and PyTorch raise different errors, and OSError for damaged files, too
        if is_disk_failure(error):
            raise
        if isinstance(error, FileNotFoundError):
            message = f"there is no checkpoint {path}: run 03_train (or `train` in the shell) first"
            raise FileNotFoundError(message) from error
        raise ValueError(f"{path} is damaged ({error}): {advice}") from error
    if missing := keys - checkpoint.keys() if isinstance(checkpoint, dict) else keys:
        purpose = "resume from" if keys == RESUME_KEYS else "load"
        raise ValueError(f"{path} is not a checkpoint to {purpose}: it lacks {sorted(map(str, missing))}")
    try:
        _check_content(checkpoint, keys)
        broken = _find_not_finite(checkpoint) if "model" in keys else None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of this project ({error}): {advice}") from error
    if broken:
        raise ValueError(f"{path} has values that are not finite ({broken}): {advice}")
    return checkpoint


def is_disk_failure(error: Exception) -> bool:
    """Return whether an error comes from a disk that does not answer, rather than from a missing or damaged file."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def _check_content(checkpoint: dict[str, Any], keys: set[str]) -> None:
    """Raise ValueError or another error if a value in a checkpoint has the wrong type, or weights the wrong shape."""
    types = {"step": int, "row": dict | None, "torch_rng": Tensor, "optimizer": dict, "scaler": dict}
    types |= dict.fromkeys(("saved_at", "seconds", "skipped_updates"), float | int)
    types |= dict.fromkeys(("tokenizer_sha256", "data_sha256"), str)
    for name in types.keys() & keys:
        if not isinstance(checkpoint[name], types[name]):
            raise TypeError(f"{name} is {checkpoint[name]!r}")
    if "train_config" in keys:
        TrainConfig.from_dict(checkpoint["train_config"])
    if "model_config" in keys:
        with torch.device("meta"):
            shapes = GPTMini(GPTConfig.from_dict(checkpoint["model_config"])).state_dict()
        weights = checkpoint["model"]
        if weights.keys() != shapes.keys() or any(weights[name].shape != shapes[name].shape for name in shapes):
            raise ValueError("its weights do not fit its model_config")


def _find_not_finite(checkpoint: dict[str, Any]) -> str | None:
    """Return the name of a weight or optimizer tensor that contains infinity or NaN; None if there is none."""
    tensors = {} | checkpoint["model"]
    for i, state in checkpoint.get("optimizer", {"state": {}})["state"].items():
        tensors |= {f"{key} of weight {i} in the optimizer": value for key, value in state.items()}
    # To check the smallest and the largest value is six times as fast as to check each one.
    broken = (name for name, tensor in tensors.items() if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
    return next(broken, None)


def run_checkpoints(run_dir: str | Path) -> list[Path]:
    """Return the paths that a run may resume from: last.pt, then each step_NNNNN.pt, newest first."""
    numbered = [path for path in Path(run_dir).glob("step_*.pt") if path.stem.removeprefix("step_").isdecimal()]
    numbered.sort(key=lambda path: int(path.stem.removeprefix("step_")), reverse=True)
    return [Path(run_dir) / "last.pt", *numbered]


def latest_checkpoint(candidates: Iterable[Path]) -> tuple[Path, dict[str, Any]] | None:
    """Return path and content of the valid candidate with the highest step, or None if no file exists.

    Candidates are verified from the highest step down, with a warning for each that fails. Raises ValueError if files
    exist but all fail (a new start would hide that), and OSError if the disk fails (the newest may be there).
    """
    steps = {path: step for path in candidates if (step := read_step(path)) is not None}
    for path in sorted(steps, key=lambda path: (steps[path] < 0, steps[path]), reverse=True):
        try:
            return path, load_checkpoint(path)
        except (FileNotFoundError, ValueError) as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
    if steps:
        found, advice = ", ".join(map(str, steps)), "to start again, move them away or use `--fresh`"
        raise ValueError(f"none of the run's checkpoints can be read ({found}): {advice}")
    return None


def read_step(path: str | Path) -> int | None:
    """Return the step of a checkpoint without reading its tensors; None if there is no file, -1 if it is damaged."""
    if (content := read_unverified(path)) is None:
        return None
    return content["step"] if isinstance(content.get("step"), int) else -1


def read_unverified(path: str | Path) -> dict[str, Any] | None:
    """Return a checkpoint without reading its tensors; None if there is no file, {} if it is damaged."""
    for mmap in (True, False):  # some disks do not support memory mapping
        try:
            Path(path).stat()
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            return content if isinstance(content, dict) else {}
        except FileNotFoundError:
            return None
        except Exception as error:  # `load_checkpoint` says what is wrong
            if is_disk_failure(error):
                raise
    return {}


def run_identity(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies a run: fixed settings, tokenizer and data. `checkpoint` has at least model_config."""
    identity = asdict(GPTConfig.from_dict(checkpoint["model_config"]))
    if checkpoint.get("train_config"):
        identity |= asdict(TrainConfig.from_dict(checkpoint["train_config"]))
    identity |= {name: checkpoint.get(f"{name}_sha256", "")[:12] for name in ("tokenizer", "data")}
    return {name: value for name, value in identity.items() if value != "" and name not in RESUMABLE_CHANGES}


def require_same_run(there: Mapping[str, Any], here: Mapping[str, Any], where: str) -> None:
    """Raise ValueError, which lists the differences, if two identities are not of the same run."""
    if differing := [name for name in here if name in there and there[name] != here[name]]:
        values = "; ".join(f"{name} {there[name]} there, {here[name]} here" for name in differing)
        advice = "or move the old run aside (`--fresh` in the shell, `move_aside(lab)` in a notebook)"
        raise ValueError(f"{where} belongs to another run ({values}): use another run name, {advice}")


def check_final(run_dir: str | Path) -> None:
    """Raise ValueError if final.pt is older than the run's log or checkpoints: it is the model of an earlier end."""
    path = Path(run_dir) / "final.pt"
    final, steps = read_step(path), [read_step(other) or 0 for other in run_checkpoints(run_dir)]
    newest = max([*steps, *(row["step"] for row in read_log(path.with_name("loss.jsonl")))])
    if final is not None and newest > final >= 0:
        found = f"{path} has the model of step {final:,}, but the run has gone on to step {newest:,}"
        raise ValueError(f"{found}: run 03_train (or `train` in the shell) to its end")


def load_model(path: str | Path, device: str | torch.device = "cpu") -> GPTMini:
    """Return the model of a checkpoint (last.pt, step_NNNNN.pt, final.pt, best.pt) on `device`, in evaluation mode.

    Raises as `load_checkpoint` does, and as `check_final` if it is final.pt.
    """
    if Path(path).name == "final.pt":
        check_final(Path(path).parent)
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

    def save(self, name: str, checkpoint: dict[str, Any], is_best: bool = False) -> None:
        """Write a checkpoint after the previous save has finished. If it `is_best`, also write its model to best.pt."""
        self.wait()
        if rank() != 0:
            return
        try:
            if self._pool is None:
                self._write(name, checkpoint, is_best)
            else:  # a copy, because training changes the tensors while the thread writes
                self._pending = name, self._pool.submit(self._write, name, deepcopy(checkpoint), is_best)
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
        path = self.run_dir / "final.pt"
        with suppress(FileNotFoundError, ValueError):
            if rank() != 0 or load_checkpoint(path, MODEL_KEYS)["step"] == checkpoint["step"]:
                return
        save_checkpoint(path, checkpoint)

    def _write(self, name: str, checkpoint: dict[str, Any], is_best: bool) -> None:
        save_checkpoint(self.run_dir / name, checkpoint)
        if is_best:
            save_checkpoint(self.run_dir / "best.pt", {key: checkpoint[key] for key in FINAL_KEYS})
        if name == "last.pt":
            self.saved_step = checkpoint["step"]
            self._after_save()
        elif name != "final.pt":
            for old in run_checkpoints(self.run_dir)[1 + _KEPT_STEP_CHECKPOINTS :]:  # last.pt is the first
                old.unlink(missing_ok=True)

    def _warn(self, name: str, error: BaseException) -> None:
        warnings.warn(f"saving {self.run_dir / name} failed ({error}): training continues", stacklevel=4)
