"""What a run will take: measured on the real step, and told as people say it."""

import gzip
import json
import time

import pytest
import torch

from tinystories_lab import estimate
from tinystories_lab.estimate import (
    budget,
    count_stories,
    duration,
    measure_speed,
    powers,
    seconds_to_learn,
    seconds_to_prepare,
    seconds_to_write,
)
from tinystories_lab.model import GPTConfig, GPTMini, count_parameters
from tinystories_lab.presets import PRESETS
from tinystories_lab.stories import load_stories
from tinystories_lab.tokenizer import train_tokenizer, write_bin
from tinystories_lab.toyland import tell_stories


def test_measuring_the_speed_trains_for_real_and_leaves_the_random_state(model_config, train_config):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    speed = measure_speed(model_config, train_config, seconds=0.1)
    assert speed > 0 and torch.equal(torch.get_rng_state(), before)


def test_a_larger_model_is_slower(model_config, train_config):
    tiny = PRESETS["tiny"]
    assert measure_speed(tiny.model, tiny.train, 0.3) < measure_speed(model_config, train_config, 0.3)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.3, "a second"),
        (40, "40 seconds"),
        (116, "116 seconds"),
        (180, "3 minutes"),
        (3_600, "60 minutes"),
        (10_080, "2.8 hours"),
        (90_000, "25 hours"),
        (277_000, "3.2 days"),
        (1e8, "1,157 days"),
    ],
)
def test_a_duration_is_said_in_a_fitting_unit(seconds, said):
    assert duration(seconds) == said


@pytest.fixture(scope="module")
def told():
    """12,000 stories: three times what is tried."""
    return load_stories("toyland", max_stories=12_000)[0]["train"]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_parameters_are_counted_as_on_the_network_itself(preset):
    assert count_parameters(preset.model) == GPTMini(preset.model).count_parameters()


def test_the_budget_of_the_chapters_run_is_the_chapters_arithmetic():
    lines = budget(GPTConfig(), 200_000_000, 16_384, {"a T4": 21_000 * 9_952_320})
    assert lines["parameters"] == 9_952_320 and lines["steps"] == 12_207
    assert lines["tokens a parameter"] == pytest.approx(20.1, abs=0.01)
    assert lines["time on a T4"] == "2.6 hours"  # 200M / 21K; the chapter says 2.8


def test_a_model_twice_as_large_takes_twice_as_long():
    small, large = GPTConfig(n_layer=6), GPTConfig(n_layer=12)
    power = {"here": 1e9}
    seconds = [count_parameters(model) * 1e9 / power["here"] for model in (small, large)]
    assert budget(large, 10**9, 1, power)["time on here"] == duration(seconds[1])
    assert budget(small, 10**9, 1, power)["time on here"] == duration(seconds[0])


def test_powers_are_the_chapters_for_its_machines_and_measured_for_this_one(model_config, train_config, monkeypatch):
    monkeypatch.setattr(estimate, "measure_speed", lambda model, config: 1_000.0)
    found = powers(model_config, train_config)
    assert found["this machine"] == 1_000 * count_parameters(model_config)
    assert found["Colab T4, fp16"] == 21_000 * 9_952_320 and len(found) == 3


def test_how_many_stories_a_source_gives_is_known_or_judged_by_size(tmp_path):
    assert count_stories("tinystories") == 2_141_709 and count_stories("tinystories", 50) == 50
    assert count_stories("toyland") == 20_000 and count_stories("toyland", 7) == 7
    stories = [story.replace("\n", " ") for story in tell_stories(9_000)]
    (tmp_path / "mine.txt").write_text("\n\n".join(stories))
    lines = "".join(json.dumps({"text": story}) + "\n" for story in stories)
    (tmp_path / "mine.jsonl").write_text(lines)
    (tmp_path / "mine.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("mine.txt", "mine.jsonl", "mine.jsonl.gz"):
        assert count_stories(tmp_path / name) == pytest.approx(9_000, rel=0.1), name
        assert count_stories(tmp_path / name, 500) == 500
    with pytest.raises(FileNotFoundError, match="there is no file"):
        seconds_to_prepare(tmp_path / "none.txt")


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def test_estimates_are_near_what_the_work_then_takes_and_show_no_bars(told, tmp_path, capfd):
    tokenizer = train_tokenizer(told[:1_000]["text"], 500)
    capfd.readouterr()
    guessed = [
        seconds_to_prepare("toyland", 12_000),
        seconds_to_learn(told, 12_000, 500),
        seconds_to_write(told, tokenizer),
    ]
    assert capfd.readouterr().err == ""
    taken = [
        timed(lambda: load_stories("toyland", max_stories=12_000)),
        timed(lambda: train_tokenizer(told["text"], 500)),
        timed(lambda: write_bin(tmp_path / "train.bin", told, tokenizer)),
    ]
    for about, seconds in zip(guessed, taken, strict=True):
        assert seconds / 10 < about < seconds * 10  # this machine may be busy with other work


def test_the_estimate_of_writing_stops_at_max_tokens(told, monkeypatch):
    tokenizer = train_tokenizer(told[:1_000]["text"], 500)
    monkeypatch.setattr(estimate, "_seconds_for_all", lambda work, count: count)
    tokens = sum(len(tokenizer.encode(story).ids) + 1 for story in told["text"])
    assert seconds_to_write(told, tokenizer) == len(told)
    assert seconds_to_write(told, tokenizer, tokens // 4) == pytest.approx(len(told) / 4, rel=0.02)
    assert seconds_to_write(told, tokenizer, 10**12) == len(told)
