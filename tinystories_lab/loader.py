"""Windows of a token file, as a pure function of the step: nothing to save, nothing to lose on a resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinystories_lab.tokenfile import check_sidecar, open_tokens

_SAMPLINGS = ("random", "shuffle")
_STEPS_DRAWN = 64  # at once


class BinLoader:
    """Batches of windows from a token file of uint16 ids.

    `sampling="random"` draws windows anywhere, with replacement, as the chapter does; `"shuffle"` cuts the file into
    windows side by side and visits each exactly once an epoch, in an order made from (seed, epoch).
    Batches come on `device`; a GPU holds the whole file if it takes less than an eighth of the memory that is free.

    Raises FileNotFoundError for a missing file; ValueError when its size is odd, when it is shorter than one window,
    when its sidecar disagrees with it or with `tokenizer_sha256`, or when an id does not fit `vocab_size`.
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
    ) -> None:
        if sampling not in _SAMPLINGS:
            raise ValueError(f"sampling is {sampling!r}; it must be one of {_SAMPLINGS}")
        if batch_size < 1 or seq_len < 1:
            raise ValueError(f"batch_size is {batch_size} and seq_len {seq_len}; both must be at least 1")
        self.path, self.batch_size, self.seq_len = Path(path), batch_size, seq_len
        self.seed, self.sampling = seed, sampling
        self.tokens = open_tokens(self.path)
        self.info = check_sidecar(self.path, len(self.tokens), vocab_size, tokenizer_sha256)
        if len(self.tokens) < seq_len + 1:
            raise ValueError(
                f"{path} holds {len(self.tokens)} tokens; a window of seq_len {seq_len} needs {seq_len + 1}"
            )
        # One look at every id is cheap (0.2 s for 200M); an id out of range in the middle of a run is not.
        if vocab_size is not None and (largest := int(self.tokens.max())) >= vocab_size:
            raise ValueError(
                f"{path} holds the token id {largest}, but the model's vocab_size is {vocab_size}: give the model the "
                "vocabulary of this file's tokenizer, or write the file again (02_tokenizer)"
            )
        self.windows = (len(self.tokens) - 1) // seq_len  # side by side, each with one token more to predict
        self.device, self._on_device = torch.device(device), None
        if _fits_on(self.device, self.tokens.nbytes):  # as int16: PyTorch does little with uint16
            self._on_device = torch.from_numpy(np.array(self.tokens).view(np.int16)).to(self.device)
        self._last: dict[str, tuple] = {}  # what the last batch was made with: caches, not state

    def batch(self, step: int, seq_len: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of `step`: x and y, int64, each (batch_size, seq_len); y is x one token later.

        A shorter `seq_len` gives as many tokens in more rows; shuffled epochs then count windows of that length.
        """
        rows, seq_len = self.batch_size * self.seq_len // (seq_len or self.seq_len), seq_len or self.seq_len
        if self.sampling == "random":
            block, row = divmod(step, _STEPS_DRAWN)
            starts = self._cached("starts", self._draw, block, rows, seq_len)[row]
        else:
            places, windows = np.arange(step * rows, (step + 1) * rows), (len(self.tokens) - 1) // seq_len
            epochs = range(places[0] // windows, places[-1] // windows + 1)
            orders = [self._cached("order", self._shuffle, epoch, windows) for epoch in epochs]
            parts = [
                order[places[places // windows == epoch] % windows] for epoch, order in zip(epochs, orders, strict=True)
            ]
            starts = np.concatenate(parts) * seq_len
        windows = self._cached("windows", self._view, seq_len)
        if self._on_device is not None:
            ids = windows[_to_device(torch.from_numpy(starts), self.device)].long() & 0xFFFF
        else:
            ids = _to_device(torch.from_numpy(windows[starts].astype(np.int64)), self.device)
        return ids[:, :-1], ids[:, 1:]

    def _cached(self, what: str, make: Callable[..., Any], *key: int) -> Any:
        if self._last.get(what, (None,))[0] != key:
            self._last[what] = (key, make(*key))
        return self._last[what][1]

    def _draw(self, block: int, rows: int, seq_len: int) -> np.ndarray:
        """Where windows start in the steps of a block: seeding a generator takes longer than drawing from it."""
        rng = np.random.default_rng((self.seed, block))
        return rng.integers(0, len(self.tokens) - seq_len, (_STEPS_DRAWN, rows))

    def _shuffle(self, epoch: int, windows: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(windows)

    def _view(self, seq_len: int) -> Any:
        """All windows with the token after them, (tokens - seq_len, seq_len + 1), without copying any."""
        if self._on_device is not None:
            return self._on_device.unfold(0, seq_len + 1, 1)
        return np.lib.stride_tricks.sliding_window_view(np.asarray(self.tokens), seq_len + 1)


def _fits_on(device: torch.device, size: int) -> bool:
    """Whether `device` is a GPU with room to spare for `size` bytes."""
    return device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 8


def _to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`; from pinned memory, a GPU fetches it while the CPU goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
