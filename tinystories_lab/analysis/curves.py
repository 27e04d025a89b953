"""The curves of a run, and the style of all figures. Each curve function takes plain values and returns a Figure."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from tinystories_lab.analysis.evaluation import CHAPTER_RESULTS, running_mean
from tinystories_lab.config import TrainConfig, lr_at
from tinystories_lab.files import Row

# Okabe and Ito's colours, which colour-blind people can distinguish.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#777777"
WIDTH, DPI = 5.6, 110  # WIDTH is in inches; text of 12 points is readable on a phone, which shows it at half the size
_HEIGHT = 3.6
_LOSS = "loss (nats per token)"


def new_axes(title: str, x_label: str, y_label: str) -> Axes:
    """Return the axes of a new figure, which is `axes.figure`."""
    axes = _new_figure(_HEIGHT).add_subplot()
    _style_axes(axes, title, x_label, y_label)
    return axes


def _new_figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def _style_axes(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=13)
    axes.set_xlabel(x_label, fontsize=12)
    axes.set_ylabel(y_label, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(axes: Axes) -> Figure:
    """Add a half-transparent legend, so that it hides no line. Return the figure."""
    axes.legend(fontsize=11, edgecolor="none", framealpha=0.7)
    return axes.figure


def printable(texts: Sequence[str], family: str = "sans-serif") -> tuple[list[str], list[str]]:
    """Return texts with codes (\\u4ece) for letters that no font has, and the font families needed, `family` first."""
    missing, families = set("".join(texts)), [family]
    default = findfont(FontProperties(family=[family]))
    for font in sorted(fontManager.ttflist, key=lambda font: font.fname != default):
        has = {letter for letter in missing if get_font(font.fname).get_char_index(ord(letter))}
        if has and not font.name.startswith("Last Resort"):  # this font only has boxes with codes
            families.append(font.name)
            missing -= has
    shown = ["".join(ascii(letter)[1:-1] if letter in missing else letter for letter in text) for text in texts]
    return shown, families


def loss_curve(rows: Sequence[Row], vocab_size: int, by_tokens: bool = False, chapter: bool = False) -> Figure:
    """Draw the losses by step, or by tokens read (logarithmic), then with the chapter's run if `chapter`."""
    column, label = ("tokens", "tokens read") if by_tokens else ("step", "step")
    axes = new_axes(f"Loss by {label}", label, _LOSS)
    _draw_loss(axes, rows, vocab_size, column)
    if not by_tokens:
        return add_legend(axes)
    if chapter:
        steps, losses = zip(*CHAPTER_RESULTS["loss_by_step"].items(), strict=True)
        tokens = [max(1, step) * CHAPTER_RESULTS["tokens_per_step"] for step in steps]
        axes.plot(tokens, losses, "s--", markersize=4, color=GREEN, label="the chapter's run")
    axes.set_xscale("log")
    axes.figure.set_figheight(1.2 * _HEIGHT)  # the legend is below the axes, where there is room for it
    axes.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=11)
    return axes.figure


def run_curves(rows: Sequence[Row], vocab_size: int, config: TrainConfig) -> Figure:
    """Draw a run in progress: its losses and its learning rate."""
    figure = _new_figure(1.3 * _HEIGHT)
    losses, rates = figure.subplots(2, height_ratios=[3, 1], sharex=True)
    _style_axes(losses, "Loss and learning rate by step", "", _LOSS)
    _draw_loss(losses, rows, vocab_size)
    losses.set_ylim(0, 1.15 * math.log(vocab_size))
    add_legend(losses)
    _style_axes(rates, "", "step", "rate")
    _draw_rates(rates, config, until=rows[-1]["step"])
    return figure


def lr_curve(config: TrainConfig) -> Figure:
    """Draw the learning rate of every step."""
    axes = new_axes("Learning rate by step", "step", "learning rate")
    _draw_rates(axes, config, until=config.total_steps)
    label = f"warm-up ends at step {config.warmup_steps:,}"
    axes.axvline(config.warmup_steps, color=GREY, linestyle=":", label=label)
    return add_legend(axes)


def failure_mode_curves(runs: Mapping[str, Sequence[Row]], vocab_size: int) -> Figure:
    """Draw the losses of each run in small axes of its own. Very high losses are cut off."""
    lines = math.ceil(len(runs) / 2)
    figure = _new_figure(2.1 * lines)
    grid = figure.subplots(lines, 2, sharey=True, squeeze=False).flat
    for axes, (name, rows) in zip(grid, runs.items(), strict=False):
        _style_axes(axes, name, "step", "loss")
        axes.label_outer(remove_inner_ticks=False)
        _draw_loss(axes, rows, vocab_size)
        axes.set_ylim(0, 1.6 * math.log(vocab_size))
    for axes in grid[len(runs) :]:  # an odd number of runs leaves one place free for the legend
        axes.axis("off")
        axes.legend(*grid[0].get_legend_handles_labels(), frameon=False, fontsize=11, loc="center")
    return figure


def compare_curves(runs: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Draw the `bits_by_tokens` of several runs, each as a line with a colour and a marker of its own."""
    axes = new_axes("Bits per byte by tokens read", "tokens read", "bits per byte (validation)")
    for (name, points), colour, marker in zip(runs.items(), cycle((BLUE, ORANGE, GREEN)), cycle("os^")):
        axes.plot(*zip(*points, strict=True), f"{marker}-", markersize=4, color=colour, label=name)
    axes.set_xscale("log")
    return add_legend(axes)


def _draw_loss(axes: Axes, rows: Sequence[Row], vocab_size: int, x: str = "step") -> None:
    """Draw by `x` the train loss, the validation loss, an untrained model's loss, and where the run was resumed."""
    axes.axhline(math.log(vocab_size), color=GREY, linestyle=":", label=f"ln({vocab_size:,}): untrained")
    xs, losses = [row[x] for row in rows], [row["train_loss"] for row in rows]
    axes.plot(xs, losses, color=BLUE, alpha=0.3, linewidth=1)
    axes.plot(xs, running_mean(losses), color=BLUE, label="train (mean of 5 rows)")
    validated = [row for row in rows if "val_loss" in row]
    val_losses = [row["val_loss"] for row in validated]
    axes.plot([row[x] for row in validated], val_losses, "o-", markersize=4, color=ORANGE, label="validation")
    for number, row in enumerate(row for row in rows if "resumed_from" in row):
        place = row[x] * row["resumed_from"] / row["step"]
        axes.axvline(place, color=GREY, linewidth=0.8, dashes=(6, 4), label="resumed" if number == 0 else None)


def _draw_rates(axes: Axes, config: TrainConfig, until: int) -> None:
    """Draw the learning rate of each step, with a thicker line up to step `until`."""
    steps = range(0, config.total_steps, max(1, config.total_steps // 500))
    rates, done = [lr_at(step, config) for step in steps], sum(step < until for step in steps)
    axes.plot(steps, rates, color=BLUE, alpha=0.3, linewidth=1)
    axes.plot(steps[:done], rates[:done], color=BLUE)
    axes.set_ylim(bottom=0)
