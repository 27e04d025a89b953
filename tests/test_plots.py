"""Figures: titled, labelled, and drawn of what was given."""

import pytest
from matplotlib.figure import Figure

from tinystories_lab.notebook import curves, plots
from tinystories_lab.recipe import TrainConfig

ROWS = [
    {"step": s, "tokens": s * 100, "train_loss": 6 / s, **({"val_loss": 6.5 / s} if s > 1 else {})} for s in (1, 2, 3)
]
ODDS = [(f"' {name}'", share / 2, share) for name, share in zip("abcdefghijkl", [0.3, *[0.05] * 11], strict=True)]
METRICS = {t: {"known_words": 1 - t / 10, "distinct_trigrams": 0.8 + t / 10} for t in (0.5, 0.8, 1.2)}
REAL = {"known_words": 0.99, "distinct_trigrams": 0.9}
FIGURES = {
    "loss_curve": lambda: curves.loss_curve(ROWS, 1_000),
    "loss_curve before any evaluation": lambda: curves.loss_curve(ROWS[:1], 1_000),
    "loss_curve beside the chapter's": lambda: curves.loss_curve(ROWS, 8_000, book=True),
    "lr_curve": lambda: curves.lr_curve(TrainConfig()),
    "run_curves": lambda: curves.run_curves(ROWS, 1_000, TrainConfig()),
    "pattern_curves": lambda: curves.pattern_curves({"one": ROWS, "other": ROWS[:1], "third": ROWS}, 1_000),
    "histogram of whole numbers": lambda: plots.histogram([1, 2, 2, 300], "How many?", "words", 2, "median"),
    "histogram of one value": lambda: plots.histogram([0.5], "How many?", "ratio"),
    "odds_at_temperatures of few tokens": lambda: plots.odds_at_temperatures({0.8: ODDS[:2]}),
    "diversity_and_validity at one temperature": lambda: plots.diversity_and_validity({0.8: REAL}, REAL),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_title_and_labelled_axes_and_draws(name, tmp_path):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    assert figure.axes[0].get_title() and figure.axes[0].has_data()
    assert any(axes.get_xlabel() for axes in figure.axes)
    figure.savefig(tmp_path / "figure.png")


def test_the_curve_shows_where_a_run_was_resumed():
    rows = [row | ({"resumed_from": row["step"] - 1} if row["step"] > 1 else {}) for row in ROWS]
    axes = curves.loss_curve(rows, 1_000).axes[0]
    lines = [line for line in axes.lines if list(line.get_xdata()) in ([1, 1], [2, 2])]
    assert len(lines) == 2
    assert [text.get_text() for text in axes.get_legend().get_texts()].count("resumed") == 1
    assert "resumed" not in str(
        [text.get_text() for text in curves.loss_curve(ROWS, 1_000).axes[0].get_legend().get_texts()]
    )


def test_the_running_mean_of_a_straight_line_is_that_line():
    line = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
    assert curves._smoothed(line) == line and curves._smoothed([5.0]) == [5.0]
    assert curves._smoothed([0, 0, 0, 5, 0, 0, 0]) == [0, 0, 1, 1, 1, 0, 0]


def test_the_chapters_curve_stands_at_the_same_share_of_the_run():
    figure = curves.run_curves(ROWS, 1_000, TrainConfig(total_steps=600, warmup_steps=10))
    chapter = next(line for line in figure.axes[0].lines if "chapter" in str(line.get_label()))
    assert dict(zip(*chapter.get_data(), strict=True))[600] == 2.45
    assert dict(zip(*chapter.get_data(), strict=True))[50] == 4.20  # its step 1,000 of 12,000


def test_several_small_curves_share_their_scale_and_one_legend():
    figure = curves.pattern_curves({"one": ROWS, "other": ROWS, "third": ROWS}, 1_000)
    assert [axes.get_title() for axes in figure.axes] == ["one", "other", "third", ""]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert [bool(axes.get_legend()) for axes in figure.axes] == [False, False, False, True]


def test_every_value_is_counted_once_in_a_histogram():
    values = [60, 61, 75, 75, 180]
    assert sum(bar.get_height() for bar in plots.histogram(values, "How many?", "words").axes[0].patches) == len(values)


def test_each_token_has_a_bar_of_its_odds_at_each_temperature():
    axes = plots.odds_at_temperatures({0.5: ODDS, 1.2: ODDS[::-1]}).axes[0]
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[row[1] for row in rows[: plots._TOKENS_SHOWN]] for rows in (ODDS, ODDS[::-1])]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["temperature 0.5", "temperature 1.2"]


def test_told_stories_are_lines_over_the_temperature_and_real_ones_are_dashed():
    axes = plots.diversity_and_validity(METRICS, REAL).axes[0]
    solid = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [list(line.get_ydata()) for line in solid] == [[row[key] for row in METRICS.values()] for key in REAL]
    dashed = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--" and len(line.get_ydata())]
    assert dashed == list(REAL.values())


def test_a_letter_that_no_font_has_is_shown_as_its_code_and_nothing_is_warned_of(recwarn, tmp_path):
    unknown = "\U000e0fff"  # a private place: no font has it
    assert plots.legible([f"лиса {unknown}", "fox"]) == (["лиса \\U000e0fff", "fox"], plots.legible(["лиса fox"])[1])
    figure = plots.odds_at_temperatures({0.8: [(f"'从{unknown}'", 0.5, 0.5), ("'$x$ лиса'", 0.1, 0.1)]})
    figure.savefig(tmp_path / "figure.png")
    assert "лиса" in figure.axes[0].get_yticklabels()[1].get_text()
    assert not [warning for warning in recwarn if "lyph" in str(warning.message)]


def test_a_letter_that_only_another_font_has_is_drawn_with_that_one():
    drawn, families = plots.legible(["⊕ ∫ \ue000"], "DejaVu Sans Mono")
    assert drawn[0].startswith("⊕ ∫") and families[0] == "DejaVu Sans Mono"
    drawn, families = plots.legible(["\ue000"])  # STIX, which comes with matplotlib, has letters of its own there
    assert any("STIX" in family for family in families) or drawn == ["\\ue000"]


def test_the_longest_token_leaves_room_for_its_bar(recwarn, tmp_path):
    figure = plots.odds_at_temperatures({0.8: [(f"'{'有一只小狐狸' * 9}'", 0.5, 0.5), ("'a'", 0.1, 0.1)]})
    figure.savefig(tmp_path / "figure.png")
    assert figure.axes[0].get_window_extent().width > figure.bbox.width / 4 and not recwarn.list
