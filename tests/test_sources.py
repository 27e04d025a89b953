"""Raw rows from a local file of each kind, and from a Hub that can or cannot be had."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystories_lab.sources import END_OF_TEXT, _read_file, read_rows

STORIES = ["Once there was a fox.\nIt ran.", "“Hi,” said Zoë. 🦊", "The sun — so big — went down."]
BOM = b"\xef\xbb\xbf"


def marked(stories):
    return "".join(f"{story}\n{END_OF_TEXT}\n" for story in stories).encode()


def blank_lines(stories):
    return "\n\n".join(stories).encode()


def json_lines(stories):
    return "".join(json.dumps({"id": 7, "text": story}) + "\n" for story in stories).encode()


def parquet(stories):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": range(len(stories)), "text": pa.array(stories, pa.string())}), sink)
    return sink.getvalue().to_pybytes()


KINDS = {"marked .txt": marked, "blank .txt": blank_lines, ".jsonl": json_lines, ".parquet": parquet}


def write(path, data):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path):
    """The stories of a file, without the white space around them and the empty rows, which cleaning takes away."""
    return [text.strip() for text in _read_file(path) if text and text.strip()]


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_stories_for_the_same_content(tmp_path, kind, gz):
    path = write(tmp_path / f"stories{kind.split()[-1]}{gz}", KINDS[kind](STORIES))
    assert read(path) == STORIES


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", ["marked .txt", "blank .txt", ".jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_story(tmp_path, kind, gz):
    path = write(tmp_path / f"stories{kind.split()[-1]}{gz}", BOM + KINDS[kind](STORIES))
    assert read(path) == STORIES


@pytest.mark.parametrize("kind", ["marked .txt", "blank .txt", ".jsonl"])
def test_line_ends_of_windows_read_like_any_other(tmp_path, kind):
    path = write(tmp_path / f"stories{kind.split()[-1]}", KINDS[kind](STORIES).replace(b"\n", b"\r\n"))
    assert read(path) == STORIES


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r")).filter(str.strip), max_size=5))
def test_any_stories_that_the_marker_parts_come_back_in_order(tmp_path_factory, stories):
    path = write(tmp_path_factory.getbasetemp() / "any.txt", END_OF_TEXT.join(["", *stories]).encode())
    assert read(path) == [story.strip() for story in stories]


def test_blank_lines_inside_a_story_stay_where_the_marker_parts_stories(tmp_path):
    path = write(tmp_path / "stories.txt", f"One.\n\nStill one.{END_OF_TEXT}Two.\n\n\nStill two.".encode())
    assert read(path) == ["One.\n\nStill one.", "Two.\n\n\nStill two."]


def test_lines_of_white_space_part_stories_like_empty_ones(tmp_path):
    assert read(write(tmp_path / "stories.txt", b"\n \nOne.\n \t\nTwo.\n\n\n\nThree.\n")) == ["One.", "Two.", "Three."]


def test_null_texts_are_empty_rows_and_blank_json_lines_are_no_rows(tmp_path):
    path = write(tmp_path / "stories.jsonl", b'{"text": null}\n\n{"text": "One."}\n   \n')
    assert list(_read_file(path)) == [None, "One."]
    assert list(_read_file(write(tmp_path / "stories.parquet", parquet([None, "One."])))) == [None, "One."]


def test_a_parquet_file_of_many_row_groups_is_read_to_its_end(tmp_path):
    stories = [f"Story {number}." for number in range(2_500)]
    pq.write_table(pa.table({"text": stories}), tmp_path / "stories.parquet", row_group_size=700)
    assert read(tmp_path / "stories.parquet") == stories


@pytest.mark.parametrize("line", ['{"text": "cut', '["text"]', "7", '{"story": "One."}', "1" * 9_999])
def test_a_json_line_that_is_no_object_with_a_text_is_named_by_its_number(tmp_path, line):
    path = write(tmp_path / "stories.jsonl", f'{{"text": "One."}}\n\n{line}\n'.encode())
    with pytest.raises(ValueError, match=r"stories\.jsonl, line 3: not a JSON object with a \"text\".*mend or remove"):
        list(_read_file(path))


@pytest.mark.parametrize("text", ["7", "true", '["One."]'])
def test_a_json_text_that_is_no_string_is_named_by_its_line(tmp_path, text):
    path = write(tmp_path / "stories.jsonl", f'{{"text": "One."}}\n{{"text": {text}}}\n'.encode())
    with pytest.raises(ValueError, match=r"line 2: \"text\" is .*; it must be a string or null"):
        list(_read_file(path))


def test_a_json_text_with_half_an_emoji_is_named_by_its_line(tmp_path):
    path = write(tmp_path / "stories.jsonl", b'{"text": "\\ud83e\\udd8a whole"}\n{"text": "cut \\ud83e"}\n')
    with pytest.raises(ValueError, match=r"line 2: \"text\" .*surrogates not allowed.*mend or remove it"):
        list(_read_file(path))


def test_parquet_without_a_text_column_names_the_columns_it_has(tmp_path):
    pq.write_table(pa.table({"id": [1], "story": ["One."]}), tmp_path / "stories.parquet")
    with pytest.raises(ValueError, match=r"has the columns \['id', 'story'\]; a column \"text\" is needed"):
        list(_read_file(tmp_path / "stories.parquet"))


@pytest.mark.parametrize("column", [[7, 8], [b"One.", b"Two."], [["One."], ["Two."]]], ids=["int", "bytes", "lists"])
def test_parquet_whose_text_is_no_string_shows_it(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "stories.parquet")
    with pytest.raises(ValueError, match=r"stories\.parquet: \"text\" is .*; it must be a string or null"):
        list(_read_file(tmp_path / "stories.parquet"))


@pytest.mark.parametrize(
    "column_type", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_parquet_may_keep_its_strings_in_any_arrow_string_type(tmp_path, column_type):
    pq.write_table(pa.table({"text": pa.array(["One.", None, "One."]).cast(column_type)}), tmp_path / "stories.parquet")
    assert list(_read_file(tmp_path / "stories.parquet")) == ["One.", None, "One."]


@pytest.mark.parametrize("name", ["stories.txt", "stories.jsonl", "stories.txt.gz"])
def test_a_file_that_is_not_utf_8_says_so(tmp_path, name):
    path = write(tmp_path / name, '{"text": "été"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"is not UTF-8 text .*0xe9.*save it as UTF-8"):
        list(_read_file(path))


@pytest.mark.parametrize("first", [10, -8], ids=["in its codes", "in its checksum"])
def test_a_damaged_gz_says_so(tmp_path, first):
    data = bytearray(gzip.compress("\n\n".join(STORIES).encode()))
    data[first] ^= 0b110  # after the header of ten bytes: a kind of block that there is not
    (tmp_path / "stories.txt.gz").write_bytes(data)
    with pytest.raises(ValueError, match=r"stories\.txt\.gz cannot be read as \.gz .*damaged"):
        list(_read_file(tmp_path / "stories.txt.gz"))


@pytest.mark.parametrize("name, kind", [("s.txt.gz", marked), ("s.jsonl.gz", json_lines), ("s.parquet.gz", parquet)])
def test_a_truncated_gz_says_so(tmp_path, name, kind):
    data = gzip.compress(kind(STORIES * 100))
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cannot be read as \.gz .*ended before.*damaged"):
        list(_read_file(tmp_path / name))


def test_a_gz_that_is_none_says_so(tmp_path):
    (tmp_path / "stories.txt.gz").write_bytes(b"Once upon a time.")
    with pytest.raises(ValueError, match=r"cannot be read as \.gz .*Not a gzipped file"):
        list(_read_file(tmp_path / "stories.txt.gz"))


@pytest.mark.parametrize("harm", [lambda data: data[:-20], lambda data: b"", lambda data: b"Once upon a time."])
def test_a_parquet_file_that_is_none_says_so(tmp_path, harm):
    path = write(tmp_path / "stories.parquet", harm(parquet(STORIES)))
    with pytest.raises(ValueError, match=r"stories\.parquet cannot be read as \.parquet .*damaged"):
        list(_read_file(path))


def test_a_parquet_file_with_a_damaged_page_says_so(tmp_path):
    pq.write_table(pa.table({"text": [f"Story {number}." * 9 for number in range(999)]}), tmp_path / "stories.parquet")
    data = bytearray((tmp_path / "stories.parquet").read_bytes())
    data[60:400] = bytes(byte ^ 0x5A for byte in data[60:400])
    (tmp_path / "stories.parquet").write_bytes(data)
    with pytest.raises(ValueError, match=r"stories\.parquet cannot be read as \.parquet .*damaged"):
        list(_read_file(tmp_path / "stories.parquet"))


@pytest.mark.parametrize("source", ["tinystory", "stories.csv", "stories.gz", "", "stories.txt.zip"])
def test_an_unknown_source_is_refused_with_the_sources_there_are(source):
    with pytest.raises(ValueError, match=rf"unknown source '{source}': take \"tinystories\", \"toyland\", or a \.txt"):
        list(read_rows(source, None, 0))


def test_a_missing_file_and_a_folder_are_refused_by_path(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    for name in ("missing.jsonl", "folder.txt"):
        with pytest.raises(FileNotFoundError, match=rf"there is no file .*{name}: check the path"):
            list(read_rows(tmp_path / name, None, 0))


def texts_of(folder):
    return [(text or "").strip() for _, text in read_rows(folder, None, 0)]


def test_in_a_folder_each_txt_is_a_story_unless_the_marker_parts_it(tmp_path):
    write(tmp_path / "b.txt", "Жила-была лиса.\n\nОна бежала.".encode())
    write(tmp_path / "a.txt", marked(STORIES))
    (tmp_path / "more").mkdir()
    write(tmp_path / "more" / "c.txt.gz", BOM + "Ещё одна.".encode())
    assert texts_of(tmp_path) == [*STORIES, "Жила-была лиса.\n\nОна бежала.", "Ещё одна."]
    assert texts_of(str(tmp_path)) == texts_of(tmp_path)


@pytest.mark.parametrize("name, kind", [("jsonl", json_lines), ("parquet", parquet)])
def test_a_folder_of_shards_gives_their_rows_in_the_order_of_their_names(tmp_path, name, kind):
    for number in (2, 0, 1):
        write(tmp_path / f"part-{number}.{name}{'.gz' * (number == 1)}", kind([STORIES[number]]))
    assert texts_of(tmp_path) == STORIES


def test_what_is_hidden_or_holds_no_stories_is_passed_over_in_a_folder(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "empty.txt").mkdir()
    for name in (".git/a.jsonl", "._b.txt", ".DS_Store", "README.md", "cover.png"):
        write(tmp_path / name, b"no story")
    write(tmp_path / "b.txt", b"One.")
    assert texts_of(tmp_path) == ["One."]


def test_a_folder_of_several_kinds_and_one_without_any_are_refused(tmp_path):
    write(tmp_path / "notes.md", b"no story")
    with pytest.raises(
        FileNotFoundError, match=r"there is no file of stories in .*: check the path; \.txt, \.jsonl, \.par"
    ):
        texts_of(tmp_path)
    for name in ("a.txt", "b.jsonl.gz"):
        write(tmp_path / name, b"")
    with pytest.raises(ValueError, match=r"holds files of several kinds \(\.jsonl, \.txt\): keep one kind in a folder"):
        texts_of(tmp_path)


def test_what_is_there_is_read_before_the_hub_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ada" / "tales").mkdir(parents=True)
    write(tmp_path / "ada" / "tales" / "a.txt", b"One.")
    write(tmp_path / "ada" / "tales.csv", b"text")
    assert texts_of("ada/tales") == ["One."]
    with pytest.raises(ValueError, match=r"unknown source 'ada/tales\.csv'"):
        texts_of("ada/tales.csv")


def test_a_local_source_has_no_split_and_stops_at_max_stories(tmp_path):
    path = write(tmp_path / "stories.jsonl", json_lines(STORIES))
    assert list(read_rows(path, None, 0)) == [("", story) for story in STORIES]
    assert list(read_rows(str(path), 2, 0)) == [("", story) for story in STORIES[:2]]
    assert list(read_rows(path, 99, 0)) == [("", story) for story in STORIES]


def test_toyland_tells_as_many_stories_as_asked_by_its_seed():
    assert len(list(read_rows("toyland", 5, seed=0))) == 5
    assert list(read_rows("toyland", 5, seed=0)) == list(read_rows("toyland", 5, seed=0))
    assert list(read_rows("toyland", 5, seed=0)) != list(read_rows("toyland", 5, seed=1))
