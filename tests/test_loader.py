"""Windows of a token file, as a pure function of the step."""

import contextlib
import json
import re
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystories_lab import loader as loader_module
from tinystories_lab.files import sha256_of
from tinystories_lab.loader import BinInfo, BinLoader

both_samplings = pytest.mark.parametrize("sampling", ["random", "shuffle"])


def write_tokens(path, ids, **sidecar):
    """Write a token file of these ids. With any `sidecar` value it also gets a sidecar, right in all other values."""
    np.asarray(ids, "<u2").tofile(path)
    if sidecar:
        info = BinInfo(len(ids), 1, 100, 1_000, "uint16", "a" * 64, sha256_of(path))
        path.with_suffix(".json").write_text(json.dumps(asdict(info) | sidecar))
    return path


@pytest.fixture
def counting(tmp_path):
    """A file in which every token is its own position: 0 to 99."""
    return write_tokens(tmp_path / "train.bin", np.arange(100))


def starts(loader, steps):
    """The first token of every window of these steps: in such a file, its position."""
    return [int(start) for step in steps for start in loader.batch(step)[0][:, 0]]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- windows ----------------------------------------------------------------------------------------------------------


def test_shuffled_windows_are_these_exact_tokens(tmp_path):
    loader = BinLoader(write_tokens(tmp_path / "t.bin", range(10, 23)), 3, 4, sampling="shuffle")
    x, y = loader.batch(0)
    assert sorted(x.tolist()) == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19, 20, 21]]
    assert sorted(y.tolist()) == [[11, 12, 13, 14], [15, 16, 17, 18], [19, 20, 21, 22]]


@both_samplings
def test_a_batch_is_int64_of_batch_by_seq_len_and_y_is_x_one_token_later(tmp_path, sampling):
    path = write_tokens(tmp_path / "train.bin", np.arange(100) + 65_436)  # up to the largest uint16
    loader = BinLoader(path, 5, 7, sampling=sampling)
    for step in range(20):
        x, y = loader.batch(step)
        assert x.shape == y.shape == (5, 7) and x.dtype == y.dtype == torch.int64
        assert torch.equal(x, x[:, :1] + torch.arange(7)) and torch.equal(y, x + 1)
        assert x.min() >= 65_436 and y.max() <= 65_535


@both_samplings
def test_a_batch_is_a_pure_function_of_seed_and_step(counting, sampling):
    loader = BinLoader(counting, 4, 7, seed=3, sampling=sampling)
    batches = {step: loader.batch(step) for step in range(12)}
    for step in (11, 0, 5, 5, 2, 10):  # any order, and across epochs
        assert equal(loader.batch(step), batches[step])
        assert equal(BinLoader(str(counting), 4, 7, seed=3, sampling=sampling).batch(step), batches[step])
    assert starts(loader, range(3)) != starts(BinLoader(counting, 4, 7, seed=4, sampling=sampling), range(3))
    assert starts(loader, [0]) != starts(loader, [1])


@both_samplings
def test_a_batch_changes_nothing_elsewhere_and_may_be_changed(counting, sampling):
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    loader = BinLoader(counting, 4, 7, sampling=sampling)
    x, _ = loader.batch(0)
    assert np.array_equal(np.random.get_state()[1], before[0]) and torch.equal(torch.get_rng_state(), before[1])
    kept = x.clone()
    x.zero_()
    assert torch.equal(loader.batch(0)[0], kept)


@both_samplings
def test_batches_of_a_file_held_on_the_device_are_those_read_from_disk(tmp_path, sampling, monkeypatch):
    path = write_tokens(tmp_path / "train.bin", np.random.default_rng(0).permutation(65_536)[:999])
    from_disk = BinLoader(path, 5, 7, sampling=sampling)
    monkeypatch.setattr(loader_module, "_fits_on_gpu", lambda device, size: size == 1_998)
    held = BinLoader(path, 5, 7, sampling=sampling)
    path.unlink()
    for step in (0, 27, 28, 29, 5):
        assert equal(held.batch(step), from_disk.batch(step))


def test_a_file_is_held_on_a_gpu_with_eight_times_the_memory_and_never_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8_000, 16_000))
    gpu = torch.device("cuda")
    assert loader_module._fits_on_gpu(gpu, 999) and not loader_module._fits_on_gpu(gpu, 1_000)
    assert not loader_module._fits_on_gpu(torch.device("cpu"), 1)


@both_samplings
@pytest.mark.parametrize("held", [False, True])
def test_shorter_windows_come_in_more_rows_with_as_many_tokens(tmp_path, sampling, held, monkeypatch):
    monkeypatch.setattr(loader_module, "_fits_on_gpu", lambda device, size: held)
    path = write_tokens(tmp_path / "train.bin", range(1_000))
    loader, short = BinLoader(path, 4, 8, seed=3, sampling=sampling), BinLoader(path, 16, 2, seed=3, sampling=sampling)
    for step in range(40):  # over two epochs of the longer ones; one loader gives both lengths in turn
        x, y = loader.batch(step, 2)
        assert x.shape == (16, 2) and torch.equal(y, x + 1)
        assert equal((x, y), short.batch(step))
        assert loader.batch(step)[0].shape == (4, 8)


def test_random_windows_reach_every_position_from_the_first_to_the_last_evenly(tmp_path):
    loader = BinLoader(write_tokens(tmp_path / "t.bin", range(14)), 100, 4)
    counts = np.bincount(starts(loader, range(50)))
    assert len(counts) == 10  # 0 to 14 - (4 + 1)
    assert counts.min() > 400 and counts.max() < 600  # 500 each, within four sigma


def test_story_windows_begin_with_every_story_that_has_room_for_one_equally_often(tmp_path):
    ids = [11, 12, 0, 13, 14, 15, 0, 16, 0, 17, 18, 19, 20]  # 0 ends a story
    loader = BinLoader(write_tokens(tmp_path / "t.bin", ids), 100, 5, sampling="stories", eos_id=0)
    windows = Counter(tuple(row) for step in range(30) for row in loader.batch(step)[0].tolist())
    assert set(windows) == {(11, 12, 0, 13, 14), (13, 14, 15, 0, 16), (16, 0, 17, 18, 19)}  # 17 has only three more
    assert min(windows.values()) > 850 and max(windows.values()) < 1_150  # 1,000 each, within six sigma
    assert equal(loader.batch(7), BinLoader(loader.path, 100, 5, sampling="stories", eos_id=0).batch(7))
    assert not equal(loader.batch(7), BinLoader(loader.path, 100, 5, seed=1, sampling="stories", eos_id=0).batch(7))
    assert {row[0] for row in loader.batch(0, 2)[0].tolist()} == {11, 13, 16, 17}


def test_story_windows_need_the_id_that_ends_a_story(counting):
    with pytest.raises(ValueError, match="'stories', which needs eos_id"):
        BinLoader(counting, 4, 7, sampling="stories")


@settings(max_examples=60)
@given(tokens=st.integers(2, 60), seq_len=st.integers(1, 12), batch_size=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_shuffle_visits_every_window_exactly_once_per_epoch(tmp_path_factory, tokens, seq_len, batch_size, seed):
    seq_len = min(seq_len, tokens - 1)
    path = write_tokens(tmp_path_factory.getbasetemp() / "shuffled.bin", range(tokens))
    loader = BinLoader(path, batch_size, seq_len, seed=seed, sampling="shuffle")
    windows = list(range(0, tokens - seq_len, seq_len))
    assert loader.windows == len(windows)
    visited = starts(loader, range(-(-3 * len(windows) // batch_size)))  # three epochs; some batches cross their ends
    epochs = [visited[epoch * len(windows) : (epoch + 1) * len(windows)] for epoch in range(3)]
    assert all(sorted(epoch) == windows for epoch in epochs)
    assert len(windows) < 9 or len({*map(tuple, [windows, *epochs])}) == 4, "each epoch has an order of its own"


# --- the file and its sidecar -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(19, "No such device"), ValueError("mmap length")], ids=repr)
def test_if_the_disk_cannot_be_mapped_the_file_is_read_with_a_warning(counting, monkeypatch, error):
    def memmap(*args, **kwargs):
        raise error

    mapped = BinLoader(counting, 4, 7)
    monkeypatch.setattr(loader_module.np, "memmap", memmap)
    with pytest.warns(UserWarning, match=rf"train\.bin cannot be memory-mapped \({re.escape(str(error))}\)") as warned:
        read = BinLoader(counting, 4, 7)
    assert type(read.tokens) is np.ndarray
    assert warned[0].filename == __file__, "the warning points at the line that opened the file"
    assert all(equal(read.batch(step), mapped.batch(step)) for step in range(9))


def test_the_file_is_mapped_not_read_and_never_written(counting):
    before = counting.read_bytes()
    tokens = BinLoader(counting, 4, 7).tokens
    assert isinstance(tokens, np.memmap)
    with contextlib.suppress(ValueError):  # "assignment destination is read-only"
        tokens[0] = 7
        tokens.flush()
    assert counting.read_bytes() == before


@both_samplings
def test_a_window_may_fill_the_file_and_not_exceed_it(tmp_path, sampling):
    path = write_tokens(tmp_path / "train.bin", range(6))
    x, y = BinLoader(path, 2, 5, sampling=sampling).batch(9)
    assert x.tolist() == [[0, 1, 2, 3, 4]] * 2 and y.tolist() == [[1, 2, 3, 4, 5]] * 2
    with pytest.raises(ValueError, match=r"train\.bin has 6 tokens; a window of seq_len 6 needs 7"):
        BinLoader(path, 2, 6, sampling=sampling)


def test_missing_and_damaged_files_say_what_writes_them(tmp_path):
    for path in (tmp_path / "train.bin", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"no token file {path}: run 02_tokenizer \(or `tokenizer` in the"):
            BinLoader(path, 2, 4)
    for content in (b"", b"\1\0\2"):
        (tmp_path / "train.bin").write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"train\.bin has {len(content)} bytes, .*write it again \(02_tokenizer, or `tokenizer`"
        ):
            BinLoader(tmp_path / "train.bin", 2, 4)


@pytest.mark.parametrize(
    ("sidecar", "sentence"),
    [
        ({"tokens": 1_234}, "was written with 1,234 tokens, but it has 100"),
        ({"tokens": 99}, "was written with 99 tokens, but it has 100"),
        ({"dtype": "uint32"}, "has uint32 ids, but only uint16 can be read"),
        ({"vocab_size": 1_001}, "was written with a vocabulary of 1,001 tokens, but the model has 1,000"),
        ({"tokenizer_sha256": "c" * 64}, "was written with another tokenizer"),
        ({"sha256": "d" * 64}, r"is damaged \(its SHA-256 is not the one in its sidecar\)"),
    ],
    ids=str,
)
def test_a_sidecar_that_disagrees_is_refused(tmp_path, sidecar, sentence):
    path = write_tokens(tmp_path / "train.bin", range(100), **sidecar)
    with pytest.raises(ValueError, match=rf"train\.bin.* {sentence}.*: write it again \(02_tokenizer, or `tokenizer`"):
        BinLoader(path, 2, 4, vocab_size=1_000, tokenizer_sha256="a" * 64)


def test_a_file_that_changes_without_its_sidecar_is_refused_in_the_same_session(tmp_path):
    path = write_tokens(tmp_path / "train.bin", range(100), tokens=100)
    BinLoader(path, 2, 4)
    content = bytearray(path.read_bytes())
    content[50:60] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        BinLoader(path, 2, 4)


def test_a_sidecar_that_agrees_or_has_a_smaller_vocabulary_is_kept_as_info(tmp_path):
    for vocab_size in (1_000, 100):
        path = write_tokens(tmp_path / "train.bin", range(100), vocab_size=vocab_size)
        info = BinLoader(path, 2, 4, vocab_size=1_000, tokenizer_sha256="a" * 64).info
        assert info == BinInfo.load(path) and info.vocab_size == vocab_size
        assert info.bytes_per_token == 1.0
    path.with_suffix(".json").unlink()
    assert BinLoader(path, 2, 4).info is BinInfo.load(path) is None


def test_a_broken_sidecar_says_what_writes_it_again(counting):
    one_too_many = json.dumps(asdict(BinInfo(100, 1, 100, 100, "uint16", "", "")) | {"colour": "red"}).encode()
    for content in (b"", b"{", b"[]", b"{}", b'{"tokens": 7}', b"7", b"\xff\xff", one_too_many):
        counting.with_suffix(".json").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"train\.json .*\(.*\): write it again \(02_tokenizer, or `tokenizer`"
        ) as refused:
            BinLoader(counting, 2, 4)
    assert "colour" in str(refused.value)


def test_settings_that_do_not_fit_are_refused_with_their_values(counting):
    BinLoader(counting, 2, 4, vocab_size=100)
    with pytest.raises(ValueError, match="the token id 99, but the model's vocab_size is 99"):
        BinLoader(counting, 2, 4, vocab_size=99)
    for sampling in ("Random", "", None, "sequential"):
        with pytest.raises(ValueError, match=f"sampling is {sampling!r}; it must be random, shuffle or stories"):
            BinLoader(counting, 2, 4, sampling=sampling)
    for batch_size, seq_len in ((0, 4), (-1, 4), (2, 0), (2, -3)):
        with pytest.raises(
            ValueError, match=f"batch_size is {batch_size} and seq_len {seq_len}; both must be at least 1"
        ):
            BinLoader(counting, batch_size, seq_len)
