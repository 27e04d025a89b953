"""HTML pieces: every text is shown as it is, in the page's own colours."""

import re
from base64 import b64decode
from html.parser import HTMLParser
from itertools import pairwise

from tinystories_lab.analysis.curves import new_axes
from tinystories_lab.notebook import html

NASTY = "<script>alert('&')</script>\n\ta  b"
PIECES = {
    "prose": lambda text: html.prose(text),
    "code": lambda text: html.code(text),
    "cards": lambda text: html.cards([(text, text), ("second", "other")]),
    "tokens": lambda text: html.tokens([text, " Lily"], chosen=0),
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
    for name in ("prose", "cards", "tokens", "table"):
        assert "unicode-bidi: plaintext" in PIECES[name]("סיפור").data, name


def test_tokens_join_to_their_text_and_neighbours_have_different_colours():
    page = Reader(html.tokens(["Once", " upon", " a", " t", "ime"], chosen=2))
    assert page.text == "Once upon a time"
    spans = [attributes["style"] for tag, attributes in page.tags if tag == "span"]
    assert all(one.split(";")[0] != other.split(";")[0] for one, other in pairwise(spans))
    assert [html._CHOSEN in span for span in spans] == [False, False, True, False, False]


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
