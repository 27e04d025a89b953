"""Windows of a token file, as a pure function of the step."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystories_lab import loader as loader_module
from tinystories_lab.loader import BinLoader
from tinystories_lab.tokenizer import BinInfo


def write_tokens(path, ids, **sidecar):
    """A token file of these ids; with any `sidecar` figure also a sidecar, right in all others."""
    np.asarray(ids, "<u2").tofile(path)
    if sidecar:
        info = BinInfo(
            tokens=len(ids),
            stories=1,
            bytes=100,
            vocab_size=1_000,
            dtype="uint16",
            tokenizer_sha256="a" * 64,
            sha256="b" * 64,
        )
        path.with_suffix(".json").write_text(json.dumps(asdict(info) | sidecar))
    return path


@pytest.fixture
def counting(tmp_path):
    """A file whose every token is its own place: 0 to 99."""
    return write_tokens(tmp_path / "train.bin", np.arange(100))


def starts(loader, steps):
    """The first token of every window of these steps, where each token is its own place."""
    return [int(start) for step in steps for start in loader.batch(step)[0][:, 0]]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- windows ----------------------------------------------------------------------------------------------------------


def test_shuffled_windows_are_these_exact_tokens(tmp_path):
    loader = BinLoader(write_tokens(tmp_path / "t.bin", range(10, 23)), 3, 4, sampling="shuffle")
    x, y = loader.batch(0)
    assert sorted(x.tolist()) == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19, 20, 21]]
    assert sorted(y.tolist()) == [[11, 12, 13, 14], [15, 16, 17, 18], [19, 20, 21, 22]]


@pytest.mark.parametrize("sampling", ["random", "shuffle"])
@pytest.mark.parametrize("sidecar", [{}, {"source": "by hand"}], ids=["no sidecar", "sidecar"])
def test_a_batch_is_int64_of_batch_by_seq_len_and_y_is_x_one_token_later(tmp_path, sampling, sidecar):
    path = write_tokens(tmp_path / "train.bin", np.arange(100) + 65_436, **sidecar)  # up to the largest uint16
    loader = BinLoader(path, 5, 7, sampling=sampling)
    assert (loader.info is None) == (not sidecar)
    for step in range(20):
        x, y = loader.batch(step)
        assert x.shape == y.shape == (5, 7)
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(y, x + 1)
        assert torch.equal(x, x[:, :1] + torch.arange(7))
        assert x.min() >= 65_436 and y.max() <= 65_535


def test_a_sidecar_that_agrees_is_kept_as_info(tmp_path):
    path = write_tokens(tmp_path / "train.bin", range(100), source="by hand")
    assert BinLoader(path, 2, 4, vocab_size=1_000, tokenizer_sha256="a" * 64).info == BinInfo.of(path)


@pytest.mark.parametrize("sampling", ["random", "shuffle"])
def test_a_batch_is_a_pure_function_of_seed_and_step(counting, sampling):
    loader = BinLoader(counting, 4, 7, seed=3, sampling=sampling)
    batches = {step: loader.batch(step) for step in range(12)}
    for step in (11, 0, 5, 5, 2, 10):  # any order, and across epochs
        assert equal(loader.batch(step), batches[step])
        assert equal(BinLoader(str(counting), 4, 7, seed=3, sampling=sampling).batch(step), batches[step])


@pytest.mark.parametrize("sampling", ["random", "shuffle"])
def test_another_seed_and_another_step_give_other_windows(counting, sampling):
    loader, other = (BinLoader(counting, 4, 7, seed=seed, sampling=sampling) for seed in (3, 4))
    assert starts(loader, range(3)) != starts(other, range(3))
    assert starts(loader, [0]) != starts(loader, [1])


def test_drawing_a_batch_leaves_the_global_random_state_alone(counting):
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    BinLoader(counting, 4, 7).batch(0)
    BinLoader(counting, 4, 7, sampling="shuffle").batch(0)
    assert np.array_equal(np.random.get_state()[1], before[0]) and torch.equal(torch.get_rng_state(), before[1])


def test_a_batch_may_be_changed_without_changing_the_next(counting):
    loader = BinLoader(counting, 4, 7)
    x, _ = loader.batch(0)
    kept = x.clone()
    x.zero_()
    assert torch.equal(loader.batch(0)[0], kept)


@pytest.mark.parametrize("sampling", ["random", "shuffle"])
def test_batches_of_a_file_held_on_the_device_are_those_read_from_disk(tmp_path, sampling, monkeypatch):
    path = write_tokens(tmp_path / "train.bin", np.random.default_rng(0).permutation(65_536)[:999])
    from_disk = BinLoader(path, 5, 7, sampling=sampling)
    monkeypatch.setattr(loader_module, "_fits_on", lambda device, size: size == 1_998)
    held = BinLoader(path, 5, 7, sampling=sampling)
    path.unlink()
    for step in (0, 27, 28, 29, 5):
        x, y = held.batch(step)
        assert x.dtype == y.dtype == torch.int64
        assert equal((x, y), from_disk.batch(step))


def test_a_file_is_held_on_a_gpu_with_eight_times_the_room_and_never_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8_000, 16_000))
    gpu = torch.device("cuda")
    assert loader_module._fits_on(gpu, 999) and not loader_module._fits_on(gpu, 1_000)
    assert not loader_module._fits_on(torch.device("cpu"), 1)


@pytest.mark.parametrize("sampling", ["random", "shuffle"])
@pytest.mark.parametrize("held", [False, True])
def test_shorter_windows_come_in_more_rows_with_as_many_tokens(tmp_path, sampling, held, monkeypatch):
    monkeypatch.setattr(loader_module, "_fits_on", lambda device, size: held)
    path = write_tokens(tmp_path / "train.bin", range(1_000))
    loader, short = BinLoader(path, 4, 8, seed=3, sampling=sampling), BinLoader(path, 16, 2, seed=3, sampling=sampling)
    for step in range(40):  # over two epochs of the longer ones; one loader in both ways in turn
        x, y = loader.batch(step, 2)
        assert x.shape == (16, 2) and torch.equal(y, x + 1)
        assert equal((x, y), short.batch(step))
        assert loader.batch(step)[0].shape == (4, 8)


# --- random -----------------------------------------------------------------------------------------------------------


def test_random_windows_reach_every_place_from_the_first_to_the_last_and_no_further(tmp_path):
    loader = BinLoader(write_tokens(tmp_path / "t.bin", range(12)), 8, 5)
    assert set(starts(loader, range(40))) == set(range(7))  # 0 .. 12 - (5 + 1)


def test_a_file_of_exactly_one_window_gives_that_window(tmp_path):
    path = write_tokens(tmp_path / "t.bin", range(6))
    for sampling in ("random", "shuffle"):
        x, y = BinLoader(path, 2, 5, sampling=sampling).batch(9)
        assert x.tolist() == [[0, 1, 2, 3, 4]] * 2 and y.tolist() == [[1, 2, 3, 4, 5]] * 2


def test_random_windows_are_drawn_evenly(tmp_path):
    loader = BinLoader(write_tokens(tmp_path / "t.bin", range(14)), 100, 4)
    counts = np.bincount(starts(loader, range(50)), minlength=10)
    assert len(counts) == 10 and counts.min() > 400 and counts.max() < 600  # 500 each, give or take four sigma


# --- shuffle ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(tokens=st.integers(2, 60), seq_len=st.integers(1, 12), batch_size=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_shuffle_visits_every_window_exactly_once_an_epoch(tmp_path_factory, tokens, seq_len, batch_size, seed):
    seq_len = min(seq_len, tokens - 1)
    path = write_tokens(tmp_path_factory.getbasetemp() / "shuffled.bin", range(tokens))
    loader = BinLoader(path, batch_size, seq_len, seed=seed, sampling="shuffle")
    windows = list(range(0, tokens - seq_len, seq_len))
    assert loader.windows == len(windows)
    visited = starts(loader, range(-(-3 * len(windows) // batch_size)))  # three epochs; batches straddle their ends
    for epoch in range(3):
        assert sorted(visited[epoch * len(windows) : (epoch + 1) * len(windows)]) == windows


def test_every_epoch_has_an_order_of_its_own(counting):
    loader = BinLoader(counting, 9, 9, sampling="shuffle")  # 11 windows
    visited = starts(loader, range(11))
    epochs = [tuple(visited[start : start + 11]) for start in range(0, 99, 11)]
    assert len(set(epochs)) == 9
    assert tuple(range(0, 99, 9)) not in epochs


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(19, "No such device"), ValueError("mmap length")])
@pytest.mark.parametrize("sampling", ["random", "shuffle"])
def test_where_the_disk_cannot_be_mapped_the_file_is_read_with_a_warning(counting, monkeypatch, sampling, error):
    def memmap(*args, **kwargs):
        raise error

    mapped = BinLoader(counting, 4, 7, sampling=sampling)
    monkeypatch.setattr(loader_module.np, "memmap", memmap)
    with pytest.warns(UserWarning, match=rf"train\.bin cannot be memory-mapped \({re.escape(str(error))}\)") as warned:
        read = BinLoader(counting, 4, 7, sampling=sampling)
    assert type(read.tokens) is np.ndarray
    assert warned[0].filename == __file__, "the warning points at the line that opened the file"
    assert all(equal(read.batch(step), mapped.batch(step)) for step in range(9))


def test_the_file_is_mapped_not_read_and_never_written(counting):
    tokens = BinLoader(counting, 4, 7).tokens
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 7


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_missing_file_names_the_notebook_to_run(tmp_path):
    for path in (tmp_path / "train.bin", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"no token file {path}: run 02_tokenizer \(or `tokenizer` in the"):
            BinLoader(path, 2, 4)


@pytest.mark.parametrize("content", [b"", b"\1\0\2"], ids=["empty", "odd"])
def test_an_empty_file_and_one_of_odd_size_are_damaged(tmp_path, content):
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"train\.bin has {len(content)} bytes; .*write it again \(02_tokenizer\)"):
        BinLoader(tmp_path / "train.bin", 2, 4)


@pytest.mark.parametrize("sampling", ["random", "shuffle"])
def test_a_file_shorter_than_a_window_and_its_target_is_refused(tmp_path, sampling):
    path = write_tokens(tmp_path / "train.bin", range(8))
    BinLoader(path, 2, 7, sampling=sampling).batch(0)
    with pytest.raises(ValueError, match=r"train\.bin holds 8 tokens; a window of seq_len 8 needs 9"):
        BinLoader(path, 2, 8, sampling=sampling)


@pytest.mark.parametrize(
    "sidecar, sentence",
    [
        ({"tokens": 1_234}, r"holds 100 tokens, but its sidecar says 1,234: write the file again \(02_tokenizer\)"),
        ({"tokens": 99}, r"holds 100 tokens, but its sidecar says 99: write the file again \(02_tokenizer\)"),
        ({"dtype": "uint32"}, r"is said to hold uint32; only uint16 can be read: write the file again"),
        (
            {"vocab_size": 1_001},
            r"was written with 1,001 tokens in the vocabulary, the model has 1,000: write the file",
        ),
        (
            {"tokenizer_sha256": "c" * 64},
            r"was written with another tokenizer .*: write the file again \(02_tokenizer\)",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_sidecar_that_disagrees_is_refused(tmp_path, sidecar, sentence):
    path = write_tokens(tmp_path / "train.bin", range(100), **sidecar)
    with pytest.raises(ValueError, match=rf"train\.bin {sentence}"):
        BinLoader(path, 2, 4, vocab_size=1_000, tokenizer_sha256="a" * 64)


def test_a_sidecar_of_a_smaller_vocabulary_than_the_models_is_fine(tmp_path):
    path = write_tokens(tmp_path / "train.bin", range(100), vocab_size=100)
    assert BinLoader(path, 2, 4, vocab_size=1_000).info.vocab_size == 100


def test_a_broken_sidecar_is_refused(counting):
    counting.with_suffix(".json").write_text("{")
    with pytest.raises(ValueError, match=r"train\.json is not a token file's sidecar .*write the bin again"):
        BinLoader(counting, 2, 4)


def test_a_token_id_beyond_the_models_vocabulary_is_refused(counting):
    BinLoader(counting, 2, 4, vocab_size=100)
    with pytest.raises(
        ValueError, match=r"holds the token id 99, but the model's vocab_size is 99: give the model .* or"
    ):
        BinLoader(counting, 2, 4, vocab_size=99)


@pytest.mark.parametrize("sampling", ["Random", "", None, "sequential"])
def test_an_unknown_sampling_is_refused_with_those_there_are(counting, sampling):
    with pytest.raises(ValueError, match=rf"sampling is {sampling!r}; it must be one of \('random', 'shuffle'\)"):
        BinLoader(counting, 2, 4, sampling=sampling)


@pytest.mark.parametrize("batch_size, seq_len", [(0, 4), (-1, 4), (2, 0), (2, -3)])
def test_a_batch_without_a_token_is_refused(counting, batch_size, seq_len):
    with pytest.raises(ValueError, match=rf"batch_size is {batch_size} and seq_len {seq_len}; both must be at least 1"):
        BinLoader(counting, batch_size, seq_len)
