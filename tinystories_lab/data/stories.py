"""Stories cleaned, split into training and validation sets, and stored as memory-mapped Arrow files."""

import atexit
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from random import Random

import pyarrow as pa
from datasets import Dataset, DatasetDict

from tinystories_lab import __version__
from tinystories_lab.data.sources import HUB_REVISION, ROWS_AT_ONCE, SPLITS, find_files, read_source
from tinystories_lab.files import atomic_write
from tinystories_lab.tokenizer import END_OF_TEXT

_BATCH_BYTES = 2**20  # of text in a record batch, plus the rest of its last story
# Mojibake: UTF-8 that was decoded as Windows-1252 looks like â€œ or Ã©. Python's cp1252 does not define five bytes,
# such as the last byte of a closing quote. Lenient decoders keep them as they are, so here they map to themselves.
_BYTE_OF = {bytes([byte]).decode("cp1252", errors="ignore") or chr(byte): byte for byte in range(0x80, 0x100)}
_CONTINUATION = "[" + "".join(char for char, byte in _BYTE_OF.items() if byte < 0xC0) + "]"
# Three kinds of damage (punctuation and currency, emoji, accented letters) with beginnings that no language writes.
# Text that could be decoded may still be correct: "allé »" with its French space ends in three such characters.
# Ã» becomes û only inside a word, because at the end of a word it may be Portuguese, as in «AMANHÃ».
_MOJIBAKE = re.compile(rf"â[€‚„]{_CONTINUATION}|ðŸ{_CONTINUATION}{{2}}|(?!Ã»(?!\w))[ÂÃ][\u00a0-\u00bf]")


@dataclass
class CleanReport:
    """What cleaning did: how many stories each split has, and how many were dropped or repaired, with examples."""

    source: str
    train: int = 0
    validation: int = 0
    empty: int = 0
    duplicates: int = 0
    in_train: int = 0  # validation stories that also appear in train
    repaired: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)  # up to three for each of the last four counts

    def note(self, what: str, example: str) -> None:
        """Add one to the count `what` and keep its first three examples."""
        setattr(self, what, getattr(self, what) + 1)
        kept = self.examples.setdefault(what, [])
        if len(kept) < 3:
            kept.append(example[:200])

    def __str__(self) -> str:
        kept = f"{self.train:,} stories to train on and {self.validation:,} for validation"
        dropped = f"{self.empty:,} empty rows, {self.duplicates:,} duplicates"
        also_in_train = f"{self.in_train:,} validation stories that also appear in train"
        return f"{self.source}: {kept}; dropped {dropped} and {also_in_train}; repaired {self.repaired:,}"


def load_stories(
    source: str | Path,
    data_dir: str | Path | None = None,
    *,
    max_stories: int | None = None,
    validation_share: float = 0.05,
    seed: int = 0,
) -> tuple[DatasetDict, CleanReport]:
    """Read, clean and split stories. Return the datasets "train" and "validation", with a "text" column, and a report.

    `source` is "tinystories" (on the Hub, at a pinned revision), "owner/name" or "owner/name:column" (another dataset
    on the Hub), "toyland" (generated stories, 20,000 by default), a .txt, .jsonl or .parquet file (also .gz), or a
    folder of files of one type. If the source has no validation split, a random `validation_share` of the stories
    becomes one. The result is stored in `data_dir/stories`, and the same request opens it again. Without `data_dir`, it
    is deleted when the process ends. Memory holds a hash of 8 bytes per story, never all stories.

    Raises FileNotFoundError or ValueError for a source that is missing or not readable, ConnectionError if the Hub
    cannot be reached.
    """
    if data_dir is None:
        data_dir = tempfile.mkdtemp(prefix="tinystories_lab_")
        atexit.register(shutil.rmtree, data_dir, ignore_errors=True)
    folder = Path(data_dir) / "stories"
    stored = folder / "report.json"
    local = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in find_files(source)]
    request = {"max_stories": max_stories, "validation_share": validation_share, "seed": seed}
    request |= {"source": str(source), "files": blake2b(repr(local).encode()).hexdigest()}
    request |= {"hub": HUB_REVISION, "version": __version__}  # another version may clean or generate differently
    if stored.exists() and json.loads(stored.read_text())["request"] == request:
        return open_stories(data_dir)

    report = CleanReport(source=str(source))
    rows = _clean_rows(read_source(source, max_stories, seed), report)
    with ExitStack() as stack:
        files = {split: stack.enter_context(atomic_write(folder / f"{split}.arrow")) for split in SPLITS}
        schema = pa.schema({"text": pa.string()})
        writers = {split: stack.enter_context(pa.ipc.new_stream(file, schema)) for split, file in files.items()}
        for split, batch in _batches(_split_rows(rows, validation_share, seed)):
            setattr(report, split, getattr(report, split) + len(batch))  # the counts are named after the splits
            writers[split].write_batch(pa.record_batch([batch], schema))
        if not (report.train and report.validation):
            found = f"{source} gave {report.train + report.validation} stories after cleaning"
            dropped = f"{report.empty} empty rows and {report.duplicates} duplicates dropped"
            raise ValueError(f"{found} ({dropped}); at least 2 are needed, one for training and one for validation")
        stored.unlink(missing_ok=True)  # an old report must not describe the new files
    with atomic_write(stored, "w") as file:
        json.dump({"request": request, "report": asdict(report)}, file, indent=1)
    return open_stories(data_dir)


def open_stories(data_dir: str | Path) -> tuple[DatasetDict, CleanReport]:
    """Return what `load_stories` stored in `data_dir`, memory-mapped. Raises FileNotFoundError if it has not run."""
    folder = Path(data_dir) / "stories"
    if not (folder / "report.json").exists():
        raise FileNotFoundError(f"no cleaned stories in {folder}: run 01_prepare (or `prepare` in the shell) first")
    report = CleanReport(**json.loads((folder / "report.json").read_text())["report"])
    return DatasetDict({split: Dataset.from_file(str(folder / f"{split}.arrow")) for split in SPLITS}), report


class StoryTexts:
    """The texts of a dataset in order, or the first `limit` of them. Only a few rows are in memory at a time."""

    def __init__(self, dataset: Dataset, limit: int | None = None) -> None:
        self._dataset = dataset if limit is None else dataset.select(range(min(limit, len(dataset))))

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[str]:
        for batch in self._dataset.select_columns("text").iter(ROWS_AT_ONCE):
            yield from batch["text"]


def _fix_mojibake(text: str) -> str:
    """Repair UTF-8 that was decoded as Windows-1252 (â€œ becomes “). Correct text is returned unchanged."""
    if text.isascii():  # most stories are ASCII, and this check is faster than a search
        return text

    def decode(match: re.Match) -> str:
        try:
            return bytes(_BYTE_OF[char] for char in match[0]).decode()
        except UnicodeDecodeError:
            return match[0]

    return _MOJIBAKE.sub(decode, text)


def _clean_rows(rows: Iterator[tuple[str, str | None]], report: CleanReport) -> Iterator[tuple[str, str]]:
    """Yield (split, story) without empty rows, exact duplicates, and validation stories that also appear in train."""
    seen: dict[str, set[int]] = {}
    for split, text in rows:
        text = (text or "").strip().removeprefix(END_OF_TEXT).removesuffix(END_OF_TEXT)
        for part in text.split(END_OF_TEXT):  # the marker may also separate stories inside a row
            story = _fix_mojibake(part).strip()
            digest = int.from_bytes(blake2b(story.encode(), digest_size=8).digest())
            if not story:
                report.note("empty", repr(part))
            elif digest in seen.setdefault(split, set()):
                report.note("duplicates", story)
            elif split == "validation" and digest in seen.get("train", ()):
                report.note("in_train", story)
            else:
                seen[split].add(digest)
                if story != part.strip():
                    report.note("repaired", part[max(0, _MOJIBAKE.search(part).start() - 40) :])
                yield split, story


def _split_rows(rows: Iterator[tuple[str, str]], validation_share: float, seed: int) -> Iterator[tuple[str, str]]:
    """Put one random story of every 1 / `validation_share` into validation, if the source has no splits of its own."""
    if not 0 < validation_share <= 0.5:
        raise ValueError(f"validation_share is {validation_share}; it must be above 0 and at most 0.5")
    random = Random(seed)
    blocks = block_end = 0
    for index, (split, story) in enumerate(rows):
        if index == block_end:
            blocks += 1
            block_end = round(blocks / validation_share)
            # The first block draws one of its first two stories, so that a corpus of two stories has both splits.
            validation_index = index + int(random.random() * (block_end - index if index else 2))
        yield split or ("validation" if index == validation_index else "train"), story


def _batches(rows: Iterator[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Yield (split, stories) with about 1 MB of text at a time, so that few stories are in memory."""
    batches: dict[str, list[str]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for split, story in rows:
        batches[split].append(story)
        sizes[split] += len(story.encode())
        if sizes[split] >= _BATCH_BYTES:
            yield split, batches[split]
            batches[split], sizes[split] = [], 0
    yield from batches.items()
