"""A playground: generate a story while you watch, and see at every token which others were likely.

A kernel runs one widget callback at a time. If one callback generated a whole story, the Stop button would have no
effect until its end. A thread does not help: some front ends lose what a thread sends after its cell has finished
(Colab: googlecolab/colabtools issue 3373). So the browser sets the pace, like a heartbeat. A callback generates for a
moment and increases `pulse`. In the browser, a `jslink` copies `pulse` to `echo`. The change of `echo` reaches the
kernel as a new message, after those of all buttons pressed in the meantime, and its callback generates more. The link
also copies once when it is displayed. If `echo` never changes, there is no browser, and Generate generates the
whole story at once.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ipywidgets as widgets
from tokenizers import Tokenizer

from tinystories_lab.analysis.next_token import token_text, top_next_tokens
from tinystories_lab.data.text import PROMPTS
from tinystories_lab.generate import NEW_TOKENS, TEMPERATURE, TOP_K, stream
from tinystories_lab.model import GPTMini
from tinystories_lab.notebook.html import bars, prose, tokens
from tinystories_lab.tokenizer import decode_continuation, encode_prompt, eos_id

_SECONDS = 0.1  # of generating per heartbeat, at most
_TOKENS_PER_SECOND = 40  # at most: a small model at full speed is too fast to watch or to stop
_MIN_TOKENS = 2  # per heartbeat, even if the browser answers sooner than these are due
_CONTEXT = 30  # characters shown before a token
_TOP_KS = (1, 2, 3, 5, 10, 20, 50, 100, 200)
_COLUMN = {"flex": "1 1 18em", "min_width": "0", "max_width": "40em", "margin": "0 1em 0 0", "overflow": "visible"}
_SIDE_BY_SIDE = {"flex_flow": "row wrap", "align_items": "flex-start", "overflow": "visible"}


@dataclass(frozen=True)
class _Story:
    """A story so far. The first `start` ids are those of the prompt. `ended` says why the story ended, if it has."""

    prompt: str
    ids: tuple[int, ...]
    start: int
    ended: str = ""

    @property
    def count(self) -> int:
        """Return the number of generated tokens, `<|endoftext|>` included."""
        return len(self.ids) - self.start


def _new_story(tokenizer: Tokenizer, prompt: str) -> _Story:
    """Return a story without generated tokens, and without spaces at the end of its prompt (see `encode_prompt`)."""
    prompt = prompt.rstrip(" ")
    ids = encode_prompt(tokenizer, prompt)
    return _Story(prompt, tuple(ids), len(ids))


def _stream_story(
    model: GPTMini, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, seconds: float, **settings: Any
) -> Iterator[_Story]:
    """Yield the story that `generate_batch` returns for the same settings, while it grows and when it has ended.

    A growing story is due after `seconds`. It is due sooner if it has enough new tokens: _TOKENS_PER_SECOND times the
    time that the caller took. A story that ended by itself ends in `<|endoftext|>`. Raises ValueError as `stream` does.
    """
    story, eos = _new_story(tokenizer, prompt), eos_id(tokenizer)
    resumed, due = time.monotonic(), _MIN_TOKENS
    for token in stream(model, story.ids, max_new_tokens, stop_id=eos, **settings):
        story = replace(story, ids=(*story.ids, token))
        if time.monotonic() - resumed >= seconds or story.count >= due:
            yielded = time.monotonic()
            yield story
            resumed = time.monotonic()
            due = story.count + max(_MIN_TOKENS, _TOKENS_PER_SECOND * (resumed - yielded))
    if story.count < max_new_tokens:
        yield replace(story, ids=(*story.ids, eos), ended="It ended by itself.")
    else:
        yield replace(story, ended="It reached its length.")


def _story_html(tokenizer: Tokenizer, story: _Story, chosen: int = 0) -> str:
    """Return a growing story's text, or an ended one's coloured tokens with a frame around number `chosen` (from 1)."""
    if not story.ended:
        return prose(story.prompt + decode_continuation(tokenizer, story.ids, story.start) + " ...").data
    texts = [token_text(tokenizer, token) for token in story.ids]
    return tokens(texts, chosen=story.start + chosen - 1 if chosen else None).data


def _probabilities_html(model: GPTMini, tokenizer: Tokenizer, story: _Story, chosen: int = 0, **settings: Any) -> str:
    """Return bars for the likely tokens in place of generated token `chosen` (from 1), or after the prompt (0)."""
    before = story.ids[: story.start + max(0, chosen - 1)]
    drawn = story.ids[len(before)] if chosen else None
    rows = top_next_tokens(model, tokenizer, before, sampled=drawn, **settings)
    text = tokenizer.decode(before, skip_special_tokens=False).rstrip("\ufffd")
    context = text if len(text) <= _CONTEXT else "..." + text[-_CONTEXT:]
    heading = f"What may follow “{context}”{' (→ was drawn)' if chosen else ''}"
    legend = "Filled: with the sliders’ settings. Outline: the model’s own probabilities."
    return prose(heading).data + bars(rows).data + prose(legend).data


def story_playground(model: GPTMini, tokenizer: Tokenizer, prompts: Sequence[str] = PROMPTS) -> widgets.VBox:
    """Return a widget that generates a story while you watch, and shows the probabilities at each of its tokens.

    It has a prompt with suggestions, sliders for the settings, and the buttons Generate and Stop. It also shows errors.
    Each part has the CSS class playground-NAME. The function is long because all its callbacks share one story.
    """
    controls = _make_controls(model.config.vocab_size, prompts)
    prompt, temperature, top_k, top_p, length, seed, chosen = controls.values()
    generate = widgets.Button(description="Generate", button_style="primary")
    stop = widgets.Button(description="Stop")
    status, text, probabilities = (widgets.HTML(layout={"width": "auto", "overflow": "visible"}) for _ in range(3))
    pulse, echo = (widgets.IntText(value=value, layout={"display": "none"}) for value in (1, 0))
    widgets.jslink((pulse, "value"), (echo, "value"))
    story, settings_used, snapshots = _new_story(tokenizer, prompt.value), "", iter(())

    def settings() -> dict[str, Any]:
        p = top_p.value if top_p.value < 1 else None
        return {"temperature": temperature.value, "top_k": top_k.value, "top_p": p}

    def show_probabilities(change: Any = None) -> None:
        probabilities.value = _probabilities_html(model, tokenizer, story, chosen.value, **settings())

    def show_story() -> None:
        ended = bool(story.ended)
        generate.disabled, stop.disabled, chosen.disabled = not ended, ended, not (ended and story.count)
        so_far = f"{settings_used}: {story.count} tokens{f'. {story.ended}' if ended else ' so far'}"
        status.value = prose(so_far if settings_used else story.ended).data
        text.value = _story_html(tokenizer, story, chosen.value)

    def show(change: Any = None) -> None:
        show_story()
        show_probabilities()

    def show_first_token() -> None:
        """Choose the first generated token. If there is none, choose the end of the prompt."""
        chosen.value = min(1, story.count)
        chosen.max = max(1, story.count)
        show()

    def generate_more(change: Any = None) -> None:
        """Generate for a moment. Then wait for the browser, so that the callbacks of pressed buttons run first."""
        nonlocal story
        if change and echo.value != pulse.value:
            return  # it came from a slow browser, or from a second window on the same notebook
        for story in snapshots:
            show_story()
            if story.ended:
                show_first_token()
            if echo.value:  # there is a browser
                pulse.value += 1
                return

    def start(button: Any = None) -> None:
        nonlocal story, settings_used, snapshots
        values = f"temperature {temperature.value:.2f}, top_k {top_k.label}, top_p {top_p.value:.2f}, seed {seed.value}"
        story, settings_used = _new_story(tokenizer, prompt.value), values
        snapshots = _stream_story(model, tokenizer, prompt.value, length.value, _SECONDS, seed=seed.value, **settings())
        show_first_token()
        generate_more()

    def end_story(button: Any = None, reason: str = "You stopped it.") -> None:
        nonlocal story, snapshots
        story, snapshots = replace(story, ended=story.ended or reason), iter(())
        show_first_token()

    def new_prompt(change: Any) -> None:
        nonlocal story, settings_used
        story, settings_used = _new_story(tokenizer, prompt.value), ""
        end_story(reason="Not generated yet: press Generate.")

    def guarded(callback: Callable[[Any], None], change: Any = None) -> None:
        """Call a callback, and show its error in the widget."""
        try:
            callback(change)
        except Exception as error:
            generate.disabled, stop.disabled = False, True
            status.value = prose(str(error).partition("\n")[0] or type(error).__name__).data

    for control in (temperature, top_k, top_p):
        control.observe(partial(guarded, show_probabilities), "value")
    chosen.observe(partial(guarded, show), "value")
    prompt.observe(partial(guarded, new_prompt), "value")
    echo.observe(partial(guarded, generate_more), "value")
    generate.on_click(partial(guarded, start))
    stop.on_click(partial(guarded, end_story))
    shown = {"generate": generate, "stop": stop, "status": status, "story": text, "probabilities": probabilities}
    for name, part in (controls | shown).items():
        part.add_class(f"playground-{name}")
    guarded(start)
    buttons = widgets.HBox([generate, stop])
    left = widgets.VBox([prompt, temperature, top_k, top_p, length, seed, buttons, status, text], layout=_COLUMN)
    right = widgets.VBox([chosen, probabilities], layout=_COLUMN)
    return widgets.VBox([widgets.HBox([left, right], layout=_SIDE_BY_SIDE), pulse, echo])


def _make_controls(vocab_size: int, prompts: Sequence[str]) -> dict[str, widgets.ValueWidget]:
    """Return the prompt and the sliders by name. They react only when the mouse is released."""
    top_ks = [(str(k), k) for k in _TOP_KS if k < vocab_size] + [("all", vocab_size)]
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
    return controls
