"""Words and openings in several scripts, prompts that fit a corpus, and real stories to compare with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinystories_lab.data.text import (
    PROMPTS,
    opening,
    prompt_of,
    prompts_for,
    real_stories_like,
    without_last_word,
    words_of,
)
from tinystories_lab.tokenizer import train_tokenizer, write_bin


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Tom's dog said: 'Don’t run, Zoë!' It's 3 o'clock.",
            ["tom's", "dog", "said", "don’t", "run", "zoë", "it's", "3", "o'clock"],
        ),
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
def test_a_word_is_a_run_of_letters_with_their_marks_or_one_letter_in_scripts_without_spaces(text, words):
    assert words_of(text) == words


def test_an_opening_is_the_first_words_with_their_punctuation():
    assert opening("  On a\nsunny day, Lily ran.") == "On a sunny day,"
    assert opening("Жила-была «лиса» — хитрая", 3) == "Жила-была «лиса» —"
    assert opening("从前，有一只狐狸。", 4) == "从前，有一" and opening("从前。\n有", 3) == "从前。 有"
    assert opening("") == opening(" \n") == ""


@given(st.text("ab 从前，.’\u0301\n"), st.integers(1, 9))
def test_any_text_starts_with_its_opening(text, count):
    assert " ".join(text.split()).startswith(opening(text, count))


def test_without_its_last_word_a_text_does_not_end_in_half_a_word():
    assert without_last_word("The dog ran ho") == "The dog ran" and without_last_word("One.\n\nTw") == "One."
    assert without_last_word("他们走了。\n\n太阳\ufffd") == "他们走了。\n\n太"
    assert without_last_word("word") == without_last_word("") == ""


def test_a_prompt_ends_where_a_token_of_the_story_ends():
    stories = [f"从前有一{who}在森林里。" for who in ("只狐狸", "只白兔", "个小女孩", "只大黑熊")]
    for size in (258, 270, 300):
        tokenizer = train_tokenizer(stories, size)
        for story in stories:
            prompt, ids = prompt_of(story, tokenizer), tokenizer.encode(story).ids
            assert story.startswith(prompt) and prompt.startswith(opening(story))
            assert tokenizer.encode(prompt).ids == ids[: len(tokenizer.encode(prompt).ids)]
    assert prompt_of("", tokenizer) == ""


def bin_of(folder, stories):
    tokenizer = train_tokenizer(stories, 300)
    write_bin(folder / "val.bin", stories, tokenizer)
    return folder / "val.bin", tokenizer


def test_the_prompts_are_the_chapters_if_the_stories_are_english_or_unknown(data_dir, tokenizer, tmp_path):
    assert prompts_for(data_dir / "val.bin", tokenizer) == prompts_for(tmp_path / "val.bin", tokenizer) == PROMPTS


def test_the_prompts_in_another_language_are_five_openings_of_validation_stories(tmp_path):
    stories = ["Сова спит.", *(f"{word} жила кошка по имени Мурка." for word in ("Там", "Тут", "Вот", "Раз", "Как"))]
    others = [f"{word} жила кошка по" for word in ("Там", "Тут", "Вот", "Раз")]
    assert prompts_for(*bin_of(tmp_path, stories)) == ("Сова спит.", *others)
    assert prompts_for(*bin_of(tmp_path, stories[:2])) == ("Сова спит.", others[0]) * 2 + ("Сова спит.",)


def test_a_language_that_shares_words_with_english_is_not_english(tmp_path):
    for story in (
        "Was für ein Kind! On a time? So kam Lily.",
        "On a dit: Lily a vu un chat. There was? A big dog day.",
    ):
        assert prompts_for(*bin_of(tmp_path, [story]))[0] == opening(story)


def test_a_real_story_for_each_sample_is_cut_to_the_tokens_that_the_sample_could_have(data_dir, stories, tokenizer):
    samples = [{"prompt": "Lily found", "max_new_tokens": new} for new in (4, 10, 100)]
    real = real_stories_like(samples, data_dir / "val.bin", tokenizer)
    prompt = len(tokenizer.encode("Lily found").ids)
    for sample, row, whole in zip(samples, real, stories[120:], strict=False):
        assert whole.startswith(row["story"])
        assert len(tokenizer.encode(row["story"]).ids) <= prompt + sample["max_new_tokens"]
        assert row["ended"] == (row["story"] == whole)
    assert [row["ended"] for row in real] == [False, False, True]


def test_a_real_story_that_fills_its_limit_to_the_last_token_counts_as_cut_as_a_sample_does(tmp_path, tokenizer):
    write_bin(tmp_path / "val.bin", ["Lily was happy."], tokenizer)
    length = len(tokenizer.encode("Lily was happy.").ids)
    for limit, ended in ((length, False), (length + 1, True)):
        (real,) = real_stories_like([{"prompt": "", "max_new_tokens": limit}] * 2, tmp_path / "val.bin", tokenizer)
        assert real == {"story": "Lily was happy.", "ended": ended}, "one story is all the file has"
