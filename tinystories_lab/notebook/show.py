"""Text made visible: stories as cards, tokens in colour, odds as bars, figures as tables, each a piece of HTML.

Everything takes the page's own text colour, so that it reads on light and on dark.
"""

from collections.abc import Mapping, Sequence
from html import escape

from IPython.core.pylabtools import print_figure
from IPython.display import HTML
from matplotlib.figure import Figure

from tinystories_lab.report import shown

_LINE = "1px solid rgba(128, 128, 128, 0.45)"
# Okabe and Ito's colours, thin enough that black and white text both stand out on them.
_TINTS = [f"rgba({rgb}, 0.35)" for rgb in ("0, 114, 178", "230, 159, 0", "0, 158, 115", "204, 121, 167")]
_CHOSEN = "outline: 2px solid #D55E00; border-radius: 2px"
# Each paragraph runs the way its own script does.
_PROSE = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.45; unicode-bidi: plaintext"


def prose(text: str) -> HTML:
    """A text as it was written, line breaks and all; nothing in it is taken for HTML."""
    return HTML(_div(f"{_PROSE}; max-width: 40em", escape(text)))


def code(text: str) -> HTML:
    """Letters of one width."""
    return HTML(f'<pre style="overflow-x: auto; margin: 0; background: none">{escape(text)}</pre>')


def cards(texts: Sequence[tuple[str, str]]) -> HTML:
    """(heading, text) pairs side by side as far as the page is wide, below one another on a phone."""
    card = f"flex: 1 1 15em; min-width: 0; border: {_LINE}; border-radius: 6px; padding: 0.6em 0.9em"
    head = "font-weight: bold; margin-bottom: 0.3em"
    each = (_div(card, _div(head, escape(heading)), _div(_PROSE, escape(text))) for heading, text in texts)
    return HTML(_div("display: flex; flex-wrap: wrap; gap: 0.7em; max-width: 60em", *each))


def tokens(pieces: Sequence[str], chosen: int | None = None) -> HTML:
    """A text cut into pieces, neighbours in different colours, the one at `chosen` framed."""
    spans = (
        f'<span style="background: {_TINTS[index % len(_TINTS)]}; {_CHOSEN if index == chosen else ""}">{escape(piece)}</span>'
        for index, piece in enumerate(pieces)
    )
    return HTML(_div(f"{_PROSE}; max-width: 40em; line-height: 1.7", *spans))


def bars(rows: Sequence[tuple[str, float, float]], widest: float = 1) -> HTML:
    """A bar a row of (label, share, share to compare with), shares from 0 to 1: the second is an outline behind the first.

    A share of `widest` is as wide as there is room.
    """
    columns = (
        "display: grid; grid-template-columns: 9em 1fr 3.6em; gap: 0.3em 0.6em; line-height: 1.5em; max-width: 34em"
    )
    name = "font-family: monospace; text-align: right; white-space: pre; overflow: hidden"
    bar = "position: absolute; top: 15%; height: 70%; box-sizing: border-box"
    lines = (
        f'<span style="{name}">{escape(label)}</span><div style="position: relative">'
        f'<div style="{bar}; width: {min(1, compared / widest):.1%}; border: 1.5px solid rgba(128, 128, 128, 0.9)"></div>'
        f'<div style="{bar}; width: {min(1, share / widest):.1%}; background: rgba(0, 114, 178, 0.65)"></div></div>'
        f'<span style="text-align: right">{share:.1%}</span>'
        for label, share, compared in rows
    )
    return HTML(_div(columns, *lines))


def facts(named: Mapping[str, str]) -> HTML:
    """What is the case, in few words each under its name, side by side as far as the page is wide."""
    name = "opacity: 0.75; font-size: 85%"
    each = (_div("", _div(name, escape(key)), f"<b>{escape(value)}</b>") for key, value in named.items())
    return HTML(_div("display: flex; flex-wrap: wrap; gap: 0.4em 1.6em; max-width: 44em", *each))


def picture(figure: Figure, says: str) -> HTML:
    """A figure as part of a page, no wider than it; `says` is for those who cannot see it."""
    data = print_figure(figure, bbox_inches=None, base64=True)
    return HTML(f'<img alt="{escape(says)}" style="max-width: 100%" src="data:image/png;base64,{data}">')


def stack(*pieces: HTML) -> HTML:
    """Pieces below one another."""
    return HTML("".join(_div("margin: 0.5em 0", piece.data) for piece in pieces))


def table(rows: Sequence[Mapping[str, object]]) -> HTML:
    """Rows with the same keys, which head the columns; numbers stand to the right."""
    look = f"padding: 0.25em 0.7em; border-bottom: {_LINE}; unicode-bidi: plaintext"

    def cell(value: object) -> str:
        side = "right" if isinstance(value, int | float | None) else "left"
        return f'<td style="{look}; text-align: {side}">{escape(shown(value))}</td>'

    head = "".join(f'<th style="{look}; text-align: left">{escape(key)}</th>' for key in rows[0])
    body = "".join(f"<tr>{''.join(map(cell, row.values()))}</tr>" for row in rows)
    return HTML(_div("overflow-x: auto", f'<table style="border-collapse: collapse"><tr>{head}</tr>{body}</table>'))


def _div(style: str, *inside: str) -> str:
    return f'<div style="{style}">{"".join(inside)}</div>'
