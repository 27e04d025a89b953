"""The time-lapse of a run: one story at growing steps, which costs training nothing but a little time."""

import shutil
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from micro import MODEL, TRAIN, differences

from tinystories_lab import trainer
from tinystories_lab.analysis import timelapse
from tinystories_lab.analysis.timelapse import keep_story, read_timelapse, story_card
from tinystories_lab.checkpoint import load_checkpoint, load_model
from tinystories_lab.data.text import prompts_for
from tinystories_lab.files import append_row, read_log, read_rows
from tinystories_lab.generate import generate_batch
from tinystories_lab.model import new_model
from tinystories_lab.notebook import widgets
from tinystories_lab.notebook.html import cards
from tinystories_lab.pipeline import move_aside, train_run
from tinystories_lab.run import PRESETS
from tinystories_lab.tokenizer import save_tokenizer
from tinystories_lab.trainer import train


def rows_of(lab):
    return train_run(lab, "cpu", torch.float32)


def steps_of(run_dir):
    return [row["step"] for row in read_timelapse(run_dir)]


@pytest.fixture(scope="module")
def kept(lab, tmp_path_factory):
    """The folder of a finished run with a time-lapse. Do not change it."""
    folder = tmp_path_factory.mktemp("kept")
    list(rows_of(lab(folder)))
    return folder


# --- which stories


@pytest.mark.parametrize(
    ("preset", "steps"),
    [
        ("tiny", [0, 10, 20, 40, *range(100, 601, 100), 630]),
        ("small", [0, 20, 40, 80, *range(200, 1_401, 200)]),
        ("book", [0, 50, 100, 200, *range(500, 12_001, 500), 12_207]),
        ("fast", [0, 50, 100, 200, *range(500, 12_001, 500), 12_207]),
    ],
)
def test_there_is_a_story_of_step_0_of_doubling_steps_and_of_each_evaluation(
    lab, tokenizer, tmp_path, monkeypatch, preset, steps
):
    config, plan = PRESETS[preset].train, replace(lab(tmp_path), preset=PRESETS[preset])
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    monkeypatch.setattr(
        timelapse, "generate_batch", lambda *args, **_: [{"prompt": "a", "story": "a b", "ended": True}]
    )
    keep_story(plan, None, {"step": 0, "tokens": 0})
    for step in filter(config.is_logged, range(1, config.total_steps + 1)):
        keep_story(plan, None, {"step": step, "tokens": 1} | ({"val_loss": 1.0} if config.is_evaluated(step) else {}))
    assert [row["step"] for row in read_rows(tmp_path / "timelapse.jsonl")] == steps


def test_a_story_is_by_the_model_of_its_step_for_the_same_prompt_and_seed(lab, tokenizer, data_dir, tmp_path):
    list(rows_of(lab(tmp_path, keep_every=6)))
    models = {0: new_model(MODEL, TRAIN.seed), 6: load_model(tmp_path / "step_00006.pt")}
    models |= {12: load_model(tmp_path / "final.pt")}
    rows = {row["step"]: row for row in read_timelapse(tmp_path)}
    assert list(rows) == [0, 3, 6, 12] and len({row["story"] for row in rows.values()}) == 4
    for step, model in models.items():
        (expected,) = generate_batch(model, tokenizer, prompts_for(data_dir / "val.bin", tokenizer)[:1], 80, seeds=[0])
        assert expected.items() <= rows[step].items()


def test_a_story_has_the_tokens_and_the_validation_loss_of_its_row_in_the_log(kept):
    log = {row["step"]: row for row in read_log(kept / "loss.jsonl")} | {0: {"tokens": 0}}
    for row in read_timelapse(kept):
        assert row["tokens"] == log[row["step"]]["tokens"]
        assert row.get("val_loss") == log[row["step"]].get("val_loss")
    assert [row["step"] for row in read_timelapse(kept) if "val_loss" in row] == [6, 12]


# --- training does not notice


def test_a_run_with_a_time_lapse_is_bit_for_bit_the_run_without(kept, uninterrupted):
    assert not (uninterrupted() / "timelapse.jsonl").exists() and (kept / "timelapse.jsonl").exists()
    assert differences(kept, uninterrupted()) == []


def test_a_story_changes_neither_the_model_nor_its_mode_nor_the_random_state(lab, tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    model, before = new_model(MODEL), torch.get_rng_state()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for mode in (True, False):
        model.train(mode)
        keep_story(lab(tmp_path), model, {"step": 0, "tokens": 0})
        assert all(part.training == mode for part in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert len(steps_of(tmp_path)) == 1


def test_its_time_is_not_training_time(data_dir, tmp_path, monkeypatch):
    ticks, steps = [0.0], []

    def perf_counter():
        ticks[0] += 0.001
        return ticks[0]

    def after_row(_, row):
        ticks[0] += 100
        steps.append(row["step"])

    monkeypatch.setattr(trainer, "time", SimpleNamespace(**vars(time) | {"perf_counter": perf_counter}))
    rows = list(train(tmp_path, data_dir, MODEL, TRAIN, "cpu", torch.float32, after_row=after_row))
    assert steps == [0, 1, 3, 6, 9, 12] and rows[-1]["seconds"] < 1 and rows[-1]["tokens_per_second"] > 1_000


@pytest.mark.parametrize(
    ("part", "error"),
    [("append_row", OSError(28, "No space left on device")), ("generate_batch", torch.OutOfMemoryError("full"))],
)
def test_a_story_that_fails_is_a_warning_and_training_continues(lab, uninterrupted, tmp_path, monkeypatch, part, error):
    monkeypatch.setattr(timelapse, part, Mock(side_effect=error))
    with pytest.warns(
        UserWarning, match=r"timelapse\.jsonl has no story of step \d+ \(.*: training continues"
    ) as given:
        list(rows_of(lab(tmp_path)))
    assert len(given) == 4 and steps_of(tmp_path) == []
    assert differences(tmp_path, uninterrupted()) == []


def test_only_rank_0_generates(lab, tokenizer, tmp_path, monkeypatch):
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    monkeypatch.setattr(timelapse, "rank", lambda: 1)
    monkeypatch.setattr(timelapse, "generate_batch", Mock())
    keep_story(lab(tmp_path), None, {"step": 0, "tokens": 0})
    timelapse.generate_batch.assert_not_called()


# --- several sessions


@pytest.mark.parametrize("stop", [1, 3, 5, 6, 7, 11, 12])
def test_a_run_that_was_stopped_and_resumed_has_the_time_lapse_of_an_uninterrupted_one(
    lab, kept, data_dir, tmp_path, stop
):
    plan, step = lab(tmp_path), iter(range(1, 13))
    hooks = {"should_stop": lambda: next(step) == stop, "after_row": partial(keep_story, plan)}
    list(train(tmp_path, data_dir, MODEL, TRAIN, "cpu", torch.float32, **hooks))
    assert load_checkpoint(tmp_path / "last.pt")["step"] == stop
    list(rows_of(plan))
    assert read_timelapse(tmp_path) == read_timelapse(kept) == read_rows(tmp_path / "timelapse.jsonl")


def test_stories_of_lost_steps_are_replaced_when_the_run_reaches_them_again(lab, kept, tmp_path):
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    rows = read_rows(kept / "timelapse.jsonl")
    (tmp_path / "timelapse.jsonl").unlink()
    for row in rows:
        append_row(tmp_path / "timelapse.jsonl", row | {"story": f"old {row['step']}"})
    for name in ("last.pt", "final.pt", "step_00010.pt"):
        (tmp_path / name).unlink()
    list(rows_of(lab(tmp_path)))  # from step 5
    new = read_timelapse(tmp_path)
    assert [row["step"] for row in new] == [0, 3, 6, 12]
    assert [row["story"] for row in new] == ["old 0", "old 3", rows[2]["story"], rows[3]["story"]]


def test_with_more_total_steps_the_time_lapse_continues(lab, kept, tmp_path):
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    list(rows_of(lab(tmp_path, total_steps=20)))
    assert steps_of(tmp_path) == [0, 3, 6, 12, 18, 20]
    assert read_timelapse(tmp_path)[:4] == read_timelapse(kept)


def test_a_log_row_that_is_written_again_later_gives_no_story_by_a_later_model(lab, data_dir, tmp_path):
    list(train(tmp_path, data_dir, MODEL, TRAIN, "cpu", torch.float32, should_stop=partial(next, iter([0] * 6 + [1]))))
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 7
    log = (tmp_path / "loss.jsonl").read_text().splitlines()
    (tmp_path / "loss.jsonl").write_text(log[0])  # a crash has cut off the row of step 6
    list(rows_of(lab(tmp_path)))
    assert [row["step"] for row in read_log(tmp_path / "loss.jsonl")] == [1, 6, 9, 12]
    assert steps_of(tmp_path) == [12]


def test_the_prompt_stays_that_of_the_first_story(lab, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(timelapse, "prompts_for", lambda *_: pytest.fail("it was chosen again"))
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    list(rows_of(lab(tmp_path, total_steps=15)))
    assert len({row["prompt"] for row in read_timelapse(tmp_path)}) == 1 and steps_of(tmp_path)[-1] == 15


def test_a_last_line_that_was_cut_off_is_skipped_and_the_next_story_starts_a_new_line(lab, kept, tmp_path):
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    with open(tmp_path / "timelapse.jsonl", "r+b") as file:
        file.truncate((tmp_path / "timelapse.jsonl").stat().st_size - 20)
    with pytest.warns(UserWarning, match="not a row of this file, skipped"):
        assert steps_of(tmp_path) == [0, 3, 6]
        list(rows_of(lab(tmp_path, total_steps=18)))
        assert steps_of(tmp_path) == [0, 3, 6, 18]


def test_a_run_that_starts_again_does_not_mix_its_stories_with_those_of_lost_checkpoints(lab, kept, tmp_path):
    shutil.copy(kept / "timelapse.jsonl", tmp_path)
    next(rows_of(lab(tmp_path)))
    assert steps_of(tmp_path) == [0]
    (aside,) = tmp_path.glob("timelapse-until-*.jsonl")
    assert aside.read_bytes() == (kept / "timelapse.jsonl").read_bytes()


def test_the_mirror_copies_and_restores_it_and_it_moves_aside_with_the_run(lab, kept, tmp_path):
    plan = lab(tmp_path / "runs" / "mine", tmp_path / "disk" / "lab")
    plan.mirror_root.parent.mkdir()
    list(rows_of(plan))
    shutil.rmtree(plan.run_dir)
    assert list(rows_of(plan)) == []
    assert read_timelapse(plan.run_dir) == read_timelapse(kept)
    moved = move_aside(plan)
    assert steps_of(plan.run_dir) == [] and [steps_of(folder) for folder in moved] == [[0, 3, 6, 12]] * 2


# --- what a reader sees


def test_a_card_says_its_step_its_tokens_and_its_validation_loss_if_it_is_known():
    row = {"step": 1_000, "tokens": 12_800, "story": "Once", "ended": True}
    assert story_card(row) == ("step 1,000: 12,800 tokens read", "Once")
    evaluated = row | {"val_loss": 2.345, "ended": False}
    assert story_card(evaluated) == ("step 1,000: 12,800 tokens read, validation loss 2.35", "Once ...")
    assert story_card(row | {"val_loss": "2.3"}) == story_card(row), "a damaged file"


def test_every_place_of_the_slider_shows_the_story_of_its_step(kept):
    rows = read_timelapse(kept)
    widget = widgets.timelapse(rows)
    slider, _ = widget.children
    assert [label for label, _ in slider.options] == ["0", "3", "6", "12"] and slider.value == 0
    assert slider.description == "step" and slider.continuous_update, "it computes nothing"
    for place, row in enumerate(rows):
        slider.index = place  # as an arrow key does
        assert widget.result.data == cards([story_card(row)]).data


def test_a_run_without_stories_gives_a_sentence(tmp_path):
    assert "has no story yet" in widgets.timelapse(read_timelapse(tmp_path)).data
