"""A live view of a training run: one display with a progress bar, numbers, curves and the newest story."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from IPython.display import display
from tqdm import tqdm

from tinystories_lab.analysis.budget import format_duration
from tinystories_lab.analysis.curves import run_curves
from tinystories_lab.analysis.timelapse import read_timelapse, story_card
from tinystories_lab.config import TrainConfig
from tinystories_lab.files import Row, read_log
from tinystories_lab.model import GPTConfig
from tinystories_lab.notebook.html import cards, code, facts, picture, stack
from tinystories_lab.pipeline import progress_fields

_REFRESH_SECONDS = 5.0  # faster updates freeze a browser
_MAX_TIME_FRACTION = 0.03  # of the run's time is for drawing, because the GPU waits for it
_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"  # fits a phone


class LiveRun:
    """An iterable over the rows of a run. One display shows the state of the run and is redrawn every few seconds.

    Its curves include earlier sessions in `run_dir`. If the loop is left early, `rows` is closed, which saves the run.
    """

    def __init__(self, rows: Iterator[Row], run_dir: Path, model_config: GPTConfig, train_config: TrainConfig) -> None:
        self._rows, self._run_dir = rows, run_dir
        self._vocab_size, self._config, self._display = model_config.vocab_size, train_config, None

    def __iter__(self) -> Iterator[Row]:
        row, due, state = None, 0.0, "stopped by the error below"
        try:
            for row in self._rows:
                if (began := time.monotonic()) > due:
                    self._draw(row, "training")
                    ended = time.monotonic()
                    due = ended + max(_REFRESH_SECONDS, (ended - began) / _MAX_TIME_FRACTION)
                yield row
            state = "finished"
        except (KeyboardInterrupt, GeneratorExit) as stop:
            state = "stopped and saved; run this cell again to continue"
            message = f"{type(stop).__name__}: {state}"
            stop._render_traceback_ = lambda: [message]  # IPython shows only this line
            raise
        finally:
            self._rows.close()  # this saves the run
            if row is not None:
                self._draw(row, state)

    def _draw(self, row: Row, state: str) -> None:
        rows, last = read_log(self._run_dir / "loss.jsonl"), self._run_dir / "last.pt"
        age = time.time() - last.stat().st_mtime if last.exists() else None
        steps_per_second = row["tokens_per_second"] / self._config.tokens_per_step
        progress = row["step"], self._config.total_steps, row["seconds"]  # the seconds of all sessions
        bar = code(tqdm.format_meter(*progress, ncols=38, rate=steps_per_second, bar_format=_BAR))
        figures = facts({"the run": state} | _figures_of(row, rows, age))
        alt = f"loss and learning rate up to step {row['step']:,}"
        curves = picture(run_curves(rows, self._vocab_size, self._config), alt)
        # A run that was resumed at an earlier checkpoint may have later stories, which it will replace.
        kept = [story for story in read_timelapse(self._run_dir) if story["step"] <= row["step"]]
        page = stack(bar, figures, curves, cards([story_card(story) for story in kept[-1:]]))
        if self._display is None:
            self._display = display(page, display_id=True)
        else:
            self._display.update(page)


def _figures_of(row: Row, rows: Sequence[Row], seconds_since_save: float | None) -> dict[str, str]:
    """Return the numbers above the curves, as texts by name. `rows` has all rows of the run; `row` is the newest."""
    progress = progress_fields(row)
    validated = [f"{row['val_loss']:.3f} at step {row['step']:,}" for row in rows if "val_loss" in row]
    figures = {
        "train loss": progress["loss"],
        "validation loss": validated[-1] if validated else None,
        "learning rate": f"{row['lr']:.2g}",
        "tokens per second": progress["tokens_per_second"],
        "time left": format_duration(row["eta_seconds"]) if row["eta_seconds"] else "none",
        "saved": "not yet" if seconds_since_save is None else f"{format_duration(seconds_since_save)} ago",
        "mirrored": progress.get("mirrored"),
        "skipped updates": progress.get("skipped_updates"),
    }
    return {name: text for name, text in figures.items() if text is not None}
