"""Data sets of the Hugging Face Hub: TinyStories at a pinned revision, and any other with a column of text."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:  # half a second to import, and who only tells stories does not need it
    from datasets import DatasetDict

HUB_NAME, HUB_REVISION = "roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
HUB_STORIES = 2_119_719 + 21_990  # its rows, train and validation
ON_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::(.+))?", re.ASCII)  # owner/name, or owner/name:column
SPLITS = ("train", "validation")
ROWS_PER_BATCH = 1_000


def load_hub(source: str) -> tuple["DatasetDict", str]:
    """The data set of a source ("tinystories", owner/name, owner/name:column), and which of its columns has the text.

    Downloads it once, into the cache of `datasets`. Raises FileNotFoundError where there is none of that name,
    ConnectionError where it cannot be had, ValueError where it has no split "train" or no such column of strings.
    """
    import datasets

    if source == "tinystories":
        name, column, pinned = HUB_NAME, "text", {"revision": HUB_REVISION}
    else:
        name, column = ON_HUB.fullmatch(source).groups("text")
        pinned = {}
    try:
        hub = datasets.load_dataset(name, **pinned)
    except datasets.exceptions.DatasetNotFoundError as cause:
        raise FileNotFoundError(
            f"the Hugging Face Hub has no data set {name} that you may read, and there is no file or folder of that name "
            "here: check the name, or set HF_TOKEN if the data set is private or gated"
        ) from cause
    except Exception as cause:  # datasets, its HTTP client and the file system each raise their own
        raise ConnectionError(
            f"could not get {name} from the Hugging Face Hub ({type(cause).__name__}: {cause}). Try again in some "
            'minutes; or set HF_TOKEN if the Hub limits you (error 429); or take a local file or "toyland" as the source.'
        ) from cause
    if "train" not in hub:
        raise ValueError(f'{name} has the splits {list(hub)}; a split "train" is needed: take another data set')
    columns = {key: getattr(feature, "dtype", "nested") for key, feature in hub["train"].features.items()}
    if columns.get(column) not in ("string", "large_string"):
        found = ", ".join(f"{key} ({kind})" for key, kind in columns.items())
        raise ValueError(
            f'{name} has the columns {found}; "{column}" of strings is needed: write {name}:COLUMN to take another'
        )
    return hub, column


def read_hub(source: str, max_stories: int | None) -> Iterator[tuple[str, str | None]]:
    """Yield (split, text), at most `max_stories` a split; a data set without "validation" gives train, its split as ""."""
    hub, column = load_hub(source)
    splits = {split: split for split in SPLITS} if "validation" in hub else {"train": ""}
    for name, split in splits.items():
        part = hub[name] if max_stories is None else hub[name].take(min(max_stories, len(hub[name])))
        with tqdm(desc=name, total=len(part), unit=" stories") as bar:
            for batch in part.select_columns(column).iter(ROWS_PER_BATCH):
                yield from ((split, text) for text in batch[column])
                bar.update(len(batch[column]))
