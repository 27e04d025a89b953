"""What the trackers are handed is the log: every value, each once, and no network, no login."""

import json
import shutil
import struct
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import wandb
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from tinystories_lab.compare import bytes_per_token
from tinystories_lab.review import bits_per_byte, save_samples
from tinystories_lab.runlog import append_row, read_log
from tinystories_lab.trackers import to_tensorboard, to_wandb
from tinystories_lab.workspace import load_config, plan_workspace, save_config


@pytest.fixture
def run_dir(uninterrupted, data_dir, tmp_path, monkeypatch):
    """A finished micro run with two samples; W&B finds no login, no home and no network."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    lab = plan_workspace(tmp_path, "tiny", run="a run", data="made up")
    shutil.copytree(uninterrupted(log_every=1), lab.run_dir)
    shutil.copytree(data_dir, lab.data_dir)
    save_config(lab)
    save_samples(lab.run_dir, "before", [{"story": "x x"}])
    save_samples(lab.run_dir, "after", [{"story": "“Zoë” sat."}])
    return lab.run_dir


def wanted(run_dir):
    """{name: [(step, value), ...]} as the log has it, with bits a byte."""
    found = {}
    for row in read_log(run_dir / "loss.jsonl"):
        if "val_loss" in row:
            row["val_bits_per_byte"] = bits_per_byte(row["val_loss"], bytes_per_token(run_dir))
        for name, value in row.items():
            if name != "step" and value is not None:
                found.setdefault(name, []).append((row["step"], value))
    return found


def in_float32(series):
    return {name: [(step, np.float32(value)) for step, value in points] for name, points in series.items()}


def read_events(folder, watching=None):
    events = watching or EventAccumulator(str(folder), {"scalars": 0, "tensors": 0})
    return events.Reload()


def scalars(events):
    return {tag: [(e.step, np.float32(e.value)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def texts(events, tag):
    return [e.tensor_proto.string_val[0].decode() for e in events.Tensors(f"{tag}/text_summary")]


def cut_log(run_dir, rows):
    """Leave so many rows, and return the lines taken away."""
    path = run_dir / "loss.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:rows]))
    return "".join(lines[rows:])


def test_tensorboard_holds_the_log_exactly(run_dir):
    events = read_events(to_tensorboard(run_dir))
    found = wanted(run_dir)
    assert scalars(events) == in_float32(found)
    assert len(found["train_loss"]) == 12 and len(found["val_bits_per_byte"]) == 2
    assert {"lr", "grad_norm", "tokens_per_second"} <= found.keys()


def test_tensorboards_relative_time_is_the_time_of_training(run_dir):
    points = read_events(to_tensorboard(run_dir)).Scalars("lr")
    seconds = [row["seconds"] for row in read_log(run_dir / "loss.jsonl")]
    assert np.diff([point.wall_time for point in points]) == pytest.approx(np.diff(seconds), abs=1e-3)


def test_tensorboard_holds_the_configuration_and_the_stories(run_dir):
    config = load_config(run_dir)
    events = read_events(to_tensorboard(run_dir))
    (text,) = texts(events, "config")
    assert yaml.safe_load(text.removeprefix("```yaml\n").removesuffix("```")) == config
    assert texts(events, "stories from before training") == ["x x"]
    assert texts(events, "stories from after training") == ["“Zoë” sat."]
    choices = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"peak_lr" in choices and b"d_model" in choices and b"toyland" in choices


def test_tensorboard_asked_twice_or_of_a_longer_log_holds_each_point_once(run_dir):
    rest = cut_log(run_dir, 5)
    watching = read_events(to_tensorboard(run_dir))
    assert scalars(watching) == in_float32(wanted(run_dir)) and len(scalars(watching)["lr"]) == 5
    assert scalars(read_events(to_tensorboard(run_dir))) == scalars(watching)
    with open(run_dir / "loss.jsonl", "a") as file:
        file.write(rest)
    assert scalars(read_events(to_tensorboard(run_dir))) == in_float32(wanted(run_dir))
    assert len(list((run_dir / "tensorboard").iterdir())) == 1


def test_tensorboard_holds_the_last_row_of_a_step_that_was_run_again(run_dir):
    to_tensorboard(run_dir)
    for row in read_log(run_dir / "loss.jsonl")[6:9]:
        append_row(run_dir / "loss.jsonl", row | {"train_loss": row["train_loss"] + 1})
    assert scalars(read_events(to_tensorboard(run_dir))) == in_float32(wanted(run_dir))


def test_tensorboard_leaves_other_files_of_its_folder_alone(run_dir):
    (run_dir / "tensorboard").mkdir()
    (run_dir / "tensorboard" / "notes.txt").write_text("mine")
    to_tensorboard(run_dir)
    to_tensorboard(run_dir)
    assert (run_dir / "tensorboard" / "notes.txt").read_text() == "mine"


def read_wandb(folder):
    """The records of a W&B run: seven bytes, then parts with a checksum, a length and a kind, none across a block of 32 kB."""
    wandb.teardown()  # its process writes the last block a moment after a run is finished
    (path,) = folder.glob("*.wandb")
    content, at, part = path.read_bytes(), 7, b""
    records = []
    while at < len(content):
        if 32_768 - at % 32_768 < 7:
            at += 32_768 - at % 32_768
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(part))
            part = b""
    return records


def series(folder):
    """{name: [(step, value), ...]} as W&B's record has it."""
    found = {}
    for record in read_wandb(folder):
        values = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for name, value in values.items():
            if not name.startswith("_"):
                found.setdefault(name, []).append((values["_step"], value))
    return found


def test_wandb_offline_holds_the_log_exactly_and_asks_for_nothing(run_dir):
    folder = to_wandb(run_dir)
    assert series(folder) == wanted(run_dir)
    assert folder.parent == run_dir / "wandb" and folder.name.startswith("offline-run-")


def test_wandb_holds_the_configuration_and_the_stories(run_dir):
    folder = to_wandb(run_dir, project="of mine")
    records = read_wandb(folder)
    (run,) = [record.run for record in records if record.HasField("run")]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (run.project, run.display_name) == ("of mine", "a run")
    assert {key: config[key] for key in load_config(run_dir)} == load_config(run_dir)
    (table,) = folder.glob("files/media/table/stories*.json")
    assert json.loads(table.read_text())["data"] == [["before", "x x"], ["after", "“Zoë” sat."]]
    assert any(item.key == "stories" for record in records for item in record.summary.update)


def test_wandb_asked_again_holds_each_row_once_in_one_record_of_the_same_run(run_dir):
    rest = cut_log(run_dir, 5)
    first = to_wandb(run_dir)
    assert series(first) == wanted(run_dir) and len(series(first)["lr"]) == 5
    with open(run_dir / "loss.jsonl", "a") as file:
        file.write(rest)
    for row in read_log(run_dir / "loss.jsonl")[6:9]:
        append_row(run_dir / "loss.jsonl", row | {"train_loss": row["train_loss"] + 1})
    second = to_wandb(run_dir)
    assert series(second) == wanted(run_dir)
    assert list((run_dir / "wandb").glob("offline-run-*")) == [second]
    assert first.name.split("-")[-1] == second.name.split("-")[-1], "one run, one id"


def test_wandb_has_another_id_for_a_run_started_anew_and_keeps_the_others_record(run_dir):
    first = to_wandb(run_dir)
    (run_dir / "config.yaml").write_text((run_dir / "config.yaml").read_text().replace("started: '20", "started: '19"))
    second = to_wandb(run_dir)
    assert first.exists() and first.name.split("-")[-1] != second.name.split("-")[-1]


def test_wandb_online_is_sent_only_the_steps_it_has_not_seen(run_dir, monkeypatch):
    sent, asked = [], []

    @contextmanager
    def init(**how):
        asked.append(how)
        log = lambda values, step: sent.append(step)  # noqa: E731
        yield SimpleNamespace(step=8, dir=str(run_dir / "wandb" / "run-1" / "files"), log=log, summary={})

    monkeypatch.setattr("wandb.init", init)
    to_wandb(run_dir, online=True)
    assert sent == [8, 9, 10, 11, 12]
    assert asked[0]["mode"] == "online" and asked[0]["resume"] == "allow"


@pytest.mark.parametrize(("hand_over", "package"), [(to_tensorboard, "tensorboard"), (to_wandb, "wandb")])
class TestEach:
    def test_a_missing_package_is_asked_for_in_a_sentence(self, hand_over, package, run_dir, monkeypatch):
        for name in [
            name for name in sys.modules if name.split(".")[0] == package or "torch.utils.tensorboard" in name
        ]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ModuleNotFoundError, match=f"^{package} is not installed: `pip install {package}`, then"):
            hand_over(run_dir)
        assert not (run_dir / package).exists()

    def test_a_run_without_rows_says_what_makes_them(self, hand_over, package, run_dir):
        cut_log(run_dir, 0)
        with pytest.raises(FileNotFoundError, match=r"no rows in .*loss\.jsonl yet: run 03_train"):
            hand_over(run_dir)

    def test_a_folder_without_a_run_says_what_makes_one(self, hand_over, package, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no .*config\.yaml: run 03_train"):
            hand_over(Path(tmp_path))

    def test_a_value_that_is_not_there_is_no_point(self, hand_over, package, run_dir):
        last = read_log(run_dir / "loss.jsonl")[-1]
        append_row(run_dir / "loss.jsonl", last | {"step": 13, "mirrored_step": None})
        folder = hand_over(run_dir)
        found = scalars(read_events(folder)) if package == "tensorboard" else series(folder)
        assert "mirrored_step" not in found and found["lr"][-1][0] == 13
