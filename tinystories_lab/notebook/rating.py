"""Stories to rate, one at a time and blind, and what the ratings come to."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import ipywidgets as widgets

from tinystories_lab.notebook.show import prose, stack, table
from tinystories_lab.notebook.sliders import WIDE
from tinystories_lab.ratings import BEST, RATED, average_ratings, save_rating, unrated
from tinystories_lab.runlog import read_rows
from tinystories_lab.words import opening

_SHOWN_WORDS = 6  # of a story, to know it again by
_UNMARKED = "–"  # where sliders begin: a mark that nobody gave is none


def rating_form(deck: Sequence[Mapping[str, str]], path: str | Path, rater: str = "me") -> widgets.VBox:
    """One story of a `blind_deck` at a time, three sliders and Next, which saves that story's marks at once in `path`.

    After the last one it says which stories were real, and shows the averages. What this rater has rated before is not
    asked again.
    """
    where, story, said = widgets.HTML(), widgets.HTML(), widgets.HTML()
    marks = [_UNMARKED, *map(str, range(BEST + 1))]
    sliders = {name: widgets.SelectionSlider(options=marks, description=name, layout=WIDE) for name in RATED}
    following = widgets.Button(description="Next", tooltip="Save these marks and show the next story")
    form = widgets.VBox([where, story, *sliders.values(), following, said])
    for name, part in {"where": where, "story": story, "next": following, "said": said, **sliders}.items():
        part.add_class(f"rating-{name}")
    left = unrated(deck, path, rater)

    def show() -> None:
        if not left:
            where.value = prose(f"All {len(deck)} stories are rated, and the ratings are in {path}").data
            story.value = stack(table(_marks_of(deck, path, rater)), table(average_ratings(path))).data
            form.children = [where, story]
            return
        where.value = prose(f"story {len(deck) - len(left) + 1} of {len(deck)}").data
        story.value = prose(left[0]["story"]).data

    def save(button: widgets.Button) -> None:
        try:
            given = {question: int(slider.value) for question, slider in sliders.items() if slider.value != _UNMARKED}
            save_rating(path, left[0], given, rater)
        except (OSError, ValueError) as error:
            said.value = prose(f"not saved: {error}").data
            return
        del left[0]
        said.value = ""
        for slider in sliders.values():
            slider.value = _UNMARKED
        show()

    following.on_click(save)
    show()
    return form


def _marks_of(deck: Sequence[Mapping[str, str]], path: str | Path, rater: str) -> list[dict[str, object]]:
    """How each story of the deck begins, by whom it is, and this rater's marks."""
    rated = {row["story"]: row for row in read_rows(path) if row.get("rater") == rater}
    rows = []
    for card in deck:
        marks = ", ".join(str(rated[card["story"]][question]) for question in RATED)  # one column: a phone is narrow
        about = {"story": opening(card["story"], _SHOWN_WORDS) + " ...", "by": card["by"]}
        rows.append(about | {", ".join(RATED): marks})
    return rows
