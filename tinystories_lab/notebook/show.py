"""Text made visible: stories as cards, tokens in colour, odds as bars, figures as tables, each a piece of HTML.

Everything takes the page's own text colour, so that it reads on light and on dark.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO

from IPython.display import HTML
from matplotlib.figure import Figure

from tinystories_lab.report import shown

LINE = "1px solid rgba(128, 128, 128, 0.45)"
# Okabe and Ito's colours, thin enough that black and white text both stand out on them.
TINTS = [f"rgba({rgb}, 0.35)" for rgb in ("0, 114, 178", "230, 159, 0", "0, 158, 115", "204, 121, 167")]
CHOSEN = "outline: 2px solid #D55E00; border-radius: 2px"
PROSE = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.45"


def prose(text: str) -> HTML:
    """A text as it was written, line breaks and all; nothing in it is taken for HTML."""
    return HTML(f'<div dir="auto" style="{PROSE}; max-width: 40em">{escape(text)}</div>')


def code(text: str) -> HTML:
    """Letters of one width."""
    return HTML(f'<pre style="overflow-x: auto; margin: 0; background: none">{escape(text)}</pre>')


def cards(texts: Sequence[tuple[str, str]]) -> HTML:
    """(heading, text) pairs side by side as far as the page is wide, below one another on a phone."""
    each = (
        f'<div style="flex: 1 1 15em; min-width: 0; border: {LINE}; border-radius: 6px; padding: 0.6em 0.9em">'
        f'<div style="font-weight: bold; margin-bottom: 0.3em">{escape(heading)}</div>'
        f'<div dir="auto" style="{PROSE}">{escape(text)}</div></div>'
        for heading, text in texts
    )
    return HTML(f'<div style="display: flex; flex-wrap: wrap; gap: 0.7em; max-width: 60em">{"".join(each)}</div>')


def tokens(pieces: Sequence[str], chosen: int | None = None) -> HTML:
    """A text cut into pieces, neighbours in different colours, the one at `chosen` framed."""
    spans = (
        f'<span style="background: {TINTS[index % len(TINTS)]}; {CHOSEN if index == chosen else ""}">{escape(piece)}</span>'
        for index, piece in enumerate(pieces)
    )
    return HTML(f'<div dir="auto" style="{PROSE}; max-width: 40em; line-height: 1.7">{"".join(spans)}</div>')


def bars(rows: Sequence[tuple[str, float, float]], widest: float = 1) -> HTML:
    """A bar a row of (label, share, share to compare with), shares from 0 to 1: the second is an outline behind the first.

    A share of `widest` is as wide as there is room.
    """
    bar = "position: absolute; top: 15%; height: 70%; box-sizing: border-box"
    lines = (
        f'<div style="display: flex; align-items: center; gap: 0.6em">'
        f'<span style="flex: 0 0 9em; font-family: monospace; text-align: right; white-space: pre; overflow: hidden">{escape(label)}</span>'
        f'<div style="position: relative; flex: 1; height: 1.5em">'
        f'<div style="{bar}; width: {min(1, compared / widest):.1%}; border: 1.5px solid rgba(128, 128, 128, 0.9)"></div>'
        f'<div style="{bar}; width: {min(1, share / widest):.1%}; background: rgba(0, 114, 178, 0.65)"></div></div>'
        f'<span style="flex: 0 0 3.6em; text-align: right">{share:.1%}</span></div>'
        for label, share, compared in rows
    )
    return HTML(f'<div style="max-width: 34em">{"".join(lines)}</div>')


def facts(named: Mapping[str, str]) -> HTML:
    """What is the case, in few words each under its name, side by side as far as the page is wide."""
    each = (
        f'<div><div style="opacity: 0.75; font-size: 85%">{escape(name)}</div><b>{escape(value)}</b></div>'
        for name, value in named.items()
    )
    return HTML(f'<div style="display: flex; flex-wrap: wrap; gap: 0.4em 1.6em; max-width: 44em">{"".join(each)}</div>')


def picture(figure: Figure, says: str) -> HTML:
    """A figure as part of a page, no wider than it; `says` is for those who cannot see it."""
    file = BytesIO()
    figure.savefig(file, format="png")
    data = b64encode(file.getvalue()).decode()
    return HTML(f'<img alt="{escape(says)}" style="max-width: 100%" src="data:image/png;base64,{data}">')


def stack(*pieces: HTML) -> HTML:
    """Pieces below one another."""
    return HTML("".join(f'<div style="margin: 0.5em 0">{piece.data}</div>' for piece in pieces))


def table(rows: Sequence[Mapping[str, object]]) -> HTML:
    """Rows with the same keys, which head the columns; numbers stand to the right."""
    cell = f"padding: 0.25em 0.7em; border-bottom: {LINE}"
    head = "".join(f'<th style="{cell}; text-align: left">{escape(key)}</th>' for key in rows[0])
    lines = (
        "".join(
            f'<td dir="auto" style="{cell}; text-align: {"right" if isinstance(value, int | float | None) else "left"}">{escape(shown(value))}</td>'
            for value in row.values()
        )
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return HTML(
        f'<div style="overflow-x: auto"><table style="border-collapse: collapse"><tr>{head}</tr>{body}</table></div>'
    )
