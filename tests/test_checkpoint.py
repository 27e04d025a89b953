"""Checkpoints: what is saved comes back, what is damaged or dangerous is refused, what was good stays."""

import errno
import os
import pickle
import re
import resource
import shutil
import threading
import zipfile
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from micro import same

from tinystories_lab import checkpoint as checkpoint_module
from tinystories_lab.checkpoint import (
    CheckpointWriter,
    latest_checkpoint,
    load_checkpoint,
    load_model,
    read_step,
    run_checkpoints,
    save_checkpoint,
)
from tinystories_lab.config import TrainConfig
from tinystories_lab.model import GPTConfig, new_model, rope_tables
from tinystories_lab.trainer import TrainState, train_step

MODEL = GPTConfig(vocab_size=300, n_layer=1, n_head=2, d_model=32, max_len=16)
CONFIG = TrainConfig(batch_size=2, seq_len=8, total_steps=10, warmup_steps=1)
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def new_state(model=MODEL, config=CONFIG, dtype=torch.float16, tokenizer="f" * 64, data="d" * 64):
    return TrainState.new(new_model(model), config, dtype, tokenizer_sha256=tokenizer, data_sha256=data)


def trained_state(steps=3, dtype=torch.float16):
    """A state that has trained. In float16 its scaler has a state as well."""
    state = new_state(dtype=dtype)
    for _ in range(steps):
        ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(state.step))
        train_step(state, (ids[:, :-1], ids[:, 1:]))
        state.seconds += 0.125
    return state


@pytest.fixture(scope="module")
def state():
    """A state that has trained for three steps. Shared: do not change it."""
    return trained_state()


@pytest.fixture(scope="module")
def good_file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "last.pt"
    save_checkpoint(path, state.checkpoint())
    return path


def write_step(path, step, good_file):
    """Write a checkpoint of that step."""
    save_checkpoint(path, load_checkpoint(good_file) | {"step": step})
    return path


# --- what is saved comes back -----------------------------------------------------------------------------------------


def test_every_number_comes_back(tmp_path):
    state = trained_state()
    state.skipped_updates = 7
    save_checkpoint(tmp_path / "runs" / "new" / "last.pt", state.checkpoint())
    random_before = torch.get_rng_state()
    torch.rand(5)
    other = new_state()
    other.restore(load_checkpoint(tmp_path / "runs" / "new" / "last.pt"))
    assert same(other.model.state_dict(), state.model.state_dict())
    assert same(other.optimizer.state_dict(), state.optimizer.state_dict())
    assert same(other.scaler.state_dict(), state.scaler.state_dict())
    assert other.scaler.state_dict()["_growth_tracker"] == 3
    assert torch.equal(torch.get_rng_state(), random_before)
    assert (other.step, other.seconds, other.skipped_updates) == (3, 0.375, 7)
    assert [path.name for path in (tmp_path / "runs" / "new").iterdir()] == ["last.pt"]


def test_a_checkpoint_contains_both_configs_as_plain_values_and_may_contain_more(tmp_path, state):
    plain = {"note": "first", "numbers": [1, 2.5, None, True], "table": torch.arange(3)}
    save_checkpoint(tmp_path / "a.pt", state.checkpoint() | plain)
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint["step"] == read_step(tmp_path / "a.pt") == 3 and checkpoint["tokenizer_sha256"] == "f" * 64
    assert (checkpoint["model_config"], checkpoint["train_config"]) == (asdict(MODEL), asdict(CONFIG))
    assert same({key: checkpoint[key] for key in plain}, plain)


def test_a_model_alone_loads_in_evaluation_mode_with_its_tables(tmp_path, state):
    save_checkpoint(tmp_path / "final.pt", state.model_checkpoint())
    torch.manual_seed(5)
    random_before = torch.get_rng_state()
    loaded = load_model(tmp_path / "final.pt")
    assert torch.equal(torch.get_rng_state(), random_before), "loading moved the global random state"
    assert not loaded.training and loaded.config == MODEL
    assert same(loaded.state_dict(), state.model.state_dict())
    cos, sin = rope_tables(16, 16, 10_000.0)
    assert torch.equal(loaded.cos, cos) and torch.equal(loaded.sin, sin)
    with pytest.raises(ValueError, match=r"final\.pt is not a checkpoint to resume from: it lacks .*'optimizer'"):
        load_checkpoint(tmp_path / "final.pt")


# --- what is damaged or dangerous is refused --------------------------------------------------------------------------


def test_a_missing_a_truncated_and_a_foreign_file_are_refused_by_name(tmp_path, good_file):
    path, good, archive = tmp_path / "last.pt", good_file.read_bytes(), BytesIO()
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*last\.pt: run 03_train"):
        load_model(path)
    assert read_step(path) is None
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("story.txt", "Once upon a time")
    truncated = [good[: int(len(good) * share)] for share in (0.0, 0.1, 0.5, 0.9, 0.999)]
    for content in (b"hello", b"\x80\x04N.", bytes(1_000), archive.getvalue(), *truncated):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"last\.pt is damaged .*: use an older checkpoint"):
            load_checkpoint(path)
        assert read_step(path) == -1


torch.save({"step": 1, "model": {"w": torch.arange(4.0)}}, buffer := BytesIO())
SMALL = buffer.getvalue()
# One bit of a zip's directory marks a record as a folder. PyTorch alone would then return uninitialized memory.
FOLDER_FLAGS = [match.start() + 38 for match in re.finditer(b"PK\x01\x02", SMALL)]
# A name that is no longer UTF-8, a method that is no longer "stored", a record that starts elsewhere.
HEADERS = [SMALL.rindex(b"data/0"), SMALL.rindex(b"PK\x01\x02") + 10, SMALL.rindex(b"PK\x01\x02") + 42]


@given(st.sampled_from(range(len(SMALL))) | st.sampled_from(HEADERS + FOLDER_FLAGS), st.integers(0, 7))
@example(FOLDER_FLAGS[-1], 4)
def test_a_flipped_bit_anywhere_is_refused_by_name_or_harmless(tmp_path_factory, position, bit):
    """A bit of the zip's own padding may not matter. Any other must not get through, nor raise another exception."""
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    damaged = bytearray(SMALL)
    damaged[position] ^= 1 << bit
    path.write_bytes(damaged)
    read_step(path)
    try:
        checkpoint = load_checkpoint(path, {"step", "model"})
    except ValueError as error:
        assert "flipped.pt" in str(error)
    else:
        assert same(checkpoint, {"step": 1, "model": {"w": torch.arange(4.0)}})


def test_a_checkpoint_that_lacks_something_or_has_wrong_values_is_refused_by_name(tmp_path, good_file):
    path = tmp_path / "last.pt"
    for key in ("step", "model", "model_config", "optimizer", "torch_rng", "seconds"):
        checkpoint = load_checkpoint(good_file)
        del checkpoint[key]
        torch.save(checkpoint, path)
        with pytest.raises(ValueError, match=rf"last\.pt is not a checkpoint to resume from: it lacks \['{key}'\]"):
            load_checkpoint(path)
    for content in ({"model": 5}, {"model": {"a": "text"}}, {"optimizer": {}}, {"optimizer": {"state": 5}}):
        torch.save(load_checkpoint(good_file) | content, path)
        with pytest.raises(ValueError, match=r"last\.pt is not a checkpoint of this project"):
            load_checkpoint(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(ValueError, match=r"last\.pt is not a checkpoint to load"):
        load_model(path)


class Evil:
    """When unpickled, it calls a function of its choice."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'echo was here > "{self.marker}"',)


def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path, good_file):
    marker = tmp_path / "marker"
    torch.save(load_checkpoint(good_file) | {"note": Evil(marker)}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt contains .*: do not trust it"):
        load_checkpoint(tmp_path / "last.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(ValueError, match=r"plain\.pt"):
        load_checkpoint(tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="none of the run's checkpoints"), pytest.warns(UserWarning):
        latest_checkpoint([tmp_path / "last.pt", tmp_path / "plain.pt"])
    assert not marker.exists()
    torch.load(tmp_path / "last.pt", weights_only=False)
    assert marker.exists(), "the file was harmless, so this test showed nothing"


@pytest.mark.parametrize(
    ("where", "value"), [("norm", float("nan")), ("norm", float("inf")), ("optimizer", float("nan"))]
)
def test_values_that_are_not_finite_are_neither_saved_nor_trusted(tmp_path, good_file, where, value):
    path, checkpoint = tmp_path / "last.pt", load_checkpoint(good_file)
    shutil.copy(good_file, path)
    tensors = checkpoint["model"] if where == "norm" else checkpoint["optimizer"]["state"][0]
    tensors["norm.weight" if where == "norm" else "exp_avg"].view(-1)[3] = value
    with pytest.raises(FloatingPointError, match=r"has values that are not finite: .*last\.pt was left as it was"):
        save_checkpoint(path, checkpoint)
    assert path.read_bytes() == good_file.read_bytes()
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=rf"last\.pt has values that are not finite \(.*{where}"):
        load_checkpoint(path)
    if where == "norm":
        with pytest.raises(ValueError, match="not finite"):
            load_model(path)


# --- the latest checkpoint --------------------------------------------------------------------------------------------


@pytest.fixture
def whole_reads(monkeypatch):
    """The names of the files that were read whole and verified."""
    names = []

    def load(path, *keys):
        names.append(path.name)
        return load_checkpoint(path, *keys)

    monkeypatch.setattr(checkpoint_module, "load_checkpoint", load)
    return names


def test_the_latest_checkpoint_has_the_highest_step_wherever_it_is_and_it_alone_is_read(
    tmp_path, good_file, whole_reads
):
    names = ["last.pt", "step_00010.pt", "mirror/last.0.pt", "mirror/last.1.pt"]
    files = [write_step(tmp_path / name, 7, good_file) for name in names]
    for newest in files:
        before = newest.read_bytes()
        write_step(newest, 9, good_file)
        path, checkpoint = latest_checkpoint(files)
        assert (path, checkpoint["step"], whole_reads) == (newest, 9, [newest.name])
        newest.write_bytes(before)
        whole_reads.clear()
    assert latest_checkpoint(files)[0] == files[0], "of equal steps the first"


def test_on_a_disk_that_cannot_be_mapped_the_latest_checkpoint_is_found_too(tmp_path, good_file, monkeypatch):
    def refuse_to_map(*args, mmap=None, load=torch.load, **settings):
        if mmap:
            raise RuntimeError("unable to mmap 100 bytes from file: Operation not supported (95)")
        return load(*args, **settings)

    files = [write_step(tmp_path / f"last.{step}.pt", step, good_file) for step in (1, 3, 2)]
    monkeypatch.setattr(torch, "load", refuse_to_map)
    assert latest_checkpoint(files)[0] == files[1]


def test_a_run_may_be_resumed_from_last_pt_and_its_kept_steps_newest_first(tmp_path):
    assert latest_checkpoint(run_checkpoints(tmp_path / "not there")) is None
    newest_first = ["step_100000.pt", "step_99000.pt", "step_00990.pt"]  # by number, not by name
    for name in (*newest_first, "final.pt", "step_last.pt", "step_.pt", "step_00003.pt.partial"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in run_checkpoints(tmp_path)] == ["last.pt", *newest_first]


def test_damaged_checkpoints_give_way_to_the_newest_that_can_be_read_and_are_named(tmp_path, good_file, whole_reads):
    files = [write_step(tmp_path / f"step_{step:05d}.pt", step, good_file) for step in (5, 2)]
    (tmp_path / "last.pt").write_bytes(good_file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"skipped: .*last\.pt is damaged"):
        assert latest_checkpoint(run_checkpoints(tmp_path))[0] == files[0]
    assert whole_reads == ["last.pt", "step_00005.pt"]
    damaged = bytearray(files[0].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    files[0].write_bytes(damaged)
    assert read_step(files[0]) == 5, "its step can still be read"
    with pytest.warns(UserWarning) as warned:
        assert latest_checkpoint(run_checkpoints(tmp_path))[0] == files[1]
    assert [re.search(r"\w+\.pt", str(warning.message))[0] for warning in warned] == ["last.pt", "step_00005.pt"]
    files[1].write_bytes(b"not a checkpoint")
    none_left = r"none of the run's checkpoints .*\(.*last\.pt, .*step_00005\.pt, .*step_00002\.pt\)"
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=none_left):
        latest_checkpoint(run_checkpoints(tmp_path))


def test_a_disk_that_fails_is_not_a_run_without_checkpoints(tmp_path, good_file, monkeypatch):
    def fail(path, stat=Path.stat, **options):
        if path.name == "last.pt":
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", fail)
    shutil.copy(good_file, tmp_path / "step_00003.pt")
    with pytest.raises(OSError, match="not connected"):  # last.pt may be newer than step_00003.pt
        latest_checkpoint(run_checkpoints(tmp_path))
    with pytest.raises(OSError, match="not connected"):
        load_checkpoint(tmp_path / "last.pt")


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_resuming_another_model_tokenizer_or_data_is_refused_with_both_values(good_file):
    other = new_state(replace(MODEL, n_layer=2), tokenizer="e" * 64, data="c" * 64)
    with pytest.raises(ValueError, match=r"another run \(.*\): use another run name, or .*`--fresh`") as refused:
        other.restore(load_checkpoint(good_file))
    for difference in (
        "n_layer 1 there, 2 here",
        f"tokenizer {'f' * 12} there, {'e' * 12} here",
        f"data {'d' * 12} there",
    ):
        assert difference in str(refused.value)
    assert "d_model" not in str(refused.value) and other.step == 0


def test_a_run_may_be_resumed_in_another_precision():
    """Colab gives an A100 today and a T4 tomorrow."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for before in dtypes:
        state = trained_state(1, before)
        for now in dtypes:
            other = new_state(dtype=now)
            other.restore(state.checkpoint())
            assert same(other.model.state_dict(), state.model.state_dict())
            assert other.scaler.is_enabled() == (now is torch.float16)


def test_a_run_saved_before_a_setting_existed_is_resumed_with_its_default(good_file):
    checkpoint = load_checkpoint(good_file)
    for config in (checkpoint["model_config"], checkpoint["train_config"]):
        del config[list(config)[-1]]
    other = new_state()
    other.restore(checkpoint)
    assert other.step == 3


# --- a save that fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [NO_SPACE, KeyboardInterrupt()], ids=repr)
def test_a_failing_save_keeps_the_old_checkpoint(tmp_path, state, good_file, monkeypatch, failure):
    def fill_the_disk(checkpoint, file):
        file.write(b"half a checkpoint")
        raise failure

    shutil.copy(good_file, tmp_path / "last.pt")
    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(type(failure)):
        save_checkpoint(tmp_path / "last.pt", state.checkpoint())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"last.pt": good_file.read_bytes()}


def test_a_file_that_cannot_grow_further_is_an_os_error_wherever_it_ends(tmp_path):
    """A full disk in the middle of a large record too, where PyTorch's own writer would raise something else."""
    checkpoint = new_state(replace(MODEL, d_model=128)).checkpoint()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1, 100, 50_000, 150_000, 300_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                save_checkpoint(tmp_path / "last.pt", checkpoint)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.iterdir())


# --- the writer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
def test_the_writer_saves_the_weights_of_the_moment_and_keeps_the_two_newest_steps(tmp_path, background):
    state, saved = trained_state(1), []
    weights = state.model.tok_emb.weight
    writer = CheckpointWriter(tmp_path, 0, background, after_save=lambda: saved.append(read_step(tmp_path / "last.pt")))
    for step in (1, 2, 3):
        state.step = step
        writer.save(f"step_{step:05d}.pt", state.checkpoint())
        writer.save("last.pt", state.checkpoint())
        with torch.no_grad():
            weights.add_(1)  # training goes on while the thread writes
    writer.wait()
    assert saved == [1, 2, 3] and writer.saved_step == 3
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "step_00002.pt", "step_00003.pt"}
    in_file = load_checkpoint(tmp_path / "last.pt")["model"]["tok_emb.weight"]
    torch.testing.assert_close(in_file, weights.detach() - 1)


def test_in_the_background_training_goes_on_while_the_file_is_written(tmp_path, state, monkeypatch):
    release, written = threading.Event(), []

    def slow(path, checkpoint):
        assert release.wait(20)
        written.append(path.name)

    monkeypatch.setattr(checkpoint_module, "save_checkpoint", slow)
    writer = CheckpointWriter(tmp_path, 0, background=True)
    writer.save("last.pt", state.checkpoint())
    assert not written
    release.set()
    writer.save("step_00003.pt", state.checkpoint())
    assert written[0] == "last.pt", "one file is written at a time"
    writer.wait()
    assert written == ["last.pt", "step_00003.pt"]


@pytest.mark.parametrize(
    ("background", "owner", "name", "failure"),
    [
        (False, checkpoint_module, "save_checkpoint", NO_SPACE),
        (True, checkpoint_module, "save_checkpoint", FloatingPointError("weights are not finite")),
        (True, checkpoint_module, "save_checkpoint", RuntimeError("CUDA error")),
        (True, checkpoint_module, "deepcopy", MemoryError("the GPU has no memory for a copy")),
        (True, threading.Thread, "start", RuntimeError("can't start new thread")),
    ],
    ids=str,
)
def test_a_failure_of_any_kind_becomes_a_warning_and_the_next_save_succeeds(
    tmp_path, state, monkeypatch, background, owner, name, failure
):
    def fail(*args, **settings):
        raise failure

    writer = CheckpointWriter(tmp_path, 2, background)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.warns(
            UserWarning, match=rf"saving .*last\.pt failed \({re.escape(str(failure))}\): training continues"
        ):
            writer.save("last.pt", state.checkpoint())
            writer.wait()
    assert writer.saved_step == 2 and not list(tmp_path.iterdir())
    writer.save("last.pt", state.checkpoint())
    writer.wait()
    assert writer.saved_step == read_step(tmp_path / "last.pt") == 3


def test_finish_writes_a_final_model_that_is_missing_damaged_or_older_and_raises_if_it_cannot(
    tmp_path, state, monkeypatch
):
    writer, final = CheckpointWriter(tmp_path, 3), tmp_path / "final.pt"
    checkpoint = state.model_checkpoint()
    writer.finish(checkpoint)
    assert read_step(final) == 3
    before = final.stat().st_mtime_ns
    writer.finish(checkpoint)
    assert final.stat().st_mtime_ns == before, "it was there already"
    for damage in (lambda: final.write_bytes(b"half"), lambda: save_checkpoint(final, checkpoint | {"step": 2})):
        damage()
        writer.finish(checkpoint)
        assert read_step(final) == 3
    final.unlink()

    def fail(*_):
        raise NO_SPACE

    monkeypatch.setattr(checkpoint_module, "save_checkpoint", fail)
    with pytest.raises(OSError, match="No space"):
        writer.finish(checkpoint)
