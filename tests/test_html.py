"""HTML pieces: every text is shown as it is, in the page's own colours."""

import math
import re
from base64 import b64decode
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from tinystories_lab.analysis.curves import new_axes
from tinystories_lab.notebook import html

NASTY = "<script>alert('&')</script>\n\ta  b"
PIECES = {
    "prose": lambda text: html.prose(text),
    "code": lambda text: html.code(text),
    "cards": lambda text: html.cards([(text, text), ("second", "other")]),
    "tokens": lambda text: html.tokens([text, " Lily"], chosen=0),
    "shaded": lambda text: html.shaded([(text, 1, "50%"), (" Lily", 0, "0%")], chosen=0),
    "surprisal": lambda text: html.surprisal([(text, 0.5), (" Lily", 1.0)]),
    "columns": lambda text: html.columns(html.prose(text), html.prose("beside")),
    "heatmap": lambda text: html.heatmap([[(text, 0.5)]]),
    "bars": lambda text: html.bars([(text, 0.5, 1.0)]),
    "facts": lambda text: html.facts({text: text, "loss": "2.4"}),
    "stack": lambda text: html.stack(html.prose(text), html.prose("below")),
    "table": lambda text: html.table([{text: text, "number": 1}]),
}


class Reader(HTMLParser):
    """Collects tags and text, and checks that every tag is closed."""

    def __init__(self, piece):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(piece.data)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_any_text_is_shown_unchanged_and_never_run():
    for name, make in PIECES.items():
        page = Reader(make(NASTY))
        assert page.text.count(NASTY) == make("plain words").data.count("plain words") and NASTY in page.text, name
        assert "script" not in dict(page.tags) and not page.open, name


def test_every_piece_uses_the_text_colour_of_the_page():
    for name, make in PIECES.items():
        assert not re.search(r"(?<![-\w])color:", make("text").data), name


def test_a_text_runs_in_the_direction_of_its_own_script():
    for name in ("prose", "cards", "tokens", "shaded", "surprisal", "table"):
        assert "unicode-bidi: plaintext" in PIECES[name]("סיפור").data, name


def test_tokens_join_to_their_text_and_neighbours_have_different_colours():
    page = Reader(html.tokens(["Once", " upon", " a", " t", "ime"], chosen=2))
    assert page.text == "Once upon a time"
    spans = [attributes["style"] for tag, attributes in page.tags if tag == "span"]
    assert all(one.split(";")[0] != other.split(";")[0] for one, other in pairwise(spans))
    assert [html._CHOSEN in span for span in spans] == [False, False, True, False, False]


def strengths_of(page):
    """The opacity of each blue background of a piece, and the tooltip of its element."""
    look = [(attributes.get("style", ""), attributes.get("title")) for _, attributes in Reader(page).tags]
    return [(float(found[1]), tip) for style, tip in look if (found := re.search(r"114, 178, ([\d.]+)\)", style))]


def contrast(one, other):
    """The contrast ratio of two grey or coloured pixels with values from 0 to 1, as WCAG 2 defines it."""
    linear = ([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in pixel] for pixel in (one, other))
    dark, light = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear)
    return (light + 0.05) / (dark + 0.05)


def test_the_blue_of_a_token_grows_with_its_surprisal_and_its_tooltip_has_the_figures():
    rows = [(" a", math.exp(-nats)) for nats in (0, 1, 3, 6, 20)]
    strengths, tips = zip(*strengths_of(html.surprisal(rows))[: len(rows)], strict=True)
    assert strengths == pytest.approx([strengths[3] * share for share in (0, 1 / 6, 1 / 2, 1, 1)], abs=2e-3)
    assert tips[:3] == ("0.00 nats, probability 1", "1.00 nats, probability 0.37", "3.00 nats, probability 0.05")
    assert strengths_of(html.surprisal(rows, widest=12))[3][0] == pytest.approx(strengths[3] / 2, abs=2e-3)


def test_the_legend_of_surprisal_has_the_colours_that_it_explains():
    for widest, marks in ((6, " 0  2  4  6+ "), (3, " 0  1  2  3+ ")):
        legend = html.surprisal([], widest)
        assert Reader(legend).text.endswith(f"surprisal in nats: {marks}")
        rows = [("a", math.exp(-widest * third / 3)) for third in range(4)]
        colours = [strength for strength, _ in strengths_of(html.surprisal(rows, widest, legend=False))]
        assert [strength for strength, _ in strengths_of(legend)][1:] == pytest.approx(colours, abs=2e-3)


def test_black_and_white_text_is_readable_on_the_strongest_blue():
    ((strength, _),) = strengths_of(html.heatmap([[("text", 1)]]))
    for page, text in ((1, 0), (0.067, 0.87)):  # as in the light and the dark theme of JupyterLab
        mixed = [strength * value / 255 + (1 - strength) * page for value in (0, 114, 178)]
        assert contrast(mixed, [text] * 3) >= 4.5
        assert contrast(mixed, [page] * 3) >= 2, "it can be told from the page"


def test_the_chosen_shaded_token_has_a_frame_those_after_it_are_pale_and_a_line_break_has_a_width():
    page = Reader(html.shaded([("a", 0.5, f'"{NASTY}"'), ("\n", 0.5, ""), ("b", 0.5, ""), ("c", 0, "")], chosen=2))
    styles = [attributes["style"] for tag, attributes in page.tags if tag == "span"]
    assert page.text == "a\nbc" and page.tags[1][1]["title"] == f'"{NASTY}"'
    assert [html._CHOSEN in style for style in styles] == [False, False, True, False]
    assert ["opacity" in style for style in styles] == [False, False, False, True]
    assert ["padding-left" in style for style in styles] == [False, True, False, False]


def test_a_bar_is_as_wide_as_its_share_of_the_widest():
    widths = [re.findall(r"width: ([\d.]+%)", html.bars([("a", 0.1, 0.05)], widest).data) for widest in (1, 0.2)]
    assert widths == [["5.0%", "10.0%"], ["25.0%", "50.0%"]]
    assert "10.0%" in Reader(html.bars([("a", 0.1, 0.05)], widest=0.2)).text


def test_a_table_has_a_heading_per_key_and_right_aligned_readable_numbers():
    page = html.table(
        [{"run": "one", "tokens": 1_234_567, "loss": 0.12345}, {"run": "two", "tokens": None, "loss": 12.3}]
    )
    cells = dict(re.findall(r'<td id="(\w+)"[^>]*>(.*?)</td>', page.data))
    assert list(cells.values()) == ["one", "1,234,567", "0.123", "two", "–", "12.3"]
    rules = re.findall(r"(#[^{]*){([^}]*)}", page.data)
    right = {cells[cell] for names, rule in rules if "right" in rule for cell in re.findall(r"#(\w+)", names)}
    assert right == {"1,234,567", "0.123", "–", "12.3"}
    assert not any("text-align" in rule for names, rule in rules if "td" in names), "it would win over those of cells"
    assert re.findall(r"<th[^>]*>(.*?)</th>", page.data) == ["run", "tokens", "loss"]


def test_a_picture_is_part_of_the_page_and_is_described():
    page = Reader(html.picture(new_axes("A title", "x", "y").figure, alt='the "loss" <b>'))
    ((tag, attributes),) = page.tags
    assert tag == "img" and attributes["alt"] == 'the "loss" <b>' and "max-width: 100%" in attributes["style"]
    assert b64decode(attributes["src"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
