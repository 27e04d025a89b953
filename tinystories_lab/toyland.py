"""A story is a plot with its blanks filled in: choose a plot, a cast and a wording for every line, then write it out.

Everything that can be said stands in ``toyland.yaml``, whose first lines explain its notation. This module reads that
file once, turns each plot into plain lists of choices, and from then on a story is a handful of dice rolls and one
fill-in of the blanks. There are so many ways to tell each plot that no story has to be remembered to avoid telling it
twice.
"""

from __future__ import annotations

import itertools
import operator
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Row = dict[str, str]  # what the blanks hold: {"toy": "ball", "a toy": "a ball", ...}
BLANK = re.compile(r"\{([^{}]+)\}")
BRACKETS = re.compile(r"\[([^\[\]]*)\]")
AN = re.compile(r"(?!uni|use|one\b|once\b)[aeiou]|hour|honest", re.IGNORECASE)  # goes by sound: an egg, a unicorn


@dataclass(frozen=True)
class Plot:
    """One plot, ready to tell. Its choices have two levels: first a way to say it, then a wording of that way."""

    title: str
    roles: list[str]
    draws: list[list[list[Row]]]
    paragraphs: list[list[list[list[str]]]]


def tell_stories(count: int, seed: int = 0) -> Iterator[str]:
    """Yield `count` short stories for small children, each of 50 to 180 words in paragraphs parted by a blank line.

    The same seed tells the same stories in the same order on every machine, and a shorter call tells the beginning of
    a longer one. Memory stays the same however many are told. A `count` that is negative or not an integer, or a
    `seed` that is not an integer, raises a ValueError at once, before the first story.

    >>> first, second = tell_stories(2, seed=7)
    """
    for name, value in (("count", count), ("seed", seed)):
        try:
            operator.index(value)
        except TypeError:
            raise ValueError(f"{name} must be an integer, not {value!r}.") from None
    if count < 0:
        raise ValueError(f"count must be 0 or more, not {count}.")
    return _tell(_toyland(), count, seed)


def _tell(plots: list[Plot], count: int, seed: int) -> Iterator[str]:
    # A text as seed keeps -1 apart from 1; random() is the one method whose sequence Python promises to keep.
    dice = random.Random(f"toyland {operator.index(seed)}").random
    for _ in range(count):
        plot = plots[int(dice() * len(plots))]
        names: set[str] = set()
        while len(names) < len(plot.roles):  # two people with one name would confuse everybody: draw again
            words: Row = {}
            for draw in plot.draws:
                ways = draw[int(dice() * len(draw))]
                words.update(ways[int(dice() * len(ways))])
            names = {words[role] for role in plot.roles}
        paragraphs = []
        for lines in plot.paragraphs:
            chosen = [line[int(dice() * len(line))] for line in lines]
            said = [wordings[int(dice() * len(wordings))] for wordings in chosen]
            paragraphs.append(" ".join(filter(None, said)))
        story = "\n\n".join(paragraphs)
        while "{" in story:  # what fills a blank may itself have blanks
            story = story.format_map(words)
        yield story


@cache
def _toyland() -> list[Plot]:
    return _read(yaml_text=Path(__file__).with_name("toyland.yaml").read_text(encoding="utf-8"))


def _read(yaml_text: str) -> list[Plot]:
    import yaml  # here, so that importing the package costs nothing

    land = yaml.safe_load(yaml_text)
    return [_read_plot(title, plot, land) for title, plot in land["plots"].items()]


def _read_plot(title: str, plot: dict[str, Any], land: dict[str, Any]) -> Plot:
    draws = {name: _choices(name, source) for name, source in (land["words"] | plot.get("pick", {})).items()}
    for role, group in plot["cast"].items():
        draws[role] = [_players(role, kind, land["pronouns"]) for kind in land["cast"][group]]
    all_forms = [[[_forms(row) for row in way] for way in draw] for draw in draws.values()]
    every_row = [row for draw in all_forms for way in draw for row in way]

    # Keep only the blanks that this plot can come to, straight from its text or through what fills another blank.
    used, new = set(plot["cast"]), set(BLANK.findall(plot["story"]))
    while new:
        used |= new
        new = {blank for row in every_row for name in new & row.keys() for blank in BLANK.findall(row[name])} - used
    if unfilled := used - {name for row in every_row for name in row}:
        raise ValueError(f"The plot '{title}' has blanks that nothing fills: {', '.join(sorted(unfilled))}.")
    kept = [[[{name: row[name] for name in row.keys() & used} for row in way] for way in draw] for draw in all_forms]
    paragraphs = [_lines(paragraph) for paragraph in plot["story"].strip().split("\n\n")]
    return Plot(
        title, list(plot["cast"]), [draw for draw in kept if any(row for way in draw for row in way)], paragraphs
    )


def _lines(text: str) -> list[list[list[str]]]:
    """Lines of a text; each is a list of the ways to say it, and each way a list of its wordings."""
    lines: list[list[list[str]]] = []
    for line in re.sub(r"\n +", " ", text.strip()).splitlines():
        lines += [] if line.startswith("/") else [[]]
        lines[-1].append(_wordings(line.removeprefix("/").strip()))
    return lines


def _wordings(text: str) -> list[str]:
    """'a [red|blue] hat' gives 'a red hat' and 'a blue hat'."""
    parts = [part.split("|") if odd % 2 else [part] for odd, part in enumerate(BRACKETS.split(text))]
    return ["".join(pieces) for pieces in itertools.product(*parts)]


def _choices(name: str, source: Any) -> list[list[Row]]:
    if isinstance(source, str):
        return [[{name: wording} for wording in way] for way in _lines(source)[0]]
    return [[row] if isinstance(row, dict) else [{name: wording} for wording in _wordings(row)] for row in source]


def _players(role: str, kind: dict[str, Any], pronouns: dict[str, Row]) -> list[Row]:
    players = []
    for gender, own_pronouns in pronouns.items():
        words = {word: text for word, text in kind.items() if word not in pronouns} | own_pronouns
        for name in kind.get(gender, []):
            players.append({role: name} | {f"{role} {word}": text for word, text in words.items()})
            players[-1] |= own_pronouns if role == "hero" else {}
    return players


def _forms(row: Row) -> Row:
    """The row with the capital and the article forms of each word: {toy}, {Toy}, {a toy}, {A toy}."""
    forms: Row = {}
    for name, text in row.items():
        article = "{a " + text[1:] if text.startswith("{") else f"{'an' if AN.match(text) else 'a'} {text}"
        forms |= {name: text, _capital(name): _capital(text), f"a {name}": article, f"A {name}": _capital(article)}
    return forms


def _capital(text: str) -> str:
    return re.sub("[a-z]", lambda letter: letter[0].upper(), text, count=1, flags=re.IGNORECASE)
