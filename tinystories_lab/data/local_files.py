"""The files of a local source: which files of a folder have stories, and the rows of each file, one at a time."""

import errno
import gzip
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

_MARKER = "<|endoftext|>"  # between stories of a .txt file, as in those of TinyStories
_READ_BYTES = 2**20  # of a Parquet column in memory, plus the rest of its last row
_BLOCKS_PER_STORY = 10  # if more blocks of lines than this lie between two markers, blank lines separate stories


def walk(top: Path, skip: Callable[[str, Path], None]) -> Iterator[Path]:
    """Yield the files with stories in a folder and in the folders below it, also through links."""
    above = {str(parent) for parent in Path(os.path.realpath(top)).parents}
    folders, links, seen = [top], [], set()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)  # links come last, so that no folder is read as its link
        real = os.path.realpath(folder)
        if real in seen | above:
            skip("link to a folder above" if real in above else "folder read already", folder)
            continue
        seen.add(real)
        with _errors_of(folder), os.scandir(folder) as entries:
            paths = sorted(folder / entry.name for entry in entries)
        for path in paths:
            if path.name.startswith("."):
                is_folder = os.path.isdir(path) and not path.is_symlink()
                for parent, _, names in os.walk(path) if is_folder else [(folder, [], [path.name])]:
                    for name in names:
                        skip("hidden", Path(parent, name))
            elif os.path.isdir(path):
                (links if path.is_symlink() else folders).append(path)
            elif reason := reason_to_skip(path):
                skip(reason, path)
            else:
                yield path


def reason_to_skip(path: Path) -> str:
    """Return why a file has no stories, or "" if it may have some. Raises ValueError if it cannot be opened."""
    with _errors_of(path):
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return "broken link"
            raise
        if not stat.S_ISREG(mode):  # to open a pipe would wait for ever
            return "not a regular file"
        if type_of(path) not in _READERS:
            return f"another type ({type_of(path) or 'no ending'})"
        open(path, "rb").close()  # now, because nothing is written yet
    return ""


def count_rows(files: list[Path]) -> int | None:
    """Return the number of rows in Parquet files, or None for other files, which would have to be read."""
    if any(file.suffix.lower() != ".parquet" for file in files):
        return None
    total = 0
    for file in files:
        with _errors_of(file):
            total += max(1, pq.read_metadata(file).num_rows)
    return total


def type_of(path: Path) -> str:
    """Return the type of a file by its name: .jsonl for Stories.JSONL.gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Raise ValueError that says what is wrong with a file or folder, instead of the error of a library."""
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
    """Yield the texts of a file, one at a time, or one None if it has none. Add decisions about the file to `notes`.

    A .txt file is `one_story`, or is split into stories. Raises ValueError, which names the place, for what cannot be
    read.
    """
    kind = type_of(path)
    texts = _read_txt(path, one_story, notes) if kind == ".txt" else _READERS[kind](path)
    with _errors_of(path):
        yield next(texts, None)
        yield from texts


def _open_file(path: Path, mode: str) -> IO:
    encoding = None if "b" in mode else "utf-8-sig"  # a byte order mark is not part of the first story
    return (gzip.open if path.suffix.lower() == ".gz" else open)(path, mode, encoding=encoding)


def _read_txt(path: Path, one_story: bool, notes: list[str]) -> Iterator[str]:
    """Split a file at `<|endoftext|>`, and at blank lines if it has too few of them and is not `one_story`."""
    keep_blank_lines = one_story or _markers_suffice(path, notes)
    with _open_file(path, "rt") as file:
        story = ""
        for line in file:
            *ends, rest = line.split(_MARKER)
            for end in ends:
                if keep_blank_lines or (story + end).strip():  # a marker beside a blank line is not an empty story
                    yield story + end
                story = ""
            if keep_blank_lines or rest.strip():
                story += rest
            elif story:
                yield story
                story = ""
    if story.strip():
        yield story


def _markers_suffice(path: Path, notes: list[str]) -> bool:
    """Return whether `<|endoftext|>` alone separates the stories of a file. If it also has blank lines, note that."""
    markers = stories = blocks = 0  # a block has no blank line and no marker inside
    in_story = in_block = False
    with _open_file(path, "rt") as file:
        for line in file:
            for place, piece in enumerate(line.split(_MARKER)):
                if place:
                    markers += 1
                    in_story = in_block = False
                if piece.strip():
                    stories += not in_story
                    blocks += not in_block
                    in_story = in_block = True
                else:
                    in_block = False
    suffice = stories > 1 and blocks <= _BLOCKS_PER_STORY * stories
    if markers and blocks > stories:
        decision = "are part of the stories" if suffice else "separate stories, too"
        notes.append(f"{path.name}: {markers:,} {_MARKER} among {blocks:,} paragraphs: blank lines {decision}")
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
    # Otherwise a whole row group would be in memory. So it is page by page; a page may have 1,000 rows.
    bounded = {"pre_buffer": False, "buffer_size": _READ_BYTES}
    with _open_file(path, "rb") as raw, pq.ParquetFile(raw, **bounded) as file:
        if "text" not in file.schema_arrow.names:
            raise ValueError(f'{path} has the columns {file.schema_arrow.names}; a column "text" is needed')
        for group in range(file.num_row_groups):
            metadata = file.metadata.row_group(group)
            # At most 20, because a long text that occurs in many rows is stored once.
            at_once = min(20, max(1, _READ_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)))
            for batch in file.iter_batches(at_once, row_groups=[group], columns=["text"]):
                yield from (_check_text(text, path) for text in batch.column(0).to_pylist())


def _check_text(text: object, place: object) -> str | None:
    """Return `text` if it is Unicode text or None. Otherwise raise ValueError, which names the place."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f'{place}: "text" is {text!r}; it must be a string or null')
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:  # JSON can contain half an emoji
        raise ValueError(f'{place}: "text" is not Unicode ({error}): fix or remove it') from error
    return text


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
FILE_TYPES = tuple(_READERS)
