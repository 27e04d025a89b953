"""Raw rows from local files of each type, and from a Hub that can or cannot be reached."""

import errno
import gzip
import json
import os
import shutil
import signal
import socket
import threading
import time
import tracemalloc

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import errors
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystories_lab.data import hub, local_files, sources, stories
from tinystories_lab.data.sources import HUB_REVISION, CleanReport, find_files, read_source
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
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix.lower() == ".gz" else data)
    return path


def read(source, *options):
    """The rows (split, text) of a source, and the report of reading it."""
    report = CleanReport(str(source))
    return list(read_source(source, report, *options)), report


def rows_of_one_by_one(source):
    return (text for _, text in read_source(source, CleanReport(str(source))))


def rows_of(source):
    return [text for _, text in read(source)[0]]


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


@pytest.mark.parametrize("places", [[0], [199], [9], [0, 1, 50, 51], range(0, 200, 12)], ids=str)
def test_markers_in_a_few_places_do_not_swallow_stories_separated_by_blank_lines(tmp_path, places):
    paragraphs = [f"Story {number}.\nIt ends." for number in range(200)]
    marked_ones = [text + f"\n{END_OF_TEXT}" * (place in places) for place, text in enumerate(paragraphs)]
    rows, report = read(write(tmp_path / "stories.txt", blank_lines(marked_ones)))
    assert [text.strip() for _, text in rows] == paragraphs
    count = len(places)
    assert report.notes == [
        f"stories.txt: {count} {END_OF_TEXT} among 200 paragraphs: blank lines separate stories, too"
    ]
    assert report.notes[0] in str(report)


def test_a_marker_always_separates_also_inside_a_line_and_beside_blank_lines_it_leaves_no_empty_row(tmp_path):
    text = END_OF_TEXT + "\n\n".join(["One.", f"Two.{END_OF_TEXT}Three."] + ["More."] * 30 + [END_OF_TEXT, END_OF_TEXT])
    assert [text.strip() for text in rows_of(write(tmp_path / "s.txt", text.encode()))] == [
        "One.",
        "Two.",
        "Three.",
        *["More."] * 30,
    ]


@pytest.mark.parametrize("paragraphs", [1, 2, 10])
def test_a_marker_after_every_story_of_up_to_ten_paragraphs_separates_them_alone(tmp_path, paragraphs):
    texts = ["\n\n".join([f"Story {number}."] * paragraphs) for number in range(5)]
    rows, report = read(write(tmp_path / "s.txt", marked(texts)))
    assert [text.strip() for _, text in rows] == texts
    assert len(report.notes) == (paragraphs > 1) and all("are part of the stories" in note for note in report.notes)


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


def test_every_file_of_a_folder_that_is_not_read_is_counted_with_the_reason_and_never_opened(tmp_path):
    folder, outside = tmp_path / "mine", tmp_path / "outside"
    names = (".git/a.jsonl", ".git/hooks/b.txt", "._b.txt", ".DS_Store", "README.md", "a/C.MD", "cover.png", "LICENSE")
    for name in names:
        write(folder / name, b"no story")
    write(folder / "b.txt", b"One.")
    (folder / "empty.txt").mkdir()
    (folder / "nowhere.txt").symlink_to("missing")
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe.txt")  # opening it would wait for ever
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(folder / "socket.txt"))
    write(outside / "c.txt", b"Two.")
    for name, target in (("one", outside), ("two", outside), ("self", folder), ("up", tmp_path), ("root", "/")):
        (folder / name).symlink_to(target)
    rows, report = read(folder)
    assert rows == [("", "One."), ("", "Two.")]
    assert report.skipped == {
        "hidden": 4,
        "another type (.md)": 2,
        "another type (.png)": 1,
        "another type (no ending)": 1,
        "broken link": 2,
        "not a regular file": 2,
        "folder read already": 2,
        "link to a folder above": 2,
    }
    assert report.examples["not read: broken link"] == [str(folder / "circle"), str(folder / "nowhere.txt")]
    assert "not read: " in str(report) and "another type (.md): 2" in str(report)


def test_a_folder_keeps_its_own_name_even_if_a_link_to_it_comes_first_in_the_alphabet(tmp_path):
    write(tmp_path / "m" / "z" / "a.txt", b"One.")
    (tmp_path / "a").symlink_to(tmp_path / "m" / "z")
    assert find_files(tmp_path) == [tmp_path / "m" / "z" / "a.txt"]


@pytest.mark.parametrize("name", ["a.txt", "sub/a.txt", "sub"])
def test_a_file_or_folder_that_may_not_be_read_is_refused_before_anything_is_written(tmp_path, monkeypatch, name):
    write(tmp_path / "mine" / "sub" / "a.txt", b"One.")
    write(tmp_path / "mine" / "a.txt", b"Two.")
    locked = tmp_path / "mine" / name

    def refuse(function):  # the tests run as root, who may read everything
        def checked(path, *args, **kwargs):
            if str(path) == str(locked):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(path, *args, **kwargs)

        return checked

    monkeypatch.setattr("builtins.open", refuse(open))
    monkeypatch.setattr("os.scandir", refuse(os.scandir))
    for source in [tmp_path / "mine"] + [locked] * (name == "a.txt"):
        with pytest.raises(ValueError, match=rf"{locked} cannot be read \(Permission denied\): allow that, or move"):
            stories.load_stories(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_source_that_is_no_regular_file_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match=r"pipe\.txt is not a regular file: choose"):
        rows_of(tmp_path / "pipe.txt")


def test_endings_are_read_in_any_case_of_letters(tmp_path):
    for name in ("A.TXT", "B.Txt.GZ"):
        assert rows_of(write(tmp_path / "mine" / name, b"One.")) == ["One."]
    assert rows_of(tmp_path / "mine") == ["One.", "One."]
    assert rows_of(write(tmp_path / "S.JSONL.GZ", json_lines(STORIES))) == STORIES
    assert rows_of(write(tmp_path / "S.PARQUET", parquet(STORIES))) == STORIES


@pytest.mark.parametrize(
    "name, data", [("a.txt", b""), ("a.txt", b" \n\n"), ("a.txt.gz", b""), ("a.jsonl", b"\n"), ("a.parquet", None)]
)
def test_a_file_without_rows_is_an_empty_row(tmp_path, name, data):
    path = write(tmp_path / "mine" / name, parquet(pa.array([], pa.string())) if data is None else data)
    shutil.copy(path, path.with_name(name.replace("a.", "b.")))
    assert not any(text and text.strip() for text in rows_of(path)) and len(rows_of(path)) == 1
    assert len(rows_of(tmp_path / "mine")) == 2


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


# --- splits in names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train, validation, test",
    [
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("data/train-0.parquet", "data/valid-0.parquet", "data/test-0.parquet"),
        ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt", "TinyStoriesV2-GPT4-test.txt"),
        ("Train/a.jsonl", "VAL/a.jsonl", "eval/a.jsonl.gz"),
        ("a_training.jsonl.gz", "a_dev.jsonl", "a.testing.jsonl"),
        ("train1.txt", "validation 1.TXT.gz", "evaluation_1.txt"),
        ("train/the-last-test.txt", "dev/the-train.txt", "test/the-train.txt"),
        ("train-dev-test/my train.txt", "train-dev-test/my dev.txt", "train-dev-test/my test.txt"),
        ("books.train/x.txt", "validation.txt", "more/test.txt"),
    ],
)
def test_splits_in_the_names_of_files_or_folders_are_kept(tmp_path, train, validation, test):
    make = parquet if train.endswith("parquet") else json_lines if "jsonl" in train else blank_lines
    for name, text in ((train, "Train."), (validation, "Validate."), (test, "Test.")):
        write(tmp_path / name, make([f"{text} {number}" for number in range(3)]))
    rows, report = read(tmp_path)
    assert [(split, text.strip()) for split, text in rows] == [
        *(("train", f"Train. {number}") for number in range(3)),
        *(("validation", f"Validate. {number}") for number in range(3)),
    ]
    assert report.skipped == {"split test": 1} and not report.notes
    (tmp_path / validation).unlink()
    rows, report = read(tmp_path)
    assert [(split, text.strip()) for split, text in rows][3:] == [("validation", f"Test. {n}") for n in range(3)]
    assert report.notes == ['there is no validation split: the split "test" is used for validation']
    assert not report.skipped


@pytest.mark.parametrize(
    "names, ignored",
    [
        (("train.jsonl", "train-2.jsonl"), False),
        (("train.jsonl", "validation.jsonl", "more.jsonl"), True),
        (("validation.jsonl", "test.jsonl"), True),
        (("trained.jsonl", "contest.jsonl", "developer.jsonl", "évaluation.jsonl"), False),
    ],
)
def test_without_a_split_in_every_name_there_is_none_and_ignored_ones_are_noted(tmp_path, names, ignored):
    for name in names:
        write(tmp_path / "train and test" / name, json_lines([name]))
    rows, report = read(tmp_path / "train and test")
    assert rows == [("", name) for name in sorted(names)]
    assert len(report.notes) == ignored and all("validation is drawn at random" in note for note in report.notes)


# --- caps ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bars(monkeypatch):
    """The totals of the progress bars."""
    totals = []
    monkeypatch.setattr(sources, "progress", lambda rows, total, **options: totals.append(total) or rows)
    return totals


@pytest.mark.parametrize("kind", [parquet, json_lines, blank_lines, marked])
def test_a_cap_is_noted_with_the_number_of_rows_if_it_is_known_and_bars_promise_no_more_rows_than_there_are(
    tmp_path, kind, bars
):
    suffix = {json_lines: "jsonl", parquet: "parquet"}.get(kind, "txt")
    path = write(tmp_path / f"s.{suffix}", kind([f"Story {number}." for number in range(200)]))
    known = kind is parquet
    for cap, total in ((None, 200), (20_000, 200), (200, 200), (50, 50)):
        rows, report = read(path, cap)
        assert len(rows) == min(cap or 200, 200) and bars.pop() == (total if known else None)
        there = "the source has 200" if known else "the source has more"
        note = f"only the first 50 rows were read (max_stories); {there}: if it is sorted, these are a one-sided sample"
        assert report.notes == [note] * (cap == 50)


def test_a_source_with_splits_is_capped_for_train_and_validation_has_its_share_of_the_cap(on_hub, tmp_path, bars):
    texts = {split: [f"{split} {number}" for number in range(120)] for split in ("train", "validation")}
    on_hub(**texts)
    for split, rows in texts.items():
        write(tmp_path / f"{split}.parquet", parquet(rows))
    for source in ("tinystories", tmp_path):
        for cap, share, count in ((50, 0.05, 2), (50, 0.5, 25), (2, 0.05, 1), (9_999, 0.05, 120)):
            rows, report = read(source, cap, share)
            assert rows == [("train", text) for text in texts["train"][:cap]] + [
                ("validation", text) for text in texts["validation"][:count]
            ]
            assert bars[-2:] == [min(cap, 120), count] and len(report.notes) == 2 * (cap < 120)
    assert "only the first 50 rows of train were read" in read("tinystories", 50)[1].notes[0]


def test_a_parquet_file_of_long_and_short_rows_is_read_in_little_memory(tmp_path):
    path, pages = tmp_path / "s.parquet", {"write_batch_size": 1, "use_dictionary": False}  # one row in a page
    long = [f"{number} " + "long " * 200_000 for number in range(30)]  # 1 MB each
    for texts, options in ((long, pages), (["short"] * 200 + long, pages), (long[:1] * 100, {})):
        pq.write_table(pa.table({"text": texts}), path, **options)
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        peak = 0
        for text, same in zip(rows_of_one_by_one(path), texts, strict=True):
            assert text == same
            peak = max(peak, pa.total_allocated_bytes() - before)
        assert tracemalloc.get_traced_memory()[1] < (5e7 if options == {} else 1.2e7)
        assert peak < (2.5e7 if local_files._BUFFER else 1e8)
        tracemalloc.stop()


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
        assert read(path, limit)[0] == [("", story) for story in STORIES[:limit]]


def test_toyland_gives_as_many_stories_as_asked_for_determined_by_the_seed():
    first, again, other = (read("toyland", 5, 0.05, seed)[0] for seed in (0, 0, 1))
    assert len(first) == 5 and first == again != other


# --- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_hub(monkeypatch):
    """`on_hub(train=["One."])` puts such splits on the Hub and returns the list of requests made; it also takes an error."""

    def put(error=None, **splits):
        requests = []
        rows = {split: rows if isinstance(rows, dict) else {"text": rows} for split, rows in splits.items()}

        def load_dataset(name, *config, **options):
            requests.append((name, *config, options))
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
    assert read("tinystories")[0] == read("tinystories", 9_999)[0] == train + validation
    assert requests == [("roneneldan/TinyStories", {"revision": HUB_REVISION})] * 2


def test_another_dataset_is_requested_by_its_name_and_keeps_its_own_split(on_hub):
    requests = on_hub(test=["No."], validation=["Три."], train=["Раз.", "Два."])
    rows, report = read("ada/tales.v2")
    assert rows == [("train", "Раз."), ("train", "Два."), ("validation", "Три.")]
    assert report.skipped == {"split test": 1}
    assert requests == [("ada/tales.v2", {})]


def test_a_dataset_with_train_alone_gives_its_rows_without_a_split_and_counts_those_of_other_splits(on_hub):
    on_hub(train=["Раз.", "Два.", "Три."], unsupervised=["No."])
    rows, report = read("ada/tales")
    assert rows == [("", "Раз."), ("", "Два."), ("", "Три.")] and report.skipped == {"split unsupervised": 1}


@pytest.mark.parametrize("name", ["validation", "valid", "dev", "val", "test", "test_matched"])
def test_the_split_to_validate_with_may_have_any_name_and_is_test_if_there_is_no_other(on_hub, name):
    on_hub(**{name: ["Три."], "train": ["Раз."]})
    rows, report = read("ada/tales")
    assert rows == [("train", "Раз."), ("validation", "Три.")] and not report.skipped
    assert report.notes == ['there is no validation split: the split "test" is used for validation'] * ("test" in name)


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


class Response:
    """What `huggingface_hub` reads of an answer of the Hub."""

    def __init__(self, status_code):
        self.status_code, self.headers, self.request = status_code, {}, None


def caused(error, cause):
    error.__cause__ = cause
    return error


def http(kind, status):
    return kind(f"{status} Client Error.\nSomething for url: https://huggingface.co", response=Response(status))


GATED = DatasetNotFoundError("Dataset 'ada/tales' is a gated dataset on the Hub. Visit the dataset page to ask.")
NO_SUCH = DatasetNotFoundError("Dataset 'ada/tales' doesn't exist on the Hub or cannot be accessed.")
CONNECT = type("ConnectError", (type("TransportError", (Exception,), {}),), {})  # as in httpx
TERMS, NAME = (
    r"accept the terms at .*/datasets/ada/tales, set HF_TOKEN",
    r"check the name, or set HF_TOKEN if private",
)
NETWORK, SPACE = r"check the network and try again, or choose a local file or \"toyland\"", "free some disk space"


@pytest.mark.parametrize(
    "cause, kind, advice",
    [
        (caused(GATED, http(errors.GatedRepoError, 401)), FileNotFoundError, TERMS),
        (http(errors.GatedRepoError, 403), FileNotFoundError, TERMS),
        (caused(NO_SUCH, http(errors.RepositoryNotFoundError, 401)), FileNotFoundError, NAME),
        (http(errors.HfHubHTTPError, 403), FileNotFoundError, NAME),
        (http(errors.HfHubHTTPError, 429), ConnectionError, "set HF_TOKEN, with which the Hub allows more requests"),
        (OSError("429 Client Error: Too Many Requests"), ConnectionError, "set HF_TOKEN, with which"),
        (TimeoutError("too slow"), ConnectionError, NETWORK),
        (CONNECT("no route"), ConnectionError, NETWORK),
        (ConnectionError("Couldn't reach 'ada/tales' on the Hub (LocalEntryNotFoundError)"), ConnectionError, NETWORK),
        (errors.OfflineModeIsEnabled("offline"), ConnectionError, NETWORK),
        (errors.LocalEntryNotFoundError("not cached"), ConnectionError, NETWORK),
        (OSError(errno.ENOSPC, "No space left on device"), OSError, SPACE),
        (caused(DatasetGenerationError("failed"), OSError(errno.ENOSPC, "No space left on device")), OSError, SPACE),
        (OSError("Not enough disk space. Needed: 9 GB"), OSError, SPACE),
        (DatasetGenerationError("An error occurred"), ValueError, "cannot read it: choose another"),
        (RuntimeError("Dataset scripts are no longer supported, but found tales.py"), ValueError, "choose another"),
        (errors.HFValidationError("Repo id must not end with '.'"), ValueError, "cannot read it: choose another"),
        (http(errors.HfHubHTTPError, 503), ConnectionError, "wait a few minutes and try again, or choose a local file"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
@pytest.mark.parametrize("source", ["ada/tales", "ada/tales:story"])
def test_each_cause_of_a_failure_on_the_hub_has_its_own_remedy(on_hub, source, cause, kind, advice):
    on_hub(cause)
    with pytest.raises(kind, match=rf"(?s)ada/tales.* no file or folder has that name: .*{advice}") as caught:
        rows_of(source)
    assert type(caught.value) is kind and caught.value.__cause__ is cause and "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["stories/mine_typo", "stories/mine.txtt"])
@pytest.mark.parametrize("cause", [NO_SUCH, ConnectionError("no network")])
def test_a_misspelt_path_that_looks_like_a_name_on_the_hub_says_that_neither_exists(
    on_hub, tmp_path, monkeypatch, source, cause
):
    write(tmp_path / "stories" / "mine.txt", b"One.")
    monkeypatch.chdir(tmp_path)
    on_hub(cause)
    with pytest.raises(OSError, match=rf"could not get the dataset {source} from .*no file or folder has that name"):
        rows_of(source)


@pytest.fixture
def with_configurations(monkeypatch):
    """A dataset on the Hub with the configurations en and de, of which `default` is loaded if none is named."""

    def put(default=None):
        def load_dataset(name, config=default):
            if config is None:
                raise ValueError(
                    "Config name is missing.\nPlease pick one among the available configs: ['en', 'de']"
                    "\nExample of usage:\n\t`load_dataset('ada/tales', 'en')`"
                )
            if config not in ("en", "de"):
                raise ValueError(f"BuilderConfig '{config}' not found. Available: ['en', 'de']")
            columns = {"text": [f"{config} text"], "story": [f"{config} story"]}
            return DatasetDict(train=Dataset.from_dict(columns))

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return put


@pytest.mark.parametrize(
    "wanted, text", [("de", "de text"), ("de:", "de text"), ("de:story", "de story"), ("en:text", "en text")]
)
@pytest.mark.parametrize("default", [None, "en"])
def test_a_configuration_can_be_named_with_or_without_a_column(with_configurations, default, wanted, text):
    with_configurations(default)
    assert rows_of(f"ada/tales:{wanted}") == [text]


def test_with_a_default_configuration_a_single_word_is_a_column_as_long_as_there_is_one(with_configurations):
    with_configurations("en")
    assert rows_of("ada/tales:story") == ["en story"] and rows_of("ada/tales") == ["en text"]
    with pytest.raises(ValueError, match=r'has the columns text .*; a column "fr" of strings is needed'):
        rows_of("ada/tales:fr")


@pytest.mark.parametrize("source, found", [("", "several"), (":fr", "several"), (":fr:text", 'no configuration "fr"')])
def test_a_missing_or_unknown_configuration_lists_those_there_are(with_configurations, source, found):
    with_configurations()
    needed = r"write ada/tales:CONFIGURATION:COLUMN, where CONFIGURATION is one of en, de"
    with pytest.raises(ValueError, match=rf"ada/tales has {found}.*: {needed}"):
        rows_of(f"ada/tales{source}")


@pytest.fixture
def hanging(monkeypatch, tmp_path):
    """A download that writes as often as `hanging(writes)` says, and then hangs for longer than the limit."""
    for module, name in (("datasets.config", "HF_DATASETS_CACHE"), ("huggingface_hub.constants", "HF_HUB_CACHE")):
        monkeypatch.setattr(f"{module}.{name}", tmp_path / name)
    monkeypatch.setattr("huggingface_hub.constants.HF_XET_CACHE", tmp_path / "xet")
    monkeypatch.setattr(hub, "_STALL_SECONDS", 0.4)
    monkeypatch.setattr(hub, "_LOOK_SECONDS", 0.05)
    threads = []

    def put(writes, hangs):
        def load_dataset(name):
            threads.append(threading.current_thread())
            for number in range(writes):
                write(tmp_path / "HF_HUB_CACHE" / "blobs" / "part", b"x" * number)
                time.sleep(0.1)
            for number in range(20 * hangs):
                write(tmp_path / "xet" / "logs" / "log", b"x" * number)
                time.sleep(0.1)
            return DatasetDict(train=Dataset.from_dict({"text": ["One."]}))

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return threads

    return put


def test_a_download_that_writes_nothing_for_long_is_given_up_with_what_to_set(hanging):
    (threads, started) = hanging(2, True), time.monotonic()
    with pytest.raises(ConnectionError, match=r"ada/tales .*nothing was written .*: set HF_HUB_DISABLE_XET=1"):
        rows_of("ada/tales")
    assert time.monotonic() - started < 1.8 and threads[0].daemon
    threads[0].join()


def test_ctrl_c_during_a_download_is_answered_at_once(hanging, monkeypatch):
    (threads, started) = hanging(0, True), time.monotonic()
    monkeypatch.setattr(hub, "_STALL_SECONDS", 60)
    monkeypatch.setattr(hub, "_LOOK_SECONDS", 60)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        rows_of("ada/tales")
    assert time.monotonic() - started < 1.5
    threads[0].join()


def test_a_slow_download_that_goes_on_writing_is_waited_for(hanging):
    hanging(10, False)
    assert rows_of("ada/tales") == ["One."]


def test_an_offline_hub_without_a_cached_copy_names_what_to_do(tmp_path, monkeypatch):
    # What HF_HUB_OFFLINE=1 sets; the libraries read the variable itself only when they are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(ConnectionError, match=r"TinyStories.*Hub.*local file or \"toyland\""):
        rows_of("tinystories")
