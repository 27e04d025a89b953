"""Copies on a disk that may fail at any time: rewritten in place, and listed in a manifest with size and SHA-256."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from tinystories_lab.files import atomic_write, cached_sha256_of
from tinystories_lab.progress import progress

_MANIFEST = "manifest.json"
_CHUNK = 2**24  # bytes copied at a time


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Rewrite a JSON file in place."""
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest of a folder: an entry with size and sha256, and perhaps more, for each file name."""
    return {name: entry for name, entry in read_json(folder / _MANIFEST).items() if isinstance(entry, dict)}


def record(target: Path, entry: dict[str, Any]) -> None:
    """Record a completed copy in the manifest beside it."""
    write_json(target.with_name(_MANIFEST), read_manifest(target.parent) | {target.name: entry})


def is_recorded(source: Path, target: Path) -> bool:
    """Return whether `target` exists and the manifest beside it says that it is a copy of the current `source`."""
    entry = read_manifest(target.parent).get(target.name, {})
    has_its_size = target.exists() and target.stat().st_size == entry.get("size")
    return has_its_size and cached_sha256_of(source) == entry.get("sha256")


def copy_in_place(source: IO[bytes], target: Path) -> dict[str, Any]:
    """Rewrite `target` with the rest of `source`. Return its entry for the manifest.

    Raises ValueError if both are one file, perhaps through a link: writing would destroy it.
    """
    if target.exists() and os.path.samestat(os.fstat(source.fileno()), target.stat()):
        raise ValueError(f"{target} is the file that would be copied to it: choose another folder for the mirror")
    with open(target, "wb") as file:
        digest = _copy(source, file)
        file.flush()
        os.fsync(file.fileno())  # a full disk or an exceeded quota may raise its error here only
    return {"size": target.stat().st_size, "sha256": digest}


def restore_files(source_dir: Path, target_dir: Path, names: Iterable[str], replace: bool = False) -> None:
    """Copy files that `target_dir` lacks. A file that differs from its manifest entry is left out with a warning.

    With `replace`, also copy files that differ there, and keep each old one (see `keep_old`).
    """
    recorded, wanted = read_manifest(source_dir), {}
    for name in names:
        source, target = source_dir / name, target_dir / name
        if source.exists() and (not target.exists() or (replace and not is_recorded(target, source))):
            wanted[source] = target
    size = sum(source.stat().st_size for source in wanted)
    with progress(desc=f"restore {target_dir.name}", total=size, unit="B", unit_scale=True, disable=not wanted) as bar:
        for source, target in wanted.items():
            try:
                with open(source, "rb") as file, atomic_write(target) as copy:
                    if _copy(file, copy, bar) != recorded.get(source.name, {}).get("sha256"):
                        raise ValueError(f"{source} differs from its entry in {_MANIFEST}: it was left out")
                    keep_old(target)
            except ValueError as error:
                warnings.warn(str(error), stacklevel=3)


def keep_old(path: Path) -> None:
    """Rename a file that is about to be replaced to <name>.before-restore, if it exists."""
    if path.exists():
        path.rename(f"{path}.before-restore")


def _copy(source: IO[bytes], target: IO[bytes], bar: tqdm | None = None) -> str:
    """Copy the rest of `source` into `target`. Return its SHA-256."""
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        target.write(chunk)
        if bar is not None:
            bar.update(len(chunk))
    return digest.hexdigest()
