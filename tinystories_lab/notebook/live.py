"""A run while it goes on: its bar and its curve, drawn anew every few seconds."""

import time
from collections.abc import Iterator
from pathlib import Path

from IPython.display import display

from tinystories_lab.notebook.curves import loss_curve
from tinystories_lab.runlog import Row, read_log, with_progress

REFRESH_SECONDS = 5.0  # faster updates freeze a browser


class LiveRun:
    """Iterate over a run's rows while a text bar and one figure, drawn anew every few seconds, follow them.

    `log_path` is the run's loss.jsonl, so the curve shows earlier sessions too. Leaving the loop closes `rows`, which
    saves the run.
    """

    def __init__(self, rows: Iterator[Row], log_path: str | Path, total_steps: int, vocab_size: int) -> None:
        self.rows, self.log_path = rows, log_path
        self.total_steps, self.vocab_size = total_steps, vocab_size

    def __iter__(self) -> Iterator[Row]:
        handle, drawn = None, 0.0
        for row in with_progress(self.rows, self.total_steps):
            if time.monotonic() - drawn > REFRESH_SECONDS or row["step"] == self.total_steps:
                figure = loss_curve(read_log(self.log_path), self.vocab_size)
                if handle:
                    handle.update(figure)
                else:
                    handle = display(figure, display_id=True)
                drawn = time.monotonic()
            yield row
