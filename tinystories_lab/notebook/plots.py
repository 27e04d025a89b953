"""Figures: each function takes plain values and returns a matplotlib Figure."""

import math
from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure
from torch import Tensor

from tinystories_lab.recipe import TrainConfig, lr_at
from tinystories_lab.review import BOOK_RESULTS
from tinystories_lab.runlog import Row

# Okabe and Ito's colours: told apart also by those who do not see red or green.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#777777"


def new_figure(title: str, x_label: str, y_label: str) -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


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
    axes.legend(frameon=False)
    return figure


def lr_curve(config: TrainConfig) -> Figure:
    """The learning rate of every step."""
    figure = new_figure("Learning rate by step", "step", "learning rate")
    steps = range(0, config.total_steps, max(1, config.total_steps // 500))
    figure.axes[0].plot(steps, [lr_at(step, config) for step in steps], color=BLUE)
    figure.axes[0].axvline(
        config.warmup_steps, color=GREY, linestyle=":", label=f"warm-up ends at step {config.warmup_steps:,}"
    )
    figure.axes[0].legend(frameon=False)
    return figure


def histogram(
    values: Sequence[float], title: str, x_label: str, mark: float | None = None, mark_label: str = ""
) -> Figure:
    """How often each value occurs, with an optional line at `mark`."""
    figure = new_figure(title, x_label, "how many")
    # Whole numbers need bins of whole widths, or some bins catch more of them than others.
    width = max(1, round((max(values) - min(values)) / 40)) if all(isinstance(value, int) for value in values) else None
    figure.axes[0].hist(values, bins=range(min(values), max(values) + width + 1, width) if width else 40, color=BLUE)
    if mark is not None:
        figure.axes[0].axvline(mark, color=ORANGE, linestyle="--", label=mark_label)
        figure.axes[0].legend(frameon=False)
    return figure


def bars(counts: dict[str, float], title: str, x_label: str) -> Figure:
    """One horizontal bar a name, the first on top."""
    figure = new_figure(title, x_label, "")
    figure.axes[0].barh(list(counts), list(counts.values()), color=BLUE)
    figure.axes[0].invert_yaxis()
    return figure


def likely_next(tokens: Sequence[str], odds: Tensor, title: str) -> Figure:
    """The odds (len(tokens),) of the likeliest next tokens as bars."""
    return bars(dict(zip(map(repr, tokens), odds.tolist(), strict=True)), title, "probability")
