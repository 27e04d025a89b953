"""The five patterns, provoked by real training and named by `diagnose`."""

import pytest

from tinystories_lab.patterns import PATTERNS, provoke
from tinystories_lab.runlog import diagnose
from tinystories_lab.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer, write_bin
from tinystories_lab.toyland import tell_stories

VOCABULARY = 512


@pytest.fixture(scope="module")
def toyland(tmp_path_factory):
    """A data folder of built-in stories."""
    folder = tmp_path_factory.mktemp("toyland")
    stories = list(tell_stories(700))
    save_tokenizer(train_tokenizer(stories, VOCABULARY), folder / "tokenizer.json")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    write_bin(folder / "train.bin", stories[:600], tokenizer)
    write_bin(folder / "val.bin", stories[600:], tokenizer)
    return folder


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_provoked_is_what_is_diagnosed(pattern, toyland):
    rows = provoke(pattern, toyland)
    assert diagnose(rows, VOCABULARY).pattern == pattern
    assert [row["step"] for row in rows] == list(range(1, 121))


def test_a_run_that_ends_by_diverging_gives_its_rows_up_to_there(toyland, monkeypatch):
    monkeypatch.setitem(PATTERNS, "diverging", ("more than any number", {"peak_lr": 1e30, "matrix_lr": 1e30}))
    assert 1 <= len(provoke("diverging", toyland)) < 120


def test_provoking_leaves_the_data_as_it_was(toyland):
    before = {path.name: path.read_bytes() for path in toyland.iterdir()}
    provoke("spiking", toyland)
    assert {path.name: path.read_bytes() for path in toyland.iterdir()} == before


def test_where_there_is_no_data_it_says_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="run 02_tokenizer"):
        provoke("healthy", tmp_path)
