"""Steps: a run may stop anywhere, in any way, and ends as if it never had."""

import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import tinystories_lab
from tinystories_lab import step, trainer
from tinystories_lab.checkpoint import load_checkpoint, load_model
from tinystories_lab.device import choose_device, choose_dtype
from tinystories_lab.loader import BinLoader
from tinystories_lab.model import GPTMini
from tinystories_lab.recipe import lr_at
from tinystories_lab.runlog import append_row, read_log, read_rows
from tinystories_lab.state import TrainState
from tinystories_lab.step import take_step
from tinystories_lab.tokenizer import save_tokenizer, tokenizer_sha256, train_tokenizer, write_bin
from tinystories_lab.trainer import evaluate, train

TIMING = {"tokens_per_second", "seconds", "eta_seconds"}
ROW_KEYS = {"step", "train_loss", "lr", "grad_norm", "tokens", "skipped_updates", "loss_scale"} | TIMING
PACKAGE_HOME = str(Path(tinystories_lab.__file__).parents[1])


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def untimed(rows):
    return [{key: value for key, value in row.items() if key not in TIMING | {"resumed_from"}} for row in rows]


def assert_same_run(one, other):
    """Bit for bit: weights, optimizer, scaler and log, in last.pt and final.pt; only the clock may differ."""
    assert untimed(read_log(one / "loss.jsonl")) == untimed(read_log(other / "loss.jsonl"))
    one_last, other_last = load_checkpoint(one / "last.pt"), load_checkpoint(other / "last.pt")
    for key in ("step", "model", "optimizer", "scaler", "skipped_updates", "tokenizer_sha256", "data_sha256"):
        assert same(one_last[key], other_last[key]), key
    assert same(load_checkpoint(one / "final.pt", {"model"}), load_checkpoint(other / "final.pt", {"model"}))


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def run(data_dir, model_config, train_config):
    """`run(folder, log_every=1)` gives the iterator of a micro run with such changes to its choices."""

    def start(run_dir, dtype=None, **changes):
        return train(run_dir, data_dir, model_config, replace(train_config, **changes), "cpu", dtype)

    return start


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
    """A finished micro run with a row at every `log_every` steps; made once, so leave it as it is."""
    made = {}

    def finished(**changes):
        key = str(changes)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("uninterrupted")
            list(run(made[key], **changes))
        return made[key]

    return finished


class StoppedError(Exception):
    pass


def stop_inside(monkeypatch, stop, how):
    """From now on `how()` is called in the middle of a session's step (from 1), after the weights have moved."""
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


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


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
    assert_same_run(tmp_path, uninterrupted(log_every=1))


@pytest.mark.parametrize("stop", [1, 3, 6, 9, 12])
def test_an_exception_in_the_callers_loop_loses_nothing(run, uninterrupted, tmp_path, stop):
    with pytest.raises(StoppedError):
        for row in run(tmp_path):
            if row["step"] == stop:
                raise StoppedError
    assert load_checkpoint(tmp_path / "last.pt")["step"] == stop
    spoil_other_random_states()
    list(run(tmp_path))
    assert_same_run(tmp_path, uninterrupted())


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 6, 8, 11, 12])
def test_an_exception_inside_a_step_goes_back_to_the_last_save(run, uninterrupted, tmp_path, monkeypatch, stop):
    stop_inside(monkeypatch, stop, throw)
    with pytest.raises(StoppedError):
        list(run(tmp_path))
    monkeypatch.undo()
    saved = max(step for step in (0, 4, 6, 8) if step < stop)  # save_every and eval_every; half a step is never saved
    assert (tmp_path / "last.pt").exists() == (saved > 0)
    assert not saved or load_checkpoint(tmp_path / "last.pt")["step"] == saved
    spoil_other_random_states()
    list(run(tmp_path))
    assert_same_run(tmp_path, uninterrupted())


@pytest.mark.parametrize("stop", range(1, 13))
def test_ctrl_c_inside_a_step_ends_that_step_whole(run, uninterrupted, tmp_path, monkeypatch, stop):
    stop_inside(monkeypatch, stop, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        list(run(tmp_path))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "last.pt")["step"] == stop
    list(run(tmp_path))
    assert_same_run(tmp_path, uninterrupted())


def test_a_second_ctrl_c_inside_a_step_leaves_the_last_save(run, uninterrupted, tmp_path, monkeypatch):
    stop_inside(monkeypatch, 7, lambda: (press_ctrl_c(), press_ctrl_c()))
    with pytest.raises(KeyboardInterrupt):
        list(run(tmp_path))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 6
    list(run(tmp_path))
    assert_same_run(tmp_path, uninterrupted())


def test_a_run_stopped_again_and_again_equals_uninterrupted_run(run, uninterrupted, tmp_path):
    sessions = 0
    while not (tmp_path / "final.pt").exists():
        for _ in zip(range(2), run(tmp_path, log_every=1), strict=False):
            spoil_other_random_states()
        sessions += 1
    assert sessions > 5
    assert_same_run(tmp_path, uninterrupted(log_every=1))


def test_micro_batches_and_shuffled_windows_resume_too(run, uninterrupted, tmp_path):
    changes = {"log_every": 1, "micro_batches": 2, "sampling": "shuffle"}
    for row in run(tmp_path, **changes):
        if row["step"] == 7:
            break
    list(run(tmp_path, **changes))
    assert_same_run(tmp_path, uninterrupted(**changes))


def test_a_float16_run_resumes_with_its_loss_scale(run, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, growth_interval=2))
    for row in run(tmp_path, torch.float16, log_every=1):
        if row["step"] == 7:
            break
    list(run(tmp_path, torch.float16, log_every=1))
    assert_same_run(tmp_path, uninterrupted(dtype=torch.float16, log_every=1))
    assert load_checkpoint(tmp_path / "last.pt")["scaler"]["scale"] > 2**16


SCRIPT = """
import json, sys
from tinystories_lab.model import GPTConfig
from tinystories_lab.recipe import TrainConfig
from tinystories_lab.trainer import train

run_dir, data_dir, model_config, train_config = sys.argv[1:]
for row in train(run_dir, data_dir, GPTConfig(**json.loads(model_config)), TrainConfig(**json.loads(train_config)), "cpu"):
    print(row["step"], flush=True)
"""


def test_a_process_stopped_by_ctrl_c_resumes_as_uninterrupted(data_dir, model_config, train_config, tmp_path):
    config = replace(train_config, total_steps=100, log_every=1, eval_every=50, save_every=60, keep_every=70)
    arguments = [tmp_path / "stopped", data_dir, json.dumps(asdict(model_config)), json.dumps(asdict(config))]
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": PACKAGE_HOME, "OMP_NUM_THREADS": "1"},  # sums go by thread, so as many as here
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if line == "5\n":
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130) and errors.rstrip().endswith("KeyboardInterrupt")
    reached = load_checkpoint(tmp_path / "stopped" / "last.pt")["step"]
    written = read_log(tmp_path / "stopped" / "loss.jsonl")[-1]["step"]
    assert 5 <= reached < 100 and written in (reached - 1, reached)
    spoil_other_random_states()
    rows = list(train(tmp_path / "stopped", data_dir, model_config, config, "cpu"))
    assert rows[0]["step"] == written + 1, "a row that was not yet written comes first"
    list(train(tmp_path / "whole", data_dir, model_config, config, "cpu"))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_resuming_restores_torchs_random_state(run, tmp_path):
    torch.manual_seed(5)
    saved = torch.get_rng_state()
    next(iter(run(tmp_path)))  # closed at once
    torch.manual_seed(6)
    next(iter(run(tmp_path)))
    assert torch.equal(torch.get_rng_state(), saved)


def test_a_damaged_last_pt_costs_the_steps_since_the_newest_kept_one(run, uninterrupted, tmp_path):
    for row in run(tmp_path, log_every=1):
        if row["step"] == 11:
            break
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:-1_000])
    with pytest.warns(UserWarning, match=r"skipped: .*last\.pt is damaged"):
        rows = list(run(tmp_path, log_every=1))
    assert [row["step"] for row in rows] == [11, 12]
    assert_same_run(tmp_path, uninterrupted(log_every=1))


# --- what a run leaves behind


def test_rows_come_when_due_with_all_their_keys(uninterrupted, train_config):
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


def test_an_evaluation_off_the_log_boundary_has_a_row(run, tmp_path):
    rows = list(run(tmp_path, log_every=5, eval_every=4))
    assert [(row["step"], "val_loss" in row) for row in rows] == [
        *((1, False), (4, True), (5, False), (8, True), (10, False), (12, True))
    ]


def test_the_first_rows_loss_is_that_of_knowing_nothing(uninterrupted):
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


def test_the_time_left_is_that_of_the_steps_left(run, tmp_path, monkeypatch):
    ticks = itertools.count(step=0.5)
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: next(ticks))
    for row in run(tmp_path, log_every=1):
        steps_a_second = row["tokens_per_second"] / 64
        assert row["eta_seconds"] == pytest.approx((12 - row["step"]) / steps_a_second, rel=0.02)


def test_a_finished_run_leaves_its_files(uninterrupted, data_dir):
    folder = uninterrupted()
    assert {path.name for path in folder.iterdir()} == {
        *("final.pt", "last.pt", "loss.jsonl", "step_00005.pt", "step_00010.pt", "tokenizer.json")
    }
    assert (folder / "tokenizer.json").read_bytes() == (data_dir / "tokenizer.json").read_bytes()
    model, last = load_model(folder / "final.pt"), load_checkpoint(folder / "last.pt")
    assert same(dict(model.state_dict()), dict(last["model"])) and last["step"] == 12
    assert "optimizer" not in load_checkpoint(folder / "final.pt", {"model"})
    assert load_checkpoint(folder / "step_00005.pt")["step"] == 5


def test_only_the_newest_two_kept_steps_stay(run, tmp_path):
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
    assert_same_run(tmp_path, uninterrupted())


@pytest.mark.parametrize("stop", [None, 15, 18, 20])
def test_more_total_steps_go_on_and_end_in_a_new_final_pt(run, uninterrupted, tmp_path, stop):
    shutil.copytree(uninterrupted(), tmp_path, dirs_exist_ok=True)
    for row in run(tmp_path, total_steps=20):
        assert row["step"] > 12
        if row["step"] == stop:
            break  # at 20 the learner has seen the last row and leaves the loop
    list(run(tmp_path, total_steps=20))
    final = load_checkpoint(tmp_path / "final.pt", {"step", "model"})
    assert final["step"] == 20 and same(final["model"], load_checkpoint(tmp_path / "last.pt")["model"])


def test_fewer_total_steps_than_were_run_leave_the_run_alone(run, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted(), tmp_path, dirs_exist_ok=True)
    assert list(run(tmp_path, total_steps=6)) == []
    assert_same_run(tmp_path, uninterrupted())


def test_micro_batches_change_memory_not_the_result(uninterrupted):
    whole = load_model(uninterrupted() / "final.pt").state_dict()
    for micro_batches in (2, 4):
        folder = uninterrupted(micro_batches=micro_batches)
        for name, weights in load_model(folder / "final.pt").state_dict().items():
            torch.testing.assert_close(weights, whole[name], atol=2e-3, rtol=0)
        for row, as_whole in zip(
            read_log(folder / "loss.jsonl"), read_log(uninterrupted() / "loss.jsonl"), strict=True
        ):
            assert row["train_loss"] == pytest.approx(as_whole["train_loss"], abs=1e-3)
            assert row["grad_norm"] == pytest.approx(as_whole["grad_norm"], rel=1e-2)


def test_another_seed_is_another_run(uninterrupted):
    one, other = (load_model(uninterrupted(**seed) / "final.pt") for seed in ({}, {"seed": 1}))
    assert not torch.equal(one.tok_emb.weight, other.tok_emb.weight)


# --- one step


def a_step(model_config, train_config, dtype=torch.float32, **changes):
    state = TrainState.new(model_config, replace(train_config, **changes), "", "", torch.device("cpu"), dtype)
    ids = torch.randint(300, (4, 17), generator=torch.Generator().manual_seed(0))
    return state, (ids[:, :-1], ids[:, 1:])


def test_a_step_is_one_clipped_adamw_update(model_config, train_config):
    state, (x, y) = a_step(model_config, train_config, clip_norm=0.01)
    expected = GPTMini(model_config)
    expected.load_state_dict(state.model.state_dict())
    _, loss = expected(x, y)
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in expected.parameters()))
    assert norm > 0.01, "else nothing would be clipped"
    rate = lr_at(0, state.config)
    with torch.no_grad():
        for p in expected.parameters():
            gradient = p.grad * 0.01 / (norm + 1e-6)
            decay = 0.1 if p.ndim == 2 and p is not expected.tok_emb.weight else 0.0
            # after one step both of Adam's means are the gradient and its square, once corrected
            p -= rate * (gradient / (gradient.abs() + 1e-8) + decay * p)
    mean_loss, grad_norm = take_step(state, (x, y), torch.float32)
    assert (mean_loss.item(), grad_norm.item()) == pytest.approx((loss.item(), norm.item()))
    assert (state.step, state.skipped_updates) == (1, 0)
    for (name, moved), p in zip(state.model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(moved, p, atol=1e-6, rtol=0, msg=name)
    assert all(p.grad is None for p in state.model.parameters()), "gradients are cleared for the next step"


def test_weights_stay_float32_in_every_precision(model_config, train_config):
    moved = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        state, batch = a_step(model_config, train_config, dtype)
        loss, *_ = take_step(state, batch, dtype)
        assert {p.dtype for p in state.model.parameters()} == {torch.float32}
        assert state.scaler.is_enabled() == (dtype is torch.float16)
        moved.append(loss.item())
    assert moved[0] == pytest.approx(moved[1], abs=0.02) == pytest.approx(moved[2], abs=0.02)
    assert moved[0] != moved[1], "bfloat16 was not used"


def test_an_overflow_is_retried_at_a_lower_scale_with_the_same_step(model_config, train_config):
    state, batch = a_step(model_config, train_config, torch.float16)
    state.step = 1
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    reference, _ = a_step(model_config, train_config, torch.float16)
    reference.step = 1
    loss, norm = take_step(state, batch, torch.float16)
    skipped = state.skipped_updates
    assert skipped > 0 and state.scaler.get_scale() == 2.0 ** (30 - skipped)
    assert state.optimizer.param_groups[0]["lr"] == lr_at(1, state.config)
    assert state.step == 2, "a step that was tried twice is one"
    reference_loss, reference_norm = take_step(reference, batch, torch.float16)
    assert reference.skipped_updates == 0
    assert loss.item() == pytest.approx(reference_loss.item(), abs=1e-3)
    assert norm.item() == pytest.approx(reference_norm.item(), rel=0.02)
    for moved, expected in zip(state.model.parameters(), reference.model.parameters(), strict=True):
        assert (moved - expected).abs().mean() < 0.1 * lr_at(1, state.config), "as one update, not none or two"
    assert all(entry["step"] == 1 for entry in state.optimizer.state.values()), "Adam counted a skipped update"


def test_gradients_that_overflow_at_every_scale_are_an_error(model_config, train_config):
    state, batch = a_step(model_config, train_config, torch.float16)
    with torch.no_grad():
        state.model.norm.weight.fill_(torch.inf)
    before = state.model.tok_emb.weight.clone()
    with pytest.raises(FloatingPointError, match="step 1: the gradients overflow float16 at every loss scale"):
        take_step(state, batch, torch.float16)
    assert torch.equal(state.model.tok_emb.weight, before)


def test_skipped_updates_are_counted_and_cost_neither_step_nor_learning_rate(run, tmp_path, train_config, monkeypatch):
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


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_last_pt(run, tmp_path, monkeypatch):
    for row in run(tmp_path, log_every=1):
        if row["step"] == 6:
            break
    before = contents(tmp_path)
    monkeypatch.setattr(step, "lr_at", lambda *_: 1e36)
    with pytest.raises(
        FloatingPointError, match=r"at step \d+ the loss is .* nan \(at step \d+ it was \d.*last\.pt is left as it was"
    ):
        list(run(tmp_path, log_every=1))
    after = contents(tmp_path)
    assert after["last.pt"] == before["last.pt"]
    assert "final.pt" not in after
    assert all(math.isfinite(row["train_loss"]) for row in read_log(tmp_path / "loss.jsonl"))


def test_a_diverged_model_is_never_kept_as_a_step(run, tmp_path):
    with pytest.raises(FloatingPointError):
        list(run(tmp_path, **NEVER | {"peak_lr": 1e36, "keep_every": 4}))
    for path in tmp_path.glob("*.pt"):
        assert torch.isfinite(load_model(path).tok_emb.weight).all(), f"{path.name} holds a diverged model"


def test_ctrl_c_in_a_diverged_run_does_not_save_it(run, tmp_path, monkeypatch):
    for row in run(tmp_path, log_every=1):
        if row["step"] == 6:
            break
    before = contents(tmp_path)
    stop_inside(monkeypatch, 5, press_ctrl_c)
    monkeypatch.setattr(step, "lr_at", lambda *_: 1e36)
    with pytest.raises(KeyboardInterrupt):
        list(run(tmp_path, **NEVER))
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


def test_evaluation_leaves_training_unchanged(uninterrupted, data_dir, model_config):
    with_few, with_many = uninterrupted(), uninterrupted(eval_every=1, eval_batches=5)
    assert same(load_checkpoint(with_few / "last.pt")["model"], load_checkpoint(with_many / "last.pt")["model"])
    model = GPTMini(model_config)
    random_before = torch.get_rng_state()
    evaluate(model, BinLoader(data_dir / "val.bin", 4, 16), 2)
    assert model.training and torch.equal(torch.get_rng_state(), random_before)
    assert all(p.grad is None for p in model.parameters()) and torch.is_grad_enabled()


def test_a_validation_file_of_less_than_one_batch_is_evaluated_all_the_same(run, tmp_path):
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
        (None, {"vocab_size": 290}, {}, ValueError, r"train\.bin was written with 300 .* the model has 290"),
        (remove_sidecars, {"vocab_size": 290}, {}, ValueError, r"token id 29\d, but the model's vocab_size is 290"),
        (put_another_tokenizer, {}, {}, ValueError, r"train\.bin was written with another tokenizer"),
        (remove_tokenizer, {}, {}, FileNotFoundError, r"no tokenizer .*tokenizer\.json: run 02_tokenizer"),
        (remove_val, {}, {}, FileNotFoundError, r"no token file .*val\.bin: run 02_tokenizer"),
        (None, {}, {"batch_size": 0}, ValueError, "batch_size is 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
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
    [({"n_layer": 1}, "n_layer 2 there, 1 now"), ({"max_len": 32, "n_head": 1}, "n_head 2 there, 1 now; max_len 16")],
)
def test_resuming_with_another_model_is_refused(
    uninterrupted, data_dir, model_config, train_config, tmp_path, changes, found
):
    shutil.copytree(uninterrupted(), tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"last\.pt is of another run \({found}.*take another run name"):
        next(train(tmp_path, data_dir, replace(model_config, **changes), replace(train_config, total_steps=20)))
    assert contents(tmp_path) == before


def test_resuming_with_another_tokenizer_is_refused(
    uninterrupted, stories, data_dir, model_config, train_config, tmp_path
):
    # As large as before, but learned from other stories: only the fingerprint tells them apart.
    tokenizer = train_tokenizer([story[::-1] for story in stories], 300)
    assert tokenizer.get_vocab_size() == 300
    save_tokenizer(tokenizer, tmp_path / "data" / "tokenizer.json")
    for name in ("train.bin", "val.bin"):
        write_bin(tmp_path / "data" / name, stories, tokenizer)
    shutil.copytree(uninterrupted(), tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(
        ValueError, match=rf"another run \(tokenizer \w{{12}} there, {tokenizer_sha256(tokenizer)[:12]} now"
    ):
        next(train(tmp_path / "run", tmp_path / "data", model_config, replace(train_config, total_steps=20)))
    assert contents(tmp_path / "run") == before


# --- the log survives


def test_a_torn_log_line_does_not_stop_a_resume(run, uninterrupted, tmp_path):
    for row in run(tmp_path):
        if row["step"] == 6:
            break
    with open(tmp_path / "loss.jsonl", "a") as file:
        file.write('{"step": 9, "train_l')
    list(run(tmp_path))
    with pytest.warns(UserWarning, match="torn, skipped"):
        log = untimed(read_log(tmp_path / "loss.jsonl"))
    assert log == untimed(read_log(uninterrupted() / "loss.jsonl"))


def test_rows_of_steps_that_were_lost_are_replaced(run, uninterrupted, tmp_path):
    for row in run(tmp_path):
        if row["step"] == 6:
            break
    append_row(tmp_path / "loss.jsonl", {"step": 9, "train_loss": -1.0})  # as if killed before step 9 was saved
    list(run(tmp_path))
    assert_same_run(tmp_path, uninterrupted())


# --- where and in which precision


def cuda(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)  # emulation counts, even on a T4
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Stand-in GPU")


@pytest.mark.parametrize(
    ("capability", "dtype", "why"),
    [
        ((7, 5), torch.float16, "float16 with loss scaling: compute capability 7.5 is below 8.0"),  # T4
        ((7, 0), torch.float16, "7.0"),  # V100
        ((8, 0), torch.bfloat16, "bfloat16: compute capability 8.0 has it in hardware"),  # A100
        ((8, 9), torch.bfloat16, "8.9"),  # L4
        ((10, 0), torch.bfloat16, "10.0"),  # B200
    ],
)
def test_bfloat16_is_chosen_by_compute_capability(monkeypatch, capability, dtype, why):
    cuda(monkeypatch, capability)
    chosen, sentence = choose_dtype(torch.device("cuda"))
    assert chosen is dtype and why in sentence


def test_apples_gpu_computes_in_bfloat16_where_that_works(monkeypatch):
    def on_a_stand_in(*shape, dtype, device):
        assert device == torch.device("mps")
        return torch.full(shape, 1.0, dtype=dtype)

    def refused(*shape, dtype, device):
        raise TypeError("BFloat16 is not supported on MPS")

    monkeypatch.setattr(torch, "ones", on_a_stand_in)
    assert choose_dtype(torch.device("mps")) == (torch.bfloat16, "bfloat16: as the chapter trains on Apple's GPU")
    monkeypatch.setattr(torch, "ones", refused)
    dtype, why = choose_dtype(torch.device("mps"))
    assert dtype is torch.float32 and "do not compute bfloat16" in why


def test_the_cpu_computes_in_float32():
    dtype, why = choose_dtype(torch.device("cpu"))
    assert dtype is torch.float32 and "measured" in why


def test_a_gpu_is_taken_before_apples_before_the_cpu(monkeypatch):
    mps = torch.backends.mps
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(mps, "is_available", lambda: False)
    device, why = choose_device()
    assert device.type == "cpu" and "no GPU was found" in why
    monkeypatch.setattr(mps, "is_available", lambda: True)
    assert choose_device()[0].type == "mps"
    cuda(monkeypatch, (8, 0))
    assert choose_device() == (torch.device("cuda"), "training on the GPU Stand-in GPU")
