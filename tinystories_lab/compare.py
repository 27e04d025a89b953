"""Runs beside each other: what each came to, beside the chapter's, and beside a sibling of half the width."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tinystories_lab.model import GPTConfig, count_parameters
from tinystories_lab.review import BOOK_RESULTS, bits_per_byte
from tinystories_lab.runlog import Row, read_log
from tinystories_lab.tokenizer import BinInfo
from tinystories_lab.workspace import Workspace, load_config

_SIBLING_STEPS = 500  # at most, and half the run's: of `book`, minutes on a T4


def run_row(run_dir: str | Path) -> dict[str, Any]:
    """What a run came to, from its folder: name, last validation loss (nats a token), bits a byte, minutes of training,
    tokens a second, tokens read, parameters.

    Raises FileNotFoundError when it has no config.yaml, or no evaluation yet.
    """
    run_dir = Path(run_dir)
    config, log = load_config(run_dir), read_log(run_dir / "loss.jsonl")
    losses = [row["val_loss"] for row in log if "val_loss" in row]
    if not losses:
        raise FileNotFoundError(
            f"no finished evaluation in {run_dir / 'loss.jsonl'}: run 03_train (or `train` in the shell) first"
        )
    tokens, seconds = log[-1]["tokens"], log[-1]["seconds"]
    return {
        "run": run_dir.name,
        "loss": losses[-1],
        "bits a byte": bits_per_byte(losses[-1], bytes_per_token(run_dir)),
        "minutes": seconds / 60,
        "tokens a second": round(tokens / max(seconds, 0.01)),
        "tokens read": tokens,
        "parameters": count_parameters(GPTConfig(**config["model"])),
    }


def bytes_per_token(run_dir: str | Path) -> float:
    """Of the held-out stories of a run, from val.bin's sidecar in data/ beside runs/; where that is gone, of those it trained on."""
    data = load_config(run_dir)["data"]
    held_out = BinInfo.of(Path(run_dir).resolve().parents[1] / "data" / data["name"] / "val.bin")
    return held_out.bytes_per_token if held_out else data["bytes"] / data["tokens"]


def bits_by_tokens(run_dir: str | Path) -> list[tuple[int, float]]:
    """Each evaluation of a run: tokens read, bits a byte; so that runs of other sizes and tokenizers compare."""
    size = bytes_per_token(run_dir)
    log = read_log(Path(run_dir) / "loss.jsonl")
    return [(row["tokens"], bits_per_byte(row["val_loss"], size)) for row in log if "val_loss" in row]


def chapter_rows() -> list[dict[str, Any]]:
    """The chapter's three runs, its own figures, as `run_row` has them."""
    steps, size = max(BOOK_RESULTS["loss_by_step"]), BOOK_RESULTS["bytes_per_token"]
    return [
        {
            "run": f"the chapter: {machine}",
            "loss": figures["final_loss"],
            "bits a byte": bits_per_byte(figures["final_loss"], size),
            "minutes": figures["hours"] * 60,
            "tokens a second": figures["tokens_per_second"],
            "tokens read": steps * BOOK_RESULTS["tokens_per_step"],
            "parameters": BOOK_RESULTS["parameters"],
        }
        for machine, figures in BOOK_RESULTS["machines"].items()
    ]


def beside_the_chapter(log: Sequence[Row]) -> list[dict[str, Any]]:
    """The chapter's loss by step beside the run's train loss, after as many tokens, and by the same share of the run.

    Each is the mean of up to five rows around it; None where the run did not get so far.
    """
    steps = BOOK_RESULTS["loss_by_step"]

    def near(tokens: float) -> float | None:
        if tokens > 1.02 * log[-1]["tokens"]:
            return None
        nearest = min(range(len(log)), key=lambda index: abs(log[index]["tokens"] - tokens))
        reach = min(2, nearest, len(log) - 1 - nearest)
        return fmean(row["train_loss"] for row in log[nearest - reach : nearest + reach + 1])

    return [
        {
            "step": step,
            "tokens": step * BOOK_RESULTS["tokens_per_step"],
            "chapter": loss,
            "yours": near(step * BOOK_RESULTS["tokens_per_step"]),
            "yours, by share": near(log[-1]["tokens"] * step / max(steps)),
        }
        for step, loss in steps.items()
    ]


def half_size(lab: Workspace) -> Workspace:
    """A sibling of a run: half the width, half the steps and at most 500, in a folder of its own, on the same data; not mirrored."""
    recipe = lab.preset.train
    steps = min(_SIBLING_STEPS, recipe.total_steps // 2)
    half = lab.with_recipe(
        total_steps=steps,
        warmup_steps=min(recipe.warmup_steps, steps // 10),
        eval_every=min(recipe.eval_every, steps // 5 or 1),
        log_every=min(recipe.log_every, steps // 25 or 1),
    )
    preset = replace(half.preset, model=replace(lab.preset.model, d_model=lab.preset.model.d_model // 2))
    return replace(half, preset=preset, run_dir=lab.run_dir.with_name(f"{lab.run_dir.name}-half"), mirror_root=None)


def run_beside(lab: Workspace, name: str = "") -> Path | None:
    """The run of that name in the workspace; without a name the newest other finished one, None where there is none.

    Raises FileNotFoundError for a name without a finished run, with those that there are.
    """
    runs = lab.run_dir.parent
    finished = sorted(runs.glob("*/final.pt"), key=lambda path: path.stat().st_mtime)
    others = [path.parent for path in finished if path.parent != lab.run_dir and (path.parent / "config.yaml").exists()]
    if name and runs / name not in others:
        there = ", ".join(sorted(other.name for other in others)) or "none"
        raise FileNotFoundError(f"no other finished run {name!r} in {runs}; there: {there}")
    return runs / name if name else others[-1] if others else None
