"""Stop and continue: what is saved comes back, what is damaged or dangerous is refused, what was good stays."""

import errno
import os
import pickle
import re
import resource
import shutil
import zipfile
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tinystories_lab.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_model,
    save_checkpoint,
    step_checkpoints,
)
from tinystories_lab.copies import list_copy
from tinystories_lab.model import GPTConfig, rope_tables
from tinystories_lab.recipe import TrainConfig
from tinystories_lab.state import TrainState
from tinystories_lab.step import take_step

MICRO = GPTConfig(vocab_size=300, n_layer=1, n_head=2, d_model=32, max_len=16)
CONFIG = TrainConfig(batch_size=2, seq_len=8, total_steps=10, warmup_steps=1)
CPU = torch.device("cpu")


def trained_state(steps=3, config=CONFIG, dtype=torch.float16):
    """A state that has moved: with float16 also the scaler holds something."""
    state = TrainState.new(MICRO, config, "f" * 64, "d" * 64, CPU, dtype)
    for _ in range(steps):
        ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(state.step))
        take_step(state, (ids[:, :-1], ids[:, 1:]), dtype)
        state.seconds += 0.125
    return state


def assert_equal(one, other):
    """Equal to the last bit, through dicts and lists, types included."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_equal(first, second)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    else:
        assert one == other


@pytest.fixture(scope="module")
def good_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "last.pt"
    save_checkpoint(path, trained_state().checkpoint())
    return path


@pytest.fixture(scope="module")
def good_bytes(good_file):
    return good_file.read_bytes()


def test_every_number_comes_back(tmp_path):
    state = trained_state()
    state.skipped_updates = 7
    save_checkpoint(tmp_path / "last.pt", state.checkpoint())
    random_before = torch.get_rng_state()
    torch.rand(5)
    other = TrainState.new(MICRO, CONFIG, "f" * 64, "d" * 64, CPU, torch.float16)
    other.restore(other.load_same_run(tmp_path / "last.pt"))
    assert_equal(other.model.state_dict(), state.model.state_dict())
    assert_equal(other.optimizer.state_dict(), state.optimizer.state_dict())
    assert_equal(other.scaler.state_dict(), state.scaler.state_dict())
    assert other.scaler.state_dict()["_growth_tracker"] == 3
    assert torch.equal(torch.get_rng_state(), random_before)
    assert (other.step, other.seconds, other.skipped_updates) == (3, 0.375, 7)


def test_a_checkpoint_holds_the_choices_and_further_plain_values(tmp_path):
    plain = {"note": "first", "numbers": [1, 2.5, None, True], "table": torch.arange(3)}
    save_checkpoint(tmp_path / "a.pt", trained_state().checkpoint() | plain)
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint["step"] == 3 and checkpoint["tokenizer_sha256"] == "f" * 64
    assert GPTConfig(**checkpoint["model_config"]) == MICRO
    assert TrainConfig(**checkpoint["train_config"]) == CONFIG
    assert_equal({key: checkpoint[key] for key in plain}, plain)


def test_a_model_alone_loads_in_evaluation_mode_with_its_tables(tmp_path):
    state = trained_state(1)
    save_checkpoint(tmp_path / "final.pt", state.model_checkpoint())
    loaded = load_model(tmp_path / "final.pt")
    assert not loaded.training and loaded.config == MICRO
    assert_equal(loaded.state_dict(), state.model.state_dict())
    cos, sin = rope_tables(16, 16, 10_000.0)
    assert torch.equal(loaded.cos, cos) and torch.equal(loaded.sin, sin)
    ids = torch.arange(16)[None]
    assert torch.equal(loaded(ids)[0], state.model(ids)[0])
    with pytest.raises(ValueError, match=r"final\.pt is not a checkpoint to resume: it lacks .*'optimizer'"):
        load_checkpoint(tmp_path / "final.pt")


def test_a_missing_checkpoint_says_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*final\.pt: run 03_train"):
        load_model(tmp_path / "final.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused_by_name(tmp_path, good_bytes, share):
    path = tmp_path / "last.pt"
    path.write_bytes(good_bytes[: int(len(good_bytes) * share)])
    with pytest.raises(ValueError, match=r"last\.pt is damaged .*: use an older checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x04N.", bytes(1_000)])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path, content):
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.pt is damaged"):
        load_checkpoint(path)


def test_a_zip_of_something_else_is_refused_by_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "last.pt", "w") as archive:
        archive.writestr("story.txt", "Once upon a time")
    with pytest.raises(ValueError, match=r"last\.pt is damaged"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_flipped_byte_among_the_weights_is_refused_by_name(tmp_path, good_file, good_bytes):
    weights = load_checkpoint(good_file)["model"]["tok_emb.weight"].numpy().tobytes()
    damaged = bytearray(good_bytes)
    damaged[good_bytes.index(weights) + 1_000] ^= 1
    (tmp_path / "last.pt").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"last\.pt is damaged \(.*checksum\): use an older checkpoint"):
        load_checkpoint(tmp_path / "last.pt")


def small_checkpoint():
    file = BytesIO()
    torch.save({"step": 1, "model": {"w": torch.arange(4.0)}}, file)
    return file.getvalue()


SMALL = small_checkpoint()
# One bit of a zip's directory marks a record as a folder: torch 2.13 alone would hand out memory that nobody wrote.
FOLDER_FLAGS = [match.start() + 38 for match in re.finditer(b"PK\x01\x02", SMALL)]
# A name that is no longer UTF-8, a method that is no longer "stored", a record that starts elsewhere.
HEADERS = [SMALL.rindex(b"data/0"), SMALL.rindex(b"PK\x01\x02") + 10, SMALL.rindex(b"PK\x01\x02") + 42]


@given(st.sampled_from(range(len(SMALL))) | st.sampled_from(HEADERS + FOLDER_FLAGS), st.integers(0, 7))
@example(FOLDER_FLAGS[-1], 4)
def test_a_flipped_bit_anywhere_is_refused_by_name_or_harmless(tmp_path_factory, position, bit):
    """A bit of the zip's own padding may not matter; any other must not get through, nor end in another exception."""
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    damaged = bytearray(SMALL)
    damaged[position] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        checkpoint = load_checkpoint(path, {"step", "model"})
    except ValueError as error:
        assert "flipped.pt" in str(error)
    else:
        assert_equal(checkpoint, {"step": 1, "model": {"w": torch.arange(4.0)}})


@pytest.mark.parametrize("key", ["step", "model", "model_config", "optimizer", "torch_rng", "seconds"])
def test_a_checkpoint_that_lacks_something_is_refused_by_name(tmp_path, good_file, key):
    checkpoint = load_checkpoint(good_file)
    del checkpoint[key]
    torch.save(checkpoint, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=rf"last\.pt is not a checkpoint to resume: it lacks \['{key}'\]"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_tensor_alone_is_no_checkpoint(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt is not a checkpoint to load"):
        load_model(tmp_path / "last.pt")


class Evil:
    """Pickled, it is a call that whoever unpickles it makes."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'echo was here > "{self.marker}"',)


def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path, good_file):
    marker = tmp_path / "marker"
    torch.save(load_checkpoint(good_file) | {"note": Evil(marker)}, tmp_path / "last.pt")
    with pytest.raises(
        ValueError, match=r"last\.pt holds more than tensors and plain values: do not trust it; it was not run"
    ):
        load_checkpoint(tmp_path / "last.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(ValueError, match=r"plain\.pt"):
        load_checkpoint(tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="none of the run's checkpoints"), pytest.warns(UserWarning):
        latest_checkpoint(tmp_path)
    assert not marker.exists()
    torch.load(tmp_path / "last.pt", weights_only=False)
    assert marker.exists(), "the file was harmless, so this test showed nothing"


def test_without_checkpoints_there_is_no_latest(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "not there") is None
    save_checkpoint(tmp_path / "final.pt", trained_state(1).model_checkpoint())
    assert latest_checkpoint(tmp_path) is None, "final.pt holds a model alone and cannot resume"


def test_the_latest_checkpoint_is_last_pt(tmp_path, good_file):
    for name in ("last.pt", "step_00005.pt"):
        shutil.copy(good_file, tmp_path / name)
    assert latest_checkpoint(tmp_path) == tmp_path / "last.pt"


def test_a_damaged_last_pt_gives_way_to_the_newest_step_that_verifies(tmp_path, good_file, good_bytes):
    for name in ("step_00990.pt", "step_99000.pt", "step_100000.pt"):  # newest by number, not by name
        shutil.copy(good_file, tmp_path / name)
    assert [path.name for path in step_checkpoints(tmp_path)] == ["step_100000.pt", "step_99000.pt", "step_00990.pt"]
    (tmp_path / "last.pt").write_bytes(good_bytes[:-100])
    with pytest.warns(UserWarning, match=r"skipped: .*last\.pt is damaged"):
        assert latest_checkpoint(tmp_path) == tmp_path / "step_100000.pt"
    (tmp_path / "step_100000.pt").write_bytes(b"")
    with pytest.warns(UserWarning) as warned:
        assert latest_checkpoint(tmp_path) == tmp_path / "step_99000.pt"
    assert [re.search(r"\w+\.pt", str(warning.message))[0] for warning in warned] == ["last.pt", "step_100000.pt"]


def test_when_no_checkpoint_verifies_nothing_starts_anew(tmp_path):
    for name in ("last.pt", "step_00005.pt"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    with (
        pytest.warns(UserWarning) as warned,
        pytest.raises(ValueError, match=r"can be read \(.*last\.pt, .*step_00005\.pt\): move them away"),
    ):
        latest_checkpoint(tmp_path)
    assert len(warned) == 2


def at_step(step, path):
    state = trained_state(1)
    state.step = step
    save_checkpoint(path, state.checkpoint())
    return path


def test_the_latest_checkpoint_is_the_one_of_the_highest_step_wherever_it_lies(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    files = [here / "last.pt", here / "step_00010.pt", there / "last.0.pt", there / "last.1.pt"]
    for newest in files:
        for path in files:
            at_step(7, path)
        at_step(9, newest)
        assert latest_checkpoint(here, there) == newest
        if newest.parent == there:
            assert latest_checkpoint(here) == here / "last.pt", "of equal steps the first, and without the mirror"


def test_a_damaged_mirror_gives_way_to_its_other_slot_and_is_named(tmp_path):
    slots = [at_step(step, tmp_path / "there" / name) for step, name in ((8, "last.0.pt"), (9, "last.1.pt"))]
    slots[1].write_bytes(slots[1].read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"skipped: .*last\.1\.pt is damaged"):
        assert latest_checkpoint(tmp_path / "here", tmp_path / "there") == slots[0]
    slots[0].write_bytes(b"")
    for slot in slots:
        list_copy(slot, {})
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"none of the run's checkpoints can be read \(.*last\.0\.pt, .*last\.1\.pt\)"),
    ):
        latest_checkpoint(tmp_path / "here", tmp_path / "there")


def test_a_first_copy_cut_off_is_no_checkpoint_and_the_run_starts_anew(tmp_path, good_file):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (there / "last.0.pt").write_bytes(good_file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"skipped: .*last\.0\.pt is damaged"):
        assert latest_checkpoint(here, there) is None, "never listed as a copy: the machine went while it was made"
    (here / "last.pt").write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"can be read \(.*last\.pt\)"):
        latest_checkpoint(here, there)


def test_a_disk_that_fails_is_not_a_run_without_checkpoints(tmp_path, good_file, monkeypatch):
    stat = Path.stat

    def fail(path, **options):
        if path.name.startswith("last."):
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.warns(UserWarning, match="not connected"), pytest.raises(ValueError, match="none of the run's"):
        latest_checkpoint(tmp_path / "here", tmp_path / "there")
    shutil.copy(good_file, tmp_path / "step_00003.pt")
    with pytest.warns(UserWarning, match="skipped: .*not connected"):
        assert latest_checkpoint(tmp_path, tmp_path / "there") == tmp_path / "step_00003.pt"


def test_files_that_only_look_like_kept_steps_are_left_alone(tmp_path, good_file):
    for name in ("step_last.pt", "step_.pt", "step_00003.pt.partial"):
        (tmp_path / name).write_bytes(b"something else")
    assert latest_checkpoint(tmp_path) is None
    shutil.copy(good_file, tmp_path / "step_00003.pt")
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00003.pt"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "moment"])
def test_values_that_are_not_finite_are_neither_saved_nor_trusted(tmp_path, where, value):
    state = trained_state(1)
    save_checkpoint(tmp_path / "last.pt", state.checkpoint())
    before = (tmp_path / "last.pt").read_bytes()
    weight = state.model.norm.weight
    with torch.no_grad():
        (weight if where == "weight" else state.optimizer.state[weight]["exp_avg"])[3] = value
    with pytest.raises(FloatingPointError, match=r"holds values that are not finite: .*last\.pt was left as it was"):
        save_checkpoint(tmp_path / "last.pt", state.checkpoint())
    assert (tmp_path / "last.pt").read_bytes() == before
    checkpoint = load_checkpoint(tmp_path / "last.pt")
    if where == "weight":
        checkpoint["model"]["norm.weight"][3] = value
    else:
        checkpoint["optimizer"]["state"][0]["exp_avg_sq"].view(-1)[3] = value
    torch.save(checkpoint, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt holds values that are not finite \(.*(norm|moment)"):
        load_checkpoint(tmp_path / "last.pt")
    if where == "weight":
        with pytest.raises(ValueError, match="not finite"):
            load_model(tmp_path / "last.pt")


@pytest.mark.parametrize(
    "content", [{"model": 5}, {"model": {"a": "text"}}, {"optimizer": {}}, {"optimizer": {"state": 5}}]
)
def test_a_file_with_the_right_names_and_other_things_in_them_is_refused_by_name(tmp_path, good_file, content):
    torch.save(load_checkpoint(good_file) | content, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt is not a checkpoint of this lab"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_save_keeps_the_old_checkpoint(tmp_path, monkeypatch, failure):
    save_checkpoint(tmp_path / "last.pt", trained_state(1).checkpoint())
    before = (tmp_path / "last.pt").read_bytes()

    def fill_the_disk(checkpoint, file):
        file.write(b"half a checkpoint")
        raise failure

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(type(failure)):
        save_checkpoint(tmp_path / "last.pt", trained_state(2).checkpoint())
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.parametrize("limit", [0, 1, 100, 50_000, 150_000, 300_000])
def test_a_file_that_cannot_grow_further_is_an_os_error_wherever_it_ends(tmp_path, limit):
    """A full disk in the middle of a large record too, where torch's own writer would raise something else."""
    state = TrainState.new(replace(MICRO, d_model=128), CONFIG, "f" * 64, "d" * 64, CPU, torch.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(tmp_path / "last.pt", state.checkpoint())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_resuming_another_model_tokenizer_or_data_is_refused_with_both_values(tmp_path):
    save_checkpoint(tmp_path / "last.pt", trained_state().checkpoint())
    other = TrainState.new(replace(MICRO, n_layer=2), CONFIG, "e" * 64, "c" * 64, CPU, torch.float32)
    with pytest.raises(ValueError) as refused:
        other.restore(other.load_same_run(tmp_path / "last.pt"))
    assert "n_layer 1 there, 2 now" in str(refused.value)
    assert "tokenizer ffffffffffff there, eeeeeeeeeeee now" in str(refused.value)
    assert "data dddddddddddd there, cccccccccccc now" in str(refused.value)
    assert "d_model" not in str(refused.value)
    assert "take another run name, or move the old run aside (`--fresh`" in str(refused.value)
    assert other.step == 0


@pytest.mark.parametrize("before", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("now", [torch.float32, torch.bfloat16, torch.float16])
def test_a_run_may_go_on_in_another_precision(tmp_path, before, now):
    """Colab lends an A100 today and a T4 tomorrow."""
    state = trained_state(dtype=before)
    save_checkpoint(tmp_path / "last.pt", state.checkpoint())
    other = TrainState.new(MICRO, CONFIG, "f" * 64, "d" * 64, CPU, now)
    other.restore(other.load_same_run(tmp_path / "last.pt"))
    assert_equal(other.model.state_dict(), state.model.state_dict())
    assert other.scaler.is_enabled() == (now is torch.float16)


def test_model_config_is_kept_as_plain_values(good_file):
    assert load_checkpoint(good_file)["model_config"] == asdict(MICRO)


def test_weights_are_drawn_from_the_seed_alone():
    torch.manual_seed(1)
    one = TrainState.new(MICRO, CONFIG, "", "", CPU, torch.float32)
    random_after = torch.get_rng_state()
    torch.manual_seed(2)
    other = TrainState.new(MICRO, CONFIG, "", "", CPU, torch.float32)
    assert_equal(one.model.state_dict(), other.model.state_dict())
    different = TrainState.new(MICRO, replace(CONFIG, seed=1), "", "", CPU, torch.float32)
    assert not torch.equal(different.model.tok_emb.weight, one.model.tok_emb.weight)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), random_after), "drawing weights moved the global random state"


def test_a_run_from_before_a_choice_could_be_made_goes_on_with_its_default(tmp_path):
    state = trained_state()
    checkpoint = state.checkpoint()
    for choices in (checkpoint["model_config"], checkpoint["train_config"]):
        del choices[list(choices)[-1]]
    save_checkpoint(tmp_path / "last.pt", checkpoint)
    assert state.load_same_run(tmp_path / "last.pt")["step"] == 3


def test_no_partial_file_is_left_beside_a_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "runs" / "new" / "last.pt", trained_state(1).checkpoint())
    assert [path.name for path in Path(tmp_path / "runs" / "new").iterdir()] == ["last.pt"]
