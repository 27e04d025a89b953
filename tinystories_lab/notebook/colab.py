"""Colab and Drive, and the same calls at home: where the workspace is, and what comes back after a disconnect."""

import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.stages import fetch, mirror
from tinystories_lab.workspace import Workspace, plan_workspace

WORKSPACE_VARIABLE = "TINYSTORIES_LAB_WORKSPACE"
COLAB_ROOT, DRIVE = Path("/content/tinystories_lab"), Path("/content/drive")


def in_colab() -> bool:
    """Whether this Python is a Colab runtime's."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def open_workspace(preset: str = "auto", source: str = "auto", run: str = "auto", use_drive: bool = False) -> Workspace:
    """Lay out the run and say what was chosen; on Colab with `use_drive`, mount Drive and fetch what an earlier session left.

    The workspace is the folder that TINYSTORIES_LAB_WORKSPACE names, else /content/tinystories_lab on Colab, else the
    current folder, or the repository when that is its notebooks/. Raises ValueError as `plan_workspace` does.
    """
    here = Path.cwd().parent if Path.cwd().name == "notebooks" else Path.cwd()
    root = os.environ.get(WORKSPACE_VARIABLE) or (COLAB_ROOT if in_colab() else here)
    lab = plan_workspace(root, preset, source, run)
    device, why_device = choose_device()
    print(f"preset {lab.preset.name}, source {lab.source}; {why_device}; {choose_dtype(device)[1]}")
    if in_colab() and use_drive and mount_drive():
        lab = replace(lab, mirror_root=DRIVE / "MyDrive" / "tinystories_lab")
        fetch(lab)
    print(f"data: {lab.data_dir}\nrun:  {lab.run_dir}")
    return lab


def mount_drive() -> bool:
    """Mount Google Drive; returns whether it is there, and warns of what a run without it costs."""
    from google.colab import drive

    try:
        drive.mount(str(DRIVE), force_remount=not is_mounted())  # a mount that died is in the way of a new one
    except Exception as error:  # refused or timed out: Colab raises ValueError and its own kinds
        warnings.warn(
            f"Drive was not mounted ({error}): when this machine goes, the run goes with it; run the cell again to mount",
            stacklevel=3,
        )
    return is_mounted()


def is_mounted() -> bool:
    return os.path.isdir(DRIVE / "MyDrive")  # False also where a dead mount raises


def close_workspace(lab: Workspace, flush: bool = False) -> None:
    """Copy what has changed to Drive, if it is mounted; with `flush`, also wait for Drive's own upload, and unmount.

    Drive uploads in its own time what was copied to it: before the machine is given up, the flush is what makes it safe.
    """
    mirror(lab)
    if not lab.mirror_root:
        return
    if flush:
        from google.colab import drive

        drive.flush_and_unmount()
        print("everything is on Drive, which is unmounted now")
    else:
        print(
            "Drive uploads it in its own time: before you give up this machine, call close_workspace(lab, flush=True)"
        )
