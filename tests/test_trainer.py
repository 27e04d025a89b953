"""A run may stop at any step, in any way, and ends as if it had never stopped."""

import itertools
import math
import os
import random
import re
import shutil
import threading
import time
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from micro import differences, log_of, same
from torch._dynamo.utils import counters

from tinystories_lab import checkpoint, device, trainer
from tinystories_lab.checkpoint import CheckpointWriter, load_checkpoint, load_model, save_checkpoint
from tinystories_lab.config import RESUMABLE_CHANGES, lr_at
from tinystories_lab.files import append_row, read_log, read_rows
from tinystories_lab.loader import BinLoader
from tinystories_lab.model import GPTMini
from tinystories_lab.tokenizer import load_tokenizer, save_tokenizer, tokenizer_sha256, train_tokenizer, write_bin
from tinystories_lab.trainer import evaluate, train

ROW_KEYS = {"step", "train_loss", "lr", "grad_norm", "tokens", "skipped_updates", "loss_scale"}
ROW_KEYS |= {"tokens_per_second", "seconds", "eta_seconds"}


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


class StoppedError(Exception):
    pass


def stop_inside(monkeypatch, stop, how):
    """Call `how()` in the middle of a session's step (from 1), after the weights have changed."""
    scaler_step = torch.amp.GradScaler.step

    def step_and_stop(self, optimizer, *args):
        done = scaler_step(self, optimizer, *args)
        if next(steps) == stop:
            how()
        return done

    steps = itertools.count(1)
    monkeypatch.setattr(torch.amp.GradScaler, "step", step_and_stop)


def throw():
    raise StoppedError


def spoil_other_random_states():
    torch.manual_seed(987), np.random.seed(654), random.seed(321)


# --- stop and continue


@pytest.mark.parametrize("stop", range(1, 12))
def test_resumed_run_equals_uninterrupted_run(run, uninterrupted, tmp_path, stop):
    for row in run(tmp_path, log_every=1):
        if row["step"] == stop:
            break
    assert load_checkpoint(tmp_path / "last.pt")["step"] == stop
    spoil_other_random_states()
    rows = list(run(tmp_path, log_every=1))
    assert [row["step"] for row in rows] == list(range(stop + 1, 13))
    assert not differences(tmp_path, uninterrupted(log_every=1))


@pytest.mark.parametrize("stop", [1, 6, 12])
def test_an_exception_in_the_callers_loop_loses_nothing(run, uninterrupted, tmp_path, stop):
    with pytest.raises(StoppedError):
        for row in run(tmp_path):
            if row["step"] == stop:
                raise StoppedError
    assert load_checkpoint(tmp_path / "last.pt")["step"] == stop
    spoil_other_random_states()
    list(run(tmp_path))
    assert not differences(tmp_path, uninterrupted())


@pytest.mark.parametrize("stop", [1, 4, 5, 7, 12])
def test_an_exception_inside_a_step_is_followed_by_no_save(run, uninterrupted, tmp_path, monkeypatch, stop):
    stop_inside(monkeypatch, stop, throw)
    with pytest.raises(StoppedError):
        list(run(tmp_path))
    monkeypatch.undo()
    saved = max(step for step in (0, 4, 6, 8) if step < stop)  # save_every and eval_every
    assert (tmp_path / "last.pt").exists() == (saved > 0)
    assert not saved or load_checkpoint(tmp_path / "last.pt")["step"] == saved
    spoil_other_random_states()
    list(run(tmp_path))
    assert not differences(tmp_path, uninterrupted())


@pytest.mark.parametrize("stop", [1, 3, 6, 7, 12])
def test_after_a_requested_stop_the_step_finishes_and_is_saved(run, uninterrupted, tmp_path, stop):
    asked = itertools.count(1)  # once per step
    rows = list(run(tmp_path, should_stop=lambda: next(asked) == stop))
    assert load_checkpoint(tmp_path / "last.pt")["step"] == stop
    assert not rows or rows[-1]["step"] < stop, "the stopped step is evaluated and logged by the next session"
    list(run(tmp_path))
    assert not differences(tmp_path, uninterrupted())


def test_a_run_stopped_again_and_again_equals_uninterrupted_run(run, uninterrupted, tmp_path):
    sessions = 0
    while not (tmp_path / "final.pt").exists():
        for _ in zip(range(2), run(tmp_path, log_every=1), strict=False):
            spoil_other_random_states()
        sessions += 1
    assert sessions > 5
    assert not differences(tmp_path, uninterrupted(log_every=1))


def test_grad_accum_steps_and_shuffled_windows_resume_too(run, uninterrupted, tmp_path):
    changes = {"log_every": 1, "grad_accum_steps": 2, "sampling": "shuffle"}
    for row in run(tmp_path, **changes):
        if row["step"] == 7:
            break
    list(run(tmp_path, **changes))
    assert not differences(tmp_path, uninterrupted(**changes))


def test_a_float16_run_resumes_with_its_loss_scale(run, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, growth_interval=2))
    for row in run(tmp_path, torch.float16, log_every=1):
        if row["step"] == 7:
            break
    list(run(tmp_path, torch.float16, log_every=1))
    assert not differences(tmp_path, uninterrupted(dtype=torch.float16, log_every=1))
    assert load_checkpoint(tmp_path / "last.pt")["scaler"]["scale"] > 2**16


def test_resuming_restores_torchs_random_state(run, tmp_path):
    torch.manual_seed(5)
    saved = torch.get_rng_state()
    next(iter(run(tmp_path)))  # closed at once
    torch.manual_seed(6)
    next(iter(run(tmp_path)))
    assert torch.equal(torch.get_rng_state(), saved)


def test_a_damaged_last_pt_loses_the_steps_since_the_newest_step_checkpoint(run, uninterrupted, tmp_path):
    for row in run(tmp_path, log_every=1):
        if row["step"] == 11:
            break
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:-1_000])
    with pytest.warns(UserWarning, match=r"skipped: .*last\.pt is damaged"):
        rows = list(run(tmp_path, log_every=1))
    assert [row["step"] for row in rows] == [11, 12]
    assert not differences(tmp_path, uninterrupted(log_every=1))


# --- saving


def test_a_crash_during_an_evaluation_loses_the_steps_since_the_last_save(run, uninterrupted, tmp_path, monkeypatch):
    def crash(*_):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", crash)
        with pytest.raises(StoppedError):
            list(run(tmp_path))
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4
    list(run(tmp_path))
    assert not differences(tmp_path, uninterrupted())


def saved_steps(monkeypatch, run, *arguments, **changes):
    """Return the steps at which last.pt was saved."""
    steps = []

    def count(path, content):
        if path.name == "last.pt":
            steps.append(content["step"])
        save_checkpoint(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", count)
        list(run(*arguments, **changes))
    return steps


def refuse_to_write(patch, names, error):
    """Make each save of a checkpoint with such a name fail with this error."""

    def refuse(path, content):
        if path.match(names):
            raise error
        save_checkpoint(path, content)

    patch.setattr(checkpoint, "save_checkpoint", refuse)


def test_last_pt_is_saved_every_save_every_steps_and_at_each_evaluation(run, tmp_path, monkeypatch):
    assert saved_steps(monkeypatch, run, tmp_path) == [4, 6, 8, 12]


def test_last_pt_is_saved_when_save_minutes_have_passed(run, tmp_path, monkeypatch):
    ticks = itertools.count(step=25.0)  # seconds between two readings of the clock
    monkeypatch.setattr(trainer.time, "monotonic", lambda: next(ticks))
    often = saved_steps(monkeypatch, run, tmp_path, save_every=12, eval_every=12, save_minutes=1.0)
    assert often[0] in (2, 3) and len(often) >= 4 and often[-1] == 12


def fill_the_disk_for(path):
    """Make the next save of `path` fail with a full disk: its partial file is a link to /dev/full."""
    path.with_name(path.name + ".partial").symlink_to("/dev/full")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_save_to_a_full_disk_gives_a_warning_and_training_continues(run, uninterrupted, tmp_path):
    with pytest.warns(UserWarning, match=r"saving .*last\.pt failed .*No space left.*training continues") as warned:
        for row in run(tmp_path, log_every=1):
            if row["step"] == 5:
                kept = (tmp_path / "last.pt").read_bytes()
                fill_the_disk_for(tmp_path / "last.pt")
            if row["step"] == 7:
                assert (tmp_path / "last.pt").read_bytes() == kept, "the last good file stays"
    assert len(warned) == 1
    assert not differences(tmp_path, uninterrupted(log_every=1))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_if_the_last_save_fails_too_the_run_resumes_from_the_one_before(run, uninterrupted, tmp_path):
    with pytest.warns(UserWarning, match=r"saving .*last\.pt failed"):
        for row in run(tmp_path, log_every=1):
            if row["step"] == 7:
                fill_the_disk_for(tmp_path / "last.pt")
                break
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 6
    list(run(tmp_path, log_every=1))
    assert not differences(tmp_path, uninterrupted(log_every=1))


def test_a_final_pt_that_cannot_be_written_is_an_error_and_the_next_call_writes_it(
    run, uninterrupted, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        refuse_to_write(patch, "final.pt", PermissionError(13, "Permission denied", "final.pt"))
        with pytest.raises(PermissionError), pytest.warns(UserWarning, match=r"saving .*final\.pt failed"):
            list(run(tmp_path))
    assert list(run(tmp_path)) == []
    assert not differences(tmp_path, uninterrupted())


def test_an_older_final_pt_is_replaced_by_the_next_call_if_the_last_step_could_not_write_it(
    run, uninterrupted, tmp_path, monkeypatch
):
    list(run(tmp_path, total_steps=6))
    with monkeypatch.context() as patch:
        refuse_to_write(patch, "final.pt", OSError(28, "No space left on device"))
        with pytest.raises(OSError, match="No space"), pytest.warns(UserWarning):
            list(run(tmp_path))
    assert load_checkpoint(tmp_path / "final.pt", {"step"})["step"] == 6
    list(run(tmp_path))
    assert load_checkpoint(tmp_path / "final.pt", {"step"})["step"] == 12


def test_rows_that_cannot_be_written_are_written_later(run, uninterrupted, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    with pytest.warns(UserWarning, match=r"loss\.jsonl could not be written .*kept for later, and training continues"):
        for row in run(tmp_path):
            if row["step"] == 1:
                monkeypatch.setattr(trainer, "append_row", refuse)
            if row["step"] == 6:
                assert [row["step"] for row in read_log(tmp_path / "loss.jsonl")] == [1]
                monkeypatch.undo()
    assert not differences(tmp_path, uninterrupted())


# --- resuming


def test_a_resumed_run_prints_its_step_and_the_age_of_its_checkpoint(run, tmp_path, capsys, monkeypatch):
    """It does not report lost steps: an earlier version did, and was wrong after a stop exactly at a save."""
    now = time.time()
    for stop, later in ((5, 180), (8, -3_600)):  # a clock may be set back
        for row in run(tmp_path, log_every=1):
            if row["step"] == stop:
                break
        capsys.readouterr()
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        next(run(tmp_path, log_every=1))
        assert capsys.readouterr().out == f"resumed at step {stop}, saved {max(0, later // 60)} minutes ago\n"
        monkeypatch.undo()


def test_the_first_row_of_each_later_session_has_the_step_it_resumed_from(run, tmp_path):
    for stop in (3, 9, 99):
        for row in run(tmp_path):
            if row["step"] == stop:
                break
    rows = read_log(tmp_path / "loss.jsonl")
    assert [(row["step"], row["resumed_from"]) for row in rows if "resumed_from" in row] == [(6, 3), (12, 9)]


# --- the files of a run


def test_rows_are_logged_when_due_with_all_their_keys(uninterrupted, train_config):
    rows = read_rows(uninterrupted() / "loss.jsonl")
    assert [row["step"] for row in rows] == [1, 3, 6, 9, 12]
    for row in rows:
        assert row.keys() == ROW_KEYS | ({"val_loss"} if row["step"] in (6, 12) else set())
        assert row["lr"] == lr_at(row["step"] - 1, train_config)
        assert row["tokens"] == row["step"] * 64
        assert row["grad_norm"] > 0 and row["tokens_per_second"] > 0 and row["skipped_updates"] == 0
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    assert rows[-1]["eta_seconds"] == 0


def test_yielded_rows_are_those_of_the_log(run, tmp_path):
    assert list(run(tmp_path)) == read_rows(tmp_path / "loss.jsonl")


def test_an_evaluation_between_two_log_steps_has_a_row(run, tmp_path):
    rows = list(run(tmp_path, log_every=5, eval_every=4))
    assert [(row["step"], "val_loss" in row) for row in rows] == [
        *((1, False), (4, True), (5, False), (8, True), (10, False), (12, True))
    ]


def test_the_first_loss_is_that_of_a_uniform_guess(uninterrupted):
    first = read_log(uninterrupted() / "loss.jsonl")[0]
    assert first["step"] == 1 and abs(first["train_loss"] - math.log(300)) < 0.15


def test_the_loss_falls(run, tmp_path):
    rows = list(run(tmp_path, total_steps=60, eval_every=20, log_every=20))
    losses = [row["val_loss"] for row in rows[1:]]
    assert rows[-1]["train_loss"] < 4 and math.log(300) > losses[0] > losses[1] > losses[2]


def test_seconds_add_up_over_sessions(run, tmp_path):
    seconds = []
    for _ in range(4):
        row = next(iter(run(tmp_path, log_every=1)))
        seconds.append(load_checkpoint(tmp_path / "last.pt")["seconds"])
        assert row["seconds"] == round(seconds[-1], 2)
    assert seconds == sorted(set(seconds)) and seconds[0] > 0


def test_the_time_left_is_the_time_for_the_remaining_steps(run, tmp_path, monkeypatch):
    ticks = itertools.count(step=0.5)
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: next(ticks))
    for row in run(tmp_path, log_every=1):
        steps_per_second = row["tokens_per_second"] / 64
        assert row["eta_seconds"] == pytest.approx((12 - row["step"]) / steps_per_second, rel=0.02)


def test_a_finished_run_has_all_of_its_files(uninterrupted, data_dir):
    folder = uninterrupted()
    assert {path.name for path in folder.iterdir()} == {
        *("final.pt", "last.pt", "best.pt", "loss.jsonl", "step_00005.pt", "step_00010.pt", "tokenizer.json")
    }
    assert (folder / "tokenizer.json").read_bytes() == (data_dir / "tokenizer.json").read_bytes()
    model, last = load_model(folder / "final.pt"), load_checkpoint(folder / "last.pt")
    assert same(dict(model.state_dict()), dict(last["model"])) and last["step"] == 12
    assert "optimizer" not in load_checkpoint(folder / "final.pt", {"model"})
    assert load_checkpoint(folder / "step_00005.pt")["step"] == 5


def test_only_the_newest_two_step_checkpoints_are_kept(run, tmp_path):
    list(run(tmp_path, keep_every=2))
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_00010.pt", "step_00012.pt"]


def test_a_finished_run_called_again_yields_nothing_and_changes_nothing(run, tmp_path):
    list(run(tmp_path))
    before = contents(tmp_path)
    assert list(run(tmp_path)) == []
    after = contents(tmp_path)
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    for name in ("final.pt", "last.pt", "loss.jsonl"):
        assert after[name] == before[name], f"{name} was written again"


def test_a_lost_final_pt_is_written_again(run, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted(), tmp_path, dirs_exist_ok=True)
    (tmp_path / "final.pt").unlink()
    assert list(run(tmp_path)) == []
    assert not differences(tmp_path, uninterrupted())


@pytest.mark.parametrize("stop", [None, 18, 20])
def test_with_more_total_steps_a_finished_run_continues_and_writes_a_new_final_pt(run, uninterrupted, tmp_path, stop):
    shutil.copytree(uninterrupted(), tmp_path, dirs_exist_ok=True)
    for row in run(tmp_path, total_steps=20):
        assert row["step"] > 12
        if row["step"] == stop:
            break  # at 20 the learner has seen the last row and leaves the loop
    list(run(tmp_path, total_steps=20))
    final = load_checkpoint(tmp_path / "final.pt", {"step", "model"})
    assert final["step"] == 20 and same(final["model"], load_checkpoint(tmp_path / "last.pt")["model"])


def test_with_fewer_total_steps_than_it_has_a_run_does_not_change(run, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted(), tmp_path, dirs_exist_ok=True)
    assert list(run(tmp_path, total_steps=6)) == []
    assert not differences(tmp_path, uninterrupted())


@pytest.mark.parametrize("total_steps", [5, 7])
def test_a_run_that_has_gone_further_than_a_new_total_steps_is_refused_before_anything_is_written(
    run, tmp_path, total_steps
):
    list(islice(run(tmp_path, log_every=1), 7))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"total_steps is {total_steps}, but .* reached step 7: set it above 7"):
        run(tmp_path, total_steps=total_steps)
    assert contents(tmp_path) == before


def test_a_new_total_steps_is_reported_with_the_learning_rates_before_and_after(run, tmp_path, train_config, capsys):
    list(islice(run(tmp_path, log_every=1), 7))
    rows = list(run(tmp_path, log_every=1, total_steps=24))
    before, after = lr_at(7, train_config), lr_at(7, replace(train_config, total_steps=24))
    assert f"total_steps was 12 and is now 24, {after:.2g} {before:.2g}" == re.sub(
        r"which .* rate is (\S+) instead of (\S+)", r"\1 \2", capsys.readouterr().out.splitlines()[-1]
    )
    assert rows[0]["lr"] == after != before


def test_a_finished_run_of_which_only_final_pt_is_left_is_finished(run, uninterrupted, tmp_path, capsys):
    for name in ("final.pt", "loss.jsonl", "tokenizer.json"):
        shutil.copy(uninterrupted() / name, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for total_steps in (12, 6):
        assert list(run(tmp_path, total_steps=total_steps)) == []
        assert "finished at step 12; only its final.pt is left" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"final\.pt has the model of step 12, .*total_steps is 20, .*no last\.pt"):
        run(tmp_path, total_steps=20)
    with pytest.raises(ValueError, match=r"another run \(seed 0 there, 1 here\)"):
        run(tmp_path, seed=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_that_starts_again_does_not_mix_its_log_with_that_of_lost_checkpoints(run, uninterrupted, tmp_path):
    shutil.copy(uninterrupted() / "loss.jsonl", tmp_path)
    list(islice(run(tmp_path, log_every=1), 2))
    assert [row["step"] for row in read_log(tmp_path / "loss.jsonl")] == [1, 2]
    (aside,) = tmp_path.glob("loss-until-*.jsonl")
    assert aside.read_bytes() == (uninterrupted() / "loss.jsonl").read_bytes()


@pytest.mark.parametrize("stop", [None, 1, 3, 6, 7, 20])
def test_best_pt_is_the_model_of_the_lowest_validation_loss_over_all_sessions(run, tmp_path, monkeypatch, stop):
    losses = {3: 5.0, 6: 4.0, 9: 4.5, 12: 3.0, 15: 3.5, 18: 3.1, 21: 3.2, 24: 9.0}
    weights = {}

    def evaluate(model, *_):
        step = len(weights) * 3 + 3
        weights[step] = deepcopy(model.state_dict())
        return losses[step]

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    often = {"log_every": 1, "eval_every": 3, "save_every": 1, "total_steps": 24}
    list(islice(run(tmp_path, **often), stop))
    list(run(tmp_path, **often))
    assert [row["val_loss"] for row in read_log(tmp_path / "loss.jsonl") if "val_loss" in row] == [*losses.values()]
    best = load_checkpoint(tmp_path / "best.pt", {"step", "model"})
    assert best["step"] == 12 and same(best["model"], dict(weights[12]))
    assert same(dict(load_model(tmp_path / "best.pt").state_dict()), dict(weights[12]))


def test_a_final_pt_of_an_earlier_end_is_not_taken_for_the_model_of_the_run(run, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted(), tmp_path, dirs_exist_ok=True)
    load_model(tmp_path / "final.pt")
    list(islice(run(tmp_path, total_steps=20, log_every=1), 3))
    with pytest.raises(ValueError, match=r"final\.pt has the model of step 12, but the run has gone on to step 15"):
        load_model(tmp_path / "final.pt")
    list(run(tmp_path, total_steps=20))
    load_model(tmp_path / "final.pt")


def test_grad_accum_steps_do_not_change_the_result(uninterrupted):
    whole = load_model(uninterrupted() / "final.pt").state_dict()
    for grad_accum_steps in (2, 4):
        folder = uninterrupted(grad_accum_steps=grad_accum_steps)
        for name, weights in load_model(folder / "final.pt").state_dict().items():
            torch.testing.assert_close(weights, whole[name], atol=2e-3, rtol=0)
        for row, as_whole in zip(
            read_log(folder / "loss.jsonl"), read_log(uninterrupted() / "loss.jsonl"), strict=True
        ):
            assert row["train_loss"] == pytest.approx(as_whole["train_loss"], abs=1e-3)
            assert row["grad_norm"] == pytest.approx(as_whole["grad_norm"], rel=1e-2)


def test_another_seed_gives_other_weights(uninterrupted):
    one, other = (load_model(uninterrupted(**seed) / "final.pt") for seed in ({}, {"seed": 1}))
    assert not torch.equal(one.tok_emb.weight, other.tok_emb.weight)


def test_skipped_updates_are_counted_and_do_not_advance_the_step(run, tmp_path, train_config, monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**30))
    first = next(iter(run(tmp_path, torch.float16, log_every=1)))
    assert first["step"] == 1 and first["skipped_updates"] > 0
    assert load_checkpoint(tmp_path / "last.pt")["skipped_updates"] == first["skipped_updates"]
    rows = list(run(tmp_path, torch.float16, log_every=1))
    assert [row["step"] for row in rows] == list(range(2, 13))
    assert all(row["skipped_updates"] >= first["skipped_updates"] for row in rows)
    assert all(row["lr"] == lr_at(row["step"] - 1, train_config) for row in rows)


# --- a run that diverges

NEVER = {"log_every": 100, "eval_every": 100, "save_every": 100, "keep_every": 100, "total_steps": 30}


def test_a_loss_that_is_not_finite_ends_the_run_and_does_not_change_last_pt(run, tmp_path, monkeypatch):
    for row in run(tmp_path, log_every=1):
        if row["step"] == 6:
            break
    before = contents(tmp_path)
    monkeypatch.setattr(trainer, "lr_at", lambda *_: 1e36)
    with pytest.raises(
        FloatingPointError,
        match=r"at step \d+ the loss is .* nan \(at step \d+ the loss was \d.*last\.pt is left as it was",
    ):
        list(run(tmp_path, log_every=1))
    after = contents(tmp_path)
    assert after["last.pt"] == before["last.pt"]
    assert "final.pt" not in after
    assert all(math.isfinite(row["train_loss"]) for row in read_log(tmp_path / "loss.jsonl"))


def test_a_diverged_model_is_never_saved_as_a_step_checkpoint(run, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "lr_at", lambda *_: 1e36)
    with pytest.raises(FloatingPointError):
        list(run(tmp_path, **NEVER | {"keep_every": 4}))
    for path in tmp_path.glob("*.pt"):
        assert torch.isfinite(load_model(path).tok_emb.weight).all(), f"{path.name} contains a diverged model"


def test_a_diverged_run_is_not_saved_when_it_is_stopped(run, tmp_path, monkeypatch):
    for row in run(tmp_path, log_every=1):
        if row["step"] == 6:
            break
    before = contents(tmp_path)
    monkeypatch.setattr(trainer, "lr_at", lambda *_: 1e36)
    asked = itertools.count(1)
    with pytest.raises(FloatingPointError):
        list(run(tmp_path, should_stop=lambda: next(asked) == 5, **NEVER))
    assert contents(tmp_path)["last.pt"] == before["last.pt"]


# --- evaluation


def test_evaluation_is_the_mean_loss_of_the_same_windows_at_every_call(data_dir, model_config):
    torch.manual_seed(0)
    model = GPTMini(model_config)
    loader = BinLoader(data_dir / "val.bin", 4, 16, sampling="shuffle")
    by_hand = [model(*loader.batch(step))[1].item() for step in range(3)]
    assert evaluate(model, loader, 3) == pytest.approx(sum(by_hand) / 3)
    assert evaluate(model, loader, 3) == evaluate(model, loader, 3)
    assert evaluate(model, loader, 3, torch.bfloat16) == pytest.approx(sum(by_hand) / 3, abs=0.02)
    assert evaluate(model, loader, 3, torch.bfloat16) != evaluate(model, loader, 3)


def test_evaluation_does_not_change_training(uninterrupted, data_dir, model_config):
    with_few, with_many = uninterrupted(), uninterrupted(eval_every=1, eval_batches=5)
    assert same(load_checkpoint(with_few / "last.pt")["model"], load_checkpoint(with_many / "last.pt")["model"])
    model = GPTMini(model_config)
    random_before = torch.get_rng_state()
    evaluate(model, BinLoader(data_dir / "val.bin", 4, 16), 2)
    assert model.training and torch.equal(torch.get_rng_state(), random_before)
    assert all(p.grad is None for p in model.parameters()) and torch.is_grad_enabled()


def test_a_validation_file_smaller_than_one_batch_can_be_evaluated(run, tmp_path):
    rows = list(run(tmp_path, batch_size=64, total_steps=3))
    assert rows[-1]["val_loss"] > 0


# --- refused before the first step


def remove_val(folder):
    (folder / "val.bin").unlink()


def remove_sidecars(folder):
    for path in folder.glob("*.json"):
        if path.name != "tokenizer.json":
            path.unlink()


def put_another_tokenizer(folder):
    save_tokenizer(train_tokenizer(["something else entirely, " * 9], 270), folder / "tokenizer.json")


def remove_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "model_changes", "train_changes", "error", "sentence"),
    [
        (None, {}, {"seq_len": 17}, ValueError, r"seq_len is 17, but the model's max_len is 16"),
        (
            None,
            {"vocab_size": 290},
            {},
            ValueError,
            r"train\.bin was written with a vocabulary of 300 .* the model has 290",
        ),
        (remove_sidecars, {"vocab_size": 290}, {}, ValueError, r"token id 29\d, but the model's vocab_size is 290"),
        (put_another_tokenizer, {}, {}, ValueError, r"train\.bin was written with another tokenizer"),
        (remove_tokenizer, {}, {}, FileNotFoundError, r"no tokenizer .*tokenizer\.json: run 02_tokenizer"),
        (remove_val, {}, {}, FileNotFoundError, r"no token file .*val\.bin: run 02_tokenizer"),
        (None, {}, {"batch_size": 0}, ValueError, "batch_size is 0"),
    ],
)
def test_settings_and_data_that_do_not_fit_are_refused_before_anything_is_written(
    data_dir, model_config, train_config, tmp_path, spoil, model_changes, train_changes, error, sentence
):
    data = tmp_path / "data"
    shutil.copytree(data_dir, data)
    if spoil:
        spoil(data)
    with pytest.raises(error, match=sentence):
        next(
            train(
                tmp_path / "run", data, replace(model_config, **model_changes), replace(train_config, **train_changes)
            )
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"n_layer": 1}, "n_layer 2 there, 1 here"),
        ({"max_len": 32, "n_head": 1}, "n_head 2 there, 1 here; max_len 16"),
        ({"tie_embeddings": False}, "tie_embeddings True there, False here"),
    ],
)
def test_resuming_with_another_model_is_refused(
    uninterrupted, data_dir, model_config, train_config, tmp_path, changes, found
):
    shutil.copytree(uninterrupted(), tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"belongs to another run \({found}.*use another run name, or .*--fresh"):
        train(tmp_path, data_dir, replace(model_config, **changes), replace(train_config, total_steps=20))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"sampling": "shuffle"}, "sampling random there, shuffle here"),
        ({"weight_decay": 0.0, "beta2": 0.99}, "weight_decay 0.1 there, 0.0 here; beta2 0.95 there, 0.99 here"),
    ],
    ids=str,
)
def test_resuming_with_another_seed_or_config_is_refused(run, uninterrupted, tmp_path, changes, found):
    shutil.copytree(uninterrupted(), tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"another run \({found}\)"):
        run(tmp_path, total_steps=20, **changes)
    assert contents(tmp_path) == before


ALLOWED = {
    "grad_accum_steps": 2,
    "total_steps": 24,
    "log_every": 1,
    "eval_every": 4,
    "eval_batches": 1,
    "save_every": 2,
}
ALLOWED |= {"save_minutes": 9.0, "keep_every": 3}


def test_the_list_of_allowed_changes_is_complete(train_config):
    assert set(ALLOWED) == RESUMABLE_CHANGES


def test_cadence_length_and_micro_batches_may_change_on_resume(run, tmp_path):
    for row in run(tmp_path):
        if row["step"] == 6:
            break
    rows = list(run(tmp_path, **ALLOWED))
    assert rows[0]["resumed_from"] == 6 and rows[-1]["step"] == ALLOWED["total_steps"]


@pytest.mark.filterwarnings("ignore:.*not valid JSON, skipped")
def test_a_new_eval_every_does_not_evaluate_an_earlier_row(run, tmp_path):
    asked = itertools.count(1)
    list(run(tmp_path, eval_every=12, should_stop=lambda: next(asked) == 10))
    log = tmp_path / "loss.jsonl"
    log.write_bytes(log.read_bytes()[:-9])  # the row of step 9, kept in last.pt of step 10
    rows = list(run(tmp_path, eval_every=3))
    assert [(row["step"], "val_loss" in row) for row in rows] == [(9, False), (12, True)]


def test_with_more_micro_batches_and_threads_a_resumed_run_stays_close_to_the_original(run, uninterrupted, tmp_path):
    for row in run(tmp_path, grad_accum_steps=1):
        if row["step"] == 6:
            break
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(run(tmp_path, grad_accum_steps=4))
    finally:
        torch.set_num_threads(threads)
    whole = load_model(uninterrupted() / "final.pt").state_dict()
    for name, weights in load_model(tmp_path / "final.pt").state_dict().items():
        torch.testing.assert_close(weights, whole[name], atol=2e-3, rtol=0)


def test_resuming_with_other_data_is_refused(uninterrupted, stories, data_dir, model_config, train_config, tmp_path):
    """Data that is made again must be equal byte for byte; the same tokenizer and number of stories are not enough."""
    shutil.copytree(data_dir, tmp_path / "data")
    tokenizer = load_tokenizer(data_dir / "tokenizer.json")
    write_bin(tmp_path / "data" / "train.bin", [*stories[1:120], stories[0]], tokenizer)
    shutil.copytree(uninterrupted(), tmp_path / "run")
    with pytest.raises(ValueError, match=r"another run \(data \w{12} there, \w{12} here\)"):
        train(tmp_path / "run", tmp_path / "data", model_config, replace(train_config, total_steps=20))
    write_bin(tmp_path / "data" / "train.bin", stories[:120], tokenizer)
    assert list(train(tmp_path / "run", tmp_path / "data", model_config, replace(train_config, total_steps=20)))


def test_resuming_with_another_tokenizer_is_refused(
    uninterrupted, stories, data_dir, model_config, train_config, tmp_path
):
    # As large as before, but trained on other stories: only the SHA-256 differs.
    tokenizer = train_tokenizer([story[::-1] for story in stories], 300)
    assert tokenizer.get_vocab_size() == 300
    save_tokenizer(tokenizer, tmp_path / "data" / "tokenizer.json")
    for name in ("train.bin", "val.bin"):
        write_bin(tmp_path / "data" / name, stories, tokenizer)
    shutil.copytree(uninterrupted(), tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(
        ValueError, match=rf"another run \(tokenizer \w{{12}} there, {tokenizer_sha256(tokenizer)[:12]} here"
    ):
        next(train(tmp_path / "run", tmp_path / "data", model_config, replace(train_config, total_steps=20)))
    assert contents(tmp_path / "run") == before


# --- damaged logs


@pytest.mark.filterwarnings("ignore:.*not valid JSON, skipped")
def test_a_damaged_log_line_does_not_prevent_a_resume(run, uninterrupted, tmp_path):
    for row in run(tmp_path):
        if row["step"] == 6:
            break
    with open(tmp_path / "loss.jsonl", "a") as file:
        file.write('{"step": 9, "train_l')
    list(run(tmp_path))
    assert log_of(tmp_path) == log_of(uninterrupted())


@pytest.mark.filterwarnings("ignore:.*not valid JSON, skipped")
@pytest.mark.parametrize("stop", [6, 7])
def test_a_last_row_damaged_after_its_step_was_saved_is_written_again(run, uninterrupted, tmp_path, stop):
    for row in run(tmp_path, log_every=1):
        if row["step"] == stop:
            break
    log = tmp_path / "loss.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    list(run(tmp_path, log_every=1))
    assert log_of(tmp_path) == log_of(uninterrupted(log_every=1))


def test_log_rows_of_lost_steps_are_replaced(run, uninterrupted, tmp_path):
    for row in run(tmp_path):
        if row["step"] == 6:
            break
    append_row(tmp_path / "loss.jsonl", {"step": 9, "train_loss": -1.0})  # as if killed before step 9 was saved
    list(run(tmp_path))
    assert not differences(tmp_path, uninterrupted())


@pytest.mark.parametrize("stop", [1, 6, 9])
def test_a_resumed_run_with_muon_and_growing_sequences_equals_an_uninterrupted_one(run, uninterrupted, tmp_path, stop):
    changes = {"optimizer": "muon", "seq_len_start": 4, "log_every": 1}
    for row in run(tmp_path, **changes):
        assert row["tokens"] == row["step"] * 64
        if row["step"] == stop:
            break
    list(run(tmp_path, **changes))
    assert not differences(tmp_path, uninterrupted(**changes))


# --- checkpoints written in the background, as on a GPU


@pytest.fixture
def background(monkeypatch):
    def writer(run_dir, step, background, after_save):
        assert background is False, "on a CPU, the loop writes checkpoints itself"
        return CheckpointWriter(run_dir, step, True, after_save)

    monkeypatch.setattr(trainer, "CheckpointWriter", writer)


def delay_saves(monkeypatch, may_continue):
    """Make each save of last.pt wait until `may_continue` is set."""

    def write(path, content):
        if path.name == "last.pt":
            assert may_continue.wait(30)
        save_checkpoint(path, content)

    monkeypatch.setattr(checkpoint, "save_checkpoint", write)


def test_a_run_saved_in_the_background_is_the_same(background, run, uninterrupted, tmp_path):
    for row in run(tmp_path):
        if row["step"] == 9:
            break
    list(run(tmp_path))
    assert not differences(tmp_path, uninterrupted())


def test_leaving_the_loop_waits_for_saves_in_the_background(background, run, tmp_path, monkeypatch):
    may_continue = threading.Event()
    delay_saves(monkeypatch, may_continue)
    for row in run(tmp_path, log_every=1, save_every=8, eval_every=12, keep_every=99):
        if row["step"] == 11:  # three steps were trained while the save of step 8 waited
            assert not (tmp_path / "last.pt").exists()
            may_continue.set()
            break
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 11


def test_a_checkpoint_saved_in_the_background_contains_nothing_from_later_steps(
    background, run, uninterrupted, tmp_path, monkeypatch
):
    may_continue = threading.Event()
    delay_saves(monkeypatch, may_continue)
    rows = run(tmp_path, log_every=1, save_every=8, eval_every=12, keep_every=99)
    for row in rows:
        if row["step"] == 11:
            break
    may_continue.set()
    deadline = time.monotonic() + 30
    while not (tmp_path / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    shutil.copy(tmp_path / "last.pt", tmp_path / "of_step_8.pt")
    rows.close()
    settled = tmp_path / "settled"
    settled.mkdir()
    shutil.copy(tmp_path / "of_step_8.pt", settled / "last.pt")
    assert load_checkpoint(settled / "last.pt")["step"] == 8
    list(run(settled, log_every=1, save_every=8, eval_every=12, keep_every=99))
    finished = uninterrupted(log_every=1, save_every=8, eval_every=12, keep_every=99)
    assert same(load_checkpoint(settled / "last.pt")["model"], load_checkpoint(finished / "last.pt")["model"])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("of another kind")])
def test_a_failing_save_in_the_background_warns_and_training_continues(
    background, run, uninterrupted, tmp_path, monkeypatch, error
):
    with pytest.warns(UserWarning, match=r"saving .*last\.pt failed .*(No space left|of another kind)"):
        for row in run(tmp_path, log_every=1):
            if row["step"] == 5:
                refuse_to_write(monkeypatch, "*.pt", error)
            if row["step"] == 9:
                monkeypatch.setattr(checkpoint, "save_checkpoint", save_checkpoint)
    assert not differences(tmp_path, uninterrupted(log_every=1))


# --- compiled models


def test_a_model_that_cannot_be_compiled_is_trained_as_it_is(run, uninterrupted, tmp_path, monkeypatch, capsys):
    def refuse(model, **_):
        def forward(*_):
            raise RuntimeError("no C++ compiler was found\nand more")

        return forward

    monkeypatch.setattr(device, "pays_to_compile", lambda device, flops: True)
    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.warns(UserWarning, match=r"could not be compiled \(no C\+\+ compiler was found\): training continues"):
        list(run(tmp_path))
    assert not differences(tmp_path, uninterrupted())


def test_compiling_is_not_a_step_and_not_counted_as_training_time(run, uninterrupted, tmp_path, monkeypatch, capsys):
    def slow_at_first(model, **_):
        def forward(x, y):
            if not called:
                called.append(time.sleep(1.0))
            return model(x, y)

        called = []
        return forward

    monkeypatch.setattr(device, "pays_to_compile", lambda device, flops: True)
    monkeypatch.setattr(torch, "compile", slow_at_first)
    rows = list(run(tmp_path))
    assert rows[-1]["seconds"] < 1.0, "compile time was counted as training time"
    assert re.search(r"compiling the model.*\ncompiled in 1 s", capsys.readouterr().out)
    assert not differences(tmp_path, uninterrupted())


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_resumed_compiled_run_equals_an_uninterrupted_one(
    data_dir, model_config, train_config, tmp_path, monkeypatch
):
    """They are equal bit for bit, and close to a run without compiling. PyTorch caches the model for later sessions."""

    def run(folder):
        return train(tmp_path / folder, data_dir, replace(model_config, n_layer=1), train_config, "cpu", torch.float32)

    monkeypatch.setattr(device, "pays_to_compile", lambda device, flops: True)
    counters.clear()
    for row in run("stopped"):
        if row["step"] == 9:
            break
    list(run("stopped"))
    compiled = list(run("whole"))
    assert not differences(tmp_path / "stopped", tmp_path / "whole")
    assert counters["aot_autograd"]["total"] and not counters["aot_autograd"]["autograd_cache_bypass"]
    monkeypatch.undo()
    plain = list(run("plain"))
    for one, other in zip(compiled, plain, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-3)
