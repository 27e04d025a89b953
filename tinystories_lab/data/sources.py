"""Raw rows of text, one at a time, from local files, the Hugging Face Hub or the built-in generator."""

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
    """Yield (split, text) for each row of a source. The split is "" if the source has no splits of its own."""
    files, total = find_files(source), max_stories
    if files:
        is_folder = files != [Path(source)]
        texts = chain.from_iterable(_read_file(path, is_folder) for path in files)
    elif source == "toyland":
        total = max_stories or _TOYLAND_STORIES
        texts = generate_stories(total, seed)
    else:
        yield from _read_hub(str(source), max_stories)
        return
    for text in tqdm(islice(texts, max_stories), desc="stories", total=total, unit=" stories"):
        yield "", text


def find_files(source: str | Path) -> list[Path]:
    """Return the files of a local source, sorted by name in a folder. A source that is not local has none.

    Raises ValueError for an unknown source and for a folder with files of several types, FileNotFoundError for a
    missing file and for a folder without any file of stories.
    """
    path = Path(source)
    if source in NAMED:
        return []
    if str(source) and path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if _type_of(file) in _READERS and file.is_file()]
        files = [file for file in inside if not any(part[0] == "." for part in file.relative_to(path).parts)]
        if not files:
            raise FileNotFoundError(
                f"there is no file of stories in {path}: check the path; it needs files of type {', '.join(_READERS)}"
            )
        if len(types := sorted({_type_of(file) for file in files})) > 1:
            raise ValueError(f"{path} holds files of several types ({', '.join(types)}): keep one type in a folder")
        return files
    if _type_of(path) in _READERS:
        if not path.is_file():
            raise FileNotFoundError(f'there is no file {path}: check the path, or choose "toyland" as the source')
        return [path]
    if path.exists() or not _ON_HUB.fullmatch(str(source)):
        raise ValueError(
            f'unknown source {str(source)!r}: choose "tinystories", "toyland", a .txt, .jsonl or .parquet file (also .gz), '
            'a folder of such files, or "owner/name" for a dataset on the Hugging Face Hub'
        )
    return []


def _type_of(path: Path) -> str:
    """Return the file type that a name states: .jsonl for stories.jsonl.gz."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _read_file(path: Path, in_folder: bool = False) -> Iterator[str | None]:
    """Yield the texts of a local file, one at a time. Raises ValueError that names the place it cannot read."""
    try:
        yield from _read_txt(path, in_folder) if _type_of(path) == ".txt" else _READERS[_type_of(path)](path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8 and try again") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:  # a damaged Parquet page raises OSError
        raise ValueError(
            f"{path} cannot be read as {path.suffix} ({error}): is it damaged, or of another type?"
        ) from error


def _open_file(path: Path, mode: str) -> IO:
    """Open a file, plain or .gz, to read bytes ("rb") or UTF-8 text ("rt")."""
    encoding = None if "b" in mode else "utf-8-sig"  # a byte order mark is not part of the first story
    return (gzip.open if path.suffix == ".gz" else open)(path, mode, encoding=encoding)


def _read_txt(path: Path, in_folder: bool) -> Iterator[str]:
    """Split a file at `<|endoftext|>` if it contains that, otherwise at blank lines; in a folder it is one story."""
    with _open_file(path, "rt") as file:
        keep_blank_lines = in_folder or any(END_OF_TEXT in line for line in file)
    lines: list[str] = []
    with _open_file(path, "rt") as file:
        for line in file:
            *ends, rest = line.split(END_OF_TEXT)
            for end in ends:
                yield "".join(lines) + end
                lines = []
            if keep_blank_lines or rest.strip():
                lines.append(rest)
            elif lines:
                yield "".join(lines)
                lines = []
    if "".join(lines).strip():
        yield "".join(lines)


def _read_jsonl(path: Path) -> Iterator[str | None]:
    """Yield the "text" of each line's JSON object; null is an empty row."""
    with _open_file(path, "rt") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:  # ValueError: no JSON, or a number beyond Python's limit
                raise ValueError(
                    f'{path}, line {number}: not a JSON object with a "text" ({error!r}): fix or remove that line'
                ) from error
            yield _check_text(text, f"{path}, line {number}")


def _read_parquet(path: Path) -> Iterator[str | None]:
    """Yield the "text" column, a few rows at a time."""
    with _open_file(path, "rb") as raw, pq.ParquetFile(raw) as file:
        if "text" not in file.schema_arrow.names:
            raise ValueError(f'{path} has the columns {file.schema_arrow.names}; a column "text" is needed')
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=["text"]):
            yield from (_check_text(text, path) for text in batch.column(0).to_pylist())


def _check_text(text: object, place: object) -> str | None:
    """Return a text that UTF-8 can hold, or None. Raises ValueError that names the place for anything else."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f'{place}: "text" is {text!r}; it must be a string or null')
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:  # JSON can contain half an emoji
        raise ValueError(f'{place}: "text" is not Unicode ({error}): fix or remove it') from error
    return text


def _read_hub(source: str, max_stories: int | None) -> Iterator[tuple[str, str | None]]:
    """Yield (split, text), at most `max_stories` per split. A dataset without "validation" gives train as split "".

    The dataset is downloaded once, into the cache of `datasets`. Raises FileNotFoundError if the Hub has no such
    dataset, ConnectionError if the download fails, ValueError if it has no split "train" or no such column of strings.
    """
    import datasets  # takes half a second, and only the Hub needs it

    name, column = (HUB_NAME, "text") if source == "tinystories" else _ON_HUB.fullmatch(source).groups("text")
    pinned = {"revision": HUB_REVISION} if source == "tinystories" else {}
    try:
        hub = datasets.load_dataset(name, **pinned)
    except datasets.exceptions.DatasetNotFoundError as cause:
        raise FileNotFoundError(
            f"the Hugging Face Hub has no dataset {name} that you may read, and there is no file or folder of that name "
            "here: check the name, or set HF_TOKEN if the dataset is private or gated"
        ) from cause
    except Exception as cause:  # datasets, its HTTP client and the file system each raise their own
        raise ConnectionError(
            f"could not get {name} from the Hugging Face Hub ({type(cause).__name__}: {cause}). Try again in a few "
            'minutes; or set HF_TOKEN if the Hub limits you (error 429); or choose a local file or "toyland".'
        ) from cause
    if "train" not in hub:
        raise ValueError(f'{name} has the splits {list(hub)}; a split "train" is needed: choose another dataset')
    columns = {key: getattr(feature, "dtype", "nested") for key, feature in hub["train"].features.items()}
    if columns.get(column) not in ("string", "large_string"):
        found = ", ".join(f"{key} ({kind})" for key, kind in columns.items())
        raise ValueError(
            f'{name} has the columns {found}; "{column}" of strings is needed: write {name}:COLUMN to choose another'
        )
    splits = {split: split for split in SPLITS} if "validation" in hub else {"train": ""}
    for name, split in splits.items():
        part = hub[name] if max_stories is None else hub[name].take(min(max_stories, len(hub[name])))
        with tqdm(desc=name, total=len(part), unit=" stories") as bar:
            for batch in part.select_columns(column).iter(ROWS_AT_ONCE):
                yield from ((split, text) for text in batch[column])
                bar.update(len(batch[column]))


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
