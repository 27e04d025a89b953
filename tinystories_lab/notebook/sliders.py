"""Sliders over pure functions: the merges of a sentence, and the budget of a run."""

from collections.abc import Mapping

import ipywidgets as widgets
from tokenizers import Tokenizer

from tinystories_lab.estimate import budget
from tinystories_lab.merges import merge_history, merges
from tinystories_lab.model import GPTConfig
from tinystories_lab.notebook.show import prose, table, tokens
from tinystories_lab.recipe import TrainConfig

WIDE = {"width": "95%", "max_width": "640px"}
_LOOK = {
    "layout": WIDE,
    "style": {"description_width": "90px"},
    "continuous_update": False,  # what computes waits until the mouse lets go
}
_HEAD_WIDTH = 64  # values of d_model for each attention head


def merge_slider(tokenizer: Tokenizer, sentence: str) -> widgets.VBox:
    """A sentence to change, and a slider over the merges that act on it, in the order in which they were learned."""
    text = widgets.Text(sentence, description="sentence", **_LOOK)
    slider = widgets.IntSlider(0, min=0, max=0, description="merges", **_LOOK)
    said, cut = widgets.HTML(), widgets.HTML()
    learned = len(merges(tokenizer))
    steps = []

    def show(change: dict | None = None) -> None:
        step = steps[slider.value]
        joined = " + ".join(map(repr, step.pair))
        what = f"merge {step.number:,} of {learned:,}: {joined}" if joined else "no merge yet"
        said.value = prose(f"{what}. {len(step.pieces)} tokens for {len(text.value.encode())} bytes.").data
        cut.value = tokens(step.pieces, step.pieces.index(step.made) if step.made else None).data

    def start(change: dict | None = None) -> None:
        steps[:] = merge_history(tokenizer, text.value)
        slider.max = len(steps) - 1  # takes the value with it
        show()

    text.observe(start, "value")
    slider.observe(show, "value")
    start()
    return widgets.VBox([text, slider, said, cut])


def budget_sliders(
    model_config: GPTConfig, tokens: int, config: TrainConfig, powers: Mapping[str, float]
) -> widgets.VBox:
    """Layers, width and tokens to read, from those of a run on; below, what such a run takes on each machine."""
    sliders = [
        widgets.IntSlider(model_config.n_layer, min=1, max=16, description="n_layer", **_LOOK),
        widgets.IntSlider(model_config.d_model, min=64, max=1024, step=_HEAD_WIDTH, description="d_model", **_LOOK),
        widgets.IntSlider(round(tokens / 1e6), min=10, max=1_000, step=10, description="tokens (M)", **_LOOK),
    ]
    n_layer, d_model, millions = sliders
    taken = widgets.HTML()

    def show(change: dict | None = None) -> None:
        model = GPTConfig(model_config.vocab_size, n_layer.value, d_model.value // _HEAD_WIDTH, d_model.value)
        lines = budget(model, millions.value * 1_000_000, config.tokens_per_step, powers)
        taken.value = table([{"a run of this size": name, "takes": value} for name, value in lines.items()]).data

    for slider in sliders:
        slider.observe(show, "value")
    show()
    return widgets.VBox([*sliders, taken])
