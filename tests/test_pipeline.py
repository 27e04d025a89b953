"""`train_run` adds to `train` a lock, signals that wait for the end of a step, and config.yaml."""

import itertools
import os
import signal
from dataclasses import replace

import pytest
import torch
from micro import differences

from tinystories_lab.checkpoint import load_checkpoint
from tinystories_lab.durability.lock import run_lock
from tinystories_lab.pipeline import move_aside, progress_fields, train_run
from tinystories_lab.run import load_config


def rows_of(lab):
    return train_run(lab, "cpu", torch.float32)


def press_inside(monkeypatch, step, number, times=1):
    """Send the process a signal in the middle of a session's step (from 1), after the weights have changed."""
    scaler_step, steps = torch.amp.GradScaler.step, itertools.count(1)

    def step_and_press(self, optimizer, *args):
        done = scaler_step(self, optimizer, *args)
        if next(steps) == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return done

    monkeypatch.setattr(torch.amp.GradScaler, "step", step_and_press)


@pytest.mark.parametrize("stop", [1, 3, 5, 6, 12])
def test_after_ctrl_c_during_a_step_the_step_finishes_and_is_saved(lab, uninterrupted, tmp_path, monkeypatch, stop):
    press_inside(monkeypatch, stop, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        list(rows_of(lab(tmp_path)))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "last.pt")["step"] == stop
    list(rows_of(lab(tmp_path)))
    assert not differences(tmp_path, uninterrupted())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_after_a_termination_signal_during_a_step_the_step_is_saved_before_the_process_exits(
    lab, tmp_path, monkeypatch, number
):
    press_inside(monkeypatch, 5, number)
    with pytest.raises(SystemExit) as left:
        list(rows_of(lab(tmp_path)))
    assert left.value.code == 128 + number
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 5


def test_after_a_second_ctrl_c_during_a_step_the_last_save_counts(lab, uninterrupted, tmp_path, monkeypatch):
    press_inside(monkeypatch, 7, signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt):
        list(rows_of(lab(tmp_path)))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 6
    list(rows_of(lab(tmp_path)))
    assert not differences(tmp_path, uninterrupted())


def test_ctrl_c_between_two_rows_raises_at_once_and_loses_nothing(lab, uninterrupted, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        for row in rows_of(lab(tmp_path, log_every=1)):
            if row["step"] == 5:
                os.kill(os.getpid(), signal.SIGINT)
                pytest.fail("it did not raise at once")
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 5
    list(rows_of(lab(tmp_path, log_every=1)))
    assert not differences(tmp_path, uninterrupted(log_every=1))


def test_after_a_run_the_signal_handlers_are_restored(lab, tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    list(rows_of(lab(tmp_path)))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers


def test_an_open_loop_locks_the_run_until_it_is_closed(lab, uninterrupted, tmp_path):
    held = rows_of(lab(tmp_path))
    next(held)
    with pytest.raises(BlockingIOError, match="another session is training"):
        next(rows_of(lab(tmp_path)))
    held.close()
    list(rows_of(lab(tmp_path)))
    assert not differences(tmp_path, uninterrupted())


def test_each_session_is_recorded_in_config_yaml_unless_it_is_refused(lab, tmp_path):
    next(rows_of(lab(tmp_path)))
    next(rows_of(lab(tmp_path, save_every=2)))
    record = (tmp_path / "config.yaml").read_bytes()
    assert [session.get("changed") for session in load_config(tmp_path)["sessions"]] == [None, {"save_every": [4, 2]}]
    with pytest.raises(ValueError, match="seed 0 there, 5 here"):
        next(rows_of(lab(tmp_path, seed=5)))
    assert (tmp_path / "config.yaml").read_bytes() == record


def test_a_run_without_data_is_refused_before_its_folder_is_made(lab, tmp_path):
    missing = replace(lab(tmp_path / "runs" / "new"), data_dir=tmp_path / "data" / "none")
    with pytest.raises(FileNotFoundError, match="run 02_tokenizer"):
        next(rows_of(missing))
    assert not (tmp_path / "runs" / "new").exists()


# --- starting again


def test_a_run_moved_aside_keeps_its_files_and_frees_its_folder_name(lab, tmp_path):
    lab = lab(tmp_path / "runs" / "mine", tmp_path / "disk" / "lab")
    folders = [lab.run_dir, lab.mirror_root / "runs" / "mine"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "loss.jsonl").write_text(str(folder))
    moved = move_aside(lab)
    assert [path.parent for path in moved] == [folder.parent for folder in folders]
    assert [(path / "loss.jsonl").read_text() for path in moved] == [str(folder) for folder in folders]
    assert all(path.name.startswith("mine-until-2") for path in moved)
    assert not any(folder.exists() for folder in folders)
    assert move_aside(lab) == [], "there was nothing left to move"


def test_a_run_in_training_is_not_moved_aside(lab, tmp_path):
    with run_lock(tmp_path / "run"), pytest.raises(BlockingIOError, match="another session is training"):
        move_aside(lab(tmp_path / "run"))
    assert not [path for path in tmp_path.iterdir() if "until" in path.name]


def test_a_progress_bar_shows_skipped_updates_and_the_mirror_if_there_are_any():
    row = {"train_loss": 2.3456, "tokens_per_second": 12_345, "skipped_updates": 0}
    assert progress_fields(row) == {"loss": "2.346", "tokens_per_second": "12,345"}
    assert progress_fields(row | {"skipped_updates": 3})["skipped_updates"] == "3"
    assert progress_fields(row | {"mirrored_step": None})["mirrored"] == "not yet"
    assert progress_fields(row | {"mirrored_step": 1_500})["mirrored"] == "to step 1,500"
