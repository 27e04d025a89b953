"""Files that are written whole or not at all, JSON lines, and checksums."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Open a new file for writing, which replaces `path` only if the block succeeds.

    The block writes to `<path>.partial`. Then this file is synced to disk and renamed. If the block raises, the partial
    file is deleted, and `path` keeps its old content. Text modes write UTF-8.
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
    except BaseException:  # KeyboardInterrupt too: half a file must not stay
        partial.unlink(missing_ok=True)
        raise


def append_row(path: str | Path, row: Row) -> None:
    """Append one row to a JSON lines file. If a crash cut off the last line, the row starts a new one."""
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def read_rows(path: str | Path) -> list[Row]:
    """Return all rows of a JSON lines file; none if there is no file. Damaged lines are skipped with a warning."""
    path, rows = Path(path), []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            warnings.warn(f"{path}, line {number}: not valid JSON, skipped", stacklevel=2)
    return rows


def read_log(path: str | Path) -> list[Row]:
    """Return the rows of loss.jsonl, sorted by step. If a resumed run logged a step again, its later row counts."""
    return [row for _, row in sorted({row["step"]: row for row in read_rows(path)}.items())]


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's content as a hexadecimal string."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
