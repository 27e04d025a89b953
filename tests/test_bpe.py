"""Merges: a smaller vocabulary is the beginning of a larger one, and a sentence is joined merge by merge."""

import json
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tinystories_lab.analysis.bpe import inspect_bin, merge_history, merges, token_texts, token_to_text, truncate_vocab
from tinystories_lab.data.toyland import generate_stories
from tinystories_lab.tokenizer import END_OF_TEXT, MIN_VOCAB_SIZE, tokenizer_sha256, train_tokenizer, write_bin

CORPUS = [*generate_stories(400), *["Zoë drank a café au lait in a café. Zoë sang."] * 50]
TEXT = (st.text() | st.sampled_from(CORPUS) | st.text(alphabet="Zoë cafélnd the\n")).map(lambda t: t.replace("<|", "<"))


@pytest.fixture(scope="module")
def large():
    return train_tokenizer(CORPUS, 1_200)


@pytest.fixture(scope="module")
def after_merges(large):
    """The large tokenizer as it was after so many merges, each of which made a new token."""
    return cache(lambda count: truncate_vocab(large, MIN_VOCAB_SIZE + count))


def with_merges(pairs):
    settings = json.loads(train_tokenizer(["a"], MIN_VOCAB_SIZE).to_str())
    for token in map("".join, pairs):
        settings["model"]["vocab"].setdefault(token, len(settings["model"]["vocab"]))
    settings["model"]["merges"] = pairs
    return Tokenizer.from_str(json.dumps(settings))


def test_a_truncated_vocabulary_is_the_one_that_training_for_that_size_gives(large):
    for size in (MIN_VOCAB_SIZE, MIN_VOCAB_SIZE + 1, 777):
        trained = train_tokenizer(CORPUS, size)
        assert truncate_vocab(large, size).to_str() == trained.to_str()
        assert tokenizer_sha256(truncate_vocab(large, size)) == tokenizer_sha256(trained)


def test_a_size_that_the_vocabulary_never_had_gives_all_of_it_and_one_below_the_bytes_is_refused(large):
    assert truncate_vocab(large, 8_000).to_str() == truncate_vocab(large, 1_200).to_str() == large.to_str()
    with pytest.raises(ValueError, match=r"vocab_size is 257; .* 258"):
        truncate_vocab(large, 257)


def test_a_token_that_two_merges_make_counts_once_and_stays_while_one_of_them_does():
    learned = [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc"), ("c", "a")]
    smaller = [truncate_vocab(with_merges(learned), size) for size in range(258, 263)]
    assert [tokenizer.get_vocab_size() for tokenizer in smaller] == [258, 259, 260, 261, 262]
    assert list(map(merges, smaller)) == [learned[:0], learned[:1], learned[:2], learned[:3], learned]


@given(text=TEXT, count=st.sampled_from([0, 1, 50, 942]))
def test_after_any_number_of_merges_text_comes_back_and_plain_text_is_its_tokens_joined(after_merges, text, count):
    tokenizer = after_merges(count)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    plain = text.encode("ascii", "ignore").decode()
    assert "".join(token_texts(tokenizer, plain)) == plain


def test_before_the_first_merge_every_token_is_a_byte_and_shows_it(after_merges):
    bytes_only, ids = after_merges(0), range(2, MIN_VOCAB_SIZE)
    assert len(bytes_only.encode(CORPUS[-1]).ids) == len(CORPUS[-1].encode())
    shown = {token_to_text(bytes_only.id_to_token(token)): bytes_only.decode([token]) for token in ids}
    assert len(shown) == 256 and all(text == decoded for text, decoded in shown.items() if decoded != "\ufffd")


def test_bytes_that_are_a_part_of_a_character_are_shown_in_hex_until_a_merge_joins_them(large, after_merges):
    assert token_texts(large, "🐉") == ["\\xf0", "\\x9f", "\\x90", "\\x89"]
    assert token_texts(after_merges(0), "é") == ["\\xc3", "\\xa9"]
    assert token_texts(large, "Zoë sang in a café") == ["Zoë", " sang", " in", " a", " café"]
    steps = [step for step in merge_history(large, "a café") if "\\xa9" in step.pair]
    assert [step.made[-1] for step in steps] == ["é"] and steps[0].made in steps[0].pieces


@given(sentence=TEXT.map(lambda text: text[:60]))
def test_every_step_of_a_sentence_is_how_the_tokenizer_encoded_it_then_and_none_is_left_out(after_merges, sentence):
    tokenizer = after_merges(300)
    steps = merge_history(tokenizer, sentence)
    assert steps[0].number == 0 and not steps[0].pair and len(steps[0].pieces) == len(sentence.encode())
    assert steps[-1].pieces == token_texts(tokenizer, sentence)
    for before, step in list(pairwise(steps))[:: max(1, len(steps) // 4)]:
        assert before.pieces == token_texts(after_merges(step.number - 1), sentence)
        assert step.pieces == token_texts(after_merges(step.number), sentence)
        assert step.made in step.pieces and len(step.pieces) < len(before.pieces)
        assert step.made == "".join(step.pair) or not step.made.isascii()


def test_a_merge_that_makes_a_token_for_an_earlier_one_takes_that_one_along():
    tokenizer = with_merges([("bc", "d"), ("b", "c"), ("a", "a")])
    steps = merge_history(tokenizer, "bcd aaa")
    assert [step.number for step in steps] == [0, 2, 3] and steps[1].pieces == ["bcd", " ", "a", "a", "a"]
    assert steps[2].pieces == token_texts(tokenizer, "bcd aaa") == ["bcd", " ", "aa", "a"]


def test_inspecting_a_token_file_shows_the_bytes_that_are_there(large, tmp_path):
    path = tmp_path / "train.bin"
    write_bin(path, ["Lily\nsang.", "Zoë"], large)
    data, rows = path.read_bytes(), inspect_bin(path, large, 1, 1_000)
    assert [row["token"] for row in rows] == list(range(1, len(data) // 2)), "from start to the end of the file"
    assert b"".join(bytes.fromhex(row["bytes"]) for row in rows) == data[rows[0]["at byte"] :] == data[2:]
    assert [row["id"] for row in rows] == np.frombuffer(data, "<u2")[1:].tolist()
    texts = [row["text"] for row in rows]
    assert texts.count(f"'{END_OF_TEXT}'") == 2 and r"'\n'" in texts
    assert [row["at byte"] for row in inspect_bin(path, large, 0, 3)] == [0, 2, 4]


def test_inspecting_a_place_outside_the_file_names_the_places_it_has(large, tmp_path):
    info = write_bin(tmp_path / "train.bin", ["Lily sang."], large)
    for start in (-1, info.tokens):
        with pytest.raises(ValueError, match=f"start is {start}; .* holds the tokens 0 to {info.tokens - 1}"):
            inspect_bin(tmp_path / "train.bin", large, start, 1)
    with pytest.raises(FileNotFoundError, match="run 02_tokenizer"):
        inspect_bin(tmp_path / "none.bin", large, 0, 1)
