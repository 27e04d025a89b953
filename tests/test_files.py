"""A file appears whole or not at all."""

import pytest

from tinystories_lab.files import replace_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_the_old_content_and_no_partial_file(tmp_path, error):
    path = tmp_path / "notes.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), replace_whole(path) as file:
        file.write(b"new and longer")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["notes.bin"]


def test_a_block_that_raises_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(KeyboardInterrupt), replace_whole(tmp_path / "notes.bin") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_disk_that_fails_at_the_last_sync_leaves_the_old_content(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "notes.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"), replace_whole(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["notes.bin"]


def test_a_good_block_replaces_the_file_whole(tmp_path):
    path = tmp_path / "notes.bin"
    path.write_bytes(b"old and much longer than what comes")
    with replace_whole(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["notes.bin"]


def test_the_old_content_stands_until_the_block_ends(tmp_path):
    path = tmp_path / "notes.bin"
    path.write_bytes(b"old")
    with replace_whole(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"


def test_what_an_earlier_crash_left_half_written_is_no_part_of_the_new_file(tmp_path):
    (tmp_path / "notes.bin.partial").write_bytes(b"half of something much longer")
    with replace_whole(tmp_path / "notes.bin") as file:
        file.write(b"new")
    assert (tmp_path / "notes.bin").read_bytes() == b"new"
    assert names(tmp_path) == ["notes.bin"]


def test_missing_folders_are_made_and_a_path_may_be_a_string(tmp_path):
    with replace_whole(str(tmp_path / "a" / "b" / "notes.txt"), "w") as file:
        file.write("new")
    assert (tmp_path / "a" / "b" / "notes.txt").read_bytes() == b"new"


def test_text_is_written_as_utf_8(tmp_path):
    with replace_whole(tmp_path / "notes.txt", "w") as file:
        file.write("“été” 🦊")
    assert (tmp_path / "notes.txt").read_bytes() == "“été” 🦊".encode()
