"""Every result of a run follows from its files, and the conversions can be checked by hand."""

import math
import os
import re
import shutil
from dataclasses import replace

import pytest
import torch

from tinystories_lab.analysis.evaluation import (
    CHAPTER_RESULTS,
    bits_by_tokens,
    bits_per_byte,
    bytes_per_token,
    chapter_results,
    checklist,
    find_other_run,
    half_size,
    perplexity,
    public_results,
    reads_tinystories,
    run_results,
    save_samples,
)
from tinystories_lab.checkpoint import load_model
from tinystories_lab.files import append_row, read_log, read_rows
from tinystories_lab.loader import BinInfo
from tinystories_lab.run import PRESETS, load_config, plan_workspace, save_config
from tinystories_lab.trainer import train


@pytest.fixture
def finished(tmp_path, lab, data_dir, uninterrupted):
    """The workspace of a finished micro run, with folders as `plan_workspace` lays them out."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / data_dir.name).symlink_to(data_dir)
    workspace = lab(shutil.copytree(uninterrupted(), tmp_path / "runs" / "micro"))
    save_config(workspace)
    return workspace


def test_the_chapters_loss_is_a_perplexity_of_12_and_less_than_a_bit_per_byte():
    assert perplexity(2.45) == pytest.approx(11.59, abs=0.005)
    assert perplexity(0) == 1 and perplexity(math.log(8_000)) == pytest.approx(8_000)
    assert bits_per_byte(2.45, 4.1) == pytest.approx(0.862, abs=0.0005)
    assert bits_per_byte(math.log(2), 1) == 1
    assert bits_per_byte(math.log(256), 1) == pytest.approx(8), "random bytes need all their bits"


def test_saving_samples_replaces_only_those_of_the_same_time(tmp_path):
    save_samples(tmp_path, "before", [{"story": "b1"}, {"story": "b2"}])
    save_samples(tmp_path, "after", [{"story": "a1"}])
    save_samples(tmp_path, "after", ({"story": story, "seed": 1} for story in ("a2", "“Zoë”\u2028")))
    assert read_rows(tmp_path / "samples.jsonl") == [
        {"when": "before", "story": "b1"},
        {"when": "before", "story": "b2"},
        {"when": "after", "story": "a2", "seed": 1},
        {"when": "after", "story": "“Zoë”\u2028", "seed": 1},
    ]
    with pytest.raises(TypeError):
        save_samples(tmp_path, "before", [{"story": "new"}, {"story": object()}])
    assert len(read_rows(tmp_path / "samples.jsonl")) == 4, "what cannot be written leaves the old samples"
    save_samples(tmp_path, "before", [])
    assert [row["when"] for row in read_rows(tmp_path / "samples.jsonl")] == ["after", "after"]
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_each_item_of_the_checklist_is_done_by_its_own_file(tmp_path):
    expected = dict.fromkeys(checklist(tmp_path / "missing"), False)
    assert checklist(tmp_path) == checklist(tmp_path / "missing") == expected and len(expected) == 7
    for item in list(expected)[:4]:
        (name,) = re.findall(r"\w+\.\w+", item)
        (tmp_path / name).touch()
        expected[item] = True
        assert checklist(tmp_path) == expected
    for when in ("before", "after"):
        sample = {"story": "x", "prompt": "", "ended": True, "max_new_tokens": 5}
        save_samples(tmp_path, when, [sample] * 9)
        assert checklist(tmp_path) == expected, "nine are not ten"
        save_samples(tmp_path, when, [sample] * 10)
        expected[f"ten samples from {when} training"] = True
        assert checklist(tmp_path) == expected
    append_row(tmp_path / "ratings.jsonl", {"grammar": 1, "coherence": 1, "fun": 1})
    assert checklist(tmp_path) == dict.fromkeys(expected, True)


def test_the_results_of_a_run_are_those_in_its_files(finished):
    log, val_info = read_log(finished.run_dir / "loss.jsonl"), BinInfo.load(finished.data_dir / "val.bin")
    assert run_results(finished.run_dir) == {
        "run": "micro",
        "parameters": load_model(finished.run_dir / "final.pt").count_parameters(),
        "tokens read": 12 * 4 * 16,
        "loss": log[-1]["val_loss"],
        "bits per byte": pytest.approx(log[-1]["val_loss"] / math.log(2) * val_info.tokens / val_info.bytes),
        "tokens per second": round(12 * 4 * 16 / max(log[-1]["seconds"], 0.01)),
        "minutes": log[-1]["seconds"] / 60,
    }
    points = bits_by_tokens(finished.run_dir)
    assert [tokens for tokens, _ in points] == [6 * 64, 12 * 64]
    assert points[-1][1] == run_results(finished.run_dir)["bits per byte"]


def test_bytes_per_token_are_those_of_the_training_stories_if_the_data_is_gone(finished):
    assert bytes_per_token(finished.run_dir) == BinInfo.load(finished.data_dir / "val.bin").bytes_per_token
    (finished.run_dir.parents[1] / "data" / finished.data_dir.name).unlink()
    assert bytes_per_token(finished.run_dir) == BinInfo.load(finished.data_dir / "train.bin").bytes_per_token


def test_a_run_without_an_evaluation_or_a_config_is_refused(finished):
    (finished.run_dir / "loss.jsonl").write_text('{"step": 1, "tokens": 64, "seconds": 1, "train_loss": 5.0}\n')
    with pytest.raises(FileNotFoundError, match=r"no finished evaluation in .*: run 03_train"):
        run_results(finished.run_dir)
    (finished.run_dir / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="run 03_train"):
        run_results(finished.run_dir)


def test_the_chapters_results_have_the_columns_of_a_run(finished):
    for row in chapter_results():
        assert row.keys() == run_results(finished.run_dir).keys()
    t4 = chapter_results()[0]
    assert t4["loss"] == 2.45 and t4["minutes"] == pytest.approx(168) and round(t4["bits per byte"], 2) == 0.86
    losses = list(CHAPTER_RESULTS["loss_by_step"].values())
    assert losses == sorted(losses, reverse=True) and losses[-1] == 2.45


@pytest.mark.parametrize(
    ("source", "compares"),
    [
        ("tinystories", True),
        ("roneneldan/TinyStories:text", True),
        ("my/tinystories_sample.jsonl", True),
        ("toyland", False),
        ("stories.txt", False),
    ],
)
def test_a_run_has_a_row_among_public_results_only_if_its_data_is_tinystories(finished, source, compares):
    config = finished.run_dir / "config.yaml"
    config.write_text(re.sub(r"^source: .*", f"source: {source}", config.read_text(), flags=re.MULTILINE))
    rows = public_results(finished.run_dir)
    assert [row["bits per byte"] for row in rows] == sorted((row["bits per byte"] for row in rows), reverse=True)
    own = [row["bits per byte"] for row in rows if "YOUR RUN" in row["model"]]
    assert own == ([run_results(finished.run_dir)["bits per byte"]] if compares else [])
    assert reads_tinystories(source) == compares


def test_a_half_size_run_is_half_as_wide_shorter_and_uses_the_same_data(tmp_path):
    for name in PRESETS:
        lab = plan_workspace(tmp_path, name)
        half = half_size(lab)
        config = half.preset.train
        assert half.preset.model == replace(lab.preset.model, d_model=lab.preset.model.d_model // 2)
        assert config.total_steps == min(500, lab.preset.train.total_steps // 2)
        assert config.tokens_per_step == lab.preset.train.tokens_per_step
        assert half.data_dir == lab.data_dir and half.run_dir == lab.run_dir.with_name(lab.run_dir.name + "-half")
        assert config.total_steps // config.eval_every == 5, "enough evaluations for a line"


def test_a_half_size_run_trains_and_is_found_beside_its_run(finished):
    assert find_other_run(finished) is None
    half = half_size(finished)
    list(train(half.run_dir, half.data_dir, half.model_config, half.preset.train, "cpu", torch.float32))
    save_config(half)
    assert find_other_run(finished) == find_other_run(finished, "micro-half") == half.run_dir
    assert run_results(half.run_dir)["parameters"] < run_results(finished.run_dir)["parameters"]
    assert load_config(half.run_dir)["model"]["d_model"] == 16


def test_the_other_run_is_the_one_named_or_the_newest_that_is_finished(finished):
    for name in ("other", "micro"):
        with pytest.raises(FileNotFoundError, match=rf"no other finished run '{name}' in .*; finished runs: none"):
            find_other_run(finished, name)
    for age, name in enumerate(("new", "old", "unfinished")):
        folder = finished.run_dir.with_name(name)
        folder.mkdir()
        (folder / "config.yaml").touch()
        if name != "unfinished":
            (folder / "final.pt").touch()
            os.utime(folder / "final.pt", (1e9 - age, 1e9 - age))
    assert find_other_run(finished).name == "new" and find_other_run(finished, "old").name == "old"
