"""The manifest records completed copies, and only recorded copies are restored."""

import os

import pytest

from tinystories_lab import files
from tinystories_lab.durability.manifest import (
    copy_in_place,
    is_recorded,
    read_json,
    read_manifest,
    record,
    restore_files,
    write_json,
)
from tinystories_lab.files import sha256_of


@pytest.fixture
def folders(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    (here / "a.txt").write_bytes(b"once upon a time")
    with open(here / "a.txt", "rb") as file:
        record(there / "a.txt", copy_in_place(file, there / "a.txt"))
    return here, there


def test_a_copy_is_recorded_with_size_and_sha256(folders):
    here, there = folders
    assert (there / "a.txt").read_bytes() == b"once upon a time"
    assert read_manifest(there) == {"a.txt": {"size": 16, "sha256": sha256_of(here / "a.txt")}}
    assert is_recorded(here / "a.txt", there / "a.txt")


def test_a_file_is_hashed_once_per_version(folders, monkeypatch):
    """The mirror checks every minute, and train.bin may have hundreds of megabytes."""
    here, there = folders
    read = []
    monkeypatch.setattr(files, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    assert is_recorded(here / "a.txt", there / "a.txt") and is_recorded(here / "a.txt", there / "a.txt")
    assert len(read) <= 1, "the file may have been hashed before"
    read.clear()
    (here / "a.txt").write_bytes(b"once upon a tree")
    os.utime(here / "a.txt", ns=(1, 1))
    assert not is_recorded(here / "a.txt", there / "a.txt") and len(read) == 1


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_file_that_changed_on_either_side_does_not_count_as_recorded(folders, where):
    here, there = folders
    path = here if where == "here" else there
    (path / "a.txt").write_bytes(b"once upon a tim" + (b"x" if where == "here" else b""))
    assert not is_recorded(here / "a.txt", there / "a.txt")
    (path / "a.txt").unlink()
    if where == "there":
        assert not is_recorded(here / "a.txt", there / "a.txt")


def test_a_copy_is_rewritten_in_place(folders):
    """Drive counts replaced and deleted files against the quota."""
    here, there = folders
    before = (there / "a.txt").stat().st_ino
    for content in (b"longer than it was before", b"short"):
        (here / "a.txt").write_bytes(content)
        with open(here / "a.txt", "rb") as file:
            copy_in_place(file, there / "a.txt")
        assert (there / "a.txt").stat().st_ino == before
    assert (there / "a.txt").read_bytes() == b"short"
    before = (there / "manifest.json").stat().st_ino
    record(there / "b.txt", {"size": 1, "sha256": ""})
    assert (there / "manifest.json").stat().st_ino == before and set(read_manifest(there)) == {"a.txt", "b.txt"}


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_file_is_not_copied_to_itself_through_a_link(folders, link):
    here, there = folders
    (there / "a.txt").unlink()
    link(here / "a.txt", there / "a.txt")
    with open(here / "a.txt", "rb") as file, pytest.raises(ValueError, match="is the file that would be copied to it"):
        copy_in_place(file, there / "a.txt")
    assert (here / "a.txt").read_bytes() == b"once upon a time"


def test_missing_files_are_restored_and_others_stay(folders):
    here, there = folders
    (here / "a.txt").write_text("newer")
    restore_files(there, here, ["a.txt"])
    assert (here / "a.txt").read_text() == "newer"
    (here / "a.txt").unlink()
    restore_files(there, here, ["a.txt", "never there"])
    assert (here / "a.txt").read_bytes() == b"once upon a time"
    assert [path.name for path in here.iterdir()] == ["a.txt"]


def test_a_replaced_file_is_kept_beside_the_new_one(folders):
    here, there = folders
    restore_files(there, here, ["a.txt"], replace=True)
    assert [path.name for path in here.iterdir()] == ["a.txt"], "the files were equal"
    (here / "a.txt").write_text("mine")
    restore_files(there, here, ["a.txt"], replace=True)
    assert (here / "a.txt").read_bytes() == b"once upon a time"
    assert (here / "a.txt.before-restore").read_text() == "mine"


@pytest.mark.parametrize("spoil", ["changed", "cut off", "not recorded", "manifest damaged"])
def test_a_file_that_differs_from_the_manifest_is_left_out_with_a_warning(folders, spoil):
    here, there = folders
    (here / "a.txt").unlink()
    if spoil == "changed":
        (there / "a.txt").write_bytes(b"once upon a tame")
    elif spoil == "cut off":
        (there / "a.txt").write_bytes(b"once")
    elif spoil == "not recorded":
        write_json(there / "manifest.json", {})
    else:
        (there / "manifest.json").write_text('{"a.txt": {"si')
    with pytest.warns(UserWarning, match=r"a\.txt differs from its entry in manifest\.json: it was left out"):
        restore_files(there, here, ["a.txt"])
    assert not list(here.iterdir())


def test_a_manifest_cannot_cause_a_write_outside_the_folder(folders, tmp_path):
    here, there = folders
    outside = tmp_path / "outside.txt"
    (there / ".." / "outside.txt").write_text("evil")
    evil = {name: {"size": 4, "sha256": sha256_of(outside)} for name in ("../outside.txt", str(outside), "other.txt")}
    write_json(there / "manifest.json", evil | {"a.txt": "not an entry"})
    (here / "a.txt").unlink()
    outside.unlink()
    with pytest.warns(UserWarning, match=r"a\.txt differs from"):
        restore_files(there, here, ["a.txt"])
    assert not outside.exists() and not list(here.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_anything_but_a_json_object_reads_as_an_empty_one(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    assert read_json(tmp_path / "manifest.json") == {} == read_manifest(tmp_path)
    assert read_json(tmp_path / "not there") == {}
