"""The mirror has one complete checkpoint at every moment, on a disk that may fail or disappear; training never waits for it."""

import errno
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import micro
import pytest
import torch

from tinystories_lab import checkpoint
from tinystories_lab.checkpoint import load_checkpoint, save_checkpoint
from tinystories_lab.config import TrainConfig
from tinystories_lab.durability import mirror
from tinystories_lab.durability.manifest import copy_in_place, read_manifest
from tinystories_lab.durability.mirror import _DATA_FILES, _MIRROR_SLOTS, _RUN_FILES, Mirror
from tinystories_lab.files import append_row, read_rows, sha256_of
from tinystories_lab.model import new_model
from tinystories_lab.pipeline import move_aside, train_run
from tinystories_lab.tokenizer import load_tokenizer, write_bin
from tinystories_lab.trainer import TrainState

MODEL = replace(micro.MODEL, n_layer=1, d_model=16)
CONFIG = TrainConfig(batch_size=2, seq_len=8, total_steps=1_000, warmup_steps=1)


class Machine:
    """A run folder, its data, and a disk for the mirror. `save` writes a checkpoint of any step without training."""

    def __init__(self, root: Path, data_dir: Path) -> None:
        self.run_dir, self.data_dir, self.root = root / "runs" / "r", data_dir, root / "disk" / "lab"
        self.root.parent.mkdir(parents=True)
        self.mirror_dir = self.root / "runs" / "r"
        self.state = TrainState.new(new_model(MODEL), CONFIG, torch.float32)

    def save(self, step: int) -> None:
        append_row(self.run_dir / "loss.jsonl", {"step": step}) if self.run_dir.exists() else None
        self.state.step = step
        save_checkpoint(self.run_dir / "last.pt", self.state.checkpoint())
        if not (self.run_dir / "loss.jsonl").exists():
            append_row(self.run_dir / "loss.jsonl", {"step": step})

    def mirror(self) -> Mirror:
        return Mirror(self.run_dir, self.data_dir, self.root)

    def copy(self) -> Mirror:
        with self.mirror() as copy:
            pass
        return copy

    def slots(self) -> dict[str, int]:
        """Return the step of each slot that passes verification."""
        steps = {}
        for slot in _MIRROR_SLOTS:
            try:
                steps[slot] = load_checkpoint(self.mirror_dir / slot)["step"]
            except (FileNotFoundError, ValueError):
                continue
        return steps

    def lose(self) -> None:
        shutil.rmtree(self.run_dir)


@pytest.fixture
def machine(tmp_path, data_dir):
    return Machine(tmp_path, data_dir)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(mirror, "_FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(mirror, "_GIVE_UP_SECONDS", 0.1)


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.005)


# --- what the mirror contains


def test_checkpoints_are_copied_to_two_slots_in_turn_each_with_the_log_up_to_its_step(machine):
    for step in (10, 20, 30, 40, 50):
        machine.save(step)
        assert machine.copy().step == step
        assert max(machine.slots().values()) == step
    assert sorted(machine.slots().values()) == [40, 50]
    for slot, step in machine.slots().items():
        log = machine.mirror_dir / _MIRROR_SLOTS[slot]
        assert read_rows(log)[-1]["step"] == step
        entry = read_manifest(machine.mirror_dir)[slot]
        assert entry == {
            "step": step,
            "size": (machine.mirror_dir / slot).stat().st_size,
            "sha256": sha256_of(machine.mirror_dir / slot),
        }


def test_the_mirror_has_a_fixed_set_of_files_smaller_than_three_checkpoints(machine):
    for name in _RUN_FILES:
        (machine.run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.run_dir / name).write_bytes(b"x" * 10)
    save_checkpoint(machine.run_dir / "final.pt", machine.state.model_checkpoint())
    for step in range(10, 210, 10):
        machine.save(step)
        save_checkpoint(machine.run_dir / f"step_{step:05d}.pt", machine.state.checkpoint())
        machine.copy()
    there = {path.name: path.stat().st_size for path in machine.mirror_dir.iterdir()}
    assert set(there) <= {*_RUN_FILES, *_MIRROR_SLOTS, *_MIRROR_SLOTS.values(), "manifest.json", "writer.json"}
    assert sum(there.values()) < 3 * (machine.run_dir / "last.pt").stat().st_size
    assert {path.name for path in (machine.root / "data" / machine.data_dir.name).iterdir()} == {
        *_DATA_FILES,
        "manifest.json",
    }


def test_files_are_rewritten_in_place_and_never_deleted(machine, monkeypatch):
    for step in (10, 20):
        machine.save(step)
        machine.copy()
    before = {path: path.stat().st_ino for path in machine.root.rglob("*") if path.is_file()}

    def forbidden(*_):
        raise AssertionError("deleted or renamed on the mirror")

    with monkeypatch.context() as patch:
        machine.save(30)
        for name in ("unlink", "rename", "replace", "remove"):
            patch.setattr(os, name, forbidden)
        machine.copy()
    assert before == {path: path.stat().st_ino for path in machine.root.rglob("*") if path.is_file()}
    assert max(machine.slots().values()) == 30


def test_unchanged_files_are_not_written_again(machine):
    machine.save(10)
    machine.copy()
    before = {path: path.stat().st_mtime_ns for path in machine.root.rglob("*") if path.name != "writer.json"}
    machine.copy()
    machine.copy()
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("cut", [0, 1, 1_000, None])
def test_a_copy_that_is_cut_off_leaves_the_other_slot_intact(machine, monkeypatch, quick, cut):
    for step in (10, 20):
        machine.save(step)
        machine.copy()

    def cut_off(source, target):
        if target.suffix != ".pt":
            return copy_in_place(source, target)
        target.write_bytes(source.read(cut))
        raise OSError(errno.EIO, "Input/output error")

    machine.save(30)
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "copy_in_place", cut_off)
        with pytest.warns(UserWarning, match=r"is out of date: .*Input/output error"):
            machine.copy()
    assert machine.slots()[max(machine.slots(), key=machine.slots().get)] == (20 if cut is not None else 30)
    machine.save(40)
    assert machine.copy().step == 40
    assert max(machine.slots().values()) == 40


def test_a_copy_that_reads_back_differently_does_not_count_as_mirrored(machine, monkeypatch, quick):
    machine.save(10)
    machine.copy()

    def flip(source, target):
        entry = copy_in_place(source, target)
        if target.name in _MIRROR_SLOTS:
            content = bytearray(target.read_bytes())
            content[len(content) // 2] ^= 255
            target.write_bytes(content)
        return entry

    machine.save(20)
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "copy_in_place", flip)
        with pytest.warns(UserWarning, match="out of date"):
            assert machine.copy().step is None
    assert machine.slots() == {"last.0.pt": 10}
    assert machine.copy().step == 20


@pytest.mark.parametrize("slot", _MIRROR_SLOTS)
def test_a_removed_slot_leaves_the_other_and_is_filled_again(machine, slot):
    for step in (10, 20):
        machine.save(step)
        machine.copy()
    (machine.mirror_dir / slot).unlink()
    machine.lose()
    machine.mirror().restore()
    left = {"last.0.pt": 20, "last.1.pt": 10}[slot]
    assert load_checkpoint(machine.run_dir / "last.pt")["step"] == left
    machine.save(30)
    machine.copy()
    assert max(machine.slots().values()) == 30 and len(machine.slots()) == 2


def test_a_damaged_manifest_loses_no_checkpoint(machine):
    for step in (10, 20):
        machine.save(step)
        machine.copy()
    (machine.mirror_dir / "manifest.json").write_text('{"last.0.pt": {"st')
    machine.save(30)
    machine.copy()
    assert sorted(machine.slots().values()) == [20, 30]


# --- restoring


def test_everything_is_restored_on_a_new_machine(machine, tmp_path):
    machine.save(10)
    for name in _RUN_FILES:
        (machine.run_dir / name).write_bytes(name.encode())
    machine.copy()
    before = {path.name: path.read_bytes() for path in machine.run_dir.iterdir()}
    data = {name: (machine.data_dir / name).read_bytes() for name in _DATA_FILES}
    machine.lose()
    machine.data_dir = tmp_path / "elsewhere" / machine.data_dir.name
    assert machine.mirror().restore()["step"] == 10
    assert {path.name: path.read_bytes() for path in machine.run_dir.iterdir()} == before
    assert {path.name: path.read_bytes() for path in machine.data_dir.iterdir() if path.suffix} == data


def test_a_newer_local_run_is_not_overwritten(machine):
    machine.save(10)
    machine.copy()
    machine.save(20)
    log = (machine.run_dir / "loss.jsonl").read_bytes()
    assert machine.mirror().restore()["step"] == 20
    assert load_checkpoint(machine.run_dir / "last.pt")["step"] == 20
    assert (machine.run_dir / "loss.jsonl").read_bytes() == log


def test_an_older_local_run_is_replaced_together_with_its_log(machine, tmp_path):
    machine.save(10)
    (machine.run_dir / "config.yaml").write_text("one session")
    shutil.copytree(machine.run_dir, tmp_path / "older")
    machine.save(20)
    (machine.run_dir / "config.yaml").write_text("two sessions")
    machine.copy()
    machine.lose()
    shutil.copytree(tmp_path / "older", machine.run_dir)
    assert machine.mirror().restore()["step"] == 20
    assert (machine.run_dir / "config.yaml").read_text() == "two sessions"
    assert (machine.run_dir / "config.yaml.before-restore").read_text() == "one session"
    assert load_checkpoint(machine.run_dir / "last.pt")["step"] == 20
    assert [row["step"] for row in read_rows(machine.run_dir / "loss.jsonl")] == [10, 20]
    assert load_checkpoint(machine.run_dir / "last.pt.before-restore")["step"] == 10
    assert [row["step"] for row in read_rows(machine.run_dir / "loss.jsonl.before-restore")] == [10]


def test_a_damaged_local_run_is_restored_from_the_mirror(machine):
    machine.save(10)
    machine.copy()
    (machine.run_dir / "last.pt").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="skipped"):
        assert machine.mirror().restore()["step"] == 10
    assert load_checkpoint(machine.run_dir / "last.pt")["step"] == 10


def test_if_no_checkpoint_on_the_mirror_passes_verification_restoring_is_an_error(machine):
    machine.save(10)
    machine.copy()
    (machine.mirror_dir / "last.0.pt").write_bytes(b"torn")
    machine.lose()
    with pytest.raises(ValueError, match=r"none of .*last\.0\.pt"), pytest.warns(UserWarning, match="skipped"):
        machine.mirror().restore()


def test_restoring_from_an_empty_disk_does_nothing_and_from_a_missing_disk_is_an_error(machine):
    assert machine.mirror().restore() is None
    assert not machine.run_dir.exists()
    machine.root.parent.rmdir()
    with pytest.raises(FileNotFoundError, match="that disk is not there: mount it again"):
        machine.mirror().restore()


def test_nothing_is_copied_to_the_mirror_before_it_is_restored(machine, tmp_path):
    machine.save(10)
    machine.copy()
    machine.save(20)
    machine.copy()
    machine.lose()
    machine.save(5)  # an older folder of the same run
    with machine.mirror() as copy:
        time.sleep(0.2)
        assert sorted(machine.slots().values()) == [10, 20]
        copy.restore()
    assert sorted(machine.slots().values()) == [10, 20]


# --- files of another run or of other data


def files_below(*folders):
    return {
        path: path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def start_another_run(machine, step, **changes):
    """Replace the run of this machine by another one of the same name."""
    machine.lose()
    machine.state = TrainState.new(new_model(MODEL), replace(CONFIG, **changes), torch.float32)
    machine.save(step)


@pytest.mark.parametrize("step", [5, 10, 40])
def test_a_run_is_neither_restored_from_the_mirror_of_another_run_nor_copied_to_it(machine, quick, step):
    machine.save(10)
    machine.copy()
    start_another_run(machine, step, peak_lr=5e-3)
    before = files_below(machine.run_dir, machine.root)
    found = r"runs/r belongs to another run \(peak_lr 0\.0006 there, 0\.005 here\): use another run name"
    with pytest.raises(ValueError, match=found):
        machine.mirror().restore()
    with pytest.warns(UserWarning, match=found):
        assert machine.copy().step is None
    assert files_below(machine.run_dir, machine.root) == before


@pytest.mark.parametrize("kept", ["final.pt", "config.yaml"])
def test_a_run_is_recognized_by_what_is_left_of_it(tmp_path, lab, kept):
    (tmp_path / "disk").mkdir()
    here, there = lab(tmp_path / "runs" / "r"), lab(tmp_path / "elsewhere" / "r", tmp_path / "disk" / "lab", seed=7)
    list(train_run(there, "cpu", torch.float32))
    list(train_run(here, "cpu", torch.float32))
    for path in here.run_dir.iterdir():
        if path.name != kept:
            path.unlink()
    before = files_below(here.run_dir, there.mirror_root)
    with pytest.raises(ValueError, match=r"another run \(seed 7 there, 0 here\)"):
        next(train_run(replace(here, mirror_root=there.mirror_root), "cpu", torch.float32))
    assert files_below(here.run_dir, there.mirror_root) == before


def other_data(folder):
    folder.mkdir(parents=True)
    micro.make_data(folder)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    write_bin(folder / "train.bin", ["Other stories.", *micro.make_stories()], tokenizer)
    return folder


def test_data_that_a_run_on_the_mirror_was_trained_on_is_not_replaced(machine, tmp_path, lab, quick):
    trained = lab(tmp_path / "trained" / "a", machine.root)
    list(train_run(trained, "cpu", torch.float32))
    before = files_below(machine.root)
    machine.data_dir = other_data(tmp_path / "other" / machine.data_dir.name)
    with pytest.warns(UserWarning, match=r"runs/a was trained on other data in .*: use another data name"):
        machine.save(10)
        machine.copy()
    after = files_below(machine.root)
    assert before.items() <= after.items(), "the files of the run that was there"
    with pytest.raises(ValueError, match=r"runs/a was trained on other data in"):
        machine.mirror().restore()


def test_the_data_of_a_run_that_was_moved_aside_is_moved_aside_on_the_mirror_before_other_data_comes(
    machine, tmp_path, lab
):
    trained = lab(tmp_path / "trained" / "a", machine.root)
    list(train_run(trained, "cpu", torch.float32))
    data = machine.root / "data" / machine.data_dir.name
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    move_aside(trained)
    machine.data_dir = other_data(tmp_path / "other" / machine.data_dir.name)
    machine.save(10)
    assert machine.copy().trouble is None
    assert (data / "train.bin").read_bytes() == (machine.data_dir / "train.bin").read_bytes()
    (aside,) = data.parent.glob(f"{data.name}-until-*")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before


def test_data_on_the_mirror_that_no_run_needs_is_replaced(machine, tmp_path):
    machine.save(10)
    machine.copy()
    machine.data_dir = other_data(tmp_path / "other" / machine.data_dir.name)
    machine.copy()
    assert (machine.root / "data" / machine.data_dir.name / "train.bin").read_bytes() == (
        machine.data_dir / "train.bin"
    ).read_bytes()


@pytest.mark.parametrize("missing", ["train.bin", "tokenizer.json"])
def test_data_files_are_not_restored_among_those_of_other_data(machine, tmp_path, missing):
    machine.save(10)
    machine.copy()
    machine.data_dir = other_data(tmp_path / "other" / machine.data_dir.name)
    (machine.data_dir / missing).unlink()
    before = files_below(machine.data_dir)
    with pytest.warns(UserWarning, match=r"has other data than .*\(train\..* differ\): nothing was restored"):
        machine.mirror().restore()
    assert files_below(machine.data_dir) == before


def test_a_mirror_that_overlaps_with_the_run_or_its_data_is_refused(machine, tmp_path):
    machine.save(10)
    (tmp_path / "link").symlink_to(tmp_path)
    for root in (tmp_path, tmp_path / "link", machine.run_dir, tmp_path / "runs" / ".."):
        with pytest.raises(ValueError, match="are not separate: choose another folder for the mirror"):
            Mirror(machine.run_dir, machine.data_dir, root)


# --- a disk that fails


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN])
def test_a_disk_that_does_not_answer_when_the_run_is_restored_is_to_be_mounted_again(machine, monkeypatch, number):
    machine.save(10)
    machine.copy()
    machine.lose()
    for slow in (Path.stat, Path.exists, Path.read_text, Path.read_bytes):

        def fail(path, *_, answer=slow, **options):
            if machine.root in path.parents:
                raise OSError(number, os.strerror(number), str(path))
            return answer(path, *_, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, slow.__name__, fail)
            with pytest.raises(OSError, match=r"does not answer .*: mount it again.*nothing is damaged"):
                machine.mirror().restore()
        assert not machine.run_dir.exists() or not list(machine.run_dir.glob("*.pt"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.ENOSPC, errno.EDQUOT])
def test_a_failing_disk_is_reported_and_tried_again(machine, monkeypatch, quick, number):
    failing = threading.Event()
    failing.set()

    def fail(source, target):
        if failing.is_set():
            raise OSError(number, os.strerror(number))
        return copy_in_place(source, target)

    monkeypatch.setattr(mirror, "copy_in_place", fail)
    machine.save(10)
    with machine.mirror() as copy:
        copy.update()
        until(lambda: copy.trouble)
        assert os.strerror(number) in str(copy) and "not mirrored yet" in str(copy)
        failing.clear()
        until(lambda: copy.step == 10)
        until(lambda: copy.trouble is None)
    assert str(copy) == "mirrored to step 10"


def test_retries_come_at_growing_intervals(machine, monkeypatch):
    waits = []

    class Closing(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            if len(waits) == 9:
                self.set()
            return self.is_set()

    copy = machine.mirror()
    copy._closing = Closing()
    monkeypatch.setattr(mirror, "_GIVE_UP_SECONDS", 0)
    machine.root.parent.rmdir()
    copy._work()  # the loop of its thread
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_a_disk_that_disappears_gets_no_folder_in_its_place_and_is_filled_again_when_it_returns(machine, quick):
    disk, away = machine.root.parent, machine.root.parent.with_name("away")
    machine.save(10)
    with machine.mirror() as copy:
        copy.update()
        until(lambda: copy.step == 10)
        disk.rename(away)
        machine.save(20)
        copy.update()
        until(lambda: copy.trouble)
        until(lambda: "that disk is not there" in str(copy))  # the first error may come from a copy in progress
        assert str(copy).startswith("mirrored to step 10")
        assert not disk.exists()
        away.rename(disk)
        until(lambda: copy.step == 20)
    assert max(machine.slots().values()) == 20


def test_no_folder_takes_the_place_of_a_disk_that_disappears_just_after_a_check(machine, quick, monkeypatch):
    machine.save(10)
    machine.root.parent.rmdir()
    monkeypatch.setattr(mirror.os.path, "isdir", lambda path: True)
    with pytest.warns(UserWarning, match="is out of date: not mirrored yet"), machine.mirror():
        pass
    assert not machine.root.parent.exists()


def test_a_disk_that_returns_empty_is_filled_again(machine, quick):
    machine.save(10)
    with machine.mirror() as copy:
        copy.update()
        until(lambda: copy.step == 10 and read_manifest(copy.data_mirror_dir).keys() == set(_DATA_FILES))
        shutil.rmtree(machine.root)
        copy.update()
        until(lambda: machine.slots())
    assert {path.name for path in copy.data_mirror_dir.iterdir()} >= set(_DATA_FILES)


def test_a_disk_that_is_missing_at_the_start_is_used_once_it_returns(machine, quick):
    machine.root.parent.rmdir()
    machine.save(10)
    with machine.mirror() as copy:
        assert "that disk is not there" in copy.trouble
        machine.root.parent.mkdir()
        copy.update()
        until(lambda: copy.step == 10)


def test_training_does_not_wait_for_a_slow_disk(tmp_path, lab, monkeypatch):
    release = threading.Event()

    def hang(source, target):
        release.wait(60)
        return copy_in_place(source, target)

    monkeypatch.setattr(mirror, "copy_in_place", hang)
    (tmp_path / "disk").mkdir()
    mirrored = []
    for row in train_run(lab(tmp_path / "runs" / "r", tmp_path / "disk" / "lab"), "cpu", torch.float32):
        mirrored.append(row["mirrored_step"])
        if row["step"] == micro.TRAIN.total_steps:
            release.set()  # all steps were done while the first copy hung
    assert mirrored == [None] * 5
    assert load_checkpoint(tmp_path / "disk" / "lab" / "runs" / "r" / "last.0.pt")["step"] == 12


def test_the_last_pass_also_copies_changes_that_were_not_announced(machine):
    with machine.mirror():
        machine.save(10)  # without a call of update()
    assert machine.slots() == {"last.0.pt": 10}


# --- two sessions


def test_a_session_that_finds_a_newer_one_stops_mirroring_with_a_warning(machine, quick):
    machine.save(10)
    with pytest.warns(UserWarning, match="a newer session mirrors to"), machine.mirror() as older:
        older.update()
        until(lambda: older.step == 10)
        with machine.mirror() as newer:
            newer.update()
            until(lambda: newer.step == 10)
            machine.save(20)
            older.update()
            until(lambda: older.trouble and not older._thread.is_alive())
            assert machine.slots() == {"last.0.pt": 10}
            newer.update()
            until(lambda: newer.step == 20)


def test_a_session_after_one_that_ended_or_died_mirrors_at_once(machine):
    machine.save(10)
    with machine.mirror() as dead:
        dead.update()
        until(lambda: dead.step == 10)
    machine.save(20)
    assert machine.copy().step == 20


@pytest.mark.parametrize("content", ["", "{", "[]", '{"session": '])
def test_a_damaged_session_id_does_not_prevent_mirroring(machine, content):
    machine.save(10)
    machine.copy()
    (machine.mirror_dir / "writer.json").write_text(content)
    machine.save(20)
    assert machine.copy().step == 20


def test_an_older_checkpoint_does_not_replace_a_newer_one_on_the_mirror(machine):
    machine.save(10)
    machine.copy()
    machine.save(20)
    machine.copy()
    machine.save(5)
    machine.copy()
    assert sorted(machine.slots().values()) == [10, 20]


# --- a whole run


def test_the_mirror_stays_small_over_a_run_as_long_as_the_chapters(machine):
    """The run saves as the chapter's run does: every 500 of 12,207 steps, and at the end."""
    sizes = []
    with machine.mirror() as copy:
        for step in (*range(500, 12_207, 500), 12_207):
            machine.save(step)
            copy.update()
            until(lambda step=step: copy.step == step)
            sizes.append(sum(path.stat().st_size for path in machine.mirror_dir.iterdir()))
    assert len(sizes) == 25 and sorted(machine.slots().values()) == [12_000, 12_207]
    assert max(sizes) < 3 * (machine.run_dir / "last.pt").stat().st_size


def stopped_at(lab, step):
    for row in train_run(lab, "cpu", torch.float32):
        if row["step"] >= step:
            break


def test_resuming_from_the_mirror_equals_the_uninterrupted_run(tmp_path, lab, uninterrupted):
    (tmp_path / "disk").mkdir()
    mirrored = lab(tmp_path / "runs" / "r", tmp_path / "disk" / "lab")
    stopped_at(mirrored, 6)
    shutil.rmtree(tmp_path / "runs")
    list(train_run(mirrored, "cpu", torch.float32))
    assert not micro.differences(tmp_path / "runs" / "r", uninterrupted())


@pytest.mark.parametrize("machine_is_lost", [False, True])
def test_a_resume_with_a_mirror_reads_one_checkpoint_once(tmp_path, lab, monkeypatch, machine_is_lost):
    """An earlier version read and verified whole checkpoints 23 times before the first row."""
    (tmp_path / "disk").mkdir()
    mirrored = lab(tmp_path / "runs" / "r", tmp_path / "disk" / "lab", log_every=1)
    stopped_at(mirrored, 9)
    if machine_is_lost:
        shutil.rmtree(tmp_path / "runs")
    read = []

    def count(path, *keys):
        read.append(path.parent)
        return load_checkpoint(path, *keys)

    monkeypatch.setattr(checkpoint, "load_checkpoint", count)
    rows = train_run(mirrored, "cpu", torch.float32)
    assert next(rows)["step"] == 10
    assert read == [tmp_path / ("disk/lab/runs/r" if machine_is_lost else "runs/r")]
    rows.close()
