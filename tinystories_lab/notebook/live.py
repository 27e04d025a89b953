"""A live view of a training run: progress bar, figures, curves and a story, in one display that is redrawn every few seconds."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from IPython.display import display
from tqdm import tqdm

from tinystories_lab.analysis.budget import format_duration
from tinystories_lab.analysis.curves import run_curves
from tinystories_lab.checkpoint import MODEL_KEYS, load_checkpoint, model_from_checkpoint
from tinystories_lab.config import TrainConfig
from tinystories_lab.data.text import PROMPTS
from tinystories_lab.device import choose_device
from tinystories_lab.files import Row, read_log
from tinystories_lab.generate import generate_batch
from tinystories_lab.model import GPTConfig
from tinystories_lab.notebook.html import cards, code, facts, picture, stack
from tinystories_lab.pipeline import progress_fields
from tinystories_lab.tokenizer import load_tokenizer

_REFRESH_SECONDS = 5.0  # faster updates freeze a browser
_MAX_TIME_FRACTION = 0.03  # of the run, for drawing and generating: a fast GPU waits for them
_STORY_SECONDS = 20.0  # at least, from one story to the next
_STORY_TOKENS = 80
_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"  # over all sessions; fits a phone


class LiveRun:
    """Iterate over the rows of a run while one display shows its state. Leaving the loop closes `rows`, which saves the run.

    The display reads the files in `run_dir`, so its curves include earlier sessions.
    """

    def __init__(
        self,
        rows: Iterator[Row],
        run_dir: str | Path,
        model_config: GPTConfig,
        train_config: TrainConfig,
        prompt: str = PROMPTS[0],
    ) -> None:
        self._rows, self._run_dir, self._prompt = rows, Path(run_dir), prompt
        self._vocab_size, self._config = model_config.vocab_size, train_config
        self._story = ("a story", "appears after the first checkpoint")
        self._story_of, self._story_at = 0, -_STORY_SECONDS  # the checkpoint's time stamp, and our clock
        self._display = None

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
            stop._render_traceback_ = lambda: [message]  # IPython shows this instead of forty lines
            raise
        finally:
            self._rows.close()  # this saves the run
            if row is not None:
                self._draw(row, state)

    def _draw(self, row: Row, state: str) -> None:
        self._update_story(at_once=state != "training")
        rows, last = read_log(self._run_dir / "loss.jsonl"), self._run_dir / "last.pt"
        age = time.time() - last.stat().st_mtime if last.exists() else None
        steps_per_second = row["tokens_per_second"] / self._config.tokens_per_step
        progress = row["step"], self._config.total_steps, row["seconds"]
        curves = run_curves(rows, self._vocab_size, self._config)
        page = stack(
            code(tqdm.format_meter(*progress, ncols=38, rate=steps_per_second, bar_format=_BAR)),
            facts({"the run": state} | _figures_of(row, rows, age)),
            picture(curves, f"loss and learning rate up to step {row['step']:,}"),
            cards([self._story]),
        )
        if self._display is None:
            self._display = display(page, display_id=True)
        else:
            self._display.update(page)

    def _update_story(self, at_once: bool) -> None:
        """Generate a story with the newest last.pt if it has changed and, unless `at_once`, the last story is old enough."""
        path = self._run_dir / "last.pt"
        is_recent = time.monotonic() - self._story_at < _STORY_SECONDS and not at_once
        if is_recent or not path.exists() or path.stat().st_mtime_ns == self._story_of:
            return
        try:
            saved_at = path.stat().st_mtime_ns
            checkpoint = load_checkpoint(path, MODEL_KEYS)
            model = model_from_checkpoint(checkpoint, choose_device()[0])
            tokenizer = load_tokenizer(self._run_dir / "tokenizer.json")
            (sample,) = generate_batch(model, tokenizer, [self._prompt], _STORY_TOKENS, seeds=[0])
        except (OSError, ValueError, torch.OutOfMemoryError):
            return  # a failing disk, which `train` reports, or a GPU that the run fills: training does not need the story
        ending = "" if sample["ended"] else " ..."
        self._story = (f"generated by the model of step {checkpoint['step']:,}", sample["story"] + ending)
        self._story_of, self._story_at = saved_at, time.monotonic()


def _figures_of(row: Row, rows: Sequence[Row], seconds_since_save: float | None) -> dict[str, str]:
    """Return the figures beside the curves: of the newest `row`, of all `rows`, and the time since last.pt was written."""
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
