"""What a run leaves on disk as it goes on: log rows and checkpoints, on a GPU written while it trains."""

import threading
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from tinystories_lab.checkpoint import MODEL_KEYS, save_checkpoint, step_checkpoints, step_of
from tinystories_lab.ranks import rank
from tinystories_lab.runlog import Row, append_row
from tinystories_lab.state import TrainState

_KEPT_STEP_CHECKPOINTS = 2


def writes_beside(device: torch.device) -> bool:
    """Whether checkpoints are written by a thread. Half a second each is a lot for a GPU, and next to nothing for a CPU."""
    return device.type == "cuda"


class Keeper:
    """Writes a run's rows and checkpoints; what cannot be written warns, and training goes on.

    One checkpoint is written at a time, of a copy made on the device; the next one waits for it. With several processes
    the first alone writes.
    """

    def __init__(self, run_dir: Path, state: TrainState, on_saved: Callable[[], None]) -> None:
        self.run_dir, self.state = run_dir, state
        self.saved_step = state.step  # of last.pt
        self._on_saved = on_saved
        self._beside = writes_beside(state.model.tok_emb.weight.device)
        self._thread: threading.Thread | None = None
        self._trouble: list[str] = []
        self._rows: list[Row] = []  # not written yet

    def log(self, row: Row) -> None:
        """Append a row to loss.jsonl, after those that could not be written before."""
        if rank() != 0:
            return
        self._rows.append(row)
        log = self.run_dir / "loss.jsonl"
        try:
            while self._rows:
                append_row(log, self._rows[0])
                del self._rows[0]
        except OSError as error:
            warnings.warn(f"{log} could not be written ({error}): its rows wait, and training goes on", stacklevel=3)

    def save(self, name: str, **settings: Any) -> None:
        """Write the state (final.pt: the model alone) to a file of that name; `settings` as of `TrainState.checkpoint`."""
        self.settle()
        if rank() != 0:
            return
        checkpoint = self.state.model_checkpoint() if name == "final.pt" else self.state.checkpoint(**settings)
        if self._beside:
            self._thread = threading.Thread(target=self._write, args=(name, deepcopy(checkpoint)))
            self._thread.start()
        else:
            self._write(name, checkpoint)
            self.settle()

    def settle(self) -> None:
        """Wait for what is being written, and warn of what could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for trouble in self._trouble:
            warnings.warn(trouble, stacklevel=3)
        self._trouble.clear()

    def finish(self) -> None:
        """See to it that final.pt holds the last step's model: it may be lost, or of fewer total_steps. Raises OSError."""
        self.settle()
        if rank() == 0 and step_of(self.run_dir / "final.pt", MODEL_KEYS) != self.state.step:
            save_checkpoint(self.run_dir / "final.pt", self.state.model_checkpoint())

    def _write(self, name: str, checkpoint: dict[str, Any]) -> None:
        path = self.run_dir / name
        try:
            save_checkpoint(path, checkpoint)
            if name == "last.pt":
                self.saved_step = checkpoint["step"]
                self._on_saved()
            elif name != "final.pt":
                for old in step_checkpoints(self.run_dir)[_KEPT_STEP_CHECKPOINTS:]:
                    old.unlink(missing_ok=True)
        except (OSError, FloatingPointError) as error:
            self._trouble.append(f"{path} could not be saved ({error}): what was there is kept, and training goes on")
