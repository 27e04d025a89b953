"""Rows of text, read one at a time from local files, the Hugging Face Hub or the built-in generator."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tinystories_lab.data.hub import load_hub, texts_of
from tinystories_lab.data.local_files import FILE_TYPES, count_rows, read_file, reason_to_skip, type_of, walk
from tinystories_lab.data.toyland import generate_stories
from tinystories_lab.progress import progress

HUB_NAME, HUB_REVISION = "roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
SPLITS = ("train", "validation")
BUILT_IN = ("tinystories", "toyland")  # sources that come before a file or folder of that name
_ON_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::(.+))?", re.ASCII)  # owner/name, or owner/name:configuration:column
_SPLIT_OF = dict.fromkeys(("train", "training"), "train")  # words in names of files, folders and splits
_SPLIT_OF |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_SPLIT_OF |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")

_Parts = dict[str, tuple[Iterator[str | None], int | None]]  # for each split, its rows and their number if it is known


@dataclass
class CleanReport:
    """How many stories each split has, and what was dropped, repaired or not read, with examples."""

    source: str
    train: int = 0
    validation: int = 0
    empty: int = 0
    duplicates: int = 0
    in_train: int = 0  # validation stories that also appear in train
    repaired: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)  # up to three of what was dropped, repaired or skipped
    rows: int = 0  # rows read, empty ones included; a file without rows counts as an empty row
    skipped: dict[str, int] = field(default_factory=dict)  # for each reason, the number of files (on the Hub, of rows)
    fingerprint: str = ""  # of the stored stories
    notes: list[str] = field(default_factory=list)  # decisions, such as a limit or what separates stories

    def note(self, what: str, example: str) -> None:
        """Add one to the count `what`, and keep the example if it is one of the first three."""
        setattr(self, what, getattr(self, what) + 1)
        self._keep(what, example)

    def skip(self, reason: str, path: object = "", count: int = 1) -> None:
        """Count files or rows that are not read for this reason, and keep the path if it is one of the first three."""
        self.skipped[reason] = self.skipped.get(reason, 0) + count
        if path:
            self._keep(f"not read: {reason}", os.fsencode(str(path)).decode(errors="replace"))

    def _keep(self, what: str, example: str) -> None:
        kept = self.examples.setdefault(what, [])
        if len(kept) < 3:
            kept.append(example[:200])

    def __str__(self) -> str:
        also = "validation stories that also appear in train"
        counts = {"empty rows": self.empty, "duplicates": self.duplicates, also: self.in_train}
        text = f"{self.source}: {self.train:,} stories to train on and {self.validation:,} for validation"
        if dropped := ", ".join(f"{count:,} {what}" for what, count in counts.items() if count):
            text += "; dropped " + " and ".join(dropped.rsplit(", ", 1))
        if self.repaired:
            text += f"; repaired {self.repaired:,}"
        if self.skipped:
            text += "\nnot read: " + ", ".join(f"{reason}: {count:,}" for reason, count in self.skipped.items())
        more = [f"and {len(self.notes) - 5:,} more such notes"] if len(self.notes) > 5 else []
        return "\n".join([text, *map(str, self.notes[:5]), *more])


def read_source(
    source: str | Path,
    report: CleanReport,
    max_stories: int | None = None,
    validation_share: float = 0.05,
    seed: int = 0,
) -> Iterator[tuple[str, str | None]]:
    """Yield (split, text) for each row. The split is "" if the source has none.

    At most `max_stories` rows are read, and `validation_share` of that number from a validation split. The report gets
    what is not read. Raises the errors of `find_files` and `load_hub`, and ValueError if a file cannot be read.
    """
    if files := find_files(source, report.skip):
        parts = _local_parts(Path(source), files, report)
    elif source == "toyland":
        count = max_stories or 20_000
        parts = {"": (generate_stories(count, seed), count)}
    else:
        parts = _hub_parts(str(source), report)
    for split, (rows, total) in parts.items():
        cap = max_stories
        if cap is not None and split == "validation":
            cap = max(1, round(cap * validation_share))
        expected = total if None in (total, cap) else min(total, cap)
        for text in progress(islice(rows, cap), desc=split or "stories", total=expected, unit=" stories"):
            yield split, text
        if cap is not None and _has_more(rows):
            what = f"only the first {cap:,} rows{f' of {split}' if split else ''} were read (max_stories)"
            there = "more" if total is None else f"{total:,}"
            report.notes.append(f"{what}; the source has {there}: if it is sorted, these are a one-sided sample")


def _has_more(rows: Iterator[str | None]) -> bool:
    try:
        return any(True for _ in rows)
    except ValueError:  # a damaged row is a row, too
        return True


def find_files(source: str | Path, skip: Callable[[str, Path], None] = lambda reason, path: None) -> list[Path]:
    """Return the files of a local source, sorted by name, or an empty list for a source that is not local.

    `skip` is called with a reason and a path for each file that is not read. Raises ValueError if the source is
    unknown, a folder has files of several types, or a file or folder cannot be read. Raises FileNotFoundError if a file
    is missing or a folder has no stories.
    """
    path = Path(source)
    if source in BUILT_IN:
        return []
    if os.path.isdir(source):
        files = sorted(walk(path, skip))
        if not files:
            needed = f"files of type {', '.join(FILE_TYPES)}"
            raise FileNotFoundError(f"there is no file with stories in {path}: check the path; it needs {needed}")
        if len(types := sorted(set(map(type_of, files)))) > 1:
            raise ValueError(f"{path} holds files of several types ({', '.join(types)}): keep one type in a folder")
        return files
    if type_of(path) in FILE_TYPES:
        reason = reason_to_skip(path)
        if reason == "broken link":
            raise FileNotFoundError(f'there is no file {path}: check the path, or choose "toyland" as the source')
        if reason:
            raise ValueError(f"{path} is {reason}: choose a file or folder with stories")
        return [path]
    if os.path.lexists(path) or not _ON_HUB.fullmatch(str(source)):
        local = "a .txt, .jsonl or .parquet file (also .gz), a folder of such files"
        choices = f'"tinystories", "toyland", {local}, or "owner/name" for a dataset on the Hugging Face Hub'
        raise ValueError(f"unknown source {str(source)!r}: choose {choices}")
    return []


def _local_parts(source: Path, files: list[Path], report: CleanReport) -> _Parts:
    """Return the rows of each split, which the names of files or folders give. Without splits, the only one is ""."""
    groups, paths = {"": files}, [file.relative_to(source) for file in files]
    if splits := _splits_of(paths):
        groups, others = _choose_splits(dict(zip(files, splits, strict=True)), report)
        for file in others:
            report.skip("split test", file)
    elif any(_split_of(str(path)) in ("validation", "test") for path in paths):
        why = "none is to train on, or some files have none"
        report.notes.append(f"the splits in the names of files are ignored ({why}): validation is drawn at random")
    # Each .txt file of a folder is one story, unless the files are the splits or parts of them.
    are_splits = splits and (any(_split_of(path.name) for path in paths) or len(files) == len(groups))
    one_story = files != [source] and not are_splits
    return {
        split: (chain.from_iterable(read_file(file, one_story, report.notes) for file in group), count_rows(group))
        for split, group in groups.items()
    }


def _splits_of(paths: list[Path]) -> list[str]:
    """Return the split of each path, or [] unless every folder, every name or every whole path gives one."""
    for part in (lambda path: path.parent, lambda path: path.name, str):
        splits = [_split_of(str(part(path))) for path in paths]
        if "" not in splits and "train" in splits and len(set(splits)) > 1:
            return splits
    return []


def _split_of(name: str) -> str:
    """Return the split that the last such word of a name means, as train for "a/train-00000.txt", or "" without one."""
    words = re.findall(r"[^\W\d_]+", name.lower())
    return next((_SPLIT_OF[word] for word in reversed(words) if word in _SPLIT_OF), "")


def _choose_splits(split_of: dict[Any, str], report: CleanReport) -> tuple[dict[str, list], list]:
    """Return the parts of train and of validation, and all other parts. Without validation, "test" replaces it."""
    groups: dict[str, list] = {}
    for part, split in split_of.items():
        groups.setdefault(split, []).append(part)
    if "validation" not in groups and "test" in groups:
        report.notes.append('there is no validation split: the split "test" is used for validation')
        groups["validation"] = groups.pop("test")
    chosen = {split: groups.pop(split) for split in SPLITS if split in groups}  # train first: duplicates stay there
    return chosen, list(chain.from_iterable(groups.values()))


def _hub_parts(source: str, report: CleanReport) -> _Parts:
    """Return the rows of each split of a dataset. If only "train" is read, its split is ""."""
    if source == "tinystories":
        splits, column = load_hub(HUB_NAME, revision=HUB_REVISION)
    else:
        splits, column = load_hub(*_ON_HUB.fullmatch(source).groups(""))
    # "test_matched" counts as test, but "train_small" beside "train" is another split.
    kinds = {name: kind if (kind := _split_of(name)) in ("validation", "test") else name for name in splits}
    groups, others = _choose_splits(kinds, report)
    for name in others:
        report.skip(f"split {name}", count=len(splits[name]))
    parts: _Parts = {}
    for split, names in groups.items():
        rows = chain.from_iterable(texts_of(splits[name], column) for name in names)
        parts[split if len(groups) > 1 else ""] = rows, sum(len(splits[name]) for name in names)
    return parts
