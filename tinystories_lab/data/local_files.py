"""The files of a local source: which files of a folder have stories, and the rows of each file, one at a time."""

import gzip
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

_MARKER = "<|endoftext|>"  # separates the stories of a .txt file, as in those of TinyStories
# With a buffer, Parquet is read by page; without one (0), a column of a row group is in memory. The buffer of
# pyarrow 18.1, which Colab has, fails at long rows; that of 26.0 does not.
_BUFFER = 2**20 if int(pa.__version__.partition(".")[0]) >= 26 else 0
_READ_BYTES = 2**20  # how much of a Parquet column is in memory, plus the rest of its last row
_PARAGRAPHS_PER_STORY = 10  # with more paragraphs than this between markers, blank lines separate stories, too


def walk(top: Path, skip: Callable[[str, Path], None]) -> Iterator[Path]:
    """Yield the files with stories in a folder and its subfolders. Links to folders are followed, each folder once."""
    known = dict.fromkeys(map(str, Path(os.path.realpath(top)).parents), "link to a folder above")
    folders = deque([top])  # links to folders are on the left and come last, so that no folder is read as its link
    while folders:
        folder = folders.pop()
        real = os.path.realpath(folder)
        if real in known:
            skip(known[real], folder)
            continue
        known[real] = "folder read already"
        with _explain_errors(folder), os.scandir(folder) as entries:
            paths = sorted(folder / entry.name for entry in entries)
        for path in paths:
            if path.name.startswith("."):
                is_folder = os.path.isdir(path) and not path.is_symlink()
                inside = (Path(parent, name) for parent, _, names in os.walk(path) for name in names)
                for file in inside if is_folder else [path]:
                    skip("hidden", file)
            elif os.path.isdir(path):
                (folders.appendleft if path.is_symlink() else folders.append)(path)
            elif reason := reason_to_skip(path):
                skip(reason, path)
            else:
                yield path


def reason_to_skip(path: Path) -> str:
    """Return why a file is not read, or "" if it is. Raises ValueError if it cannot be opened."""
    with _explain_errors(path):
        if not path.exists():
            return "broken link"
        if not path.is_file():  # opening a pipe would block for ever
            return "not a regular file"
        if type_of(path) not in _READERS:
            return f"another type ({type_of(path) or 'no ending'})"
        open(path, "rb").close()  # this fails early, before anything is written
    return ""


def count_rows(files: list[Path]) -> int | None:
    """Return the number of rows in Parquet files. For other files it is None, because counting means reading."""
    if any(file.suffix.lower() != ".parquet" for file in files):
        return None
    total = 0
    for file in files:
        with _explain_errors(file):
            total += max(1, pq.read_metadata(file).num_rows)
    return total


def type_of(path: Path) -> str:
    """Return the type of a file by its name: .jsonl for Stories.JSONL.gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


@contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    """Turn an error from reading this file or folder into a ValueError that says what to do."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8 and try again") from error
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): allow that, or move it away") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:  # a damaged Parquet page raises OSError
        kind, found = path.suffix or "a folder", " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as {kind} ({found}): replace it if it is damaged") from error


def read_file(path: Path, one_story: bool, notes: list[str]) -> Iterator[str | None]:
    """Yield the texts of a file, one at a time, or one None without texts. Raises ValueError if it cannot be read.

    A .txt file is `one_story`, or is split into stories; `notes` gets a line if the split is unclear.
    """
    kind = type_of(path)
    texts = _read_txt(path, one_story, notes) if kind == ".txt" else _READERS[kind](path)
    with _explain_errors(path):
        yield next(texts, None)
        yield from texts


def _open_file(path: Path, mode: str) -> IO:
    encoding = None if "b" in mode else "utf-8-sig"  # a byte order mark is not part of the first story
    return (gzip.open if path.suffix.lower() == ".gz" else open)(path, mode, encoding=encoding)


def _read_txt(path: Path, one_story: bool, notes: list[str]) -> Iterator[str]:
    """Split a file at `<|endoftext|>`. If it has few of them and is not `one_story`, also split it at blank lines."""
    keep_blank_lines, story = one_story or _markers_suffice(path, notes), ""
    for text, before_marker in _pieces(path):
        is_separator = not keep_blank_lines and not text.strip()
        if not is_separator:
            story += text
        if before_marker or is_separator:
            if story or keep_blank_lines:  # a marker beside a blank line is not an empty story
                yield story
            story = ""
    if story.strip():
        yield story


def _pieces(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the lines of a file, which are split at each marker, and whether a marker follows."""
    with _open_file(path, "rt") as file:
        for line in file:
            *ends, rest = line.split(_MARKER)
            yield from ((end, True) for end in ends)
            yield rest, False


def _markers_suffice(path: Path, notes: list[str]) -> bool:
    """Return whether `<|endoftext|>` alone separates the stories of a file. If it also has blank lines, add a note."""
    markers = stories = paragraphs = 0
    in_story = in_paragraph = False
    for text, before_marker in _pieces(path):
        has_text = bool(text.strip())
        markers += before_marker
        stories += has_text and not in_story
        paragraphs += has_text and not in_paragraph
        in_story = (in_story or has_text) and not before_marker
        in_paragraph = has_text and not before_marker
    suffice = stories > 1 and paragraphs <= _PARAGRAPHS_PER_STORY * stories
    if markers and paragraphs > stories:
        decision = "are part of the stories" if suffice else "separate stories, too"
        notes.append(f"{path.name}: {markers:,} {_MARKER} among {paragraphs:,} paragraphs: blank lines {decision}")
    return suffice


def _read_jsonl(path: Path) -> Iterator[str | None]:
    """Yield the "text" of each line's JSON object; null is an empty row."""
    with _open_file(path, "rt") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:  # ValueError: no JSON, or a huge number
                raise ValueError(f'{place}: not a JSON object with a "text" ({error!r}): fix or remove it') from error
            yield _check_text(text, place)


def _read_parquet(path: Path) -> Iterator[str | None]:
    with _open_file(path, "rb") as raw, pq.ParquetFile(raw, pre_buffer=False, buffer_size=_BUFFER) as file:
        if "text" not in file.schema_arrow.names:
            raise ValueError(f'{path} has the columns {file.schema_arrow.names}; a column "text" is needed')
        for group in range(file.num_row_groups):
            metadata = file.metadata.row_group(group)
            # At most 20 rows: a long text in many rows is stored only once, so the stored size may be far too small.
            batch_size = min(20, max(1, _READ_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)))
            for batch in file.iter_batches(batch_size, row_groups=[group], columns=["text"]):
                yield from (_check_text(text, path) for text in batch.column(0).to_pylist())


def _check_text(text: object, place: object) -> str | None:
    """Return `text` if it is Unicode text or None. Raises ValueError, which names the place, if it is not."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f'{place}: "text" is {text!r}; it must be a string or null')
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:  # JSON can contain half an emoji
        raise ValueError(f'{place}: "text" is not Unicode ({error}): fix or remove it') from error
    return text


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
FILE_TYPES = tuple(_READERS)
