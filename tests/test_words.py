"""Words and openings in several scripts, and the prompts that a corpus calls for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinystories_lab.tokenizer import load_tokenizer, train_tokenizer, write_bin
from tinystories_lab.words import PROMPTS, opening, prompt_of, prompts_for, without_last_word, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Жила-была «лиса» — хитрая.", ["жила", "была", "лиса", "хитрая"]),
        ("हिन्दी में कहानी है।", ["हिन्दी", "में", "कहानी", "है"]),
        ("שָׁלוֹם, עוֹלָם! می‌خواهم", ["שָׁלוֹם", "עוֹלָם", "می‌خواهم"]),
        ("Cafe\u0301 l’e\u0301te\u0301", ["cafe\u0301", "l’e\u0301te\u0301"]),
        ("옛날 옛적에, 토끼", ["옛날", "옛적에", "토끼"]),
        ("从前，有一只“狐狸”。", list("从前有一只狐狸")),
        ("パーティーは7時、Tokyoで", [*"パーティーは", "7", *"時", "tokyo", *"で"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
    ],
)
def test_a_word_is_a_run_of_letters_with_their_marks_or_a_letter_where_there_are_no_spaces(text, words):
    assert words_of(text) == words


def test_an_opening_is_the_first_words_as_they_stand():
    assert opening("  On a\nsunny day, Lily ran.") == "On a sunny day,"
    assert opening("Жила-была «лиса» — хитрая", 3) == "Жила-была «лиса» —"
    assert opening("从前，有一只狐狸。", 4) == "从前，有一" and opening("从前。\n有", 3) == "从前。 有"
    assert opening("") == opening(" \n") == ""


def test_without_its_last_word_a_text_ends_in_no_half_of_one():
    assert without_last_word("The dog ran ho") == "The dog ran" and without_last_word("One.\n\nTw") == "One."
    assert (
        without_last_word("他们走了。\n\n太阳\ufffd") == "他们走了。\n\n太"
        and without_last_word("word") == without_last_word("") == ""
    )


@given(st.text("ab 从前，.’\u0301\n"), st.integers(1, 9))
def test_an_opening_is_how_the_text_begins_whatever_it_is(text, count):
    assert " ".join(text.split()).startswith(opening(text, count))


def bin_of(folder, stories):
    tokenizer = train_tokenizer(stories, 300)
    write_bin(folder / "val.bin", stories, tokenizer)
    return folder / "val.bin", tokenizer


def test_the_prompts_are_the_chapters_where_the_stories_are_in_its_language_or_not_known(data_dir, tmp_path):
    tokenizer = load_tokenizer(data_dir / "tokenizer.json")
    assert prompts_for(data_dir / "val.bin", tokenizer) == prompts_for(tmp_path / "val.bin", tokenizer) == PROMPTS


def test_the_prompts_for_another_language_are_five_openings_of_held_out_stories(tmp_path):
    stories = ["Сова спит.", *(f"{word} жила кошка по имени Мурка." for word in ("Там", "Тут", "Вот", "Раз", "Как"))]
    others = [f"{word} жила кошка по" for word in ("Там", "Тут", "Вот", "Раз")]
    assert prompts_for(*bin_of(tmp_path, stories)) == ("Сова спит.", *others)
    assert prompts_for(*bin_of(tmp_path, stories[:2])) == ("Сова спит.", others[0]) * 2 + ("Сова спит.",)


def test_a_prompt_ends_where_a_token_of_the_story_ends():
    stories = [f"从前有一{who}在森林里。" for who in ("只狐狸", "只白兔", "个小女孩", "只大黑熊")]
    for size in (258, 270, 300):
        tokenizer = train_tokenizer(stories, size)
        for story in stories:
            prompt, ids = prompt_of(story, tokenizer), tokenizer.encode(story).ids
            assert story.startswith(prompt) and prompt.startswith(opening(story))
            assert tokenizer.encode(prompt).ids == ids[: len(tokenizer.encode(prompt).ids)]
    assert prompt_of("", tokenizer) == ""


def test_a_language_that_shares_words_with_english_is_another(tmp_path):
    for story in (
        "Was für ein Kind! On a time? So kam Lily.",
        "On a dit: Lily a vu un chat. There was? A big dog day.",
    ):
        assert prompts_for(*bin_of(tmp_path, [story]))[0] == opening(story)
