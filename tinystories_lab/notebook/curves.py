"""The curves of a run; each function takes plain values and returns a matplotlib Figure."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tinystories_lab.notebook.plots import BLUE, GREEN, GREY, HEIGHT, ORANGE, name_lines, new_axes, new_figure, style
from tinystories_lab.recipe import TrainConfig, lr_at
from tinystories_lab.review import BOOK_RESULTS
from tinystories_lab.runlog import Row

_LOSS = "loss (nats a token)"
_CHAPTER_STEPS, _CHAPTER_LOSSES = zip(*BOOK_RESULTS["loss_by_step"].items(), strict=True)


def loss_curve(rows: Sequence[Row], vocab_size: int, book: bool = False) -> Figure:
    """The losses by step; with `book`, by tokens read, on a logarithmic axis, beside the chapter's run."""
    if not book:
        axes = new_axes("Loss by step", "step", _LOSS)
        _draw_loss(axes, rows, vocab_size)
        name_lines(axes)
        return axes.figure
    axes = new_axes("Loss by tokens read", "tokens read", _LOSS)
    _draw_loss(axes, rows, vocab_size, "tokens")
    tokens = [max(1, step) * BOOK_RESULTS["tokens_per_step"] for step in _CHAPTER_STEPS]
    axes.plot(tokens, _CHAPTER_LOSSES, "s--", markersize=4, color=GREEN, label="the chapter's run")
    axes.set_xscale("log")
    axes.figure.set_figheight(1.2 * HEIGHT)
    axes.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=11)  # inside there is no room
    return axes.figure


def run_curves(rows: Sequence[Row], vocab_size: int, config: TrainConfig) -> Figure:
    """A run while it goes on: its losses beside the chapter's at the same share of its steps, and the learning rate below."""
    figure = new_figure(1.3 * HEIGHT)
    losses, rates = figure.subplots(2, height_ratios=[3, 1], sharex=True)
    style(losses, "Loss and learning rate by step", "", _LOSS)
    _draw_loss(losses, rows, vocab_size)
    steps = [step / max(_CHAPTER_STEPS) * config.total_steps for step in _CHAPTER_STEPS]
    label = "the chapter's, at this share of its run"
    losses.plot(steps, _CHAPTER_LOSSES, "s--", markersize=3, linewidth=1, color=GREEN, label=label)
    losses.set_ylim(0, 1.15 * max(math.log(vocab_size), *_CHAPTER_LOSSES))
    name_lines(losses)
    style(rates, "", "step", "rate")
    _draw_rates(rates, config, until=rows[-1]["step"])
    return figure


def lr_curve(config: TrainConfig) -> Figure:
    """The learning rate of every step."""
    axes = new_axes("Learning rate by step", "step", "learning rate")
    _draw_rates(axes, config, until=config.total_steps)
    label = f"warm-up ends at step {config.warmup_steps:,}"
    axes.axvline(config.warmup_steps, color=GREY, linestyle=":", label=label)
    name_lines(axes)
    return axes.figure


def pattern_curves(runs: Mapping[str, Sequence[Row]], vocab_size: int) -> Figure:
    """Several runs' losses in small, each under its name; what leaves the top is far off."""
    lines = math.ceil(len(runs) / 2)
    figure = new_figure(2.1 * lines)
    grid = figure.subplots(lines, 2, sharey=True, squeeze=False).flat
    for axes, (name, rows) in zip(grid, runs.items(), strict=False):
        style(axes, name, "step", "loss")
        axes.label_outer(remove_inner_ticks=False)
        _draw_loss(axes, rows, vocab_size)
        axes.set_ylim(0, 1.6 * math.log(vocab_size))
    for axes in grid[len(runs) :]:  # the place that is left is the legend's
        axes.axis("off")
        axes.legend(*grid[0].get_legend_handles_labels(), frameon=False, fontsize=11, loc="center")
    return figure


def compare_curves(runs: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """One line a run through its (tokens read, bits a byte), told apart also by their markers."""
    axes = new_axes("Bits a byte by tokens read", "tokens read", "bits a byte (held-out stories)")
    for (name, points), colour, marker in zip(runs.items(), cycle((BLUE, ORANGE, GREEN)), cycle("os^")):
        axes.plot(*zip(*points, strict=True), f"{marker}-", markersize=4, color=colour, label=name)
    axes.set_xscale("log")
    name_lines(axes)
    return axes.figure


def _draw_loss(axes: Axes, rows: Sequence[Row], vocab_size: int, x: str = "step") -> None:
    """Train (each row, and a running mean) and validation loss by `x`, under the line of a model that knows nothing.

    A thin line stands where a session went on after another.
    """
    axes.axhline(math.log(vocab_size), color=GREY, linestyle=":", label=f"ln({vocab_size:,}): knows nothing")
    places, losses = [row[x] for row in rows], [row["train_loss"] for row in rows]
    axes.plot(places, losses, color=BLUE, alpha=0.3, linewidth=1)
    axes.plot(places, _smoothed(losses), color=BLUE, label="train (mean of 5 rows)")
    validated = [row for row in rows if "val_loss" in row]
    values = [row["val_loss"] for row in validated]
    axes.plot([row[x] for row in validated], values, "o-", markersize=4, color=ORANGE, label="validation")
    for number, row in enumerate(row for row in rows if "resumed_from" in row):
        place = row[x] * row["resumed_from"] / row["step"]
        axes.axvline(place, color=GREY, linewidth=0.8, dashes=(6, 4), label="resumed" if number == 0 else None)


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Each loss as the mean of the five around it, at the ends of three and one, so that a slope stays where it is."""
    reach = (min(2, i, len(losses) - 1 - i) for i in range(len(losses)))
    return [fmean(losses[i - far : i + far + 1]) for i, far in enumerate(reach)]


def _draw_rates(axes: Axes, config: TrainConfig, until: int) -> None:
    """The learning rate of each step, drawn out to `until`, the rest thin."""
    steps = range(0, config.total_steps, max(1, config.total_steps // 500))
    axes.plot(steps, [lr_at(step, config) for step in steps], color=BLUE, alpha=0.3, linewidth=1)
    done = [step for step in steps if step < until]
    axes.plot(done, [lr_at(step, config) for step in done], color=BLUE)
    axes.set_ylim(bottom=0)
