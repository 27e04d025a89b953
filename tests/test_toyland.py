"""The laws of the built-in stories."""

import copy
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import yaml

from tinystories_lab.data import toyland
from tinystories_lab.data.text import PROMPTS
from tinystories_lab.data.toyland import generate_stories

VOWEL_BUT_A = {"unicorn", "uniform", "useful", "used", "one", "once"}
CONSONANT_BUT_AN = {"hour", "honest"}
SPEAKERS = "he|she|they|many|everyone|all|the|said|asked|called|cried|laughed"
PRONOUNS = {"she": {"she", "her", "hers", "herself"}, "he": {"he", "him", "his", "himself"}}


@pytest.fixture(scope="module")
def many() -> list[str]:
    return list(generate_stories(50_000, seed=3))


@pytest.fixture(scope="module")
def stories(many) -> list[str]:
    """About 350 stories of every plot: every wording occurs."""
    return many[:8_000]


@pytest.fixture(scope="module")
def land() -> dict:
    return yaml.safe_load(Path(toyland.__file__).with_name("toyland.yaml").read_text(encoding="utf-8"))


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def assert_absent(stories: list[str], pattern: str) -> None:
    found = ((story, match) for story in stories for match in re.finditer(pattern, story))
    assert [story[max(match.start() - 40, 0) : match.end() + 40] for story, match in islice(found, 5)] == []


def test_a_seed_always_gives_the_same_stories_and_a_smaller_count_gives_their_beginning():
    stories = list(generate_stories(100, seed=5))
    assert list(generate_stories(100, seed=5)) == stories
    assert list(generate_stories(10, seed=5)) == list(islice(generate_stories(10**12, seed=5), 10)) == stories[:10]
    assert list(generate_stories(0)) == []


def test_the_random_numbers_of_a_seed_never_change():
    # random() gives these numbers on every Python, so the stories agree from 3.11 to 3.13.
    uniform = toyland.random.Random("toyland 0").random
    assert [int(uniform() * 1000) for _ in range(4)] == [641, 236, 859, 868]


def test_another_seed_gives_other_stories_even_a_negative_one():
    assert len({story for seed in (1, 2, -1, 0) for story in generate_stories(300, seed)}) == 4 * 300


def test_no_two_of_50000_stories_are_equal(many):
    assert len(set(many)) == 50_000


def test_two_stories_of_one_plot_agree_less_than_once_in_a_hundred_billion():
    for plot in toyland._load_plots():
        chance = 1.0
        for choice in [line for paragraph in plot.paragraphs for line in paragraph] + plot.draws:
            chance *= sum(1 / len(variant) for variant in choice) / len(choice) ** 2
        assert chance < 1e-11, plot.title


def test_stories_have_50_to_180_words_about_100_on_average_in_2_to_5_paragraphs(many):
    lengths = [len(story.split()) for story in many]
    assert min(lengths) >= 50 and max(lengths) <= 180
    assert 90 <= sum(lengths) / len(lengths) <= 125
    assert {len(story.split("\n\n")) for story in many} <= {2, 3, 4, 5}


def test_no_paragraph_can_be_empty():
    for plot in toyland._load_plots():
        for paragraph in plot.paragraphs:
            assert any(all(all(variant) for variant in line) for line in paragraph), plot.title


def test_the_stories_use_more_than_700_words(stories):
    assert len({word for story in stories for word in words_of(story)}) >= 700


def test_every_one_of_at_least_16_plots_is_used_about_equally_often():
    plots = toyland._load_plots()
    rolls = (toyland.random.Random(f"toyland {seed}").random() for seed in range(2_000))
    counts = Counter(plots[int(roll * len(plots))].title for roll in rolls)
    assert len(counts) == len(plots) >= 16
    assert min(counts.values()) > 2_000 / len(plots) / 2


def test_every_story_has_dialogue(stories):
    assert all(re.search(r'"[A-Z][^"]*[.,!?]"', story) for story in stories)


def test_once_upon_a_time_starts_a_third_to_half_and_the_other_prompts_2_percent_each(many):
    shares = {prompt: sum(story.startswith(prompt) for story in many) / len(many) for prompt in PROMPTS}
    assert 1 / 3 <= shares.pop("Once upon a time") <= 1 / 2
    assert all(share >= 0.02 for share in shares.values()), shares


def test_a_and_an_fit_the_sound_of_the_next_word(stories):
    pairs = {(a.lower(), word.lower()) for story in stories for a, word in re.findall(r"\b([Aa]n?) (\w+)", story)}
    wants_an = {word: word in CONSONANT_BUT_AN or (word[0] in "aeiou" and word not in VOWEL_BUT_A) for _, word in pairs}
    assert [(a, word) for a, word in pairs if (a == "an") != wants_an[word]] == []
    assert {a for a, _ in pairs} == {"a", "an"}


def test_the_grammar_never_writes_a_or_an_before_a_blank(land):
    texts = [plot["story"] for plot in land["plots"].values()] + [str(plot["pick"]) for plot in land["plots"].values()]
    assert re.findall(r"\b[Aa]n?\s+\{", "\n".join(texts)) == []


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"[{}\[\]|/_]", id="notation"),
        pytest.param(r" {2}| \n|\n | $| [.,!?;:]|[.,!?;:]{2}|[.,!?;:][a-zA-Z]|\n{3}", id="misplaced space or mark"),
        pytest.param(r"""[^A-Za-z ,.!?:;'"\n-]""", id="other than plain letters and straight quotes"),
        pytest.param(r"\b(\w+) \1\b", id="word twice in a row"),
        pytest.param(r'[.!?] "?[a-z]', id="new sentence or quote without a capital"),
        pytest.param(r'\."[ \n][a-z]', id="sentence that goes on after a full stop inside a quote"),
        pytest.param(rf'[!?]" (?!({SPEAKERS})\b)[a-z]', id="speech without a speaker"),
    ],
)
def test_no_story_contains(stories, pattern):
    assert_absent(stories, pattern)


def test_every_paragraph_starts_with_a_capital_and_every_story_ends_with_a_full_stop(stories):
    paragraphs = [paragraph for story in stories for paragraph in story.split("\n\n")]
    assert [paragraph for paragraph in paragraphs if not re.match('"?[A-Z]', paragraph)] == []
    assert [story for story in stories if story[-1] not in ".!?" and story[-2:] not in ('."', '!"', '?"')] == []


def test_quotes_open_and_close_in_every_paragraph(stories):
    for paragraph in (paragraph for story in stories for paragraph in story.split("\n\n")):
        outside_and_inside = paragraph.split('"')
        assert len(outside_and_inside) % 2 == 1, paragraph
        for before, said in zip(outside_and_inside[::2], outside_and_inside[1::2], strict=False):
            goes_on = before.endswith(", ")  # "A rope," said Tom, "and a bucket."
            assert said[0].isupper() or goes_on, paragraph
            assert said[-1] in ".,!?" or said == "I give up", paragraph
        assert all(after[:1] in ("", " ") for after in outside_and_inside[2::2]), paragraph


@pytest.mark.parametrize(("pronoun", "other", "missing"), [("she", "he", 0), ("he", "she", 1)])  # Lily's plot
def test_if_everybody_is_a_she_nobody_is_called_he_and_the_other_way_round(land, pronoun, other, missing):
    land = copy.deepcopy(land)
    for title, group in land["cast"].items():
        land["cast"][title] = [kind for kind in group if pronoun in kind]
        for kind in land["cast"][title]:
            kind.pop(other, None)
    plots = [
        toyland._read_plot(title, plot, land)
        for title, plot in land["plots"].items()
        if all(land["cast"][group] for group in plot["cast"].values())
    ]
    assert len(plots) == len(land["plots"]) - missing
    for plot in plots:
        for story in toyland._generate([plot], 150, seed=11):
            assert not PRONOUNS[other] & set(words_of(story)), (plot.title, story)


def test_a_girl_is_she_and_a_boy_is_he_from_the_opening_on(many, land):
    girls = {name for kind in land["cast"]["children"] for name in kind.get("she", [])}
    boys = {name for kind in land["cast"]["children"] for name in kind.get("he", [])}
    assert girls and boys and not girls & boys
    opening = re.compile(r"(?:girl|boy) named (\w+)[^.]*\. One \w+(?: \w+)?, (she|he) ")
    calls = {match.groups() for story in many[:20_000] if (match := opening.search(story))}
    assert len(calls) >= 40
    assert {name for name, pronoun in calls if pronoun == "she"} <= girls
    assert {name for name, pronoun in calls if pronoun == "he"} <= boys


def test_no_two_characters_of_a_story_share_a_name():
    for plot in toyland._load_plots():
        if {"hero", "friend"} <= set(plot.roles):
            only_names = plot._replace(paragraphs=[[[["{hero} {friend}"]]]])
            pairs = toyland._generate([only_names], 3_000, seed=1)
            assert all(len(set(pair.split())) == 2 for pair in pairs), plot.title


def test_no_two_characters_of_different_kinds_share_a_name(land):
    names = Counter()
    for title, group in land["cast"].items():
        if title not in ("just lily", "parents"):
            names.update({name for kind in group for pronoun in ("she", "he") for name in kind.get(pronoun, [])})
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("count", [-1, 1.5, "3", None])
def test_a_count_or_seed_that_is_not_an_integer_raises_a_value_error_at_the_call(count):
    with pytest.raises(ValueError, match=r"^count must be an integer of 0 or more, not .*\.$"):
        generate_stories(count)
    with pytest.raises(ValueError, match=r"^seed must be an integer, not 'x'\.$"):
        generate_stories(1, seed="x")


HERO, TWO_LILYS = {"hero": "children"}, {"hero": "just lily", "friend": "just lily"}
CIRCLE = {"toy": ["ball", "{thing}"], "thing": ["kite", "big {box}"], "box": ["tin of {toy}"]}
NOT_TEXT = {"answer": [{"answer": False}]}


@pytest.mark.parametrize(
    ("cast", "pick", "story", "message"),
    [
        (HERO, {}, "{hero} saw a {dragn}.", "has blanks that nothing fills: dragn."),
        (HERO, NOT_TEXT, "{hero} {answer}.", "put quotes around the text of 'answer', which is read as False"),
        (HERO, CIRCLE, "{hero} saw {toy}.", "refer to each other in a circle: {toy} -> {thing} -> {box} -> {toy}."),
        ({}, {"toy": ["old {toy}"]}, "A {toy}.", "refer to each other in a circle: {toy} -> {toy}."),
        (HERO, {}, None, "has no story"),
        ({"hero": "dragons"}, {}, "{hero} flew.", "has the unknown cast dragons: use one of children, "),
        (TWO_LILYS, {}, "{hero} met {friend}.", "has too few names for the roles hero, friend"),
    ],
)
def test_a_plot_that_cannot_be_written_out_is_named_with_the_reason(land, cast, pick, story, message):
    with pytest.raises(ValueError, match=rf"^The plot 'dragons'.*{re.escape(message)}"):
        toyland._read_plot("dragons", {"cast": cast, "pick": pick, "story": story}, land)


def test_a_plot_needs_neither_a_cast_nor_a_pick(land):
    for plot, stories in (
        ({"story": "It rained."}, {"It rained."}),
        ({"story": "{A toy}!", "cast": None, "pick": {"toy": ["ball", "egg"]}}, {"A ball!", "An egg!"}),
    ):
        assert set(toyland._generate([toyland._read_plot("rain", plot, land)], 20, seed=1)) == stories
