"""Where stories come from: any source, cleaned, split, and kept as memory-mapped Arrow files."""

import atexit
import json
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
from tinystories_lab.files import replace_whole
from tinystories_lab.hub import HUB_REVISION, ROWS_PER_BATCH, SPLITS
from tinystories_lab.repair import DAMAGED, repair
from tinystories_lab.sources import END_OF_TEXT, find_files, read_rows


@dataclass
class CleanReport:
    """What cleaning did: stories kept in each split, rows dropped or repaired, up to three examples of each."""

    source: str
    train: int = 0
    validation: int = 0
    empty: int = 0
    duplicates: int = 0
    in_train: int = 0  # validation stories that also stand in train
    repaired: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, what: str, example: str) -> None:
        """Count one more `what` (the name of a field) and keep its first three examples."""
        setattr(self, what, getattr(self, what) + 1)
        kept = self.examples.setdefault(what, [])
        if len(kept) < 3:
            kept.append(example[:200])

    def __str__(self) -> str:
        return (
            f"{self.source}: {self.train:,} stories to train on, {self.validation:,} to validate with; dropped "
            f"{self.empty:,} empty, {self.duplicates:,} duplicates, {self.in_train:,} validation stories that stand in "
            f"train; repaired {self.repaired:,}"
        )


def load_stories(
    source: str | Path,
    data_dir: str | Path | None = None,
    *,
    max_stories: int | None = None,
    validation_share: float = 0.05,
    seed: int = 0,
) -> tuple[DatasetDict, CleanReport]:
    """Read, clean and split stories; returns datasets "train" and "validation", each with a "text" column.

    `source` is "tinystories" (the Hub's data set at a pinned revision), another of the Hub's as "owner/name" or
    "owner/name:column", "toyland" (told here, no network), or a local .txt, .jsonl or .parquet file, plain or .gz, or a
    folder of files of one of these kinds. The Hub's own validation split is kept; of the others a seeded
    `validation_share` is held out. `max_stories` stops reading early; toyland tells 20,000 unless told otherwise. With
    `data_dir` the result is kept in `data_dir/stories` and the same request opens it again; without, it lives until this
    process ends. Stories stream through: memory holds 8 bytes of hash a story, never the corpus.

    Raises FileNotFoundError or ValueError for a source that is not there or not readable, ConnectionError when the
    Hub cannot be had; each says what to do.
    """
    if data_dir is None:
        data_dir = tempfile.mkdtemp(prefix="tinystories_lab_")
        atexit.register(shutil.rmtree, data_dir, ignore_errors=True)
    folder = Path(data_dir) / "stories"
    request = {"max_stories": max_stories, "validation_share": validation_share, "seed": seed}
    request |= {"hub": HUB_REVISION, "version": __version__}  # another version may clean, or tell, otherwise
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in find_files(source)]
    request |= {"source": str(source), "files": blake2b(repr(files).encode()).hexdigest()}
    if (folder / "report.json").exists() and json.loads((folder / "report.json").read_text())["request"] == request:
        return open_stories(data_dir)

    report = CleanReport(source=str(source))
    with ExitStack() as stack:
        writers = {}
        for split in SPLITS:
            file = stack.enter_context(replace_whole(folder / f"{split}.arrow"))
            writers[split] = stack.enter_context(pa.ipc.new_stream(file, pa.schema({"text": pa.string()})))
        batches: dict[str, list[str]] = {split: [] for split in SPLITS}
        rows = read_rows(source, max_stories, seed)
        for split, story in _split_rows(_clean_rows(rows, report), validation_share, seed):
            setattr(report, split, getattr(report, split) + 1)
            batches[split].append(story)
            if len(batches[split]) == ROWS_PER_BATCH:
                writers[split].write_batch(pa.record_batch({"text": pa.array(batches.pop(split), pa.string())}))
                batches[split] = []
        for split, batch in batches.items():
            if not getattr(report, split):
                raise ValueError(
                    f"{source} gave {report.train + report.validation} stories after cleaning ({report.empty} empty rows and "
                    f"{report.duplicates} duplicates dropped); at least 2 are needed, one to train on and one to hold out"
                )
            writers[split].write_batch(pa.record_batch({"text": pa.array(batch, pa.string())}))
        (folder / "report.json").unlink(missing_ok=True)  # while the files are replaced, nothing vouches for them
    with replace_whole(folder / "report.json", "w") as file:
        json.dump({"request": request, "report": asdict(report)}, file, indent=1)
    return open_stories(data_dir)


def open_stories(data_dir: str | Path) -> tuple[DatasetDict, CleanReport]:
    """Open, memory-mapped, what `load_stories(source, data_dir)` kept. Raises FileNotFoundError when it has not run."""
    folder = Path(data_dir) / "stories"
    if not (folder / "report.json").exists():
        raise FileNotFoundError(f"no cleaned stories in {folder}: run 01_prepare (or `prepare` in the shell) first")
    report = CleanReport(**json.loads((folder / "report.json").read_text())["report"])
    return DatasetDict({split: Dataset.from_file(str(folder / f"{split}.arrow")) for split in SPLITS}), report


def _clean_rows(rows: Iterator[tuple[str, str | None]], report: CleanReport) -> Iterator[tuple[str, str]]:
    """Yield (split, story) without empty rows, exact duplicates, and validation stories that stand in train."""
    seen: dict[str, set[int]] = {}
    for split, text in rows:
        text = (text or "").strip().removeprefix(END_OF_TEXT).removesuffix(END_OF_TEXT)
        for part in text.split(END_OF_TEXT):  # the marker parts stories wherever it stands
            story = repair(part).strip()
            digest = int.from_bytes(blake2b(story.encode(errors="surrogatepass"), digest_size=8).digest())
            if not story:
                report.note("empty", repr(part))
            elif digest in seen.setdefault(split, set()):
                report.note("duplicates", story)
            elif split == "validation" and digest in seen.get("train", ()):
                report.note("in_train", story)
            else:
                seen[split].add(digest)
                if story != part.strip():
                    damage = DAMAGED.search(part)
                    report.note("repaired", part[max(0, damage.start() - 40) :])
                yield split, story


def _split_rows(rows: Iterator[tuple[str, str]], validation_share: float, seed: int) -> Iterator[tuple[str, str]]:
    """Send one story of every 1 / `validation_share`, drawn by `seed`, to validation, where the source has no split."""
    if not 0 < validation_share <= 0.5:
        raise ValueError(f"validation_share is {validation_share}; it must be above 0 and at most 0.5")
    random = Random(seed)
    blocks = block_end = 0
    for index, (split, story) in enumerate(rows):
        if index == block_end:
            blocks += 1
            block_end = round(blocks / validation_share)
            # The first block draws among two, so that any corpus of two stories has both splits.
            held_out = index + int(random.random() * (block_end - index if index else 2))
        yield split or ("validation" if index == held_out else "train"), story
