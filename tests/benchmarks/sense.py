"""Does a generated story make sense? Compare it with the grammar of the built-in stories, which knows all of them.

    .venv/bin/python -m tests.benchmarks.sense runs/toyland-tiny

A story without a fault is one that the grammar can write: a plot from its beginning to its end, with the same names,
pronouns and things throughout. Of any other text, the smallest number of faults is counted:

- a sentence that the plot cannot say in this place (so also a wrong name or pronoun of a hero with a fixed name),
- a line of the plot that is missing,
- something picked, such as the toy that was lost, that is now another one,
- a paragraph that starts in the wrong place.
"""

import argparse
import heapq
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tinystories_lab.checkpoint import load_model
from tinystories_lab.data.text import PROMPTS
from tinystories_lab.data.toyland import Plot, load_plots
from tinystories_lab.generate import generate_batch
from tinystories_lab.tokenizer import load_tokenizer

_BLANK = re.compile(r"\{([^{}]+)\}")
_SENTENCE = re.compile(r'.*?[.!?]"?(?=\s|\Z)|.+', re.DOTALL)
_BREAK = re.compile(r"\s+|\Z")

_Picked = tuple[tuple[int, frozenset[int]], ...]  # for each pick that was mentioned, the rows that are still possible


class _State(NamedTuple):
    """How much of a story and of a plot is read, and what is known by then."""

    position: int
    line: int
    paragraph: int  # of the last line that was read
    is_new: bool  # whether a new paragraph has started since then
    picked: _Picked


class _Line(NamedTuple):
    paragraph: int
    wordings: tuple[str, ...]
    sentences: int
    is_optional: bool


class PlotReader:
    """A plot as the parser of its stories."""

    def __init__(self, plot: Plot) -> None:
        self.title = plot.title
        self.lines = []
        for paragraph, lines in enumerate(plot.paragraphs):
            for line in lines:
                wordings = dict.fromkeys(wording for variant in line for wording in variant)
                sentences = max(len(_SENTENCE.findall(wording)) for wording in wordings)
                self.lines.append(_Line(paragraph, tuple(filter(None, wordings)), sentences, "" in wordings))
        self.fills: dict[str, tuple[int, dict[str, frozenset[int]]]] = {}  # for each blank: its pick, its texts' rows
        for pick, rows in enumerate(plot.picks):
            for blank in {blank for row in rows for blank in row}:
                texts: dict[str, set[int]] = {}
                for number, row in enumerate(rows):
                    if blank in row:
                        texts.setdefault(row[blank], set()).add(number)
                self.fills[blank] = pick, {text: frozenset(numbers) for text, numbers in texts.items()}

    def endings(self, story: str, start: int, line: _Line) -> Iterator[tuple[int, list[tuple[int, frozenset[int]]]]]:
        """Yield every position up to which a wording of the line can be read, with the rows that it needs."""
        for wording in line.wordings:
            for end, needs in self._match(story, start, wording):
                if _BREAK.match(story, end):
                    yield end, needs

    def _match(self, story: str, start: int, text: str) -> Iterator[tuple[int, list[tuple[int, frozenset[int]]]]]:
        blank = _BLANK.search(text)
        literal = text[: blank.start()] if blank else text
        if not story.startswith(literal, start):
            return
        start += len(literal)
        if not blank:
            yield start, []
            return
        pick, texts = self.fills[blank[1]]
        for filled, rows in texts.items():
            for middle, needs in self._match(story, start, filled):
                for end, more in self._match(story, middle, text[blank.end() :]):
                    yield end, [(pick, rows), *needs, *more]


def read_faults(story: str, readers: list[PlotReader]) -> tuple[str, list[str]]:
    """Return the title of the plot that fits a story best, and the story's faults: as few as possible."""
    order = itertools.count()  # among readings with equally many faults, the first one found comes first
    heap = [(0, next(order), reader, _State(0, 0, 0, True, ()), ()) for reader in readers]
    seen = set()
    while True:  # Dijkstra's algorithm: the reading with the fewest faults is always continued first
        _, _, reader, state, faults = heapq.heappop(heap)
        if (reader.title, state) in seen:
            continue
        seen.add((reader.title, state))
        if state.position >= len(story) and state.line >= len(reader.lines):
            return reader.title, [" ".join(fault.split()) for fault in faults]
        for following, new in _next_states(story, reader, state):
            found = (*faults, *new)
            heapq.heappush(heap, (len(found), next(order), reader, following, found))


def _next_states(story: str, reader: PlotReader, state: _State) -> Iterator[tuple[_State, list[str]]]:
    """Yield every way to read on: the state after it, and its faults."""
    line = reader.lines[state.line] if state.line < len(reader.lines) else None
    if line and state.position < len(story):
        faults = []
        if state.is_new != (state.position == 0 or line.paragraph != state.paragraph):
            here = story[state.position : state.position + 30]
            faults.append(f"{'a' if state.is_new else 'no'} new paragraph: {here}")
        for end, needs in reader.endings(story, state.position, line):
            picked, changed = dict(state.picked), []
            for pick, rows in needs:
                if possible := picked.get(pick, rows) & rows:
                    picked[pick] = possible
                else:
                    changed = [f"not what was picked before: {story[state.position : end]}"]
            after = _after(story, end, state, line)
            yield after._replace(picked=tuple(sorted(picked.items()))), faults + changed
    if line:
        yield state._replace(line=state.line + 1), [] if line.is_optional else [f"missing: {line.wordings[0]}"]
    end = state.position
    for number in range(line.sentences if line else 1):
        if end < len(story):
            end = _SENTENCE.match(story, end).end()
            fault = f"cannot be said here: {story[state.position : end]}"
            if line:
                yield _after(story, end, state, line), [fault]  # these sentences are in the line's place
            if number == 0:
                yield _after(story, end, state, None), [fault]
            end = _BREAK.match(story, end).end()


def _after(story: str, end: int, state: _State, line: _Line | None) -> _State:
    """Return the state after the text up to `end`, which is a line or does not belong here."""
    space = _BREAK.match(story, end)
    state = state._replace(position=space.end(), is_new="\n\n" in space[0] or (state.is_new and line is None))
    return state._replace(line=state.line + 1, paragraph=line.paragraph) if line else state


def main() -> None:
    """Generate stories with a run's final.pt, and print how many of them have no fault."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--stories", type=int, default=100)
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N stories with their faults")
    options = parser.parse_args()
    model = load_model(options.run_dir / "final.pt")
    tokenizer = load_tokenizer(options.run_dir / "tokenizer.json")
    prompts = list(itertools.islice(itertools.cycle(PROMPTS), options.stories))
    rows = generate_batch(model, tokenizer, prompts, 200, seeds=range(options.stories))
    readers = [PlotReader(plot) for plot in load_plots()]
    found = [read_faults(row["story"], readers)[1] for row in rows]
    for row, faults in list(zip(rows, found, strict=True))[: options.show]:
        print(row["story"], *(f"[{fault}]" for fault in faults), "", sep="\n\n" if not faults else "\n")
    share = sum(not faults for faults in found) / len(found)
    print(
        f"{share:.0%} of {len(found)} stories without a fault, {sum(map(len, found)) / len(found):.2f} faults per story"
    )


if __name__ == "__main__":
    main()
