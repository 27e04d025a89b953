"""The boundary to Colab and Drive: a folder stands in for the mounted Drive, a mock for google.colab."""

import errno
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import micro
import pytest

from tinystories_lab import pipeline
from tinystories_lab.checkpoint import load_checkpoint
from tinystories_lab.files import read_log
from tinystories_lab.notebook import colab
from tinystories_lab.run import PRESETS, save_config


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """`google.colab.drive` on a Colab machine whose workspace is `here`: mounting makes MyDrive appear."""
    drive, my_drive = Mock(), tmp_path / "drive" / "MyDrive"
    drive.mount.side_effect = lambda *_, **__: my_drive.mkdir(parents=True, exist_ok=True)
    monkeypatch.setitem(sys.modules, "google", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=drive))
    monkeypatch.setattr(colab, "_DRIVE", my_drive.parent)
    monkeypatch.setenv(colab._WORKSPACE_VARIABLE, str(tmp_path / "here"))
    return drive


@pytest.fixture
def open_lab(drive, monkeypatch, stories, tmp_path):
    """`open_lab()` is the second cell of every notebook, for a micro run on a file of stories."""
    (tmp_path / "stories.txt").write_text("\n\n".join(stories))
    tiny = replace(PRESETS["tiny"], model=micro.MODEL, train=micro.TRAIN, sample_tokens=5)
    monkeypatch.setitem(PRESETS, "tiny", tiny)
    return lambda: colab.open_workspace("tiny", str(tmp_path / "stories.txt"), use_drive=True)


def train_until(lab, step):
    rows = pipeline.train_run(lab)
    next(row for row in rows if row["step"] >= step)
    rows.close()


def prepare_and_train_until(lab, step):
    pipeline.prepare(lab)
    pipeline.tokenizer_stage(lab)
    train_until(lab, step)


def lose_the_machine(lab):
    shutil.rmtree(lab.run_dir.parents[1])


def test_on_a_new_machine_data_and_run_are_restored_and_training_continues(open_lab, capsys):
    lab = open_lab()
    assert lab.mirror_root == colab._DRIVE / "MyDrive" / "tinystories_lab"
    prepare_and_train_until(lab, 6)
    data = (lab.data_dir / "train.bin").read_bytes()
    lose_the_machine(lab)

    again = open_lab()
    assert again == lab and f"restored the run from {colab._DRIVE}" in capsys.readouterr().out
    assert load_checkpoint(lab.run_dir / "last.pt")["step"] == 6
    assert (lab.data_dir / "train.bin").read_bytes() == data
    train_until(again, 12)
    assert "resumed at step 6, saved " in capsys.readouterr().out
    assert [row["step"] for row in read_log(lab.run_dir / "loss.jsonl")] == [1, 3, 6, 9, 12]


def test_data_that_is_not_on_drive_is_made_again_and_refused_if_it_is_not_the_same(open_lab, stories, tmp_path, capsys):
    lab = open_lab()
    prepare_and_train_until(lab, 6)
    for step, texts in ((9, stories), (12, stories[::-1])):
        lose_the_machine(lab)
        shutil.rmtree(lab.mirror_root / "data")
        (tmp_path / "stories.txt").write_text("\n\n".join(texts))
        again = open_lab()
        assert "the run's data is not on the mirror: making it again" in capsys.readouterr().out
        if step == 9:
            train_until(again, step)
            assert read_log(lab.run_dir / "loss.jsonl")[-1]["step"] == step
    with pytest.raises(ValueError, match=r"belongs to another run \(.*data \w{12} there, \w{12} here\)"):
        train_until(again, step)


def test_a_run_that_never_reached_drive_starts_from_the_beginning(open_lab, drive):
    lab = open_lab()
    assert drive.mount.mock_calls == [call(str(colab._DRIVE), force_remount=True)]
    assert not lab.run_dir.exists() and not lab.mirror_root.exists()


def test_if_mounting_fails_the_lab_warns_and_works_without_drive_unless_it_was_mounted_before(open_lab, drive):
    drive.mount.side_effect = ValueError("mount failed")
    with pytest.warns(UserWarning, match=r"Drive was not mounted \(mount failed\): if this machine is taken away"):
        lab = open_lab()
    assert lab.mirror_root is None
    prepare_and_train_until(lab, 3)
    colab.close_workspace(lab)
    assert not colab._DRIVE.exists()

    (colab._DRIVE / "MyDrive").mkdir(parents=True)
    with pytest.warns(UserWarning, match="Drive was not mounted"):
        assert open_lab().mirror_root
    assert drive.mount.call_args == call(str(colab._DRIVE), force_remount=False)


@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.EIO])
@pytest.mark.parametrize("method", ["iterdir", "stat", "read_text"])
def test_a_drive_that_does_not_answer_is_to_be_mounted_again_and_never_looks_empty(open_lab, monkeypatch, code, method):
    lab = open_lab()
    prepare_and_train_until(lab, 1)
    lose_the_machine(lab)
    works = getattr(Path, method)

    def fails(path, *args, **kwargs):
        if path.is_relative_to(lab.mirror_root / "runs") and (method != "stat" or path.suffix == ".yaml"):
            raise OSError(code, os.strerror(code), str(path))
        return works(path, *args, **kwargs)

    with monkeypatch.context() as dead:
        dead.setattr(Path, method, fails)
        with pytest.raises(
            OSError, match=r"^Google Drive does not answer \(.*\): run this cell again to mount it again$"
        ):
            colab.open_workspace("tiny", use_drive=True)
    assert not lab.data_dir.exists() and not lab.run_dir.exists()
    assert colab.open_workspace("tiny", use_drive=True) == lab, "the same cell, run again"


@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.EIO])
def test_a_drive_that_stops_answering_while_it_is_read_or_written_is_to_be_mounted_again(open_lab, monkeypatch, code):
    lab = open_lab()
    for name, call_it in (("restore", open_lab), ("update_mirror", lambda: colab.close_workspace(lab))):
        with monkeypatch.context() as dead:
            dead.setattr(colab, name, Mock(side_effect=OSError(code, os.strerror(code))))
            with pytest.raises(OSError, match=r"Google Drive does not answer .*: run this cell again"):
                call_it()
    monkeypatch.setattr(colab, "restore", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        open_lab()


def test_a_dead_mount_is_replaced_and_one_that_stays_dead_is_not_used(open_lab, drive, monkeypatch):
    open_lab()
    works, mount, alive = os.listdir, drive.mount.side_effect, False

    def listdir(path):
        if not alive and Path(path) == colab._DRIVE / "MyDrive":
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return works(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.warns(UserWarning, match="Drive was not mounted .*Transport endpoint is not connected"):
        assert open_lab().mirror_root is None
    assert drive.mount.call_args == call(str(colab._DRIVE), force_remount=True)

    def mount_again(*args, **kwargs):
        nonlocal alive
        mount()
        alive = True

    drive.mount.side_effect = mount_again
    assert open_lab().mirror_root


@pytest.mark.parametrize("error", [NotImplementedError(), ValueError("Drive is not mounted"), OSError(5, "I/O error")])
def test_a_runtime_that_cannot_mount_or_flush_drive_does_not_end_a_notebook(open_lab, drive, capsys, error):
    lab = open_lab()
    drive.flush_and_unmount.side_effect = error
    colab.close_workspace(lab, flush=True)
    printed = capsys.readouterr().out
    reason = str(error) or "NotImplementedError"
    assert f"Drive cannot be flushed here ({reason})" in printed
    assert "keep this machine until drive.google.com shows the files" in printed and "now unmounted" not in printed
    shutil.rmtree(colab._DRIVE)
    drive.mount.side_effect = error
    with pytest.warns(UserWarning, match=re.escape(f"Drive was not mounted ({reason})")):
        assert open_lab().mirror_root is None


def test_closing_copies_what_came_after_training_and_offers_the_flush(open_lab, drive, capsys):
    lab = open_lab()
    prepare_and_train_until(lab, 12)
    (lab.run_dir / "samples.jsonl").write_text('{"when": "after"}\n')
    colab.close_workspace(lab)
    copy = lab.mirror_root / "runs" / lab.run_dir.name / "samples.jsonl"
    assert copy.read_text() == '{"when": "after"}\n'
    printed = capsys.readouterr().out
    assert "mirrored to step 12" in printed and "call close_workspace(lab, flush=True)" in printed
    assert not drive.flush_and_unmount.called
    colab.close_workspace(lab, flush=True)
    assert drive.flush_and_unmount.called


def test_at_home_nothing_is_mounted_and_closing_prints_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(colab._WORKSPACE_VARIABLE, str(tmp_path))
    lab = colab.open_workspace("tiny", use_drive=True)
    capsys.readouterr()
    colab.close_workspace(lab)
    assert lab.mirror_root is None and capsys.readouterr().out == ""


def test_later_notebooks_use_the_source_that_was_chosen_last(tmp_path, monkeypatch):
    monkeypatch.setenv(colab._WORKSPACE_VARIABLE, str(tmp_path))
    assert colab.open_workspace("tiny").source == "toyland"
    for source in ("мои сказки.txt", "ada/tales"):
        colab.open_workspace("tiny", source)
        assert colab.open_workspace("tiny").source == colab.open_workspace("tiny", run="second").source == source
    colab.open_workspace("tiny", "toyland")
    assert colab.open_workspace("tiny").data_dir == tmp_path / "data" / "toyland-tiny"


def test_a_path_is_found_from_the_notebooks_and_the_workspace_folder_and_means_the_same_file_later(
    tmp_path, monkeypatch, stories
):
    monkeypatch.delenv(colab._WORKSPACE_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    notebooks, elsewhere = tmp_path / "lab" / "notebooks", tmp_path / "elsewhere"
    files = [tmp_path / "lab" / "root.txt", notebooks / "near.txt", notebooks / "root", tmp_path / "home" / "mine.txt"]
    for path in (*files, tmp_path / "lab" / "near.txt", elsewhere / "x"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(stories))
    for typed, path in zip(("root.txt", "near.txt", "../notebooks/root", "~/mine.txt"), files, strict=True):
        monkeypatch.chdir(notebooks)
        assert colab.open_workspace("tiny", typed).source == colab.find_path(typed) == str(path)
        monkeypatch.chdir(notebooks.parent)
        assert colab.open_workspace("tiny").source == str(path), "the notebook and the shell mean the same file"
    for typed in ("toyland", "ada/tales", "ada/tales:story", "missing.txt", "auto"):
        (notebooks.parent / "toyland").mkdir(exist_ok=True)
        assert colab.open_workspace("tiny", typed).source in (typed, colab.open_workspace("tiny").source)
    for variable in ("~/my lab", str(tmp_path / "home" / "my lab")):
        monkeypatch.setenv(colab._WORKSPACE_VARIABLE, variable)
        assert colab.open_workspace("tiny").run_dir.parents[1] == tmp_path / "home" / "my lab"


def test_a_new_machine_uses_the_source_of_the_newest_run_on_drive_unless_it_is_a_built_in_one(open_lab):
    lab = open_lab()
    prepare_and_train_until(lab, 1)
    lose_the_machine(lab)
    again = colab.open_workspace("tiny", use_drive=True)
    assert again == lab and (again.run_dir / "last.pt").exists()
    lose_the_machine(lab)
    runs = lab.mirror_root / "runs"
    (runs / lab.run_dir.name / "config.yaml").write_text("train: {")
    assert colab.open_workspace("tiny", use_drive=True).source == "toyland", "an incomplete copy is ignored"
    save_config(replace(colab.open_workspace("book", use_drive=True), run_dir=runs / "tinystories-book"))
    assert colab.open_workspace("tiny", use_drive=True).source == "toyland", "the preset has its own"


def test_the_workspace_is_the_current_folder_or_that_of_notebooks_and_on_colab_outside_the_clone(tmp_path, monkeypatch):
    monkeypatch.delenv(colab._WORKSPACE_VARIABLE)
    (tmp_path / "notebooks").mkdir()
    for here in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(here)
        assert colab.open_workspace("tiny").run_dir == tmp_path / "runs" / "toyland-tiny"
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert colab.open_workspace("tiny").run_dir == colab._COLAB_ROOT / "runs" / "toyland-tiny"
