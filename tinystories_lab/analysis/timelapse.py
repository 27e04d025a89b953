"""The time-lapse of a run: the story that its model writes for the same prompt and seed at growing steps."""

import warnings
from pathlib import Path

from tinystories_lab.data.text import prompts_for
from tinystories_lab.device import rank
from tinystories_lab.files import Row, append_row, aside, read_rows
from tinystories_lab.generate import generate_batch
from tinystories_lab.model import GPTMini
from tinystories_lab.run import Workspace
from tinystories_lab.tokenizer import load_tokenizer

_FILE = "timelapse.jsonl"
_FIELDS = {"step": int, "tokens": int, "prompt": str, "story": str, "ended": bool}
_STORY_TOKENS = 80  # at most: the stories of a `tiny` run then took 1.5% of its time on two CPU cores


def read_timelapse(run_dir: str | Path) -> list[Row]:
    """Return the rows of timelapse.jsonl, sorted by step. If a resumed run reached a step again, its later row counts.

    A row has the step (0 is the untrained model), the tokens read so far, val_loss if the step was evaluated, and what
    `generate_batch` returns.
    """
    rows = read_rows(Path(run_dir) / _FILE, _FIELDS)
    return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


def keep_story(lab: Workspace, model: GPTMini, row: Row) -> None:
    """Append a story by the model to timelapse.jsonl, if the step of this log row is due. Only rank 0 writes.

    Due are step 0, evaluations, and before the first of them the steps log_every, twice as many, and so on: a model
    changes most at the beginning. A failure is a warning, and training continues.
    """
    config, path = lab.preset.train, lab.run_dir / _FILE
    count, rest = divmod(row["step"], config.log_every)
    is_early = 2 * row["step"] <= config.eval_every and not rest and not count & (count - 1)  # 0 or a power of two
    if rank() != 0 or not (is_early or "val_loss" in row):
        return
    try:
        if row["step"] == 0 and path.exists():  # its stories are those of a run whose checkpoints are gone
            path.rename(aside(path))
        kept, tokenizer = read_timelapse(lab.run_dir), load_tokenizer(lab.run_dir / "tokenizer.json")
        prompt = kept[0]["prompt"] if kept else prompts_for(lab.data_dir / "val.bin", tokenizer)[0]
        (story,) = generate_batch(model, tokenizer, [prompt], _STORY_TOKENS, seeds=[0])
        append_row(path, {key: row[key] for key in ("step", "tokens", "val_loss") if key in row} | story)
    except Exception as error:  # a full disk or GPU, a damaged file, ...: training does not need the story
        warnings.warn(f"{path} has no story of step {row['step']:,} ({error}): training continues", stacklevel=2)


def story_card(row: Row) -> tuple[str, str]:
    """Return a row of the time-lapse as the heading and the text of a card."""
    loss = row.get("val_loss")
    evaluated = f", validation loss {loss:.2f}" if isinstance(loss, float) else ""
    heading = f"step {row['step']:,}: {row['tokens']:,} tokens read{evaluated}"
    return heading, row["story"] + ("" if row["ended"] else " ...")
