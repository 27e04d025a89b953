"""A model to play with: it tells while you watch, and shows at every token what else it might have said.

How it streams. A kernel runs one widget callback at a time, so a Tell that told to the end would not hear Stop; and what
a thread sends after its cell is done does not reach every front end (Colab: googlecolab/colabtools issue 3373). So the
browser keeps time: a callback tells for a moment and raises `pulse`, a `jslink` copies that to `echo` in the browser,
and the change of `echo` comes back as a message of its own, behind whatever was pressed meanwhile. The link copies once
as soon as it is displayed; where nothing ever came back there is no browser, and Tell tells the whole story at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
from tokenizers import Tokenizer

from tinystories_lab.generate import NEW_TOKENS
from tinystories_lab.model import GPTMini
from tinystories_lab.notebook.show import prose
from tinystories_lab.notebook.telling import begin, odds_html, story_html, tell_in_beats
from tinystories_lab.sampling import TEMPERATURE, TOP_K
from tinystories_lab.words import PROMPTS

_BEAT = 0.1  # seconds of telling between two looks at what was pressed
_TOP_KS = (1, 2, 3, 5, 10, 20, 50, 100, 200)
_COLUMN = {"flex": "1 1 18em", "min_width": "0", "max_width": "40em", "margin": "0 1em 0 0", "overflow": "visible"}
_SIDE_BY_SIDE = {"flex_flow": "row wrap", "align_items": "flex-start", "overflow": "visible"}
_HTML_LAYOUT = {"width": "auto", "overflow": "visible"}


def story_playground(model: GPTMini, tokenizer: Tokenizer, prompts: Sequence[str] = PROMPTS) -> widgets.VBox:
    """A prompt, of which some are offered, sliders, Tell and Stop; the story as it is told; and the odds of what follows, at any token of it.

    Errors are said in the widget. Each part has a CSS class, playground- and its name.
    """
    every = model.config.vocab_size
    top_ks = [(str(k), k) for k in _TOP_KS if k < every] + [("all", every)]
    controls = {
        "prompt": widgets.Combobox(value=prompts[0], options=list(prompts), ensure_option=False),
        "temperature": widgets.FloatSlider(value=TEMPERATURE, min=0, max=1.5, step=0.05),
        "top_k": widgets.SelectionSlider(value=TOP_K, options=top_ks),
        "top_p": widgets.FloatSlider(value=1, min=0.05, max=1, step=0.05),
        "length": widgets.IntSlider(value=NEW_TOKENS, min=10, max=500, step=10),
        "seed": widgets.IntSlider(value=0, min=0, max=99),
        "token": widgets.IntSlider(value=0, min=0, max=1),
    }
    for name, control in controls.items():
        control.description, control.continuous_update = name, False
        control.layout.width, control.style.description_width = "auto", "6.5em"
    prompt, temperature, top_k, top_p, length, seed, walk = controls.values()
    tell = widgets.Button(description="Tell", button_style="primary")
    stop = widgets.Button(description="Stop")
    said, story, odds = (widgets.HTML(layout=_HTML_LAYOUT) for _ in range(3))
    pulse, echo = (widgets.IntText(value=beat, layout={"display": "none"}) for beat in (1, 0))
    widgets.jslink((pulse, "value"), (echo, "value"))
    told, how, beats = begin(tokenizer, prompt.value), "", iter(())

    def shaping() -> dict[str, Any]:
        """What shapes the odds; a top_p of 1 leaves nothing out."""
        top_p_or_off = top_p.value if top_p.value < 1 else None
        return {"temperature": temperature.value, "top_k": top_k.value, "top_p": top_p_or_off}

    def show_odds(change: Any = None) -> None:
        odds.value = odds_html(model, tokenizer, told, walk.value, **shaping())

    def show_story() -> None:
        tell.disabled, stop.disabled, walk.disabled = not told.ended, bool(told.ended), not (told.ended and told.count)
        so_far = f"{how}: {told.count} tokens{f'. {told.ended}' if told.ended else ' so far'}"
        said.value = prose(so_far if how else told.ended).data
        story.value = story_html(tokenizer, told, walk.value)

    def show(change: Any = None) -> None:
        show_story()
        show_odds()

    def show_from_the_start() -> None:
        """At the first token told, whence one walks on; before the telling at the prompt's end."""
        walk.value = min(1, told.count)
        walk.max = max(1, told.count)
        show()

    def tell_on(change: Any = None) -> None:
        """Tell for a moment, then wait for the browser to come back: what was pressed meanwhile comes before it."""
        nonlocal told
        if change and echo.value != pulse.value:
            return  # a second window on the same notebook, or a browser that is late
        for told in beats:
            show_from_the_start() if told.ended else show_story()
            if echo.value:  # a browser is there
                pulse.value += 1
                return

    def start(button: Any = None) -> None:
        nonlocal told, how, beats
        told, settings = begin(tokenizer, prompt.value), shaping() | {"seed": seed.value}
        how = f"temperature {temperature.value:.2f}, top_k {top_k.label}, top_p {top_p.value:.2f}, seed {seed.value}"
        beats = tell_in_beats(model, tokenizer, prompt.value, length.value, _BEAT, **settings)
        show_from_the_start()
        tell_on()

    def stop_telling(button: Any = None, why: str = "You stopped it.") -> None:
        nonlocal told, beats
        told, beats = replace(told, ended=told.ended or why), iter(())
        show_from_the_start()

    def new_prompt(change: Any) -> None:
        nonlocal told, how
        told, how = begin(tokenizer, prompt.value), ""
        stop_telling(why="Not told yet: press Tell.")

    def heard(callback: Callable[[Any], None]) -> Callable[[Any], None]:
        """The same callback, whose errors are said in the widget."""

        def safely(change: Any = None) -> None:
            try:
                callback(change)
            except Exception as error:
                tell.disabled, stop.disabled = False, True
                said.value = prose(str(error).partition("\n")[0] or type(error).__name__).data

        return safely

    for control in (temperature, top_k, top_p):
        control.observe(heard(show_odds), "value")
    walk.observe(heard(show), "value")
    prompt.observe(heard(new_prompt), "value")
    echo.observe(heard(tell_on), "value")
    tell.on_click(heard(start))
    stop.on_click(heard(stop_telling))
    for name, part in {**controls, "tell": tell, "stop": stop, "said": said, "story": story, "odds": odds}.items():
        part.add_class(f"playground-{name}")
    heard(start)()
    buttons = widgets.HBox([tell, stop])
    left = widgets.VBox([prompt, temperature, top_k, top_p, length, seed, buttons, said, story], layout=_COLUMN)
    right = widgets.VBox([walk, odds], layout=_COLUMN)
    return widgets.VBox([widgets.HBox([left, right], layout=_SIDE_BY_SIDE), pulse, echo])
