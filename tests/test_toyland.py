"""The laws of the built-in stories; each test's name is the law."""

import copy
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import yaml

from tinystories_lab import toyland
from tinystories_lab.toyland import tell_stories

PROMPTS = ["Lily found a big", "The little dog wanted", "On a sunny day,", "There was a kind"]
VOWEL_BUT_A = {"unicorn", "uniform", "useful", "used", "one", "once"}
CONSONANT_BUT_AN = {"hour", "honest"}
SHE, HE = {"she", "her", "hers", "herself"}, {"he", "him", "his", "himself"}


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return list(tell_stories(50_000, seed=3))


@pytest.fixture(scope="module")
def land() -> dict:
    return yaml.safe_load(Path(toyland.__file__).with_name("toyland.yaml").read_text(encoding="utf-8"))


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def none_matches(stories: list[str], pattern: str) -> bool:
    """Whether no story has the pattern; when one has, show it where it stands."""
    found = ((story, match) for story in stories for match in re.finditer(pattern, story))
    shown = [story[max(match.start() - 40, 0) : match.end() + 40] for story, match in islice(found, 5)]
    assert shown == []
    return True


def land_of(land: dict, pronoun: str) -> list[toyland._Plot]:
    """The plots of a land where everybody that can be is called by one pronoun."""
    land = copy.deepcopy(land)
    for title, group in land["cast"].items():
        land["cast"][title] = [kind for kind in group if pronoun in kind]
        for kind in land["cast"][title]:
            kind.pop("he" if pronoun == "she" else "she", None)
    plots = land["plots"].items()
    return [toyland._read_plot(title, plot, land) for title, plot in plots if all_played(land, plot)]


def all_played(land: dict, plot: dict) -> bool:
    return all(land["cast"][group] for group in plot["cast"].values())


def everyone_tells(plots: list[toyland._Plot], count: int) -> list[tuple[str, str]]:
    return [(plot.title, story) for plot in plots for story in toyland._tell([plot], count, seed=11)]


def test_the_same_seed_tells_the_same_stories():
    assert list(tell_stories(300, seed=5)) == list(tell_stories(300, seed=5))


def test_the_dice_of_seed_0_never_change():
    # random() gives these numbers on every Python, so the stories agree from 3.11 to 3.13.
    dice = toyland.random.Random("toyland 0").random
    assert [int(dice() * 1000) for _ in range(4)] == [641, 236, 859, 868]


def test_another_seed_tells_other_stories_even_a_negative_one():
    told = [set(tell_stories(300, seed)) for seed in (1, 2, -1, 0)]
    assert len(set.union(*told)) == 4 * 300


def test_a_shorter_call_is_the_beginning_of_a_longer_call():
    assert list(tell_stories(10, seed=9)) == list(tell_stories(100, seed=9))[:10]
    assert list(islice(tell_stories(10**12, seed=9), 10)) == list(tell_stories(10, seed=9))


def test_no_two_of_50000_stories_are_equal(stories):
    assert len(set(stories)) == 50_000


def test_two_tellings_of_one_plot_agree_less_than_once_in_a_hundred_billion():
    for plot in toyland._toyland():
        chance = 1.0
        for choice in [line for paragraph in plot.paragraphs for line in paragraph] + plot.draws:
            chance *= sum(1 / len(way) for way in choice) / len(choice) ** 2
        assert chance < 1e-11, plot.title


def test_every_story_has_50_to_180_words_and_a_typical_one_about_120(stories):
    lengths = [len(story.split()) for story in stories]
    assert min(lengths) >= 50 and max(lengths) <= 180
    assert 90 <= sum(lengths) / len(lengths) <= 125


def test_every_story_has_2_to_5_paragraphs(stories):
    assert {len(story.split("\n\n")) for story in stories} <= {2, 3, 4, 5}


def test_no_paragraph_can_come_out_empty():
    for plot in toyland._toyland():
        for paragraph in plot.paragraphs:
            assert any(all(all(way) for way in line) for line in paragraph), plot.title


def test_the_stories_know_more_than_700_words(stories):
    assert len({word for story in stories for word in words_of(story)}) >= 700


def test_all_plots_are_told_and_there_are_at_least_16():
    plots = toyland._toyland()
    dice_rolls = Counter()
    for seed in range(2_000):
        first_roll = toyland.random.Random(f"toyland {seed}").random()
        dice_rolls[plots[int(first_roll * len(plots))].title] += 1
    assert len(dice_rolls) == len(plots) >= 16
    assert min(dice_rolls.values()) > 2_000 / len(plots) / 2


def test_every_story_has_dialogue(stories):
    assert all(re.search(r'"[A-Z][^"]*[.,!?]"', story) for story in stories)


def test_once_upon_a_time_opens_a_third_to_half_and_the_other_prompts_2_percent_each(stories):
    def share(prompt):
        return sum(story.startswith(prompt) for story in stories) / len(stories)

    assert 1 / 3 <= share("Once upon a time") <= 1 / 2
    assert all(share(prompt) >= 0.02 for prompt in PROMPTS), {prompt: share(prompt) for prompt in PROMPTS}


def test_a_and_an_fit_the_sound_of_every_word_that_follows_them(stories):
    pairs = {(a.lower(), word.lower()) for story in stories for a, word in re.findall(r"\b([Aa]n?) (\w+)", story)}
    wants_an = {word: word in CONSONANT_BUT_AN or (word[0] in "aeiou" and word not in VOWEL_BUT_A) for _, word in pairs}
    assert [(a, word) for a, word in pairs if (a == "an") != wants_an[word]] == []
    assert {"an"} < {a for a, _ in pairs}


def test_the_grammar_never_writes_a_or_an_before_a_blank(land):
    assert re.findall(r"\b[Aa]n? \{", yaml.safe_dump(land["plots"], width=10**9)) == []


def test_no_mark_of_the_notation_is_left(stories):
    assert none_matches(stories, r"[{}\[\]|/_]")


def test_spaces_and_punctuation_stand_where_they_should(stories):
    assert none_matches(stories, r" {2}| \n|\n | $| [.,!?;:]|[.,!?;:]{2}|[.,!?;:][a-zA-Z]|\n{3}")
    assert all(story == story.strip() and re.search(r'[.!?]"?$', story) for story in stories)


def test_only_plain_letters_and_straight_quotes_are_used(stories):
    assert none_matches(stories, r"""[^A-Za-z ,.!?:;'"\n-]""")


def test_every_sentence_starts_with_a_capital_letter(stories):
    assert none_matches(stories, r'[.!?] "?[a-z]')  # a new sentence, or a new quote
    assert none_matches(stories, r'\."[ \n][a-z]')  # nobody goes on after a full stop inside a quote
    who_said_it = "he|she|they|many|everyone|all|the|said|asked|called|cried|laughed"
    assert none_matches(stories, rf'[!?]" (?!({who_said_it})\b)[a-z]')
    paragraphs = [paragraph for story in stories for paragraph in story.split("\n\n")]
    assert [paragraph for paragraph in paragraphs if not re.match('"?[A-Z]', paragraph)] == []


def test_quotes_open_and_close_in_every_paragraph(stories):
    for story in stories:
        for paragraph in story.split("\n\n"):
            outside_and_inside = paragraph.split('"')
            assert len(outside_and_inside) % 2 == 1, paragraph
            for before, said in zip(outside_and_inside[::2], outside_and_inside[1::2], strict=False):
                goes_on = before.endswith(", ")  # "A rope," said Tom, "and a bucket."
                assert said[0].isupper() or goes_on, paragraph
                assert said[-1] in ".,!?" or said == "I give up", paragraph
            for told in outside_and_inside[2::2]:
                assert told == "" or told[0] == " ", paragraph


def test_no_word_is_said_twice_in_a_row(stories):
    assert none_matches(stories, r"\b(\w+) \1\b")


def test_where_everybody_is_a_she_nobody_is_called_he(land):
    plots = land_of(land, "she")
    assert len(plots) == len(toyland._toyland())
    wrong = [(title, HE & set(words_of(story)), story) for title, story in everyone_tells(plots, 400)]
    assert [place for place in wrong if place[1]] == []


def test_where_everybody_is_a_he_nobody_is_called_she(land):
    plots = land_of(land, "he")
    assert len(plots) == len(toyland._toyland()) - 1  # all but the plot that is always Lily's
    wrong = [(title, SHE & set(words_of(story)), story) for title, story in everyone_tells(plots, 400)]
    assert [place for place in wrong if place[1]] == []


def test_a_girl_is_she_and_a_boy_is_he_from_the_opening_on(land):
    girls = {name for kind in land["cast"]["children"] for name in kind.get("she", [])}
    boys = {name for kind in land["cast"]["children"] for name in kind.get("he", [])}
    assert girls and boys and not girls & boys
    opening = re.compile(r"(?:girl|boy) named (\w+)[^.]*\. One \w+(?: \w+)?, (she|he) ")
    calls = {match.groups() for story in tell_stories(20_000, seed=1) if (match := opening.search(story))}
    assert len(calls) >= 40
    assert {name for name, pronoun in calls if pronoun == "she"} <= girls
    assert {name for name, pronoun in calls if pronoun == "he"} <= boys


def test_no_two_in_a_story_share_a_name():
    for plot in toyland._toyland():
        if {"hero", "friend"} <= set(plot.roles):
            spied = plot._replace(paragraphs=[[[["{hero} {friend}"]]]])
            assert all(len(set(pair.split())) == 2 for pair in toyland._tell([spied], 3_000, seed=1)), plot.title


def test_names_of_children_and_of_animals_differ(land):
    names = Counter()
    for title, group in land["cast"].items():
        if title not in ("just lily", "parents"):
            names.update({name for kind in group for pronoun in ("she", "he") for name in kind.get(pronoun, [])})
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize("count", [-1, 1.5, "3", None, 2.0])
def test_a_count_that_is_no_natural_number_raises_a_value_error_at_the_call(count):
    with pytest.raises(ValueError, match=r"^count must be an integer of 0 or more, not .*\.$"):
        tell_stories(count)


def test_a_seed_that_is_no_integer_raises_a_value_error_at_the_call():
    with pytest.raises(ValueError, match=r"^seed must be an integer, not 'x'\.$"):
        tell_stories(1, seed="x")


def test_count_0_tells_nothing():
    assert list(tell_stories(0)) == []


def test_a_blank_that_nothing_fills_is_named_when_the_plots_are_read(land):
    plot = {"cast": {"hero": "children"}, "pick": {}, "story": "{hero} saw a {dragn}."}
    with pytest.raises(ValueError, match=r"^The plot 'dragons' has blanks that nothing fills: dragn\.$"):
        toyland._read_plot("dragons", plot, land)


def test_a_text_that_yaml_does_not_read_as_text_is_named_when_the_plots_are_read(land):
    plot = {"cast": {"hero": "children"}, "pick": {"answer": [{"answer": False}]}, "story": "{hero} {answer}."}
    with pytest.raises(ValueError, match="put quotes around the text of 'answer', which is now False"):
        toyland._read_plot("dragons", plot, land)
