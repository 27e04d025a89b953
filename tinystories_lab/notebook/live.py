"""A run while it goes on: bar, figures, curves, and a story by its newest checkpoint, in one display drawn anew every few seconds."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from IPython.display import display
from tqdm import tqdm

from tinystories_lab.checkpoint import MODEL_KEYS, load_checkpoint, model_of
from tinystories_lab.device import choose_device
from tinystories_lab.estimate import duration
from tinystories_lab.generate import tell
from tinystories_lab.model import GPTConfig
from tinystories_lab.notebook.curves import run_curves
from tinystories_lab.notebook.show import cards, code, facts, picture, stack
from tinystories_lab.recipe import TrainConfig
from tinystories_lab.runlog import Row, progress_of, read_log
from tinystories_lab.tokenizer import load_tokenizer
from tinystories_lab.words import PROMPTS

_REFRESH_SECONDS = 5.0  # faster updates freeze a browser
_SHARE_OF_TIME = 0.03  # for drawing and telling, at most: a fast GPU waits for them
_STORY_SECONDS = 20.0
_STORY_TOKENS = 80
_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"  # of all sessions; fits a phone


class LiveRun:
    """Iterate over the rows of `train` while one display follows them; leaving the loop closes `rows`, which saves the run.

    What it shows comes from the files in `run_dir`, so the curves have the earlier sessions in them.
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
        self._story, self._told = ("a story", "comes with the first checkpoint"), (0, -_STORY_SECONDS)
        self._display = None

    def __iter__(self) -> Iterator[Row]:
        row, due, state = None, 0.0, "stopped by what stands below"
        try:
            for row in self._rows:
                if (began := time.monotonic()) > due:
                    self._draw(row, "training")
                    ended = time.monotonic()
                    due = ended + max(_REFRESH_SECONDS, (ended - began) / _SHARE_OF_TIME)
                yield row
            state = "finished"
        except (KeyboardInterrupt, GeneratorExit) as ending:
            state = "stopped and saved; run this cell again to go on"
            said = f"{type(ending).__name__}: {state}"
            ending._render_traceback_ = lambda: [said]  # what IPython shows, in the place of forty lines
            raise
        finally:
            self._rows.close()  # only now is it saved
            if row is not None:
                self._draw(row, state)

    def _draw(self, row: Row, state: str) -> None:
        self._tell(at_once=state != "training")
        rows, saved = read_log(self._run_dir / "loss.jsonl"), self._run_dir / "last.pt"
        age = time.time() - saved.stat().st_mtime if saved.exists() else None
        steps_a_second = row["tokens_per_second"] / self._config.tokens_per_step
        progress = row["step"], self._config.total_steps, row["seconds"]
        curves = run_curves(rows, self._vocab_size, self._config)
        page = stack(
            code(tqdm.format_meter(*progress, ncols=38, rate=steps_a_second, bar_format=_BAR)),
            facts({"the run": state} | _figures_of(row, rows, age)),
            picture(curves, f"loss and learning rate up to step {row['step']:,}"),
            cards([self._story]),
        )
        if self._display is None:
            self._display = display(page, display_id=True)
        else:
            self._display.update(page)

    def _tell(self, at_once: bool) -> None:
        """A story by the newest last.pt, if there is a new one and, unless `at_once`, the last story was told some time ago."""
        path = self._run_dir / "last.pt"
        written, at = self._told
        waits = time.monotonic() - at < _STORY_SECONDS and not at_once
        if waits or not path.exists() or path.stat().st_mtime_ns == written:
            return
        try:
            written = path.stat().st_mtime_ns
            checkpoint = load_checkpoint(path, MODEL_KEYS)
            tokenizer = load_tokenizer(self._run_dir / "tokenizer.json")
            told = tell(model_of(checkpoint, choose_device()[0]), tokenizer, self._prompt, _STORY_TOKENS, seed=0)
        except (OSError, ValueError, torch.OutOfMemoryError):
            return  # a disk in trouble, which `train` tells of, or a GPU that the run fills: it goes on without
        ending = "" if told["ended"] else " ..."
        self._story = (f"told by the model of step {checkpoint['step']:,}", told["story"] + ending)
        self._told = written, time.monotonic()


def _figures_of(row: Row, rows: Sequence[Row], seconds_since_save: float | None) -> dict[str, str]:
    """What to read beside the curves: of the newest `row`, of all `rows`, and how long ago last.pt was written, if ever."""
    progress = progress_of(row)
    validated = [f"{row['val_loss']:.3f} at step {row['step']:,}" for row in rows if "val_loss" in row]
    figures = {
        "train loss": progress["loss"],
        "validation loss": validated[-1] if validated else None,
        "learning rate": f"{row['lr']:.2g}",
        "tokens a second": progress["tokens_per_second"],
        "left": duration(row["eta_seconds"]) if row["eta_seconds"] else "nothing",
        "saved": "not yet" if seconds_since_save is None else f"{duration(seconds_since_save)} ago",
        "mirrored": progress.get("mirrored"),
        "skipped updates": progress.get("skipped_updates"),
    }
    return {name: text for name, text in figures.items() if text is not None}
