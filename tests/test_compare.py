"""Runs beside each other: every figure is the files' own."""

import json
import math
import os
from dataclasses import replace

import pytest

from tinystories_lab.checkpoint import load_model
from tinystories_lab.compare import (
    beside_the_chapter,
    bits_by_tokens,
    bytes_per_token,
    chapter_rows,
    half_size,
    run_beside,
    run_row,
)
from tinystories_lab.notebook.curves import compare_curves
from tinystories_lab.presets import PRESETS
from tinystories_lab.runlog import read_log
from tinystories_lab.tokenizer import BinInfo
from tinystories_lab.trainer import train
from tinystories_lab.workspace import Workspace, load_config, plan_workspace, save_config


@pytest.fixture
def lab(tmp_path, data_dir, uninterrupted, model_config, train_config):
    """A workspace with a finished micro run, laid out as `plan_workspace` does."""
    (tmp_path / "data").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "data" / "micro").symlink_to(data_dir)
    run_dir = tmp_path / "runs" / "micro"
    run_dir.mkdir()
    for path in uninterrupted().iterdir():
        os.link(path, run_dir / path.name) if path.suffix == ".pt" else (run_dir / path.name).write_bytes(
            path.read_bytes()
        )
    preset = replace(PRESETS["tiny"], name="micro", model=model_config, train=train_config)
    workspace = Workspace(preset, "made up", tmp_path / "data" / "micro", run_dir)
    save_config(workspace)
    return workspace


def test_a_runs_row_is_what_its_files_say(lab):
    log = read_log(lab.run_dir / "loss.jsonl")
    held_out = BinInfo.of(lab.data_dir / "val.bin")
    assert run_row(lab.run_dir) == {
        "run": "micro",
        "parameters": load_model(lab.run_dir / "final.pt").count_parameters(),
        "tokens read": 12 * 4 * 16,
        "loss": log[-1]["val_loss"],
        "bits a byte": pytest.approx(log[-1]["val_loss"] / math.log(2) * held_out.tokens / held_out.bytes),
        "tokens a second": round(12 * 4 * 16 / max(log[-1]["seconds"], 0.01)),
        "minutes": log[-1]["seconds"] / 60,
    }


def test_a_run_whose_data_is_gone_counts_bytes_as_in_what_it_trained_on(lab):
    train_info = BinInfo.of(lab.data_dir / "train.bin")
    assert bytes_per_token(lab.run_dir) == BinInfo.of(lab.data_dir / "val.bin").bytes_per_token
    lab.data_dir.unlink()
    assert bytes_per_token(lab.run_dir) == train_info.bytes_per_token


def test_a_run_without_an_evaluation_or_a_config_is_refused(lab):
    (lab.run_dir / "loss.jsonl").write_text('{"step": 1, "tokens": 64, "seconds": 1, "train_loss": 5.0}\n')
    with pytest.raises(FileNotFoundError, match=r"no finished evaluation in .*: run 03_train"):
        run_row(lab.run_dir)
    (lab.run_dir / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="run 03_train"):
        run_row(lab.run_dir)


def test_every_evaluation_is_a_point_of_the_curve(lab):
    points = bits_by_tokens(lab.run_dir)
    assert [tokens for tokens, _ in points] == [6 * 64, 12 * 64]
    assert points[-1][1] == run_row(lab.run_dir)["bits a byte"]


def test_the_chapters_rows_have_the_columns_of_a_run(lab):
    for row in chapter_rows():
        assert row.keys() == run_row(lab.run_dir).keys()
    t4 = chapter_rows()[0]
    assert t4["loss"] == 2.45 and t4["minutes"] == pytest.approx(168) and round(t4["bits a byte"], 2) == 0.86


def test_the_chapters_steps_are_met_by_tokens_and_by_share():
    def row(step):
        return {"step": step, "tokens": step * 16_384, "train_loss": 9 - step / 1_000}

    rows = beside_the_chapter([row(1), *(row(step) for step in range(50, 6_001, 50))])
    by_step = {each["step"]: each for each in rows}
    assert by_step[0]["yours"] == by_step[0]["yours, by share"] == pytest.approx(8.999)
    assert by_step[4_000]["yours"] == pytest.approx(5)
    assert by_step[8_000]["yours"] is None
    assert by_step[8_000]["yours, by share"] == pytest.approx(5)
    assert by_step[12_000]["yours, by share"] == pytest.approx(3)
    assert by_step[4_000]["chapter"] == 2.78 and by_step[4_000]["tokens"] == 4_000 * 16_384


@pytest.mark.parametrize("name", PRESETS)
def test_a_sibling_is_half_as_wide_shorter_and_trains_on_the_same_data(name, tmp_path):
    lab = plan_workspace(tmp_path, name)
    half = half_size(lab)
    assert half.preset.model == replace(lab.preset.model, d_model=lab.preset.model.d_model // 2)
    assert half.preset.train.total_steps == {"tiny": 400}.get(name, 500)
    assert half.preset.train.tokens_per_step == lab.preset.train.tokens_per_step
    assert half.data_dir == lab.data_dir and half.run_dir == lab.run_dir.with_name(lab.run_dir.name + "-half")
    assert half.preset.train.total_steps // half.preset.train.eval_every == 5, "enough evaluations for a line"


def test_a_sibling_trains_and_stands_beside_its_run(lab):
    assert run_beside(lab) is None
    half = half_size(lab)
    rows = train(half.run_dir, half.data_dir, half.model_config, half.preset.train)
    save_config(half)
    list(rows)
    assert run_beside(lab) == run_beside(lab, "micro-half") == half.run_dir
    assert run_row(half.run_dir)["parameters"] < run_row(lab.run_dir)["parameters"]
    assert load_config(half.run_dir)["model"]["d_model"] == 16


def test_a_run_that_is_not_there_is_named_with_those_that_are(lab):
    for name in ("other", "micro"):
        with pytest.raises(FileNotFoundError, match=rf"no other finished run '{name}' in .*; there: none"):
            run_beside(lab, name)


def test_the_newest_other_run_is_taken_where_none_is_named(lab):
    for age, name in enumerate(("new", "old", "unfinished")):
        folder = lab.run_dir.with_name(name)
        folder.mkdir()
        (folder / "config.yaml").write_text(json.dumps({}))
        if name != "unfinished":
            (folder / "final.pt").touch()
            os.utime(folder / "final.pt", (1e9 - age, 1e9 - age))
    assert run_beside(lab).name == "new" and run_beside(lab, "old").name == "old"


def test_a_line_stands_for_each_run_through_its_evaluations():
    runs = {"one": [(10, 3.0), (20, 2.0)], "other": [(5, 2.5)]}
    axes = compare_curves(runs).axes[0]
    assert [list(zip(*line.get_data(), strict=True)) for line in axes.lines] == list(runs.values())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "other"]
    assert len({line.get_color() for line in axes.lines}) == 2 == len({line.get_marker() for line in axes.lines})
    assert axes.get_title() and axes.get_xlabel() and axes.get_ylabel()
