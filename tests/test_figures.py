"""Figures of stories and probabilities: they have titles and labels, and draw the values they are given."""

import pytest

from tinystories_lab.analysis.curves import printable
from tinystories_lab.notebook import figures

METRICS = {t: {"known_words": 1 - t / 10, "distinct_trigrams": 0.8 + t / 10} for t in (0.5, 0.8, 1.2)}
REAL = {"known_words": 0.99, "distinct_trigrams": 0.9}


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_figure_has_a_title_and_a_labelled_axis_and_can_be_drawn():
    for figure in (
        figures.histogram([1, 2, 2, 300], "How many?", "words", 2, "median"),
        figures.points({258: 1.0, 8_000: 4.1}, "Bytes", "tokens", "bytes"),
        figures.coverage([3]),
        figures.diversity_and_validity({0.8: REAL}, REAL),
    ):
        (axes,) = figure.axes
        assert axes.get_title() and axes.get_xlabel() and axes.has_data()
        figure.canvas.draw()


def test_a_histogram_counts_every_value_once():
    values = [60, 61, 75, 75, 180]
    assert sum(bar.get_height() for bar in figures.histogram(values, "", "", 75, "median").axes[0].patches) == len(
        values
    )


def test_points_have_their_height_written_above():
    axes = figures.points({258: 1.0, 8_000: 4.126}, "Bytes", "tokens", "bytes").axes[0]
    assert [text.get_text() for text in axes.texts] == ["1.00", "4.13"]


def test_coverage_marks_how_many_of_the_most_frequent_words_make_up_the_share():
    axes = figures.coverage([1, 6, 2, 1], share=0.8).axes[0]
    assert legend_of(axes) == ["2 words: 80% of the text"]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([60, 80, 90, 100])


def test_coverage_of_a_text_without_words_says_so():
    for counts in ([], [0]):
        axes = figures.coverage(counts).axes[0]
        assert "It has no words." in axes.get_title() and not axes.lines
        axes.figure.canvas.draw()


def test_generated_stories_are_lines_and_real_stories_are_dashed_lines():
    axes = figures.diversity_and_validity(METRICS, REAL).axes[0]
    solid = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [list(line.get_ydata()) for line in solid] == [[row[key] for row in METRICS.values()] for key in REAL]
    dashed = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--" and len(line.get_ydata())]
    assert dashed == list(REAL.values())


def test_a_letter_that_only_another_font_has_is_drawn_with_that_font():
    drawn, families = printable(["⊕ ∫ \ue000"], "DejaVu Sans Mono")
    assert drawn[0].startswith("⊕ ∫") and families[0] == "DejaVu Sans Mono"
    drawn, families = printable(["\ue000"])  # matplotlib's STIX font has a letter of its own there
    assert any("STIX" in family for family in families) or drawn == ["\\ue000"]
    assert printable(["лиса \U000e0fff", "fox"]) == (["лиса \\U000e0fff", "fox"], printable(["лиса fox"])[1])
