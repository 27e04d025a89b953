"""The figures of the notebooks, except the curves of a run. Each function takes plain values and returns a Figure."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

from matplotlib.figure import Figure

from tinystories_lab.analysis.curves import BLUE, GREY, ORANGE, add_legend, new_axes


def histogram(values: Sequence[int], title: str, x_label: str, mark: float, mark_label: str) -> Figure:
    """Draw how often each value occurs, and a dashed line at `mark`."""
    axes = new_axes(title, x_label, "how many")
    # The width of a bin must be a whole number. Otherwise some bins cover more values than others.
    width = max(1, round((max(values) - min(values)) / 40))
    axes.hist(values, bins=range(min(values), max(values) + width + 1, width), color=BLUE)
    axes.axvline(mark, color=ORANGE, linestyle="--", label=mark_label)
    return add_legend(axes)


def points(values: Mapping[float, float], title: str, x_label: str, y_label: str) -> Figure:
    """Draw a line through a few points. The x-axis is logarithmic, and each point has its y-value above it."""
    axes = new_axes(title, x_label, y_label)
    axes.plot(list(values), list(values.values()), "o-", color=BLUE)
    for x, y in values.items():
        axes.annotate(f"{y:.2f}", (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=12)
    axes.margins(x=0.1, y=0.15)
    axes.set(xscale="log", ylim=(0, None))
    axes.set_xticks(list(values), [f"{x:,}" for x in values])
    axes.minorticks_off()
    return axes.figure


def coverage(counts: Sequence[int], share: float = 0.95) -> Figure:
    """Draw how much of a text its most frequent words cover, and mark `share`. `counts`: how often each word occurs."""
    total, title = sum(counts), "How many words make up the text?"
    if not total:  # a corpus of nothing but punctuation
        return new_axes(f"{title} It has no words.", "most frequent words", "share of the text (%)").figure
    axes = new_axes(title, "most frequent words", "share of the text (%)")
    covered = [100 * part / total for part in accumulate(sorted(counts, reverse=True))]
    needed = 1 + sum(percent < 100 * share for percent in covered)
    axes.plot(range(1, len(covered) + 1), covered, color=BLUE)
    axes.plot([needed, needed, 1], [0, covered[needed - 1], covered[needed - 1]], "--", color=ORANGE)
    axes.plot(needed, covered[needed - 1], "o", color=ORANGE, label=f"{needed:,} words: {share:.0%} of the text")
    axes.set(xscale="log", xlim=(1, None), ylim=(0, 103))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return add_legend(axes)


def diversity_and_validity(metrics: Mapping[float, Mapping[str, float]], real: Mapping[str, float]) -> Figure:
    """Draw two `story_metrics` by temperature: lines for generated stories, dashed lines for real stories."""
    axes = new_axes("Diversity against validity", "temperature", "share")
    lines = ("known_words", "words that are known", BLUE), ("distinct_trigrams", "three-word runs that differ", ORANGE)
    for key, label, colour in lines:
        axes.plot(list(metrics), [row[key] for row in metrics.values()], "o-", color=colour, label=label)
        axes.axhline(real[key], color=colour, linestyle="--", linewidth=1)
    axes.plot([], [], color=GREY, linestyle="--", linewidth=1, label="real stories")
    axes.set_xticks(list(metrics))
    return add_legend(axes)
