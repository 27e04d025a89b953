"""Stories cleaned, split into training and validation sets, and stored as memory-mapped Arrow files."""

import atexit
import json
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Any
from unicodedata import category

import pyarrow as pa
from datasets import Dataset, DatasetDict

from tinystories_lab import __version__
from tinystories_lab.data.hub import texts_of
from tinystories_lab.data.sources import HUB_REVISION, SPLITS, CleanReport, find_files, read_source
from tinystories_lab.data.toyland import GRAMMAR
from tinystories_lab.durability.lock import data_lock
from tinystories_lab.files import atomic_write, cached_sha256_of, sha256_of
from tinystories_lab.loader import BinInfo
from tinystories_lab.tokenizer import END_OF_TEXT

_BATCH_BYTES = 2**20  # how much text a record batch has, plus the rest of its last story
# Mojibake: UTF-8 that was decoded as Windows-1252 looks like â€œ or Ã©. Windows-1252 does not define five bytes, among
# them the last byte of a closing quote. Lenient decoders keep these bytes, so here they map to themselves.
_BYTE_OF = {bytes([byte]).decode("cp1252", errors="ignore") or chr(byte): byte for byte in range(0x80, 0x100)}
_CONTINUATION = "[" + "".join(char for char, byte in _BYTE_OF.items() if byte < 0xC0) + "]"
# Three kinds of damage: punctuation and currency, emoji, and the letters and signs of Latin-1. The first two occur in
# no language. The third may be correct text: `_is_damage` decides.
_MOJIBAKE = re.compile(rf"â[€‚„]{_CONTINUATION}|ðŸ{_CONTINUATION}{{2}}|(?P<pairs>(?:[ÂÃ][\u00a0-\u00bf])+)")
_OPENING = "«‹“„‘‚([{\"'"
_RUN = ": run 01_prepare (or `prepare` in the shell)"


def load_stories(
    source: str | Path,
    data_dir: str | Path | None = None,
    *,
    max_stories: int | None = None,
    validation_share: float = 0.05,
    seed: int = 0,
) -> tuple[DatasetDict, CleanReport]:
    """Read, clean and split stories. Return the datasets "train" and "validation", with a "text" column, and a report.

    `source` is "tinystories" (on the Hub, at a pinned revision), "owner/name", "owner/name:column" or
    "owner/name:configuration:column" (another dataset on the Hub), "toyland" (generated stories, 20,000 by default), a
    .txt, .jsonl or .parquet file (also .gz), or a folder of files of one type. At most `max_stories` rows are read. The
    splits of the source are kept, also those in the names of files. Then validation has at most `validation_share` of
    `max_stories`. Without such splits, the validation set is a random `validation_share` of the stories.

    The result is stored in `data_dir/stories`, and the same request opens it again. If it is damaged, or if settings or
    files have changed, it is prepared again and a line says why. One session at a time writes. Without `data_dir`, the
    result is deleted when the process ends. Memory use is about 80 bytes per story (a hash in a set).

    Raises FileNotFoundError or ValueError if the source is missing or not readable, and the errors of `load_hub`. If
    `data_dir` has the stories of another source, raises ValueError and changes nothing.
    """
    if not 0 < validation_share <= 0.5:
        raise ValueError(f"validation_share is {validation_share}; it must be above 0 and at most 0.5")
    if max_stories is not None and max_stories < 2:
        raise ValueError(f"max_stories is {max_stories}; it must be at least 2: one to train on, one for validation")
    if data_dir is None:
        data_dir = tempfile.mkdtemp(prefix="tinystories_lab_")
        atexit.register(shutil.rmtree, data_dir, ignore_errors=True)
    files = find_files(source)
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    if source == "toyland":
        states = [(GRAMMAR.name, sha256_of(GRAMMAR))]
    request = {"max_stories": max_stories, "validation_share": validation_share, "seed": seed}
    request |= {"source": str(source), "path": str(Path(source).resolve()) if files else None}
    request |= {"hub": HUB_REVISION, "version": __version__}  # another version may clean or generate differently
    request |= {"files": blake2b(repr(states).encode()).hexdigest()}
    if _why_prepare(Path(data_dir), request) is not None:  # another source is refused before anything is written
        with data_lock(data_dir):
            why = _why_prepare(Path(data_dir), request)  # another session may have written them in the meantime
            if why:
                print(f"the stories are prepared again: {why}")
            if why is not None:
                _prepare(source, Path(data_dir) / "stories", request)
    return open_stories(data_dir)


def _why_prepare(data_dir: Path, request: dict[str, Any]) -> str | None:
    """Return None if `data_dir` has the stories of this request, "" if it has none, or what is wrong with them.

    Raises ValueError if they come from another source. Without a report, train.json has the name of their source.
    """
    old, path, known, why = {}, request["path"], "", None
    try:
        saved, report = _read_report(data_dir / "stories")
        old, known = saved["request"], report.source
    except (FileNotFoundError, ValueError) as error:
        why = "" if isinstance(error, FileNotFoundError) else str(error).partition(_RUN)[0]
        with suppress(OSError, ValueError):  # train.json may be damaged, too
            known = str(getattr(BinInfo.load(data_dir / "train.bin"), "source", ""))
    is_same_file = path and path in (old.get("path"), str(Path(known).resolve()))
    if known and known != request["source"] and not is_same_file:
        advice = "use another data name (--data NAME in the shell), or remove that folder"
        raise ValueError(f"{data_dir} holds the stories of {known}, not of {request['source']}: {advice}")
    if why is not None:
        return why
    changes = [
        "the files have changed" if name == "files" else f"{name} was {old.get(name)} and is now {new}"
        for name, new in request.items()
        if name not in ("source", "path") and old.get(name) != new
    ]
    if changes:
        return ", ".join(changes)
    try:
        open_stories(data_dir)
    except (FileNotFoundError, ValueError) as error:
        return str(error).partition(_RUN)[0]
    return None


def _prepare(source: str | Path, folder: Path, request: dict[str, Any]) -> None:
    """Read, clean and split stories, and write them and their report to a folder."""
    report, share, seed = CleanReport(str(source)), request["validation_share"], request["seed"]
    rows = _clean_rows(read_source(source, report, request["max_stories"], share, seed), report)
    rows = _split_rows(rows, share, seed)
    rows = chain(list(islice(rows, 1)), rows)  # if the first row cannot be read, no file is made
    with ExitStack() as stack:
        files = {split: stack.enter_context(atomic_write(folder / f"{split}.arrow")) for split in SPLITS}
        schema = pa.schema({"text": pa.string()})
        writers = {split: stack.enter_context(pa.ipc.new_stream(file, schema)) for split, file in files.items()}
        for split, batch in _batches(rows):
            setattr(report, split, getattr(report, split) + len(batch))
            writers[split].write_batch(pa.record_batch([batch], schema))
        if not (report.train and report.validation):
            count = report.train + report.validation
            found = f"{source} gave {count} {'story' if count == 1 else 'stories'} after cleaning"
            dropped = f"{report.empty} empty rows, {report.duplicates} duplicates, {report.in_train} in both splits"
            raise ValueError(f"{found} ({dropped}); at least 2 are needed, one for training and one for validation")
        (folder / "report.json").unlink(missing_ok=True)  # an old report must not describe the new files
    arrow = {}
    for split in SPLITS:
        path = folder / f"{split}.arrow"
        arrow[split] = [path.stat().st_size, path.stat().st_mtime_ns, sha256_of(path)]
    report.fingerprint = "-".join(sha256[:16] for *_, sha256 in arrow.values())
    with atomic_write(folder / "report.json", "w") as file:
        json.dump({"request": request, "arrow": arrow, "report": asdict(report)}, file, indent=1)


def open_stories(data_dir: str | Path) -> tuple[DatasetDict, CleanReport]:
    """Return what `load_stories` stored in `data_dir`, memory-mapped.

    Raises FileNotFoundError if it has not run or a file is missing, and ValueError if a file is damaged.
    """
    folder, splits = Path(data_dir) / "stories", DatasetDict()
    saved, report = _read_report(folder)
    for split in SPLITS:
        path, rows = folder / f"{split}.arrow", getattr(report, split)
        try:
            now = path.stat()
            if "arrow" in saved:  # reports of older versions do not have it
                *state, sha256 = saved["arrow"][split]
                if [now.st_size, now.st_mtime_ns] != state and cached_sha256_of(path) != sha256:  # hashing is slow
                    raise ValueError("its SHA-256 differs from that in report.json")
            splits[split] = Dataset.from_file(str(path))
            if len(splits[split]) != rows:
                raise ValueError(f"it has {len(splits[split])} stories, and report.json {rows}")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no {path}{_RUN} first") from error
        except Exception as error:  # Arrow, `datasets` and the file system each raise their own
            raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}){_RUN} again") from error
    return splits, report


def _read_report(folder: Path) -> tuple[dict[str, Any], CleanReport]:
    """Return the content of report.json and its report. Raises as `open_stories`."""
    path, default = folder / "report.json", CleanReport("")
    try:
        saved = json.loads(path.read_bytes())
        report = CleanReport(**saved["report"])  # fields that an older version did not have get their default
        wrong = [name for name, value in vars(report).items() if type(value) is not type(getattr(default, name))]
        if wrong or not isinstance(saved["request"], dict):
            raise TypeError(f"wrong type of {', '.join(wrong) or 'request'}")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there are no cleaned stories in {folder}{_RUN} first") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error!r}){_RUN} again") from error
    return saved, report


class StoryTexts:
    """The texts of a dataset in order, or the first `limit` of them, with about 1 MB of text in memory."""

    def __init__(self, dataset: Dataset, limit: int | None = None) -> None:
        self._dataset, self._count = dataset, len(dataset) if limit is None else min(limit, len(dataset))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        files = [file["filename"] for file in self._dataset.cache_files]
        is_stored = len(files) == 1 and self._dataset._indices is None
        return islice(_read_arrow(files[0]) if is_stored else texts_of(self._dataset), self._count)


def _read_arrow(path: str) -> Iterator[str]:
    """Yield the texts of a stored split. The file is not memory-mapped, because mapped pages count as used memory."""
    with pa.OSFile(path) as file, pa.ipc.open_stream(file) as batches:
        for batch in batches:
            yield from (text.as_py() for text in batch.column("text"))


def _fix_mojibake(text: str) -> str:
    """Repair UTF-8 that was decoded as Windows-1252 (â€œ becomes “). Correct text is returned unchanged."""
    if text.isascii():  # true for most stories, and faster than a search
        return text

    def decode(match: re.Match) -> str:
        start, end = match.span()
        if not match["pairs"] or _is_damage(text[max(0, start - 2) : start], match["pairs"], text[end : end + 1]):
            with suppress(UnicodeDecodeError):
                return bytes(_BYTE_OF[char] for char in match[0]).decode()
        return match[0]

    return _MOJIBAKE.sub(decode, text)


def _is_damage(before: str, pairs: str, after: str) -> bool:
    """Return whether pairs such as Ã© are mojibake, judged by the two characters before them and the one after."""
    last, sign = before[-1:], pairs[1]
    if last.isalpha() and category(last) != "Ll":  # words in capitals may end in Ã or Â, as AMANHÃ», but HÃºn is damage
        return not before[:-1].isalpha() and category(after or " ") == "Ll" and sign != "\u00a0"
    if last == "." and before[0].isupper():  # initials: J.Â\u00a0Silva
        return False
    # The letters Ã and Â may stand alone in quotation marks, as in «Â», or before a soft hyphen, as in Â\u00admes.
    return not ((sign == "»" and last and last in _OPENING) or (sign == "\u00ad" and after.isupper()))


def _clean_rows(rows: Iterator[tuple[str, str | None]], report: CleanReport) -> Iterator[tuple[str, str]]:
    """Yield (split, story) without empty rows, exact duplicates, and validation stories that also appear in train."""
    seen: dict[str, set[int]] = defaultdict(set)  # the hashes of each split's stories
    for split, text in rows:
        report.rows += 1
        text = (text or "").strip().removeprefix(END_OF_TEXT).removesuffix(END_OF_TEXT)
        for part in text.split(END_OF_TEXT):  # the marker may also separate stories inside a row
            fixed = _fix_mojibake(part)
            story = fixed.strip()
            digest = int.from_bytes(blake2b(story.encode(), digest_size=8).digest())
            if not story:
                report.note("empty", repr(part))
            elif digest in seen[split]:
                report.note("duplicates", story)
            elif split == "validation" and digest in seen["train"]:
                report.note("in_train", story)
            else:
                seen[split].add(digest)
                if fixed != part:
                    start = next(place for place, char in enumerate(fixed) if char != part[place])
                    report.note("repaired", part[max(0, start - 40) :])
                yield split, story


def _split_rows(rows: Iterator[tuple[str, str]], validation_share: float, seed: int) -> Iterator[tuple[str, str]]:
    """Assign one random story of every 1 / `validation_share` to validation, unless the source has its own splits."""
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
    """Yield (split, stories) with about 1 MB of text at a time."""
    batches: dict[str, list[str]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for split, story in rows:
        batches[split].append(story)
        sizes[split] += len(story.encode())
        if sizes[split] >= _BATCH_BYTES:
            yield split, batches[split]
            batches[split], sizes[split] = [], 0
    yield from batches.items()
