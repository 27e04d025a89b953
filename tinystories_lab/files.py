"""A file appears whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replace_whole(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Open a file for writing that takes the place of `path` only when the block ends well.

    The block writes to `<path>.partial` beside it, which is then flushed, synced and renamed. If the block raises,
    the partial file goes and `path` still holds what it held. Text modes write UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:  # also KeyboardInterrupt: nobody should meet half a file later
        partial.unlink(missing_ok=True)
        raise
