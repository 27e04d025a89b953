"""What temperature does: to the odds of one token, and to whole stories; each function takes plain values and returns a figure."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from tinystories_lab.notebook.plots import BLUE, GREEN, GREY, ORANGE, legible, name_lines, new_figure

SHOWN = 8  # tokens: more would be too thin for a phone
LETTERS = 16  # of a token: more would leave the bars no room
COLOURS = (BLUE, ORANGE, GREEN)


def odds_at_temperatures(odds: Mapping[float, Sequence[tuple[str, float, float]]]) -> Figure:
    """The `likely_next` of one text at up to three temperatures: a group of bars for each of the likeliest tokens."""
    figure = new_figure("One choice, several temperatures", "odds of being drawn", "")
    axes, thickness = figure.axes[0], 0.8 / len(odds)
    for number, (temperature, rows) in enumerate(odds.items()):
        places = [place + (number - (len(odds) - 1) / 2) * thickness for place in range(len(rows[:SHOWN]))]
        shares = [share for _, share, _ in rows[:SHOWN]]
        axes.barh(places, shares, thickness, color=COLOURS[number], label=f"temperature {temperature}")
    labels, families = legible([label for label, *_ in rows[:SHOWN]], "monospace")
    labels = [label if len(label) <= LETTERS else label[: LETTERS - 1] + "…" for label in labels]
    axes.set_yticks(range(len(labels)), labels, family=families, parse_math=False)
    axes.invert_yaxis()
    name_lines(axes)
    return figure


def diversity_and_validity(metrics: Mapping[float, Mapping[str, float]], real: Mapping[str, float]) -> Figure:
    """The `story_metrics` of stories told at each temperature, as lines; those of real stories as dashed ones."""
    figure = new_figure("Diversity against validity", "temperature", "share")
    axes = figure.axes[0]
    for key, label, colour in (
        ("known_words", "words that are known", BLUE),
        ("distinct_trigrams", "three-word runs that differ", ORANGE),
    ):
        axes.plot(list(metrics), [row[key] for row in metrics.values()], "o-", color=colour, label=label)
        axes.axhline(real[key], color=colour, linestyle="--", linewidth=1)
    axes.plot([], [], color=GREY, linestyle="--", linewidth=1, label="real stories")
    axes.set_xticks(list(metrics))
    name_lines(axes)
    return figure
