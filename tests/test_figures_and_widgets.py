import pytest
from matplotlib.figure import Figure

from tinystories_lab.checkpoint import load_checkpoint
from tinystories_lab.notebook import curves, plots
from tinystories_lab.notebook.live import LiveRun
from tinystories_lab.recipe import TrainConfig
from tinystories_lab.trainer import train

ROWS = [
    {"step": s, "tokens": s * 100, "train_loss": 6 / s, **({"val_loss": 6.5 / s} if s > 1 else {})} for s in (1, 2, 3)
]
FIGURES = {
    "loss_curve": lambda: curves.loss_curve(ROWS, 1_000),
    "loss_curve before any evaluation": lambda: curves.loss_curve(ROWS[:1], 1_000),
    "loss_curve beside the chapter's": lambda: curves.loss_curve(ROWS, 8_000, book=True),
    "lr_curve": lambda: curves.lr_curve(TrainConfig()),
    "histogram of whole numbers": lambda: plots.histogram([1, 2, 2, 300], "How many?", "words", 2, "median"),
    "histogram of one value": lambda: plots.histogram([0.5], "How many?", "ratio"),
    "bars": lambda: plots.bars({"a": 1.0, "b": 2.0}, "Which?", "share"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_title_and_labelled_axes_and_draws(name, tmp_path):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    assert axes.get_title() and axes.get_xlabel() and axes.has_data()
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


def test_every_value_is_counted_once_in_a_histogram():
    values = [60, 61, 75, 75, 180]
    assert sum(bar.get_height() for bar in plots.histogram(values, "How many?", "words").axes[0].patches) == len(values)


def test_a_live_run_gives_every_row_and_leaving_it_saves(tmp_path, data_dir, model_config, train_config):
    def live():
        rows = train(tmp_path, data_dir, model_config, train_config)
        return LiveRun(rows, tmp_path / "loss.jsonl", train_config.total_steps, model_config.vocab_size)

    for row in live():
        if row["step"] == 6:
            break
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 6
    assert [row["step"] for row in live()] == [9, 12]
