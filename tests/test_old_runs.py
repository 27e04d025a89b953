"""Runs of version 1.0, whose settings had other names, are read and resumed like new ones.

tests/data/version-1.0 was written by that version: data, a run stopped after step 7 of 12, and the same run when finished.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinystories_lab.checkpoint import load_checkpoint, load_model
from tinystories_lab.config import TrainConfig
from tinystories_lab.files import read_log
from tinystories_lab.model import GPTConfig
from tinystories_lab.pipeline import train_run
from tinystories_lab.run import Preset, Workspace, load_config

OLD = Path(__file__).with_name("data") / "version-1.0"


@pytest.fixture
def old(tmp_path):
    """The workspace of that run, in a copy of its folders."""
    shutil.copytree(OLD / "run", tmp_path / "runs" / "old")
    shutil.copytree(OLD / "data", tmp_path / "data" / "micro")
    config = load_config(tmp_path / "runs" / "old")
    model, train = GPTConfig(**config["model"]), TrainConfig(**config["train"])
    preset = Preset("micro", "toyland", 144, 144, None, 20, model, train)
    return Workspace(preset, "toyland", tmp_path / "data" / "micro", tmp_path / "runs" / "old")


def test_an_old_config_is_read_with_the_current_names(old):
    assert (old.preset.model.tie_embeddings, old.preset.model.n_layer) == (False, 1)
    config = old.preset.train
    assert (config.grad_accum_steps, config.grad_clip, config.muon_lr) == (2, 0.9, 0.02)
    assert (config.seq_len_start, config.seq_len_warmup_fraction) == (4, 0.5)


def test_an_old_run_resumes_and_ends_like_the_run_that_its_own_version_finished(old, capsys):
    list(train_run(old, "cpu", torch.float32))
    assert "resumed at step 7" in capsys.readouterr().out
    rows, expected = read_log(old.run_dir / "loss.jsonl"), read_log(OLD / "finished" / "loss.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in expected] == list(range(1, 13))
    for row, same in zip(rows, expected, strict=True):  # tolerances, because another processor rounds differently
        assert ("val_loss" in row) == ("val_loss" in same)
        for name in {"train_loss", "lr", "grad_norm", "tokens", "val_loss"} & same.keys():
            assert row[name] == pytest.approx(same[name], rel=0.01), (row["step"], name)
    weights, there = (load_model(folder / "final.pt").state_dict() for folder in (old.run_dir, OLD / "finished"))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, there[name], atol=0.01, rtol=0, msg=name)
    assert "changed" not in load_config(old.run_dir)["sessions"][-1], "only names changed"
    assert load_checkpoint(old.run_dir / "last.pt")["train_config"]["grad_clip"] == 0.9


def test_an_old_run_is_refused_if_a_setting_differs(old):
    other = replace(old, preset=replace(old.preset, train=replace(old.preset.train, grad_clip=1.0)))
    with pytest.raises(ValueError, match=r"another run \(grad_clip 0\.9 there, 1\.0 here\)"):
        next(train_run(other, "cpu", torch.float32))
