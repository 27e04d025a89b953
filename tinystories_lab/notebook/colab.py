"""Colab and Drive, and the same calls at home: where the workspace is, and what comes back after a disconnect."""

import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.files import replace_whole
from tinystories_lab.sources import NAMED
from tinystories_lab.stages import fetch, mirror
from tinystories_lab.workspace import Workspace, load_config, plan_workspace

_WORKSPACE_VARIABLE = "TINYSTORIES_LAB_WORKSPACE"
_COLAB_ROOT, _DRIVE = Path("/content/tinystories_lab"), Path("/content/drive")


def open_workspace(preset: str = "auto", source: str = "auto", run: str = "auto", use_drive: bool = False) -> Workspace:
    """Lay out the run and say what was chosen; on Colab with `use_drive`, mount Drive and fetch what an earlier session left.

    The workspace is the folder that TINYSTORIES_LAB_WORKSPACE names, else /content/tinystories_lab on Colab, else the
    current folder, or the repository when that is its notebooks/. A source that is named is noted there: in the notebooks
    that follow, "auto" is that one. Raises ValueError as `plan_workspace` does.
    """
    here = Path.cwd().parent if Path.cwd().name == "notebooks" else Path.cwd()
    on_colab = "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ
    root = Path(os.environ.get(_WORKSPACE_VARIABLE) or (_COLAB_ROOT if on_colab else here))
    mirror_root = _DRIVE / "MyDrive" / "tinystories_lab" if on_colab and use_drive and _mount_drive() else None
    note = root / "data" / "source.txt"
    named = _noted_source(note, mirror_root) if source == "auto" else source
    lab = plan_workspace(root, preset, named, run, mirror_root=mirror_root)
    if source != "auto":
        with replace_whole(note, "w") as file:
            file.write(source)
    device, why_device = choose_device()
    print(f"preset {lab.preset.name}, source {lab.source}; {why_device}; {choose_dtype(device)[1]}")
    fetch(lab)
    print(f"data: {lab.data_dir}\nrun:  {lab.run_dir}")
    return lab


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
        print("Drive uploads in its own time: before you give up this machine, call close_workspace(lab, flush=True)")


def _mount_drive() -> bool:
    """Mount Google Drive; returns whether it is there, and warns of what a run without it costs."""
    from google.colab import drive

    mounted = _DRIVE / "MyDrive"
    try:
        # A mount that died is in the way of a new one.
        drive.mount(str(_DRIVE), force_remount=not os.path.isdir(mounted))
    except Exception as error:  # refused or timed out: Colab raises ValueError and its own kinds
        warnings.warn(
            f"Drive was not mounted ({error}): when this machine goes, the run goes with it; run the cell again to mount",
            stacklevel=3,
        )
    return os.path.isdir(mounted)  # False also where a dead mount raises


def _noted_source(note: Path, mirror_root: Path | None) -> str:
    """What "auto" stands for: the source named last on this machine; on a new one, that of the newest run on Drive if it is one's own."""
    if note.is_file():
        return note.read_text(encoding="utf-8")
    runs = mirror_root.glob("runs/*/config.yaml") if mirror_root else []
    for config in sorted(runs, key=lambda config: config.stat().st_mtime, reverse=True)[:1]:
        with suppress(OSError, ValueError, KeyError):  # cut off in mid-copy: then the source is to be named again
            source = load_config(config.parent)["source"]
            return source if source not in NAMED else "auto"
    return "auto"
