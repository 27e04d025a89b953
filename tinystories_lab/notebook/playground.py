"""A playground: generate a story while you watch, and see at every token which others were likely.

A kernel runs one widget callback at a time, so a callback that generates a whole story would block the Stop button.
Threads are no way out: what they send after their cell has finished does not reach every front end (Colab:
googlecolab/colabtools issue 3373). So the browser sets the pace, as a heartbeat. A callback generates for a moment and
increases `pulse`. A `jslink` copies that to `echo` in the browser. The change of `echo` comes back as a new message, which
is queued behind any button that was pressed in the meantime. The link also copies once as soon as it is displayed. If
nothing has ever come back, there is no browser, and Generate generates the whole story at once.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as widgets
from tokenizers import Tokenizer

from tinystories_lab.analysis.next_token import token_text, top_next_tokens
from tinystories_lab.data.text import PROMPTS
from tinystories_lab.generate import NEW_TOKENS, TEMPERATURE, TOP_K, stream
from tinystories_lab.model import GPTMini
from tinystories_lab.notebook.html import bars, prose, tokens
from tinystories_lab.tokenizer import decode_continuation, encode_prompt, eos_id

_SECONDS = 0.1  # of generating between two looks at the buttons
_TOKENS_PER_SECOND = 40  # at most: nobody can watch or stop a small model at its full speed
_MIN_TOKENS = 2  # per heartbeat, even if the browser answers sooner than they are due
_CONTEXT = 30  # characters shown before a token
_TOP_KS = (1, 2, 3, 5, 10, 20, 50, 100, 200)
_COLUMN = {"flex": "1 1 18em", "min_width": "0", "max_width": "40em", "margin": "0 1em 0 0", "overflow": "visible"}
_SIDE_BY_SIDE = {"flex_flow": "row wrap", "align_items": "flex-start", "overflow": "visible"}
_HTML_LAYOUT = {"width": "auto", "overflow": "visible"}


@dataclass(frozen=True)
class _Story:
    """A story so far. The first `start` ids are the prompt's; `ended` is the reason why it ended, or empty."""

    prompt: str
    ids: tuple[int, ...]
    start: int
    ended: str = ""

    @property
    def count(self) -> int:
        """Number of generated tokens, `<|endoftext|>` included."""
        return len(self.ids) - self.start


def _new_story(tokenizer: Tokenizer, prompt: str) -> _Story:
    """Return a story without generated tokens. An empty prompt starts after `<|endoftext|>`, as every story does."""
    ids = encode_prompt(tokenizer, prompt)
    return _Story(prompt, tuple(ids), len(ids))


def _stream_story(
    model: GPTMini, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, seconds: float, **settings: Any
) -> Iterator[_Story]:
    """Yield the story that `generate` returns for the same settings, while it grows and once it has ended.

    The next snapshot is due after `seconds`, or sooner if the story has grown by _TOKENS_PER_SECOND for the time since
    the last snapshot was taken. A story that ended by itself has `<|endoftext|>` as its last token. Raises ValueError as
    `stream` does.
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
    """Return the text of a growing story, or the coloured tokens of one that has ended.

    Number `chosen` of the generated tokens, counted from 1, has a frame.
    """
    if not story.ended:
        return prose(story.prompt + decode_continuation(tokenizer, story.ids, story.start) + " ...").data
    texts = [token_text(tokenizer, token) for token in story.ids]
    return tokens(texts, chosen=story.start + chosen - 1 if chosen else None).data


def _probabilities_html(model: GPTMini, tokenizer: Tokenizer, story: _Story, chosen: int = 0, **settings: Any) -> str:
    """Return bars for what number `chosen` of the generated tokens could have been; 0 means the token after the prompt.

    An arrow marks the token that was drawn.
    """
    place = story.start + max(0, chosen - 1)
    before = story.ids[:place]
    rows = top_next_tokens(model, tokenizer, before, sampled=story.ids[place] if chosen else None, **settings)
    text = tokenizer.decode(before, skip_special_tokens=False).rstrip("\ufffd")
    context = text if len(text) <= _CONTEXT else "..." + text[-_CONTEXT:]
    heading = f"What may follow “{context}”{' (→ was drawn)' if chosen else ''}"
    legend = "Filled: with the sliders’ settings. Outline: the model’s own probabilities."
    return prose(heading).data + bars(rows).data + prose(legend).data


def story_playground(model: GPTMini, tokenizer: Tokenizer, prompts: Sequence[str] = PROMPTS) -> widgets.VBox:
    """Return a widget that generates a story while you watch, and shows the probabilities at each of its tokens.

    It has a prompt with suggestions, sliders for the settings, and the buttons Generate and Stop. Errors are shown in the
    widget. Each part has the CSS class playground-NAME. This is one long function because its callbacks share one story.
    """
    controls = _make_controls(model.config.vocab_size, prompts)
    prompt, temperature, top_k, top_p, length, seed, chosen = controls.values()
    generate = widgets.Button(description="Generate", button_style="primary")
    stop = widgets.Button(description="Stop")
    status, text, probabilities = (widgets.HTML(layout=_HTML_LAYOUT) for _ in range(3))
    pulse, echo = (widgets.IntText(value=value, layout={"display": "none"}) for value in (1, 0))
    widgets.jslink((pulse, "value"), (echo, "value"))
    story, settings_used, snapshots = _new_story(tokenizer, prompt.value), "", iter(())

    def settings() -> dict[str, Any]:
        filter_by_p = top_p.value if top_p.value < 1 else None
        return {"temperature": temperature.value, "top_k": top_k.value, "top_p": filter_by_p}

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
        """Choose the first generated token, or the end of the prompt if there is none."""
        chosen.value = min(1, story.count)
        chosen.max = max(1, story.count)
        show()

    def generate_more(change: Any = None) -> None:
        """Generate for a moment, then wait for the browser, so that callbacks of pressed buttons run first."""
        nonlocal story
        if change and echo.value != pulse.value:
            return  # from a second window on the same notebook, or from a slow browser
        for story in snapshots:
            show_first_token() if story.ended else show_story()
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

    def guarded(callback: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return the callback with its errors shown in the widget."""

        def call(change: Any = None) -> None:
            try:
                callback(change)
            except Exception as error:
                generate.disabled, stop.disabled = False, True
                status.value = prose(str(error).partition("\n")[0] or type(error).__name__).data

        return call

    for control in (temperature, top_k, top_p):
        control.observe(guarded(show_probabilities), "value")
    chosen.observe(guarded(show), "value")
    prompt.observe(guarded(new_prompt), "value")
    echo.observe(guarded(generate_more), "value")
    generate.on_click(guarded(start))
    stop.on_click(guarded(end_story))
    shown = {"generate": generate, "stop": stop, "status": status, "story": text, "probabilities": probabilities}
    for name, part in (controls | shown).items():
        part.add_class(f"playground-{name}")
    guarded(start)()
    buttons = widgets.HBox([generate, stop])
    left = widgets.VBox([prompt, temperature, top_k, top_p, length, seed, buttons, status, text], layout=_COLUMN)
    right = widgets.VBox([chosen, probabilities], layout=_COLUMN)
    return widgets.VBox([widgets.HBox([left, right], layout=_SIDE_BY_SIDE), pulse, echo])


def _make_controls(vocab_size: int, prompts: Sequence[str]) -> dict[str, widgets.ValueWidget]:
    """Return the prompt and the sliders by name. They change only when the mouse is released."""
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
