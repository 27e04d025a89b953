"""Text to ids and back, and token files whose sidecar says what they contain."""

import hashlib
import itertools
import os
import signal
import time
import tracemalloc

import datasets
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from tinystories_lab import tokenizer as tokenizer_module
from tinystories_lab.loader import BinInfo
from tinystories_lab.tokenizer import (
    END_OF_TEXT,
    PAD,
    decode_continuation,
    encode_prompt,
    eos_id,
    load_tokenizer,
    read_bin,
    save_tokenizer,
    tokenizer_sha256,
    train_tokenizer,
    write_bin,
)

CORPUS = [
    f"Once upon a time, {name} saw a big {animal} in the {place}. “Hello,” said {name}. The {animal} was happy."
    for name in ("Lily", "Ben", "Zoë")
    for animal in ("fox", "dog", "bear")
    for place in ("park", "wood")
]
PIECES = ["the", " cat's", "  ", "\n\n", "I'll", "'S", " 42nd", "3.14", "_", "!!", "\t", "<|", PAD, "é", "½", "”"]
# Any text that a story can contain: all of Unicode, but not the marker, which ends a story.
STORY = (
    st.lists(st.sampled_from(PIECES) | st.text(max_size=4)).map("".join).filter(lambda text: END_OF_TEXT not in text)
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, 300)


@pytest.fixture
def bin_path(tmp_path, tokenizer):
    """A token file of an earlier day, with its sidecar."""
    write_bin(tmp_path / "train.bin", ["An old story."], tokenizer, source="an earlier day")
    return tmp_path / "train.bin"


@pytest.fixture
def small_batches(monkeypatch):
    """From now on write_bin encodes 1,000 characters at a time."""
    monkeypatch.setattr(tokenizer_module, "_BATCH_CHARACTERS", 1_000)


def content_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def ids_of(path):
    return np.fromfile(path, "<u2").tolist()


def token_count(tokenizer, text):
    """How many tokens a story takes in a file, with its marker."""
    return len(tokenizer.encode(text).ids) + 1


def word_table(size):
    """A tokenizer of a given number of tokens: `<|endoftext|>` 0, `a` 1, and words that never occur."""
    words = [END_OF_TEXT, "a", *(f"word{number}" for number in range(size - 2))]
    return Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="a"))


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_the_two_special_tokens_have_the_first_two_ids_and_no_space_is_put_before_the_first_word(tokenizer):
    assert (END_OF_TEXT, PAD) == ("<|endoftext|>", "<|pad|>")
    assert tokenizer.encode(f"{END_OF_TEXT}{PAD}").ids == [0, 1]
    assert tokenizer.encode("happy").tokens[0].startswith("h")
    assert tokenizer.encode("happy").ids != tokenizer.encode(" happy").ids


def test_the_vocabulary_has_every_byte_and_is_as_large_as_asked_or_as_the_corpus_gives(tokenizer):
    assert tokenizer.get_vocab_size() == 300
    assert 258 < train_tokenizer(["The cat. The cat."], 65_536).get_vocab_size() < 270
    smallest = train_tokenizer(CORPUS, 258)
    assert smallest.get_vocab_size() == 258
    assert smallest.decode(smallest.encode("fox “ë” 🦊").ids) == "fox “ë” 🦊"
    assert len(smallest.encode("fox “ë” 🦊").ids) == len("fox “ë” 🦊".encode())


def test_a_vocabulary_too_small_for_the_bytes_or_too_large_for_uint16_and_an_empty_corpus_are_refused(tmp_path):
    for vocab_size in (-1, 0, 257):
        with pytest.raises(ValueError, match=f"vocab_size is {vocab_size}; .* at least 258"):
            train_tokenizer(CORPUS, vocab_size)
    path, too_large = tmp_path / "train.bin", r"vocab_size is 65,537; .* at most 65,536 \(ids are uint16\)"
    for call, arguments in ((train_tokenizer, (CORPUS, 65_537)), (write_bin, (path, ["a"], word_table(65_537)))):
        with pytest.raises(ValueError, match=too_large):
            call(*arguments)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="there are no texts to train on: run 01_prepare"):
        train_tokenizer(iter([]), 300)


def test_the_fingerprint_depends_on_corpus_size_and_ids_alone(tokenizer):
    column = datasets.Dataset.from_dict({"text": CORPUS})["text"]
    for texts in (list(CORPUS), (text for text in CORPUS), column):
        assert tokenizer_sha256(train_tokenizer(texts, 300)) == tokenizer_sha256(tokenizer)
    for texts, size in ((CORPUS[:4], 300), ([text.upper() for text in CORPUS], 300), (CORPUS, 299)):
        assert tokenizer_sha256(train_tokenizer(texts, size)) != tokenizer_sha256(tokenizer)
    one, other = (Tokenizer(models.WordLevel({"a": number, "b": 1 - number}, unk_token="a")) for number in (0, 1))
    assert tokenizer_sha256(one) != tokenizer_sha256(other), "the same tokens with other ids"


def test_saving_and_loading_keeps_the_fingerprint_and_every_encoding(tmp_path, tokenizer):
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert tokenizer_sha256(loaded) == tokenizer_sha256(tokenizer)
    for text in [*CORPUS, f"ë 🦊{END_OF_TEXT}{PAD}\n"]:
        assert loaded.encode(text).ids == tokenizer.encode(text).ids
        assert loaded.decode(loaded.encode(text).ids, skip_special_tokens=False) == text


def test_a_tokenizer_that_pads_and_truncates_is_loaded_without_both(tmp_path):
    foreign = train_tokenizer(CORPUS, 300)
    foreign.enable_padding()
    foreign.enable_truncation(3)
    save_tokenizer(foreign, tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    write_bin(tmp_path / "train.bin", ["a", *CORPUS], loaded)
    assert list(read_bin(tmp_path / "train.bin", loaded)) == ["a", *CORPUS]


def test_a_missing_tokenizer_names_the_notebook_to_run_and_a_damaged_one_its_trouble(tmp_path):
    path = tmp_path / "tokenizer.json"
    for missing in (tmp_path, path):  # a folder is no tokenizer either
        with pytest.raises(FileNotFoundError, match=rf"no tokenizer {missing}: run 02_tokenizer \(or `tokenizer`"):
            load_tokenizer(missing)
    for content in (b"", b"Once upon a time", b"{}", b'{"model": 7}', b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"tokenizer\.json is not a tokenizer file \(.*\): run 02_tokenizer and 03_train again"
        ):
            load_tokenizer(path)


def test_the_end_of_text_may_have_another_projects_name_and_an_empty_prompt_is_that_token(tokenizer):
    assert eos_id(Tokenizer(models.WordLevel({"a": 0, "</s>": 7}, unk_token="a"))) == 7
    with pytest.raises(ValueError, match=r"no end-of-text token \(<\|endoftext\|>, </s>, .*\): use another tokenizer"):
        eos_id(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    assert encode_prompt(tokenizer, "") == [0]
    assert encode_prompt(tokenizer, "Once") == tokenizer.encode("Once").ids


def test_a_story_cut_off_anywhere_shows_no_part_of_a_letter(tokenizer):
    story = "从前，有 🦊 Zoë."
    ids = tokenizer.encode(story).ids
    shown = [decode_continuation(tokenizer, ids[:count]) for count in range(len(ids) + 1)]
    assert all(story.startswith(text) for text in shown) and shown[-1] == story
    assert any("\ufffd" in tokenizer.decode(ids[:count]) for count in range(len(ids))), "letters are cut here"


# --- token files ------------------------------------------------------------------------------------------------------


def test_a_token_file_contains_these_ids_and_its_sidecar_these_figures(tmp_path):
    path = tmp_path / "train.bin"
    by_hand = Tokenizer(models.BPE({END_OF_TEXT: 0, "a": 1, "b": 2, "ab": 3, "é": 4}, [("a", "b")]))
    by_hand.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    info = write_bin(path, ["ab", "bab", "", "éa"], by_hand, source="by hand")
    assert ids_of(path) == [3, 0, 2, 3, 0, 0, 4, 1, 0]
    fingerprints = tokenizer_sha256(by_hand), hashlib.sha256(path.read_bytes()).hexdigest()
    size = 2 + 3 + 0 + 3  # é takes two bytes
    assert info == BinInfo(9, 4, size, 5, "uint16", *fingerprints, "by hand") == BinInfo.load(path)
    assert info.bytes_per_token == 8 / 9
    assert content_of(tmp_path).keys() == {"train.bin", "train.json"}


@settings(max_examples=60)
@given(st.lists(STORY, min_size=1, max_size=6), st.sampled_from([1, 2**20]))
@example([f"Before {PAD} after.", "a\x1cb \x1d c\x85d\x0be\r\n f"], 1)  # what Python, but no tokenizer, calls a space
@example(["don't DON'T we've 'tis 's", "a  b   c ", " ", ""], 2**20)
def test_a_token_file_has_the_tokenizers_own_ids_and_decodes_back_to_any_stories(
    tokenizer, tmp_path_factory, stories, batch_characters
):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "_BATCH_CHARACTERS", batch_characters)
        info = write_bin(path, iter(stories), tokenizer)
    expected = [number for story in stories for number in [*tokenizer.encode(story).ids, 0]]
    assert ids_of(path) == expected
    assert list(read_bin(path, tokenizer)) == stories
    assert (info.tokens, info.stories) == (len(expected), len(stories))
    assert info.bytes == sum(len(story.encode()) for story in stories)
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_largest_id_of_uint16_is_written_as_it_is(tmp_path):
    assert write_bin(tmp_path / "train.bin", ["word65533"], word_table(65_536)).vocab_size == 65_536
    assert ids_of(tmp_path / "train.bin") == [65_535, 0]


@settings(max_examples=50)
@given(st.lists(STORY, min_size=1, max_size=6), st.integers(1, 60))
def test_max_tokens_is_never_exceeded_and_the_next_story_would_not_have_fit(
    tokenizer, tmp_path_factory, stories, max_tokens
):
    path = tmp_path_factory.getbasetemp() / "limited.bin"
    max_tokens = max(max_tokens, token_count(tokenizer, stories[0]))
    info = write_bin(path, stories, tokenizer, max_tokens)
    assert info.tokens <= max_tokens
    assert list(read_bin(path, tokenizer)) == stories[: info.stories]
    assert info.stories == len(stories) or info.tokens + token_count(tokenizer, stories[info.stories]) > max_tokens


class Recorder:
    """A tokenizer that records the characters of each batch it encodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.batches = tokenizer, []

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def encode_batch_fast(self, texts, **settings):
        self.batches.append([len(text) for text in texts])
        return self.tokenizer.encode_batch_fast(texts, **settings)


def test_a_batch_grows_by_size_not_by_stories_and_none_is_read_after_the_file_is_full(
    tmp_path, tokenizer, small_batches
):
    sizes, recorder, taken = [*range(10, 400, 7), 5_000, 1, 1, 3_000, 20], Recorder(tokenizer), []
    write_bin(tmp_path / "a.bin", (("fox dog bear " * 500)[:size] for size in sizes), recorder)
    assert [size for batch in recorder.batches for size in batch] == sizes
    assert all(sum(batch[:-1]) < 1_000 for batch in recorder.batches), "a batch ends with the story that fills it"
    assert all(sum(batch) >= 1_000 for batch in recorder.batches[:-1])
    endless = (taken.append(1) or "x" * 500 for _ in iter(int, 1))
    assert write_bin(tmp_path / "a.bin", endless, tokenizer, max_tokens=1_100).stories == 2
    assert len(taken) == 4, "two batches of two stories"


def test_writing_more_stories_takes_no_more_memory(tmp_path, tokenizer, small_batches):
    def peak(count):
        tracemalloc.start()
        texts = (f"Story {number % 9} is about a fox that ran {number % 7} miles." for number in range(count))
        write_bin(tmp_path / "train.bin", texts, tokenizer)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)  # the first call also pays for what is made once
    assert peak(2_000) < 1.2 * peak(500)


# --- the old file stays -----------------------------------------------------------------------------------------------


def test_a_file_without_a_story_is_refused_and_leaves_the_old_one(bin_path, tokenizer):
    before = content_of(bin_path.parent)
    for texts, max_tokens in (([], None), ([], 100), (["One."], 0), (["One.", ""], 1)):
        with pytest.raises(ValueError, match=rf"no story .*train\.bin: .*max_tokens={max_tokens} is too small"):
            write_bin(bin_path, texts, tokenizer, max_tokens)
    assert content_of(bin_path.parent) == before


@pytest.mark.parametrize("place", ["a later text", "the sync of the file"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_the_old_file_and_its_sidecar(
    bin_path, tokenizer, small_batches, monkeypatch, place, error
):
    def interrupted(*_):
        raise error

    texts = iter(CORPUS)
    if place == "a later text":
        texts = (text if number < 17 else interrupted() for number, text in enumerate(CORPUS))
    else:
        monkeypatch.setattr("os.fsync", interrupted)
    before = content_of(bin_path.parent)
    with pytest.raises(error):
        write_bin(bin_path, texts, tokenizer)
    assert content_of(bin_path.parent) == before


def test_an_old_sidecar_never_describes_a_new_file(bin_path, tokenizer, monkeypatch):
    def crash(*args, **kwargs):
        raise SystemExit

    old = bin_path.read_bytes()
    monkeypatch.setattr(tokenizer_module.json, "dump", crash)  # the file is written, its new sidecar is not yet
    with pytest.raises(SystemExit):
        write_bin(bin_path, CORPUS, tokenizer)
    assert bin_path.read_bytes() != old
    assert BinInfo.load(bin_path) is None


@given(st.lists(st.text("ab \n.é1'\u00a0\x1c", min_size=1), min_size=1, max_size=8), st.integers(1, 9))
def test_long_texts_in_pieces_give_the_same_tokenizer_and_ids(texts, piece):
    whole = train_tokenizer(texts, 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "_PIECE_CHARACTERS", piece)
        assert "".join(tokenizer_module._pieces(texts)) == "".join(texts)
        assert train_tokenizer(texts, 300).to_str() == whole.to_str()
        encoded = list(tokenizer_module._encode_batches(texts, whole))
    assert encoded == [(text, whole.encode(text).ids) for text in texts]


def test_ctrl_c_ends_the_training_of_a_tokenizer_at_once(stories):
    """The library reads the texts and computes without answering signals."""
    read = itertools.count(1)

    def endless():
        for story in itertools.cycle(stories):
            if next(read) == 1_000:
                os.kill(os.getpid(), signal.SIGINT)
            yield story

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(endless(), 300)
    time.sleep(0.5)
    before = next(read)
    time.sleep(0.2)
    assert next(read) == before + 1, "the thread goes on reading"


def test_a_token_file_is_not_read_with_another_tokenizer(tokenizer, tmp_path):
    write_bin(tmp_path / "a.bin", CORPUS[:3], tokenizer)
    assert list(read_bin(tmp_path / "a.bin", tokenizer)) == CORPUS[:3]
    with pytest.raises(ValueError, match=r"a\.bin was written with another tokenizer"):
        next(read_bin(tmp_path / "a.bin", train_tokenizer(["zzz"], 300)))
