"""A vocabulary's history: a smaller vocabulary is the beginning of a larger one, and a sentence is put together merge by merge."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tinystories_lab.merges import _first_merges, look_into, merge_history, merges, of_size, pieces, shown
from tinystories_lab.tokenizer import END_OF_TEXT, tokenizer_sha256, train_tokenizer, write_bin
from tinystories_lab.toyland import tell_stories

CORPUS = [*tell_stories(400), *["Zoë drank a café au lait in a café. Zoë sang."] * 50]
BYTES_AND_SPECIALS = 258
TEXT = st.text() | st.sampled_from(CORPUS) | st.text(alphabet="Zoë cafélnd the\n")


@pytest.fixture(scope="module")
def large():
    return train_tokenizer(CORPUS, 1_200)


@pytest.mark.parametrize("size", [258, 259, 300, 777, 1_200])
def test_a_smaller_vocabulary_learned_from_the_same_texts_is_the_beginning_of_the_larger_one(large, size):
    learned = train_tokenizer(CORPUS, size)
    assert of_size(large, size).to_str() == learned.to_str()
    assert tokenizer_sha256(of_size(large, size)) == tokenizer_sha256(learned)


def test_a_size_that_the_vocabulary_never_had_gives_all_of_it_and_one_below_the_bytes_is_refused(large):
    assert of_size(large, 8_000).to_str() == large.to_str()
    with pytest.raises(ValueError, match="vocab_size is 257; 258 are needed"):
        of_size(large, 257)


def test_a_token_that_two_merges_make_counts_once_and_stays_while_one_of_them_does():
    settings = json.loads(train_tokenizer(["abc"] * 3, 260).to_str())
    assert settings["model"]["merges"] == [["a", "b"], ["ab", "c"]]
    settings["model"]["merges"] += [["b", "c"], ["a", "bc"], ["c", "a"]]
    settings["model"]["vocab"] |= {"bc": 260, "ca": 261}
    twice = Tokenizer.from_str(json.dumps(settings))
    sizes = [_first_merges(twice, count).get_vocab_size() for count in range(6)]
    assert sizes == [258, 259, 260, 261, 261, 262], "the fourth merge makes nothing new"
    assert merges(of_size(twice, 260)) == merges(twice)[:2] and merges(of_size(twice, 262)) == merges(twice)


@given(text=TEXT, share=st.floats(0, 1))
def test_after_any_number_of_merges_text_comes_back(large, text, share):
    tokenizer = _first_merges(large, round(share * len(merges(large))))
    text = text.replace("<|", "<")
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_after_no_merge_a_token_is_a_byte_and_no_count_beyond_the_last_merge_is_taken(large):
    bytes_only = _first_merges(large, 0)
    assert bytes_only.get_vocab_size() == BYTES_AND_SPECIALS
    assert len(bytes_only.encode(CORPUS[-1]).ids) == len(CORPUS[-1].encode())
    for count in (-1, len(merges(large)) + 1):
        with pytest.raises(ValueError, match=f"count is {count}; this tokenizer was made by 942 merges"):
            _first_merges(large, count)


@given(text=st.text(alphabet=st.characters(codec="ascii")))
def test_pieces_of_plain_text_joined_are_the_text(large, text):
    assert "".join(pieces(large, text)) == text


def test_bytes_that_are_a_part_of_a_character_are_shown_in_hex_and_joined_when_a_merge_has_joined_them(large):
    assert pieces(large, "🐉") == ["\\xf0", "\\x9f", "\\x90", "\\x89"]
    assert pieces(large, "Zoë sang in a café") == ["Zoë", " sang", " in", " a", " café"]
    assert pieces(_first_merges(large, 0), "é") == ["\\xc3", "\\xa9"]


def test_every_byte_has_a_token_that_shows_it(large):
    bytes_only = _first_merges(large, 0)
    tokens = [bytes_only.decode([id]) for id in range(2, BYTES_AND_SPECIALS)]
    shown_as = [shown(bytes_only.id_to_token(id)) for id in range(2, BYTES_AND_SPECIALS)]
    assert len(set(shown_as)) == 256
    assert all(text == said for text, said in zip(tokens, shown_as, strict=True) if text != "\ufffd")


@given(sentence=TEXT)
def test_each_step_of_a_sentence_is_what_the_tokenizer_made_of_it_after_so_many_merges(large, sentence):
    sentence = sentence.replace("<|", "<")[:60]
    steps = merge_history(large, sentence)
    assert steps[0].number == 0 and not steps[0].pair
    assert len(steps[0].pieces) == len(sentence.encode())
    assert steps[-1].pieces == pieces(large, sentence)
    for step in steps[:: max(1, len(steps) // 4)]:
        assert step.pieces == pieces(_first_merges(large, step.number), sentence)


def test_every_step_changes_the_sentence_joins_its_pair_and_none_is_left_out(large):
    steps = merge_history(large, "Lily and Tom sat on the tall wall.")
    for before, step in pairwise(steps):
        assert len(step.pieces) < len(before.pieces) and step.number > before.number
        assert before.pieces == pieces(_first_merges(large, step.number - 1), "Lily and Tom sat on the tall wall.")
        assert step.made in step.pieces and step.made == "".join(step.pair)


def test_the_step_that_joins_a_characters_bytes_shows_the_character(large):
    steps = [step for step in merge_history(large, "a café") if "\\xa9" in step.pair]
    assert [step.made[-1] for step in steps] == ["é"] and steps[0].made in steps[0].pieces


def test_a_look_into_a_token_file_shows_the_bytes_that_lie_there(large, tmp_path):
    write_bin(tmp_path / "train.bin", ["Lily\nsang.", "Zoë"], large)
    data = (tmp_path / "train.bin").read_bytes()
    rows = look_into(tmp_path / "train.bin", large, 1, 1_000)
    assert [row["token"] for row in rows] == list(range(1, len(data) // 2)), "from start to the end of the file"
    for row in rows:
        two = data[row["at byte"] : row["at byte"] + 2]
        assert row["bytes"] == two.hex(" ") and row["id"] == np.frombuffer(two, "<u2")[0]
    texts = [row["stands for"] for row in rows]
    assert texts.count(f"'{END_OF_TEXT}'") == 2 and r"'\n'" in texts
    assert len(look_into(tmp_path / "train.bin", large, 0, 3)) == 3


def test_a_look_at_a_place_that_is_not_in_the_file_says_so(large, tmp_path):
    info = write_bin(tmp_path / "train.bin", ["Lily sang."], large)
    for start in (-1, info.tokens):
        with pytest.raises(ValueError, match=f"start is {start}; .* holds the tokens 0 to {info.tokens - 1}"):
            look_into(tmp_path / "train.bin", large, start, 1)
    with pytest.raises(FileNotFoundError, match="run 02_tokenizer"):
        look_into(tmp_path / "none.bin", large, 0, 1)
