"""HTML for notebooks: stories as cards, coloured tokens, bars of probabilities, and tables.

All pieces use the text colour of the page, so they are readable on light and on dark backgrounds.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd
from IPython.core.pylabtools import print_figure
from IPython.display import HTML
from matplotlib.figure import Figure

from tinystories_lab.analysis.evaluation import format_value

_LINE = "1px solid rgba(128, 128, 128, 0.45)"
# Okabe and Ito's colours, transparent enough to read both black and white text on them.
_TINTS = [f"rgba({rgb}, 0.35)" for rgb in ("0, 114, 178", "230, 159, 0", "0, 158, 115", "204, 121, 167")]
_CHOSEN = "outline: 2px solid #D55E00; border-radius: 2px"
# plaintext: each paragraph runs in the direction of its own script.
_PROSE = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.45; unicode-bidi: plaintext"


def prose(text: str) -> HTML:
    """Return a text with its spaces and line breaks."""
    return HTML(_div(f"{_PROSE}; max-width: 40em", escape(text)))


def code(text: str) -> HTML:
    """Return a text in a monospaced font."""
    return HTML(f'<pre style="overflow-x: auto; margin: 0; background: none">{escape(text)}</pre>')


def cards(texts: Sequence[tuple[str, str]]) -> HTML:
    """Return (heading, text) pairs as cards. They are side by side if the page is wide enough."""
    card = f"flex: 1 1 15em; min-width: 0; border: {_LINE}; border-radius: 6px; padding: 0.6em 0.9em"
    head = "font-weight: bold; margin-bottom: 0.3em"
    each = (_div(card, _div(head, escape(heading)), _div(_PROSE, escape(text))) for heading, text in texts)
    return HTML(_div("display: flex; flex-wrap: wrap; gap: 0.7em; max-width: 60em", *each))


def tokens(texts: Sequence[str], chosen: int | None = None) -> HTML:
    """Return token texts in a row. Neighbours have different colours, and the token at index `chosen` has a frame."""
    spans = []
    for index, text in enumerate(texts):
        frame = _CHOSEN if index == chosen else ""
        spans.append(f'<span style="background: {_TINTS[index % len(_TINTS)]}; {frame}">{escape(text)}</span>')
    return HTML(_div(f"{_PROSE}; max-width: 40em; line-height: 1.7", *spans))


def shaded(rows: Sequence[tuple[str, float, str]], chosen: int | None = None) -> HTML:
    """Return a token for each row of (text, strength of its blue from 0 to 1, tooltip).

    The token at index `chosen` has a frame, and those after it are pale.
    """
    spans = []
    for index, (text, strength, tooltip) in enumerate(rows):
        # The border is a gap between tokens. A line break has no width, so its colour needs a padding.
        style = f"{_shade(strength)}; background-clip: padding-box; border-right: 1px solid transparent"
        style += "; padding-left: 0.5em" if text.startswith("\n") else ""
        if chosen is not None and index >= chosen:
            style += f"; {_CHOSEN}" if index == chosen else "; opacity: 0.6"
        spans.append(f'<span style="{style}" title="{escape(tooltip)}">{escape(text)}</span>')
    return HTML(_div(f"{_PROSE}; max-width: 40em; line-height: 1.7", *spans))


def surprisal(rows: Sequence[tuple[str, float]], widest: float = 6, legend: bool = True) -> HTML:
    """Return the tokens of a text, from rows of (text, probability), as `token_probabilities` returns them.

    The surprisal of a token is -ln(probability), in nats. The higher it is, up to `widest`, the stronger the blue.
    """
    nats = [(text, math.log(1 / probability), probability) for text, probability in rows]
    tokens = shaded([(text, value / widest, f"{value:.2f} nats, probability {p:.2g}") for text, value, p in nats])
    marks = [(f" {widest * third / 3:g}{'+' * (third == 3)} ", third / 3, "") for third in range(4)]
    return stack(tokens, shaded([("surprisal in nats: ", 0, ""), *marks])) if legend else tokens


def bars(rows: Sequence[tuple[str, float, float]], widest: float = 1) -> HTML:
    """Return a filled bar for each row of (label, share, share to compare with); the second share is an outline.

    Shares are from 0 to 1. A share of `widest` takes the full width.
    """
    grid = "display: grid; grid-template-columns: 9em 1fr 3.6em; gap: 0.3em 0.6em; line-height: 1.5em; max-width: 34em"
    name = "font-family: monospace; text-align: right; white-space: pre; overflow: hidden"
    bar = "position: absolute; top: 15%; height: 70%; box-sizing: border-box"
    outline = "1.5px solid rgba(128, 128, 128, 0.9)"
    lines = (
        f'<span style="{name}">{escape(label)}</span><div style="position: relative">'
        f'<div style="{bar}; width: {min(1, compared / widest):.1%}; border: {outline}"></div>'
        f'<div style="{bar}; width: {min(1, share / widest):.1%}; background: rgba(0, 114, 178, 0.65)"></div></div>'
        f'<span style="text-align: right">{share:.1%}</span>'
        for label, share, compared in rows
    )
    return HTML(_div(grid, *lines))


def facts(values: Mapping[str, str]) -> HTML:
    """Return short values, each below its name. They are side by side if the page is wide enough."""
    name = "opacity: 0.75; font-size: 85%"
    each = (_div("", _div(name, escape(key)), f"<b>{escape(value)}</b>") for key, value in values.items())
    return HTML(_div("display: flex; flex-wrap: wrap; gap: 0.4em 1.6em; max-width: 44em", *each))


def picture(figure: Figure, alt: str) -> HTML:
    """Return a figure as an image that fits the page. `alt` describes it for people who cannot see it."""
    data = print_figure(figure, bbox_inches=None, base64=True)
    return HTML(f'<img alt="{escape(alt)}" style="max-width: 100%" src="data:image/png;base64,{data}">')


def columns(*pieces: HTML) -> HTML:
    """Return several pieces side by side if the page is wide enough, or one below the other."""
    each = (_div("flex: 1 1 20em; min-width: 0; max-width: 40em", piece.data) for piece in pieces)
    return HTML(_div("display: flex; flex-wrap: wrap; gap: 0.5em 2em", *each))


def heatmap(rows: Sequence[Sequence[tuple[str, float]]]) -> HTML:
    """Return a table with a cell for each (text, share from 0 to 1): the larger the share, the stronger its blue."""
    cell = f"padding: 0.3em 0.6em; text-align: left; border: {_LINE}; white-space: pre"
    lines = ("".join(f'<td style="{cell}; {_shade(share)}">{escape(text)}</td>' for text, share in row) for row in rows)
    table = "".join(f"<tr>{line}</tr>" for line in lines)
    return HTML(_div("overflow-x: auto", f'<table style="border-collapse: collapse; margin: 0">{table}</table>'))


def stack(*pieces: HTML) -> HTML:
    """Return several pieces, one below the other."""
    return HTML("".join(_div("margin: 0.5em 0", piece.data) for piece in pieces))


def table(rows: Sequence[Mapping[str, object]]) -> HTML:
    """Return a table of rows that have the same keys. The keys are the headings, and numbers are right-aligned."""
    cells = f"padding: 0.25em 0.7em; border-bottom: {_LINE}; unicode-bidi: plaintext"
    rules = {"": "border-collapse: collapse", "th, td": cells, "th": "text-align: left"}
    style = pd.DataFrame(rows, dtype=object).style.hide()
    style = style.set_table_styles([{"selector": selector, "props": rule} for selector, rule in rules.items()])
    style = style.format(format_value, escape="html").format_index(escape="html", axis="columns")
    # Each cell has a rule of its own, because a rule for all `td` would override the rule for numbers.
    style = style.map(lambda value: f"text-align: {'right' if isinstance(value, int | float | None) else 'left'}")
    return HTML(_div("overflow-x: auto", style.to_html()))


def _shade(strength: float) -> str:
    """Return the style of a background from none (0) to the strongest (1) on which black and white text are readable."""
    return f"background: rgba(0, 114, 178, {0.8 * min(1, strength):.3f})"


def _div(style: str, *inside: str) -> str:
    return f'<div style="{style}">{"".join(inside)}</div>'
