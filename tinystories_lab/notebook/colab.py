"""Open and close a run's workspace, on Colab with a mirror on Drive, elsewhere in a local folder."""

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
    """Lay out the run and print the choices; on Colab with `use_drive`, mount Drive and restore the run from it.

    The workspace is the folder that TINYSTORIES_LAB_WORKSPACE names; otherwise /content/tinystories_lab on Colab, and
    elsewhere the current folder, or its parent if the current folder is notebooks/. A source other than "auto" is saved
    there, and "auto" in later notebooks means that source. Raises ValueError as `plan_workspace` does.
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
    """Copy everything new to Drive, if it is mounted. With `flush`, also wait until Drive has uploaded it, and unmount.

    Drive uploads in the background, so only a flush makes it safe to give up the machine.
    """
    update_mirror(lab)
    if not lab.mirror_root:
        return
    if flush:
        from google.colab import drive

        drive.flush_and_unmount()
        print("everything is on Drive, which is now unmounted")
    else:
        print("Drive uploads in the background: before you give up this machine, call close_workspace(lab, flush=True)")


def _mount_drive() -> bool:
    """Mount Google Drive and return whether it is available. If mounting fails, warn that the run is not safe."""
    from google.colab import drive

    mounted = _DRIVE / "MyDrive"
    try:
        # A mount that stopped working has to be replaced.
        drive.mount(str(_DRIVE), force_remount=not os.path.isdir(mounted))
    except Exception as error:  # refused or timed out: Colab raises ValueError and exceptions of its own
        warnings.warn(
            f"Drive was not mounted ({error}): if this machine is taken away, the run is lost; run the cell again to mount",
            stacklevel=3,
        )
    return os.path.isdir(mounted)  # False also if a broken mount raises


def _saved_source(saved: Path, mirror_root: Path | None) -> str:
    """Return the source last chosen on this machine. On a new machine, return the source of the newest run on Drive.

    If that run has built-in stories or TinyStories, or if there is no run, return "auto".
    """
    if saved.is_file():
        return saved.read_text(encoding="utf-8")
    configs = mirror_root.glob("runs/*/config.yaml") if mirror_root else []
    for config in sorted(configs, key=lambda config: config.stat().st_mtime, reverse=True)[:1]:
        with suppress(OSError, ValueError, KeyError):  # an incomplete copy: the user has to choose the source again
            source = load_config(config.parent)["source"]
            return source if source not in NAMED else "auto"
    return "auto"
