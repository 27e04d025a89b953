"""The curves of a run: titled, labelled, and drawn from the values they were given."""

import pytest

from tinystories_lab.analysis.curves import compare_curves, failure_mode_curves, loss_curve, lr_curve, run_curves
from tinystories_lab.config import TrainConfig

ROWS = [
    {"step": s, "tokens": s * 100, "train_loss": 6 / s, **({"val_loss": 6.5 / s} if s > 1 else {})} for s in (1, 2, 3)
]
RUNS = {"one": [(10, 3.0), (20, 2.0)], "other": [(5, 2.5)]}
FIGURES = {
    "loss_curve": lambda: loss_curve(ROWS, 1_000),
    "loss_curve before any evaluation": lambda: loss_curve(ROWS[:1], 1_000),
    "loss_curve by tokens": lambda: loss_curve(ROWS, 8_000, by_tokens=True),
    "lr_curve": lambda: lr_curve(TrainConfig()),
    "run_curves": lambda: run_curves(ROWS, 1_000, TrainConfig()),
    "failure_mode_curves": lambda: failure_mode_curves({"one": ROWS, "other": ROWS[:1], "third": ROWS}, 1_000),
    "compare_curves": lambda: compare_curves(RUNS),
}


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_title_and_labelled_axes_and_can_be_drawn(name):
    figure = FIGURES[name]()
    assert figure.axes[0].get_title() and figure.axes[0].get_ylabel() and figure.axes[0].has_data()
    assert any(axes.get_xlabel() for axes in figure.axes)
    figure.draw_without_rendering()


def test_the_loss_curve_shows_where_a_run_was_resumed():
    rows = [row | ({"resumed_from": row["step"] - 1} if row["step"] > 1 else {}) for row in ROWS]
    axes = loss_curve(rows, 1_000).axes[0]
    assert sum(list(line.get_xdata()) in ([1, 1], [2, 2]) for line in axes.lines) == 2
    assert legend_of(axes).count("resumed") == 1
    assert "resumed" not in legend_of(loss_curve(ROWS, 1_000).axes[0])


def test_the_running_mean_is_over_five_rows_and_keeps_a_straight_line_straight():
    straight = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
    for losses, means in ((straight, straight), ([5.0], [5.0]), ([0, 0, 0, 5, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0])):
        rows = [{"step": step, "train_loss": loss} for step, loss in enumerate(losses)]
        (line,) = (line for line in loss_curve(rows, 1_000).axes[0].lines if "mean" in str(line.get_label()))
        assert list(line.get_ydata()) == means


def test_the_chapters_curve_is_drawn_at_its_tokens_and_only_if_asked_for():
    lines = loss_curve(ROWS, 8_000, by_tokens=True, chapter=True).axes[0].lines
    (chapter,) = (line for line in lines if "chapter" in str(line.get_label()))
    loss_at = dict(zip(*chapter.get_data(), strict=True))
    assert loss_at[12_000 * 16_384] == 2.45 and loss_at[1_000 * 16_384] == 4.20
    lines = loss_curve(ROWS, 8_000, by_tokens=True).axes[0].lines
    assert not [line for line in lines if "chapter" in str(line.get_label())]


def test_small_curves_share_their_scale_and_one_legend():
    figure = failure_mode_curves({"one": ROWS, "other": ROWS, "third": ROWS}, 1_000)
    assert [axes.get_title() for axes in figure.axes] == ["one", "other", "third", ""]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert [bool(axes.get_legend()) for axes in figure.axes] == [False, False, False, True]


def test_each_run_is_a_line_of_its_own_colour_and_marker_through_its_evaluations():
    axes = compare_curves(RUNS).axes[0]
    assert [list(zip(*line.get_data(), strict=True)) for line in axes.lines] == list(RUNS.values())
    assert legend_of(axes) == list(RUNS)
    assert len({line.get_color() for line in axes.lines}) == 2 == len({line.get_marker() for line in axes.lines})
