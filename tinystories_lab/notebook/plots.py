"""Figures: each function takes plain values and returns a matplotlib Figure."""

import math
from collections.abc import Sequence

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
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def loss_curve(rows: Sequence[Row], vocab_size: int, book: bool = False) -> Figure:
    """Train, smoothed train and validation loss by step, against an untrained model's ln(vocab) and, with `book`, the chapter's."""
    figure = new_figure("Loss by step", "step", "loss (nats a token)")
    axes = figure.axes[0]
    axes.axhline(math.log(vocab_size), color=GREY, linestyle=":", label=f"ln({vocab_size:,}): knows nothing")
    steps, losses = [row["step"] for row in rows], [row["train_loss"] for row in rows]
    axes.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=1)
    smooth, smoothed = None, []
    for loss in losses:
        smooth = loss if smooth is None else 0.8 * smooth + 0.2 * loss
        smoothed.append(smooth)
    axes.plot(steps, smoothed, color=BLUE, label="train (smoothed)")
    validated = [row for row in rows if "val_loss" in row]
    axes.plot(
        [row["step"] for row in validated],
        [row["val_loss"] for row in validated],
        "o-",
        color=ORANGE,
        label="validation",
    )
    if book:
        axes.plot(
            *zip(*BOOK_RESULTS["loss_by_step"].items(), strict=True), "s--", color=GREEN, label="the chapter's run"
        )
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
    figure.axes[0].hist(values, bins=40, color=BLUE)
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
