"""Files copied to a disk that may go at any moment: rewritten in place, and listed with size and hash in a manifest."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from tinystories_lab.files import replace_whole

_MANIFEST = "manifest.json"
_PIECE = 2**24  # bytes copied at a time


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one when the file is not there or torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Rewrite a JSON file in place."""
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """What a folder of copies is said to hold, by name: size, sha256, and what else `list_copy` was told."""
    return {name: entry for name, entry in read_json(folder / _MANIFEST).items() if isinstance(entry, dict)}


def is_listed(source: Path, target: Path) -> bool:
    """Whether the manifest beside `target` says that it, there in that size, is a copy of `source`."""
    entry = read_manifest(target.parent).get(target.name, {})
    if not target.exists() or target.stat().st_size != entry.get("size"):
        return False
    now = source.stat()
    return _sha256_of_version(source, now.st_size, now.st_mtime_ns) == entry.get("sha256")


@lru_cache
def _sha256_of_version(path: Path, size: int, time_ns: int) -> str:
    """`sha256_of` a file, read once for each size and time that it has had."""
    return sha256_of(path)


def copy_in_place(source: IO[bytes], target: Path) -> dict[str, Any]:
    """Rewrite `target` with what is left of `source`; returns its entry for the manifest."""
    with open(target, "wb") as file:
        digest = _pour(source, file)
        file.flush()
        os.fsync(file.fileno())  # a full disk or quota may show only here
    return {"size": target.stat().st_size, "sha256": digest}


def list_copy(target: Path, entry: dict[str, Any]) -> None:
    """Enter a copy into the manifest beside it; only now is it one."""
    write_json(target.with_name(_MANIFEST), read_manifest(target.parent) | {target.name: entry})


def fetch_files(source_dir: Path, target_dir: Path, names: Iterable[str], replace: bool = False) -> None:
    """Copy what `target_dir` lacks of `names`; what is not as the manifest says is left out with a warning.

    With `replace`, also what differs there; the file that was there is kept as <name>.before-fetch.
    """
    listed = read_manifest(source_dir)

    def is_wanted(name: str) -> bool:
        source, target = source_dir / name, target_dir / name
        return source.exists() and (not target.exists() or (replace and not is_listed(target, source)))

    wanted = [name for name in names if is_wanted(name)]
    size = sum((source_dir / name).stat().st_size for name in wanted)
    with tqdm(desc=f"fetch {target_dir.name}", total=size, unit="B", unit_scale=True, disable=not wanted) as bar:
        for name in wanted:
            try:
                with open(source_dir / name, "rb") as file, replace_whole(target_dir / name) as copy:
                    if _pour(file, copy, bar) != listed.get(name, {}).get("sha256"):
                        raise ValueError(f"{source_dir / name} is not what {_MANIFEST} beside it says: it was left out")
                    if (target_dir / name).exists():
                        (target_dir / name).rename(target_dir / f"{name}.before-fetch")
            except ValueError as error:
                warnings.warn(str(error), stacklevel=3)


def _pour(source: IO[bytes], target: IO[bytes], bar: tqdm | None = None) -> str:
    """Copy what is left of `source` into `target`; returns the sha256 of it."""
    digest = hashlib.sha256()
    while piece := source.read(_PIECE):
        digest.update(piece)
        target.write(piece)
        if bar is not None:
            bar.update(len(piece))
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as BinInfo and manifests hold it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
