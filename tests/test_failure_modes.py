"""Each pattern is demonstrated by real training, and `diagnose` recognizes it."""

import pytest

from tinystories_lab import trainer
from tinystories_lab.analysis.diagnosis import diagnose
from tinystories_lab.analysis.failure_modes import FAILURE_MODES, demonstrate
from tinystories_lab.data.toyland import generate_stories
from tinystories_lab.tokenizer import save_tokenizer, train_tokenizer, write_bin

VOCAB_SIZE = 512


@pytest.fixture(scope="module")
def toyland(tmp_path_factory):
    """A data folder of built-in stories."""
    folder = tmp_path_factory.mktemp("toyland")
    stories = list(generate_stories(700))
    tokenizer = train_tokenizer(stories, VOCAB_SIZE)
    save_tokenizer(tokenizer, folder / "tokenizer.json")
    write_bin(folder / "train.bin", stories[:600], tokenizer)
    write_bin(folder / "val.bin", stories[600:], tokenizer)
    return folder


@pytest.mark.parametrize("pattern", FAILURE_MODES)
def test_a_demonstrated_pattern_is_diagnosed_and_leaves_the_data_unchanged(pattern, toyland):
    before = {path.name: path.read_bytes() for path in toyland.iterdir()}
    rows = demonstrate(pattern, toyland)
    assert diagnose(rows, VOCAB_SIZE).pattern == pattern
    assert [row["step"] for row in rows] == list(range(1, 121))
    assert {path.name: path.read_bytes() for path in toyland.iterdir()} == before


def test_a_run_whose_loss_becomes_infinite_returns_its_rows_up_to_there(toyland, monkeypatch):
    monkeypatch.setattr(trainer, "lr_at", lambda *_: 1e30)
    assert 1 <= len(demonstrate("diverging", toyland)) < 120


def test_missing_data_is_reported_with_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="run 02_tokenizer"):
        demonstrate("healthy", tmp_path)
