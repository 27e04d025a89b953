"""One run by several processes: the same data, the same losses, one of them writing, and any number of them going on."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import micro
import pytest
import together
import torch
from tinystories_lab.presets import PRESETS
from tinystories_lab.ranks import from_first_rank, mean_over_ranks, my_rows, rank, ranks
from tinystories_lab.runlog import read_log, read_rows

from tinystories_lab import __main__ as command_line
from tinystories_lab import stages, trainer
from tinystories_lab.checkpoint import load_model

TOGETHER = str(Path(__file__).with_name("together.py"))
RUN = Path("runs", "stories-micro")


def start(folder, *arguments, processes, **environment):
    """Run the command line in `folder`, by so many processes; returns what the finished process says."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    path = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | environment
    command = [sys.executable, *launcher, TOGETHER, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def run_here(folder, *arguments):
    """The same command line in this process, alone."""
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "train", together.train)
        patch.setitem(PRESETS, "micro", together.PRESET)
        assert command_line.main([*arguments, "--preset", "micro"]) == 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with data, in which nothing was trained."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "stories.txt").write_text("\n\n".join(micro.make_stories()))
    run_here(folder, "prepare")
    run_here(folder, "tokenizer")
    return folder


@pytest.fixture(scope="module")
def alone(prepared, tmp_path_factory):
    """The same folder after a run by one process."""
    folder = tmp_path_factory.mktemp("alone") / "work"
    shutil.copytree(prepared, folder)
    run_here(folder, "train")
    return folder


@pytest.fixture
def here(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "work")
    return tmp_path / "work"


def assert_same_run(one, other):
    """Losses and weights are equal but for the order in which sums are made."""
    rows, others = read_log(one / RUN / "loss.jsonl"), read_log(other / RUN / "loss.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in others] == list(range(1, 13))
    for row, same in zip(rows, others, strict=True):
        assert row["train_loss"] == pytest.approx(same["train_loss"], abs=1e-5)
        assert row["grad_norm"] == pytest.approx(same["grad_norm"], abs=1e-4)
        assert row.get("val_loss") == pytest.approx(same.get("val_loss"), abs=1e-5)
        assert row["tokens"] == same["tokens"]
    models = [load_model(folder / RUN / "final.pt").state_dict() for folder in (one, other)]
    for name, weights in models[0].items():
        torch.testing.assert_close(weights, models[1][name], atol=2e-3, rtol=0)


def test_two_processes_train_what_one_trains_and_one_of_them_writes(here, alone):
    done = start(here, "train", processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_run(here, alone)
    assert len(read_rows(here / RUN / "loss.jsonl")) == 12, "each row was written once"
    assert done.stdout.count("finished:") == 1, "one process speaks for all"
    assert "taken down" not in done.stderr, "gloo's threads may still hold tensors then, and abort"
    assert {path.name for path in (here / RUN).iterdir()} == {path.name for path in (alone / RUN).iterdir()}


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(here, alone, before, after):
    stopped = start(here, "train", processes=before, STOP_AFTER="6")
    assert stopped.returncode != 0 and read_log(here / RUN / "loss.jsonl")[-1]["step"] == 6
    done = start(here, "train", processes=after)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 6" in done.stdout
    assert_same_run(here, alone)


def test_without_torchrun_a_process_is_the_first_of_one():
    batch = torch.arange(8).reshape(4, 2), torch.arange(8, 16).reshape(4, 2)
    assert (rank(), ranks()) == (0, 1)
    assert all(torch.equal(one, other) for one, other in zip(my_rows(batch), batch, strict=True))
    assert mean_over_ranks(torch.tensor(3.0)) == 3 and from_first_rank({"a": 1}) == {"a": 1}


def test_a_batch_that_cannot_be_shared_evenly_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "ranks", lambda: 3)
    with pytest.raises(ValueError, match="batch_size 4 must be a multiple of 3 processes times micro_batches 1"):
        run(tmp_path)


def test_several_processes_can_only_train(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "ranks", lambda: 2)
    with pytest.raises(SystemExit):
        command_line.main(["prepare"])
    assert "2 processes can only train: run prepare without torchrun" in capsys.readouterr().err
