"""Stories to rate, and the file that keeps what was said of them."""

from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets

from tinystories_lab.notebook.show import prose
from tinystories_lab.review import RATED
from tinystories_lab.runlog import append_row


def rating_form(stories: Sequence[str], path: str | Path) -> widgets.VBox:
    """Rate stories from 0 to 5 for grammar, coherence and fun; Save appends them to ratings.jsonl."""
    sliders = [
        {question: widgets.IntSlider(3, min=0, max=5, description=question) for question in RATED} for _ in stories
    ]
    save, said = widgets.Button(description="Save the ratings"), widgets.HTML()

    def save_ratings(button: widgets.Button) -> None:
        for story, row in zip(stories, sliders, strict=True):
            append_row(path, {"story": story, **{question: slider.value for question, slider in row.items()}})
        said.value = prose(f"{len(stories)} ratings saved in {path}").data

    save.on_click(save_ratings)
    parts = [
        widgets.VBox([widgets.HTML(prose(story).data), *row.values()])
        for story, row in zip(stories, sliders, strict=True)
    ]
    return widgets.VBox([*parts, save, said])
