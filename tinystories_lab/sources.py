"""Raw rows, one at a time, from wherever stories are kept: local files, the Hub, or the built-in teller."""

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

from tinystories_lab.hub import ON_HUB, ROWS_PER_BATCH, read_hub
from tinystories_lab.toyland import tell_stories

END_OF_TEXT = "<|endoftext|>"
NAMED = ("tinystories", "toyland")  # sources known by name
TOYLAND_STORIES = 20_000


def read_rows(source: str | Path, max_stories: int | None, seed: int) -> Iterator[tuple[str, str | None]]:
    """Yield (split, text) as the source has them; the split is "" where the source has none."""
    files, total = find_files(source), max_stories
    if files:
        alone = files == [Path(source)]  # in a folder each .txt is a story, blank lines and all
        texts = chain.from_iterable(_read_file(path, alone) for path in files)
    elif source == "toyland":
        total = max_stories or TOYLAND_STORIES
        texts = tell_stories(total, seed)
    else:
        yield from read_hub(source, max_stories)
        return
    for text in tqdm(islice(texts, max_stories), desc="stories", total=total, unit=" stories"):
        yield "", text


def _kind_of(path: Path) -> str:
    """What a file holds, by its name: .jsonl of stories.jsonl.gz."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def find_files(source: str | Path) -> list[Path]:
    """The files of a local source, those of a folder in the order of their names; none for a source that is not local.

    Raises ValueError for an unknown source and for a folder with files of several kinds, FileNotFoundError for a file that
    is not there and a folder without any.
    """
    path = Path(source)
    if source in NAMED:
        return []
    if str(source) and path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if _kind_of(file) in _READERS and file.is_file()]
        files = [file for file in inside if not any(part[0] == "." for part in file.relative_to(path).parts)]
        if not files:
            raise FileNotFoundError(
                f"there is no file of stories in {path}: check the path; {', '.join(_READERS)} are read"
            )
        if len(kinds := sorted({_kind_of(file) for file in files})) > 1:
            raise ValueError(f"{path} holds files of several kinds ({', '.join(kinds)}): keep one kind in a folder")
        return files
    if _kind_of(path) in _READERS:
        if not path.is_file():
            raise FileNotFoundError(f'there is no file {path}: check the path, or take "toyland" as the source')
        return [path]
    if path.exists() or not ON_HUB.fullmatch(str(source)):
        raise ValueError(
            f'unknown source {str(source)!r}: take "tinystories", "toyland", or a .txt, .jsonl or .parquet file (.gz too), '
            'a folder of such files, or "owner/name" for a data set of the Hugging Face Hub'
        )
    return []


def short_name(source: str | Path) -> str:
    """What folders for a source are named after: the file's or folder's name, or owner-name, wherever it is or is not."""
    if ON_HUB.fullmatch(str(source)) and _kind_of(Path(source)) not in _READERS:
        return re.sub(r"[^\w.-]+", "-", str(source))
    return Path(source).name.split(".")[0] or "stories"


def _read_file(path: Path, alone: bool = True) -> Iterator[str | None]:
    """Yield the texts of a local file, one at a time; `alone` is as `read_txt` takes it.

    Raises ValueError naming the place that cannot be read.
    """
    try:
        yield from _read_txt(path, alone) if _kind_of(path) == ".txt" else _READERS[_kind_of(path)](path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8 and try again") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:  # OSError: also a Parquet page that is damaged
        raise ValueError(
            f"{path} cannot be read as {path.suffix} ({error}): is it damaged, or of another kind?"
        ) from error


def _open_file(path: Path, mode: str) -> IO:
    """Open a file, plain or .gz, for reading bytes ("rb") or UTF-8 text ("rt")."""
    encoding = None if "b" in mode else "utf-8-sig"  # -sig: a byte order mark is no part of the first story
    return (gzip.open if path.suffix == ".gz" else open)(path, mode, encoding=encoding)


def _read_txt(path: Path, alone: bool = True) -> Iterator[str]:
    """Stories parted by `<|endoftext|>` where the file has it, else by blank lines if it stands `alone`, else one story."""
    with _open_file(path, "rt") as file:
        marked = not alone or any(END_OF_TEXT in line for line in file)
    lines: list[str] = []
    with _open_file(path, "rt") as file:
        for line in file:
            *ends, rest = line.split(END_OF_TEXT)
            for end in ends:
                yield "".join(lines) + end
                lines = []
            if marked or rest.strip():
                lines.append(rest)
            elif lines:
                yield "".join(lines)
                lines = []
    if "".join(lines).strip():
        yield "".join(lines)


def _read_jsonl(path: Path) -> Iterator[str | None]:
    """The "text" of one JSON object a line; null is an empty row."""
    with _open_file(path, "rt") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:  # ValueError: no JSON, or a number beyond Python's limit
                raise ValueError(
                    f'{path}, line {number}: not a JSON object with a "text" ({error!r}): mend or remove that line'
                ) from error
            yield _check_text(text, f"{path}, line {number}")


def _read_parquet(path: Path) -> Iterator[str | None]:
    """The "text" column, row group by row group."""
    with _open_file(path, "rb") as raw, pq.ParquetFile(raw) as file:
        if "text" not in file.schema_arrow.names:
            raise ValueError(f'{path} has the columns {file.schema_arrow.names}; a column "text" is needed')
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=["text"]):
            yield from (_check_text(text, path) for text in batch.column(0).to_pylist())


def _check_text(text: object, place: object) -> str | None:
    """Give back a string that UTF-8 can hold, or None. Raises ValueError naming the place for anything else."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f'{place}: "text" is {text!r}; it must be a string or null')
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:  # JSON can write half an emoji
        raise ValueError(f'{place}: "text" is not Unicode ({error}): mend or remove it') from error
    return text


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
