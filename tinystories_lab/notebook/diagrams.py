"""Diagrams of the notebooks and their files, of a training window in a token file, and of the model."""

from collections.abc import Sequence
from itertools import pairwise
from unicodedata import east_asian_width

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tinystories_lab.analysis.curves import BLUE, DPI, GREEN, GREY, ORANGE, WIDTH, printable
from tinystories_lab.model import GPTConfig
from tinystories_lab.tokenizer import END_OF_TEXT

_NOTEBOOKS = {  # each with the files it writes
    "1 prepare": "stories/",
    "2 tokenizer": "tokenizer.json, train.bin, val.bin",
    "3 train": "last.pt, final.pt, loss.jsonl",
    "4 generate": "samples.jsonl",
    "5 retrospective": "report.md, ratings.jsonl",
}
_BLUE_TINT, _GREEN_TINT = "#DDEBF5", "#CCECE3"
_PLUS = {"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": GREY}
_LETTER = 0.105  # width in inches of a letter at 12 points, spacing included


def pipeline(stage: int) -> Figure:
    """Draw the five notebooks with the files they write. `stage` is highlighted; raises ValueError if not 1 to 5."""
    if not 1 <= stage <= len(_NOTEBOOKS):
        raise ValueError(f"stage is {stage}; it must be from 1 to {len(_NOTEBOOKS)}")
    pitch = 0.62
    axes = _blank(pitch * len(_NOTEBOOKS))
    for number, (notebook, files) in enumerate(_NOTEBOOKS.items(), start=1):
        y = pitch * (number - 1) + 0.1
        colour, weight = (ORANGE, "bold") if number == stage else (_BLUE_TINT, "normal")
        _box(axes, 0.1, y, 1.7, 0.4, notebook, font={"weight": weight}, facecolor=colour, edgecolor=GREY)
        _write(axes, 2.0, y + 0.2, f"writes {files}")
        if number < len(_NOTEBOOKS):
            axes.annotate("", (0.95, y + pitch), (0.95, y + 0.4), arrowprops={"arrowstyle": "->", "color": GREY})
    return axes.figure


def windows(texts: Sequence[str], start: int, length: int) -> Figure:
    """Draw the beginning of a token file as a strip of stories, and mark the window of `length` tokens at `start`.

    `texts` has the text of each token. Below the strip are the first tokens of the window (x). Below each of them is
    its target (y), which is the next token. Raises ValueError for a window that does not fit.
    """
    if length < 1 or not 0 <= start < len(texts) - length:
        found = f"a window of {length} tokens at {start} does not fit into {len(texts)} tokens"
        raise ValueError(f"{found} (the last target is one token further): choose another start or length")
    axes = _blank(2.9)
    left, right, top = 0.1, WIDTH - 0.1, 0.55
    scale = (right - left) / len(texts)
    ends = [place for place, text in enumerate(texts) if text == END_OF_TEXT]
    for number, (before, end) in enumerate(pairwise([-1, *ends, len(texts)])):
        width = (end - before - 1) * scale
        name = f"story {number + 1}" if width > 9 * _LETTER else ""
        _box(axes, left + (before + 1) * scale, top, width, 0.4, name, facecolor=(BLUE, GREEN)[number % 2], alpha=0.3)
    axes.vlines([left + (end + 0.5) * scale for end in ends], top - 0.06, top + 0.46, color="black", linewidth=2)
    _write(axes, left, 0.25, f"the beginning of train.bin: | is {END_OF_TEXT}")
    x = left + start * scale
    _box(axes, x, top - 0.06, length * scale, 0.52, facecolor="none", edgecolor=ORANGE, linewidth=2.5)
    _write(axes, min(x, right - 20 * _LETTER), top + 0.62, f"a window of {length} tokens")

    column, y = left + 0.3, 1.6
    axes.plot([x, column], [top + 0.46, y - 0.05], color=ORANGE, linewidth=1)
    for row, name in enumerate("xy"):
        _write(axes, left, y + 0.5 * row + 0.2, name, weight="bold")
    labels, families = printable([text.replace("\n", "\\n") for text in texts[start : start + length + 1]])
    for token, target in pairwise(labels):
        width = max(_width_of(token), _width_of(target), 2 * _LETTER) + 0.08
        if column + width > right - 0.2:
            break
        font = {"family": families}
        _box(axes, column, y, width, 0.4, token, font=font, facecolor="white", edgecolor=GREY)
        _box(axes, column, y + 0.5, width, 0.4, target, font=font, facecolor=ORANGE, edgecolor=GREY, alpha=0.35)
        column += width
    _write(axes, column + 0.05, y + 0.45, "…")
    _write(axes, left, y + 1.15, "below each token of x is its target in y: the next token")
    return axes.figure


def network(config: GPTConfig) -> Figure:
    """Draw GPTMini with the shapes and parameter counts of `config`, from ids (bottom) to logits (top)."""
    axes = _blank(5.5)
    stream, side, line = 1.8, 4.15, {"color": GREY, "linewidth": 1.2}
    embedding, attention = config.vocab_size * config.d_model, 4 * config.d_model**2
    feed_forward = 3 * config.d_model * config.d_hidden
    _box(axes, 0.1, 1.35, WIDTH - 0.2, 2.95, facecolor="none", edgecolor=GREY, linestyle="--")
    _write(axes, WIDTH - 0.2, 4.18, f"{config.n_layer} such blocks", ha="right", va="bottom")
    axes.annotate("", (stream, 0.5), (stream, 5), arrowprops={"arrowstyle": "-|>", "color": GREY}, zorder=0)
    for top, name, size in ((1.65, "feed-forward", feed_forward), (3.05, "attention", attention)):
        axes.plot([stream, side, side], [top + 0.78, top + 0.78, top + 0.55], **line)
        axes.annotate("", (stream + 0.1, top - 0.12), (side, top - 0.12), arrowprops={"arrowstyle": "-|>", **line})
        axes.plot([side, side], [top - 0.12, top], **line)
        _box(axes, 2.95, top, 2.4, 0.55, f"norm, then {name}\n{size:,}", facecolor=_BLUE_TINT, edgecolor=BLUE)
        axes.text(stream, top - 0.13, "+", ha="center", va="center", fontsize=13, bbox=_PLUS)
    _write(axes, stream - 0.12, 2.22, f"(B, T, {config.d_model})", ha="right")
    grey = {"facecolor": "#EEEEEE", "edgecolor": GREY}
    green = {"facecolor": _GREEN_TINT, "edgecolor": GREEN}
    _box(axes, 0.4, 5.05, 2.8, 0.4, "ids  (B, T)", **grey)
    _box(axes, 0.4, 4.45, 2.8, 0.4, f"embedding  {embedding:,}", **green)
    head = "the embedding" if config.tie_embeddings else f"head  {embedding:,}"
    _box(axes, 0.4, 0.75, 2.8, 0.4, f"norm, then {head}", **green)
    _box(axes, 0.4, 0.1, 2.8, 0.4, f"logits  (B, T, {config.vocab_size:,})", **grey)
    return axes.figure


def _blank(height: float) -> Axes:
    """Return axes without a frame. The unit is an inch, and the upper left corner is (0, 0)."""
    axes = Figure(figsize=(WIDTH, height), dpi=DPI).add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def _width_of(text: str) -> float:
    """Return the width of a text in inches. A Chinese, Japanese or Korean character is as wide as two letters."""
    return sum(2 if east_asian_width(letter) in "FW" else 1 for letter in text) * _LETTER


def _write(axes: Axes, x: float, y: float, text: str, **look: object) -> None:
    """Write a text unchanged: a dollar sign in a token does not start a formula."""
    axes.text(x, y, text, **{"va": "center", "fontsize": 12, "parse_math": False} | look)


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str = "", **look: object) -> None:
    """Draw a rectangle with a text in its middle. The value of `font` is for the text."""
    font = look.pop("font", {})
    axes.add_patch(Rectangle((x, y), width, height, **look))
    _write(axes, x + width / 2, y + height / 2, text, ha="center", **font)
