"""Colab and Drive, and the same calls at home: where the workspace is, and what comes back after a disconnect."""

import os
import shutil
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

from tinystories_lab.checkpoint import load_checkpoint
from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.presets import Workspace, plan_workspace

WORKSPACE_VARIABLE = "TINYSTORIES_LAB_WORKSPACE"
COLAB_ROOT, DRIVE = Path("/content/tinystories_lab"), Path("/content/drive")
# Drive keeps what is deleted or replaced in its trash, counted against the quota: a small fixed set of files is
# rewritten in place there. Two slots for last.pt: while one is being written, the other is whole.
DATA_FILES = ("train.bin", "train.json", "val.bin", "val.json", "tokenizer.json")
RUN_FILES = (
    "config.yaml",
    "tokenizer.json",
    "loss.jsonl",
    "samples.jsonl",
    "ratings.jsonl",
    "loss_curve.png",
    "final.pt",
)
SLOTS = ("last.0.pt", "last.1.pt")


def in_colab() -> bool:
    """Whether this Python is a Colab runtime's."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def open_workspace(preset: str = "auto", source: str = "auto", run: str = "auto", use_drive: bool = False) -> Workspace:
    """Lay out the run and say what was chosen; on Colab with `use_drive`, mount Drive and fetch what an earlier session left.

    The workspace is the folder that TINYSTORIES_LAB_WORKSPACE names, else /content/tinystories_lab on Colab, else the
    current folder, or the repository when that is its notebooks/. Raises ValueError as `plan_workspace` does.
    """
    here = Path.cwd().parent if Path.cwd().name == "notebooks" else Path.cwd()
    lab = plan_workspace(
        os.environ.get(WORKSPACE_VARIABLE) or (COLAB_ROOT if in_colab() else here), preset, source, run
    )
    device, why_device = choose_device()
    print(f"preset {lab.preset.name}, source {lab.source}; {why_device}; {choose_dtype(device)[1]}")
    if in_colab() and use_drive:
        from google.colab import drive

        drive.mount(str(DRIVE))
        fetch(lab)
    print(f"data: {lab.data_dir}\nrun:  {lab.run_dir}")
    return lab


def drive_folders(lab: Workspace) -> tuple[Path, Path] | None:
    """The data and run folders of `lab` on the mounted Drive; None where no Drive is mounted."""
    if not (DRIVE / "MyDrive").is_dir():
        return None
    root = DRIVE / "MyDrive" / "tinystories_lab"
    return root / "data" / lab.data_dir.name, root / "runs" / lab.run_dir.name


def mirror(lab: Workspace) -> None:
    """Copy the finished data and the run to Drive, if it is mounted; a failure warns and training goes on.

    "Mirrored", not "safe": Drive uploads in the background, and only drive.flush_and_unmount() waits for it.
    """
    if not (folders := drive_folders(lab)):
        return
    try:
        copy_changed(lab.data_dir, folders[0], DATA_FILES)
        copy_changed(lab.run_dir, folders[1], RUN_FILES)
        last, slots = lab.run_dir / "last.pt", [folders[1] / name for name in SLOTS]
        if last.exists() and not any(is_copy(last, slot) for slot in slots):
            older = min(slots, key=lambda slot: slot.stat().st_mtime if slot.exists() else 0)
            copy(last, older)
    except OSError as error:
        warnings.warn(f"could not mirror to Drive ({error}): going on with the local files alone", stacklevel=2)


def fetch(lab: Workspace) -> None:
    """Bring back from Drive what this machine lacks of the data and the run: the newest checkpoint that verifies."""
    folders = drive_folders(lab)
    if not folders:
        return
    missing = [name for name in DATA_FILES if not (lab.data_dir / name).exists()]
    copy_changed(folders[0], lab.data_dir, missing)
    if (lab.run_dir / "last.pt").exists():
        return
    copy_changed(folders[1], lab.run_dir, RUN_FILES)
    steps = {}
    for slot in (folders[1] / name for name in SLOTS):
        try:
            steps[slot] = load_checkpoint(slot)["step"]
        except (OSError, ValueError) as error:
            if slot.exists():
                warnings.warn(f"skipped: {error}", stacklevel=2)
    if steps:
        newest = max(steps, key=steps.__getitem__)
        copy(newest, lab.run_dir / "last.pt")
        print(f"fetched the run from Drive: it goes on at step {steps[newest]:,}")


def copy_changed(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        if (source / name).exists() and not is_copy(source / name, target / name):
            copy(source / name, target / name)


def is_copy(source: Path, target: Path) -> bool:
    """Whether `target` has the size of `source` and is not older: what `copy` leaves behind."""
    if not target.exists():
        return False
    ours, theirs = source.stat(), target.stat()
    return ours.st_size == theirs.st_size and ours.st_mtime <= theirs.st_mtime


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)  # rewrites in place, and gives the copy today's time
