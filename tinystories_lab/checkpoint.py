"""Stop and continue: everything a run needs to go on, in one file that is whole or absent and holds no code."""

import pickle
import warnings
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from tinystories_lab.copies import read_manifest
from tinystories_lab.files import replace_whole
from tinystories_lab.llama import read_llama
from tinystories_lab.model import GPTConfig, GPTMini

MODEL_KEYS = {"step", "model", "model_config", "tokenizer_sha256"}
RESUME_KEYS = MODEL_KEYS | {"optimizer", "scaler", "torch_rng", "train_config", "data_sha256", "saved_at", "orderly"}
RESUME_KEYS |= {"seconds", "skipped_updates", "row"}
MIRROR_SLOTS = ("last.0.pt", "last.1.pt")  # where `Mirror` copies last.pt in turn


def save_checkpoint(path: str | Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint (as of `TrainState.checkpoint`; further tensors and plain values may be in it) whole or not at all.

    Raises OSError when the disk refuses, FloatingPointError when weights or moments are not finite; both leave the file
    that was there.
    """
    if broken := _not_finite(checkpoint):
        raise FloatingPointError(f"{broken} holds values that are not finite: {path} was left as it was")
    whole = BytesIO()  # torch's writer hides a full disk behind an error of its own, so it does not meet the disk
    torch.save(checkpoint, whole)
    with replace_whole(path) as file:
        file.write(whole.getbuffer())


def load_checkpoint(path: str | Path, keys: set[str] = RESUME_KEYS) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, tensors and plain values only, after checking it: CRCs, `keys`, finite weights.

    Raises FileNotFoundError, or ValueError when the file is damaged, holds code, or is not a checkpoint of this lab.
    """
    path = Path(path)
    try:
        path.stat()  # not exists(): a disk that fails is not a file that is missing
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no checkpoint {path}: run 03_train (or `train` in the shell) first"
        ) from error
    try:
        with zipfile.ZipFile(path) as archive:  # torch's file is a zip
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} fails its checksum")
            # One flipped bit makes a record a folder; torch then hands out memory that nobody wrote.
            if any(entry.external_attr & 0x10 for entry in archive.infolist()):
                raise zipfile.BadZipFile("a record is marked as a folder")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and plain values: do not trust it; it was not run") from error
    except Exception as error:  # zipfile, zlib and torch each raise their own
        raise ValueError(f"{path} is damaged ({error}): use an older checkpoint") from error
    if missing := keys - checkpoint.keys() if isinstance(checkpoint, dict) else keys:
        purpose = "resume" if keys == RESUME_KEYS else "load"
        raise ValueError(f"{path} is not a checkpoint to {purpose}: it lacks {sorted(missing)}")
    try:
        broken = _not_finite(checkpoint) if "model" in keys else None
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint of this lab ({error}): use an older checkpoint") from error
    if broken:
        raise ValueError(f"{path} holds values that are not finite ({broken}): use an older checkpoint")
    return checkpoint


def _not_finite(checkpoint: dict[str, Any]) -> str | None:
    """The name of a weight or a moment of the optimizer that holds infinity or NaN; None when all are finite."""
    moments = checkpoint.get("optimizer", {"state": {}})["state"]
    tensors = {f"moment {key} of weight {i}": value for i, state in moments.items() for key, value in state.items()}
    for name, tensor in (checkpoint["model"] | tensors).items():
        if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():  # six times as fast as isfinite of each value
            return name
    return None


def latest_checkpoint(run_dir: str | Path, mirror_dir: str | Path | None = None) -> Path | None:
    """The checkpoint of a run with the highest step of those that verify; None when there is none at all.

    The candidates are last.pt and step_NNNNN.pt in `run_dir` and the slots in `mirror_dir` (see `Mirror`); each is read
    whole. Warns of each that it skips. Raises ValueError when some exist but none verifies: starting anew would hide that.
    A slot that the mirror's manifest does not list was cut off in the first copy, and does not count as one.
    """
    candidates = [Path(run_dir) / "last.pt", *step_checkpoints(run_dir)]
    candidates += [Path(mirror_dir) / slot for slot in MIRROR_SLOTS] if mirror_dir else []
    skipped, newest, newest_step = [], None, -1
    for path in candidates:
        try:
            step = load_checkpoint(path)["step"]
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:  # OSError: a disk may fail or go
            warnings.warn(f"skipped: {error}", stacklevel=2)
            if path.name not in MIRROR_SLOTS or isinstance(error, OSError) or path.name in read_manifest(path.parent):
                skipped.append(path)
        else:
            if step > newest_step:
                newest, newest_step = path, step
    if skipped and not newest:
        raise ValueError(
            f"none of the run's checkpoints can be read ({', '.join(map(str, skipped))}): move them away, or take "
            "`--fresh`, to start anew"
        )
    return newest


def step_of(path: str | Path, keys: set[str] = RESUME_KEYS) -> int:
    """The step of a checkpoint that `load_checkpoint` can read; -1 where there is none."""
    try:
        return load_checkpoint(path, keys)["step"]
    except (FileNotFoundError, ValueError):
        return -1


def step_checkpoints(run_dir: str | Path) -> list[Path]:
    """The step_NNNNN.pt of a run, newest first."""
    numbered = [path for path in Path(run_dir).glob("step_*.pt") if path.stem.removeprefix("step_").isdecimal()]
    return sorted(numbered, key=lambda path: int(path.stem.removeprefix("step_")), reverse=True)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> GPTMini:
    """The model of a checkpoint (last.pt, step_NNNNN.pt or final.pt) or of a Llama's folder, in evaluation mode on `device`.

    Raises FileNotFoundError and ValueError as `load_checkpoint` and `read_llama`.
    """
    return model_of(read_llama(path) if Path(path).is_dir() else load_checkpoint(path, MODEL_KEYS), device)


def model_of(checkpoint: dict[str, Any], device: str | torch.device = "cpu") -> GPTMini:
    """The model of what `load_checkpoint` has read, in evaluation mode on `device`; no random state is touched."""
    with torch.random.fork_rng(devices=[]):
        model = GPTMini(GPTConfig(**checkpoint["model_config"]))
    model.load_state_dict(checkpoint["model"])
    if torch.device(device).type == "cpu":  # telling reads all weights for a token: CPUs do so faster column by column
        for weight in model.parameters():
            weight.data = weight.data.t().contiguous().t()
    return model.to(device).eval()
