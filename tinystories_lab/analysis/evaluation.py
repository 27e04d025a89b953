"""The quality of a run: its loss in comparable units, its checklist, and its results beside those of other runs."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tinystories_lab.checkpoint import check_final, read_step
from tinystories_lab.files import Row, atomic_write, read_log, read_rows
from tinystories_lab.loader import BinInfo
from tinystories_lab.model import GPTConfig, count_parameters
from tinystories_lab.run import Workspace, load_config

# From "A Four-Hour Training Run", Study Tiny LLM, Part 4, Ch 15, except for two values that we determined ourselves.
CHAPTER_RESULTS = {
    "parameters": 9_952_320,  # counted by us; the chapter says ten million
    "tokens_per_step": 16_384,
    "bytes_per_token": 4.1,  # measured by us on its stories, with a vocabulary of 8,000
    "loss_by_step": {0: 8.99, 200: 8.95, 1000: 4.20, 2000: 3.10, 4000: 2.78, 8000: 2.55, 12000: 2.45},
    "machines": {
        "Colab T4, fp16": {"hours": 2.8, "tokens_per_second": 21_000, "final_loss": 2.45},
        "Colab A100, bf16": {"hours": 0.25, "tokens_per_second": 230_000, "final_loss": 2.43},
        "M2 Pro, MPS, bf16": {"hours": 3.5, "tokens_per_second": 17_000, "final_loss": 2.46},
    },
}
# Validation results on TinyStories that others published, and two of ours: parameters, tokens read (None: not said), bits
# per byte, source. We converted losses with the bytes per token of each tokenizer. Validation sets and counts differ, so
# the second decimal is uncertain.
_PUBLIC_RESULTS = {
    "stories260K": (260_000, None, 0.88, "llama2.c; measured by us on 200 stories"),
    "the chapter's run": (9_952_320, 200_000_000, 0.86, "the chapter"),
    "22M parameters, 3.5 hours on a T4": (22_000_000, None, 0.85, "a model card on the Hub"),
    "this package's `fast`, 4 epochs of 18,188 stories": (9_952_320, 14_700_000, 0.70, "measured by us on an H200"),
    "CS336, assignment 1: its target": (17_000_000, 328_000_000, 0.51, "Stanford CS336; without embeddings"),
    "CS336: published solutions": (22_700_000, 328_000_000, 0.47, "write-ups, 0.46 to 0.49"),
    "stories15M": (15_000_000, None, 0.41, "llama2.c"),
    "stories42M": (42_000_000, None, 0.33, "llama2.c"),
    "stories110M": (110_000_000, None, 0.29, "llama2.c"),
}
_SAMPLE_FIELDS = {"when": str, "prompt": str, "story": str, "ended": bool, "max_new_tokens": int}
_MAX_HALF_STEPS = 500  # of a half-size run; with the `book` preset, these take minutes on a T4


def perplexity(loss: float) -> float:
    """Return exp(loss): a model with this loss in nats is as uncertain as among so many equally likely tokens."""
    return math.exp(loss)


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Convert a loss in nats per token to bits per byte of text, which can be compared between tokenizers."""
    return loss / math.log(2) / bytes_per_token


def bytes_per_token(run_dir: str | Path) -> float:
    """Return the bytes per token of a run's validation stories, or of its training stories if the data has changed.

    Raises ValueError if neither the data folder nor config.yaml says it.
    """
    data = load_config(run_dir)["data"]
    folder = Path(run_dir).resolve().parents[1] / "data" / data["name"]
    train, val = (BinInfo.load(folder / name) for name in ("train.bin", "val.bin"))
    if train and val and val.bytes and data.get("sha256", train.sha256) == train.sha256:
        return val.bytes_per_token
    sizes = [data.get("bytes"), data.get("tokens")]
    if not all(isinstance(size, int | float) and 0 < size < math.inf for size in sizes):
        raise ValueError(f"{run_dir}/config.yaml does not give the bytes and tokens of its data: train again")
    return sizes[0] / sizes[1]


def read_samples(run_dir: str | Path, when: str = "") -> list[Row]:
    """Return the rows of samples.jsonl, or only those from `when` ("before" or "after" training)."""
    rows = read_rows(Path(run_dir) / "samples.jsonl", _SAMPLE_FIELDS)
    return [row for row in rows if when in ("", row["when"])]


def save_samples(run_dir: str | Path, when: str, samples: Iterable[dict[str, Any]]) -> None:
    """Replace the stories from `when` ("before" or "after" training) in samples.jsonl. "after" adds final.pt's step."""
    path, step = Path(run_dir) / "samples.jsonl", read_step(Path(run_dir) / "final.pt")
    made_by = {"step": step} if when == "after" and step else {}
    rows = [row for row in read_rows(path) if row.get("when") != when]
    rows += ({"when": when, **made_by, **sample} for sample in samples)
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def checklist(run_dir: str | Path) -> dict[str, bool]:
    """Return the chapter's list of what a finished run leaves behind, and whether each item exists."""
    run_dir = Path(run_dir)
    counts = Counter(row["when"] for row in read_samples(run_dir))
    return {
        "final.pt saved": (run_dir / "final.pt").is_file(),
        "loss curve as loss_curve.png": (run_dir / "loss_curve.png").is_file(),
        "config.yaml, to repeat the run": (run_dir / "config.yaml").is_file(),
        "tokenizer.json beside the model": (run_dir / "tokenizer.json").is_file(),
        "ten samples from before training": counts["before"] >= 10,
        "ten samples from after training": counts["after"] >= 10,
        "stories rated in ratings.jsonl": bool(read_rows(run_dir / "ratings.jsonl")),
    }


def run_results(run_dir: str | Path) -> dict[str, Any]:
    """Return the results of a run as a table row.

    Raises FileNotFoundError without a config.yaml or an evaluation, and ValueError as `check_final` does: the results
    would not be those of final.pt.
    """
    run_dir = Path(run_dir)
    check_final(run_dir)
    config, log = load_config(run_dir), read_log(run_dir / "loss.jsonl")
    losses = [row["val_loss"] for row in log if "val_loss" in row]  # the last one is the result
    if not losses:
        path = run_dir / "loss.jsonl"
        raise FileNotFoundError(f"no finished evaluation in {path}: run 03_train (or `train` in the shell) first")
    tokens, seconds = log[-1]["tokens"], log[-1]["seconds"]
    bits = bits_per_byte(losses[-1], bytes_per_token(run_dir))
    parameters = count_parameters(GPTConfig.from_dict(config["model"]))
    row = {"run": run_dir.name, "loss": losses[-1], "bits per byte": bits, "minutes": seconds / 60}
    row |= {"tokens per second": round(tokens / max(seconds, 0.01)), "tokens read": tokens, "parameters": parameters}
    return row


def chapter_results() -> list[dict[str, Any]]:
    """Return the chapter's three runs as table rows with the columns of `run_results`."""
    tokens = max(CHAPTER_RESULTS["loss_by_step"]) * CHAPTER_RESULTS["tokens_per_step"]
    rows = []
    for machine, result in CHAPTER_RESULTS["machines"].items():
        loss, speed = result["final_loss"], result["tokens_per_second"]
        bits = bits_per_byte(loss, CHAPTER_RESULTS["bytes_per_token"])
        row = {"run": f"the chapter: {machine}", "loss": loss, "bits per byte": bits, "minutes": result["hours"] * 60}
        row |= {"tokens per second": speed, "tokens read": tokens, "parameters": CHAPTER_RESULTS["parameters"]}
        rows.append(row)
    return rows


def reads_tinystories(source: str) -> bool:
    """Return whether a source has "tinystories" in its name. Only then a run compares with the chapter's and others'."""
    return "tinystories" in source.lower()


def public_results(run_dir: str | Path) -> list[dict[str, Any]]:
    """Return published results on TinyStories as table rows, the best last. A run on TinyStories has a row, too."""
    results = dict(_PUBLIC_RESULTS)
    if reads_tinystories(load_config(run_dir)["source"]):
        run = run_results(run_dir)
        results[f"YOUR RUN: {run['run']}"] = run["parameters"], run["tokens read"], run["bits per byte"], "this run"
    columns = "parameters", "tokens read", "bits per byte", "source"
    rows = [{"model": model} | dict(zip(columns, result, strict=True)) for model, result in results.items()]
    return sorted(rows, key=lambda row: -row["bits per byte"])


def running_mean(losses: Sequence[float]) -> list[float]:
    """Return the mean of the five losses around each (fewer at the ends, so that a straight line stays straight)."""
    reaches = (min(2, i, len(losses) - 1 - i) for i in range(len(losses)))
    return [fmean(losses[i - reach : i + reach + 1]) for i, reach in enumerate(reaches)]


def bits_by_tokens(run_dir: str | Path) -> list[tuple[int, float]]:
    """Return (tokens read, bits per byte) at each evaluation, which can be compared between models and tokenizers."""
    size, log = bytes_per_token(run_dir), read_log(Path(run_dir) / "loss.jsonl")
    return [(row["tokens"], bits_per_byte(row["val_loss"], size)) for row in log if "val_loss" in row]


def half_size(lab: Workspace) -> Workspace:
    """Return the workspace of a smaller run on the same data: half the width, half the steps or 500, and no mirror."""
    config = lab.preset.train
    steps = min(_MAX_HALF_STEPS, config.total_steps // 2)
    changes = {"total_steps": steps, "warmup_steps": min(config.warmup_steps, steps // 10)}
    changes |= {"eval_every": min(config.eval_every, steps // 5 or 1)}
    changes |= {"log_every": min(config.log_every, steps // 25 or 1)}
    half = lab.with_train_config(**changes)
    preset = replace(half.preset, model=replace(lab.preset.model, d_model=lab.preset.model.d_model // 2))
    return replace(half, preset=preset, run_dir=lab.run_dir.with_name(f"{lab.run_dir.name}-half"), mirror_root=None)


def find_other_run(lab: Workspace, name: str = "") -> Path | None:
    """Return the folder of another finished run beside this one: the run `name`, or the newest. None if there is none.

    Raises FileNotFoundError, which lists the finished runs, if `name` is not one of them.
    """
    runs = lab.run_dir.parent
    finished = sorted(runs.glob("*/final.pt"), key=lambda path: path.stat().st_mtime)
    others = [path.parent for path in finished if path.parent != lab.run_dir and (path.parent / "config.yaml").exists()]
    if not name:
        return others[-1] if others else None
    if runs / name not in others:
        available = ", ".join(sorted(other.name for other in others)) or "none"
        raise FileNotFoundError(f"no other finished run {name!r} in {runs}; finished runs: {available}")
    return runs / name


def format_value(value: object) -> str:
    """Return the text of a table cell: 1,234 for an integer, three digits for a float, a dash for None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:#,.3g}" if abs(value) < 99.95 else f"{value:,.0f}"
