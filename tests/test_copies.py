"""Copies on a disk that may go: what is listed is what was copied, and nothing else comes back."""

import io
import json
import os

import pytest

from tinystories_lab import copies
from tinystories_lab.copies import (
    copy_in_place,
    fetch_files,
    is_listed,
    list_copy,
    read_json,
    read_manifest,
    sha256_of,
    write_json,
)


@pytest.fixture
def folders(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    (here / "a.txt").write_bytes(b"once upon a time")
    with open(here / "a.txt", "rb") as file:
        list_copy(there / "a.txt", copy_in_place(file, there / "a.txt"))
    return here, there


def test_a_copy_is_listed_with_size_and_hash(folders):
    here, there = folders
    assert (there / "a.txt").read_bytes() == b"once upon a time"
    assert read_manifest(there) == {"a.txt": {"size": 16, "sha256": sha256_of(here / "a.txt")}}
    assert is_listed(here / "a.txt", there / "a.txt")


def test_a_file_is_read_once_for_each_time_that_it_changed(folders, monkeypatch):
    """The mirror asks every minute, and train.bin has hundreds of megabytes."""
    here, there = folders
    read = []
    monkeypatch.setattr(copies, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    assert is_listed(here / "a.txt", there / "a.txt") and is_listed(here / "a.txt", there / "a.txt")
    assert len(read) == 1
    (here / "a.txt").write_bytes(b"once upon a tree")
    os.utime(here / "a.txt", ns=(1, 1))
    assert not is_listed(here / "a.txt", there / "a.txt") and len(read) == 2


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_file_that_changed_on_either_side_is_not_listed(folders, where):
    here, there = folders
    path = here if where == "here" else there
    (path / "a.txt").write_bytes(b"once upon a tim" + (b"x" if where == "here" else b""))
    assert not is_listed(here / "a.txt", there / "a.txt")
    (path / "a.txt").unlink()
    if where == "there":
        assert not is_listed(here / "a.txt", there / "a.txt")


def test_a_copy_keeps_its_file_in_place(folders):
    """Drive counts what is replaced or deleted against the quota."""
    _, there = folders
    before = (there / "a.txt").stat().st_ino
    copy_in_place(io.BytesIO(b"longer than it was before"), there / "a.txt")
    assert (there / "a.txt").stat().st_ino == before
    copy_in_place(io.BytesIO(b"short"), there / "a.txt")
    assert (there / "a.txt").read_bytes() == b"short"
    before = (there / "manifest.json").stat().st_ino
    list_copy(there / "b.txt", {"size": 1, "sha256": ""})
    assert (there / "manifest.json").stat().st_ino == before and set(read_manifest(there)) == {"a.txt", "b.txt"}


def test_what_is_missing_comes_back_and_what_is_there_stays(folders):
    here, there = folders
    (here / "a.txt").write_text("newer")
    fetch_files(there, here, ["a.txt"])
    assert (here / "a.txt").read_text() == "newer"
    (here / "a.txt").unlink()
    fetch_files(there, here, ["a.txt", "never there"])
    assert (here / "a.txt").read_bytes() == b"once upon a time"
    assert [path.name for path in here.iterdir()] == ["a.txt"]


def test_replacing_keeps_what_was_there_beside_it(folders):
    here, there = folders
    fetch_files(there, here, ["a.txt"], replace=True)
    assert [path.name for path in here.iterdir()] == ["a.txt"], "it was the same"
    (here / "a.txt").write_text("mine")
    fetch_files(there, here, ["a.txt"], replace=True)
    assert (here / "a.txt").read_bytes() == b"once upon a time"
    assert (here / "a.txt.before-fetch").read_text() == "mine"


@pytest.mark.parametrize("spoil", ["changed", "cut off", "not listed", "manifest torn"])
def test_a_file_that_is_not_as_the_manifest_says_is_left_out_with_a_warning(folders, spoil):
    here, there = folders
    (here / "a.txt").unlink()
    if spoil == "changed":
        (there / "a.txt").write_bytes(b"once upon a tame")
    elif spoil == "cut off":
        (there / "a.txt").write_bytes(b"once")
    elif spoil == "not listed":
        write_json(there / "manifest.json", {})
    else:
        (there / "manifest.json").write_text('{"a.txt": {"si')
    with pytest.warns(UserWarning, match=r"a\.txt is not what manifest\.json beside it says: it was left out"):
        fetch_files(there, here, ["a.txt"])
    assert not list(here.iterdir())


def test_a_manifest_cannot_make_a_file_be_written_elsewhere(folders, tmp_path):
    here, there = folders
    outside = tmp_path / "outside.txt"
    (there / ".." / "outside.txt").write_text("evil")
    evil = {name: {"size": 4, "sha256": sha256_of(outside)} for name in ("../outside.txt", str(outside), "other.txt")}
    write_json(there / "manifest.json", evil | {"a.txt": "not an entry"})
    (here / "a.txt").unlink()
    outside.unlink()
    with pytest.warns(UserWarning, match=r"a\.txt is not what"):
        fetch_files(there, here, ["a.txt"])
    assert not outside.exists() and not list(here.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_what_is_no_json_object_reads_as_an_empty_one(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    assert read_json(tmp_path / "manifest.json") == {} == read_manifest(tmp_path)
    assert read_json(tmp_path / "not there") == {}


def test_json_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None]}
    assert json.loads((tmp_path / "a.json").read_text())
