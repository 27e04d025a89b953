"""A lock on the run folder, so that only one session trains a run. It ends with its process."""

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
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / _NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        where = "it may be another tab of the notebook, or a loop over the run's rows that was never closed"
        message = f"another session is training in {run_dir}: stop it first ({where}), or use another run name"
        raise BlockingIOError(message) from error
    except (OSError, NotImplementedError) as error:
        warnings.warn(f"{run_dir} cannot be locked ({error}): make sure that nobody else trains there", stacklevel=3)
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            if os.listdir(run_dir) == [_NAME]:
                (run_dir / _NAME).unlink()
                run_dir.rmdir()
