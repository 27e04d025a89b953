"""Diagrams: they show what they are given, and every text is inside the figure."""

import re

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tinystories_lab.analysis.curves import ORANGE
from tinystories_lab.model import GPTConfig, GPTMini
from tinystories_lab.notebook.diagrams import _NOTEBOOKS, network, pipeline, windows
from tinystories_lab.tokenizer import END_OF_TEXT

TEXTS = [*["Once", " upon"] * 10, ".", END_OF_TEXT, "On", " a", " sunny", "\n\n", *[" day"] * 60, END_OF_TEXT, "Lily"]
FIGURES = {
    "the pipeline": lambda: pipeline(5),
    "a window over the end of a story": lambda: windows(TEXTS, 19, 20),
    "the first window": lambda: windows(TEXTS, 0, 1),
    "the last window": lambda: windows(TEXTS, len(TEXTS) - 11, 10),
    "a window of long words": lambda: windows(["x" * 40, "y" * 5] * 4, 0, 4),
    "the network": lambda: network(GPTConfig()),
    "a large network": lambda: network(GPTConfig(vocab_size=65_536, n_layer=48, n_head=16, d_model=2_048)),
}


def words_in(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def test_every_text_is_inside_the_figure_and_large_enough_for_a_phone():
    for name, make in FIGURES.items():
        figure = make()
        figure.canvas.draw()
        for text in figure.axes[0].texts:
            if text.get_text():
                extent, frame = text.get_window_extent(), figure.bbox
                assert extent.x0 >= 0 and extent.y0 >= 0 and extent.x1 <= frame.x1 and extent.y1 <= frame.y1, (
                    name,
                    text,
                )
                assert text.get_fontsize() >= 11, (name, text)


def test_the_pipeline_names_all_notebooks_and_their_files_and_highlights_one():
    for stage, name in enumerate(_NOTEBOOKS, start=1):
        figure = pipeline(stage)
        assert all(part in " ".join(words_in(figure)) for pair in _NOTEBOOKS.items() for part in pair)
        highlighted = [box for box in figure.axes[0].patches if to_hex(box.get_facecolor()).upper() == ORANGE]
        (bold,) = [text for text in figure.axes[0].texts if text.get_weight() == "bold"]
        assert len(highlighted) == 1 and bold.get_text() == name
    with pytest.raises(ValueError, match="stage is 6"):
        pipeline(6)


def test_each_token_of_the_window_stands_above_the_next_one():
    lines = {}
    for text in windows(TEXTS, 19, 20).axes[0].texts:
        assert not text.get_parse_math(), "dollar signs in a token would start a formula"
        lines.setdefault(round(text.get_position()[1], 3), []).append(text.get_text())
    x, y = (line for line in lines.values() if line[0] in ("x", "y"))
    shown = len(x) - 1
    assert shown >= 4 and END_OF_TEXT in x and END_OF_TEXT in y
    assert x[1:] == TEXTS[19 : 19 + shown] and y[1:] == TEXTS[20 : 20 + shown]


def test_stories_and_window_are_drawn_to_scale():
    story_1, story_2, story_3, window = windows(TEXTS, 19, 20).axes[0].patches[:4]
    scale = story_1.get_width() / TEXTS.index(END_OF_TEXT)
    assert window.get_width() == pytest.approx(20 * scale)
    assert window.get_x() - story_1.get_x() == pytest.approx(19 * scale)
    assert story_2.get_width() == pytest.approx(64 * scale) and story_3.get_width() == pytest.approx(scale)


def test_a_window_that_does_not_fit_is_refused():
    for start, length in ((-1, 5), (len(TEXTS) - 10, 10), (0, 0)):
        with pytest.raises(ValueError, match=f"a window of {length} tokens at {start}"):
            windows(TEXTS, start, length)


def test_the_numbers_in_the_network_add_up_to_the_model():
    for config in (GPTConfig(), GPTConfig(tie_embeddings=False)):
        lines = [line for text in words_in(network(config)) for line in text.splitlines() if "(" not in line]
        sizes = {line: int(found[0].replace(",", "")) for line in lines if (found := re.findall(r"\d[\d,]{4,}", line))}
        per_layer = sum(size for line, size in sizes.items() if line[0].isdigit())
        tables = sum(size for line, size in sizes.items() if not line[0].isdigit())
        norms = (2 * config.n_layer + 1) * config.d_model
        assert tables + config.n_layer * per_layer + norms == GPTMini(config).count_parameters()
