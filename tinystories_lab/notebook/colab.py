"""Open and close the workspace of a run. On Colab, it can have a mirror on Google Drive."""

import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from tinystories_lab.data.sources import NAMED
from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.files import atomic_write
from tinystories_lab.pipeline import restore, update_mirror
from tinystories_lab.run import Workspace, load_config, plan_workspace

_WORKSPACE_VARIABLE = "TINYSTORIES_LAB_WORKSPACE"
_COLAB_ROOT, _DRIVE = Path("/content/tinystories_lab"), Path("/content/drive")


def open_workspace(preset: str = "auto", source: str = "auto", run: str = "auto", use_drive: bool = False) -> Workspace:
    """Return the workspace and print the choices. On Colab with `use_drive`, mount Drive and restore the run from it.

    The folder of the workspace is TINYSTORIES_LAB_WORKSPACE if it is set, otherwise /content/tinystories_lab on Colab.
    Elsewhere it is the current folder, or its parent if the current folder is notebooks/. A source other than "auto" is
    saved, and "auto" in later notebooks means that source. Raises ValueError as `plan_workspace` does.
    """
    here = Path.cwd().parent if Path.cwd().name == "notebooks" else Path.cwd()
    on_colab = "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ
    root = Path(os.environ.get(_WORKSPACE_VARIABLE) or (_COLAB_ROOT if on_colab else here))
    mirror_root = _DRIVE / "MyDrive" / "tinystories_lab" if on_colab and use_drive and _mount_drive() else None
    saved = root / "data" / "source.txt"
    chosen = _saved_source(saved, mirror_root) if source == "auto" else source
    lab = plan_workspace(root, preset, chosen, run, mirror_root=mirror_root)
    if source != "auto":
        with atomic_write(saved, "w") as file:
            file.write(source)
    device, why_device = choose_device()
    print(f"preset {lab.preset.name}, source {lab.source}; {why_device}; {choose_dtype(device)[1]}")
    restore(lab)
    print(f"data: {lab.data_dir}\nrun:  {lab.run_dir}")
    return lab


def close_workspace(lab: Workspace, flush: bool = False) -> None:
    """Copy new files to the mirror, if there is one. With `flush`, wait until Drive has uploaded them, and unmount it.

    Drive uploads in the background, so the machine may only be given up after a flush.
    """
    update_mirror(lab)
    if lab.mirror_root and flush:
        from google.colab import drive

        drive.flush_and_unmount()
        print("everything is on Drive, which is now unmounted")
    elif lab.mirror_root:
        print("Drive uploads in the background: before you give up this machine, call close_workspace(lab, flush=True)")


def _mount_drive() -> bool:
    """Mount Google Drive, and return whether it is available. If mounting fails, warn that the run is not safe."""
    from google.colab import drive

    mounted = _DRIVE / "MyDrive"
    try:
        # If a mount has stopped working, it must be replaced.
        drive.mount(str(_DRIVE), force_remount=not os.path.isdir(mounted))
    except Exception as error:  # the user refused, or it took too long: Colab raises ValueError and its own exceptions
        risk = "if this machine is taken away, the run is lost; run the cell again to mount Drive"
        warnings.warn(f"Drive was not mounted ({error}): {risk}", stacklevel=3)
    return os.path.isdir(mounted)  # False also if a broken mount raises an error


def _saved_source(saved: Path, mirror_root: Path | None) -> str:
    """Return the source that was last chosen on this machine, or on a new machine, that of the newest run on Drive.

    If there is no such run, or if its source is a built-in one, return "auto".
    """
    if saved.is_file():
        return saved.read_text(encoding="utf-8")
    configs = mirror_root.glob("runs/*/config.yaml") if mirror_root else ()
    if newest := max(configs, key=lambda config: config.stat().st_mtime, default=None):
        with suppress(OSError, ValueError, KeyError):  # the copy is incomplete: the user has to choose the source again
            source = load_config(newest.parent)["source"]
            return source if source not in NAMED else "auto"
    return "auto"
