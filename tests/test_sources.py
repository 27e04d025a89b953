"""Raw rows from local files of each type, and from a Hub that can or cannot be reached."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystories_lab.data.sources import HUB_REVISION, read_source
from tinystories_lab.tokenizer import END_OF_TEXT

STORIES = ["Once there was a fox.\nIt ran.", "“Hi,” said Zoë. 🦊", "The sun — so big — went down."]
BOM = b"\xef\xbb\xbf"


def marked(stories):
    return "".join(f"{story}\n{END_OF_TEXT}\n" for story in stories).encode()


def blank_lines(stories):
    return "\n\n".join(stories).encode()


def json_lines(stories):
    return "".join(json.dumps({"id": 7, "text": story}) + "\n" for story in stories).encode()


def parquet(texts, name="text"):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: texts, "id": range(len(texts))}), sink, row_group_size=700)
    return sink.getvalue().to_pybytes()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def rows_of(source):
    return [text for _, text in read_source(source, None, 0)]


def stories_of(source):
    """The stories, without the white space around them and the empty rows, which cleaning removes."""
    return [text.strip() for text in rows_of(source) if text and text.strip()]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [marked, blank_lines, json_lines, parquet])
def test_every_type_of_file_gives_the_same_stories_plain_or_gz_with_or_without_windows_marks(tmp_path, kind):
    suffix = {json_lines: "jsonl", parquet: "parquet"}.get(kind, "txt")
    contents = [kind(STORIES)]
    if kind is not parquet:
        contents += [BOM + contents[0], contents[0].replace(b"\n", b"\r\n")]
    for content in contents:
        for name in (f"stories.{suffix}", f"stories.{suffix}.gz"):
            assert stories_of(write(tmp_path / name, content)) == STORIES, (name, content)


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r")).filter(str.strip), max_size=5))
def test_any_stories_separated_by_the_marker_come_back_in_order(tmp_path_factory, stories):
    path = write(tmp_path_factory.getbasetemp() / "any.txt", END_OF_TEXT.join(["", *stories]).encode())
    assert stories_of(path) == [story.strip() for story in stories]


def test_if_the_marker_separates_stories_blank_lines_inside_them_stay(tmp_path):
    path = write(tmp_path / "stories.txt", f"One.\n\nStill one.{END_OF_TEXT}Two.\n\n\nStill two.".encode())
    assert stories_of(path) == ["One.\n\nStill one.", "Two.\n\n\nStill two."]


def test_without_the_marker_lines_of_white_space_separate_stories(tmp_path):
    path = write(tmp_path / "stories.txt", b"\n \nOne.\n \t\nTwo.\n\n\n\nThree.\n")
    assert [text.strip() for text in rows_of(path)] == ["One.", "Two.", "Three."]


def test_null_texts_are_empty_rows_and_blank_json_lines_are_no_rows(tmp_path):
    path = write(tmp_path / "stories.jsonl", b'{"text": null}\n\n{"text": "One."}\n   \n')
    assert rows_of(path) == [None, "One."]


@pytest.mark.parametrize("arrow_type", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_parquet_may_hold_any_arrow_string_type_nulls_and_many_row_groups(tmp_path, arrow_type):
    texts = [None, *(f"Story {number}." for number in range(1_500)), None]
    path = write(tmp_path / "stories.parquet", parquet(pa.array(texts).cast(arrow_type)))
    assert rows_of(path) == texts


def flip(data, first, last, mask):
    return data[:first] + bytes(byte ^ mask for byte in data[first:last]) + data[last:]


GZ = gzip.compress(blank_lines(STORIES), mtime=0)  # ten bytes of header; the last eight are a checksum and a length
PAGES = parquet([f"Story {number}." * 9 for number in range(999)])
NO_TEXT = r"line 3: not a JSON object with a \"text\".*fix or remove"
NO_STRING = r"\"text\" is .*; it must be a string or null"
NO_UTF8 = r"is not UTF-8 text .*0xe9.*save it as UTF-8"
HALF_EMOJI = r"line 2: \"text\" .*surrogates not allowed.*fix or remove it"


@pytest.mark.parametrize(
    "name, data, message",
    [
        *(
            ("s.jsonl", f'{{"text": "One."}}\n\n{line}\n'.encode(), NO_TEXT)
            for line in ('{"text": "cut', '["text"]', "7", '{"story": "One."}', "1" * 9_999)
        ),
        *(
            ("s.jsonl", b'{"text": "One."}\n{"text": %s}\n' % text, f"line 2: {NO_STRING}")
            for text in (b"7", b'["One."]')
        ),
        ("s.jsonl", b'{"text": "\\ud83e\\udd8a"}\n{"text": "\\ud83e"}\n', HALF_EMOJI),
        *(("s.parquet", parquet(texts), rf"s\.parquet: {NO_STRING}") for texts in ([7, 8], [b"One."], [["One."]])),
        ("s.parquet", parquet(["One."], "story"), r"has the columns \['story', 'id'\]; a column \"text\" is needed"),
        ("s.txt", "été".encode("latin-1"), NO_UTF8),
        ("s.jsonl.gz", gzip.compress(b'{"text": "\xe9"}', mtime=0), NO_UTF8),
        ("s.txt.gz", flip(GZ, 10, 11, 0b110), r"s\.txt\.gz cannot be read as \.gz .*damaged"),
        ("s.txt.gz", flip(GZ, len(GZ) - 8, len(GZ) - 7, 0b110), r"cannot be read as \.gz .*damaged"),
        ("s.txt.gz", b"Once upon a time.", r"cannot be read as \.gz .*Not a gzipped file"),
        *(
            (name, gzip.compress(data, mtime=0)[:99], r"cannot be read as \.gz .*ended before.*damaged")
            for name, data in (("s.txt.gz", PAGES), ("s.jsonl.gz", json_lines(STORIES * 100)), ("s.parquet.gz", PAGES))
        ),
        *(
            ("s.parquet", data, r"s\.parquet cannot be read as \.parquet .*damaged")
            for data in (PAGES[:-20], b"", b"Once upon a time.", flip(PAGES, 60, 400, 0x5A))
        ),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_why(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path / name)


# --- folders and names ------------------------------------------------------------------------------------------------


def test_in_a_folder_each_txt_is_one_story_unless_it_contains_the_marker(tmp_path):
    write(tmp_path / "b.txt", "Жила-была лиса.\n\nОна бежала.".encode())
    write(tmp_path / "a.txt", marked(STORIES))
    write(tmp_path / "more" / "c.txt.gz", BOM + "Ещё одна.".encode())
    assert (
        stories_of(str(tmp_path)) == stories_of(tmp_path) == [*STORIES, "Жила-была лиса.\n\nОна бежала.", "Ещё одна."]
    )


def test_files_of_a_folder_are_read_in_the_order_of_their_names_plain_or_gz(tmp_path):
    for number in (2, 0, 1):
        write(tmp_path / f"part-{number}.parquet{'.gz' * (number == 1)}", parquet([STORIES[number]]))
    assert rows_of(tmp_path) == STORIES


def test_hidden_files_and_other_types_are_skipped_in_a_folder(tmp_path):
    (tmp_path / "empty.txt").mkdir()
    for name in (".git/a.jsonl", "._b.txt", ".DS_Store", "README.md", "cover.png"):
        write(tmp_path / name, b"no story")
    write(tmp_path / "b.txt", b"One.")
    assert rows_of(tmp_path) == ["One."]


def test_a_folder_with_several_types_and_one_without_stories_are_refused(tmp_path):
    write(tmp_path / "notes.md", b"no story")
    with pytest.raises(
        FileNotFoundError, match=r"there is no file with stories in .*: check the path; .* \.txt, \.jsonl"
    ):
        rows_of(tmp_path)
    for name in ("a.txt", "b.jsonl.gz"):
        write(tmp_path / name, b"")
    with pytest.raises(ValueError, match=r"holds files of several types \(\.jsonl, \.txt\): keep one type in a folder"):
        rows_of(tmp_path)


@pytest.mark.parametrize("source", ["tinystory", "stories.csv", "stories.gz", "", "stories.txt.zip"])
def test_an_unknown_source_is_refused_with_the_possible_sources(source):
    with pytest.raises(ValueError, match=rf"unknown source '{source}': choose \"tinystories\", \"toyland\", a \.txt"):
        rows_of(source)


def test_a_missing_file_and_a_folder_with_the_name_of_a_file_are_refused(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    for name in ("missing.jsonl", "folder.txt"):
        with pytest.raises(FileNotFoundError, match=rf"there is no file .*{name}: check the path"):
            rows_of(tmp_path / name)


def test_a_local_file_or_folder_comes_before_a_dataset_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "ada" / "tales" / "a.txt", b"One.")
    write(tmp_path / "ada" / "tales.csv", b"text")
    assert rows_of("ada/tales") == ["One."]
    with pytest.raises(ValueError, match=r"unknown source 'ada/tales\.csv'"):
        rows_of("ada/tales.csv")


def test_a_local_source_has_no_split_and_stops_at_max_stories(tmp_path):
    path = write(tmp_path / "stories.jsonl", json_lines(STORIES))
    for limit in (None, 2, 99):
        assert list(read_source(str(path), limit, 0)) == [("", story) for story in STORIES[:limit]]


def test_toyland_gives_as_many_stories_as_asked_for_determined_by_the_seed():
    first, again, other = (list(read_source("toyland", 5, seed)) for seed in (0, 0, 1))
    assert len(first) == 5 and first == again != other


# --- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_hub(monkeypatch):
    """`on_hub(train=["One."])` puts such splits on the Hub and returns the list of requests made; it also takes an error."""

    def put(error=None, **splits):
        requests = []
        rows = {split: rows if isinstance(rows, dict) else {"text": rows} for split, rows in splits.items()}

        def load_dataset(name, **options):
            requests.append((name, options))
            if error:
                raise error
            return DatasetDict({split: Dataset.from_dict(columns) for split, columns in rows.items()})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return requests

    return put


def test_tinystories_comes_at_the_pinned_revision_and_with_its_own_splits(on_hub):
    train, validation = ([(split, f"{split} {n}.") for n in range(120)] for split in ("train", "validation"))
    # Train must be read first, whatever the order on the Hub is.
    requests = on_hub(validation=[text for _, text in validation], train=[text for _, text in train])
    for limit in (None, 2, 9_999):
        assert list(read_source("tinystories", limit, 0)) == train[:limit] + validation[:limit]
    assert requests == [("roneneldan/TinyStories", {"revision": HUB_REVISION})] * 3


def test_another_dataset_is_requested_by_its_name_and_keeps_its_own_split(on_hub):
    requests = on_hub(test=["No."], validation=["Три."], train=["Раз.", "Два."])
    assert list(read_source("ada/tales.v2", None, 0)) == [("train", "Раз."), ("train", "Два."), ("validation", "Три.")]
    assert requests == [("ada/tales.v2", {})]


def test_a_dataset_without_validation_gives_its_train_rows_without_a_split(on_hub):
    on_hub(train=["Раз.", "Два.", "Три."], test=["No."])
    assert list(read_source("ada/tales", 2, 0)) == [("", "Раз."), ("", "Два.")]


def test_another_column_can_be_named(on_hub):
    requests = on_hub(train={"id": [1, 2], "story": ["Раз.", None]})
    assert rows_of("ada/tales:story") == ["Раз.", None] and requests == [("ada/tales", {})]


@pytest.mark.parametrize(
    "source, column", [("ada/tales", "text"), ("ada/tales:id", "id"), ("ada/tales:parts", "parts")]
)
def test_a_dataset_without_such_a_column_of_strings_names_its_columns(on_hub, source, column):
    on_hub(train={"id": [1], "story": ["Раз."], "parts": [["a"]]})
    columns = rf'id \(int64\), story \(string\), parts \(.*"{column}" of strings is needed: write ada/'
    with pytest.raises(ValueError, match=rf"ada/tales has the columns {columns}"):
        rows_of(source)


def test_a_dataset_without_train_names_its_splits(on_hub):
    on_hub(test=["No."], dev=["No."])
    with pytest.raises(ValueError, match=r"ada/tales has the splits \['test', 'dev'\]; a split \"train\" is needed"):
        rows_of("ada/tales")


def test_a_name_that_is_neither_local_nor_on_the_hub_says_so(on_hub):
    on_hub(datasets.exceptions.DatasetNotFoundError("Dataset 'ada/tales' doesn't exist on the Hub."))
    with pytest.raises(
        FileNotFoundError, match=r"has no dataset ada/tales .* no file or folder .*: check the name, or set HF_"
    ):
        rows_of("ada/tales")


@pytest.mark.parametrize("cause", [OSError("429 Client Error: Too Many Requests"), TimeoutError("too slow")])
def test_a_hub_that_cannot_be_reached_names_the_cause_and_what_to_do(on_hub, cause):
    on_hub(cause)
    with pytest.raises(ConnectionError) as caught:
        rows_of("tinystories")
    assert caught.value.__cause__ is cause
    for part in (type(cause).__name__, str(cause), "Try again", "HF_TOKEN", "local file", '"toyland"'):
        assert part in str(caught.value)


def test_an_offline_hub_without_a_cached_copy_names_what_to_do(tmp_path, monkeypatch):
    # What HF_HUB_OFFLINE=1 sets; the libraries read the variable itself only when they are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(ConnectionError, match=r"TinyStories.*Hub.*local file or \"toyland\""):
        rows_of("tinystories")
