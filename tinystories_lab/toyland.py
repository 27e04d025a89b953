"""A story is a plot with its blanks filled in: choose a plot, a cast and a wording for every line, then write it out.

All that can be said stands in ``toyland.yaml``, whose first lines explain its notation. It is read once, into plain
lists. Each plot can be told in so many ways that no two of 50,000 stories are equal, though none is remembered.
"""

import itertools
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_Row = dict[str, str]  # what fills the blanks: {"toy": "ball", "a toy": "a ball", ...}
_BLANK = re.compile(r"\{([^{}]+)\}")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_AN = re.compile(r"(?!uni|use|one\b|once\b)[aeiou]|hour|honest", re.IGNORECASE)  # by sound: an egg, but a unicorn


class _Plot(NamedTuple):
    """A plot ready to tell. Every choice has two levels: a way to say it, then one of the wordings of that way."""

    title: str
    roles: list[str]
    draws: list[list[list[_Row]]]
    paragraphs: list[list[list[list[str]]]]


def tell_stories(count: int, seed: int = 0) -> Iterator[str]:
    """Yield `count` stories for small children, each of 50 to 180 words in paragraphs parted by a blank line.

    A seed tells the same stories on every machine, and a shorter call tells the beginning of a longer one. A `count`
    or `seed` that is not an integer, or a negative `count`, raises a ValueError at the call.

    >>> first, second = tell_stories(2, seed=7)
    """
    if not hasattr(count, "__index__") or count < 0:
        raise ValueError(f"count must be an integer of 0 or more, not {count!r}.")
    if not hasattr(seed, "__index__"):
        raise ValueError(f"seed must be an integer, not {seed!r}.")
    return _tell(_toyland(), count, seed)


def _tell(plots: list[_Plot], count: int, seed: int) -> Iterator[str]:
    # A text as the seed keeps -1 apart from 1; random() is the method whose sequence Python promises never to change.
    dice = random.Random(f"toyland {seed}").random
    for _ in range(count):
        plot = plots[int(dice() * len(plots))]
        names: set[str] = set()
        while len(names) < len(plot.roles):  # two people with one name would confuse everybody: draw again
            words: _Row = {}
            for draw in plot.draws:
                ways = draw[int(dice() * len(draw))]
                words.update(ways[int(dice() * len(ways))])
            names = {words[role] for role in plot.roles}
        ways_to_say = [[line[int(dice() * len(line))] for line in lines] for lines in plot.paragraphs]
        said = [[way[int(dice() * len(way))] for way in ways] for ways in ways_to_say]
        story = "\n\n".join(" ".join(filter(None, sentences)) for sentences in said)
        while "{" in story:  # what fills a blank may have blanks of its own
            story = story.format_map(words)
        yield story


@cache
def _toyland() -> list[_Plot]:
    land = yaml.safe_load(Path(__file__).with_name("toyland.yaml").read_text(encoding="utf-8"))
    return [_read_plot(title, plot, land) for title, plot in land["plots"].items()]


def _read_plot(title: str, plot: dict[str, Any], land: dict[str, Any]) -> _Plot:
    draws = [_choices(name, source) for name, source in (land["words"] | plot["pick"]).items()]
    for role, group in plot["cast"].items():
        draws.append([_players(role, kind, land["pronouns"]) for kind in land["cast"][group]])
    draws = [[[_forms(row, title) for row in way] for way in draw] for draw in draws]
    every_row = [row for draw in draws for way in draw for row in way]
    # Keep only the blanks this plot can come to, from its own text or through what fills another blank.
    used, new = set(plot["cast"]), set(_BLANK.findall(plot["story"]))
    while new:
        used |= new
        new = {blank for row in every_row for name in new & row.keys() for blank in _BLANK.findall(row[name])} - used
    if unfilled := used - {name for row in every_row for name in row}:
        raise ValueError(f"The plot '{title}' has blanks that nothing fills: {', '.join(sorted(unfilled))}.")
    draws = [[[{name: row[name] for name in row if name in used} for row in way] for way in draw] for draw in draws]
    draws = [draw for draw in draws if any(row for way in draw for row in way)]
    return _Plot(title, list(plot["cast"]), draws, [_lines(text) for text in plot["story"].strip().split("\n\n")])


def _lines(text: str) -> list[list[list[str]]]:
    """The lines of a text; a line is a list of ways to say it, and a way is a list of its wordings."""
    lines: list[list[list[str]]] = []
    for line in re.sub(r"\n +", " ", text.strip()).splitlines():
        lines += [] if line.startswith("/") else [[]]
        # Every other part of "a [red|blue] hat" stood in brackets; its wordings are "a red hat" and "a blue hat".
        parts = _BRACKETS.split(line.removeprefix("/"))
        options = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
        lines[-1].append([" ".join("".join(pieces).split()) for pieces in itertools.product(*options)])
    return lines


def _choices(name: str, source: Any) -> list[list[_Row]]:
    if isinstance(source, str):
        return [[{name: wording} for wording in way] for way in _lines(source)[0]]
    return [[row] if isinstance(row, dict) else [{name: wording} for wording in _lines(row)[0][0]] for row in source]


def _players(role: str, kind: dict[str, Any], pronouns: dict[str, _Row]) -> list[_Row]:
    words = {f"{role} {word}": text for word, text in kind.items() if word not in pronouns}
    players: list[_Row] = []
    for gender, own in pronouns.items():
        spoken_of = {f"{role} {word}": text for word, text in own.items()} | (own if role == "hero" else {})
        players += [{role: name} | words | spoken_of for name in kind.get(gender, [])]
    return players


def _forms(row: _Row, title: str) -> _Row:
    """The row with the capital and the article forms of its words: {toy}, {Toy}, {a toy}, {A toy}."""
    forms: _Row = {}
    for name, text in row.items():
        if not isinstance(text, str):
            raise ValueError(f"The plot '{title}': put quotes around the text of '{name}', which is now {text!r}.")
        article = "{a " + text[1:] if text.startswith("{") else f"{'an' if _AN.match(text) else 'a'} {text}"
        forms |= {name: text, _capital(name): _capital(text), f"a {name}": article, f"A {name}": _capital(article)}
    return forms


def _capital(text: str) -> str:
    return re.sub("[A-Za-z]", lambda letter: letter[0].upper(), text, count=1)
