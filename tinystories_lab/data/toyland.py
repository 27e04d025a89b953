"""Built-in stories, generated from a small grammar: choose a plot, its characters and the wording of every line.

`toyland.yaml` contains all words and plots; its first lines explain the notation. Every plot has so many variants that
no two of 50,000 stories are equal, although the generator does not remember its stories.
"""

import itertools
import random
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_Row = dict[str, str]  # blanks and the texts that fill them: {"toy": "ball", "a toy": "a ball", ...}
_BLANK = re.compile(r"\{([^{}]+)\}")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_AN = re.compile(r"(?!uni|use|one\b|once\b)[aeiou]|hour|honest", re.IGNORECASE)  # by sound: an egg, but a unicorn


class _Plot(NamedTuple):
    """A plot, ready to write stories. Every choice has two levels: a variant, then one of the wordings of it."""

    title: str
    roles: list[str]
    draws: list[list[list[_Row]]]
    paragraphs: list[list[list[list[str]]]]


def generate_stories(count: int, seed: int = 0) -> Iterator[str]:
    """Yield `count` stories for small children, each of 50 to 180 words in paragraphs separated by a blank line.

    The same seed gives the same stories on every machine, whatever `count` is. Raises ValueError, before the first
    story, if `count` or `seed` is not an integer or `count` is negative.
    """
    if not hasattr(count, "__index__") or count < 0:
        raise ValueError(f"count must be an integer of 0 or more, not {count!r}.")
    if not hasattr(seed, "__index__"):
        raise ValueError(f"seed must be an integer, not {seed!r}.")
    return _generate(_load_plots(), count, seed)


def _generate(plots: list[_Plot], count: int, seed: int) -> Iterator[str]:
    # As integers, the seeds 1 and -1 would be the same. Python promises that the sequence of random() never changes.
    uniform = random.Random(f"toyland {seed}").random

    def choose(options: list) -> Any:
        return options[int(uniform() * len(options))]

    for _ in range(count):
        plot = choose(plots)
        while True:
            words: _Row = {}
            for draw in plot.draws:
                words |= choose(choose(draw))
            if len({words[role] for role in plot.roles}) == len(plot.roles):
                break  # otherwise draw again: two characters with one name would confuse the reader
        variants = [[choose(line) for line in lines] for lines in plot.paragraphs]
        sentences = [[choose(wordings) for wordings in lines] for lines in variants]
        story = "\n\n".join(" ".join(filter(None, paragraph)) for paragraph in sentences)
        while "{" in story:  # the text that fills a blank may contain blanks
            story = story.format_map(words)
        yield story


@cache
def _load_plots() -> list[_Plot]:
    land = yaml.safe_load(Path(__file__).with_name("toyland.yaml").read_text(encoding="utf-8"))
    return [_read_plot(title, plot, land) for title, plot in land["plots"].items()]


def _read_plot(title: str, plot: dict[str, Any], land: dict[str, Any]) -> _Plot:
    """Return a plot of toyland.yaml, ready to use. Raises ValueError if no story could be written with it."""
    if not isinstance(plot, dict) or not isinstance(plot.get("story"), str):
        raise ValueError(f"The plot '{title}' has no story: write one below 'story: |'.")
    cast = plot.get("cast") or {}
    if unknown := [group for group in cast.values() if group not in land["cast"]]:
        groups = ", ".join(land["cast"])
        raise ValueError(f"The plot '{title}' has the unknown cast {', '.join(unknown)}: use one of {groups}.")
    draws = [_choices(name, source) for name, source in (land["words"] | (plot.get("pick") or {})).items()]
    draws += [[_players(role, kind, land["pronouns"]) for kind in land["cast"][group]] for role, group in cast.items()]
    draws = [[[_forms(row, title) for row in variant] for variant in draw] for draw in draws]
    rows = [row for draw in draws for variant in draw for row in variant]
    used = _used_blanks(title, rows, {*cast, *_BLANK.findall(plot["story"])})
    if len({row[role] for row in rows for role in cast if role in row}) < len(cast):
        roles = ", ".join(cast)
        raise ValueError(f"The plot '{title}' has too few names for the roles {roles}: add names to their cast.")
    draws = [[[{name: row[name] for name in row if name in used} for row in way] for way in draw] for draw in draws]
    draws = [draw for draw in draws if any(row for variant in draw for row in variant)]
    return _Plot(title, list(cast), draws, [_lines(text) for text in plot["story"].strip().split("\n\n")])


def _used_blanks(title: str, rows: list[_Row], start: set[str]) -> list[str]:
    """Return the blanks that a plot uses: those of its story, and those of the texts that fill them."""
    inner: dict[str, set[str]] = {}  # for each blank, the blanks in the texts that can fill it
    for row in rows:
        for name, text in row.items():
            inner.setdefault(name, set()).update(_BLANK.findall(text))
    used = sorted(start)
    for name in used:  # the list grows in this loop
        used += sorted(inner.get(name, set()).difference(used))
    try:
        TopologicalSorter({name: inner.get(name, ()) for name in used}).prepare()
    except CycleError as error:  # filling these blanks would never end
        circle = " -> ".join(f"{{{name}}}" for name in reversed(error.args[1]))
        raise ValueError(f"The plot '{title}' has blanks that refer to each other in a circle: {circle}.") from error
    if unfilled := set(used) - inner.keys():
        raise ValueError(f"The plot '{title}' has blanks that nothing fills: {', '.join(sorted(unfilled))}.")
    return used


def _lines(text: str) -> list[list[list[str]]]:
    """Return the lines of a text. A line is a list of variants, and a variant is a list of its wordings."""
    lines: list[list[list[str]]] = []
    for line in re.sub(r"\n +", " ", text.strip()).splitlines():
        if not line.startswith("/"):
            lines.append([])
        # "a [red|blue] hat" has the parts "a ", "red|blue", " hat": every second one was in brackets.
        parts = _BRACKETS.split(line.removeprefix("/"))
        options = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
        lines[-1].append([" ".join("".join(pieces).split()) for pieces in itertools.product(*options)])
    return lines


def _choices(name: str, source: Any) -> list[list[_Row]]:
    if isinstance(source, str):
        return [[{name: wording} for wording in variant] for variant in _lines(source)[0]]
    return [[row] if isinstance(row, dict) else [{name: wording} for wording in _lines(row)[0][0]] for row in source]


def _players(role: str, kind: dict[str, Any], pronouns: dict[str, _Row]) -> list[_Row]:
    words = {f"{role} {word}": text for word, text in kind.items() if word not in pronouns}
    players: list[_Row] = []
    for gender, own in pronouns.items():
        forms = {f"{role} {word}": text for word, text in own.items()} | (own if role == "hero" else {})
        players += [{role: name} | words | forms for name in kind.get(gender, [])]
    return players


def _forms(row: _Row, title: str) -> _Row:
    """Return the row with three more forms of each word: with a capital letter, an article, or both ({A toy})."""
    forms: _Row = {}
    for name, text in row.items():
        if not isinstance(text, str):
            raise ValueError(f"The plot '{title}': put quotes around the text of '{name}', which is read as {text!r}.")
        article = "{a " + text[1:] if text.startswith("{") else f"{'an' if _AN.match(text) else 'a'} {text}"
        forms |= {name: text, _capital(name): _capital(text), f"a {name}": article, f"A {name}": _capital(article)}
    return forms


def _capital(text: str) -> str:
    return re.sub("[A-Za-z]", lambda letter: letter[0].upper(), text, count=1)
