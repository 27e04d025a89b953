"""Built-in stories, generated from a small grammar: choose a plot, what fills its blanks, and the wording of every line.

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

GRAMMAR = Path(__file__).with_name("toyland.yaml")

_Row = dict[str, str]  # blanks and the texts that fill them: {"toy": "ball", "a toy": "a ball", ...}
_BLANK = re.compile(r"\{([^{}]+)\}")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_AN = re.compile(r"(?!uni|use|one\b|once\b)[aeiou]|hour|honest", re.IGNORECASE)  # by sound: an egg, but a unicorn


class Plot(NamedTuple):
    """A plot, ready to write stories."""

    title: str
    share: int  # how often it is chosen, compared with the others
    picks: list[list[_Row]]  # one row of each is chosen
    paragraphs: list[list[list[list[str]]]]  # of lines; a line is a list of variants, a variant a list of its wordings


def generate_stories(count: int, seed: int = 0) -> Iterator[str]:
    """Yield `count` stories for small children, each of 50 to 110 words in paragraphs separated by a blank line.

    The same seed gives the same stories on every machine, whatever `count` is. Raises ValueError, before the first
    story, if `count` or `seed` is not an integer or `count` is negative.
    """
    if not hasattr(count, "__index__") or count < 0:
        raise ValueError(f"count must be an integer of 0 or more, not {count!r}.")
    if not hasattr(seed, "__index__"):
        raise ValueError(f"seed must be an integer, not {seed!r}.")
    return _generate(load_plots(), count, seed)


def _generate(plots: list[Plot], count: int, seed: int) -> Iterator[str]:
    # As integers, the seeds 1 and -1 would be the same. Python promises that the sequence of random() never changes.
    uniform = random.Random(f"toyland {seed}").random

    def choose(options: list) -> Any:
        return options[int(uniform() * len(options))]

    plots = [plot for plot in plots for _ in range(plot.share)]
    for _ in range(count):
        plot = choose(plots)
        words = {blank: text for rows in plot.picks for blank, text in choose(rows).items()}
        variants = [[choose(line) for line in lines] for lines in plot.paragraphs]
        sentences = [[choose(wordings) for wordings in lines] for lines in variants]
        story = "\n\n".join(" ".join(filter(None, paragraph)) for paragraph in sentences)
        while "{" in story:  # the text that fills a blank may contain blanks
            story = story.format_map(words)
        yield story


@cache
def load_plots() -> list[Plot]:
    """Return the plots of toyland.yaml."""
    land = yaml.safe_load(GRAMMAR.read_text(encoding="utf-8"))
    return [_read_plot(title, plot) for title, plot in land["plots"].items()]


def _read_plot(title: str, plot: dict[str, Any]) -> Plot:
    """Return a plot of toyland.yaml, ready to use. Raises ValueError if no story could be written with it."""
    if not isinstance(plot, dict) or not isinstance(plot.get("story"), str):
        raise ValueError(f"The plot '{title}' has no story: write one below 'story: |'.")
    picks = [
        [_forms(row if isinstance(row, dict) else {name: row}, title) for row in rows]
        for name, rows in (plot.get("pick") or {}).items()
    ]
    _check_blanks(title, [row for rows in picks for row in rows], set(_BLANK.findall(plot["story"])))
    return Plot(title, plot.get("share", 1), picks, [_lines(text) for text in plot["story"].strip().split("\n\n")])


def _check_blanks(title: str, rows: list[_Row], in_story: set[str]) -> None:
    """Raise ValueError if a blank of the story, or of a text that fills one, cannot be filled."""
    inner: dict[str, set[str]] = {}  # for each blank, the blanks in the texts that can fill it
    for row in rows:
        for name, text in row.items():
            inner.setdefault(name, set()).update(_BLANK.findall(text))
    used = sorted(in_story)
    for name in used:  # the list grows in this loop
        used += sorted(inner.get(name, set()).difference(used))
    if unfilled := set(used) - inner.keys():
        raise ValueError(f"The plot '{title}' has blanks that nothing fills: {', '.join(sorted(unfilled))}.")
    try:
        TopologicalSorter({name: inner[name] for name in used}).prepare()
    except CycleError as error:  # filling these blanks would never end
        circle = " -> ".join(f"{{{name}}}" for name in reversed(error.args[1]))
        raise ValueError(f"The plot '{title}' has blanks that refer to each other in a circle: {circle}.") from error


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
