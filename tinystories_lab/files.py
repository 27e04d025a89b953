"""Files that are written whole or not at all, JSON lines, and checksums."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]
_LOG_FIELDS = dict.fromkeys(("train_loss", "lr", "grad_norm", "tokens_per_second", "seconds", "eta_seconds"), float)
_LOG_FIELDS |= dict.fromkeys(("step", "tokens", "skipped_updates"), int)


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Open `<path>.partial`, which is synced to disk and replaces `path` only if the block succeeds. Text is UTF-8."""
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


def aside(path: Path) -> Path:
    """Return a new name beside `path`, with the time, for what is moved out of the way: run-until-20261126-..."""
    ending = path.suffix if path.is_file() else ""  # the name of a folder may contain a dot
    return path.with_name(f"{path.name.removesuffix(ending)}-until-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}{ending}")


def append_row(path: str | Path, row: Row) -> None:
    """Append one row to a JSON lines file. If a crash cut off the last line, the row starts a new one."""
    with open(path, "a+b") as file:
        file.seek(max(0, file.tell() - 1))
        line_break = b"" if file.read() in (b"", b"\n") else b"\n"
        file.write(line_break + json.dumps(row).encode() + b"\n")


def read_rows(path: str | Path, needed: Mapping[str, type] = {}) -> list[Row]:
    """Return a file's JSON lines, if it exists. Skip those without `needed` keys of these types, with a warning."""
    path, rows = Path(path), []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        with suppress(ValueError, RecursionError):  # not JSON, a number of thousands of digits, thousands of brackets
            row = json.loads(line)
            if isinstance(row, dict) and all(_is_a(row.get(key), kind) for key, kind in needed.items()):
                rows.append(row)
                continue
        if line.strip():
            warnings.warn(f"{path}, line {number}: not a row of this file, skipped", stacklevel=2)
    return rows


def _is_a(value: object, kind: type) -> bool:
    """Return whether a JSON value is of this type. A number without a fraction is a float, too; true is no number."""
    if type(value) is int:
        return kind in (int, float) and abs(value) < 2**63
    return type(value) is kind


def read_log(path: str | Path) -> list[Row]:
    """Return the rows of loss.jsonl, sorted by step. If a resumed run logged a step again, its later row counts."""
    rows = read_rows(path, _LOG_FIELDS)
    for row in rows:
        if not _is_a(row.get("val_loss"), float):
            row.pop("val_loss", None)
    return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's content as a hexadecimal string."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_sha256_of(path: str | Path) -> str:
    """Return what `sha256_of` returns, computed once for each size and modification time of the file."""
    now = os.stat(path)
    return _sha256_of_version(os.path.realpath(path), now.st_size, now.st_mtime_ns)


@lru_cache
def _sha256_of_version(path: str, size: int, time_ns: int) -> str:
    return sha256_of(path)
