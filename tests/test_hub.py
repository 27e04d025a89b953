"""A Hub that can or cannot be had, and data sets of every shape on it."""

import datasets
import pytest
from datasets import Dataset, DatasetDict

from tinystories_lab.estimate import count_stories
from tinystories_lab.hub import HUB_REVISION, SPLITS
from tinystories_lab.sources import read_rows
from tinystories_lab.stories import load_stories


@pytest.fixture
def on_hub(monkeypatch):
    """`on_hub(train=["One."])` makes the Hub give such splits; the names that were asked for are in the list it returns."""

    def put(**splits):
        asked, made = (
            [],
            {
                split: Dataset.from_dict(rows if isinstance(rows, dict) else {"text": rows})
                for split, rows in splits.items()
            },
        )
        monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or DatasetDict(made))
        return asked

    return put


def test_the_hub_is_asked_for_the_pinned_revision_and_gives_its_own_splits(monkeypatch):
    def load_dataset(name, revision):
        assert (name, revision) == ("roneneldan/TinyStories", HUB_REVISION)
        train, validation = ({"text": [f"{split} {number}." for number in range(1_200)]} for split in SPLITS)
        return DatasetDict(
            # in the other order: what is read first must be train, whatever the Hub's order is
            validation=Dataset.from_dict(validation),
            train=Dataset.from_dict(train),
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = [(split, f"{split} {number}.") for split in ("train", "validation") for number in range(1_200)]
    assert list(read_rows("tinystories", None, 0)) == rows
    assert list(read_rows("tinystories", 2, 0)) == [rows[0], rows[1], rows[1_200], rows[1_201]]
    assert list(read_rows("tinystories", 9_999, 0)) == rows


@pytest.mark.parametrize(
    "cause",
    [ConnectionError("no route to the host"), OSError("429 Client Error: Too Many Requests"), TimeoutError("too slow")],
    ids=lambda cause: type(cause).__name__,
)
def test_a_hub_that_cannot_be_had_names_the_cause_and_the_ways_to_go_on(monkeypatch, cause):
    def load_dataset(*args, **kwargs):
        raise cause

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConnectionError) as caught:
        list(read_rows("tinystories", None, 0))
    assert caught.value.__cause__ is cause
    for part in (type(cause).__name__, str(cause), "Try again", "HF_TOKEN", "local file", '"toyland"'):
        assert part in str(caught.value)


def test_an_offline_hub_without_a_cached_copy_names_the_ways_to_go_on(tmp_path, monkeypatch):
    # What HF_HUB_OFFLINE=1 sets; the libraries read the variable itself only when they are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(ConnectionError, match=r"TinyStories.*Hub.*local file or \"toyland\""):
        list(read_rows("tinystories", None, 0))


def test_another_data_set_is_asked_for_by_its_name_and_keeps_its_own_split(on_hub):
    asked = on_hub(test=["No."], validation=["Три."], train=["Раз.", "Два."])
    assert list(read_rows("ada/tales.v2", None, 0)) == [("train", "Раз."), ("train", "Два."), ("validation", "Три.")]
    assert asked == ["ada/tales.v2"]
    assert count_stories("ada/tales.v2") == 3 and count_stories("ada/tales.v2", 2) == 2


def test_of_a_data_set_without_validation_a_share_is_held_out(on_hub, tmp_path):
    on_hub(train=[f"Сказка {number}." for number in range(40)], test=["No."])
    assert {split for split, _ in read_rows("ada/tales", 5, 0)} == {""}
    splits, report = load_stories("ada/tales", tmp_path)
    assert (report.train, report.validation, report.source) == (38, 2, "ada/tales")
    assert "No." not in [*splits["train"]["text"], *splits["validation"]["text"]]


def test_another_column_is_taken_where_it_is_named(on_hub):
    asked = on_hub(train={"id": [1, 2], "story": ["Раз.", None]})
    assert [text for _, text in read_rows("ada/tales:story", None, 0)] == ["Раз.", None] and asked == ["ada/tales"]


@pytest.mark.parametrize(
    "source, column", [("ada/tales", "text"), ("ada/tales:id", "id"), ("ada/tales:parts", "parts")]
)
def test_a_data_set_without_such_a_column_of_strings_names_those_it_has(on_hub, source, column):
    on_hub(train={"id": [1], "story": ["Раз."], "parts": [["a"]]})
    sentence = rf'ada/tales has the columns id \(int64\), story \(string\), parts \(.*"{column}" of strings is needed: write ada/'
    with pytest.raises(ValueError, match=sentence):
        list(read_rows(source, None, 0))


def test_a_data_set_without_train_names_the_splits_it_has(on_hub):
    on_hub(test=["No."], dev=["No."])
    with pytest.raises(ValueError, match=r"ada/tales has the splits \['test', 'dev'\]; a split \"train\" is needed"):
        list(read_rows("ada/tales", None, 0))


def test_a_name_that_is_neither_here_nor_on_the_hub_says_so(monkeypatch):
    def load_dataset(name):
        raise datasets.exceptions.DatasetNotFoundError(
            f"Dataset '{name}' doesn't exist on the Hub or cannot be accessed."
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        FileNotFoundError, match=r"has no data set ada/tales .* no file or folder .*: check the name, or set HF_"
    ):
        list(read_rows("ada/tales", None, 0))
