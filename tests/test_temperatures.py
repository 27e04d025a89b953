"""What temperature does, as figures."""

import pytest

from tinystories_lab.notebook.temperatures import SHOWN, diversity_and_validity, odds_at_temperatures

ROWS = [(f"' {name}'", share / 2, share) for name, share in zip("abcdefghijkl", [0.3, *[0.05] * 11], strict=True)]
METRICS = {t: {"known_words": 1 - t / 10, "distinct_trigrams": 0.8 + t / 10} for t in (0.5, 0.8, 1.2)}
REAL = {"known_words": 0.99, "distinct_trigrams": 0.9}


def test_each_token_has_a_bar_of_its_odds_at_each_temperature():
    axes = odds_at_temperatures({0.5: ROWS, 1.2: ROWS[::-1]}).axes[0]
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[row[1] for row in rows[:SHOWN]] for rows in (ROWS, ROWS[::-1])]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["temperature 0.5", "temperature 1.2"]


def test_told_stories_are_lines_over_the_temperature_and_real_ones_are_dashed():
    axes = diversity_and_validity(METRICS, REAL).axes[0]
    solid = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [list(line.get_ydata()) for line in solid] == [[row[key] for row in METRICS.values()] for key in REAL]
    dashed = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--" and len(line.get_ydata())]
    assert dashed == list(REAL.values())


@pytest.mark.parametrize("figure", [odds_at_temperatures({0.8: ROWS[:2]}), diversity_and_validity({0.8: REAL}, REAL)])
def test_a_figure_has_a_title_and_labelled_axes_and_draws(figure, tmp_path):
    axes = figure.axes[0]
    assert axes.get_title() and axes.get_xlabel() and axes.has_data()
    figure.savefig(tmp_path / "figure.png")


def test_the_longest_token_leaves_room_for_its_bar(recwarn, tmp_path):
    figure = odds_at_temperatures({0.8: [(f"'{'有一只小狐狸' * 9}'", 0.5, 0.5), ("'a'", 0.1, 0.1)]})
    figure.savefig(tmp_path / "figure.png")
    assert figure.axes[0].get_window_extent().width > figure.bbox.width / 4 and not recwarn.list
