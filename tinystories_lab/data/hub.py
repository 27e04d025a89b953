"""Datasets of the Hugging Face Hub: the download, the configuration and the column, and what to do if it fails."""

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from threading import Thread

import datasets
from datasets import Dataset, DatasetDict

_STALL_SECONDS, _LOOK_SECONDS = 300, 5  # how long a download may write nothing, and how often this is checked
_RETRY = 'try again, or choose a local file or "toyland"'
# The first of these patterns that occurs in the classes, statuses and messages of the errors decides what is raised.
_CAUSES = (
    (r"nothing was written", ConnectionError, "set HF_HUB_DISABLE_XET=1 in the environment, restart and try again"),
    (r"Gated|\bgated\b", FileNotFoundError, "accept the terms at https://huggingface.co/datasets/{name}, set HF_TOKEN"),
    (r"(Dataset|Repository)NotFound|status 40[13]", FileNotFoundError, "check the name, or set HF_TOKEN if private"),
    (r"\b429\b", ConnectionError, f"set HF_TOKEN, with which the Hub allows more requests, or wait and {_RETRY}"),
    (r"No space left|disk space", OSError, "free some disk space, or set HF_HOME to a folder on a larger disk"),
    (r"ConnectionE|Timeout|Transport|RequestEx|LocalEntry", ConnectionError, f"check the network and {_RETRY}"),
    (r"DatasetsE|EmptyDataset|RuntimeE|ValueE", ValueError, "the library `datasets` cannot read it: choose another"),
    ("", ConnectionError, f"wait a few minutes and {_RETRY}"),
)


def load_hub(name: str, wanted: str = "", revision: str | None = None) -> tuple[DatasetDict, str]:
    """Download a dataset into the cache of `datasets`, or find it there. Return its splits and the name of a column.

    `wanted` is "COLUMN", "CONFIGURATION:COLUMN", "CONFIGURATION:" or "". The default column is "text". A word without a
    colon may also be a configuration, if the dataset needs one or has no such column.

    Raises FileNotFoundError if the Hub has no such dataset that you may read, ConnectionError if the download fails or
    stalls, and OSError if the disk is full. Raises ValueError if `datasets` cannot read the dataset, or if it has no
    split "train", no such configuration or no such column of strings.
    """
    config, _, column = wanted.rpartition(":")
    try:
        splits = _download(name, config, revision)
    except Exception as cause:  # `datasets`, its HTTP client and the file system each raise their own
        listed = re.search(r"(?:available configs|Available): (\[.*?\])", str(cause))
        configs = re.findall("'([^']*)'", listed[1]) if listed else []
        if not config and column in configs:
            return load_hub(name, f"{column}:", revision)
        if configs:
            found = f"{name} has " + (f'no configuration "{config}"' if config else "several configurations")
            needed = f"write {name}:CONFIGURATION:COLUMN, where CONFIGURATION is one of {', '.join(configs)}"
            raise ValueError(f"{found}: {needed}") from cause
        raise _explain(name, cause) from cause
    if "train" not in splits:
        raise ValueError(f'{name} has the splits {list(splits)}; a split "train" is needed: choose another dataset')
    columns = {key: getattr(feature, "dtype", "nested") for key, feature in splits["train"].features.items()}
    if column and not config and column not in columns:  # it may be a configuration other than the default one
        with suppress(OSError, ValueError):
            return load_hub(name, f"{column}:", revision)
    column = column or "text"
    if columns.get(column) not in ("string", "large_string"):
        found = ", ".join(f"{key} ({kind})" for key, kind in columns.items())
        needed = f'a column "{column}" of strings is needed: write {name}:COLUMN to choose another'
        raise ValueError(f"{name} has the columns {found}; {needed}")
    return splits, column


def texts_of(dataset: Dataset, column: str = "text") -> Iterator[str | None]:
    """Yield the texts of a memory-mapped dataset in order. Only one at a time is in memory."""
    for table in dataset.select_columns(column).with_format("arrow").iter(1_000):  # slices of the map, without copies
        yield from (text.as_py() for text in table[column])


def _download(name: str, config: str, revision: str | None) -> DatasetDict:
    """Call `load_dataset` in a thread, so that Ctrl-C works at once and a stalled download is noticed."""
    splits = Future()
    arguments, options = [name, config] if config else [name], {"revision": revision} if revision else {}

    def download() -> None:
        try:
            splits.set_result(datasets.load_dataset(*arguments, **options))
        except BaseException as error:
            splits.set_exception(error)

    Thread(target=download, daemon=True).start()  # unlike a ThreadPoolExecutor, it does not keep the process alive
    state, changed = None, time.monotonic()
    while not wait([splits], _LOOK_SECONDS).done:
        if (now := _state_of_caches()) != state:
            state, changed = now, time.monotonic()
        elif time.monotonic() - changed > _STALL_SECONDS:
            raise TimeoutError(f"nothing was written to its cache for {_STALL_SECONDS} seconds")
    return splits.result()


def _state_of_caches() -> set[tuple[str, int, int]]:
    """Return the path, size and time of each file in the caches of Hugging Face, which a download changes."""
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE, HF_XET_CACHE

    state = set()
    for cache in (HF_DATASETS_CACHE, HF_HUB_CACHE, HF_XET_CACHE):
        for folder, _, names in os.walk(cache):
            for name in names if os.path.basename(folder) != "logs" else ():  # a stalled download may still log
                with suppress(OSError):  # a temporary file may be gone by now
                    stat = os.lstat(path := os.path.join(folder, name))
                    state.add((path, stat.st_size, stat.st_mtime_ns))
    return state


def _explain(name: str, cause: Exception) -> Exception:
    """Return an exception that says in one sentence why a dataset was not loaded, and what to do."""
    error, text = cause, ""
    while error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        text += f"{[kind.__name__ for kind in type(error).__mro__]} status {status} {error} "
        error = error.__cause__ or error.__context__
    _, kind, advice = next(row for row in _CAUSES if re.search(row[0], text))
    found = f"{type(cause).__name__}: {' '.join(str(cause).split()).rstrip('.')}"
    found = f"could not get the dataset {name} from the Hugging Face Hub ({found}), and no file or folder has that name"
    return kind(f"{found}: {advice.format(name=name)}")
