"""Open and close the workspace of a run. On Colab, it can have a mirror on Google Drive."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinystories_lab.checkpoint import is_disk_failure
from tinystories_lab.data.sources import BUILT_IN
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
    saved, and "auto" in later notebooks means that source. Raises the ValueError of `plan_workspace`, and OSError if
    Drive does not answer.
    """
    root = _workspace_root()
    mirror_root = _DRIVE / "MyDrive" / "tinystories_lab" if use_drive and _on_colab() and _mount_drive() else None
    saved = root / "data" / "source.txt"
    with _explain_drive_errors():
        chosen = _saved_source(saved, mirror_root) if source == "auto" else source
    if chosen not in ("", "auto", *BUILT_IN):
        chosen = find_path(chosen)  # later notebooks and the shell may run in other folders
    lab = plan_workspace(root, preset, chosen, run, mirror_root=mirror_root)
    if source != "auto":
        with atomic_write(saved, "w") as file:
            file.write(chosen)
    device, why_device = choose_device()
    print(f"preset {lab.preset.name}, source {lab.source}; {why_device}; {choose_dtype(device)[1]}")
    with _explain_drive_errors():
        restore(lab)
    print(f"data: {lab.data_dir}\nrun:  {lab.run_dir}")
    return lab


def close_workspace(lab: Workspace, flush: bool = False) -> None:
    """Copy new files to the mirror, if there is one. With `flush`, wait until Drive has them, and unmount it."""
    with _explain_drive_errors():
        update_mirror(lab)
    if lab.mirror_root and flush:
        try:
            from google.colab import drive

            drive.flush_and_unmount()
            print("everything is on Drive, which is now unmounted")
        except Exception as error:  # some runtimes raise NotImplementedError; this must not stop a finished notebook
            advice = "it uploads in the background, so keep this machine until drive.google.com shows the files"
            print(f"Drive cannot be flushed here ({str(error) or type(error).__name__}): {advice}")
    elif lab.mirror_root:
        print("Drive uploads in the background: before you give up this machine, call close_workspace(lab, flush=True)")


def find_path(path: str) -> str:
    """Return the absolute path of `path` in the current folder or the workspace, or `path` if neither has it."""
    path = os.path.expanduser(path)
    places = (os.path.join(folder, path) for folder in (Path.cwd(), _workspace_root()))
    return next((os.path.abspath(place) for place in places if os.path.exists(place)), path)


def _on_colab() -> bool:
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def _workspace_root() -> Path:
    here = Path.cwd().parent if Path.cwd().name == "notebooks" else Path.cwd()
    chosen = os.path.expanduser(os.environ.get(_WORKSPACE_VARIABLE, ""))
    return here / (chosen or (_COLAB_ROOT if _on_colab() else ""))


@contextmanager
def _explain_drive_errors() -> Iterator[None]:
    """Add advice to the OSError of a Drive that does not answer."""
    try:
        yield
    except OSError as error:
        if not is_disk_failure(error):
            raise
        found = error.__cause__ or error  # the mirror has its own advice
        raise OSError(f"Google Drive does not answer ({found}): run this cell again to mount it again") from error


def _mount_drive() -> bool:
    """Mount Google Drive, and return whether it is available. If mounting fails, warn that the run is not safe."""
    try:
        from google.colab import drive

        drive.mount(str(_DRIVE), force_remount=not _is_mounted())  # a mount that has stopped working is replaced
        os.listdir(_DRIVE / "MyDrive")
    except Exception as error:  # refused by the user, or too slow: Colab raises ValueError and its own exceptions
        risk = "if this machine is taken away, the run is lost; run the cell again to mount Drive"
        warnings.warn(f"Drive was not mounted ({str(error) or type(error).__name__}): {risk}", stacklevel=3)
    return _is_mounted()


def _is_mounted() -> bool:
    """Return whether Drive is mounted and answers."""
    with suppress(OSError):
        os.listdir(_DRIVE / "MyDrive")
        return True
    return False


def _saved_source(saved: Path, mirror_root: Path | None) -> str:
    """Return the last source on this machine, else that of Drive's newest run unless it is built in, else "auto"."""
    if saved.is_file():
        return saved.read_text(encoding="utf-8")
    configs = []
    if mirror_root and (mirror_root / "runs").exists():
        configs = [run / "config.yaml" for run in (mirror_root / "runs").iterdir()]  # `glob` hides errors
    newest = max(filter(Path.exists, configs), key=lambda config: config.stat().st_mtime, default=None)
    with suppress(FileNotFoundError, ValueError):  # the copy is incomplete: the user has to choose again
        if newest and (source := load_config(newest.parent)["source"]) not in BUILT_IN:
            return source
    return "auto"
