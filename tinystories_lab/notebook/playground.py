"""A model to play with: prompt, sliders, and the story they give."""

import ipywidgets as widgets
from tokenizers import Tokenizer

from tinystories_lab.generate import NEW_TOKENS, PROMPTS, tell
from tinystories_lab.model import GPTMini
from tinystories_lab.notebook.show import prose
from tinystories_lab.sampling import TEMPERATURE, TOP_K

WIDE = widgets.Layout(width="95%", max_width="640px")
WIDE_LABEL = {"description_width": "90px"}


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
        story.value = prose(text).data

    for control in controls:
        control.observe(tell_again, "value")
    tell_again()
    return widgets.VBox([*controls, story])
