"""Locks on folders: one session at a time trains a run or writes data. A lock ends with its process."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_NAME = ".lock"


@contextmanager
def run_lock(run_dir: str | Path) -> Iterator[None]:
    """Hold the lock of the run folder while the block runs. If the process dies, the operating system releases it.

    The folder is made if needed, and removed if the block leaves it empty. Raises BlockingIOError if another session
    holds the lock, in this process or another one. Warns if the disk does not support locks.
    """
    with _folder_lock(Path(run_dir)) as is_mine:
        if not is_mine:
            where = "it may be another tab of the notebook, or a loop over the run's rows that was never closed"
            advice = f"stop it first ({where}), or use another run name"
            raise BlockingIOError(f"another session is training in {run_dir}: {advice}")
        yield


@contextmanager
def data_lock(data_dir: str | Path) -> Iterator[None]:
    """Hold the lock of the data folder while the block writes there. If another session holds it, wait for that one.

    Otherwise as `run_lock`. A block must not contain another `data_lock` of the same folder: it would wait for itself.
    """
    with _folder_lock(Path(data_dir)) as is_mine:
        if is_mine:
            yield
            return
    print(f"another session is writing to {data_dir}: waiting until it has finished ...")
    with _folder_lock(Path(data_dir), seconds=-1):
        yield


@contextmanager
def _folder_lock(folder: Path, seconds: float = 0) -> Iterator[bool]:
    """Try for some `seconds` to lock a folder, or for ever if they are negative. Yield whether it was possible."""
    folder.mkdir(parents=True, exist_ok=True)
    lock, is_mine = FileLock(folder / _NAME), True
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        is_mine = False
    except (OSError, NotImplementedError) as error:
        warnings.warn(f"{folder} cannot be locked ({error}): make sure that nobody else writes there", stacklevel=5)
    try:
        yield is_mine
    finally:
        lock.release()
        with suppress(OSError):
            if is_mine and os.listdir(folder) == [_NAME]:
                (folder / _NAME).unlink()
                folder.rmdir()
