"""Sliders over merges and budgets, views of attention and surprisal, and a form to rate stories."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from statistics import fmean

import ipywidgets as widgets
from IPython.display import HTML
from tokenizers import Tokenizer

from tinystories_lab.analysis.attention import attention_weights, strongest_attention
from tinystories_lab.analysis.bpe import merge_history, merges, quote
from tinystories_lab.analysis.budget import budget
from tinystories_lab.analysis.evaluation import format_value
from tinystories_lab.analysis.next_token import token_probabilities, token_text
from tinystories_lab.analysis.ratings import MAX_RATING, QUESTIONS, average_ratings, save_rating, unrated
from tinystories_lab.analysis.timelapse import story_card
from tinystories_lab.config import TrainConfig
from tinystories_lab.data.text import opening
from tinystories_lab.files import Row, read_rows
from tinystories_lab.model import GPTConfig, GPTMini
from tinystories_lab.notebook.html import bars, cards, columns, heatmap, prose, shaded, stack, surprisal, table, tokens
from tinystories_lab.tokenizer import encode_prompt

_WIDE = {"width": "95%", "max_width": "640px"}
# Sliders react only when the mouse is released.
_LOOK = {"layout": _WIDE, "style": {"description_width": "90px"}, "continuous_update": False}
_HEAD_WIDTH = 64  # values of d_model per attention head
_TITLE_WORDS = 6  # enough to recognize a story
_BARS = 5  # tokens with the most attention
_GRID = "The earlier word that each head looks at most, among tokens with a letter or a digit (→ is the chosen head):"
_SENTENCE = "Once upon a time, there was a little stone who ate the moon."
_NO_MARK = "–"  # the first position of a slider, so that nobody gives a mark by accident
# A name is a capitalized word inside a sentence. "It" is missing, because it seldom stands for a name.
_PRONOUN_AFTER_NAME = re.compile(r"(?<=[\w,] )[A-Z][a-z].*?\b(?i:(she|he|her|his|him|they))\b", re.DOTALL)


def merge_slider(tokenizer: Tokenizer, sentence: str) -> widgets.VBox:
    """Return a field for a sentence, and a slider over the merges that change it, in the order they were learned."""
    learned, history_of = len(merges(tokenizer)), cache(partial(merge_history, tokenizer))
    text = widgets.Text(sentence, description="sentence", **_LOOK)
    slider = widgets.IntSlider(0, min=0, max=len(history_of(sentence)) - 1, description="merges", **_LOOK)

    def show(sentence: str, place: int) -> HTML:
        step = history_of(sentence)[place]
        pair = " + ".join(map(repr, step.pair))
        merge = f"merge {step.number:,} of {learned:,}: {pair}" if pair else "no merge yet"
        says = f"{merge}. {len(step.pieces)} tokens for {len(sentence.encode())} bytes."
        made = step.pieces.index(step.made) if step.made in step.pieces else None
        return stack(prose(says), tokens(step.pieces, made))

    def fit_slider(change: dict) -> None:
        slider.max = len(history_of(text.value)) - 1  # this also lowers a value that is too high

    text.observe(fit_slider, "value")  # before `interactive` does, so that the slider fits the sentence first
    return widgets.interactive(show, {"auto_display": True}, sentence=text, place=slider)


def budget_sliders(model: GPTConfig, tokens: int, train: TrainConfig, speeds: Mapping[str, float]) -> widgets.VBox:
    """Return sliders for layers, width and tokens, and a table of the time that such a run takes on each machine."""

    def show(n_layer: int, d_model: int, millions: int) -> HTML:
        config = GPTConfig(model.vocab_size, n_layer, d_model // _HEAD_WIDTH, d_model)
        lines = budget(config, millions * 1_000_000, train.tokens_per_step, speeds)
        return table([{"a run of this size": name, "takes": value} for name, value in lines.items()])

    return widgets.interactive(
        show,
        {"auto_display": True},
        n_layer=widgets.IntSlider(model.n_layer, min=1, max=16, **_LOOK),
        d_model=widgets.IntSlider(model.d_model, min=64, max=1024, step=_HEAD_WIDTH, **_LOOK),
        millions=widgets.IntSlider(round(tokens / 1e6), min=10, max=1_000, step=10, description="tokens (M)", **_LOOK),
    )


def attention_view(model: GPTMini, tokenizer: Tokenizer, text: str) -> widgets.VBox:
    """Return a slider over the tokens of a text, and how much attention a head gives to each token before.

    It starts at the first pronoun after a name, or else at the last token, with the head that looks most at one word.
    It shows the first max_len tokens, after `<|endoftext|>`. Raises ValueError for an empty text.
    """
    encoding = tokenizer.encode(text, add_special_tokens=False)
    if not encoding.ids:
        raise ValueError("the text has no tokens: use a text with at least one word")
    ids = [*encode_prompt(tokenizer, ""), *encoding.ids][: model.config.max_len]
    texts, weights = [token_text(tokenizer, token) for token in ids], attention_weights(model, ids)
    layers, heads = (range(1, size + 1) for size in weights.shape[:2])
    pronoun = _PRONOUN_AFTER_NAME.search(text)
    before = sum(end <= pronoun.start(1) for _, end in encoding.offsets) if pronoun else len(ids)
    start = min(1 + before, len(ids) - 1)
    first_layer, first_head, *_ = (strongest_attention(model, tokenizer, ids, start) or [(1, 0)])[0]

    def show(token: int, layer: int, head: int) -> HTML:
        shares = weights[layer - 1, :, token - 1, :token]  # (n_head, token): the token before it looks back
        shares = (shares[head - 1] if head else shares.mean(0)).tolist()
        says = f"When the model predicts {quote(texts[token])} (framed), it has read up to the token before, "
        says += f"{quote(texts[token - 1])}, and looks back from there. The stronger the blue, the more attention."
        read = [(text, share / max(shares), f"{share:.1%}") for text, share in zip(texts, shares, strict=False)]
        unread = [(text, 0, "not read yet") for text in texts[token:]]
        top = sorted(zip(map(quote, texts), shares, shares, strict=False), key=itemgetter(1), reverse=True)[:_BARS]
        grid = [[("", 0.0)] + [(f"head {n}", 0.0) for n in heads], *([(f"layer {n}", 0.0)] for n in layers)]
        for n, its_head, word, share in sorted(strongest_attention(model, tokenizer, ids, token, count=None)):
            arrow = "→ " if n == layer and head in (0, its_head) else ""
            grid[n].append((f"{arrow}{quote(word)}\n{share:.0%}", share))
        left = stack(prose(says), shaded(read + unread, token), bars(top))
        return columns(left, stack(prose(_GRID), heatmap(grid)))

    return widgets.interactive(
        show,
        {"auto_display": True},
        token=widgets.IntSlider(start, min=1, max=len(ids) - 1, **_LOOK),
        layer=widgets.Dropdown(value=first_layer, options=layers),
        head=widgets.Dropdown(value=first_head, options=[("all heads", 0), *((str(n), n) for n in heads)]),
    )


def surprisal_view(
    model: GPTMini, tokenizer: Tokenizer, texts: Sequence[tuple[str, str]], sentence: str = _SENTENCE
) -> widgets.VBox:
    """Return a field for a sentence, which is shown above the texts (heading, text), coloured by their surprisal."""

    def piece(heading: str, text: str) -> HTML:
        rows = token_probabilities(model, tokenizer, text)
        loss = -fmean(math.log(probability) for _, probability in rows)
        last = "the last " if len(rows) == model.config.max_len else ""
        says = f"{heading} ({last}{len(rows)} tokens): loss {loss:.2f} nats per token, "
        return stack(prose(f"{says}perplexity {format_value(math.exp(loss))}"), surprisal(rows, legend=False))

    given = [piece(*text) for text in texts]  # errors in these appear in the notebook

    def show(sentence: str) -> HTML:
        try:
            own = piece("your sentence", sentence)
        except (TypeError, ValueError):  # the messages do not say what to type
            own = prose(f"Type {'other characters: the tokenizer cannot read these' if sentence else 'a sentence'}.")
        return stack(own, surprisal([]), *given)

    text = widgets.Text(sentence, description="sentence", **_LOOK)
    return widgets.interactive(show, {"auto_display": True}, sentence=text)


def timelapse(rows: Sequence[Row]) -> widgets.VBox | HTML:
    """Return a slider over the steps of `read_timelapse`, with the story of each. Without rows, return a sentence."""
    if not rows:
        return prose("The time-lapse has no story yet: it gets the first one when training starts.")
    steps = [(f"{row['step']:,}", place) for place, row in enumerate(rows)]
    slider = widgets.SelectionSlider(options=steps, description="step", **_LOOK | {"continuous_update": True})
    return widgets.interactive(lambda place: cards([story_card(rows[place])]), {"auto_display": True}, place=slider)


def rating_form(deck: Sequence[Mapping[str, str]], path: str | Path, rater: str = "me") -> widgets.VBox:
    """Return a form with one unrated story of a `blind_deck` at a time, a slider per question and a Next button.

    Next saves the marks in `path` at once. After the last story, the form shows who wrote each story, and the averages.
    """
    progress, story, status = widgets.HTML(), widgets.HTML(), widgets.HTML()
    marks = [_NO_MARK, *map(str, range(MAX_RATING + 1))]
    sliders = {name: widgets.SelectionSlider(options=marks, description=name, layout=_WIDE) for name in QUESTIONS}
    next_button = widgets.Button(description="Next", tooltip="Save these marks and show the next story")
    form = widgets.VBox([progress, story, *sliders.values(), next_button, status])
    parts = {"progress": progress, "story": story, "next": next_button, "status": status}
    for name, part in (parts | sliders).items():
        part.add_class(f"rating-{name}")
    remaining = unrated(deck, path, rater)

    def show() -> None:
        if remaining:
            progress.value = prose(f"story {len(deck) - len(remaining) + 1} of {len(deck)}").data
            story.value = prose(remaining[0]["story"]).data
        else:
            progress.value = prose(f"All {len(deck)} stories are rated, and the ratings are in {path}").data
            story.value = stack(table(_marks_given(deck, path, rater)), table(average_ratings(path))).data
            form.children = [progress, story]

    def save(button: widgets.Button) -> None:
        try:
            given = {question: int(slider.value) for question, slider in sliders.items() if slider.value != _NO_MARK}
            save_rating(path, remaining[0], given, rater)
        except (OSError, ValueError) as error:
            status.value = prose(f"not saved: {error}").data
            return
        del remaining[0]
        status.value = ""
        for slider in sliders.values():
            slider.value = _NO_MARK
        show()

    next_button.on_click(save)
    show()
    return form


def _marks_given(deck: Sequence[Mapping[str, str]], path: str | Path, rater: str) -> list[dict[str, object]]:
    """Return one row per story of the deck: its first words, who wrote it, and the marks of this rater."""
    rated = {row["story"]: row for row in read_rows(path) if row.get("rater") == rater}
    rows = []
    for card in deck:
        title = opening(card["story"], _TITLE_WORDS) + " ..."
        given = ", ".join(str(rated[card["story"]][question]) for question in QUESTIONS)
        rows.append({"story": title, "by": card["by"], ", ".join(QUESTIONS): given})  # one column: a phone is narrow
    return rows
