"""Colab and Drive at their boundary: a folder stands in for the mounted Drive."""

import shutil
import sys
import types
from dataclasses import replace

import pytest

from tinystories_lab import presets
from tinystories_lab.checkpoint import load_checkpoint
from tinystories_lab.notebook import colab
from tinystories_lab.presets import plan_workspace
from tinystories_lab.trainer import train


@pytest.fixture
def lab(tmp_path, monkeypatch, data_dir, model_config, train_config):
    """A trained micro run, with an empty Drive mounted."""
    micro = replace(presets.PRESETS["tiny"], model=model_config, train=train_config)
    monkeypatch.setitem(presets.PRESETS, "tiny", micro)
    monkeypatch.setattr(colab, "DRIVE", tmp_path / "drive")
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    lab = plan_workspace(tmp_path / "here", "tiny", "toyland")
    shutil.copytree(data_dir, lab.data_dir)
    return lab


def train_until(lab, step):
    for row in train(lab.run_dir, lab.data_dir, lab.model_config, lab.preset.train):
        if row["step"] >= step:
            break


def lose_the_machine(lab):
    shutil.rmtree(lab.run_dir)
    shutil.rmtree(lab.data_dir)


def mirrored(lab):
    return sorted(path.name for folder in colab.drive_folders(lab) for path in folder.iterdir())


def test_a_run_comes_back_from_drive_at_the_step_that_was_mirrored(lab):
    train_until(lab, 6)
    colab.mirror(lab)
    lose_the_machine(lab)
    colab.fetch(lab)
    assert load_checkpoint(lab.run_dir / "last.pt")["step"] == 6
    rows = list(train(lab.run_dir, lab.data_dir, lab.model_config, lab.preset.train))
    assert rows[0]["step"] > 6 and rows[-1]["step"] == lab.preset.train.total_steps


def test_the_newest_whole_checkpoint_comes_back_when_a_copy_was_cut_off(lab):
    for step in (3, 6):
        train_until(lab, step)
        colab.mirror(lab)
    _, run_folder = colab.drive_folders(lab)
    steps = {load_checkpoint(run_folder / name)["step"]: run_folder / name for name in colab.SLOTS}
    assert set(steps) == {3, 6}
    steps[6].write_bytes(steps[6].read_bytes()[:1000])
    lose_the_machine(lab)
    with pytest.warns(UserWarning, match="is damaged"):
        colab.fetch(lab)
    assert load_checkpoint(lab.run_dir / "last.pt")["step"] == 3


def test_the_files_on_drive_are_few_and_stay_few(lab):
    for step in (3, 6, 9, 12):
        train_until(lab, step)
        colab.mirror(lab)
    allowed = {*colab.DATA_FILES, *colab.RUN_FILES, *colab.SLOTS}
    assert set(mirrored(lab)) <= allowed
    assert not [name for name in mirrored(lab) if name.startswith("step_")]


def test_what_has_not_changed_is_not_written_again(lab):
    train_until(lab, 3)
    colab.mirror(lab)
    before = {path: path.stat().st_mtime_ns for folder in colab.drive_folders(lab) for path in folder.iterdir()}
    colab.mirror(lab)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_newer_local_run_is_not_overwritten_by_drive(lab):
    train_until(lab, 3)
    colab.mirror(lab)
    train_until(lab, 9)
    colab.fetch(lab)
    assert load_checkpoint(lab.run_dir / "last.pt")["step"] == 9


def test_a_drive_that_fails_warns_and_training_goes_on(lab, monkeypatch):
    def vanish(*_):
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(colab.shutil, "copyfile", vanish)
    with pytest.warns(UserWarning, match="could not mirror to Drive"):
        colab.mirror(lab)


def test_without_a_mounted_drive_nothing_is_mirrored_or_fetched(lab, monkeypatch, tmp_path):
    monkeypatch.setattr(colab, "DRIVE", tmp_path / "nothing")
    colab.mirror(lab)
    colab.fetch(lab)
    assert not (tmp_path / "nothing").exists()


def test_on_colab_opening_the_workspace_mounts_drive_and_fetches_the_run(lab, monkeypatch, tmp_path, capsys):
    train_until(lab, 6)
    colab.mirror(lab)
    lose_the_machine(lab)
    mounts = []
    google = types.ModuleType("google.colab")
    google.drive = types.SimpleNamespace(mount=mounts.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", google)
    monkeypatch.setenv(colab.WORKSPACE_VARIABLE, str(tmp_path / "here"))
    opened = colab.open_workspace("tiny", "toyland", use_drive=True)
    assert mounts == [str(tmp_path / "drive")] and opened.run_dir == lab.run_dir
    assert "goes on at step 6" in capsys.readouterr().out


def test_the_workspace_is_the_current_folder_or_the_repository_of_its_notebooks(tmp_path, monkeypatch):
    monkeypatch.delenv(colab.WORKSPACE_VARIABLE)
    (tmp_path / "notebooks").mkdir()
    for here in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(here)
        assert colab.open_workspace("tiny").run_dir == tmp_path / "runs" / "toyland-tiny"


def test_on_colab_the_workspace_lies_outside_of_the_clone(monkeypatch):
    monkeypatch.delenv(colab.WORKSPACE_VARIABLE)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert colab.open_workspace("tiny").run_dir == colab.COLAB_ROOT / "runs" / "toyland-tiny"
