"""TensorBoard and W&B get the log: every value, each once, without a network or a login."""

import json
import shutil
import struct
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import wandb
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from tinystories_lab.analysis.evaluation import bits_per_byte, bytes_per_token, save_samples
from tinystories_lab.files import append_row, read_log
from tinystories_lab.integrations.trackers import to_tensorboard, to_wandb
from tinystories_lab.run import load_config, save_config

EACH = pytest.mark.parametrize(("to_tracker", "package"), [(to_tensorboard, "tensorboard"), (to_wandb, "wandb")])


@pytest.fixture(scope="module", autouse=True)
def no_process_left():
    yield
    wandb.teardown()


@pytest.fixture
def run_dir(lab, uninterrupted, data_dir, tmp_path, monkeypatch):
    """A finished micro run with two samples; W&B finds no login, no home and no network."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    plan = lab(shutil.copytree(uninterrupted(log_every=1), tmp_path / "runs" / "a run"))
    save_config(replace(plan, data_dir=shutil.copytree(data_dir, tmp_path / "data" / "made up")))
    for when, story in (("before", "x x"), ("after", "“Zoë” sat.")):
        save_samples(plan.run_dir, when, [{"story": story, "prompt": "", "ended": True, "max_new_tokens": 5}])
    return plan.run_dir


def logged(run_dir, as_type=lambda value: value):
    """Return {name: [(step, value), ...]} from the log, without None, with bits per byte."""
    found = {}
    for row in read_log(run_dir / "loss.jsonl"):
        if "val_loss" in row:
            row["val_bits_per_byte"] = bits_per_byte(row["val_loss"], bytes_per_token(run_dir))
        for name, value in row.items():
            if name != "step" and value is not None:
                found.setdefault(name, []).append((row["step"], as_type(value)))
    return found


def cut_log(run_dir, rows):
    """Keep so many rows, and return the lines removed."""
    path = run_dir / "loss.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:rows]))
    return "".join(lines[rows:])


def continue_log(run_dir, lines):
    """Add lines, three steps once more, as a resumed run does, and a row with a value of None."""
    path = run_dir / "loss.jsonl"
    path.write_text(path.read_text() + lines)
    rows = read_log(path)
    again = [row | {"train_loss": row["train_loss"] + 1} for row in rows[6:9]]
    for row in [*again, rows[-1] | {"step": 13, "eta": None}]:
        append_row(path, row)


def read_tensorboard(folder):
    return EventAccumulator(str(folder), {"scalars": 0, "tensors": 0}).Reload()


def scalars(folder):
    events = read_tensorboard(folder)
    return {tag: [(e.step, np.float32(e.value)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_wandb(folder):
    """Return the records of a W&B run: seven bytes, then parts with a checksum, a length and a kind, none across a block of 32 kB.

    Its own process writes the last record, "exit", a moment after `to_wandb` has returned.
    """
    (path,) = folder.glob("*.wandb")
    records, until = [], time.monotonic() + 60
    while not (records and records[-1].HasField("exit")):
        assert time.monotonic() < until, "W&B has not finished its record"
        time.sleep(0.02)
        content, at, part, records = path.read_bytes(), 7, b"", []
        while at + 7 <= len(content):
            if 32_768 - at % 32_768 < 7:
                at += 32_768 - at % 32_768
            _, length, kind = struct.unpack("<IHB", content[at : at + 7].ljust(7, b"\0"))
            part += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4) and at <= len(content):  # whole, or the last part
                records.append(Record.FromString(part))
                part = b""
    return records


def series(records):
    """Return {name: [(step, value), ...]} from W&B's records."""
    found = {}
    for record in records:
        values = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for name, value in values.items():
            if not name.startswith("_"):
                found.setdefault(name, []).append((values["_step"], value))
    return found


def test_tensorboard_holds_log_config_and_stories_exactly_at_the_times_of_training(run_dir):
    folder, expected = to_tensorboard(run_dir), logged(run_dir)
    assert folder == run_dir / "tensorboard" and scalars(folder) == logged(run_dir, np.float32)
    assert len(expected["train_loss"]) == 12 and len(expected["val_bits_per_byte"]) == 2
    assert {"lr", "grad_norm", "tokens_per_second"} <= expected.keys()
    events = read_tensorboard(folder)
    times = [point.wall_time for point in events.Scalars("lr")]
    assert np.diff(times) == pytest.approx(np.diff([seconds for _, seconds in expected["seconds"]]), abs=1e-3)
    config, before, after = (
        [event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"{tag}/text_summary")]
        for tag in ("config", "stories from before training", "stories from after training")
    )
    assert yaml.safe_load(config[0].removeprefix("```yaml\n").removesuffix("```")) == load_config(run_dir)
    assert (before, after) == (["x x"], ["“Zoë” sat."])
    hyperparameters = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert all(name in hyperparameters for name in (b"peak_lr", b"d_model", b"stories.txt"))


def test_tensorboard_called_again_holds_each_step_once_with_its_last_values_and_keeps_other_files(run_dir):
    rest = cut_log(run_dir, 5)
    first = scalars(to_tensorboard(run_dir))
    assert first == logged(run_dir, np.float32) and len(first["lr"]) == 5
    (run_dir / "tensorboard" / "notes.txt").write_text("mine")
    assert scalars(to_tensorboard(run_dir)) == first
    continue_log(run_dir, rest)
    assert scalars(to_tensorboard(run_dir)) == logged(run_dir, np.float32)
    assert len(list((run_dir / "tensorboard").iterdir())) == 2
    assert (run_dir / "tensorboard" / "notes.txt").read_text() == "mine"


def test_wandb_offline_holds_log_config_and_stories_exactly(run_dir):
    folder = to_wandb(run_dir, project="of mine")
    records = read_wandb(folder)
    assert series(records) == logged(run_dir)
    assert folder.parent == run_dir / "wandb" and folder.name.startswith("offline-run-")
    (run,) = [record.run for record in records if record.HasField("run")]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (run.project, run.display_name) == ("of mine", "a run")
    assert {key: config[key] for key in load_config(run_dir)} == load_config(run_dir)
    (table,) = folder.glob("files/media/table/stories*.json")
    assert json.loads(table.read_text())["data"] == [["before", "x x"], ["after", "“Zoë” sat."]]
    assert any(item.key == "stories" for record in records for item in record.summary.update)


def test_wandb_called_again_replaces_the_record_and_a_run_started_anew_gets_another(run_dir):
    rest = cut_log(run_dir, 5)
    first = to_wandb(run_dir)
    assert len(series(read_wandb(first))["lr"]) == 5
    continue_log(run_dir, rest)
    second = to_wandb(run_dir)
    assert series(read_wandb(second)) == logged(run_dir)
    assert list((run_dir / "wandb").glob("offline-run-*")) == [second]
    assert first.name.split("-")[-1] == second.name.split("-")[-1], "one run, one id"
    (run_dir / "config.yaml").write_text((run_dir / "config.yaml").read_text().replace("started: '20", "started: '19"))
    third = to_wandb(run_dir)
    assert second.exists() and second.name.split("-")[-1] != third.name.split("-")[-1]


def test_wandb_online_gets_only_the_steps_that_it_does_not_have(run_dir, monkeypatch):
    sent, asked = [], []

    @contextmanager
    def init(**settings):
        asked.append(settings)
        log = lambda values, step: sent.append(step)  # noqa: E731
        yield SimpleNamespace(step=8, dir=str(run_dir / "wandb" / "run-1" / "files"), log=log, summary={})

    monkeypatch.setattr("wandb.init", init)
    to_wandb(run_dir, online=True)
    assert sent == [8, 9, 10, 11, 12]
    assert asked[0]["mode"] == "online" and asked[0]["resume"] == "allow"


@EACH
def test_a_missing_package_is_asked_for_in_a_sentence(to_tracker, package, run_dir, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package or "torch.utils.tensorboard" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=f"^{package} is not installed: `pip install {package}`, then"):
        to_tracker(run_dir)
    assert not (run_dir / package).exists()


@EACH
def test_a_run_without_rows_or_without_a_config_says_what_makes_them(to_tracker, package, run_dir, tmp_path):
    cut_log(run_dir, 0)
    with pytest.raises(FileNotFoundError, match=r"loss\.jsonl has no rows yet: run 03_train"):
        to_tracker(run_dir)
    with pytest.raises(FileNotFoundError, match=r"there is no .*config\.yaml: run 03_train"):
        to_tracker(tmp_path)
