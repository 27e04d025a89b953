"""Five patterns of a loss curve, recognized from the rows of loss.jsonl."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from tinystories_lab.files import Row


@dataclass(frozen=True)
class Diagnosis:
    """The pattern of a run (healthy, diverging, stuck, spiking or overfitting), the evidence for it, and advice."""

    pattern: str
    evidence: str
    advice: str


def diagnose(rows: Iterable[Row], vocab_size: int) -> Diagnosis:
    """Return the most serious pattern that the log rows of a run show. Raises ValueError if there are no rows."""
    rows = list(rows)
    if not rows:
        raise ValueError("there are no rows to diagnose: train some steps first")
    losses = [row["train_loss"] for row in rows]
    for row in rows:
        if not math.isfinite(row["train_loss"]):
            evidence = f"the loss is not finite at step {row['step']}"
            return Diagnosis("diverging", evidence, "halve peak_lr, and use bfloat16 or float32 instead of float16")
    tail = fmean(losses[-max(1, len(losses) // 10) :])  # the last tenth
    best = min(fmean(losses[i : i + 3]) for i in range(max(1, len(losses) - 2)))
    if tail > best + 1 and len(losses) >= 5:
        evidence = f"the loss rose from {best:.2f} to {tail:.2f}"
        return Diagnosis("diverging", evidence, "halve peak_lr, or make the warm-up longer")
    untrained = math.log(vocab_size)
    if tail > untrained - 0.5:
        evidence = f"the loss is {tail:.2f}; an untrained model has ln({vocab_size}) = {untrained:.2f}"
        advice = "every run starts here; if it stays here, raise peak_lr and check the data"
        return Diagnosis("stuck", evidence, advice)
    if validated := [row for row in rows if row.get("val_loss") is not None]:
        lowest = min(validated, key=lambda row: row["val_loss"])
        low, last = lowest["val_loss"], validated[-1]["val_loss"]
        if last > low + 0.05 and tail < lowest["train_loss"]:
            evidence = (
                f"validation loss rose from {low:.2f} (step {lowest['step']}) to {last:.2f} while train loss fell"
            )
            advice = "use more stories or a smaller model, or stop at the lowest validation loss"
            return Diagnosis("overfitting", evidence, advice)
    if jumps := [row["step"] for row, is_jump in zip(rows, _jumps(losses), strict=True) if is_jump]:
        evidence = f"jumps of the loss by more than 1: {len(jumps)}, the first at step {jumps[0]}"
        advice = "clip gradients at 1.0, lower peak_lr, and look at the batch of that step"
        return Diagnosis("spiking", evidence, advice)
    evidence = f"the loss fell from {losses[0]:.2f} to {tail:.2f} without jumps"
    return Diagnosis("healthy", evidence, "continue, because more tokens lower the loss further")


def _jumps(losses: Sequence[float]) -> list[bool]:
    """Whether each loss exceeds the five before it by more than 1, and by far more than small batches vary anyway."""
    variation = median(abs(now - before) for before, now in pairwise(losses)) if len(losses) > 1 else 0
    recent = (losses[max(0, i - 5) : i] or [math.inf] for i in range(len(losses)))
    return [now > median(before) + max(1, 5 * variation) for before, now in zip(recent, losses, strict=True)]
