"""Text to ids and back, and token files that say what is in them."""

import hashlib
import json
import tracemalloc

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from tinystories_lab import tokenizer as tokenizer_module
from tinystories_lab.tokenizer import (
    END_OF_TEXT,
    PAD,
    BinInfo,
    load_tokenizer,
    read_bin,
    save_tokenizer,
    text_of,
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
# Any text that a story can hold: all of Unicode, but not the marker, which ends a story.
STORY = st.text().filter(lambda text: END_OF_TEXT not in text)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, 300)


@pytest.fixture
def bin_path(tmp_path, tokenizer):
    """A token file of an earlier day, with its sidecar."""
    write_bin(tmp_path / "train.bin", ["An old story."], tokenizer, source="an earlier day")
    return tmp_path / "train.bin"


def folder_of(path):
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


def tokens_of(tokenizer, text):
    """How many tokens a story takes in a file, its marker counted."""
    return len(tokenizer.encode(text).ids) + 1


def token_table(size):
    """A tokenizer of a given number of tokens: `<|endoftext|>` 0, `a` 1, and words that never come up."""
    words = [END_OF_TEXT, "a", *(f"word{number}" for number in range(size - 2))]
    return Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="a"))


# --- the tokenizer ----------------------------------------------------------------------------------------------------


@given(st.text())
def test_any_text_encodes_and_decodes_back_to_itself(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(0 <= number < tokenizer.get_vocab_size() for number in ids)


def test_the_two_special_tokens_have_the_first_two_ids(tokenizer):
    assert (tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(PAD)) == (0, 1)
    assert (END_OF_TEXT, PAD) == ("<|endoftext|>", "<|pad|>")
    assert tokenizer.encode(f"{END_OF_TEXT}{PAD}").ids == [0, 1]


def test_no_space_is_put_before_the_first_word(tokenizer):
    assert tokenizer.encode("happy").tokens[0].startswith("h")
    assert tokenizer.encode("happy").ids != tokenizer.encode(" happy").ids


def test_the_vocabulary_is_as_large_as_asked_or_as_the_corpus_gives(tokenizer):
    assert tokenizer.get_vocab_size() == 300
    assert 258 < train_tokenizer(["The cat. The cat."], 1_000).get_vocab_size() < 270


def test_the_smallest_vocabulary_holds_every_byte_and_the_special_tokens():
    smallest = train_tokenizer(CORPUS, 258)
    assert smallest.get_vocab_size() == 258
    assert smallest.decode(smallest.encode("fox “ë” 🦊").ids) == "fox “ë” 🦊"
    assert len(smallest.encode("fox “ë” 🦊").ids) == len("fox “ë” 🦊".encode())


@pytest.mark.parametrize("vocab_size", [-1, 0, 257])
def test_a_vocabulary_too_small_for_the_bytes_is_refused(vocab_size):
    with pytest.raises(ValueError, match=rf"vocab_size is {vocab_size}; 258 are needed"):
        train_tokenizer(CORPUS, vocab_size)


def test_a_vocabulary_too_large_for_uint16_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size is 65,537; .* uint16, so at most 65,536 fit"):
        train_tokenizer(CORPUS, 65_537)
    assert train_tokenizer(CORPUS, 65_536).get_vocab_size() < 1_000


def test_an_empty_corpus_trains_no_tokenizer():
    with pytest.raises(ValueError, match="no texts to train the tokenizer on: run 01_prepare"):
        train_tokenizer(iter([]), 300)


def test_the_whole_corpus_counts_whether_a_list_a_generator_or_a_column(tokenizer):
    column = datasets.Dataset.from_dict({"text": CORPUS})["text"]
    for texts in (CORPUS, (text for text in CORPUS), column):
        assert tokenizer_sha256(train_tokenizer(texts, 300)) == tokenizer_sha256(tokenizer)
    assert tokenizer_sha256(train_tokenizer(CORPUS[:4], 300)) != tokenizer_sha256(tokenizer)


def test_a_story_that_is_cut_anywhere_shows_no_part_of_a_letter(tokenizer):
    story = "从前，有 🦊 Zoë."
    ids = tokenizer.encode(story).ids
    shown = [text_of(tokenizer, ids[:count]) for count in range(len(ids) + 1)]
    assert all(story.startswith(text) for text in shown) and shown[-1] == story
    assert any("\ufffd" in tokenizer.decode(ids[:count]) for count in range(len(ids))), "letters are cut here"


def test_the_same_corpus_gives_the_same_fingerprint_and_another_corpus_another(tokenizer):
    assert tokenizer_sha256(train_tokenizer(list(CORPUS), 300)) == tokenizer_sha256(tokenizer)
    assert tokenizer_sha256(train_tokenizer([text.upper() for text in CORPUS], 300)) != tokenizer_sha256(tokenizer)
    assert tokenizer_sha256(train_tokenizer(CORPUS, 299)) != tokenizer_sha256(tokenizer)


def test_the_fingerprint_tells_apart_the_same_tokens_with_other_ids():
    one, other = (Tokenizer(models.WordLevel({"a": number, "b": 1 - number}, unk_token="a")) for number in (0, 1))
    assert tokenizer_sha256(one) != tokenizer_sha256(other)


def test_saving_and_loading_keeps_the_fingerprint_and_every_encoding(tmp_path, tokenizer):
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert tokenizer_sha256(loaded) == tokenizer_sha256(tokenizer)
    for text in [*CORPUS, f"ë 🦊{END_OF_TEXT}{PAD}\n"]:
        assert loaded.encode(text).ids == tokenizer.encode(text).ids
        assert loaded.decode(loaded.encode(text).ids, skip_special_tokens=False) == text


def test_a_missing_tokenizer_names_the_notebook_to_run(tmp_path):
    for path in (tmp_path, tmp_path / "tokenizer.json"):  # a folder is no tokenizer either
        with pytest.raises(
            FileNotFoundError, match=rf"there is no tokenizer {path}: run 02_tokenizer \(or `tokenizer`"
        ):
            load_tokenizer(path)


@pytest.mark.parametrize("content", [b"", b"Once upon a time", b"{}", b'{"model": 7}', b"\xff\xfe\x00"])
def test_a_file_that_is_no_tokenizer_says_so(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer file \(.*\): write it again \(02_token"):
        load_tokenizer(tmp_path / "tokenizer.json")


# --- token files ------------------------------------------------------------------------------------------------------


def test_a_token_file_holds_these_ids_and_its_sidecar_these_figures(tmp_path):
    spelled = Tokenizer(models.BPE({END_OF_TEXT: 0, "a": 1, "b": 2, "ab": 3, "é": 4}, [("a", "b")]))
    spelled.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    info = write_bin(tmp_path / "train.bin", ["ab", "bab", "", "éa"], spelled, source="by hand")
    assert np.fromfile(tmp_path / "train.bin", "<u2").tolist() == [3, 0, 2, 3, 0, 0, 4, 1, 0]
    assert info == BinInfo(
        tokens=9,
        stories=4,
        bytes=2 + 3 + 0 + 3,  # é takes two
        vocab_size=5,
        dtype="uint16",
        tokenizer_sha256=tokenizer_sha256(spelled),
        sha256=hashlib.sha256((tmp_path / "train.bin").read_bytes()).hexdigest(),
        source="by hand",
    )
    assert BinInfo.of(tmp_path / "train.bin") == info
    assert info.bytes_per_token == 8 / 9
    assert sorted(folder_of(tmp_path / "train.bin")) == ["train.bin", "train.json"]


@settings(max_examples=60)
@given(st.lists(STORY, min_size=1))
def test_a_token_file_decodes_back_to_any_stories_in_order(tokenizer, tmp_path_factory, stories):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    info = write_bin(path, stories, tokenizer)
    ids = np.fromfile(path, "<u2")
    assert list(read_bin(path, tokenizer)) == stories
    assert (ids == 0).sum() == info.stories == len(stories) and ids[-1] == 0
    assert len(ids) == info.tokens == sum(tokens_of(tokenizer, story) for story in stories)
    assert info.bytes == sum(len(story.encode()) for story in stories)
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_story_that_speaks_of_padding_comes_back_whole(tmp_path, tokenizer):
    write_bin(tmp_path / "train.bin", [f"Before {PAD} after."], tokenizer)
    assert list(read_bin(tmp_path / "train.bin", tokenizer)) == [f"Before {PAD} after."]


def test_a_generator_a_column_and_a_dataset_write_the_same_file_as_a_list(tmp_path, tokenizer):
    table = datasets.Dataset.from_dict({"text": CORPUS, "other": range(len(CORPUS))})
    infos = [
        write_bin(tmp_path / f"{number}.bin", texts, tokenizer)
        for number, texts in enumerate((CORPUS, (text for text in CORPUS), table["text"], table))
    ]
    assert infos[0] == infos[1] == infos[2] == infos[3] and infos[0].stories == len(CORPUS)


@settings(max_examples=60)
@given(st.lists(STORY, min_size=1, max_size=6), st.integers(1, 60))
def test_max_tokens_is_never_exceeded_and_the_next_story_would_not_have_fit(
    tokenizer, tmp_path_factory, stories, max_tokens
):
    path = tmp_path_factory.getbasetemp() / "limited.bin"
    if tokens_of(tokenizer, stories[0]) > max_tokens:
        with pytest.raises(ValueError, match=rf"no story to write to .*max_tokens={max_tokens} is too few for one"):
            write_bin(path, stories, tokenizer, max_tokens)
        return
    info = write_bin(path, stories, tokenizer, max_tokens)
    assert info.tokens <= max_tokens
    assert list(read_bin(path, tokenizer)) == stories[: info.stories]
    assert info.stories == len(stories) or info.tokens + tokens_of(tokenizer, stories[info.stories]) > max_tokens


def test_max_tokens_that_a_story_fills_exactly_holds_that_story(tmp_path, tokenizer):
    exact = tokens_of(tokenizer, CORPUS[0]) + tokens_of(tokenizer, CORPUS[1])
    assert write_bin(tmp_path / "a.bin", CORPUS, tokenizer, exact).stories == 2
    assert write_bin(tmp_path / "a.bin", CORPUS, tokenizer, exact - 1).stories == 1


def test_texts_beyond_max_tokens_are_not_read(tmp_path, tokenizer):
    def texts():
        yield from CORPUS[:2]
        raise AssertionError("the file was full long ago")

    assert write_bin(tmp_path / "a.bin", texts(), tokenizer, tokens_of(tokenizer, CORPUS[0])).stories == 1


@pytest.mark.parametrize("texts, max_tokens", [([], None), ([], 100), (["One."], 0), (["One.", ""], 1)])
def test_a_file_without_a_story_is_refused_and_leaves_what_was_there(bin_path, tokenizer, texts, max_tokens):
    before = folder_of(bin_path)
    with pytest.raises(ValueError, match=rf"no story to write to .*train\.bin: .*max_tokens={max_tokens}"):
        write_bin(bin_path, texts, tokenizer, max_tokens)
    assert folder_of(bin_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_the_old_file_and_its_sidecar(bin_path, tokenizer, error):
    def texts():
        yield from CORPUS
        raise error

    before = folder_of(bin_path)
    with pytest.raises(error):
        write_bin(bin_path, texts(), tokenizer)
    assert folder_of(bin_path) == before


def test_a_write_interrupted_while_the_disk_catches_up_leaves_the_old_file_and_its_sidecar(
    bin_path, tokenizer, monkeypatch
):
    def interrupted(_):
        raise KeyboardInterrupt

    before = folder_of(bin_path)
    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bin(bin_path, CORPUS, tokenizer)
    assert folder_of(bin_path) == before


def test_an_old_sidecar_never_vouches_for_a_new_file(bin_path, tokenizer, monkeypatch):
    class Crash(BaseException):
        pass

    def crash(*args, **kwargs):
        raise Crash

    old = bin_path.read_bytes()
    monkeypatch.setattr(tokenizer_module.json, "dump", crash)  # the file is written, its new sidecar not yet
    with pytest.raises(Crash):
        write_bin(bin_path, CORPUS, tokenizer)
    assert bin_path.read_bytes() != old
    assert BinInfo.of(bin_path) is None


def test_a_vocabulary_too_large_for_uint16_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"vocab_size is 65,537; .* uint16, so at most 65,536 fit"):
        write_bin(tmp_path / "train.bin", ["a"], token_table(65_537))
    assert not list(tmp_path.iterdir())


def test_the_largest_id_of_uint16_is_written_as_it_is(tmp_path):
    assert write_bin(tmp_path / "train.bin", ["word65533"], token_table(65_536)).vocab_size == 65_536
    assert np.fromfile(tmp_path / "train.bin", "<u2").tolist() == [65_535, 0]


def test_writing_more_stories_takes_no_more_memory(tmp_path, tokenizer):
    def peak(count):
        tracemalloc.start()
        try:
            texts = (f"Story {number % 9} is about a fox that ran {number % 7} miles." for number in range(count))
            write_bin(tmp_path / "train.bin", texts, tokenizer)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)  # the first call also pays for what is made once
    assert peak(2_000) < 1.2 * peak(500)


def test_a_file_without_a_sidecar_has_no_info(tmp_path):
    assert BinInfo.of(tmp_path / "train.bin") is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"tokens": 7}', b"7", b"\xff\xff", b'{"tokens": 7, "colour": "red"}']
)
def test_a_broken_sidecar_says_what_writes_it_again(bin_path, content):
    bin_path.with_suffix(".json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"train\.json is not a token file's sidecar \(.*\): write the bin again \(02_"
    ):
        BinInfo.of(bin_path)


def test_a_sidecar_with_a_figure_too_many_says_what_writes_it_again(bin_path):
    sidecar = bin_path.with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"colour": "red"}))
    with pytest.raises(ValueError, match=r"train\.json is not a token file's sidecar .*colour"):
        BinInfo.of(bin_path)
