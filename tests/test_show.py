"""Text made visible: what is shown is all there, and none of it is taken for HTML."""

from base64 import b64decode
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from tinystories_lab.notebook import show
from tinystories_lab.notebook.plots import new_axes

MEAN = "<script>alert('&')</script>\n\ta  b"
MADE = {
    "code": lambda text: show.code(text),
    "facts": lambda text: show.facts({text: text, "loss": "2.4"}),
    "stack": lambda text: show.stack(show.prose(text), show.prose("below")),
    "prose": lambda text: show.prose(text),
    "cards": lambda text: show.cards([(text, text), ("second", "other")]),
    "tokens": lambda text: show.tokens([text, " Lily"], chosen=0),
    "bars": lambda text: show.bars([(text, 0.5, 1.0)]),
    "table": lambda text: show.table([{text: text, "number": 1}]),
}


class Reader(HTMLParser):
    """Collects tags and text, and sees to it that every tag is closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", MADE)
def test_any_text_is_shown_to_the_letter_and_not_run(name):
    page = Reader(MADE[name](MEAN).data)
    assert MEAN in page.text and "script" not in dict(page.tags)
    assert not page.open, "every tag is closed"


@pytest.mark.parametrize("name", MADE)
def test_what_is_shown_takes_the_pages_own_text_colour(name):
    for _, attributes in Reader(MADE[name]("text").data).tags:
        assert not attributes.get("style", "").startswith("color:") and "; color:" not in attributes.get("style", "")


def test_pieces_stand_together_as_the_text_they_were_cut_from_and_neighbours_differ():
    pieces = ["Once", " upon", " a", " t", "ime"]
    page = Reader(show.tokens(pieces, chosen=2).data)
    assert page.text == "Once upon a time"
    spans = [attributes["style"] for tag, attributes in page.tags if tag == "span"]
    assert all(one.split(";")[0] != other.split(";")[0] for one, other in pairwise(spans))
    assert [show._CHOSEN in span for span in spans] == [False, False, True, False, False]


def test_a_bar_is_as_wide_as_its_share():
    page = Reader(show.bars([(" the", 0.625, 0.25), (" a", 0, 1)]).data)
    widths = [attributes["style"] for tag, attributes in page.tags if "width: " in attributes.get("style", "")]
    assert ["62.5%" in style or "25.0%" in style for style in widths if "62.5%" in style or "25.0%" in style] == [
        True
    ] * 2
    assert "62.5%" in page.text and "0.0%" in page.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (0.12345, "0.123"),
        (12.345, "12.3"),
        (5.0, "5.00"),
        (0.0, "0.00"),
        (99.97, "100"),
        (None, "–"),
        (1234.5, "1,234"),
        ("words", "words"),
        (True, "True"),
    ],
)
def test_numbers_are_shown_as_people_read_them(value, text):
    assert show.shown(value) == text


def test_the_widest_bar_may_be_less_than_everything():
    page = Reader(show.bars([("one", 0.2, 0.2), ("two", 0.1, 0.1)], widest=0.2).data)
    styles = " ".join(attributes.get("style", "") for _, attributes in page.tags)
    assert styles.count("width: 100.0%") == styles.count("width: 50.0%") == 2 and "20.0%" in page.text


@pytest.mark.parametrize("name", ["prose", "cards", "tokens", "table"])
def test_a_text_runs_in_the_direction_of_its_own_script(name):
    styles = [attributes.get("style", "") for _, attributes in Reader(MADE[name]("סיפור").data).tags]
    assert any("unicode-bidi: plaintext" in style for style in styles)


def test_a_picture_is_part_of_the_page_and_says_what_it_shows():
    page = Reader(show.picture(new_axes("A title", "x", "y").figure, says='the "loss" <b>').data)
    ((tag, attributes),) = page.tags
    assert tag == "img" and attributes["alt"] == 'the "loss" <b>' and "max-width: 100%" in attributes["style"]
    assert b64decode(attributes["src"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
