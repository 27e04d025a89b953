"""The laws of the built-in stories."""

import math
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import yaml

from tinystories_lab.data import toyland
from tinystories_lab.data.text import PROMPTS
from tinystories_lab.data.toyland import generate_stories
from tinystories_lab.run import PRESETS
from tinystories_lab.tokenizer import train_tokenizer

VOWEL_BUT_A = {"unicorn", "uniform", "useful", "used", "one", "once"}
CONSONANT_BUT_AN = {"hour", "honest"}
SPEAKERS = "he|she|they|many|everyone|all|the|shouted|cheered|said|asked|called|cried|laughed"


@pytest.fixture(scope="module")
def many() -> list[str]:
    return list(generate_stories(50_000, seed=3))


@pytest.fixture(scope="module")
def stories(many) -> list[str]:
    """About 440 stories of every plot: every wording occurs."""
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


def test_two_stories_of_one_plot_agree_less_than_once_in_a_hundred_million():
    for plot in toyland.load_plots():
        chance = math.prod(1 / len(rows) for rows in plot.picks)
        for line in [line for paragraph in plot.paragraphs for line in paragraph]:
            chance *= sum(1 / len(variant) for variant in line) / len(line) ** 2
        assert chance < 1e-8, plot.title


def test_stories_have_60_to_110_words_about_90_on_average_in_3_or_4_paragraphs(many):
    lengths = [len(story.split()) for story in many]
    assert min(lengths) >= 60 and max(lengths) <= 110
    assert 80 <= sum(lengths) / len(lengths) <= 95
    assert {len(story.split("\n\n")) for story in many} <= {3, 4}


def test_a_story_fits_into_a_window_of_the_tiny_preset_with_its_end_of_text_token(stories):
    preset = PRESETS["tiny"]
    tokenizer = train_tokenizer(stories, preset.model.vocab_size)
    assert max(len(tokenizer.encode(story).ids) for story in stories) < preset.train.seq_len


def test_no_paragraph_can_be_empty():
    for plot in toyland.load_plots():
        for paragraph in plot.paragraphs:
            assert any(all(all(variant) for variant in line) for line in paragraph), plot.title


def test_the_stories_use_600_to_1000_words(stories):
    assert 600 <= len({word for story in stories for word in words_of(story)}) <= 1_000


def hero_of(story: str) -> str:
    """Return the name that a story's beginning gives its hero."""
    named = r"named ([A-Z]\w+)|(?:called|name was) ([A-Z]\w+)|^(?!There)([A-Z]\w+) (?:was|found)"
    return next(filter(None, re.search(named, story).groups()))


def test_every_one_of_at_least_16_plots_is_used_as_often_as_its_share_says(many):
    plots = toyland.load_plots()
    assert len(plots) >= 16 and {plot.share for plot in plots} == {1, 2}
    counts = Counter(map(hero_of, many))
    for plot in plots:
        hero = hero_of(next(toyland._generate([plot], 1, seed=2)))
        expected = len(many) * plot.share / sum(plot.share for plot in plots)
        assert counts[hero] == pytest.approx(expected, rel=0.1), plot.title


def test_every_story_has_dialogue(stories):
    assert all(re.search(r'"[A-Z][^"]*[.,!?]"', story) for story in stories)


def test_once_upon_a_time_starts_a_third_to_half_and_the_other_prompts_4_percent_each(many):
    shares = {prompt: sum(story.startswith(prompt) for story in many) / len(many) for prompt in PROMPTS}
    assert 1 / 3 <= shares.pop("Once upon a time") <= 1 / 2
    assert all(share >= 0.04 for share in shares.values()), shares


def test_a_and_an_fit_the_sound_of_the_next_word(stories):
    pairs = {(a.lower(), word.lower()) for story in stories for a, word in re.findall(r"\b([Aa]n?) (\w+)", story)}
    wants_an = {word: word in CONSONANT_BUT_AN or (word[0] in "aeiou" and word not in VOWEL_BUT_A) for _, word in pairs}
    assert [(a, word) for a, word in pairs if (a == "an") != wants_an[word]] == []
    assert {a for a, _ in pairs} == {"a", "an"}


def test_the_grammar_never_writes_a_or_an_before_a_blank(land):
    texts = [plot["story"] for plot in land["plots"].values()] + [
        str(plot.get("pick")) for plot in land["plots"].values()
    ]
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


def test_every_plot_has_its_own_hero_who_is_named_in_the_beginning_and_in_the_end():
    heroes = {}
    for plot in toyland.load_plots():
        for story in toyland._generate([plot], 200, seed=11):
            assert heroes.setdefault(hero_of(story), plot.title) == plot.title
            assert hero_of(story) in story.split("\n\n")[-1], story
    assert len(heroes) == len(toyland.load_plots())


@pytest.mark.parametrize(
    ("pronouns", "others"),
    [
        (
            {"she", "her", "herself"},
            "Mia|Anna|Sara|Pip|Luna|Emma|Lucy|Nora|Rosie|Shelly|Lily|Kate|Rosa|Grandma|Mom|aunt",
        ),
        (
            {"he", "him", "his", "himself"},
            "Tom|Ben|Hoppy|Bruno|Max|Leo|Zip|Sam|Tiger|Jack|Buddy|Rusty|Peter|Dad|Grandpa|brother|boy|musician",
        ),
    ],
)
def test_a_pronoun_is_used_only_in_stories_in_which_somebody_has_it(stories, pronouns, others):
    for story in stories:
        if pronouns & set(words_of(story)):
            assert re.search(rf"\b({others})\b", story), story


@pytest.mark.parametrize("count", [-1, 1.5, "3", None])
def test_a_count_or_seed_that_is_not_an_integer_raises_a_value_error_at_the_call(count):
    with pytest.raises(ValueError, match=r"^count must be an integer of 0 or more, not .*\.$"):
        generate_stories(count)
    with pytest.raises(ValueError, match=r"^seed must be an integer, not 'x'\.$"):
        generate_stories(1, seed="x")


CIRCLE = {"toy": ["ball", "{thing}"], "thing": ["kite", "big {box}"], "box": ["tin of {toy}"]}
NOT_TEXT = {"answer": [{"answer": False}]}


@pytest.mark.parametrize(
    ("pick", "story", "message"),
    [
        ({}, "Mia saw a {dragn}.", "has blanks that nothing fills: dragn."),
        ({"toy": ["{colr} ball"]}, "Mia saw a {toy}.", "has blanks that nothing fills: colr."),
        (NOT_TEXT, "Mia {answer}.", "put quotes around the text of 'answer', which is read as False"),
        (CIRCLE, "Mia saw {toy}.", "refer to each other in a circle: {toy} -> {thing} -> {box} -> {toy}."),
        ({"toy": ["old {toy}"]}, "A {toy}.", "refer to each other in a circle: {toy} -> {toy}."),
        ({}, None, "has no story"),
    ],
)
def test_a_plot_that_cannot_be_written_out_is_named_with_the_reason(pick, story, message):
    with pytest.raises(ValueError, match=rf"^The plot 'dragons'.*{re.escape(message)}"):
        toyland._read_plot("dragons", {"pick": pick, "story": story})


def test_a_plot_needs_no_pick():
    for plot, stories in (
        ({"story": "It rained."}, {"It rained."}),
        ({"story": "It rained.", "pick": None}, {"It rained."}),
        ({"story": "{A toy}!", "pick": {"toy": ["ball", "egg"]}}, {"A ball!", "An egg!"}),
    ):
        assert set(toyland._generate([toyland._read_plot("rain", plot)], 20, seed=1)) == stories
