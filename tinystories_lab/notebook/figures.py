"""The figures of the notebooks, apart from the curves of a run; each function takes plain values and returns a Figure."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

from matplotlib.figure import Figure

from tinystories_lab.analysis.curves import BLUE, GREEN, GREY, ORANGE, add_legend, new_axes, printable

_MAX_LABEL = 16  # characters of a token; longer labels would leave no room for the bars
_MAX_TOKENS = 8  # more bars would be too thin on a phone


def histogram(
    values: Sequence[float], title: str, x_label: str, mark: float | None = None, mark_label: str = ""
) -> Figure:
    """Draw how often each value occurs, with an optional line at `mark`."""
    axes = new_axes(title, x_label, "how many")
    # Bins for whole numbers must have a whole width. Otherwise some bins cover more numbers than others.
    width = max(1, round((max(values) - min(values)) / 40)) if all(isinstance(value, int) for value in values) else None
    axes.hist(values, bins=range(min(values), max(values) + width + 1, width) if width else 40, color=BLUE)
    if mark is not None:
        axes.axvline(mark, color=ORANGE, linestyle="--", label=mark_label)
        add_legend(axes)
    return axes.figure


def points(values: Mapping[float, float], title: str, x_label: str, y_label: str) -> Figure:
    """Draw a line through a few points on a logarithmic x-axis, and write each point's height above it."""
    axes = new_axes(title, x_label, y_label)
    axes.plot(list(values), list(values.values()), "o-", color=BLUE)
    for x, y in values.items():
        axes.annotate(f"{y:.2f}", (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=12)
    axes.set_xscale("log")
    axes.set_xticks(list(values), [f"{x:,}" for x in values])
    axes.set_xticks([], minor=True)
    axes.margins(x=0.1, y=0.15)
    axes.set_ylim(bottom=0)
    return axes.figure


def coverage(counts: Sequence[int], share: float = 0.95) -> Figure:
    """Draw how much of a text its most frequent words cover, and mark the number of words that cover `share` of it.

    `counts` says how often each different word occurs.
    """
    axes = new_axes("How many words make up the text?", "most frequent words", "share of the text (%)")
    total = sum(counts)
    covered = [100 * part / total for part in accumulate(sorted(counts, reverse=True))]
    needed = 1 + next(index for index, percent in enumerate(covered) if percent >= 100 * share)
    axes.plot(range(1, len(covered) + 1), covered, color=BLUE)
    axes.plot([needed, needed, 1], [0, covered[needed - 1], covered[needed - 1]], "--", color=ORANGE)
    axes.plot(needed, covered[needed - 1], "o", color=ORANGE, label=f"{needed:,} words: {share:.0%} of the text")
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    axes.set_ylim(0, 103)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    add_legend(axes)
    return axes.figure


def probabilities_at_temperatures(rows_at: Mapping[float, Sequence[tuple[str, float, float]]]) -> Figure:
    """Draw the `top_next_tokens` of one text at up to three temperatures: a group of bars for each of the top tokens."""
    axes = new_axes("One choice, several temperatures", "probability", "")
    thickness = 0.8 / len(rows_at)
    for number, (temperature, rows) in enumerate(rows_at.items()):
        labels, probabilities, _ = zip(*rows[:_MAX_TOKENS], strict=True)
        places = [place + (number - (len(rows_at) - 1) / 2) * thickness for place in range(len(labels))]
        axes.barh(
            places, probabilities, thickness, color=(BLUE, ORANGE, GREEN)[number], label=f"temperature {temperature}"
        )
    labels, families = printable(labels, "monospace")
    labels = [label if len(label) <= _MAX_LABEL else label[: _MAX_LABEL - 1] + "…" for label in labels]
    axes.set_yticks(range(len(labels)), labels, family=families, parse_math=False)
    axes.invert_yaxis()
    add_legend(axes)
    return axes.figure


def diversity_and_validity(metrics: Mapping[float, Mapping[str, float]], real: Mapping[str, float]) -> Figure:
    """Draw the `story_metrics` of generated stories at each temperature as lines, those of real stories as dashed lines."""
    axes = new_axes("Diversity against validity", "temperature", "share")
    for key, label, colour in (
        ("known_words", "words that are known", BLUE),
        ("distinct_trigrams", "three-word runs that differ", ORANGE),
    ):
        axes.plot(list(metrics), [row[key] for row in metrics.values()], "o-", color=colour, label=label)
        axes.axhline(real[key], color=colour, linestyle="--", linewidth=1)
    axes.plot([], [], color=GREY, linestyle="--", linewidth=1, label="real stories")
    axes.set_xticks(list(metrics))
    add_legend(axes)
    return axes.figure
