"""One training session per run: a lock on the run folder that ends with its process."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_NAME = ".lock"


@contextmanager
def run_lock(run_dir: str | Path) -> Iterator[None]:
    """Hold the lock of the run folder. The operating system releases it if the process dies in any way.

    Makes the folder if needed, and removes it again if the block leaves nothing in it. Raises BlockingIOError if another
    session holds the lock, in this process or another one. Warns if the disk does not support locks.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / _NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            f"another session is training in {run_dir}: stop it first (another tab of the notebook, or a loop over the "
            "run's rows that was never closed), or use another run name"
        ) from error
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
