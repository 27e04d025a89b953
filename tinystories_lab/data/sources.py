"""Rows of text, read one at a time from local files, the Hugging Face Hub or the built-in generator."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from tinystories_lab.data.toyland import generate_stories
from tinystories_lab.tokenizer import END_OF_TEXT

HUB_NAME, HUB_REVISION = "roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
SPLITS = ("train", "validation")
ROWS_AT_ONCE = 20  # rows in memory: few, because a row may be a whole book
NAMED = ("tinystories", "toyland")  # sources known by name
_TOYLAND_STORIES = 20_000
_ON_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::(.+))?", re.ASCII)  # owner/name, or owner/name:column


def read_source(source: str | Path, max_stories: int | None, seed: int) -> Iterator[tuple[str, str | None]]:
    """Yield (split, text) for each row, at most `max_stories` per split. The split is "" if the source has none."""
    if files := find_files(source):
        in_folder = files != [Path(source)]
        parts = [("", chain.from_iterable(_read_file(path, in_folder) for path in files), max_stories)]
    elif source == "toyland":
        count = max_stories or _TOYLAND_STORIES
        parts = [("", generate_stories(count, seed), count)]
    else:
        parts = _hub_splits(str(source), max_stories)
    for split, texts, total in parts:
        for text in tqdm(islice(texts, max_stories), desc=split or "stories", total=total, unit=" stories"):
            yield split, text


def find_files(source: str | Path) -> list[Path]:
    """Return the files of a local source, sorted by name, or an empty list for a source that is not local.

    Raises ValueError for an unknown source and for a folder with files of several types, FileNotFoundError for a
    missing file and for a folder without stories.
    """
    path = Path(source)
    if source in NAMED:
        return []
    if str(source) and path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if _type_of(file) in _READERS and file.is_file()]
        files = [file for file in files if not any(part[0] == "." for part in file.relative_to(path).parts)]
        types = sorted({_type_of(file) for file in files})
        if not files:
            needed = f"files of type {', '.join(_READERS)}"
            raise FileNotFoundError(
                f"there is no file with stories in {path}: check the path; the folder needs {needed}"
            )
        if len(types) > 1:
            raise ValueError(f"{path} holds files of several types ({', '.join(types)}): keep one type in a folder")
        return files
    if _type_of(path) in _READERS:
        if not path.is_file():
            raise FileNotFoundError(f'there is no file {path}: check the path, or choose "toyland" as the source')
        return [path]
    if path.exists() or not _ON_HUB.fullmatch(str(source)):
        local = "a .txt, .jsonl or .parquet file (also .gz), a folder of such files"
        choices = f'"tinystories", "toyland", {local}, or "owner/name" for a dataset on the Hugging Face Hub'
        raise ValueError(f"unknown source {str(source)!r}: choose {choices}")
    return []


def _type_of(path: Path) -> str:
    """Return the type of a file by its name: .jsonl for stories.jsonl.gz."""
    return Path(path.name.removesuffix(".gz")).suffix


def _read_file(path: Path, in_folder: bool) -> Iterator[str | None]:
    """Yield the texts of a local file, one at a time. Raises ValueError that names the place it cannot read."""
    try:
        yield from _read_txt(path, in_folder) if _type_of(path) == ".txt" else _READERS[_type_of(path)](path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8 and try again") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:  # a damaged Parquet page raises OSError
        raise ValueError(f"{path} cannot be read as {path.suffix} ({error}): replace it if it is damaged") from error


def _open_file(path: Path, mode: str) -> IO:
    encoding = None if "b" in mode else "utf-8-sig"  # a byte order mark is not part of the first story
    return (gzip.open if path.suffix == ".gz" else open)(path, mode, encoding=encoding)


def _read_txt(path: Path, in_folder: bool) -> Iterator[str]:
    """Split a file at `<|endoftext|>` if it contains that, otherwise at blank lines. In a folder, it is one story."""
    with _open_file(path, "rt") as file:
        keep_blank_lines = in_folder or any(END_OF_TEXT in line for line in file)
    story = ""
    with _open_file(path, "rt") as file:
        for line in file:
            *ends, rest = line.split(END_OF_TEXT)
            for end in ends:
                yield story + end
                story = ""
            if keep_blank_lines or rest.strip():
                story += rest
            elif story:
                yield story
                story = ""
    if story.strip():
        yield story


def _read_jsonl(path: Path) -> Iterator[str | None]:
    """Yield the "text" of each line's JSON object; null is an empty row."""
    with _open_file(path, "rt") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:  # ValueError: no JSON, or a number beyond Python's limit
                raise ValueError(f'{place}: not a JSON object with a "text" ({error!r}): fix or remove it') from error
            yield _check_text(text, place)


def _read_parquet(path: Path) -> Iterator[str | None]:
    with _open_file(path, "rb") as raw, pq.ParquetFile(raw) as file:
        if "text" not in file.schema_arrow.names:
            raise ValueError(f'{path} has the columns {file.schema_arrow.names}; a column "text" is needed')
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=["text"]):
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


def _hub_splits(source: str, max_stories: int | None) -> Iterator[tuple[str, Iterator[str | None], int]]:
    """Yield (split, its texts, their number) of a dataset, train first. Without "validation", train is split "".

    The dataset is downloaded once, into the cache of `datasets`. Raises FileNotFoundError if the Hub has no such
    dataset, ConnectionError if the download fails, ValueError if it has no split "train" or no such column of strings.
    """
    import datasets  # takes half a second, and only the Hub needs it

    name, column = (HUB_NAME, "text") if source == "tinystories" else _ON_HUB.fullmatch(source).groups("text")
    pinned = {"revision": HUB_REVISION} if source == "tinystories" else {}
    try:
        hub = datasets.load_dataset(name, **pinned)
    except datasets.exceptions.DatasetNotFoundError as cause:
        found = f"the Hugging Face Hub has no dataset {name} that you may read, and no file or folder has that name"
        raise FileNotFoundError(f"{found}: check the name, or set HF_TOKEN for a private or gated dataset") from cause
    except Exception as cause:  # datasets, its HTTP client and the file system each raise their own
        found = f"could not get {name} from the Hugging Face Hub ({type(cause).__name__}: {cause})"
        advice = 'Try again in a few minutes, set HF_TOKEN for error 429, or choose a local file or "toyland".'
        raise ConnectionError(f"{found}. {advice}") from cause
    if "train" not in hub:
        raise ValueError(f'{name} has the splits {list(hub)}; a split "train" is needed: choose another dataset')
    columns = {key: getattr(feature, "dtype", "nested") for key, feature in hub["train"].features.items()}
    if columns.get(column) not in ("string", "large_string"):
        found = ", ".join(f"{key} ({kind})" for key, kind in columns.items())
        needed = f'a column "{column}" of strings is needed: write {name}:COLUMN to choose another'
        raise ValueError(f"{name} has the columns {found}; {needed}")
    has_validation = "validation" in hub
    for split in SPLITS if has_validation else ("train",):
        rows = hub[split].select_columns(column)
        total = len(rows) if max_stories is None else min(max_stories, len(rows))
        texts = (text for batch in rows.iter(ROWS_AT_ONCE) for text in batch[column])
        yield split if has_validation else "", texts, total


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
