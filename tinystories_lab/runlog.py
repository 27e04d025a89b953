"""The run's record, one JSON object a line, and what its curve says."""

import json
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tqdm import tqdm

Row = dict[str, Any]


def append_row(path: str | Path, row: Row) -> None:
    """Append one row; a line torn by a crash before is closed first, so that it costs only itself."""
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read() != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a JSON lines file, in order; a torn line is skipped with a warning; no file is no rows."""
    path, rows = Path(path), []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            warnings.warn(f"{path}, line {number}: torn, skipped", stacklevel=2)
    return rows


def read_log(path: str | Path) -> list[Row]:
    """The rows of loss.jsonl by rising step; where a resumed run wrote a step again, its last row counts."""
    return [row for _, row in sorted({row["step"]: row for row in read_rows(path)}.items())]


def with_progress(rows: Iterator[Row], total_steps: int) -> Iterator[Row]:
    """The rows of `train` while a text bar follows them; leaving the loop closes `rows`, which saves the run."""
    bar = None
    try:
        for row in rows:
            if bar is None:  # only now: what `train` says of a resumed run stands above the bar
                bar = tqdm(
                    desc="train", total=total_steps, initial=row.get("resumed_from", 0), unit=" steps", mininterval=1
                )
            bar.update(row["step"] - bar.n)
            bar.set_postfix(progress_of(row))
            yield row
    finally:
        rows.close()
        if bar is not None:
            bar.close()


def progress_of(row: Row) -> dict[str, str]:
    """What a progress bar shows of a row beside its step."""
    shown = {"loss": f"{row['train_loss']:.3f}", "tokens_per_second": f"{row['tokens_per_second']:,}"}
    if row["skipped_updates"]:
        shown["skipped_updates"] = f"{row['skipped_updates']:,}"
    if "mirrored_step" in row:
        shown["mirrored"] = "not yet" if row["mirrored_step"] is None else f"to step {row['mirrored_step']:,}"
    return shown


@dataclass(frozen=True)
class Diagnosis:
    """One of five patterns (healthy, diverging, stuck, spiking, overfitting), the evidence, and what to do."""

    pattern: str
    evidence: str
    advice: str


def diagnose(rows: Iterable[Row], vocab_size: int) -> Diagnosis:
    """Name the pattern of a run from its log rows (as of `train`), the gravest first. Raises ValueError for no rows."""
    rows = list(rows)
    if not rows:
        raise ValueError("no rows to diagnose: train some steps first")
    losses = [row["train_loss"] for row in rows]
    untrained = math.log(vocab_size)
    if not all(map(math.isfinite, losses)):
        step = next(row["step"] for row in rows if not math.isfinite(row["train_loss"]))
        return Diagnosis(
            "diverging", f"the loss is not a number at step {step}", "halve peak_lr; prefer bf16 or fp32 to fp16"
        )
    tail = fmean(losses[-max(1, len(losses) // 10) :])
    best = min(fmean(losses[i : i + 3]) for i in range(max(1, len(losses) - 2)))
    if tail > best + 1 and len(losses) >= 5:
        return Diagnosis(
            "diverging", f"the loss rose from {best:.2f} to {tail:.2f}", "halve peak_lr, or warm up for longer"
        )
    if tail > untrained - 0.5:
        evidence = f"the loss is {tail:.2f}, an untrained model's is ln({vocab_size}) = {untrained:.2f}"
        return Diagnosis("stuck", evidence, "a run this young is always here; later, raise peak_lr and check the data")
    validated = [row for row in rows if row.get("val_loss") is not None]
    if validated:
        lowest, last = min(validated, key=lambda row: row["val_loss"]), validated[-1]
        if last["val_loss"] > lowest["val_loss"] + 0.05 and tail < lowest["train_loss"]:
            evidence = f"validation rose from {lowest['val_loss']:.2f} (step {lowest['step']}) to {last['val_loss']:.2f} while train fell"
            return Diagnosis(
                "overfitting", evidence, "take more stories, or a smaller model, or stop at the lowest validation loss"
            )
    jumps = [row["step"] for row, is_jump in zip(rows, _jumps_of(losses), strict=True) if is_jump]
    if jumps:
        evidence = f"the loss jumped by over 1 at step {jumps[0]}" + (
            f" and {len(jumps) - 1} more times" if jumps[1:] else ""
        )
        return Diagnosis("spiking", evidence, "clip gradients at 1.0, lower peak_lr, look at the batch of that step")
    return Diagnosis(
        "healthy",
        f"the loss fell from {losses[0]:.2f} to {tail:.2f} without jumps",
        "let it run; more tokens lower it further",
    )


def _jumps_of(losses: list[float]) -> list[bool]:
    """Whether each loss stands out above the five before it: by over 1, and far more than small batches scatter anyway."""
    scatter = median(abs(now - before) for before, now in pairwise(losses)) if len(losses) > 1 else 0
    recent = (losses[max(0, i - 5) : i] or [math.inf] for i in range(len(losses)))
    return [now > median(before) + max(1, 5 * scatter) for before, now in zip(recent, losses, strict=True)]
