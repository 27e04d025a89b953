"""Recognize five patterns of a loss curve from the rows of loss.jsonl."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import NamedTuple

from tinystories_lab.files import Row


class Diagnosis(NamedTuple):
    """The pattern of a run (healthy, diverging, stuck, spiking or overfitting), the evidence for it, and advice."""

    pattern: str
    evidence: str
    advice: str


def diagnose(rows: Iterable[Row], vocab_size: int) -> Diagnosis:
    """Return the most serious pattern in the log rows of a run. Raises ValueError if there are no rows."""
    rows = list(rows)
    if not rows:
        raise ValueError("there are no rows to diagnose: train some steps first")
    losses = [row["train_loss"] for row in rows]
    if not_finite := [row["step"] for row in rows if not math.isfinite(row["train_loss"])]:
        evidence = f"the loss is not finite at step {not_finite[0]}"
        return Diagnosis("diverging", evidence, "halve peak_lr, and use bfloat16 or float32 instead of float16")
    tail = fmean(losses[-max(1, len(losses) // 10) :])  # the last tenth
    best = min(fmean(losses[i : i + 3]) for i in range(max(1, len(losses) - 2)))
    if tail > best + 1 and len(losses) >= 5:
        evidence = f"the loss rose from {best:.2f} to {tail:.2f}"
        return Diagnosis("diverging", evidence, "halve peak_lr, or make the warm-up longer")
    untrained = math.log(vocab_size)
    if tail > untrained - 0.5:
        evidence = f"the loss is {tail:.2f}; an untrained model has ln({vocab_size}) = {untrained:.2f}"
        return Diagnosis("stuck", evidence, "this is normal at the start; later, raise peak_lr and check the data")
    if validated := [row for row in rows if row.get("val_loss") is not None]:
        lowest = min(validated, key=lambda row: row["val_loss"])
        low, last = lowest["val_loss"], validated[-1]["val_loss"]
        if last > low + 0.05 and tail < lowest["train_loss"]:
            rise = f"from {low:.2f} (step {lowest['step']}) to {last:.2f}"
            evidence = f"the validation loss rose {rise} while the train loss fell"
            advice = "use more stories or a smaller model, or stop at the lowest validation loss"
            return Diagnosis("overfitting", evidence, advice)
    if jumps := [row["step"] for row, is_jump in zip(rows, _jumps(losses), strict=True) if is_jump]:
        evidence = f"jumps of the loss by more than 1: {len(jumps)}, the first at step {jumps[0]}"
        return Diagnosis("spiking", evidence, "clip gradients at 1.0, lower peak_lr, and look at that step's batch")
    evidence = f"the loss fell from {losses[0]:.2f} to {tail:.2f} without jumps"
    return Diagnosis("healthy", evidence, "continue, because more tokens reduce the loss further")


def _jumps(losses: Sequence[float]) -> list[bool]:
    """Return whether each loss is over the five before it by more than 1 and by much more than losses usually vary."""
    variation = median(abs(now - before) for before, now in pairwise(losses)) if len(losses) > 1 else 0
    recent = (losses[max(0, i - 5) : i] or [math.inf] for i in range(len(losses)))
    return [now > median(before) + max(1, 5 * variation) for before, now in zip(recent, losses, strict=True)]
