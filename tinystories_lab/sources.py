"""Raw rows, one at a time, from wherever stories are kept: the Hub, a local file, or the built-in teller."""

import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from tinystories_lab.toyland import tell_stories

END_OF_TEXT = "<|endoftext|>"
HUB_NAME, HUB_REVISION = "roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
HUB_STORIES = 2_119_719 + 21_990  # its rows, train and validation
SPLITS = ("train", "validation")
TOYLAND_STORIES = 20_000
ROWS_PER_BATCH = 1_000


def read_rows(source: str | Path, max_stories: int | None, seed: int) -> Iterator[tuple[str, str | None]]:
    """Yield (split, text) as the source has them; the split is "" where the source has none."""
    if source == "tinystories":
        yield from read_hub(max_stories)
        return
    if source == "toyland":
        count = max_stories or TOYLAND_STORIES
        texts, total = tell_stories(count, seed), count
    else:
        texts, total = read_file(find_file(source)), max_stories
    for text in tqdm(islice(texts, max_stories), desc="stories", total=total, unit=" stories"):
        yield "", text


def read_hub(max_stories: int | None) -> Iterator[tuple[str, str | None]]:
    """Yield (split, text) of the Hub's TinyStories, through datasets' own download and cache."""
    import datasets  # half a second, and who only tells stories does not need it

    try:
        hub = datasets.load_dataset(HUB_NAME, revision=HUB_REVISION)
    except Exception as cause:  # datasets, its HTTP client and the file system each raise their own
        raise ConnectionError(
            f"could not get {HUB_NAME} from the Hugging Face Hub ({type(cause).__name__}: {cause}). Try again in some "
            'minutes; or set HF_TOKEN if the Hub limits you (error 429); or take a local file or "toyland" as the source.'
        ) from cause
    for split in SPLITS:
        part = hub[split] if max_stories is None else hub[split].take(min(max_stories, len(hub[split])))
        with tqdm(desc=split, total=len(part), unit=" stories") as bar:
            for batch in part.iter(ROWS_PER_BATCH):
                yield from ((split, text) for text in batch["text"])
                bar.update(len(batch["text"]))


def kind_of(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def find_file(source: str | Path) -> Path:
    """The path of a local source. Raises ValueError for an unknown kind, FileNotFoundError for a missing file."""
    path = Path(source)
    kind = kind_of(path)
    if kind not in (".txt", ".jsonl", ".parquet"):
        raise ValueError(
            f'unknown source {str(source)!r}: take "tinystories", "toyland", or a .txt, .jsonl or .parquet file (.gz too)'
        )
    if not path.is_file():
        raise FileNotFoundError(f'there is no file {path}: check the path, or take "toyland" as the source')
    return path


def read_file(path: Path) -> Iterator[str | None]:
    """Yield the texts of a local file, one at a time. Raises ValueError naming the place that cannot be read."""
    read = {".txt": read_txt, ".jsonl": read_jsonl, ".parquet": read_parquet}[kind_of(path)]
    try:
        yield from read(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8 and try again") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:  # OSError: also a Parquet page that is damaged
        raise ValueError(
            f"{path} cannot be read as {path.suffix} ({error}): is it damaged, or of another kind?"
        ) from error


def open_file(path: Path, mode: str) -> IO:
    encoding = None if "b" in mode else "utf-8-sig"  # -sig: a byte order mark is no part of the first story
    return (gzip.open if path.suffix == ".gz" else open)(path, mode, encoding=encoding)


def read_txt(path: Path) -> Iterator[str]:
    """Stories parted by `<|endoftext|>` where the file has it, else by blank lines."""
    with open_file(path, "rt") as file:
        marked = any(END_OF_TEXT in line for line in file)
    lines: list[str] = []
    with open_file(path, "rt") as file:
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


def read_jsonl(path: Path) -> Iterator[str | None]:
    """The "text" of one JSON object a line; null is an empty row."""
    with open_file(path, "rt") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:  # ValueError: no JSON, or a number beyond Python's limit
                raise ValueError(
                    f'{path}, line {number}: not a JSON object with a "text" ({error!r}): mend or remove that line'
                ) from error
            yield check_text(text, f"{path}, line {number}")


def read_parquet(path: Path) -> Iterator[str | None]:
    """The "text" column, row group by row group."""
    with open_file(path, "rb") as raw, pq.ParquetFile(raw) as file:
        if "text" not in file.schema_arrow.names:
            raise ValueError(f'{path} has the columns {file.schema_arrow.names}; a column "text" is needed')
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=["text"]):
            yield from (check_text(text, path) for text in batch.column(0).to_pylist())


def check_text(text: object, place: object) -> str | None:
    """Give back a string that UTF-8 can hold, or None. Raises ValueError naming the place for anything else."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f'{place}: "text" is {text!r}; it must be a string or null')
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:  # JSON can write half an emoji
        raise ValueError(f'{place}: "text" is not Unicode ({error}): mend or remove it') from error
    return text
