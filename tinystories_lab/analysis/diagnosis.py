"""Recognize five patterns of a loss curve from the rows of loss.jsonl."""

import math
from collections.abc import Iterable
from itertools import pairwise
from statistics import fmean, median
from typing import NamedTuple

from tinystories_lab.config import TrainConfig
from tinystories_lab.files import Row


class Diagnosis(NamedTuple):
    """The pattern of a run (healthy, diverging, stuck, spiking or overfitting), the evidence for it, and advice."""

    pattern: str
    evidence: str
    advice: str


def diagnose(rows: Iterable[Row], vocab_size: int, train_config: TrainConfig | None = None) -> Diagnosis:
    """Return a run's most serious pattern, with advice that fits its settings. Raises ValueError without rows."""
    rows = list(rows)
    if not rows:
        raise ValueError("there are no rows to diagnose: train some steps first")
    config, step, losses = train_config, rows[-1]["step"], [row["train_loss"] for row in rows]
    clip = "" if config and config.grad_clip <= 1 else "clip gradients at 1.0, "
    rates = "peak_lr and muon_lr" if config and config.optimizer != "adamw" else "peak_lr"
    halve = f"{clip}halve {rates}"
    if not_finite := [row["step"] for row in rows if not math.isfinite(row["train_loss"])]:
        evidence = f"the loss is not finite at step {not_finite[0]}"
        return Diagnosis("diverging", evidence, f"{halve}; if the run used float16, use bfloat16 or float32")
    tail = fmean(losses[-max(1, len(losses) // 10) :])  # the last tenth
    best = min(fmean(losses[i : i + 3]) for i in range(max(1, len(losses) - 2)))
    if tail > best + 1 and len(losses) >= 5:
        evidence = f"the loss rose from {best:.2f} to {tail:.2f}"
        return Diagnosis("diverging", evidence, f"{halve}, or make the warm-up longer")
    untrained = math.log(vocab_size)
    if tail > untrained - 0.5:
        evidence = f"the loss is {tail:.2f}; an untrained model has ln({vocab_size}) = {untrained:.2f}"
        is_early = not config or step <= max(config.warmup_steps, config.total_steps // 20)
        advice = "this is normal at the start; later, " if is_early else ""
        return Diagnosis("stuck", evidence, f"{advice}raise {rates} and check the data")
    if validated := [row for row in rows if row.get("val_loss") is not None]:
        lowest = min(validated, key=lambda row: row["val_loss"])
        low, last = lowest["val_loss"], validated[-1]["val_loss"]
        if last > low + 0.05 and tail < lowest["train_loss"]:
            rise = f"from {low:.2f} (step {lowest['step']}) to {last:.2f}"
            evidence = f"the validation loss rose {rise} while the train loss fell"
            advice = "best.pt has the model of the lowest validation loss; use more stories or a smaller model"
            return Diagnosis("overfitting", evidence, advice)
    if jumps := _jumps(rows):
        evidence = f"jumps of the loss by more than 1: {len(jumps)}, the first at step {jumps[0]}"
        lower = rates if clip else f"{rates} or grad_clip, which is {config.grad_clip:g}"
        return Diagnosis("spiking", evidence, f"{clip}lower {lower}, and look at that step's batch")
    evidence = f"the loss fell from {losses[0]:.2f} to {tail:.2f} without jumps"
    advice = "continue, because more tokens reduce the loss further"
    if not config or step >= config.total_steps:
        advice = "for a lower loss, start a new run with more tokens (a larger total_steps) or a larger model"
    return Diagnosis("healthy", evidence, advice)


def _jumps(rows: list[Row]) -> list[int]:
    """Return the steps whose loss exceeds the median of the five before it by 1 and by five times the usual change."""
    losses = [row["train_loss"] for row in rows]
    threshold = max(1, 5 * median([abs(now - before) for before, now in pairwise(losses)] or [0]))
    medians = [median(losses[max(0, i - 5) : i]) for i in range(1, len(losses))]
    return [rows[i]["step"] for i, before in enumerate(medians, start=1) if losses[i] > before + threshold]
