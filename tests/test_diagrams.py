"""Diagrams and the figures of notebooks 1 and 2: what is drawn is what was given, and letters stay inside of the figure."""

import re

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tinystories_lab.model import GPTConfig, GPTMini
from tinystories_lab.notebook import plots
from tinystories_lab.notebook.diagrams import _WRITTEN, network, pipeline, windows
from tinystories_lab.tokenizer import END_OF_TEXT

PIECES = [*["Once", " upon"] * 10, ".", END_OF_TEXT, "On", " a", " sunny", "\n\n", *[" day"] * 60, END_OF_TEXT, "Lily"]
FIGURES = {
    **{f"pipeline, stage {stage}": lambda stage=stage: pipeline(stage) for stage in range(1, 6)},
    "a window over an end": lambda: windows(PIECES, 19, 20),
    "a window at the start": lambda: windows(PIECES, 0, 1),
    "the last window": lambda: windows(PIECES, len(PIECES) - 11, 10),
    "a window of long words": lambda: windows(["x" * 40, "y" * 5] * 4, 0, 4),
    "the network": lambda: network(GPTConfig()),
    "a large network": lambda: network(GPTConfig(vocab_size=65_536, n_layer=48, n_head=16, d_model=2_048)),
    "coverage": lambda: plots.coverage([100, 10, 1, 1]),
    "coverage of one word": lambda: plots.coverage([3]),
    "points": lambda: plots.points({258: 1.0, 8_000: 4.1}, "Bytes", "tokens", "bytes"),
}


def letters(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


@pytest.mark.parametrize("name", FIGURES)
def test_every_letter_is_inside_of_the_figure_and_large_enough_for_a_phone(name):
    figure = FIGURES[name]()
    figure.canvas.draw()
    frame = figure.bbox
    for text in figure.axes[0].texts:
        if text.get_text():
            extent = text.get_window_extent()
            assert text.get_fontsize() >= 11
            assert extent.x0 >= 0 and extent.y0 >= 0 and extent.x1 <= frame.x1 and extent.y1 <= frame.y1, text


def test_the_pipeline_names_all_notebooks_and_what_each_leaves_and_marks_where_you_are():
    for stage, name in enumerate(_WRITTEN, start=1):
        figure = pipeline(stage)
        assert all(part in " ".join(letters(figure)) for pair in _WRITTEN.items() for part in pair)
        marked = [box for box in figure.axes[0].patches if to_hex(box.get_facecolor()).upper() == plots.ORANGE]
        assert len(marked) == 1
        (bold,) = [text for text in figure.axes[0].texts if text.get_weight() == "bold"]
        assert bold.get_text() == name
    with pytest.raises(ValueError, match="stage is 6"):
        pipeline(6)


def test_under_each_token_of_the_window_stands_the_one_after_it():
    figure = windows(PIECES, 19, 20)
    placed = {}
    for text in figure.axes[0].texts:
        placed.setdefault(round(text.get_position()[1], 3), []).append(text.get_text())
    x, y = (row for row in placed.values() if row[0] in ("x", "y"))
    shown = len(x) - 1
    assert shown >= 4 and len(y) == len(x)
    assert x[1:] == PIECES[19 : 19 + shown] and y[1:] == PIECES[20 : 20 + shown]
    assert END_OF_TEXT in x and END_OF_TEXT in y


def test_the_strip_parts_stories_at_their_ends_and_the_window_is_as_long_as_it_is():
    axes = windows(PIECES, 19, 20).axes[0]
    story_1, story_2, story_3, window = axes.patches[:4]
    scale = story_1.get_width() / PIECES.index(END_OF_TEXT)
    assert window.get_width() == pytest.approx(20 * scale)
    assert window.get_x() - story_1.get_x() == pytest.approx(19 * scale)
    assert story_2.get_width() == pytest.approx(64 * scale) and story_3.get_width() == pytest.approx(scale)


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (len(PIECES) - 10, 10), (0, 0)])
def test_a_window_that_does_not_fit_says_so(start, length):
    with pytest.raises(ValueError, match=f"the window of {length} tokens at {start}"):
        windows(PIECES, start, length)


def test_coverage_marks_how_many_of_the_commonest_words_make_up_the_share():
    axes = plots.coverage([1, 6, 2, 1], share=0.8).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["2 words: 80% of the text"]
    assert list(axes.lines[0].get_ydata()) == [60, 80, 90, 100]


def test_points_says_the_height_of_each():
    assert letters(plots.points({258: 1.0, 8_000: 4.126}, "Bytes", "tokens", "bytes")) == ["1.00", "4.13"]


@pytest.mark.parametrize("config", [GPTConfig(), GPTConfig(tied=False)], ids=["tied", "a head of its own"])
def test_the_numbers_in_the_network_add_up_to_the_model(config):
    lines = [line for text in letters(network(config)) for line in text.splitlines() if "(" not in line]
    size = {line: int(found[0].replace(",", "")) for line in lines if (found := re.findall(r"\d[\d,]{4,}", line))}
    of_layer = sum(number for line, number in size.items() if line[0].isdigit())
    of_tables = sum(number for line, number in size.items() if not line[0].isdigit())
    norms = (2 * config.n_layer + 1) * config.d_model
    assert of_tables + config.n_layer * of_layer + norms == GPTMini(config).count_parameters()
