"""Files are written whole or not at all, and a crash costs a log at most one line."""

import hashlib
import json

import pytest

from tinystories_lab.files import append_row, atomic_write, read_log, read_rows, sha256_of


@pytest.fixture
def path(tmp_path):
    (tmp_path / "notes.bin").write_bytes(b"old and much longer than the new content")
    return tmp_path / "notes.bin"


def content_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- whole or not at all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_the_old_content_and_no_partial_file(path, error):
    before = content_of(path.parent)
    for target in (path, path.with_name("new.bin")):
        with pytest.raises(error), atomic_write(target) as file:
            file.write(b"new")
            raise error
    assert content_of(path.parent) == before


def test_a_disk_that_fails_at_the_last_sync_leaves_the_old_content(path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    before = content_of(path.parent)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_write(path) as file:
        file.write(b"new")
    assert content_of(path.parent) == before


def test_a_block_that_ends_replaces_the_whole_file_and_not_before(path):
    old = path.read_bytes()
    path.with_name("notes.bin.partial").write_bytes(b"half of something much longer, left by a crash")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == old
    assert content_of(path.parent) == {"notes.bin": b"new"}


def test_missing_folders_are_made_a_path_may_be_a_string_and_text_is_utf_8(tmp_path):
    with atomic_write(str(tmp_path / "a" / "b" / "notes.txt"), "w") as file:
        file.write("“été” 🦊")
    assert content_of(tmp_path / "a" / "b") == {"notes.txt": "“été” 🦊".encode()}


def test_a_fingerprint_is_the_sha256_of_the_content(path):
    assert sha256_of(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


# --- JSON lines -------------------------------------------------------------------------------------------------------


def test_rows_come_back_in_order_and_no_file_has_no_rows(tmp_path):
    path = tmp_path / "loss.jsonl"
    assert read_rows(path) == read_log(path) == []
    rows = [{"step": 1, "train_loss": 8.9}, {"step": 2, "note": "“Zoë”\u2028said"}]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("torn", ['{"step": 2, "tra', "{", '{"step": 2, "a": "\\u26'])
def test_a_line_cut_off_by_a_crash_costs_only_itself(tmp_path, torn):
    path = tmp_path / "loss.jsonl"
    append_row(path, {"step": 1})
    with open(path, "a") as file:
        file.write(torn)
    with pytest.warns(UserWarning, match=r"loss\.jsonl, line 2: not a row of this file, skipped"):
        assert read_rows(path) == [{"step": 1}]
    append_row(path, {"step": 2})
    append_row(path, {"step": 3})
    with pytest.warns(UserWarning, match="line 2"):
        assert read_rows(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert path.read_text().splitlines()[1] == torn


def test_a_line_cut_off_within_a_letter_costs_only_itself(tmp_path):
    path = tmp_path / "ratings.jsonl"
    path.write_bytes('{"who": "Zoë'.encode()[:-1] + b"\n" + b'{"who": "Ben"}\n')
    with pytest.warns(UserWarning, match="line 1"):
        assert read_rows(path) == [{"who": "Ben"}]


ROW = {"step": 1, "train_loss": 9, "lr": 1e-3, "grad_norm": 0.5, "tokens": 64, "tokens_per_second": 1_000}
ROW |= {"seconds": 0.1, "eta_seconds": 0.0, "skipped_updates": 0}


def test_only_rows_with_all_fields_of_a_step_are_rows_of_the_log(tmp_path):
    path = tmp_path / "loss.jsonl"
    others = [None, 3, [], {}, "row", {"step": 5}, ROW | {"step": "5"}, ROW | {"step": 5, "train_loss": None}]
    others += [ROW | {"step": True}, ROW | {"tokens": 10**30}, ROW | {"seconds": {}}]
    rows = [ROW, *others, ROW | {"step": 2, "val_loss": 4.5}, ROW | {"step": 3, "val_loss": "?"}]
    lines = [json.dumps(row) for row in rows] + ["[" * 100_000, "1" * 10_000, "\u2028", "NaN"]
    path.write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="not a row of this file") as warned:
        assert read_log(path) == [ROW, ROW | {"step": 2, "val_loss": 4.5}, ROW | {"step": 3}]
    assert len(warned) == len(others) + 3, "one for each line, and none for white space"


def test_the_later_row_of_a_step_counts_and_steps_rise(tmp_path):
    for step, loss in [(1, 9.0), (5, 8.0), (10, 7.0), (5, 8.5), (6, 8.4)]:
        append_row(tmp_path / "loss.jsonl", ROW | {"step": step, "train_loss": loss})
    log = [(row["step"], row["train_loss"]) for row in read_log(tmp_path / "loss.jsonl")]
    assert log == [(1, 9.0), (5, 8.5), (6, 8.4), (10, 7.0)]
