"""The curves of a run; each function takes plain values and returns a matplotlib Figure."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import fmean

from matplotlib.figure import Figure

from tinystories_lab.notebook.plots import BLUE, GREEN, GREY, ORANGE, name_lines, new_figure
from tinystories_lab.recipe import TrainConfig, lr_at
from tinystories_lab.review import BOOK_RESULTS
from tinystories_lab.runlog import Row


def loss_curve(rows: Sequence[Row], vocab_size: int, book: bool = False) -> Figure:
    """Train (each row, and a running mean) and validation loss by step, under the line of a model that knows nothing.

    A thin line stands where a session went on after another. With `book`, by tokens read, on a logarithmic axis, beside the chapter's run.
    """
    figure = new_figure(
        "Loss by tokens read" if book else "Loss by step", "tokens read" if book else "step", "loss (nats a token)"
    )
    axes, x = figure.axes[0], "tokens" if book else "step"
    axes.axhline(math.log(vocab_size), color=GREY, linestyle=":", label=f"ln({vocab_size:,}): knows nothing")
    places, losses = [row[x] for row in rows], [row["train_loss"] for row in rows]
    means = [fmean(losses[max(0, i - 2) : i + 3]) for i in range(len(losses))]
    axes.plot(places, losses, color=BLUE, alpha=0.3, linewidth=1)
    axes.plot(places, means, color=BLUE, label="train (mean of 5 rows)")
    validated = [row for row in rows if "val_loss" in row]
    axes.plot(
        [row[x] for row in validated], [row["val_loss"] for row in validated], "o-", color=ORANGE, label="validation"
    )
    for number, row in enumerate(row for row in rows if "resumed_from" in row):
        place = row[x] * row["resumed_from"] / row["step"]
        axes.axvline(place, color=GREY, linewidth=0.8, dashes=(6, 4), label="resumed" if number == 0 else None)
    if book:
        steps, chapter = zip(*BOOK_RESULTS["loss_by_step"].items(), strict=True)
        tokens = [max(1, step) * BOOK_RESULTS["tokens_per_step"] for step in steps]
        axes.plot(tokens, chapter, "s--", color=GREEN, label="the chapter's run")
        axes.set_xscale("log")
    name_lines(axes)
    return figure


def lr_curve(config: TrainConfig) -> Figure:
    """The learning rate of every step."""
    figure = new_figure("Learning rate by step", "step", "learning rate")
    steps = range(0, config.total_steps, max(1, config.total_steps // 500))
    figure.axes[0].plot(steps, [lr_at(step, config) for step in steps], color=BLUE)
    figure.axes[0].axvline(
        config.warmup_steps, color=GREY, linestyle=":", label=f"warm-up ends at step {config.warmup_steps:,}"
    )
    name_lines(figure.axes[0])
    return figure


def compare_curves(runs: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """One line a run through its (tokens read, bits a byte), told apart also by their markers."""
    figure = new_figure("Bits a byte by tokens read", "tokens read", "bits a byte (held-out stories)")
    for (name, points), colour, marker in zip(runs.items(), cycle((BLUE, ORANGE, GREEN)), cycle("os^")):
        figure.axes[0].plot(*zip(*points, strict=True), f"{marker}-", markersize=4, color=colour, label=name)
    figure.axes[0].set_xscale("log")
    name_lines(figure.axes[0])
    return figure
