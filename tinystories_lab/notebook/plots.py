"""Figures: each function takes plain values and returns a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

# Okabe and Ito's colours: told apart also by those who do not see red or green.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#777777"
WIDTH, HEIGHT, DPI = 5.6, 3.6, 110  # inches; with letters of 12 points legible on a phone, which shows half the size
_LETTERS_SHOWN = 16  # of a token: more would leave the bars no room
_TOKENS_SHOWN = 8  # more would be too thin for a phone


def new_figure(height: float = HEIGHT) -> Figure:
    """An empty figure of the lab's one width."""
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def new_axes(title: str, x_label: str, y_label: str) -> Axes:
    """Axes that have a figure, `axes.figure`, to themselves."""
    axes = new_figure().add_subplot()
    style(axes, title, x_label, y_label)
    return axes


def style(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """The lab's one style of axes."""
    axes.set_title(title, fontsize=13)
    axes.set_xlabel(x_label, fontsize=12)
    axes.set_ylabel(y_label, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legible(texts: Sequence[str], family: str = "sans-serif") -> tuple[list[str], list[str]]:
    """Texts of stories as a figure can show them, and the font families for that: `family`, then others that are needed.

    A letter that no installed font has becomes its code, such as \\u4ece; pages of HTML, as browsers draw them, have it.
    """
    missing, families = set("".join(texts)), [family]
    usual = findfont(FontProperties(family=[family]))
    for font in sorted(fontManager.ttflist, key=lambda font: font.fname != usual):
        has = {letter for letter in missing if get_font(font.fname).get_char_index(ord(letter))} if missing else set()
        if has and not font.name.startswith("Last Resort"):  # which draws a box with the letter's code
            families.append(font.name)
            missing -= has
    return [
        "".join(ascii(letter)[1:-1] if letter in missing else letter for letter in text) for text in texts
    ], families


def name_lines(axes: Axes) -> None:
    """The legend, of what has a label; lines behind it stay visible."""
    axes.legend(fontsize=11, edgecolor="none", framealpha=0.7)


def histogram(
    values: Sequence[float], title: str, x_label: str, mark: float | None = None, mark_label: str = ""
) -> Figure:
    """How often each value occurs, with an optional line at `mark`."""
    axes = new_axes(title, x_label, "how many")
    # Whole numbers need bins of whole widths, or some bins catch more of them than others.
    width = max(1, round((max(values) - min(values)) / 40)) if all(isinstance(value, int) for value in values) else None
    axes.hist(values, bins=range(min(values), max(values) + width + 1, width) if width else 40, color=BLUE)
    if mark is not None:
        axes.axvline(mark, color=ORANGE, linestyle="--", label=mark_label)
        name_lines(axes)
    return axes.figure


def points(values: Mapping[float, float], title: str, x_label: str, y_label: str) -> Figure:
    """A line through a few points on a logarithmic axis, the height written at each."""
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
    """How much of a text its commonest words make up, by how many of them are known; a mark where `share` is reached.

    `counts` has a number for each different word: how often it occurs.
    """
    axes = new_axes("How many words make up the text?", "words known, the commonest first", "share of the text (%)")
    total = sum(counts)
    covered = [100 * known / total for known in accumulate(sorted(counts, reverse=True))]
    needed = 1 + next(place for place, known in enumerate(covered) if known >= 100 * share)
    axes.plot(range(1, len(covered) + 1), covered, color=BLUE)
    axes.plot([needed, needed, 1], [0, covered[needed - 1], covered[needed - 1]], "--", color=ORANGE)
    axes.plot(needed, covered[needed - 1], "o", color=ORANGE, label=f"{needed:,} words: {share:.0%} of the text")
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    axes.set_ylim(0, 103)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    name_lines(axes)
    return axes.figure


def odds_at_temperatures(odds: Mapping[float, Sequence[tuple[str, float, float]]]) -> Figure:
    """The `likely_next` of one text at up to three temperatures: a group of bars for each of the likeliest tokens."""
    axes = new_axes("One choice, several temperatures", "odds of being drawn", "")
    thickness = 0.8 / len(odds)
    for number, (temperature, rows) in enumerate(odds.items()):
        labels, shares, _ = zip(*rows[:_TOKENS_SHOWN], strict=True)
        places = [place + (number - (len(odds) - 1) / 2) * thickness for place in range(len(shares))]
        axes.barh(places, shares, thickness, color=(BLUE, ORANGE, GREEN)[number], label=f"temperature {temperature}")
    labels, families = legible(labels, "monospace")
    labels = [label if len(label) <= _LETTERS_SHOWN else label[: _LETTERS_SHOWN - 1] + "…" for label in labels]
    axes.set_yticks(range(len(labels)), labels, family=families, parse_math=False)
    axes.invert_yaxis()
    name_lines(axes)
    return axes.figure


def diversity_and_validity(metrics: Mapping[float, Mapping[str, float]], real: Mapping[str, float]) -> Figure:
    """The `story_metrics` of stories told at each temperature, as lines; those of real stories as dashed ones."""
    axes = new_axes("Diversity against validity", "temperature", "share")
    for key, label, colour in (
        ("known_words", "words that are known", BLUE),
        ("distinct_trigrams", "three-word runs that differ", ORANGE),
    ):
        axes.plot(list(metrics), [row[key] for row in metrics.values()], "o-", color=colour, label=label)
        axes.axhline(real[key], color=colour, linestyle="--", linewidth=1)
    axes.plot([], [], color=GREY, linestyle="--", linewidth=1, label="real stories")
    axes.set_xticks(list(metrics))
    name_lines(axes)
    return axes.figure
