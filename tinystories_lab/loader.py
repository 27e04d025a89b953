"""Batches of windows from a token file. A batch is a pure function of the step, so a resume needs no loader state."""

import json
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from tinystories_lab.config import check_ranges
from tinystories_lab.files import cached_sha256_of

_WRITE_AGAIN = "write it again (02_tokenizer, or `tokenizer` in the shell)"
_STEPS_PER_DRAW = 64  # steps whose windows are drawn together, because it is slow to seed a generator for each


@dataclass(frozen=True)
class BinInfo:
    """What a token file contains. A JSON sidecar beside the file stores it: train.json for train.bin."""

    tokens: int
    stories: int
    bytes: int  # UTF-8 bytes of the stories' text, without end-of-text tokens
    vocab_size: int
    dtype: str
    tokenizer_sha256: str
    sha256: str  # of the token file
    source: str = ""
    made_from: str = ""  # the fingerprint of the cleaned stories

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, end-of-text tokens included. It converts nats per token to bits per byte."""
        return self.bytes / self.tokens

    @classmethod
    def load(cls, bin_path: str | Path) -> "BinInfo | None":
        """Return the sidecar of a token file, or None if there is none. Raises ValueError if it is damaged."""
        sidecar = Path(bin_path).with_suffix(".json")
        if not sidecar.exists():
            return None
        try:
            info = cls(**json.loads(sidecar.read_text(encoding="utf-8")))
            check_ranges(info, dict.fromkeys(("tokens", "stories", "vocab_size"), (1, 2**62)) | {"bytes": (0, 2**62)})
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{sidecar} is damaged ({error}): {_WRITE_AGAIN}") from error
        return info


def open_tokens(path: str | Path) -> np.ndarray:
    """Return the uint16 ids of a token file, memory-mapped if possible.

    Raises FileNotFoundError if there is none, and ValueError if it is empty, odd, or contradicts its sidecar (SHA-256).
    """
    path, info = Path(path), BinInfo.load(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no token file {path}: run 02_tokenizer (or `tokenizer` in the shell) first")
    size = path.stat().st_size
    if size % 2 or not size:
        raise ValueError(f"{path} has {size} bytes, but uint16 ids take two each: {_WRITE_AGAIN}")
    if info and info.dtype != "uint16":
        raise ValueError(f"{path} has {info.dtype} ids, but only uint16 can be read: {_WRITE_AGAIN}")
    if info and info.tokens != size // 2:
        raise ValueError(f"{path} was written with {info.tokens:,} tokens, but it has {size // 2:,}: {_WRITE_AGAIN}")
    if info and info.sha256 != cached_sha256_of(path):
        raise ValueError(f"{path} is damaged (its SHA-256 is not the one in its sidecar): {_WRITE_AGAIN}")
    try:
        return np.memmap(path, np.uint16, mode="c")  # PyTorch wants a writable array; writes would not reach the file
    except (OSError, ValueError) as error:
        found = f"{path} cannot be memory-mapped ({error})"
        warnings.warn(f"{found}: all of its {size / 1e6:,.0f} MB are read into memory", stacklevel=3)
        return np.fromfile(path, np.uint16)


class BinLoader:
    """Batches of windows from a token file of uint16 ids, on `device`.

    `sampling="random"` draws windows anywhere with replacement, as the chapter does. `"shuffle"` cuts the file into
    adjacent windows and reads each once per epoch, in an order given by (seed, epoch). `"stories"` draws windows that
    begin with a story, so `eos_id` must be given; a story that is longer than a window is never read to its end. Raises
    FileNotFoundError without a file, and ValueError if it is damaged, shorter than a window, or contradicts its sidecar
    or another argument.
    """

    def __init__(
        self,
        path: str | Path,
        batch_size: int,
        seq_len: int,
        seed: int = 0,
        sampling: str = "random",
        vocab_size: int | None = None,
        tokenizer_sha256: str | None = None,
        device: torch.device | str = "cpu",
        eos_id: int | None = None,
    ) -> None:
        if sampling not in ("random", "shuffle", "stories"):
            raise ValueError(f"sampling is {sampling!r}; it must be random, shuffle or stories")
        if sampling == "stories" and eos_id is None:
            raise ValueError("sampling is 'stories', which needs eos_id, the id of the end-of-text token")
        if batch_size < 1 or seq_len < 1:
            raise ValueError(f"batch_size is {batch_size} and seq_len {seq_len}; both must be at least 1")
        self.path, self.batch_size, self.seq_len = Path(path), batch_size, seq_len
        self.seed, self.sampling = seed, sampling
        self.tokens, self.info = open_tokens(path), BinInfo.load(path)
        if self.info and vocab_size is not None and self.info.vocab_size > vocab_size:
            found = f"a vocabulary of {self.info.vocab_size:,} tokens, but the model has {vocab_size:,}"
            raise ValueError(f"{path} was written with {found}: {_WRITE_AGAIN}")
        if self.info and tokenizer_sha256 not in (None, self.info.tokenizer_sha256):
            found = "another tokenizer than the tokenizer.json beside it"
            raise ValueError(f"{path} was written with {found}: {_WRITE_AGAIN}")
        if len(self.tokens) < seq_len + 1:
            needed = f"a window of seq_len {seq_len} needs {seq_len + 1}"
            raise ValueError(f"{path} has {len(self.tokens)} tokens; {needed}: use more stories, or a smaller seq_len")
        # To check every id takes 0.2 s for 200M tokens. Without this check, a bad id would stop the run in the middle.
        if vocab_size is not None and (largest := int(self.tokens.max())) >= vocab_size:
            found = f"the token id {largest}, but the model's vocab_size is {vocab_size}"
            raise ValueError(f"{path} contains {found}: use the vocabulary of this file's tokenizer")
        self.windows = (len(self.tokens) - 1) // seq_len  # adjacent windows that have a next token
        if sampling == "stories":
            self._story_starts = np.concatenate([[0], np.flatnonzero(self.tokens == eos_id) + 1])
        self.device = torch.device(device)
        self._ids = torch.from_numpy(self.tokens.view(np.int16))  # PyTorch supports few operations on uint16
        if _fits_on_gpu(self.device, self.tokens.nbytes):
            self._ids = self._ids.to(self.device)
        self._draw_starts, self._shuffle = lru_cache(2)(self._draw_starts), lru_cache(2)(self._shuffle)  # for speed

    def batch(self, step: int, seq_len: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the batch of `step`: x and y, int64, each (batch_size, seq_len). y is x shifted by one token.

        A shorter `seq_len` gives the same number of tokens in more rows, and shuffled epochs of shorter windows.
        """
        seq_len = seq_len or self.seq_len
        rows = self.batch_size * self.seq_len // seq_len
        if self.sampling != "shuffle":
            block, row = divmod(step, _STEPS_PER_DRAW)
            starts = self._draw_starts(block, rows, seq_len)[row]
        else:
            windows = (len(self.tokens) - 1) // seq_len
            epochs, places = np.divmod(np.arange(step * rows, (step + 1) * rows), windows)  # a batch may cross epochs
            orders = [self._shuffle(epoch, windows)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
            starts = np.concatenate(orders) * seq_len
        windows = self._ids.unfold(0, seq_len + 1, 1)  # every window with the token that follows it, as a view
        ids = windows[_to_device(torch.from_numpy(starts), self._ids.device)]
        ids = _to_device(ids, self.device).long() & 0xFFFF  # from int16 back to uint16
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()  # a copy of them has the same strides, see GraphedCall

    def _draw_starts(self, block: int, rows: int, seq_len: int) -> np.ndarray:
        """Return where the windows of 64 consecutive steps start, (64, rows)."""
        rng, choices = np.random.default_rng((self.seed, block)), len(self.tokens) - seq_len
        if self.sampling == "random":
            return rng.integers(0, choices, (_STEPS_PER_DRAW, rows))
        starts = self._story_starts[: np.searchsorted(self._story_starts, choices)]
        return rng.choice(starts, (_STEPS_PER_DRAW, rows))

    def _shuffle(self, epoch: int, windows: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(windows)


def _fits_on_gpu(device: torch.device, size: int) -> bool:
    """Return whether `device` is a GPU that has more than eight times `size` bytes of free memory."""
    return device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 8


def _to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on `device`. From pinned memory, a GPU copies while the CPU continues."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
