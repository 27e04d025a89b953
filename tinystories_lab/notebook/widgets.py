"""ipywidgets over tested functions; without a front end the same cells run and show a first, static result."""

import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import ipywidgets as widgets
from IPython.display import display
from tokenizers import Tokenizer

from tinystories_lab.generate import NEW_TOKENS, PROMPTS, TEMPERATURE, TOP_K, tell
from tinystories_lab.model import GPTMini
from tinystories_lab.notebook.plots import loss_curve
from tinystories_lab.review import RATED
from tinystories_lab.runlog import Row, append_row, read_log, with_progress

REFRESH_SECONDS = 5.0  # faster updates freeze a browser
WIDE = widgets.Layout(width="95%", max_width="640px")
WIDE_LABEL = {"description_width": "90px"}


class LiveRun:
    """Iterate over a run's rows while a text bar and one figure, drawn anew every few seconds, follow them.

    `log_path` is the run's loss.jsonl, so the curve shows earlier sessions too. Leaving the loop closes `rows`, which
    saves the run.
    """

    def __init__(self, rows: Iterator[Row], log_path: str | Path, total_steps: int, vocab_size: int) -> None:
        self.rows, self.log_path = rows, log_path
        self.total_steps, self.vocab_size = total_steps, vocab_size

    def __iter__(self) -> Iterator[Row]:
        handle, drawn = None, 0.0
        for row in with_progress(self.rows, self.total_steps):
            if time.monotonic() - drawn > REFRESH_SECONDS or row["step"] == self.total_steps:
                figure = loss_curve(read_log(self.log_path), self.vocab_size)
                if handle:
                    handle.update(figure)
                else:
                    handle = display(figure, display_id=True)
                drawn = time.monotonic()
            yield row


def story_playground(model: GPTMini, tokenizer: Tokenizer) -> widgets.VBox:
    """Prompt, sliders for temperature and top_k, and the story they give; it is told anew whenever a value changes."""
    prompt = widgets.Combobox(PROMPTS[0], options=PROMPTS, description="prompt", ensure_option=False)
    temperature = widgets.FloatSlider(TEMPERATURE, min=0, max=1.5, step=0.1, description="temperature")
    top_k = widgets.IntSlider(TOP_K, min=1, max=200, description="top_k")
    seed = widgets.IntSlider(0, min=0, max=99, description="seed")
    story = widgets.HTML()
    controls = (prompt, temperature, top_k, seed)
    for control in controls:
        control.layout, control.style, control.continuous_update = WIDE, WIDE_LABEL, False

    def tell_again(change: dict | None = None) -> None:
        settings = {"temperature": temperature.value, "top_k": top_k.value, "seed": seed.value}
        try:
            told = tell(model, tokenizer, prompt.value, NEW_TOKENS, **settings)
            text = told["story"] + ("" if told["ended"] else " ...")
        except ValueError as error:
            text = str(error)
        story.value = as_html(text)

    for control in controls:
        control.observe(tell_again, "value")
    tell_again()
    return widgets.VBox([*controls, story])


def rating_form(stories: Sequence[str], path: str | Path) -> widgets.VBox:
    """Rate stories from 0 to 5 for grammar, coherence and fun; Save appends them to ratings.jsonl."""
    sliders = [
        {question: widgets.IntSlider(3, min=0, max=5, description=question) for question in RATED} for _ in stories
    ]
    save, said = widgets.Button(description="Save the ratings"), widgets.HTML()

    def save_ratings(button: widgets.Button) -> None:
        for story, row in zip(stories, sliders, strict=True):
            append_row(path, {"story": story, **{question: slider.value for question, slider in row.items()}})
        said.value = as_html(f"{len(stories)} ratings saved in {path}")

    save.on_click(save_ratings)
    parts = [
        widgets.VBox([widgets.HTML(as_html(story)), *row.values()]) for story, row in zip(stories, sliders, strict=True)
    ]
    return widgets.VBox([*parts, save, said])


def as_html(text: str) -> str:
    return f'<div style="white-space: pre-wrap; max-width: 40em; line-height: 1.4">{escape(text)}</div>'
