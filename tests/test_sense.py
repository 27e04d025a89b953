"""The laws of the benchmark that reads generated stories."""

import random

import pytest
from benchmarks.sense import PlotReader, read_faults

from tinystories_lab.data import toyland
from tinystories_lab.data.toyland import generate_stories, load_plots

LOST = """Once upon a time, there was a little girl named Mia. One day, she could not find her red ball. \
Mia looked under the bed and in the closet. Nothing!

"I miss my red ball," Mia told her mother sadly. "Do not cry," said Mom. "Where did you see it last?"

They thought hard and looked once more. And there it was, under the table! Mia smiled and hugged her red ball. \
Mia learned that it helps to look twice."""


@pytest.fixture(scope="module")
def readers() -> list[PlotReader]:
    return [PlotReader(plot) for plot in load_plots()]


def test_every_built_in_story_is_without_a_fault_and_belongs_to_its_plot(readers):
    for plot in load_plots():
        for story in toyland._generate([plot], 25, seed=4):
            assert read_faults(story, readers) == (plot.title, [])


@pytest.mark.parametrize(
    ("old", "new", "faults"),
    [
        ("", "", []),
        ("hugged her red ball", "hugged her rag doll", ["not what was picked before"]),
        ("Mia smiled", "Anna smiled", ["cannot be said here"]),
        ("hugged her", "hugged his", ["cannot be said here"]),
        ("girl named", "boy named", ["cannot be said here"]),
        ("Mom.", "Grandma.", ["cannot be said here"]),
        (" Nothing!", "", ["cannot be said here"]),  # the line has two sentences
        (" Mia learned that it helps to look twice.", "", ["missing"]),
        ("Mia learned that it helps to look twice.", "The sun", ["cannot be said here"]),
        ("Nothing!\n\n", "Nothing! ", ["no new paragraph"]),
        ("They thought hard and looked once more.", "The sun shone.", ["cannot be said here"]),
        ("They thought", "The sun shone. They thought", ["cannot be said here"]),
    ],
)
def test_a_change_to_a_story_is_one_fault_of_its_kind(readers, old, new, faults):
    title, found = read_faults(LOST.replace(old, new), readers)
    assert title == "the lost toy"
    assert [fault.split(":")[0] for fault in found] == faults, found


def test_an_ending_without_its_beginning_and_a_beginning_without_its_end_are_faults(readers):
    first, *_, last = LOST.split("\n\n")
    assert read_faults(first, readers)[1] and read_faults(last, readers)[1]


def test_shuffled_sentences_of_two_stories_have_many_faults(readers):
    stories = list(generate_stories(20, seed=6))
    for one, other in zip(stories[::2], stories[1::2], strict=True):
        sentences = f"{one} {other}".replace("\n\n", " ").split(". ")
        random.Random(0).shuffle(sentences)
        assert len(read_faults(". ".join(sentences), readers)[1]) > 8


@pytest.mark.parametrize("text", ["", " ", "\n\n\n", "Mia", 'He said "', "a. b! c? d", "…\u2028"])
def test_any_text_can_be_read(readers, text):
    assert len(read_faults(text, readers)[1]) >= 5
