"""Figures: each function takes plain values and returns a matplotlib Figure."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart also by those who do not see red or green.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#777777"
WIDTH, HEIGHT, DPI = 5.6, 3.6, 110  # inches; with letters of 12 points legible on a phone, which shows half the size


def new_figure(title: str, x_label: str, y_label: str) -> Figure:
    """A figure with one set of axes, `figure.axes[0]`."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    style(figure.add_subplot(), title, x_label, y_label)
    return figure


def style(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """The lab's one style of axes."""
    axes.set_title(title, fontsize=13)
    axes.set_xlabel(x_label, fontsize=12)
    axes.set_ylabel(y_label, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def name_lines(axes: Axes, loc: str = "best") -> None:
    """The legend, of what has a label; lines behind it stay visible."""
    axes.legend(fontsize=11, edgecolor="none", framealpha=0.7, loc=loc)


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
        name_lines(figure.axes[0])
    return figure


def bars(counts: dict[str, float], title: str, x_label: str) -> Figure:
    """One horizontal bar a name, the first on top."""
    figure = new_figure(title, x_label, "")
    figure.axes[0].barh(list(counts), list(counts.values()), color=BLUE)
    figure.axes[0].invert_yaxis()
    return figure
